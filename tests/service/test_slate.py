"""What is shown of a ranking: diversity and exploration, on examples worked out by hand."""

import numpy as np

from service.slate import arrange, candidates_for

SCORES = np.array([9.0, 8.0, 5.0, 1.0], np.float32)  # relevance 1, .875, .5 and 0
# The first two are the same, the third stands at a right angle, the fourth opposite.
UNITS = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)


def shown(diversity: float = 0.0, explore: float = 0.0, seed: int = 0, k: int = 4) -> list[int]:
    cold, tail = np.array([0, 0, 0, 1], bool), np.array([0, 1, 0, 0], bool)
    found = arrange(SCORES, UNITS, [cold, tail], k, diversity=diversity, explore=explore, seed=seed)
    return [at for at, _ in found]


def test_without_either_the_order_is_that_of_the_scores() -> None:
    assert shown() == [0, 1, 2, 3]
    assert shown(k=2) == [0, 1]
    assert shown(k=9) == [0, 1, 2, 3]


def test_an_item_like_one_before_it_comes_later() -> None:
    # After 0, at diversity .4: 1 is worth .6 * .875 - .4 = .125, 2 is worth .6 * .5 = .3, and
    # 3 is worth .4. Then 2 is worth .3 and 1 still .125.
    assert shown(diversity=0.4) == [0, 3, 2, 1]
    # At .2: .5, .4 and .2.
    assert shown(diversity=0.2) == [0, 1, 2, 3]


def test_at_full_diversity_only_likeness_counts_after_the_first() -> None:
    # The farthest from 0 is 3, then 2 has a right angle to both.
    assert shown(diversity=1.0) == [0, 3, 2, 1]


def test_items_without_the_view_are_like_nobody() -> None:
    found = arrange(SCORES, np.zeros((4, 2), np.float32), [], 4, diversity=0.9, explore=0.0, seed=0)

    assert found == [(0, False), (1, False), (2, False), (3, False)]


def test_at_full_exploration_cold_come_first_then_tail_then_the_rest() -> None:
    cold, tail = np.array([0, 0, 0, 1], bool), np.array([0, 1, 0, 0], bool)

    found = arrange(SCORES, UNITS, [cold, tail], 4, diversity=0.0, explore=1.0, seed=5)

    # Nobody is left to lift for the last two places, so they are not explored.
    assert found == [(3, True), (1, True), (0, False), (2, False)]


def test_places_are_explored_by_chance_that_the_seed_repeats() -> None:
    scores = np.arange(1000, 0, -1).astype(np.float32)
    units = np.zeros((1000, 2), np.float32)
    cold = np.arange(1000) >= 500

    def explored(explore: float, seed: int) -> set[int]:
        found = arrange(scores, units, [cold], 400, diversity=0.0, explore=explore, seed=seed)
        known = [at for at, drawn in found if not drawn]
        new = [at for at, drawn in found if drawn]
        # Each in its own order, best first, and nobody is left out in between.
        assert known == list(range(len(known)))
        assert new == list(range(500, 500 + len(new)))
        return {place for place, (_, drawn) in enumerate(found) if drawn}

    assert explored(0.25, 1) == explored(0.25, 1)
    assert explored(0.25, 1) != explored(0.25, 2)
    assert explored(0.25, 1) < explored(0.5, 1)
    assert abs(len(explored(0.25, 1)) - 100) < 30  # 3.5 deviations


def test_among_those_that_are_lifted_diversity_chooses() -> None:
    # Both places are explored: the cold one, then of the tail the best, or the one less like it.
    cold, tail = np.array([1, 0, 0, 0], bool), np.array([0, 1, 1, 0], bool)

    plain = arrange(SCORES, UNITS, [cold, tail], 2, diversity=0.0, explore=1.0, seed=0)
    diverse = arrange(SCORES, UNITS, [cold, tail], 2, diversity=0.5, explore=1.0, seed=0)

    assert plain == [(0, True), (1, True)]
    assert diverse == [(0, True), (2, True)]


def test_an_empty_ranking_shows_nothing() -> None:
    nothing = np.empty(0, np.float32)

    assert (
        arrange(nothing, np.empty((0, 2), np.float32), [], 5, diversity=1, explore=1, seed=0) == []
    )


def test_there_are_always_enough_candidates() -> None:
    assert [candidates_for(k) for k in (1, 25, 26, 500)] == [100, 100, 104, 2000]
