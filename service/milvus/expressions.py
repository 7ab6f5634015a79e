"""Filters as Milvus' expressions, and what of an item's attributes stands in Milvus for them.

An item has `marks`: a hash of each value and of each kind of value that it has under a name. What
asks for a value is one look-up among them, and no value of anybody's has to be quoted. For ranges
it has `bounds`: of each name and kind the least and the greatest value, as text in the order of
the values.

An expression lets every item pass that matches, and few others: where one has a list with values on
both sides of a range, or values that differ late. Who asks looks at what came once more.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from service.columns import KINDS, coded, coded_values
from service.errors import Invalid
from service.filters import And, AnyOf, Bound, Exists, Filter, HeldKind, Not, Or, Range

KEY, MARKS, BOUNDS, VERSION = "pk", "marks", "bounds", "version"
DIGITS = 32  # of a key and of a mark: 128 bits, so that no two are ever the same
# Of one item; Milvus has no longer arrays.
MOST_MARKS = 4096
# Bytes of a bound; text may hold 65,536, of 64 attributes with two kinds each.
BOUND_BYTES = 24
NOBODY, EVERYBODY = f"{VERSION} < 0", f"{VERSION} >= 0"
ORDERED: tuple[HeldKind, ...] = ("number", "string")


def key_of(item_id: str) -> str:
    """What an item's row is called: the same for the same id, evenly spread over all."""
    return hashlib.sha256(item_id.encode()).hexdigest()[:DIGITS]


def mark(name: str, value: bytes) -> str:
    """What an item has that has a value, as columns.coded, or a kind of values under a name."""
    encoded = name.encode()
    told = struct.pack(">H", len(encoded)) + encoded + value
    return hashlib.sha256(told).hexdigest()[:DIGITS]


def described(attributes: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Marks and bounds of an item.

    Raises:
        Invalid: it has more values than one item may have.
    """
    marks: set[str] = set()
    least: dict[tuple[str, bytes], bytes] = {}
    most: dict[tuple[str, bytes], bytes] = {}
    ordered = {KINDS[kind] for kind in ORDERED}
    for name, value in coded_values(attributes):
        kind = value[:1]
        marks |= {mark(name, value), mark(name, kind)}
        if kind in ordered:
            at = name, kind
            least[at] = min(least.get(at, value), value)
            most[at] = max(most.get(at, value), value)
    if len(marks) > MOST_MARKS:
        raise Invalid.field(
            "attributes", f"have more than the {MOST_MARKS} values that Milvus keeps of an item"
        )
    bounds = {_least(mark(*at)): _text(value) for at, value in least.items()}
    bounds |= {_most(mark(*at)): _text(value) for at, value in most.items()}
    return sorted(marks), bounds


def expression(matching: Filter) -> str:
    """What all items that match fulfil."""
    return _said(matching, so=True)


def without(expressions: Iterable[str], keys: Iterable[str]) -> str:
    """What items fulfil that fulfil all of these, but for those of some keys."""
    listed = _listed(sorted(set(keys)))
    parts = [*expressions, *([f"{KEY} not in {listed}"] if listed != "[]" else [])]
    return " and ".join(f"({part})" for part in parts) or EVERYBODY


def among(keys: Iterable[str]) -> str:
    """The items of some keys."""
    return f"{KEY} in {_listed(keys)}"


def has_kind(name: str, kind: HeldKind) -> str:
    """Who has a value of a kind under a name."""
    return _any([mark(name, KINDS[kind])])


def _said(matching: Filter, so: bool) -> str:
    """What items fulfil that match, or (not so) those that do not."""
    if isinstance(matching, Not):
        return _said(matching.part, not so)
    if isinstance(matching, And | Or):
        joint = " and " if isinstance(matching, And) is so else " or "
        # In one order, so that equal filters are the same text.
        return joint.join(sorted(f"({_said(part, so)})" for part in matching.parts))
    if isinstance(matching, Range):
        return _within(matching) if so else _outside(matching)
    if isinstance(matching, Exists):
        marks = [mark(matching.attribute, kind) for kind in KINDS.values()]
    elif isinstance(matching, AnyOf):
        values = [coded(each.value) for each in matching.values]
        # An empty string says nothing, so that nobody has it; its mark is that of all strings.
        marks = [mark(matching.attribute, each) for each in values if len(each) > 1]
    if not marks:
        return NOBODY if so else EVERYBODY
    return _any(marks) if so else f"not {_any(marks)}"


def _within(matching: Range) -> str:
    """Who has values of which one may be between the bounds."""
    at = mark(matching.attribute, KINDS[matching.kind])
    parts = []
    if matching.low:
        parts.append(_compared(_most(at), ">", matching.low, matching.low.inclusive))
    if matching.high:
        parts.append(_compared(_least(at), "<", matching.high, matching.high.inclusive))
    return " and ".join(parts)


def _outside(matching: Range) -> str:
    """Who has values of which none may be between the bounds."""
    at = mark(matching.attribute, KINDS[matching.kind])
    low, high = matching.low, matching.high
    parts = [f"not {_any([at])}"]
    if low:
        # All are below it; where there are two bounds, some are, and others may be above.
        side = _least(at) if high else _most(at)
        parts.append(_compared(side, "<", low, not low.inclusive))
    if high:
        side = _most(at) if low else _least(at)
        parts.append(_compared(side, ">", high, not high.inclusive))
    return " or ".join(parts)


def _compared(bound: str, sign: str, with_: Bound, equal: bool) -> str:
    value = coded(with_.value.value)
    # What is as long as a bound may be equal to one that was cut.
    equal = equal or len(value) >= BOUND_BYTES
    return f'{BOUNDS}["{bound}"] {sign}{"=" * equal} "{_text(value)}"'


def _least(marked: str) -> str:
    return f"l{marked}"


def _most(marked: str) -> str:
    return f"m{marked}"


def _text(value: bytes) -> str:
    return value[:BOUND_BYTES].hex()


def _any(marks: Iterable[str]) -> str:
    return f"array_contains_any({MARKS}, {_listed(sorted(marks))})"


def _listed(texts: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{each}"' for each in texts) + "]"
