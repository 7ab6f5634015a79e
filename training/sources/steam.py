"""Steam reviews and games as McAuley's group published them. Each review is an interaction.

Lines are Python literals. Tags, which players give, and sentiment and scores, which follow the
reviews, are not read.
"""

from collections.abc import Iterator
from pathlib import Path

from training.sources import Source, events_of, first_of_each, items_of
from training.sources.reading import find_file, read_objects
from training.sources.values import clean_text, clean_texts, date_of, id_of, price_of

REVIEWS = "steam_reviews.json"
GAMES = "steam_games.json"


def files(folder: Path) -> tuple[str, str]:
    """The two files that load reads: of reviews, and of games.

    Raises:
        JobError: one is missing.
    """
    return find_file(folder, REVIEWS, "Steam"), find_file(folder, GAMES, "Steam")


def load(folder: Path) -> Source:
    """All games that have an id, and of each user and game the first review.

    Raises:
        JobError: a file is missing, or a line is wrong.
    """
    reviews, games = files(folder)
    events, repeats = first_of_each(events_of(_reviews(folder / reviews)))
    return Source(items_of(_games(folder / games)), events, repeats)


def _reviews(path: Path) -> Iterator[tuple[str, str, float, str]]:
    for where, fields in read_objects(path):
        user, item = id_of(fields, "username", where), id_of(fields, "product_id", where)
        yield user, item, date_of(fields, "date", where), where


def _games(path: Path) -> Iterator[tuple[str, dict[str, object], str]]:
    for where, fields in read_objects(path):
        if "id" not in fields:  # so for a few of the published games; no review can mean them
            continue
        attributes: dict[str, object] = {
            "title": clean_text(fields.get("title")) or clean_text(fields.get("app_name")),
            "developer": clean_text(fields.get("developer")),
            "publisher": clean_text(fields.get("publisher")),
            "genres": clean_texts(fields.get("genres")),
            "specs": clean_texts(fields.get("specs")),
            "price": price_of(fields.get("price")),
            "release_date": clean_text(fields.get("release_date")),
        }
        yield id_of(fields, "id", where), attributes, where
