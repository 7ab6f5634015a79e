"""Amazon Reviews of 2014, 2018 and 2023: one category, its reviews and its metadata.

Each review is an interaction, whatever its rating. The three versions name their fields
differently, so the fields of a line tell which one it is. What shows or follows sales and ratings
(ranks, counts, related products) and pictures are not read.
"""

import re
from collections.abc import Container, Iterator
from pathlib import Path

from training import JobError
from training.sources import Source, events_of, first_of_each, items_of
from training.sources.reading import read_objects
from training.sources.values import clean_text, clean_texts, field_of, id_of, price_of, time_of

ENDINGS = (".json.gz", ".json", ".jsonl.gz", ".jsonl")
# In 2018, some pages were read wrongly: brands open with "by" and a line break, authors are the
# name of a link, and titles hold the script of a page.
BY = re.compile(r"\A\s*by\s*\n")
AUTHOR_PAGE = re.compile(r"Visit Amazon's (.+) Page")
SCRIPT = "getTime("


def files(folder: Path) -> tuple[str, str]:
    """The two files that load reads: of reviews (of the 5-core, if it is there), and of metadata.

    Raises:
        JobError: one is missing, or there is metadata of several categories.
    """
    found = {
        path.name.removeprefix("meta_").removesuffix(ending): path.name
        for ending in reversed(ENDINGS)
        for path in folder.glob(f"meta_?*{ending}")
    }
    known = ", ".join(ENDINGS)
    if not found:
        raise JobError(f"{folder} holds no Amazon metadata: no meta_CATEGORY with one of {known}")
    if len(found) > 1:
        raise JobError(
            f"{folder} holds Amazon metadata of several categories ({', '.join(sorted(found))}); "
            "give each a folder of its own"
        )
    category, metadata = found.popitem()
    stems = (f"reviews_{category}_5", f"{category}_5", f"reviews_{category}", category)
    for name in (stem + ending for stem in stems for ending in ENDINGS):
        if (folder / name).is_file():
            return name, metadata
    raise JobError(
        f"{folder} holds {metadata} but no reviews: none of {', '.join(stems)} with one of {known}"
    )


def load(folder: Path) -> Source:
    """The items that somebody reviewed, and of each user and item the first review.

    An item that the metadata says nothing of is no Item, and its interactions stay unknown.

    Raises:
        JobError: a file is missing, or a line is wrong.
    """
    reviews, metadata = files(folder)
    events, repeats = first_of_each(events_of(_reviews(folder / reviews)))
    return Source(items_of(_items(folder / metadata, set(events.items))), events, repeats)


def _reviews(path: Path) -> Iterator[tuple[str, str, float, str]]:
    for where, fields in read_objects(path):
        if "parent_asin" in fields:
            user, item = id_of(fields, "user_id", where), id_of(fields, "parent_asin", where)
            column, units_per_s = "timestamp", 1000
        else:
            user, item = id_of(fields, "reviewerID", where), id_of(fields, "asin", where)
            column, units_per_s = "unixReviewTime", 1
        time = time_of(str(field_of(fields, column, where)), where, column)
        yield user, item, time / units_per_s, where


def _items(path: Path, reviewed: Container[str]) -> Iterator[tuple[str, dict[str, object], str]]:
    for where, fields in read_objects(path):
        item_id = id_of(fields, "parent_asin" if "parent_asin" in fields else "asin", where)
        if item_id not in reviewed:
            continue
        attributes: dict[str, object] = {
            "title": _title(fields.get("title")),
            "brand": _brand(fields.get("brand") or fields.get("store")),
            "categories": _paths(fields.get("categories") or fields.get("category")),
            "description": " ".join(clean_texts(fields.get("description"))),
            "features": clean_texts(fields.get("features") or fields.get("feature")),
            "price": price_of(fields.get("price")),
        }
        yield item_id, attributes, where


def _title(value: object) -> str:
    return "" if isinstance(value, str) and SCRIPT in value else clean_text(value)


def _brand(value: object) -> str:
    brand = clean_text(BY.sub("", value) if isinstance(value, str) else value)
    page = AUTHOR_PAGE.fullmatch(brand)
    return page[1] if page else brand


def _paths(value: object) -> list[list[str]]:
    """Category paths: 2014 has a list of them, the others have one."""
    if not isinstance(value, list):
        return []
    paths = [part for part in value if isinstance(part, list)] or [value]
    return [path for path in map(_path, paths) if path]


def _path(parts: list[object]) -> list[str]:
    """A path up to the first piece of markup: in 2018, features of the product stand behind it."""
    path: list[str] = []
    for part in parts:
        if isinstance(part, str) and "</span>" in part:
            break
        path += clean_texts(part)
    return path
