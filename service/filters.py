"""Filters: a small JSON language over the attributes of items, read into a tree.

    {"attribute": "genres", "in": ["Comedy", "Drama"]}
    {"attribute": "year", "gte": 1990, "lt": 2000}
    {"and": [FILTER, …]}   {"or": [FILTER, …]}   {"not": FILTER}

A condition asks for a value: an item matches if it has one such value under the attribute, as
the attribute itself or anywhere in its list. Strings are ordered by code point, numbers as 64-bit
floats, and values of two kinds are never equal nor ordered: true is not 1, "1990" is not 1990.
What says nothing (null, blank text) is no value. `not` takes all other items, those without the
attribute, too.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from service.errors import Invalid, shown

Kind = Literal["boolean", "number", "string"]
HeldKind = Kind | Literal["text"]  # `text` is a string that is too long to be compared

OPERATORS = ("eq", "in", "gt", "gte", "lt", "lte", "exists")
LOWER, UPPER = ("gt", "gte"), ("lt", "lte")
CONNECTIVES = ("and", "or", "not")
MAX_NESTING = 8  # of and, or, not
MAX_CONDITIONS = 64
MAX_VALUES = 1000  # of all `in` together; each is looked up
NUMBER = r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,20})?"  # that JSON writes as the string has it
MAX_BYTES = 256  # of a name or a string that is compared; a longer one is text
NAMES: Mapping[HeldKind, str] = {
    "boolean": "booleans",
    "number": "numbers",
    "string": "strings",
    "text": f"strings of more than {MAX_BYTES} bytes, which are not compared,",
}


class Value(NamedTuple):
    """A value with its kind: True and 1.0 are equal in Python, and not here."""

    kind: Kind
    value: bool | float | str


class Bound(NamedTuple):
    """One end of a range."""

    value: Value
    inclusive: bool


@dataclass(frozen=True)
class AnyOf:
    """Items that have one of these values."""

    attribute: str
    values: frozenset[Value]


@dataclass(frozen=True)
class Range:
    """Items that have a value between two bounds of its kind; None is open."""

    attribute: str
    kind: Kind
    low: Bound | None
    high: Bound | None


@dataclass(frozen=True)
class Exists:
    """Items that have any value of an attribute."""

    attribute: str


@dataclass(frozen=True)
class And:
    """Items that match all of these."""

    parts: "frozenset[Filter]"


@dataclass(frozen=True)
class Or:
    """Items that match at least one of these."""

    parts: "frozenset[Filter]"


@dataclass(frozen=True)
class Not:
    """Items that do not match."""

    part: "Filter"


# Equal trees are the same filter, in whatever order its parts were sent: a tree is its own key.
Filter = AnyOf | Range | Exists | And | Or | Not


class Attributes(Protocol):
    """What may be filtered by."""

    def refusal(self, name: str) -> str | None:
        """Why nothing may be filtered by an attribute; None if it may."""

    def kinds(self, name: str) -> Collection[HeldKind]:
        """Of which kinds items have values of an attribute."""


def parse(told: object, attributes: Attributes, where: str = "filter") -> Filter:
    """The filter in decoded JSON.

    Args:
        where: what the filter is called in errors, the beginning of their path.

    Raises:
        Invalid: it is none, or larger than a filter may be, or asks for a number where items
            have only strings or the like; names the path and the value.
    """
    return _Reading(attributes).read(told, where, 1)


class _Reading:
    """One filter while it is read, with what it has cost so far."""

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self._conditions = 0
        self._values = 0

    def read(self, told: object, path: str, depth: int) -> Filter:
        if not isinstance(told, dict):
            raise Invalid.field(
                path, "must be an object with `attribute` and an operator, or and, or, not", told
            )
        if "attribute" in told:
            return self._condition(told, path)
        if len(told) != 1 or not told.keys() <= set(CONNECTIVES):
            raise Invalid.field(path, _no_filter(told), told)
        if depth > MAX_NESTING:
            raise Invalid.field(path, f"is nested deeper than {MAX_NESTING}", told)
        ((name, inner),) = told.items()
        path = f"{path}.{name}"
        if name == "not":
            return Not(self.read(inner, path, depth + 1))
        if not isinstance(inner, list) or not inner:
            raise Invalid.field(path, "must be a list of one filter or more", inner)
        parts = frozenset(
            self.read(each, f"{path}[{at}]", depth + 1) for at, each in enumerate(inner)
        )
        return And(parts) if name == "and" else Or(parts)

    def _condition(self, told: Mapping[str, object], path: str) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise Invalid.field(
                path, f"is one condition more than the {MAX_CONDITIONS} allowed", told
            )
        attribute = told["attribute"]
        if not isinstance(attribute, str):
            raise Invalid.field(f"{path}.attribute", "must be an attribute's name", attribute)
        if reason := self._attributes.refusal(attribute):
            raise Invalid.field(f"{path}.attribute", reason, attribute)
        asked = {name: value for name, value in told.items() if name != "attribute"}
        for name in asked:
            if name not in OPERATORS:
                raise Invalid.field(
                    path, f"{shown(name)} is no operator; there are {', '.join(OPERATORS)}", told
                )
        if not asked:
            raise Invalid.field(path, f"has no operator; there are {', '.join(OPERATORS)}", told)
        if len(asked) == 1:
            ((name, value),) = asked.items()
            at = f"{path}.{name}"
            if name == "exists":
                if not isinstance(value, bool):
                    raise Invalid.field(at, "must be true or false", value)
                return Exists(attribute) if value else Not(Exists(attribute))
            if name in {"eq", "in"}:
                listed = name == "in"
                values = self._listed(value, at) if listed else frozenset([_value(value, at)])
                self._require_kind(attribute, {each.kind for each in values}, at, value)
                return AnyOf(attribute, values)
        found = _range(attribute, asked, path)
        ((name, value), *_) = asked.items()
        self._require_kind(attribute, {found.kind}, f"{path}.{name}", value)
        return found

    def _require_kind(
        self, attribute: str, asked: Collection[Kind], path: str, told: object
    ) -> None:
        """Refuse what cannot match, since years are strings here and a number was sent."""
        there = self._attributes.kinds(attribute)
        if asked and there and not set(asked) & set(there):
            have = " and ".join(NAMES[kind] for kind in sorted(there))
            raise Invalid.field(
                path,
                f"asks for {NAMES[min(asked)]}, and items have {have} there{_instead(told, there)}",
                told,
            )

    def _listed(self, told: object, path: str) -> frozenset[Value]:
        if not isinstance(told, list):
            raise Invalid.field(path, "must be a list of values", told)
        self._values += len(told)
        if self._values > MAX_VALUES:
            raise Invalid.field(
                path,
                f"has {len(told)} values; all `in` of a filter may have {MAX_VALUES} together",
                told,
            )
        return frozenset(_value(each, f"{path}[{at}]") for at, each in enumerate(told))


def _no_filter(told: Mapping[str, object]) -> str:
    """Why an object without `attribute` is no filter, and what might be meant."""
    if not told:
        return "is empty; leave it out to filter by nothing"
    name = next((each for each in told if each not in CONNECTIVES), None)
    if name is None:
        return f"has {' and '.join(told)}; each needs an object of its own"
    if name in OPERATORS:
        return "has no `attribute`"
    meant = f'{{"attribute": {shown(name)}, "eq": …}}'
    return f"must have `attribute`, or be one of and, or, not; write {meant}"


def _instead(told: object, there: Collection[HeldKind]) -> str:
    """What to send for a number or a string where items have only the other of the two."""
    if isinstance(told, list):
        each = [_instead(one, there) for one in told[:1]]
        return each[0] and f"{each[0]} and the like" if each else ""
    if isinstance(told, int | float) and not isinstance(told, bool) and "string" in there:
        return f"; send {shown(str(told))}"
    if isinstance(told, str) and "number" in there and re.fullmatch(NUMBER, told):
        return f"; send {told}"
    return ""


def _value(told: object, path: str) -> Value:
    if isinstance(told, bool):
        return Value("boolean", told)
    if isinstance(told, int | float):
        try:
            return Value("number", float(told) + 0.0)  # and -0.0 is 0.0
        except OverflowError:
            raise Invalid.field(path, "is too large for a 64-bit float", told) from None
    if isinstance(told, str):
        if len(told.encode()) > MAX_BYTES:
            raise Invalid.field(
                path, f"is longer than {MAX_BYTES} bytes; strings like that are not compared", told
            )
        return Value("string", told)
    if told is None:
        raise Invalid.field(
            path, 'is null; for items without the attribute ask for `"exists": false`'
        )
    hint = "; `in` takes a list" if isinstance(told, list) else ""
    raise Invalid.field(path, f"must be a string, a number or a boolean{hint}", told)


def _range(attribute: str, asked: Mapping[str, object], path: str) -> Range:
    alone = [name for name in asked if name not in LOWER + UPPER]
    if alone:
        raise Invalid.field(
            f"{path}.{alone[0]}",
            "stands alone in a condition; join conditions by `and`",
            asked[alone[0]],
        )
    low, high = _bound(asked, LOWER, path), _bound(asked, UPPER, path)
    kinds = {bound.value.kind for bound in (low, high) if bound}
    if len(kinds) > 1:
        raise Invalid.field(
            path, "has a number and a string for bounds; no value is between them", asked
        )
    (kind,) = kinds
    return Range(attribute, kind, low, high)


def _bound(asked: Mapping[str, object], names: Collection[str], path: str) -> Bound | None:
    found = [name for name in names if name in asked]
    if not found:
        return None
    if len(found) > 1:
        raise Invalid.field(
            f"{path}.{found[1]}", f"stands beside {found[0]}; send one of them", asked[found[1]]
        )
    (name,) = found
    value = _value(asked[name], f"{path}.{name}")
    if value.kind == "boolean":
        raise Invalid.field(f"{path}.{name}", "is a boolean, and those have no order", asked[name])
    return Bound(value, name.endswith("e"))
