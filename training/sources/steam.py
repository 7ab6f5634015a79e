"""Steam reviews and games as McAuley's group published them. Each review is an interaction.

Lines are Python literals. Tags, which players give, and sentiment and scores, which follow the
reviews, are not read.
"""

from collections.abc import Iterator
from pathlib import Path

from training.sources.reading import read_objects
from training.sources.two_files import Event, Row, TwoFiles
from training.sources.values import clean_text, clean_texts, date_of, id_of, price_of

REVIEWS = "steam_reviews.json"
GAMES = "steam_games.json"


def _reviews(path: Path) -> Iterator[Event]:
    for where, fields in read_objects(path):
        user, item = id_of(fields, "username", where), id_of(fields, "product_id", where)
        yield user, item, date_of(fields, "date", where), where


def _games(path: Path) -> Iterator[Row]:
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


FORMAT = TwoFiles("Steam", REVIEWS, GAMES, _reviews, _games)
