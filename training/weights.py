"""Chooses how views and neighbours are summed, by the validation split alone.

Shapes: U users, n items.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.bundle_writing import TrainedView
from models.neighbours import Neighbours
from models.scorer import Floats
from training.interactions import Questions, Rows, Split
from training.metrics import ndcg
from training.ranking import CHUNK, Ranker, excluded_of

K = 10  # what is measured
CHOICE = 50  # what weights are chosen by: more users have an answer to give, and chance less
FIRST = 100  # of each part; what is in none of them is taken to be behind the target
START = {"neighbours": 0.2}  # its scores are few and large; every other part starts at 0.5
STEPS = (1.5, 1 / 1.5, 1.15, 1 / 1.15)
MIXES = 10  # steps of 1 / MIXES in what the views of a new item count beside each other
MOST = 2.0  # that they count together, of the whole sum that an item with all views has
KNOWN_KEPT = 0.98  # of other items' HR@10, while new ones are let in
SURE = 1.645  # standard errors: that they keep it is 95 % sure, as far as users go
NEAR = 3  # places: how far from its own a hit counts, less the farther

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Shortlist:
    """Each user's target and the candidates that may be ahead of it, scored in each part.

    Made once, it ranks the target under any weights with a few additions. Column 0 is the target;
    after it come the FIRST of each part (U, C), some of them twice.

    Attributes:
        parts: scores by view and under `neighbours`, (U, 1 + C) float32.
        new: (U, 1 + C) bool, items that lack a view.
        counted: (U, 1 + C) bool, candidates that may be recommended; once if they are there
            twice; not the target.
        missed: (U,) bool, targets that may not be recommended, as they stand in the history.
    """

    parts: Mapping[str, Floats]
    new: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    missed: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        views: Sequence[TrainedView],
        neighbours: Neighbours | None,
        histories: Sequence[Rows],
        targets: Rows,
        banned: NDArray[np.bool_] | None = None,
    ) -> "Shortlist":
        """The shortlist of one target (U,), at least one, after each history.

        Args:
            banned: (n,), items that are no candidates at all.
        """
        pieces = [
            _shortlist(
                views,
                neighbours,
                histories[start : start + CHUNK],
                targets[start : start + CHUNK],
                banned,
            )
            for start in range(0, len(targets), CHUNK)
        ]
        return cls(
            {
                name: np.concatenate([piece.parts[name] for piece in pieces])
                for name in pieces[0].parts
            },
            np.concatenate([piece.new for piece in pieces]),
            np.concatenate([piece.counted for piece in pieces]),
            np.concatenate([piece.missed for piece in pieces]),
        )

    def ranks(
        self,
        weights: Mapping[str, float],
        users: NDArray[np.int64],
        factors: Mapping[str, float] | None = None,
        *,
        without_new: bool = False,
    ) -> Figures:
        """Rank of the target (m,) of some users under these weights.

        Args:
            factors: by view, of items that lack one; 1 where nothing is said.
            without_new: whether such items are no candidates.
        """
        total = self._totals(weights, users, factors or {})
        counted = self.counted[users] & ~(self.new[users] if without_new else False)
        ahead = ((total > total[:, :1]) & counted).sum(axis=1)
        level = ((total == total[:, :1]) & counted).sum(axis=1)
        return np.where(self.missed[users], np.inf, 1.0 + ahead + level / 2)

    def _totals(
        self, weights: Mapping[str, float], users: NDArray[np.int64], factors: Mapping[str, float]
    ) -> Floats:
        new = self.new[users]
        total: Floats = np.zeros(new.shape, np.float32)
        for name, weight in weights.items():
            factored = np.float32(weight * factors.get(name, 1.0))
            total += np.where(new, factored, np.float32(weight)) * self.parts[name][users]
        return total

    def kept(
        self,
        weights: Mapping[str, float],
        ranks: Figures,
        factors: Mapping[str, float],
    ) -> Figures:
        """How likely each hit among the first K (H,) still is one beside items that lack a view.

        Every user who has a hit counts with the places near his own, too, as often as hits have
        them: the very place is chance, and there are few users. Not with all places alike: a
        target stands first where the sum is sure, and there a new item seldom gets ahead.

        Args:
            ranks: (U,) of the targets, without such items.
        """
        hits = np.flatnonzero(ranks <= K)
        total = self._totals(weights, hits, factors)
        new, counted = self.new[hits], self.counted[hits].copy()
        counted[:, 0] = True  # the target is one of the known
        known = -np.sort(-np.where(counted & ~new, total, -np.inf), axis=1)[:, :K]
        fresh = np.where(counted & new, total, -np.inf)
        own = np.ceil(ranks[hits]).astype(int) - 1  # (H,)
        places = np.arange(known.shape[1])
        near = np.maximum(0, NEAR - np.abs(places - own[:, None]))  # (H, K)
        near = near * np.bincount(own, minlength=K)[places]
        ahead = (fresh[:, None] > known[:, :, None]).sum(axis=2)  # (H, K)
        stays = places + 1 + ahead <= K
        likely: Figures = (near * stays).sum(axis=1) / near.sum(axis=1)
        return likely


def _shortlist(
    views: Sequence[TrainedView],
    neighbours: Neighbours | None,
    histories: Sequence[Rows],
    targets: Rows,
    banned: NDArray[np.bool_] | None,
) -> Shortlist:
    users = np.arange(len(targets))[:, None]
    scores = {view.name: Ranker.of([view], {view.name: 1.0}).scores(histories) for view in views}
    if neighbours:
        scores["neighbours"] = neighbours.table(histories)
    items = next(iter(scores.values())).shape[1]
    excluded = excluded_of(histories, items)
    if banned is not None:
        excluded |= banned
    missed = excluded[users[:, 0], targets - 1]
    excluded[users[:, 0], targets - 1] = True  # the target is no candidate beside itself
    first = min(FIRST, items)
    found = []
    for each in scores.values():
        allowed = np.where(excluded, -np.inf, each)
        found.append(np.argpartition(-allowed, first - 1, axis=1)[:, :first])
    candidates = np.sort(np.concatenate(found, axis=1), axis=1)  # (U, C)
    counted = ~excluded[users, candidates]
    counted[:, 1:] &= candidates[:, 1:] != candidates[:, :-1]
    listed = np.concatenate([(targets - 1)[:, None], candidates], axis=1)  # (U, 1 + C)
    new = ~np.logical_and.reduce([view.present for view in views])
    return Shortlist(
        {name: each[users, listed] for name, each in scores.items()},
        new[listed],
        np.concatenate([np.zeros_like(counted[:, :1]), counted], axis=1),
        missed,
    )


@dataclass(frozen=True)
class Chosen:
    """Weights by view and under `neighbours`, and what they reach on the validation split.

    Attributes:
        weights: those of parts that are not missed are left out.
        held_out: (V,) ranks of the validation items among all training items, under weights that
            other users chose.
        figures: NDCG@10, overall and of the tail, of `held_out` and of each part alone.
    """

    weights: dict[str, float]
    held_out: Figures
    figures: dict[str, float]


def choose_weights(
    views: Sequence[TrainedView], neighbours: Neighbours | None, split: Split
) -> Chosen:
    """The weights with the best sum of overall and tail NDCG@50 on the validation split.

    Coordinate ascent from even weights, by factors; a part that is not missed is dropped. For an
    honest figure each half of the users also chooses weights that are measured on the other half.
    """
    histories, targets = split.validation_histories, split.validation
    # What was never trained on is no candidate: it has no say in what is chosen.
    untrained = split.counts[1:] == 0
    shortlist = Shortlist.of(views, neighbours, histories, targets, untrained)
    tail = ~split.head()[targets]
    # `text` is what /embed gives, and a new item without any view would have no score at all.
    names = {view.name for view in views}
    stays = next(({name} & names for name in ("text", "content") if name in names), set())

    def choose(voters: NDArray[np.int64]) -> dict[str, float]:
        rare = tail[voters]

        def goal(weights: Mapping[str, float]) -> float:
            values = ndcg(shortlist.ranks(weights, voters), CHOICE)
            return float(values.mean() + (values[rare].mean() if rare.any() else 0.0))

        return climb(
            goal, {name: START.get(name, 0.5) for name in shortlist.parts}, frozenset(stays)
        )

    everyone = np.arange(len(targets))
    weights = choose(everyone)
    held_out = np.empty(len(targets))
    half = everyone % 2 == 0
    for measured in (half, ~half):
        if measured.any():
            chosen = choose(np.flatnonzero(~measured)) if (~measured).any() else weights
            ranker = Ranker.of(views, chosen, neighbours=neighbours)
            asked = np.flatnonzero(measured)
            questions = split.validation_questions(asked)
            held_out[asked] = ranker.ranks(*questions, banned=untrained)
    figures = {}
    for name, values in [
        ("held_out", ndcg(held_out, K)),
        *((part, ndcg(shortlist.ranks({part: 1.0}, everyone), K)) for part in shortlist.parts),
    ]:
        figures[f"{name}_ndcg10"] = float(values.mean())
        figures[f"{name}_tail_ndcg10"] = float(values[tail].mean()) if tail.any() else 0.0
    return Chosen(weights, held_out, figures)


def climb(
    goal: Callable[[Mapping[str, float]], float],
    start: Mapping[str, float],
    stay: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """Weights at which no single factor of STEPS, and no part left out, raises the goal.

    Args:
        stay: parts that are never left out; `neighbours` is never left alone.
    """
    weights, best = dict(start), goal(start)
    moved = True
    while moved:
        moved = False
        for name in list(weights):
            for step in STEPS:
                while (reached := goal(tried := {**weights, name: weights[name] * step})) > best:
                    weights, best, moved = tried, reached, True
            without = {other: weight for other, weight in weights.items() if other != name}
            if name in stay or not without.keys() - {"neighbours"}:
                continue
            if (reached := goal(without)) >= best:
                weights, best, moved = without, reached, True
    return {name: float(f"{weight:.4g}") for name, weight in weights.items()}


def choose_partial_factors(
    views: Sequence[TrainedView],
    neighbours: Neighbours | None,
    weights: Mapping[str, float],
    known: Questions,
    new: Questions,
    banned: NDArray[np.bool_] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """The factors, by view, of items that lack a view, as new items lack those that are tables.

    They are those with which new targets reach the best NDCG@10, among those with which known
    targets keep KNOWN_KEPT of the hits that they have where no new item is a candidate: what they
    are measured to keep, less SURE standard errors of that, as few users may have been asked.

    Args:
        known: questions about items that have all views.
        new: questions about new items.
        banned: (n,), items that are no candidates at all.

    Returns:
        The factors, and what known and new targets reach with them.
    """
    shown = [view for view in views if view.name in weights]
    open_views = [view.name for view in shown if view.source != "table"]
    whole = sum(weights[view.name] for view in shown)
    if not len(known.targets):  # nobody has anything to lose, and nobody to say how much it is
        return dict.fromkeys(open_views, 1.0), {"known_kept": 1.0, "new_ndcg10": 0.0}
    asked = Shortlist.of(shown, neighbours, *known, banned)
    alone = asked.ranks(weights, np.arange(len(known.targets)), without_new=True)
    wanted = Shortlist.of(shown, neighbours, *new, banned) if len(new.targets) else None

    def factors_of(mix: Sequence[float], share: float) -> dict[str, float]:
        return {
            name: round(part * share * whole / weights[name], 4)
            for name, part in zip(open_views, mix, strict=True)
        }

    def reached(factors: Mapping[str, float]) -> float:
        if wanted is None:
            return 0.0
        rank = wanted.ranks(weights, np.arange(len(new.targets)), factors)
        return float(ndcg(rank, K).mean())

    # With nothing of its own a new item comes in only where the known ones are through.
    best = factors_of([0.0] * len(open_views), 0.0)
    best_reached = reached(best)
    for mix in itertools.product(range(MIXES + 1), repeat=len(open_views)):
        if sum(mix) != MIXES:
            continue
        parts = [part / MIXES for part in mix]
        low, high = 0.0, MOST  # the more they count, the fewer known targets stay
        for _ in range(10):
            middle = (low + high) / 2
            kept, error = mean_and_error(asked.kept(weights, alone, factors_of(parts, middle)))
            if kept - SURE * error >= KNOWN_KEPT:
                low = middle
            else:
                high = middle
        factors = factors_of(parts, low)
        if (now := reached(factors)) >= best_reached:
            best, best_reached = factors, now
    kept, _ = mean_and_error(asked.kept(weights, alone, best))
    return best, {"known_kept": kept, "new_ndcg10": best_reached}


def mean_and_error(shares: Figures) -> tuple[float, float]:
    """The mean of what each hit keeps (H,), and its standard error; 1 and 0 without a hit."""
    if not len(shares):
        return 1.0, 0.0
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def as_new(
    views: Sequence[TrainedView], neighbours: Neighbours | None, new_items: NDArray[np.bool_]
) -> tuple[list[TrainedView], Neighbours | None]:
    """The views and neighbours as if training had not known some items (n,)."""
    hidden = [
        dataclasses.replace(view, present=view.present & ~new_items)
        if view.source == "table"
        else view
        for view in views
    ]
    if neighbours is None:
        return hidden, None
    gone = np.append(True, new_items)[neighbours.rows] | new_items[:, None]
    rows = np.where(gone, 0, neighbours.rows)
    weights = np.where(gone, 0, neighbours.weights).astype(np.float32)
    return hidden, Neighbours(rows, weights, neighbours.decay, neighbours.latest)


def partial_factors_by_hiding(
    views: Sequence[TrainedView],
    neighbours: Neighbours | None,
    weights: Mapping[str, float],
    split: Split,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """choose_partial_factors with a tenth of the items, drawn at random, hidden as if new."""
    random = np.random.default_rng([seed, 3])
    new_items = random.random(len(split.counts) - 1) < 0.1
    new_items |= split.counts[1:] == 0  # they lack a view, hidden or not
    views, neighbours = as_new(views, neighbours, new_items)
    new = new_items[split.validation - 1]
    known, unknown = (split.validation_questions(np.flatnonzero(each)) for each in (~new, new))
    return choose_partial_factors(views, neighbours, weights, known, unknown)
