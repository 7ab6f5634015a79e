"""A history to the items that are most likely next."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from service.errors import UnknownItem
from service.index import Floats, Main, Mask, Places, Snapshot
from service.metrics import Metrics
from service.rounds import Rounds
from service.store import CatalogueStore

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.scorer import Stacked

# Up to this many items every one is scored, which costs a few milliseconds and is exact by
# construction. Beyond, each view gives candidates, and those are scored exactly.
SCORE_ALL = 20_000
CANDIDATES = 1000  # of each view, at least
CANDIDATES_PER_K = 20
# Histories of one round. More are cheaper each, but then everybody who asks is in one round, and
# nobody's request is parsed while it runs.
TOGETHER = 8


class Question(NamedTuple):
    """A user's history, oldest first, how many items are wanted, and which not."""

    history: Sequence[str]
    k: int
    exclude: Sequence[str]
    exclude_history: bool
    explain: bool


class Recommended(NamedTuple):
    """Ranked items, best first.

    Attributes:
        unknown: ids of the history that the catalogue lacks.
        queries: (1, W) of each view, what the items were scored with.
        because: of each item, the item of the history that is nearest to it, if asked for.
    """

    items: list[tuple[str, float]]
    unknown: list[str]
    queries: dict[str, Floats]
    because: list[str] | None


class Nearest(NamedTuple):
    """A vector (W,) of a view, how many items are wanted, and which not."""

    view: str
    vector: Floats
    k: int
    exclude: Sequence[str]


class Recommender:
    """Ranks the catalogue as models.scorer does, without looking at all of a large one.

    Histories that come at the same time are read and scored together.

    Args:
        ranking: the one thread that it works on.
        score_all: size of the catalogue up to which every item is scored.

    Attributes:
        alike: the view in which items are near that are alike by what they are.
    """

    def __init__(
        self,
        bundle: "Bundle",
        store: CatalogueStore,
        ranking: ThreadPoolExecutor,
        metrics: Metrics,
        score_all: int = SCORE_ALL,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._metrics = metrics
        self._score_all = score_all
        self.alike = "content" if "content" in bundle.views else bundle.open_views[0]
        # Of the main block: what models.scorer makes of it, and where training's items stand.
        self._stacked: tuple[Main, Stacked] | None = None
        self._trained: tuple[Main, Places] | None = None
        self._questions = Rounds(self._rank_together, ranking, TOGETHER)
        self._searches = Rounds(self._search_together, ranking)

    async def recommend(
        self,
        history: Sequence[str],
        k: int,
        exclude: Sequence[str],
        exclude_history: bool,
        explain: bool = False,
    ) -> Recommended:
        """The k best items after a history; fewer where fewer are allowed.

        An item of the history that lacks a view is skipped in that view; one that the catalogue
        lacks is skipped in all of them. Ties go by id.

        Raises:
            UnknownItem: the catalogue has no item of the history.
            Overloaded: too many requests are waiting already.
        """
        question = Question(history, k, exclude, exclude_history, explain)
        return await self._questions.ask(question)

    async def search(
        self, view: str, vector: Floats, k: int, exclude: Sequence[str]
    ) -> list[tuple[str, float]]:
        """The k items nearest to a vector (W,) in one view, by inner product.

        Raises:
            Overloaded: too many requests are waiting already.
        """
        return await self._searches.ask(Nearest(view, vector, k, exclude))

    def _search_together(self, asked: Sequence[Nearest]) -> list[list[tuple[str, float]]]:
        started = time.perf_counter()
        snapshot = self._store.snapshot
        answers: list[list[tuple[str, float]]] = [[] for _ in asked]
        for view in {each.view for each in asked}:
            rows = [row for row, each in enumerate(asked) if each.view == view]
            found = snapshot.search(
                view,
                np.stack([asked[row].vector for row in rows]),
                [asked[row].k for row in rows],
                [snapshot.allowed(snapshot.places(asked[row].exclude)) for row in rows],
            )
            for row, (places, scores) in zip(rows, found, strict=True):
                ids = [snapshot.item_id(place) for place in places.tolist()]
                answers[row] = list(zip(ids, scores.tolist(), strict=True))
        self._metrics.search.observe(time.perf_counter() - started)
        return answers

    def _rank_together(self, asked: Sequence[Question]) -> list[Recommended | Exception]:
        started = time.perf_counter()
        snapshot = self._store.snapshot
        answers: dict[int, Recommended | Exception] = {}
        told: list[tuple[int, Question, Places]] = []  # with where its history stands
        for row, question in enumerate(asked):
            places = snapshot.places(question.history)
            if (places >= 0).any():
                told.append((row, question, places))
            else:
                answers[row] = UnknownItem(
                    f"the catalogue has none of the {len(places)} items of this history"
                )
        if told:
            read = [snapshot.history(places[places >= 0]) for _, _, places in told]
            queries = self._bundle.scorer.queries(self._bundle.states(read))
            ranked = self._ranked(snapshot, [each[1:] for each in told], queries)
            for at, ((row, question, places), items) in enumerate(zip(told, ranked, strict=True)):
                because = None
                if question.explain:
                    known = np.unique(places[places >= 0])
                    because = self._because(snapshot, known, [item_id for item_id, _ in items])
                unknown = [question.history[each] for each in np.flatnonzero(places < 0).tolist()]
                answers[row] = Recommended(
                    items,
                    list(dict.fromkeys(unknown)),
                    {view: query[at : at + 1] for view, query in queries.items()},
                    because,
                )
        self._metrics.search.observe(time.perf_counter() - started)
        return [answers[row] for row in range(len(asked))]

    def _ranked(
        self,
        snapshot: Snapshot,
        asked: Sequence[tuple[Question, Places]],
        queries: dict[str, Floats],
    ) -> list[list[tuple[str, float]]]:
        """The best items (B lists) for queries (B, W)."""
        allowed = []
        for question, places in asked:
            excluded = snapshot.places(question.exclude)
            if question.exclude_history:
                excluded = np.concatenate([excluded, places])
            allowed.append(snapshot.allowed(excluded))
        followed = np.zeros((len(asked), len(allowed[0])), np.float32)  # by place
        for row, (question, _) in enumerate(asked):
            # Who is not in the catalogue any more still says what is likely to follow.
            places, scores = self._following(snapshot, question.history)
            followed[row, places] = scores
        ks = [question.k for question, _ in asked]
        if len(snapshot) <= self._score_all and snapshot.main.exact:
            everyone = self._score_everyone(snapshot, queries, followed)
            may_come = [np.flatnonzero(may) for may in allowed]
            scored = [(each, row[each]) for each, row in zip(may_come, everyone, strict=True)]
        else:
            scored = self._score_candidates(snapshot, ks, queries, allowed, followed)
        found = []
        for k, (places, scores) in zip(ks, scored, strict=True):
            order = snapshot.ranked(places, scores, k)
            ids = [snapshot.item_id(place) for place in places[order].tolist()]
            found.append(list(zip(ids, scores[order].tolist(), strict=True)))
        return found

    def _score_everyone(
        self, snapshot: Snapshot, queries: dict[str, Floats], followed: Floats
    ) -> Floats:
        """Scores (B, places) of all."""
        main, recent = snapshot.main, snapshot.recent
        if self._stacked is None or self._stacked[0] is not main:
            self._stacked = (main, self._bundle.scorer.stack(main.tables, main.present))
        few = followed[:, : len(main.ids)]
        scores = self._bundle.scorer.score_stacked(queries, self._stacked[1], few)
        if not recent.ids:
            return scores
        few = followed[:, len(main.ids) :]
        more = self._bundle.scorer.score(queries, recent.tables, recent.present, few)
        return np.concatenate([scores, more], axis=1)

    def _score_candidates(
        self,
        snapshot: Snapshot,
        ks: Sequence[int],
        queries: dict[str, Floats],
        allowed: Sequence[Mask],
        followed: Floats,
    ) -> list[tuple[Places, Floats]]:
        """Of each query the places worth a look, and their scores."""
        most = [max(CANDIDATES, CANDIDATES_PER_K * k) for k in ks]
        candidates: list[list[Places]] = [
            [np.flatnonzero(few * may)] for few, may in zip(followed, allowed, strict=True)
        ]
        for view, query in queries.items():
            # A view that says nothing of a history ties the whole catalogue.
            rows = np.flatnonzero(query.any(axis=1)).tolist()
            found = snapshot.search(
                view, query[rows], [most[row] for row in rows], [allowed[row] for row in rows]
            )
            for row, (places, _) in zip(rows, found, strict=True):
                candidates[row].append(places)
        scored = []
        for row, each in enumerate(candidates):
            places = np.unique(np.concatenate(each))
            alone = {view: query[row : row + 1] for view, query in queries.items()}
            few = followed[row : row + 1, places]
            scored.append(
                (places, self._bundle.scorer.score(alone, *snapshot.gather(places), few)[0])
            )
        return scored

    def _following(self, snapshot: Snapshot, history: Sequence[str]) -> tuple[Places, Floats]:
        """Places of the items that follow a history, and their neighbour scores."""
        rows, scores = self._bundle.following(history)
        if self._trained is None or self._trained[0] is not snapshot.main:
            ids = self._bundle.catalogue.ids
            places = np.array([snapshot.main.place(each) for each in ids], np.int64)
            self._trained = (snapshot.main, places)
        places = self._trained[1][rows - 1]
        for at in np.flatnonzero(~snapshot.stands(places)).tolist():
            # Gone, or changed since the main block was made.
            place = snapshot.place(self._bundle.catalogue[rows[at] - 1].item_id)
            places[at] = -1 if place is None else place
        return places[places >= 0], scores[places >= 0]

    def _because(self, snapshot: Snapshot, history: Places, item_ids: Sequence[str]) -> list[str]:
        """Of each item, which of the history is nearest to it by what the items are."""
        table = self._alike_vectors(snapshot, history)
        items = self._alike_vectors(snapshot, snapshot.places(item_ids))
        return [snapshot.item_id(history[at]) for at in (items @ table.T).argmax(axis=1).tolist()]

    def _alike_vectors(self, snapshot: Snapshot, places: Places) -> Floats:
        vectors = snapshot.vectors(self.alike, places)
        unit: Floats = vectors / (
            np.linalg.norm(vectors, axis=1, keepdims=True) + np.float32(1e-12)
        )
        return unit
