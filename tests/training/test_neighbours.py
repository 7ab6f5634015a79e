import numpy as np
import pytest

from training.config import NeighboursSpec
from training.neighbours import fit_neighbours


def spec(**changes: object) -> NeighboursSpec:
    plain = {
        "per_item": 3,
        "window": 2,
        "gap_decay": 0.5,
        "backward": 0.0,
        "item_power": 0.0,
        "neighbour_power": 0.0,
    }
    return NeighboursSpec(**{**plain, **changes})  # type: ignore[arg-type]


def weights_of(*histories: list[int], **changes: object) -> dict[tuple[int, int], float]:
    rows = [np.array(history, np.int32) for history in histories]
    fitted = fit_neighbours(rows, 4, spec(**changes))
    return {
        (item + 1, int(row)): pytest.approx(float(weight))
        for item in range(4)
        for row, weight in zip(fitted.rows[item], fitted.weights[item], strict=True)
        if row
    }


def test_the_next_item_counts_more_than_the_one_after() -> None:
    assert weights_of([1, 2, 3]) == {(1, 2): 1.0, (2, 3): 1.0, (1, 3): 0.5}


def test_what_is_further_apart_than_the_window_does_not_count() -> None:
    assert (1, 4) not in weights_of([1, 2, 3, 4])
    assert (1, 4) in weights_of([1, 2, 3, 4], window=3)


def test_the_earlier_of_a_pair_follows_the_later_at_a_discount() -> None:
    assert weights_of([1, 2], [2, 1], backward=0.5) == {(1, 2): 1.5, (2, 1): 1.5}


def test_the_popular_are_divided_by_their_count() -> None:
    found = weights_of([1, 2], [3, 2], [4, 2], item_power=1.0, neighbour_power=0.5)

    assert found == {(item, 2): 3**-0.5 for item in (1, 3, 4)}  # 2 was used three times


def test_an_item_never_follows_itself() -> None:
    assert weights_of([1, 1, 2]) == {(1, 2): 1.5}


def test_the_heaviest_neighbours_are_kept() -> None:
    assert weights_of([1, 2], [1, 2], [1, 3], per_item=1) == {(1, 2): 2.0}


def test_histories_of_one_item_give_no_neighbours() -> None:
    assert weights_of([1], [2]) == {}
