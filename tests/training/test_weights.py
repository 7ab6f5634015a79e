import dataclasses

import numpy as np
import pytest
import torch

from models.bundle_writing import TrainedView
from models.neighbours import Neighbours
from models.sequence import build
from training.interactions import Interactions, Questions, leave_one_out
from training.metrics import hit_rate, ndcg
from training.ranking import Ranker
from training.weights import (
    Shortlist,
    as_new,
    choose_partial_factors,
    choose_weights,
    climb,
    mean_and_error,
)

ITEMS = 40
RANDOM = np.random.default_rng(0)


def view(name: str, items: np.ndarray, source: str = "content") -> TrainedView:
    everyone = np.ones(len(items), bool)
    return TrainedView(
        name=name,
        source=source,  # type: ignore[arg-type]
        sequence_model="mean",
        options={},
        max_history=1,
        weight=1.0,
        model=build("mean", items.shape[1], 1),
        items=items.astype(np.float32),
        present=everyone,
        trained=everyone,
    )


def circle() -> np.ndarray:
    """Items on a circle: the nearest of each are the ones before and after it."""
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def nobody() -> Neighbours:
    none = np.zeros((ITEMS, 1), np.int32)
    return Neighbours(none, none.astype(np.float32), decay=0.5, latest=5)


def walks(users: int = 60) -> list[list[int]]:
    """Histories that go round the circle by one item at a time."""
    starts = RANDOM.integers(ITEMS, size=users)
    return [[int((start + step) % ITEMS) + 1 for step in range(5)] for start in starts]


def test_a_climb_ends_where_no_factor_helps_and_drops_what_is_not_missed() -> None:
    def goal(weights: dict[str, float]) -> float:
        return -abs(weights.get("a", 0) - 2) - abs(weights.get("b", 0) - 1)

    found = climb(goal, {"a": 0.5, "b": 0.5, "useless": 0.5})  # type: ignore[arg-type]

    assert set(found) == {"a", "b"}
    assert found["a"] == pytest.approx(2.0, rel=0.15)
    assert found["b"] == pytest.approx(1.0, rel=0.15)


def test_a_part_that_is_to_stay_stays_and_neighbours_are_never_alone() -> None:
    def goal(weights: dict[str, float]) -> float:
        return -float(len(weights))

    start = {"a": 0.5, "b": 0.5, "neighbours": 0.5}

    assert set(climb(goal, start, frozenset({"a"}))) == {"a"}  # type: ignore[arg-type]
    assert set(climb(goal, {"b": 0.5, "neighbours": 0.5})) == {"b"}  # type: ignore[arg-type]


def test_a_shortlist_ranks_as_the_scorer_does() -> None:
    split = leave_one_out(Interactions.of(walks()), ITEMS)
    views = [view("text", RANDOM.normal(size=(ITEMS, 3))), view("content", circle())]
    follow = Neighbours(
        RANDOM.integers(ITEMS + 1, size=(ITEMS, 4)).astype(np.int32),
        RANDOM.random((ITEMS, 4)).astype(np.float32),
        decay=0.5,
        latest=5,
    )
    weights = {"text": 0.3, "content": 0.8, "neighbours": 0.4}
    everyone = np.arange(len(split.train))

    shortlist = Shortlist.of(views, follow, split.train, split.validation)

    ranks = Ranker.of(views, weights, neighbours=follow).ranks(split.train, split.validation)
    np.testing.assert_allclose(shortlist.ranks(weights, everyone), ranks)


def test_the_view_that_knows_gets_the_weight() -> None:
    split = leave_one_out(Interactions.of(walks()), ITEMS)
    noise = view("text", RANDOM.normal(size=(ITEMS, 3)))

    chosen = choose_weights([noise, view("content", circle())], nobody(), split)

    assert chosen.weights["content"] > 3 * chosen.weights.get("text", 0.0)
    assert chosen.figures["held_out_ndcg10"] > 0.5 > chosen.figures["text_ndcg10"]
    assert "neighbours" not in chosen.weights  # they say nothing here


def test_noise_is_not_better_for_users_who_did_not_choose() -> None:
    histories = [(RANDOM.permutation(ITEMS)[:5] + 1).tolist() for _ in range(200)]
    split = leave_one_out(Interactions.of(histories), ITEMS)
    views = [view(name, RANDOM.normal(size=(ITEMS, 3))) for name in ("text", "content")]

    chosen = choose_weights(views, nobody(), split)

    chance = ndcg(np.arange(1.0, ITEMS - 3 + 1), 10).mean()
    assert chosen.figures["held_out_ndcg10"] < chance + 0.06


def test_an_item_as_new_has_its_words_alone_and_follows_nobody() -> None:
    new = np.zeros(ITEMS, bool)
    new[[3, 9]] = True
    follow = Neighbours(
        np.full((ITEMS, 2), [4, 7], np.int32), np.ones((ITEMS, 2), np.float32), 0.5, 5
    )
    table = view("hybrid", circle(), source="table")

    (hidden, open_view), left = as_new([table, view("content", circle())], follow, new)

    assert (hidden.present == ~new).all()
    assert open_view.present.all()
    assert left is not None
    assert not left.rows[new].any()
    assert left.rows[0].tolist() == [0, 7]  # 4 is new
    assert left.weights[0].tolist() == [0.0, 1.0]


def test_the_factor_lets_new_items_in_as_far_as_known_ones_allow() -> None:
    # New items lie on the circle too; known items also have a table that says the same.
    new = np.arange(ITEMS) % 5 == 0
    views = [view("hybrid", circle(), source="table"), view("content", circle())]
    views, follow = as_new(views, nobody(), new)
    histories = [np.array([row], np.int32) for row in range(1, ITEMS + 1)]
    after = np.arange(1, ITEMS + 1, dtype=np.int32) % ITEMS + 1
    unknown = new[after - 1]

    def ask(which: np.ndarray) -> Questions:
        return Questions([histories[user] for user in np.flatnonzero(which)], after[which])

    weights = {"hybrid": 0.5, "content": 0.5}
    factors, figures = choose_partial_factors(views, follow, weights, ask(~unknown), ask(unknown))

    assert factors["content"] > 1  # with one view of two, a new item's sum is too small by itself
    small = Ranker.of(views, weights, {"content": 0.25}, follow).ranks(*ask(unknown))
    assert figures["new_ndcg10"] > ndcg(small, 10).mean()
    chosen = Ranker.of(views, weights, factors, follow)
    np.testing.assert_allclose(figures["new_ndcg10"], ndcg(chosen.ranks(*ask(unknown)), 10).mean())
    alone = chosen.ranks(*ask(~unknown), banned=new)
    kept = hit_rate(chosen.ranks(*ask(~unknown)), 10).mean() / hit_rate(alone, 10).mean()
    assert figures["known_kept"] == pytest.approx(kept)
    assert kept >= 0.98


def test_items_that_are_no_candidates_have_no_say_in_the_factors() -> None:
    # Every fifth item is new; two of them, had they a say, would be ahead of everybody.
    new, loud = np.arange(ITEMS) % 5 == 0, np.isin(np.arange(ITEMS), [0, 20])
    both = [view("hybrid", circle(), "table"), view("content", circle())]
    views, follow = as_new(
        [dataclasses.replace(each, trained=~new) for each in both], nobody(), new
    )
    after = np.arange(1, ITEMS + 1, dtype=np.int32) % ITEMS + 1

    def ask(which: np.ndarray) -> Questions:
        users = np.flatnonzero(which & ~loud & ~loud[after - 1])
        return Questions([np.array([user + 1], np.int32) for user in users], after[users])

    weights = {"hybrid": 0.5, "content": 0.5}
    asked = (views, follow, weights, ask(~new[after - 1]), ask(new[after - 1]))
    quiet = choose_partial_factors(*asked, loud)
    views[1].items[loud] *= 9

    assert choose_partial_factors(*asked, loud) == quiet
    assert choose_partial_factors(*asked) != quiet


def test_where_nobody_asks_for_a_known_item_factors_are_one() -> None:
    none = Questions([], np.zeros(0, np.int32))
    views = [view("hybrid", circle(), "table"), view("content", circle())]

    factors, _ = choose_partial_factors(views, None, {"hybrid": 1.0, "content": 1.0}, none, none)

    assert factors == {"content": 1.0}


def test_a_hit_is_kept_while_no_new_item_pushes_its_place_out_of_the_first_ten() -> None:
    known = np.arange(12.0, 1.0, -1.0)  # 12, 11, ... 2: ten of them are on the list
    target, new = 10.5, [11.5, 6.5]
    scores = np.array([[target, *known, *new]] * 2, np.float32)
    is_new = np.array([[False] * 12 + [True] * 2] * 2)
    counted = np.array([[False] + [True] * 13] * 2)
    shortlist = Shortlist({"a": scores}, is_new, counted, np.zeros(2, bool))
    ranks = shortlist.ranks({"a": 1.0}, np.arange(2), without_new=True)
    assert ranks.tolist() == [3.0, 3.0]

    # One of two new items is ahead of the third place, as it is: the target stays.
    assert shortlist.kept({"a": 1.0}, ranks, {}).tolist() == [1.0, 1.0]
    # A hit on the tenth place would go; one on the third is too far from it to go with it.
    assert shortlist.kept({"a": 1.0}, np.array([3.0, 10.0]), {}).tolist() == [1.0, 0.0]
    # The eighth place stays, the ninth goes; a place away counts 2 where its own counts 3.
    assert shortlist.kept({"a": 1.0}, np.array([8.0, 9.0]), {}).tolist() == [3 / 5, 2 / 5]
    assert shortlist.kept({"a": 1.0}, np.array([3.0, 10.0]), {"a": 0.0}).tolist() == [1.0, 1.0]
    nothing = shortlist.kept({"a": 1.0}, np.array([11.0, np.inf]), {})
    assert nothing.tolist() == []


def test_an_error_shrinks_with_the_root_of_how_many_hits_there_are() -> None:
    # One of ten hits is lost: .9 of them stay, give or take .3 over the root of their number.
    assert mean_and_error(np.array([1.0] * 9 + [0.0])) == pytest.approx((0.9, 0.3 / 10**0.5))
    many = np.array([1.0] * 900 + [0.0] * 100)
    assert mean_and_error(many) == pytest.approx((0.9, 0.3 / 1000**0.5))
    assert mean_and_error(np.zeros(0)) == (1.0, 0.0)  # nothing to lose


def test_the_same_answers_of_more_users_let_new_items_further_in() -> None:
    new = np.arange(ITEMS) % 5 == 0
    blurred = circle() + 0.2 * np.random.default_rng(1).normal(size=circle().shape)
    both = [view("hybrid", circle(), "table"), view("content", blurred)]
    views, follow = as_new(both, nobody(), new)
    after = np.arange(1, ITEMS + 1, dtype=np.int32) % ITEMS + 1

    def ask(which: np.ndarray, times: int = 1) -> Questions:
        users = np.tile(np.flatnonzero(which), times)
        return Questions([np.array([user + 1], np.int32) for user in users], after[users])

    weights, unknown = {"hybrid": 0.5, "content": 0.5}, new[after - 1]
    few, many = (
        choose_partial_factors(views, follow, weights, ask(~unknown, times), ask(unknown))
        for times in (1, 100)
    )

    assert many[0]["content"] > few[0]["content"]
    assert 0.98 <= many[1]["known_kept"] < few[1]["known_kept"]


def test_without_any_part_nothing_can_be_ranked() -> None:
    torch.manual_seed(0)
    split = leave_one_out(Interactions.of(walks(4)), ITEMS)
    ranker = Ranker.of([], {})

    with pytest.raises(ValueError, match="at least one view"):
        ranker.scores(split.train)
