"""A history to the items that are most likely next."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from service.batcher import Batcher
from service.errors import UnknownItem
from service.index import Floats, Snapshot
from service.metrics import Metrics
from service.store import CatalogueStore

if TYPE_CHECKING:
    from models.bundle import Bundle

# Up to this many items every one is scored, which costs a few milliseconds and is exact by
# construction. Beyond, each view gives candidates, and those are scored exactly.
SCORE_ALL = 20_000
CANDIDATES = 1000  # of each view, at least
CANDIDATES_PER_K = 20


@dataclass(frozen=True)
class Recommended:
    """Ranked items, best first, and the ids of the history that the catalogue lacks."""

    items: list[tuple[str, float]]
    unknown: list[str]


class Recommender:
    """Ranks the catalogue as models.scorer does, without looking at all of a large one.

    Args:
        score_all: size of the catalogue up to which every item is scored.
    """

    def __init__(
        self,
        bundle: "Bundle",
        store: CatalogueStore,
        batcher: Batcher,
        searches: ThreadPoolExecutor,
        metrics: Metrics,
        score_all: int = SCORE_ALL,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._batcher = batcher
        self._searches = searches
        self._metrics = metrics
        self._score_all = score_all

    async def recommend(
        self, history: Sequence[str], k: int, exclude: Sequence[str], exclude_history: bool
    ) -> Recommended:
        """The k best items after a history; fewer where fewer are allowed.

        An item of the history that lacks a view is skipped in that view; one that the catalogue
        lacks is skipped in all of them. Ties go by id.

        Raises:
            UnknownItem: the catalogue has no item of the history.
        """
        snapshot = self._store.snapshot
        found = [snapshot.views(item_id) for item_id in history]
        unknown = [each for each, views in zip(history, found, strict=True) if views is None]
        known = [views for views in found if views is not None]
        if not known:
            raise UnknownItem(f"the catalogue has none of the {len(history)} items of this history")
        read = {
            name: np.stack([views[name] for views in known if name in views])
            if any(name in views for views in known)
            else np.empty((0, view.width), np.float32)
            for name, view in self._bundle.views.items()
        }
        states = await self._batcher.call(lambda: self._bundle.states([read]))
        queries = self._bundle.scorer.queries(states)
        # Who is not in the catalogue any more still says what is likely to follow.
        following = self._bundle.following(history)
        excluded = [*exclude, *(history if exclude_history else ())]
        items = await asyncio.get_running_loop().run_in_executor(
            self._searches, self._rank, snapshot, queries, following, k, excluded
        )
        return Recommended(items, list(dict.fromkeys(unknown)))

    async def search(
        self, view: str, vector: Floats, k: int, exclude: Sequence[str]
    ) -> list[tuple[str, float]]:
        """The k items nearest to a vector (W,) in one view, by inner product."""
        return await asyncio.get_running_loop().run_in_executor(
            self._searches, self._nearest, self._store.snapshot, view, vector, k, exclude
        )

    def _nearest(
        self, snapshot: Snapshot, view: str, vector: Floats, k: int, exclude: Sequence[str]
    ) -> list[tuple[str, float]]:
        started = time.perf_counter()
        places, scores = snapshot.search(view, vector, k, snapshot.allowed(exclude))
        self._metrics.search.observe(time.perf_counter() - started)
        return [
            (snapshot.item_id(place), score)
            for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def _rank(
        self,
        snapshot: Snapshot,
        queries: dict[str, Floats],
        following: dict[str, float],
        k: int,
        exclude: Sequence[str],
    ) -> list[tuple[str, float]]:
        started = time.perf_counter()
        allowed = snapshot.allowed(exclude)
        followed = np.zeros((1, len(allowed)), np.float32)  # by place
        for item_id, score in following.items():
            if (place := snapshot.place(item_id)) is not None:
                followed[0, place] = score
        scorer = self._bundle.scorer
        if len(snapshot) <= self._score_all:
            blocks = [block for block in (snapshot.main, snapshot.recent) if block.ids]
            ends = np.cumsum([len(block.ids) for block in blocks])
            everyone = np.concatenate(
                [
                    scorer.score(queries, block.tables, block.present, few)[0]
                    for block, few in zip(blocks, np.split(followed, ends, axis=1), strict=False)
                ]
                or [np.empty(0, np.float32)]
            )
            places = np.flatnonzero(allowed)
            scores = everyone[places]
        else:
            most = max(CANDIDATES, CANDIDATES_PER_K * k)
            # A view that says nothing of this history ties the whole catalogue.
            candidates = [
                snapshot.search(view, query[0], most, allowed)[0]
                for view, query in queries.items()
                if query.any()
            ]
            candidates.append(np.flatnonzero(followed[0] * allowed))
            places = np.unique(np.concatenate(candidates))
            scores = scorer.score(queries, *snapshot.gather(places), followed[:, places])[0]
        order = snapshot.ranked(places, scores, k)
        self._metrics.search.observe(time.perf_counter() - started)
        return [(snapshot.item_id(int(places[at])), float(scores[at])) for at in order]
