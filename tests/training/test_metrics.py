import numpy as np
import pytest

from training.metrics import hit_rate, interval, ndcg, ranks

SCORES = np.array([[0.1, 0.9, 0.5, 0.5], [4.0, 3.0, 2.0, 1.0]], np.float32)
NOBODY = np.zeros((2, 4), bool)


def test_ranks_count_from_one_and_ties_take_the_mean_rank() -> None:
    # First user: 0.9 is best, the two 0.5 share places 2 and 3. Second user: target is last.
    assert ranks(SCORES, np.array([2, 3]), NOBODY).tolist() == [2.5, 4.0]


def test_excluded_items_take_no_place() -> None:
    excluded = NOBODY.copy()
    excluded[0, 1] = True

    assert ranks(SCORES, np.array([2, 3]), excluded).tolist() == [1.5, 4.0]


def test_a_repeat_of_a_history_item_counts_as_a_miss() -> None:
    excluded = NOBODY.copy()
    excluded[1, 0] = True

    rank = ranks(SCORES, np.array([1, 0]), excluded)

    assert rank.tolist() == [1.0, np.inf]
    assert hit_rate(rank, 10).tolist() == [1.0, 0.0]
    assert ndcg(rank, 10).tolist() == [1.0, 0.0]


def test_a_constant_scorer_gets_chance() -> None:
    items, users = 101, 500
    targets = np.random.default_rng(0).integers(items, size=users)

    rank = ranks(np.ones((users, items), np.float32), targets, np.zeros((users, items), bool))

    # Every target stands in the middle: no better than chance, whatever its column.
    assert (rank == 51).all()
    assert hit_rate(rank, 10).mean() <= 10 / items


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_raises(value: float) -> None:
    scores = SCORES.copy()
    scores[0, 0] = value

    with pytest.raises(ValueError, match="not finite"):
        ranks(scores, np.array([2, 3]), NOBODY)


def test_ndcg_and_hit_rate_by_hand() -> None:
    rank = np.array([1.0, 3.0, 10.0, 10.5, 11.0])

    assert hit_rate(rank, 10).tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(ndcg(rank, 10), [1.0, 0.5, 1 / np.log2(11), 0.0, 0.0])


def test_an_interval_holds_the_mean_and_narrows_with_more_users() -> None:
    random = np.random.default_rng(0)
    few, many = random.random(50), random.random(5000)

    low, high = interval(few, 500)
    lower, higher = interval(many, 500)

    assert low < few.mean() < high
    assert higher - lower < (high - low) / 5
