"""A history to the items that are most likely next."""

import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from service.catalogue import Store, Wanted
from service.errors import UnknownItem
from service.filters import Filter
from service.index import Floats, Main, Mask, Places, Snapshot, Views
from service.metrics import Metrics
from service.rounds import Rounds
from service.slate import arrange, candidates_for

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
# Who is not known is shown what is popular, but not many of a kind.
FALLBACK_DIVERSITY = 0.3

Strategy = Literal["best", "popular", "id_only", "text_only"]
Used = Strategy | Literal["fallback"]
# Places of the items that follow a history, and their neighbour scores; all others have 0.
Followed = tuple[Places, Floats]


class Question(NamedTuple):
    """A user's history, oldest first, how many items are wanted, and which not.

    An element of the history is an id, or of an item that need not be in the catalogue its views.
    """

    history: Sequence[str | Views]
    k: int
    exclude: Sequence[str]
    exclude_history: bool
    explain: bool
    strategy: Strategy
    diversity: float | None
    explore: float
    seed: int
    matching: Filter | None = None


class Recommended(NamedTuple):
    """Ranked items, best first.

    Attributes:
        strategy: by which they were found.
        explored: ids of those whose place was explored.
        unknown: ids of the history that the catalogue lacks.
        queries: (1, W) of each view, what the items were scored with; none of what is popular.
        because: of each item, where in the history the item stands that is nearest to it, the
            earliest of equals; if asked for. None where nothing was read of the history, or none
            of it can be compared.
    """

    items: list[tuple[str, float]]
    strategy: Used
    explored: Collection[str]
    unknown: list[str]
    queries: dict[str, Floats]
    because: list[int] | None


class Nearest(NamedTuple):
    """A vector (W,) of a view, how many items are wanted, and which not."""

    view: str
    vector: Floats
    k: int
    exclude: Sequence[str]
    matching: Filter | None = None


class Recommender:
    """Ranks the catalogue as models.scorer does, without looking at all of a large one.

    Histories that come at the same time are read and scored together.

    Args:
        ranking: the one thread that it works on.
        score_all: size of the catalogue up to which every item is scored.

    Attributes:
        alike: the view in which items are near that are alike by what they are.
        strategies: the ones that this bundle has the views for.
    """

    def __init__(
        self,
        bundle: "Bundle",
        store: Store,
        ranking: ThreadPoolExecutor,
        metrics: Metrics,
        score_all: int = SCORE_ALL,
    ) -> None:
        self._bundle = bundle
        self._store = store
        self._metrics = metrics
        self._score_all = score_all
        self.alike = bundle.alike
        tables = [name for name in bundle.views if name not in bundle.open_views]
        # The views that a strategy reads. What is popular is so without any.
        self._views: dict[Strategy, Collection[str]] = {"best": list(bundle.views), "popular": []}
        if tables:
            self._views["id_only"] = tables
        if bundle.open_views:
            self._views["text_only"] = bundle.open_views
        self.strategies: list[Strategy] = list(self._views)
        # Of the main block: what models.scorer makes of it, and where training's items stand.
        self._stacked: tuple[Main, Stacked] | None = None
        self._trained: tuple[Main, Places] | None = None
        self._questions = Rounds(self._rank_together, ranking, TOGETHER)
        self._searches = Rounds(self._search_together, ranking)

    def reads_attributes(self, strategy: Strategy) -> bool:
        """Whether a strategy looks at views that come of attributes."""
        return any(view in self._bundle.open_views for view in self._views[strategy])

    async def recommend(
        self,
        history: Sequence[str | Views],
        k: int,
        exclude: Sequence[str],
        exclude_history: bool,
        explain: bool = False,
        *,
        matching: Filter | None = None,
        strategy: Strategy = "best",
        diversity: float | None = None,
        explore: float = 0.0,
        seed: int = 0,
    ) -> Recommended:
        """The k best items after a history; fewer where fewer are allowed and match.

        An item of the history that lacks a view is skipped in that view; one that the catalogue
        lacks is skipped in all of them. Ties go by id. A history that says nothing in the views
        of the strategy, such as an empty one, is answered with what is popular: `fallback`.

        Args:
            strategy: one of `strategies`. `id_only` finds no items that only have open views.
            diversity, explore, seed: see service.slate.arrange. Without a diversity it is 0, and
                FALLBACK_DIVERSITY for `fallback`.

        Raises:
            UnknownItem: there is a history, and the catalogue has no item of it; but whatever the
                history, there is an answer by `popular`.
            Overloaded: too many requests are waiting already.
        """
        question = Question(
            *(history, k, exclude, exclude_history, explain),
            *(strategy, diversity, explore, seed, matching),
        )
        return await self._questions.ask(question)

    async def search(
        self,
        view: str,
        vector: Floats,
        k: int,
        exclude: Sequence[str],
        matching: Filter | None = None,
    ) -> list[tuple[str, float]]:
        """The k items nearest to a vector (W,) in one view, by inner product.

        Raises:
            Overloaded: too many requests are waiting already.
        """
        return await self._searches.ask(Nearest(view, vector, k, exclude, matching))

    def _search_together(self, asked: Sequence[Nearest]) -> list[list[tuple[str, float]]]:
        started = time.perf_counter()
        wanted = (
            Wanted({each.view: each.vector}, each.k, each.exclude, each.matching, only=True)
            for each in asked
        )
        snapshot = self._store.widened(self._store.holding(()), wanted)
        answers: list[list[tuple[str, float]]] = [[] for _ in asked]
        for view in {each.view for each in asked}:
            rows = [row for row, each in enumerate(asked) if each.view == view]
            found = snapshot.search(
                view,
                np.stack([asked[row].vector for row in rows]),
                [asked[row].k for row in rows],
                [
                    snapshot.allowed(snapshot.places(asked[row].exclude), asked[row].matching)
                    for row in rows
                ],
            )
            for row, (places, scores) in zip(rows, found, strict=True):
                ids = [snapshot.item_id(place) for place in places.tolist()]
                answers[row] = list(zip(ids, scores.tolist(), strict=True))
        self._metrics.search.observe(time.perf_counter() - started)
        return answers

    def _rank_together(self, asked: Sequence[Question]) -> list[Recommended | Exception]:
        started = time.perf_counter()
        snapshot = self._store.holding(
            each for question in asked for each in _ids(question.history)
        )
        answers: dict[int, Recommended | Exception] = {}
        told: list[tuple[int, Question, Places, Views]] = []  # where its history stands, its views
        silent: list[tuple[int, Question, Places]] = []  # whose history says nothing
        for row, question in enumerate(asked):
            places = snapshot.places(_ids(question.history))
            if (
                question.history
                and not (places >= 0).any()
                and len(places) == len(question.history)
                and question.strategy != "popular"
            ):
                answers[row] = UnknownItem(
                    f"the catalogue has none of the {len(places)} items of this history"
                )
                continue
            read = self._read(snapshot, question, places)
            if any(len(vectors) for vectors in read.values()):
                told.append((row, question, places, read))
            else:
                silent.append((row, question, places))
        queries: dict[str, Floats] = {}
        if told:
            queries = self._bundle.scorer.queries(
                self._bundle.states([read for _, _, _, read in told])
            )
        wanted = self._wanted([each[1] for each in told], [each[1] for each in silent], queries)
        snapshot = self._store.widened(snapshot, wanted)
        for row, question, places in silent:
            answers[row] = self._popular(snapshot, question, places)
        if told:
            scored = self._scored(snapshot, [each[1:3] for each in told], queries)
            for at, ((row, question, places, _), found) in enumerate(
                zip(told, scored, strict=True)
            ):
                mine = {view: query[at : at + 1] for view, query in queries.items()}
                answers[row] = self._answer(
                    snapshot, question, places, found, question.strategy, mine
                )
        self._metrics.search.observe(time.perf_counter() - started)
        return [answers[row] for row in range(len(asked))]

    def _wanted(
        self, told: Sequence[Question], silent: Sequence[Question], queries: dict[str, Floats]
    ) -> Iterator[Wanted]:
        """What answers are chosen from: of questions with queries (B, W), and of those without."""
        for row, question in enumerate(told):
            # A view that says nothing of a history ties the whole catalogue.
            mine = {view: each[row] for view, each in queries.items() if each[row].any()}
            ids: list[str] = []
            if question.strategy == "best":
                rows, scores = self._bundle.following(_ids(question.history))
                best_first = rows[np.argsort(-scores, kind="stable")].tolist()
                ids = [self._bundle.catalogue[each - 1].item_id for each in best_first]
            yield Wanted(
                mine, candidates_for(question.k), _kept_out(question), question.matching, ids
            )
        for question in silent:
            yield Wanted({}, candidates_for(question.k), _kept_out(question), question.matching)

    def _read(self, snapshot: Snapshot, question: Question, places: Places) -> dict[str, Floats]:
        """Of each view the vectors (L, W) of a history; none of a view the strategy is without."""
        views = self._views[question.strategy]
        if len(places) == len(question.history):
            read = snapshot.history(places[places >= 0])
            return {view: each if view in views else each[:0] for view, each in read.items()}
        seen = [
            (snapshot.views(each) or {}) if isinstance(each, str) else each
            for each in question.history
        ]
        return {
            name: np.array([each[name] for each in seen if name in each and name in views])
            .reshape(-1, view.width)
            .astype(np.float32)
            for name, view in self._bundle.views.items()
        }

    def _popular(self, snapshot: Snapshot, question: Question, places: Places) -> Recommended:
        """The items with most interactions in training; any other has none."""
        used: Used = "popular" if question.strategy == "popular" else "fallback"
        if used == "fallback":
            question = question._replace(strategy="popular")
            if question.diversity is None:
                question = question._replace(diversity=FALLBACK_DIVERSITY)
        may = np.flatnonzero(self._allowed(snapshot, question, places))
        found = may, self._counted(snapshot)[may]
        return self._answer(snapshot, question, places, found, used, {})

    def _answer(
        self,
        snapshot: Snapshot,
        question: Question,
        history: Places,
        found: tuple[Places, Floats],
        strategy: Used,
        queries: dict[str, Floats],
    ) -> Recommended:
        """The best of some items by their scores, as the question wants them arranged."""
        places, scores = found
        plain = not (question.diversity or question.explore)
        order = snapshot.ranked(places, scores, question.k if plain else candidates_for(question.k))
        ids = [snapshot.item_id(place) for place in places[order].tolist()]
        items = list(zip(ids, scores[order].tolist(), strict=True))
        explored: set[str] = set()
        if not plain:
            known = np.array([self._bundle.popularity(item_id) for item_id in ids], str)
            shown = arrange(
                scores[order],
                self._alike_vectors(snapshot, places[order]),
                [known == "cold", known == "tail"],
                question.k,
                diversity=question.diversity or 0.0,
                explore=question.explore,
                seed=question.seed,
            )
            explored = {ids[at] for at, drawn in shown if drawn}
            items = [items[at] for at, _ in shown]
        because = None
        if question.explain and queries:
            because = self._because(snapshot, question.history, [item_id for item_id, _ in items])
        asked = _ids(question.history)
        unknown = [asked[each] for each in np.flatnonzero(history < 0).tolist()]
        return Recommended(
            items, strategy, explored, list(dict.fromkeys(unknown)), queries, because
        )

    def _allowed(self, snapshot: Snapshot, question: Question, history: Places) -> Mask:
        """(places,) who may be answered to a question."""
        excluded = snapshot.places(question.exclude)
        if question.exclude_history:
            excluded = np.concatenate([excluded, history])
        may = snapshot.allowed(excluded, question.matching)
        if question.strategy == "id_only":
            # It says nothing of the others; in the middle of its ranking they would be by luck.
            places, may = np.flatnonzero(may), may.copy()
            views = self._views["id_only"]
            may[places] = np.any([snapshot.present(view, places) for view in views], axis=0)
        return may

    def _scored(
        self,
        snapshot: Snapshot,
        asked: Sequence[tuple[Question, Places]],
        queries: dict[str, Floats],
    ) -> list[tuple[Places, Floats]]:
        """For queries (B, W) the places of items among which the best are, and their scores."""
        allowed = [self._allowed(snapshot, question, places) for question, places in asked]
        followed = [
            # Who is not in the catalogue any more still says what is likely to follow.
            self._following(snapshot, _ids(question.history) if question.strategy == "best" else [])
            for question, _ in asked
        ]
        if len(snapshot) <= self._score_all and snapshot.main.exact:
            everyone = self._score_everyone(snapshot, queries, followed)
            may_come = [np.flatnonzero(may) for may in allowed]
            return [(each, row[each]) for each, row in zip(may_come, everyone, strict=True)]
        ks = [question.k for question, _ in asked]
        return self._score_candidates(snapshot, ks, queries, allowed, followed)

    def _score_everyone(
        self, snapshot: Snapshot, queries: dict[str, Floats], followed: Sequence[Followed]
    ) -> Floats:
        """Scores (B, places) of all."""
        main, recent = snapshot.main, snapshot.recent
        if self._stacked is None or self._stacked[0] is not main:
            self._stacked = (main, self._bundle.scorer.stack(main.tables, main.present))
        few = np.zeros((len(followed), len(main) + len(recent.ids)), np.float32)
        for row, (places, told) in enumerate(followed):
            few[row, places] = told
        scores = self._bundle.scorer.score_stacked(queries, self._stacked[1], few[:, : len(main)])
        if not recent.ids:
            return scores
        more = self._bundle.scorer.score(
            queries, recent.tables, recent.present, few[:, len(main) :]
        )
        return np.concatenate([scores, more], axis=1)

    def _score_candidates(
        self,
        snapshot: Snapshot,
        ks: Sequence[int],
        queries: dict[str, Floats],
        allowed: Sequence[Mask],
        followed: Sequence[Followed],
    ) -> list[tuple[Places, Floats]]:
        """Of each query the places worth a look, and their scores."""
        most = [max(CANDIDATES, CANDIDATES_PER_K * k) for k in ks]
        candidates: list[list[Places]] = [
            [places[may[places]]] for (places, _), may in zip(followed, allowed, strict=True)
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
            few = np.zeros((1, len(places)), np.float32)
            behind, told = followed[row]
            there = np.isin(behind, places)
            few[0, np.searchsorted(places, behind[there])] = told[there]
            scored.append(
                (places, self._bundle.scorer.score(alone, *snapshot.gather(places), few)[0])
            )
        return scored

    def _following(self, snapshot: Snapshot, history: Sequence[str]) -> Followed:
        """Places of the items that follow a history, and their neighbour scores."""
        rows, scores = self._bundle.following(history)
        places = self._training_places(snapshot.main)[rows - 1]
        for at in np.flatnonzero(~snapshot.stands(places)).tolist():
            # Gone, or changed since the main block was made.
            place = snapshot.place(self._bundle.catalogue[rows[at] - 1].item_id)
            places[at] = -1 if place is None else place
        return places[places >= 0], scores[places >= 0]

    def _counted(self, snapshot: Snapshot) -> Floats:
        """(places,) how often training saw each item."""
        interactions, rows = self._bundle.interactions, self._bundle.catalogue.rows
        places = self._training_places(snapshot.main)
        counts = np.zeros(len(snapshot.main) + len(snapshot.recent.ids), np.float32)
        counts[places[places >= 0]] = interactions[places >= 0]
        for place, item_id in enumerate(snapshot.recent.ids, len(snapshot.main)):
            if (row := rows.get(item_id)) is not None:
                counts[place] = interactions[row - 1]
        return counts

    def _training_places(self, main: Main) -> Places:
        """Of each training item where it stands or stood in the main block; -1 for none."""
        if self._trained is None or self._trained[0] is not main:
            ids, rows = self._bundle.catalogue.ids, self._bundle.catalogue.rows
            if len(main) < len(ids):
                places = np.full(len(ids), -1, np.int64)
                for item_id in main.ids:
                    if (row := rows.get(item_id)) is not None:
                        places[row - 1] = main.place(item_id)
            else:
                places = main.ids.places(ids)
            self._trained = (main, places)
        return self._trained[1]

    def _because(
        self, snapshot: Snapshot, history: Sequence[str | Views], item_ids: Sequence[str]
    ) -> list[int] | None:
        """Of each item, where in the history the nearest to it stands, by what the items are."""
        seen = {
            at: views[self.alike]
            for at, each in enumerate(history)
            if (views := snapshot.views(each) if isinstance(each, str) else each)
            and self.alike in views
        }
        if not seen:
            return None
        table = _units(np.stack(list(seen.values())))
        items = self._alike_vectors(snapshot, snapshot.places(item_ids))
        where = list(seen)
        return [where[row] for row in (items @ table.T).argmax(axis=1).tolist()]

    def _alike_vectors(self, snapshot: Snapshot, places: Places) -> Floats:
        return _units(snapshot.vectors(self.alike, places))


def _units(vectors: Floats) -> Floats:
    """Vectors (n, W) at length 1; one of length 0 stays."""
    unit: Floats = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + np.float32(1e-12))
    return unit


def _kept_out(question: Question) -> list[str]:
    """Ids that are not to be answered to a question."""
    history = _ids(question.history) if question.exclude_history else []
    return [*question.exclude, *history]


def _ids(history: Sequence[str | Views]) -> list[str]:
    """The elements of a history that are ids."""
    return [each for each in history if isinstance(each, str)]
