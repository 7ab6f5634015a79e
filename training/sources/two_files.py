"""The shape of MIND, Steam and Yelp: a file of what users did, and a file of items."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training import JobError
from training.sources import Source, events_of, first_of_each, items_of

Event = tuple[str, str, float, str]  # user, item, seconds, file:line
Row = tuple[str, dict[str, object], str]  # item, attributes, file:line


@dataclass(frozen=True)
class TwoFiles:
    """One such format.

    Attributes:
        name: of the data set.
        events, items: names of the two files; each may be gzip, with .gz behind it.
        read_events, read_items: what they say, line by line.
    """

    name: str
    events: str
    items: str
    read_events: Callable[[Path], Iterator[Event]]
    read_items: Callable[[Path], Iterator[Row]]

    def files(self, folder: Path) -> tuple[str, str]:
        """The two files that load reads: of events, and of items.

        Raises:
            JobError: one is missing.
        """
        return _find(folder, self.events, self.name), _find(folder, self.items, self.name)

    def load(self, folder: Path) -> Source:
        """All items, and of each user and item the first event.

        Raises:
            JobError: a file is missing, or a line is wrong.
        """
        events, items = self.files(folder)
        left, repeats = first_of_each(events_of(self.read_events(folder / events)))
        return Source(items_of(self.read_items(folder / items)), left, repeats)


def _find(folder: Path, name: str, kind: str) -> str:
    """The name, or the name with .gz, whichever the folder holds.

    Raises:
        JobError: it holds neither; `kind` says of which data set they are.
    """
    for candidate in (name, f"{name}.gz"):
        if (folder / candidate).is_file():
            return candidate
    raise JobError(f"{folder} holds no {kind} data: neither {name} nor {name}.gz")
