"""Ids by place and places by id, as a list and a dictionary have them."""

import numpy as np
import pytest

from service import ids as module
from service.ids import Ids

SOME = ["b", "a/b", "", "é", "🎬 1", "x" * 512, "a", "\x00", "item-10", "item-1"]


def test_who_stands_at_a_place_and_where_an_id_stands() -> None:
    ids = Ids.of(iter(SOME))

    assert list(ids) == SOME
    assert len(ids) == len(SOME)
    assert [ids.place(each) for each in SOME] == list(range(len(SOME)))
    assert ids.places(["a", "nobody", "é"]).tolist() == [6, -1, 3]
    assert ids.places([]).tolist() == []


def test_an_id_stands_where_it_stands_last() -> None:
    ids = Ids.of(["a", "b", "a"]).joined(Ids.of(["c", "b"])).joined(Ids.of([]))

    assert list(ids) == ["a", "b", "a", "c", "b"]
    assert ids.places(["a", "b", "c"]).tolist() == [2, 4, 3]


def test_ids_whose_hashes_are_equal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASH_BITS", 1)
    names = [str(number) for number in range(50)]

    ids = Ids.of(names[:30]).joined(Ids.of(names[30:]))

    assert ids.places([*names, "50"]).tolist() == [*range(50), -1]


def test_what_is_no_text_is_nobodys_id() -> None:
    assert Ids.of(SOME).place("\ud800") == -1
    assert Ids.of([]).place("a") == -1


def test_many_ids_take_few_bytes_and_are_found_after_many_joins() -> None:
    names = [f"item-{number}" for number in np.random.default_rng(0).permutation(20_000)]
    ids = Ids.of(names[:10_000])
    for first in range(10_000, 20_000, 500):
        ids = ids.joined(Ids.of(names[first : first + 500]))

    assert list(ids) == names
    assert ids.places(names).tolist() == list(range(20_000))
    assert ids.nbytes < 20_000 * (16 + 11)
