"""The published data formats, each by its name in `data.source`."""

from pathlib import Path
from typing import Protocol

from training.sources import Source, amazon, mind, movielens, recbole, steam, yelp


class Format(Protocol):
    """What reads one format out of a folder: a module, or a TwoFiles."""

    def files(self, folder: Path) -> tuple[str, ...]:
        """Names of the files that load reads, or a JobError that names what was looked for."""
        ...

    def load(self, folder: Path) -> Source:
        """Items and interactions, or a JobError that names file and line."""
        ...


FORMATS: dict[str, Format] = {
    "amazon": amazon,
    "mind": mind.FORMAT,
    "movielens": movielens,
    "recbole": recbole,
    "steam": steam.FORMAT,
    "yelp": yelp.FORMAT,
}
