import dataclasses
from pathlib import Path

import numpy as np
import pytest

from training.interactions import Interactions, by_time, leave_one_out


def test_the_last_item_tests_and_the_one_before_validates() -> None:
    split = leave_one_out(Interactions.of([[1, 2, 3, 4], [4, 2, 1]]), items=5)

    assert [history.tolist() for history in split.train] == [[1, 2], [4]]
    assert split.validation.tolist() == [3, 2]
    assert split.test.tolist() == [4, 1]
    assert [history.tolist() for history in split.test_histories] == [[1, 2, 3], [4, 2]]


def test_users_who_do_not_validate_train_on_all_but_the_last_item() -> None:
    histories = [[1, 2, 3, 4], [4, 2, 1], [5, 4, 3, 2, 1]]

    split = leave_one_out(Interactions.of(histories), items=5, validation_users=1)

    assert len(split.validating) == len(split.validation) == 1
    for user, history in enumerate(histories):
        validates = user in split.validating
        assert split.train[user].tolist() == history[: -2 if validates else -1]
        assert split.test_histories[user].tolist() == history[:-1]
        assert split.test[user] == history[-1]
    assert split.validation.tolist() == [histories[split.validating[0]][-2]]
    assert [h.tolist() for h in split.validation_histories] == [
        split.train[split.validating[0]].tolist()
    ]


def test_the_seed_draws_who_validates() -> None:
    interactions = Interactions.of([[1, 2, 3]] * 100)

    one, again, other = (
        leave_one_out(interactions, items=3, validation_users=10, seed=seed) for seed in (0, 0, 1)
    )

    assert one.validating.tolist() == again.validating.tolist() != other.validating.tolist()
    assert len(set(one.validating.tolist())) == 10


def test_counts_come_from_the_training_split_alone() -> None:
    split = leave_one_out(Interactions.of([[1, 2, 3, 4], [4, 2, 1]]), items=5)

    assert split.counts.tolist() == [0, 1, 1, 0, 1, 0]


def test_users_too_short_to_split_are_left_out() -> None:
    split = leave_one_out(Interactions.of([[1, 2], [1, 2, 3], [5]]), items=5)

    assert split.test.tolist() == [3]
    with pytest.raises(ValueError, match="none of 2 users has 3 interactions"):
        leave_one_out(Interactions.of([[1, 2], [5]]), items=5)


def timed(*histories: list[tuple[int, float]]) -> Interactions:
    """Histories of (item, time)."""
    plain = Interactions.of([[item for item, _ in history] for history in histories])
    times = np.array([time for history in histories for _, time in history], np.float64)
    return dataclasses.replace(plain, times=times)


def test_a_split_by_time_tests_on_what_everybody_did_first_after_one_moment() -> None:
    interactions = timed(
        [(1, 1), (2, 2), (3, 3), (4, 98), (5, 99)],  # known before, and tested by item 4
        [(5, 97)],  # came after the moment: of no use
        [(2, 4), (3, 5)],  # never came again: trains
        [(1, step) for step in range(6, 26)],
    )

    split = by_time(interactions, items=5, validation_users=0)

    assert [history.tolist() for history in split.train[:2]] == [[1, 2, 3], [2, 3]]
    assert len(split.train) == 3
    assert split.testing.tolist() == [0]
    assert split.test.tolist() == [4]
    assert [history.tolist() for history in split.test_histories] == [[1, 2, 3]]
    assert split.counts[4:].tolist() == [0, 0]


def test_in_a_split_by_time_the_last_item_before_the_moment_validates() -> None:
    split = by_time(timed([(1, 1), (2, 2), (3, 90)], [(2, 1), (1, 2), (3, 3)]), items=3)

    assert [history.tolist() for history in split.train] == [[1], [2, 1]]
    assert split.validation.tolist() == [2, 3]
    assert [history.tolist() for history in split.test_histories] == [[1, 2]]


def test_places_in_each_history_are_no_times() -> None:
    with pytest.raises(ValueError, match="only count each user's interactions"):
        by_time(timed([(1, 0), (2, 1), (3, 2)], [(2, 0), (1, 1)]), items=3)


def test_a_split_by_time_needs_times_and_somebody_on_both_sides() -> None:
    with pytest.raises(ValueError, match="needs the time of every interaction"):
        by_time(Interactions.of([[1, 2, 3]]), items=3)
    with pytest.raises(ValueError, match="two interactions before, and another after, one moment"):
        by_time(timed([(1, 1), (2, 1), (3, 1)]), items=3)


def test_the_head_is_the_top_fifth_and_ties_at_its_boundary_go_to_the_tail() -> None:
    clear = leave_one_out(Interactions.of([[1, 1, 1, 2, 2, 3, 4, 5, 1, 1]]), items=5)
    tied = leave_one_out(Interactions.of([[1, 1, 2, 2, 3, 4, 5, 1, 1]]), items=5)

    assert np.flatnonzero(clear.head()).tolist() == [1]
    assert np.flatnonzero(tied.head()).tolist() == []


def test_saving_interactions_changes_nothing(tmp_path: Path) -> None:
    interactions = Interactions.of([[3, 1, 2], [2]])

    interactions.save(tmp_path)

    loaded = Interactions.load(tmp_path)
    assert [h.tolist() for h in loaded.histories()] == [[3, 1, 2], [2]]
    assert loaded.users == interactions.users
