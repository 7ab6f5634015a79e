"""RecBole's atomic files: NAME.inter and NAME.item, tab-separated, columns named `field:type`.

Every field of the items becomes an attribute; `template.exclude` leaves out those that do not
belong in a prompt. Interactions are taken as they are, repeats included.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from training import JobError
from training.sources import Source, events_of, items_of
from training.sources.reading import read_rows
from training.sources.values import id_of, time_of

# A sequence of words in these fields is prose, not a list.
PROSE = ("title", "name", "description", "abstract", "text")


def files(folder: Path) -> tuple[str, str]:
    """The two files that load reads: of interactions, and of items.

    Raises:
        JobError: one is missing, or there are several data sets.
    """
    found = sorted(path.name for path in folder.glob("*.inter"))
    if not found:
        raise JobError(f"{folder} holds no RecBole data: no NAME.inter")
    if len(found) > 1:
        raise JobError(
            f"{folder} holds several RecBole data sets ({', '.join(found)}); "
            "give each a folder of its own"
        )
    items = found[0].removesuffix(".inter") + ".item"
    if not (folder / items).is_file():
        raise JobError(f"{folder} holds {found[0]} but no {items}, so its items have no attributes")
    return found[0], items


def load(folder: Path) -> Source:
    """All items and interactions; without a field `timestamp` the order of the file is the time.

    Raises:
        JobError: a file is missing, or a line is wrong.
    """
    interactions, items = files(folder)
    events = events_of(_interactions(folder / interactions))
    if events.times and math.isnan(events.times[0]):
        events = replace(events, times=None)
    return Source(items_of(_items(folder / items)), events)


def _interactions(path: Path) -> Iterator[tuple[str, str, float, str]]:
    """As events_of takes them; the time is NaN where there is no field for it."""
    for where, row in read_rows(path, "\t"):
        fields = {column.partition(":")[0]: text for column, text in row.items()}
        user, item = id_of(fields, "user_id", where), id_of(fields, "item_id", where)
        time = time_of(fields["timestamp"], where) if "timestamp" in fields else math.nan
        yield user, item, time, where


def _items(path: Path) -> Iterator[tuple[str, dict[str, object], str]]:
    for where, row in read_rows(path, "\t"):
        fields: dict[str, object] = {}
        for column, text in row.items():
            field, _, kind = column.partition(":")
            fields[field] = _value(field, kind, text.strip(), where)
        item_id = id_of(fields, "item_id", where)
        yield item_id, {name: fields[name] for name in fields if name != "item_id"}, where


def _value(field: str, kind: str, text: str, where: str) -> object:
    if kind not in {"token", "token_seq", "float", "float_seq"}:
        raise JobError(
            f"{where}: column {field}:{kind}: its type is none of token, token_seq, float and "
            "float_seq"
        )
    if not text or (kind == "float" and text.lower() == "nan"):
        return None
    if kind == "float":
        return _number(text, field, where)
    if kind == "float_seq":
        return [_number(part, field, where) for part in text.split()]
    if kind == "token" or any(word in field.lower() for word in PROSE):
        return text
    # Blanks separate, by the format; but several published sets separate with comma and blank.
    parts = text.split(",") if "," in text else text.split()
    return [part.strip() for part in parts if part.strip()]


def _number(text: str, field: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise JobError(f"{where}: {field}: {text!r} is not a finite number")
    return number
