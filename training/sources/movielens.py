"""MovieLens in the forms it comes in: 100K, 1M, latest-small, and 100K as RecBole ships it.

All ratings count as interactions, whatever their value. GroupLens' licence allows research use
and no redistribution; nothing of it is kept in this repository.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from models.item import Item
from training import JobError
from training.sources import Events, Source, item_of
from training.sources.reading import read_rows
from training.sources.values import field_of, time_of

# u.item has a 0/1 column per genre, in this order, after five other columns.
GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
YEAR = re.compile(r"\s*\((\d{4})\)\s*$")


FORMS = (
    ("ml-100k.inter", "ml-100k.item"),
    ("u.data", "u.item"),
    ("ratings.dat", "movies.dat"),
    ("ratings.csv", "movies.csv"),
)


def files(folder: Path) -> tuple[str, str]:
    """The two files that load reads: of ratings, and of films.

    Raises:
        JobError: none of the known ones is there.
    """
    for ratings, films in FORMS:
        if (folder / ratings).exists():
            return ratings, films
    known = ", ".join(ratings for ratings, _ in FORMS)
    raise JobError(f"{folder} holds no MovieLens data: none of {known}")


def load(folder: Path) -> Source:
    """Items and interactions of a MovieLens folder, by the files that it holds.

    Titles lose a year in brackets at their end; it becomes `release_year`.

    Raises:
        JobError: none of the known files is there, or a line is wrong.
    """
    form, _ = files(folder)
    columns = ("user", "item", "rating", "time")
    if form == "ml-100k.inter":
        ratings = read_rows(folder / form, "\t")
        names = ("user_id:token", "item_id:token", "timestamp:float")
        return Source(list(_recbole(folder)), _events(ratings, *names))
    if form == "u.data":
        ratings = read_rows(folder / form, "\t", columns=columns)
        return Source(list(_hundred_k(folder)), _events(ratings, "user", "item", "time"))
    if form == "ratings.dat":
        ratings = read_rows(folder / form, "::", columns=columns)
        return Source(list(_one_m(folder)), _events(ratings, "user", "item", "time"))
    ratings = read_rows(folder / form, ",")
    return Source(list(_latest(folder)), _events(ratings, "userId", "movieId", "timestamp"))


def _events(rows: Iterator[tuple[str, dict[str, str]]], user: str, item: str, time: str) -> Events:
    events = Events([], [], [], [])
    for where, row in rows:
        events.users.append(field_of(row, user, where))
        events.items.append(field_of(row, item, where))
        assert events.times is not None  # noqa: S101 - made two lines above
        events.times.append(time_of(field_of(row, time, where), where, time))
        events.where.append(where)
    return events


def _film(where: str, item_id: str, title: str, genres: list[str], year: str = "") -> Item:
    found = YEAR.search(title)
    attributes: dict[str, object] = {"title": YEAR.sub("", title)}
    if year or found:
        attributes["release_year"] = year or (found[1] if found else "")
    if genres:
        attributes["genres"] = genres
    return item_of(item_id, attributes, where)


def _recbole(folder: Path) -> Iterator[Item]:
    for where, row in read_rows(folder / "ml-100k.item", "\t"):
        names = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
        item_id, title, year, genres = (field_of(row, name, where) for name in names)
        yield _film(where, item_id, title, genres.split(), year)


def _hundred_k(folder: Path) -> Iterator[Item]:
    columns = ("item", "title", "released", "video", "url", *GENRES_100K)
    for where, row in read_rows(folder / "u.item", "|", "latin-1", columns):
        genres = [genre for genre in GENRES_100K if row[genre] == "1" and genre != "unknown"]
        yield _film(where, row["item"], row["title"], genres)


def _one_m(folder: Path) -> Iterator[Item]:
    columns = ("item", "title", "genres")
    for where, row in read_rows(folder / "movies.dat", "::", "latin-1", columns):
        yield _film(where, row["item"], row["title"], row["genres"].split("|"))


def _latest(folder: Path) -> Iterator[Item]:
    for where, row in read_rows(folder / "movies.csv", ","):
        names = ("movieId", "title", "genres")
        item_id, title, genres = (field_of(row, name, where) for name in names)
        told = [genre for genre in genres.split("|") if genre != "(no genres listed)"]
        yield _film(where, item_id, title, told)
