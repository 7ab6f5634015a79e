import dataclasses

import numpy as np

from models.bundle_writing import TrainedView
from models.sequence import build
from training.ranking import Ranker

# On a line, so that an item's score after the history [x] is x times its own place, standardised.
PLACES = np.array([[-2.0], [-1.0], [0.5], [1.0], [1.5]], np.float32)


def line(name: str = "text") -> Ranker:
    everyone = np.ones(5, bool)
    view = TrainedView(
        name=name,
        source="content",
        sequence_model="mean",
        options={},
        max_history=1,
        weight=1.0,
        model=build("mean", 1, 1),
        items=PLACES,
        present=everyone,
        trained=everyone,
    )
    return Ranker.of([view], {name: 1.0})


def test_the_three_protocols_by_hand() -> None:
    # After item 5 the order is 5 4 3 2 1. The target is 3: behind 4 without the history, behind 5
    # and 4 with it, and behind neither of the negatives 1 and 2.
    history, target = [np.array([5], np.int32)], np.array([3], np.int32)

    found = line().ranks_by_protocol(history, target, np.array([[1, 2]], np.int32))

    assert {name: ranks.tolist() for name, ranks in found.items()} == {
        "full": [2.0],
        "unfiltered": [3.0],
        "sampled": [1.0],
    }
    assert line().ranks(history, target).tolist() == [2.0]


def test_banned_items_are_no_candidates() -> None:
    history, target = [np.array([5], np.int32)], np.array([3], np.int32)
    banned = np.array([False, False, False, True, False])

    assert line().ranks(history, target, banned=banned).tolist() == [1.0]


def test_own_words_of_an_item_that_lacks_a_view_count_nothing_either() -> None:
    # As above, with items 4 and 5 lacking a table: their words then count twice.
    shown = line("content").views[0]
    lacking = np.array([True, True, True, False, False])
    table = dataclasses.replace(shown, name="id", source="table", present=lacking)
    ranker = Ranker.of([shown, table], {"content": 1.0, "id": 1e-6}, {"content": 2.0})
    history, target = [np.array([3, 5], np.int32)], np.array([5], np.int32)

    found = ranker.ranks_by_protocol(history, target, np.array([[1]], np.int32))

    assert found["unfiltered"].tolist() == [3.0]  # behind 4, and 3 by its table


def test_a_history_items_own_words_count_nothing_when_it_may_come_back() -> None:
    # In the content view item 5 would be the best after itself; at 0 it stands behind 4 and 3,
    # whose scores are positive, as the mean place is 0.
    history = [np.array([5], np.int32)]

    found = line("content").ranks_by_protocol(
        history, np.array([5], np.int32), np.array([[1]], np.int32)
    )

    assert found["unfiltered"].tolist() == [3.0]
    assert found["full"].tolist() == [np.inf]  # a repeat is a miss where the history is excluded
