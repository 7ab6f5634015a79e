from pathlib import Path

import pytest

from tests.training.sources.samples import attributes, interactions, lines
from training import JobError
from training.sources import movielens, recbole


def test_recbole_fields_become_attributes_by_their_types(tmp_path: Path) -> None:
    lines(
        tmp_path / "set.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "u\t7\t3\t10.5",
        "u\t7\t3\t11",
    )
    lines(
        tmp_path / "set.item",
        "item_id:token\tmovie_title:token_seq\tgenre:token_seq\ttags:token_seq\tyear:token\t"
        "length:float\tshape:float_seq",
        "7\tToy Story 2\tDrama Crime\tActive Life, Food\t1995\t90.5\t1 2.5",
        "8\tHeat\t\t\t\tnan\t",
    )

    source = recbole.load(tmp_path)

    assert attributes(source) == {
        "7": {
            "movie_title": "Toy Story 2",
            "genre": ["Drama", "Crime"],
            "tags": ["Active Life", "Food"],
            "year": "1995",
            "length": 90.5,
            "shape": [1.0, 2.5],
        },
        "8": {"movie_title": "Heat"},
    }
    assert interactions(source) == [("u", "7", 10.5), ("u", "7", 11.0)]


def test_recbole_without_timestamps_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    lines(tmp_path / "set.inter", "user_id:token\titem_id:token", "u\t8", "u\t7")
    lines(tmp_path / "set.item", "item_id:token\tname:token", "7\tA", "8\tB")

    events = recbole.load(tmp_path).events

    assert (events.items, events.times) == (["8", "7"], None)


def test_recbole_reads_movielens_too(tmp_path: Path) -> None:
    lines(
        tmp_path / "ml-100k.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "1\t7\t3\t10",
    )
    lines(
        tmp_path / "ml-100k.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "7\tHeat\t1995\tAction Crime",
    )

    by_recbole, by_movielens = recbole.load(tmp_path), movielens.load(tmp_path)

    assert by_recbole.events == by_movielens.events
    assert attributes(by_recbole) == {
        "7": {"movie_title": "Heat", "release_year": "1995", "class": ["Action", "Crime"]}
    }


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ("user_id:token", "item_id:token\ta:token", r"s\.inter:2: there is no field item_id"),
        ("user_id:token\titem_id:token", "item_id:token\ta:word", r"s\.item:2: column a:word"),
        ("user_id:token\titem_id:token", "item_id:token\ta:float", r"s\.item:2: a: 'x' is not a"),
        ("user_id:token\titem_id:token", "id:token\ta:token", r"s\.item:2: there is no field item"),
        ("user_id:token\titem_id:token\ttimestamp:float", "item_id:token\ta:token", "'x' is not"),
    ],
)
def test_wrong_atomic_files_are_named(tmp_path: Path, inter: str, item: str, message: str) -> None:
    lines(tmp_path / "s.inter", inter, "\t".join("x" for _ in inter.split()))
    lines(tmp_path / "s.item", item, "x\tx")

    with pytest.raises(JobError, match=message):
        recbole.load(tmp_path)


def test_recbole_needs_items_and_one_data_set(tmp_path: Path) -> None:
    lines(tmp_path / "a.inter")
    with pytest.raises(JobError, match=r"holds a\.inter but no a\.item"):
        recbole.files(tmp_path)

    lines(tmp_path / "b.inter")
    with pytest.raises(JobError, match=r"several RecBole data sets \(a\.inter, b\.inter\)"):
        recbole.files(tmp_path)
