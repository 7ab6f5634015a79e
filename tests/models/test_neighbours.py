import numpy as np
import pytest

from models.neighbours import Neighbours

# After item 1 come 2 (weight 4) and 3 (weight 2); after 2 comes 3 (weight 1); 3 and 4 have none.
ROWS = np.array([[2, 3], [3, 0], [0, 0], [0, 0]], np.int32)
WEIGHTS = np.array([[4, 2], [1, 0], [0, 0], [0, 0]], np.float32)


def neighbours(**changes: object) -> Neighbours:
    given = {"rows": ROWS, "weights": WEIGHTS, "decay": 0.5, "latest": 2, **changes}
    return Neighbours(**given)  # type: ignore[arg-type]


def test_what_follows_the_latest_item_counts_most() -> None:
    rows, scores = neighbours().scores([1, 2])

    # Item 2 has age 0, item 1 age 1: 2 gets 0.5 * 4 = 2, and 3 gets 1 + 0.5 * 2 = 2.
    assert rows.tolist() == [2, 3]
    np.testing.assert_allclose(scores, [2 / np.sqrt(2), 2 / np.sqrt(2)], rtol=1e-6)


def test_scores_have_a_mean_square_of_one_over_the_training_items() -> None:
    for history in ([1], [2], [1, 2], [2, 1]):
        assert (neighbours().table([history]) ** 2).mean() == pytest.approx(1.0)


def test_only_the_latest_known_items_are_read() -> None:
    # Items that training did not know (0) are skipped and age nothing.
    for history in ([2, 1], [3, 3, 2, 1], [2, 0, 0, 1]):
        rows, scores = neighbours().scores(history)
        assert rows.tolist() == [2, 3]
        np.testing.assert_allclose(scores, neighbours().scores([2, 1])[1])


@pytest.mark.parametrize("history", [[], [0], [3], [4, 3]])
def test_a_history_that_nothing_follows_scores_nobody(history: list[int]) -> None:
    rows, scores = neighbours().scores(history)

    assert len(rows) == len(scores) == 0
    assert not neighbours().table([history]).any()


def test_a_table_holds_the_scores_of_each_history() -> None:
    table = neighbours().table([[1], [2]])

    assert table.shape == (2, 4)
    assert (table[0] > 0).tolist() == [False, True, True, False]
    assert (table[1] > 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": WEIGHTS[:, :1]}, "do not match"),
        ({"rows": ROWS + 5}, "none of the 4 items"),
        ({"weights": -WEIGHTS}, "negative"),
        ({"weights": WEIGHTS * np.nan}, "not finite"),
    ],
)
def test_tables_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbours(**changes)
