"""MIND, news that people clicked: behaviors.tsv and news.tsv of its train or dev set.

A user's interactions are the clicks before their earliest impression (`history`), in order, and
then the clicked news of all their impressions. The history has no times of its own: its clicks
are set one second apart, the last of them one second before that impression.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from training import JobError
from training.sources.reading import read_rows
from training.sources.two_files import Event, Row, TwoFiles
from training.sources.values import clean_text, id_of

BEHAVIORS = "behaviors.tsv"
NEWS = "news.tsv"
BEHAVIORS_COLUMNS = ("impression_id", "user_id", "time", "history", "impressions")
NEWS_COLUMNS = (
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)


def _clicks(path: Path) -> Iterator[Event]:
    earliest: dict[str, tuple[float, str, str]] = {}
    clicked: list[Event] = []
    for where, row in read_rows(path, "\t", columns=BEHAVIORS_COLUMNS):
        user, time = id_of(row, "user_id", where), _time(row["time"], where)
        if user not in earliest or time < earliest[user][0]:
            earliest[user] = (time, row["history"], where)
        clicked += [(user, news, time, where) for news in _chosen(row["impressions"], where)]
    for user, (time, history, where) in earliest.items():
        news_ids = history.split()
        for place, news in enumerate(news_ids):
            yield user, news, time - (len(news_ids) - place), where
    yield from clicked


def _time(text: str, where: str) -> float:
    try:
        return datetime.strptime(text, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise JobError(f"{where}: time: {text!r} is no time like 11/11/2019 9:05:58 AM") from None


def _chosen(impressions: str, where: str) -> Iterator[str]:
    """The news marked -1 in `N55689-1 N35729-0`."""
    for shown in impressions.split():
        news, _, mark = shown.rpartition("-")
        if not news or mark not in {"0", "1"}:
            raise JobError(
                f"{where}: impressions: {shown!r} ends in neither -0 nor -1; the test set tells no "
                "clicks, take the train or the dev set"
            )
        if mark == "1":
            yield news


def _news(path: Path) -> Iterator[Row]:
    for where, row in read_rows(path, "\t", columns=NEWS_COLUMNS):
        names = ("title", "abstract", "category", "subcategory")
        attributes: dict[str, object] = {name: clean_text(row[name]) for name in names}
        yield id_of(row, "news_id", where), attributes, where


FORMAT = TwoFiles("MIND", BEHAVIORS, NEWS, _clicks, _news)
