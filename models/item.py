"""Items and the catalogue: what a recommender recommends, and the rows by which tensors know it."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import TypeAliasType

SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL = re.compile("[\x00-\x1f\x7f]")
MAX_ID_BYTES = 512
MAX_ATTRIBUTES = 64
MAX_DEPTH = 4  # a list of category paths is 2 deep; deeper nesting is no attribute any more

# How much training knew of an item: the most interacted with, the rest, those without any.
Popularity = Literal["head", "tail", "cold"]

AttributeValue = TypeAliasType(
    "AttributeValue",
    "str | bool | int | float | list[AttributeValue] | None",
)


class InvalidItem(ValueError):
    """An item that cannot be used; the message names where it stands, the field and the value."""


def is_missing(value: object) -> bool:
    """Whether an attribute's value says nothing: null, blank text, or a list of only such."""
    if isinstance(value, list):
        return all(is_missing(part) for part in value)
    return value is None or (isinstance(value, str) and not value.strip())


def _check(value: object, path: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{path} is nested deeper than {MAX_DEPTH} lists")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is {value}; numbers must be finite")
    if isinstance(value, str) and SURROGATE.search(value):
        raise ValueError(f"{path} holds half a surrogate pair, which is no text")
    if isinstance(value, list):
        for position, part in enumerate(value):
            _check(part, f"{path}[{position}]", depth + 1)


class Item(BaseModel):
    """An id and named attributes.

    Attribute values are strings, finite numbers, booleans, null, or lists of those (nested at
    most MAX_DEPTH deep). At least one attribute must say something. Ids are any text of 1 to
    MAX_ID_BYTES bytes of UTF-8 without control characters; slashes, dots and unicode are fine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    item_id: str = Field(min_length=1, description="Any text; slashes and unicode are fine.")
    attributes: dict[str, AttributeValue] = Field(min_length=1, max_length=MAX_ATTRIBUTES)

    @field_validator("item_id")
    @classmethod
    def _id_is_usable(cls, value: str) -> str:
        _check(value, "item_id")
        if len(value.encode()) > MAX_ID_BYTES:
            raise ValueError(f"item_id is longer than {MAX_ID_BYTES} bytes")
        if CONTROL.search(value):
            raise ValueError("item_id holds a control character")
        return value

    @field_validator("attributes")
    @classmethod
    def _attributes_say_something(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, part in value.items():
            if not name.strip():
                raise ValueError("an attribute has an empty name")
            _check(name, "an attribute's name")
            _check(part, name)
        if all(is_missing(part) for part in value.values()):
            raise ValueError("no attribute has a value")
        return value


def parse_item(fields: object, where: str) -> Item:
    """The Item in a decoded JSON object.

    Args:
        fields: what json.loads gave.
        where: file and line, or JSON path; opens the error's message.

    Raises:
        InvalidItem: the object is no Item; says which field, which value and why.
    """
    try:
        return Item.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        value = json.dumps(first["input"], default=str, ensure_ascii=True)[:120]
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidItem(f"{where}: {field}: {reason} (got {value})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return dict(pairs)


def read_items(path: Path, *, ignore_other_fields: bool = False) -> Iterator[Item]:
    """Items of a JSONL file: one `{"item_id": …, "attributes": {…}}` a line; blank lines skipped.

    Args:
        ignore_other_fields: whether a line may say more than these two fields.

    Raises:
        InvalidItem: a line is no JSON or no Item; the message opens with file and line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path.name}:{number}"
                yield parse_line(line, where, ignore_other_fields=ignore_other_fields)


def parse_line(line: bytes, where: str, *, ignore_other_fields: bool = False) -> Item:
    """The Item in one line of JSON.

    Raises:
        InvalidItem: it is no JSON or no Item; the message opens with `where`.
    """
    try:
        fields = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidItem(f"{where}: not a JSON object: {error}") from None
    if ignore_other_fields and isinstance(fields, dict):
        fields = {name: fields[name] for name in Item.model_fields if name in fields}
    return parse_item(fields, where)


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as read_items reads them."""
    with path.open("w", encoding="utf-8") as lines:
        for item in items:
            lines.write(item.model_dump_json() + "\n")


class Catalogue(Sequence[Item]):
    """Items in a fixed order; gives each id its row, from 1 upwards. Row 0 is padding.

    The order is that of a hash of the id, so that a source's own order (often the order of
    first appearance in time) can leak into nothing. `catalogue[i]` is the item of row i + 1.

    Raises:
        InvalidItem: an id stands twice.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = sorted(items, key=lambda item: hashlib.sha256(item.item_id.encode()).digest())
        self.rows: Mapping[str, int] = {
            item.item_id: row for row, item in enumerate(self._items, 1)
        }
        if len(self.rows) != len(self._items):
            seen: set[str] = set()
            for item in self._items:
                if item.item_id in seen:
                    raise InvalidItem(f"item_id {item.item_id!r} stands twice in the catalogue")
                seen.add(item.item_id)

    @property
    def ids(self) -> list[str]:
        """Item ids in row order; ids[i] belongs to row i + 1."""
        return [item.item_id for item in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - Sequence's own overloads
        return self._items[index]
