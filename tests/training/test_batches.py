import numpy as np

from training.batches import batches, pad_left, windows

SHORT, LONG, ONE = np.arange(1, 4), np.arange(1, 31), np.array([9])


def test_each_next_item_is_a_target_and_the_latest_items_are_a_window() -> None:
    pieces = windows([LONG], max_history=10, random=np.random.default_rng(0))

    targets = {int(row) for piece in pieces for row in piece[1:]}
    assert targets == set(range(2, 31))
    assert all(2 <= len(piece) <= 11 for piece in pieces)
    assert any(piece.tolist() == list(range(20, 31)) for piece in pieces)


def test_a_history_of_one_item_has_no_target() -> None:
    pieces = windows([ONE, SHORT], max_history=10, random=np.random.default_rng(0))

    assert [piece.tolist() for piece in pieces] == [[1, 2, 3]]


def test_padding_stands_before_the_history() -> None:
    assert pad_left([SHORT, ONE]).tolist() == [[1, 2, 3], [0, 0, 9]]


def test_batches_hold_every_window_once_within_the_budget() -> None:
    random = np.random.default_rng(0)
    pieces = [np.full(length, mark) for mark, length in enumerate([2, 9, 3, 3, 8, 40], 1)]

    found = list(batches(pieces, batch_tokens=20, random=random))

    marks = sorted(int(row.max()) for batch in found for row in batch)
    assert marks == [1, 2, 3, 4, 5, 6]
    assert all(batch.size <= 20 or len(batch) == 1 for batch in found)
    assert len(found) < len(pieces)


def test_the_same_seed_gives_the_same_batches() -> None:
    def draw(seed: int) -> list[list[list[int]]]:
        random = np.random.default_rng(seed)
        pieces = windows([LONG, SHORT] * 5, 10, random)
        return [batch.tolist() for batch in batches(pieces, 30, random)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
