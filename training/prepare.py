"""Recipe `prepare`: a source's items and interactions to a catalogue and histories.

Writes items.jsonl (in catalogue order), interactions.safetensors and users.txt; cold.safetensors
where items are held out.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.item import Catalogue, InvalidItem, read_items, write_items
from models.llm import sha256_of
from training import JobError
from training.cold import ColdItems
from training.fetch import DATA, data_folder, require_data
from training.interactions import Interactions, Split, by_time, leave_one_out
from training.recipe import Run, Step, digest
from training.sources import Events, tabular
from training.sources.formats import FORMATS
from training.sources.k_core import k_core

log = logging.getLogger(__name__)

SPLITS = {"leave-one-out": leave_one_out, "time": by_time}


def prepare(run: Run) -> Step:
    """Read the source, check it, and write what the other recipes read.

    Raises:
        JobError: the source is wrong; says where.
    """
    data = run.config.data
    folder = data_folder(data.path, run.cache)
    form = FORMATS.get(data.source)  # None: tabular, whose files the configuration names
    names = form.files(folder) if form else (data.items, data.interactions)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise JobError(f"there is no file {folder / missing[0]}")
    step = run.step("prepare", files={name: sha256_of(folder / name) for name in names})
    if step.done:
        return step

    read = _read(run, folder)
    catalogue, interactions, held, split = read.catalogue, read.interactions, read.held, read.split
    write_items(step.folder / "items.jsonl", catalogue)
    interactions.save(step.folder)
    if held:
        held.save(step.folder)
    short = len(interactions) - len(split.train)
    if short:
        log.warning("%d users have too few interactions to be split and are left out", short)
    step.finish(
        items=len(catalogue),
        users=len(interactions),
        users_left_out=short,
        interactions=len(interactions.rows),
        **read.left_out,
        items_without_training_interactions=int((split.counts[1:] == 0).sum()),
        data=digest([[item.model_dump() for item in catalogue], interactions.rows.tolist()]),
    )
    return step


class _Read(NamedTuple):
    """What a source holds, checked; `left_out`: how much of what is not in it."""

    catalogue: Catalogue
    interactions: Interactions
    held: ColdItems | None
    split: Split
    left_out: dict[str, int]


def _read(run: Run, folder: Path) -> _Read:
    """Read a source's files.

    Raises:
        JobError: they are wrong; says where.
    """
    data = run.config.data
    form = FORMATS.get(data.source)
    if form:
        source = form.load(folder)
    else:
        source = tabular.load(
            folder, data.items, data.interactions, data.columns, data.delimiter, data.encoding
        )
    if not source.items or not source.events.users:
        names = form.files(folder) if form else (data.items, data.interactions)
        what = "item with attributes" if source.events.users else "interaction"
        raise JobError(f"{data.path}: {' and '.join(names)} hold no {what}")
    try:
        catalogue = Catalogue(source.items)
    except InvalidItem as error:
        raise JobError(f"{data.path}: {error}") from None
    events, unknown = known(source.events, catalogue, data.unknown_items)
    left_out = {
        "interactions_with_unknown_items": unknown,
        "interactions_repeated": source.repeats,
    }
    if source.blank:
        log.warning("%d items say nothing but their ids and are left out", source.blank)
        left_out["items_without_attributes"] = source.blank
    if data.core:
        before = len(events.users), len(catalogue)
        events, catalogue = core(events, catalogue, data.core)
        left_out["interactions_outside_core"] = before[0] - len(events.users)
        left_out["items_outside_core"] = before[1] - len(catalogue)
    interactions = histories(events, catalogue)
    held = ColdItems.draw(interactions, data.cold, run.config.seed) if data.cold else None
    try:
        split = _split(run, interactions, catalogue, held)
    except ValueError as error:
        raise JobError(f"{data.path}: {error}{_few(run, interactions)}") from None
    if max(len(history) for history in split.train) < 2:
        raise JobError(
            f"{data.path}: no user has 4 interactions, so there is nothing to learn from"
            f"{_few(run, interactions)}"
        )
    return _Read(catalogue, interactions, held, split, left_out)


def _few(run: Run, interactions: Interactions) -> str:
    """What to do about too few interactions, where nearly every user has but one."""
    if run.config.data.source != "tabular" or len(interactions.rows) >= 2 * len(interactions):
        return "; gather more interactions of the same users"
    return (
        f"; {len(interactions.rows)} interactions of {len(interactions)} users: if the column of "
        "users is not the right one, name it in data.columns.user"
    )


def preview(run: Run) -> tuple[Catalogue, Split] | None:
    """What prepare would make, without writing anything; None where the data is not on this disk.

    Raises:
        JobError: the source is wrong, says where; or there is none of that name.
    """
    path = run.config.data.path
    folder = run.cache / "data" / path if path in DATA else Path(path).expanduser()
    if not folder.is_dir():
        require_data(path)
        return None
    read = _read(run, folder)
    return read.catalogue, read.split


def read_prepared(run: Run) -> tuple[Catalogue, Split]:
    """The catalogue and the split of a finished prepare step, without cold items' interactions."""
    step = run.finished("prepare")
    catalogue = Catalogue(read_items(step.folder / "items.jsonl"))
    held = ColdItems.load(step.folder)
    return catalogue, _split(run, Interactions.load(step.folder), catalogue, held)


def split_digest(split: Split) -> str:
    """Hash of what trains and what validates, for what is made of no more than that."""
    return digest(
        [
            [history.tolist() for history in split.train],
            split.validating.tolist(),
            split.validation.tolist(),
        ]
    )


def read_cold(run: Run) -> tuple[ColdItems, Interactions] | None:
    """Who is held out of a finished prepare step, and all interactions; None where nobody is."""
    step = run.finished("prepare")
    held = ColdItems.load(step.folder)
    return (held, Interactions.load(step.folder)) if held else None


def _split(
    run: Run, interactions: Interactions, catalogue: Catalogue, held: ColdItems | None
) -> Split:
    if held:
        interactions = interactions.without(np.concatenate([held.validation, held.test]))
    data, seed = run.config.data, run.config.seed
    split = SPLITS[data.split]
    return split(interactions, len(catalogue), data.validation_users, seed)


def known(events: Events, catalogue: Catalogue, unknown_items: str) -> tuple[Events, int]:
    """The interactions with items of the catalogue, and how many others were dropped.

    Raises:
        JobError: all items are unknown, or one is and `unknown_items` is "fail".
    """
    found = np.array([item in catalogue.rows for item in events.items], bool)
    unknown = np.flatnonzero(~found)
    if len(unknown):
        if len(unknown) == len(found):
            raise JobError(
                f"none of {len(found)} interactions is with a known item: {events.items[0]!r} "
                f"({events.where[0]}) is none of {len(catalogue)} items, such as "
                f"{catalogue[0].item_id!r}; both files must tell the same ids"
            )
        ids = sorted({events.items[place] for place in unknown})
        listed = ", ".join(repr(item_id) for item_id in ids[:10]) + (" …" if len(ids) > 10 else "")
        told = (
            f"{len(unknown)} interactions refer to {len(ids)} unknown items ({listed}), "
            f"the first at {events.where[unknown[0]]}"
        )
        if unknown_items == "fail":
            raise JobError(f'{told}; data.unknown_items = "drop" leaves them out')
        log.warning("%s; they are left out", told)
        events = events.at(np.flatnonzero(found))
    return events, len(unknown)


def core(events: Events, catalogue: Catalogue, least: int) -> tuple[Events, Catalogue]:
    """The k-core of the interactions, and the items that are left in it.

    Raises:
        JobError: nothing is left.
    """
    left = k_core(events, least, least)
    if not left.users:
        raise JobError(
            f"data.core: of {len(events.users)} interactions none is left when every user and "
            f"item must have {least}; lower it"
        )
    ids = set(left.items)
    log.info(
        "the %d-core has %d of %d interactions and %d of %d items",
        least, len(left.users), len(events.users), len(ids), len(catalogue),
    )  # fmt: skip
    return left, Catalogue(item for item in catalogue if item.item_id in ids)


def histories(events: Events, catalogue: Catalogue) -> Interactions:
    """Interactions by user, oldest first (equal times keep the source's order).

    All items must be in the catalogue.
    """
    rows = np.array([catalogue.rows[item] for item in events.items], np.int32)
    times = np.array(events.times if events.times else [np.nan] * len(rows), np.float64)
    order = np.argsort(times, kind="stable") if events.times else np.arange(len(rows))

    by_user: dict[str, list[int]] = {}
    for place in order.tolist():
        by_user.setdefault(events.users[place], []).append(place)
    places = [place for user in by_user.values() for place in user]
    starts = np.concatenate([[0], np.cumsum([len(user) for user in by_user.values()])])
    return Interactions(rows[places], starts.astype(np.int64), times[places], list(by_user))
