from pathlib import Path

import numpy as np

from training.cold import ColdItems
from training.interactions import Interactions, leave_one_out

HISTORIES = [[1, 2, 3, 4, 5], [2, 3, 6, 4, 1], [6, 1, 2, 3, 4], [1, 5, 2, 6, 3]]
INTERACTIONS = Interactions.of(HISTORIES)
HELD = ColdItems(validation=np.array([5], np.int32), test=np.array([6], np.int32))


def test_the_query_is_the_history_before_the_first_held_out_item() -> None:
    asked = HELD.questions(INTERACTIONS, HELD.test)

    # User 0 meets no 6; user 1 meets it after 2, 3; user 2 begins with it; user 3 meets 5 first.
    assert [history.tolist() for history in asked.histories] == [[2, 3]]
    assert asked.targets.tolist() == [6]
    asked = HELD.questions(INTERACTIONS, HELD.validation)
    assert [history.tolist() for history in asked.histories] == [[1, 2, 3, 4], [1]]


def test_held_out_items_leave_every_history_and_every_count() -> None:
    left = INTERACTIONS.without(np.array([5, 6], np.int32))
    split = leave_one_out(left, 6)

    assert [history.tolist() for history in left.histories()] == [
        [1, 2, 3, 4],
        [2, 3, 4, 1],
        [1, 2, 3, 4],
        [1, 2, 3],
    ]
    assert split.counts[5] == split.counts[6] == 0
    assert not np.isin([5, 6], np.concatenate([split.validation, split.test, *split.train])).any()


def test_a_user_with_nothing_else_is_gone() -> None:
    few = Interactions.of([[5, 6], [1, 5]]).without(np.array([5, 6], np.int32))

    assert few.users == ["1"]
    assert [history.tolist() for history in few.histories()] == [[1]]


def test_two_disjoint_tenths_of_the_used_items_are_drawn() -> None:
    many = Interactions.of([list(range(1, 101)), [5, 7, 9]])

    drawn = ColdItems.draw(many, 0.1, seed=0)

    assert len(drawn.validation) == len(drawn.test) == 10
    assert not np.intersect1d(drawn.validation, drawn.test).size
    again = ColdItems.draw(many, 0.1, seed=0)
    np.testing.assert_array_equal(drawn.test, again.test)
    assert drawn.mask(120).sum() == 20


def test_what_was_drawn_is_read_back(tmp_path: Path) -> None:
    HELD.save(tmp_path)
    found = ColdItems.load(tmp_path)

    assert found is not None
    assert (found.validation.tolist(), found.test.tolist()) == ([5], [6])
    assert ColdItems.load(tmp_path / "elsewhere") is None
