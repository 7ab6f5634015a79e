"""Single values of published data sets: ids, times, texts and prices."""

import html
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from training import JobError

# A `<` that no letter follows is text ("< 3 kg"); a tag that is cut off counts by its `=`.
TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)|</?[a-z][^<>]*>|<[a-z]+\s[^<>]*=[^<>]*\Z",
    re.IGNORECASE | re.DOTALL,
)
SURROGATE = re.compile("[\ud800-\udfff]")
PRICE = re.compile(r"\$?\s*([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(\.[0-9]+)?")


def field_of(fields: Mapping[str, Any], name: str, where: str) -> Any:  # noqa: ANN401 - JSON
    """The value of a field that must be there.

    Raises:
        JobError: it is not.
    """
    if name not in fields:
        raise JobError(f"{where}: there is no field {name}; found {', '.join(map(str, fields))}")
    return fields[name]


def id_of(fields: Mapping[str, Any], name: str, where: str) -> str:
    """The id in a field, as text.

    Raises:
        JobError: there is no such field, it is neither text nor a whole number, it is empty, or
            it holds a line break or half a surrogate pair.
    """
    value = field_of(fields, name, where)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text:
        raise JobError(f"{where}: {name}: {value!r} is no id")
    if "\n" in text or "\r" in text or SURROGATE.search(text):
        raise JobError(f"{where}: {name}: {text!r} holds a line break or half a surrogate pair")
    return text


def time_of(text: str, where: str, column: str = "timestamp") -> float:
    """A finite number of seconds below 1e15, or a JobError that names the place."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not math.isfinite(seconds):
        raise JobError(f"{where}: {column}: {text!r} is not a finite number of seconds")
    if abs(seconds) >= 1e15:
        raise JobError(f"{where}: {column}: {text!r} is too large for a number of seconds")
    return seconds


def date_of(fields: Mapping[str, Any], name: str, where: str) -> float:
    """Seconds since 1970 of `YYYY-MM-DD` or `YYYY-MM-DD HH:MM:SS` in a field, taken as UTC.

    Raises:
        JobError: there is no such field, or it is no such date.
    """
    text = field_of(fields, name, where)
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise JobError(
            f"{where}: {name}: {text!r} is no date like 2019-11-05 or 2019-11-05 09:05:58"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def clean_text(value: object) -> str:
    """Text without tags, entities (escaped twice, too) and runs of blanks; '' if it is no text."""
    if not isinstance(value, str):
        return ""
    text = html.unescape(html.unescape(value))
    return " ".join(SURROGATE.sub("", TAG.sub(" ", text)).split())


def clean_texts(value: object) -> list[str]:
    """The parts of a list, or one text, each cleaned; parts that say nothing are left out."""
    parts = value if isinstance(value, list) else [value]
    return [text for text in map(clean_text, parts) if text]


def price_of(value: object) -> float | None:
    """A price as a number: of 12.99, '12.99' and '$1,299.00'; None of anything else."""
    if isinstance(value, str) and (found := PRICE.fullmatch(value.strip())):
        value = float(found[1].replace(",", "") + (found[2] or ""))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
