"""Writing small hand-made files of a format, and reading what came out of them."""

import gzip
import json
from calendar import timegm
from collections.abc import Mapping
from pathlib import Path

from training.sources import Source


def lines(path: Path, *texts: str) -> Path:
    """Write lines, gzip if the name says so; gives the folder."""
    raw = "".join(f"{text}\n" for text in texts).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path.parent


def objects(path: Path, *fields: Mapping[str, object]) -> Path:
    return lines(path, *(json.dumps(part) for part in fields))


def seconds(year: int, month: int, day: int, *time: int) -> float:
    return timegm((year, month, day, *time, 0, 0, 0)[:6])


def attributes(source: Source) -> dict[str, dict[str, object]]:
    return {item.item_id: dict(item.attributes) for item in source.items}


def interactions(source: Source) -> list[tuple[str, str, float]]:
    events = source.events
    assert events.times is not None
    return list(zip(events.users, events.items, events.times, strict=True))


def review(user: str, asin: str, time: int) -> dict[str, object]:
    return {"reviewerID": user, "asin": asin, "overall": 5.0, "unixReviewTime": time}
