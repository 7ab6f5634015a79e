"""Recipe `prepare`: a source's items and interactions to a catalogue, histories and negatives.

Writes items.jsonl (in catalogue order), interactions.safetensors, users.txt and
negatives.safetensors (the fixed negatives of the sampled protocol).
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.item import Catalogue, InvalidItem, write_items
from training.fetch import data_folder
from training.interactions import Interactions, Split, leave_one_out
from training.recipe import Data, JobError, Run, Step, digest
from training.sources import Events, Source, movielens, tabular

log = logging.getLogger(__name__)


def prepare(run: Run) -> Step:
    """Read the source, check it, and write what the other recipes read.

    Raises:
        JobError: the source is wrong; says where.
    """
    recipe = run.recipe
    folder = data_folder(recipe.data.path, run.cache)
    changed = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir())
    facts = [recipe.data.model_dump(), recipe.evaluate.negatives, recipe.seed, changed]
    step = run.step("prepare", None, facts)
    if step.done:
        return step

    source = _read(recipe.data, folder)
    try:
        catalogue = Catalogue(source.items)
    except InvalidItem as error:
        raise JobError(f"{recipe.data.path}: {error}") from None
    interactions, unknown = histories(source.events, catalogue, recipe.data.unknown_items)
    try:
        split = leave_one_out(interactions, len(catalogue))
    except ValueError as error:
        raise JobError(f"{recipe.data.path}: {error}") from None

    write_items(step.folder / "items.jsonl", catalogue)
    interactions.save(step.folder)
    save_file(
        {"negatives": sample_negatives(split, recipe.evaluate.negatives, recipe.seed)},
        step.folder / "negatives.safetensors",
    )
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


def _read(data: Data, folder: Path) -> Source:
    if data.source == "movielens":
        return movielens.load(folder)
    return tabular.load(folder, data.items, data.interactions)


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


def sample_negatives(split: Split, count: int, seed: int) -> NDArray[np.int32]:
    """(2, U, count) int32: for validation and for test, items that the user never interacted with.

    Uniform, without repetition, drawn once and stored, so that every model meets the same ones.

    Raises:
        JobError: the catalogue is too small for so many negatives.
    """
    items = len(split.counts) - 1
    random = np.random.default_rng([seed, 1])
    drawn = np.empty((2, len(split.train), count), np.int32)
    for user, history in enumerate(split.train):
        seen = np.concatenate([history, [split.validation[user], split.test[user]]])
        free = np.setdiff1d(np.arange(1, items + 1), seen)
        if len(free) < count:
            raise JobError(
                f"evaluate.negatives = {count}, but a user has only {len(free)} unseen items"
            )
        for side in range(2):
            drawn[side, user] = random.choice(free, count, replace=False)
    return drawn
