"""The Yelp Open Dataset: businesses and their reviews. Each review is an interaction.

Stars and review counts follow the interactions and are not read, nor are addresses and hours.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from training.sources.reading import read_objects
from training.sources.two_files import Event, Row, TwoFiles
from training.sources.values import clean_text, clean_texts, date_of, id_of

REVIEWS = "yelp_academic_dataset_review.json"
BUSINESSES = "yelp_academic_dataset_business.json"
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_")


def _reviews(path: Path) -> Iterator[Event]:
    for where, fields in read_objects(path):
        user, item = id_of(fields, "user_id", where), id_of(fields, "business_id", where)
        yield user, item, date_of(fields, "date", where), where


def _businesses(path: Path) -> Iterator[Row]:
    for where, fields in read_objects(path):
        categories = fields.get("categories")
        attributes: dict[str, object] = {
            "name": clean_text(fields.get("name")),
            "city": clean_text(fields.get("city")),
            "state": clean_text(fields.get("state")),
            "categories": clean_texts(
                categories.split(",") if isinstance(categories, str) else categories
            ),
            "features": _features(fields.get("attributes")),
        }
        yield id_of(fields, "business_id", where), attributes, where


def _features(attributes: object) -> list[str]:
    """What is plainly true of a business: `Outdoor Seating`, `Ambience: casual`."""
    features: list[str] = []
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        told = _told(value)
        if told is True:
            features.append(_words(name))
        elif isinstance(told, dict):
            features += [
                f"{_words(name)}: {_words(part)}" for part, holds in told.items() if holds is True
            ]
    return features


def _told(value: object) -> object:
    """The value behind a text such as "True" or "{'garage': False}"; None if there is none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _words(name: object) -> str:
    return clean_text(HUMP.sub(" ", str(name)))


FORMAT = TwoFiles("Yelp", REVIEWS, BUSINESSES, _reviews, _businesses)
