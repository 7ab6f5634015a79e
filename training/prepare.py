"""Recipe `prepare`: a source's items and interactions to a catalogue, histories and negatives.

Writes items.jsonl (in catalogue order), interactions.safetensors and users.txt.
"""

import logging

import numpy as np

from models.item import Catalogue, InvalidItem, read_items, write_items
from models.llm import sha256_of
from training.fetch import data_folder
from training.interactions import Interactions, Split, leave_one_out
from training.recipe import JobError, Run, Step, digest
from training.sources import Events, movielens, tabular

log = logging.getLogger(__name__)


def prepare(run: Run) -> Step:
    """Read the source, check it, and write what the other recipes read.

    Raises:
        JobError: the source is wrong; says where.
    """
    data = run.config.data
    folder = data_folder(data.path, run.cache)
    names = (
        movielens.files(folder) if data.source == "movielens" else (data.items, data.interactions)
    )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise JobError(f"there is no file {folder / missing[0]}")
    step = run.step("prepare", files={name: sha256_of(folder / name) for name in names})
    if step.done:
        return step

    if data.source == "movielens":
        source = movielens.load(folder)
    else:
        source = tabular.load(folder, data.items, data.interactions)
    try:
        catalogue = Catalogue(source.items)
    except InvalidItem as error:
        raise JobError(f"{data.path}: {error}") from None
    interactions, unknown = histories(source.events, catalogue, data.unknown_items)
    try:
        split = leave_one_out(interactions, len(catalogue))
    except ValueError as error:
        raise JobError(f"{data.path}: {error}") from None
    if max(len(history) for history in split.train) < 2:
        raise JobError(
            f"{data.path}: no user has 4 interactions, so there is nothing to learn from"
        )

    write_items(step.folder / "items.jsonl", catalogue)
    interactions.save(step.folder)
    short = len(interactions) - len(split.train)
    if short:
        log.warning("%d users have fewer than 3 interactions and are left out", short)
    step.finish(
        items=len(catalogue),
        users=len(interactions),
        users_left_out=short,
        interactions=len(interactions.rows),
        interactions_with_unknown_items=unknown,
        items_without_training_interactions=int((split.counts[1:] == 0).sum()),
        data=digest([[item.model_dump() for item in catalogue], interactions.rows.tolist()]),
    )
    return step


def read_prepared(run: Run) -> tuple[Catalogue, Split]:
    """The catalogue and the split of a finished prepare step."""
    step = run.finished("prepare")
    catalogue = Catalogue(read_items(step.folder / "items.jsonl"))
    return catalogue, leave_one_out(Interactions.load(step.folder), len(catalogue))


def histories(events: Events, catalogue: Catalogue, unknown_items: str) -> tuple[Interactions, int]:
    """Interactions by user, oldest first (equal times keep the source's order).

    Returns:
        The interactions, and how many were dropped because their item is unknown.

    Raises:
        JobError: an item is unknown and `unknown_items` is "fail".
    """
    rows = np.array([catalogue.rows.get(item, 0) for item in events.items], np.int32)
    unknown = np.flatnonzero(rows == 0)
    if len(unknown):
        ids = sorted({events.items[place] for place in unknown})
        listed = ", ".join(repr(item_id) for item_id in ids[:10]) + (" …" if len(ids) > 10 else "")
        told = (
            f"{len(unknown)} interactions refer to {len(ids)} unknown items ({listed}), "
            f"the first at {events.where[unknown[0]]}"
        )
        if unknown_items == "fail":
            raise JobError(f'{told}; data.unknown_items = "drop" leaves them out')
        log.warning("%s; they are left out", told)
    times = np.array(events.times if events.times else [np.nan] * len(rows), np.float64)
    order = np.argsort(times, kind="stable") if events.times else np.arange(len(rows))

    by_user: dict[str, list[int]] = {}
    for place in order:
        if rows[place]:
            by_user.setdefault(events.users[place], []).append(int(place))
    places = [place for user in by_user.values() for place in user]
    starts = np.concatenate([[0], np.cumsum([len(user) for user in by_user.values()])])
    return (
        Interactions(rows[places], starts.astype(np.int64), times[places], list(by_user)),
        len(unknown),
    )
