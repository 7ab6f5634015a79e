import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from models.item import Catalogue, Item
from training import JobError
from training.config import read_config
from training.interactions import Interactions, by_time, leave_one_out
from training.prepare import histories, prepare
from training.ranking import sample_negatives
from training.recipe import Run
from training.sources import Events, movielens, tabular


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


ITEMS = "".join(
    json.dumps({"item_id": str(n), "attributes": {"title": f"Item {n}"}}) + "\n" for n in range(20)
)
EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"u{user},{(user + step) % 20},{step}\n" for user in range(6) for step in range(4)
)


def run_of(folder: Path, data: Path, *changes: str) -> Run:
    config = folder / "run.toml"
    config.write_text(
        f'name = "t"\nfolder = "{folder}/run"\ncache = "{folder}/cache"\n'
        f'[data]\nsource = "tabular"\npath = "{data}"\n[llm]\npath = "none"\n'
    )
    return Run(read_config(config, list(changes)))


def test_a_source_becomes_a_catalogue_histories_and_negatives(tmp_path: Path) -> None:
    run = run_of(tmp_path, write(tmp_path / "data", items__jsonl=ITEMS, interactions__csv=EVENTS))

    step = prepare(run)

    assert step.facts["items"] == 20
    assert step.facts["users"] == 6
    assert len(Interactions.load(step.folder).rows) == 24


def test_a_finished_step_is_reused_and_changed_data_starts_over(tmp_path: Path) -> None:
    data = write(tmp_path / "data", items__jsonl=ITEMS, interactions__csv=EVENTS)
    run = run_of(tmp_path, data)
    first = prepare(run)
    stamp = (first.folder / "done.json").stat().st_mtime_ns

    again = prepare(run)
    assert (again.folder / "done.json").stat().st_mtime_ns == stamp

    (data / "interactions.csv").write_text(EVENTS + "u0,9,9\n")
    assert prepare(run).facts["interactions"] == 25


@pytest.mark.parametrize(
    ("items", "events", "message"),
    [
        ("", EVENTS, r"items\.jsonl holds no item"),
        (ITEMS, "", r"interactions\.csv is empty"),
        (ITEMS, "user_id,item_id\n", r"interactions\.csv holds no interaction"),
        (ITEMS + "{}\n", EVENTS, r"items\.jsonl:21: item_id"),
        (ITEMS + ITEMS[: ITEMS.index("\n") + 1], EVENTS, "'0' stands twice"),
        (ITEMS, EVENTS + "u9,3\n", r"interactions\.csv:26: 2 columns, not 3"),
        (ITEMS, EVENTS + "u9,3,soon\n", r"interactions\.csv:26: timestamp: 'soon'"),
        (ITEMS, EVENTS + "u9,3,nan\n", r"interactions\.csv:26: timestamp: 'nan'"),
        (ITEMS, EVENTS + "u9,,3\n", r"interactions\.csv:26: item_id is empty"),
        (ITEMS, EVENTS.replace("user_id", "user"), "no column user_id"),
        (
            ITEMS,
            "user_id,item_id\nu1,1\nu1,2\n",
            "none of 1 users has 3 interactions or more; gather",
        ),
        (ITEMS, "user_id,item_id\nu1,1\nu2,1\n", r"name it in data\.columns\.user"),
        (ITEMS, "user_id,item_id\nu1,x1\nu2,x2\n", r"'x1' \(interactions\.csv:2\) is none of 20"),
        (ITEMS, "user_id,item_id\nu1,1\nu1,2\nu1,3\n", "no user has 4 interactions"),
    ],
)
def test_wrong_data_is_named_by_file_line_and_field_and_leaves_no_result(
    tmp_path: Path, items: str, events: str, message: str
) -> None:
    data = write(tmp_path / "data", items__jsonl=items, interactions__csv=events)

    with pytest.raises(JobError, match=message):
        prepare(run_of(tmp_path, data))

    assert not (tmp_path / "run" / "prepare" / "done.json").exists()


def test_interactions_with_unknown_items_are_counted_and_dropped_or_fail(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data", items__jsonl=ITEMS, interactions__csv=EVENTS + "u0,99,9\nu1,98,9\n"
    )

    assert prepare(run_of(tmp_path, data)).facts["interactions_with_unknown_items"] == 2
    with pytest.raises(JobError, match=r"2 interactions refer to 2 unknown items \('98', '99'\)"):
        prepare(run_of(tmp_path, data, "data.unknown_items=fail"))


def test_histories_are_in_time_and_equal_times_keep_the_order_of_the_source() -> None:
    catalogue = Catalogue([Item(item_id=i, attributes={"t": i}) for i in "abcd"])
    events = Events(["u", "u", "v", "u", "u"], list("abcdc"), [5.0, 1.0, 0.0, 5.0, 1.0], ["x"] * 5)

    found = histories(events, catalogue)

    ids = ["", *catalogue.ids]
    by_user = {u: [ids[r] for r in h] for u, h in zip(found.users, found.histories(), strict=True)}
    assert by_user == {"u": ["b", "c", "a", "d"], "v": ["c"]}


def test_negatives_are_fixed_and_never_in_the_users_history() -> None:
    random = np.random.default_rng(0)
    users = [random.permutation(np.arange(1, 31))[:10].tolist() for _ in range(20)]
    split = leave_one_out(Interactions.of(users), items=30)

    drawn = sample_negatives(split, 15, seed=7)

    for user, history in enumerate(users):
        assert not set(drawn[user]) & set(history)
        assert len(set(drawn[user])) == 15
    np.testing.assert_array_equal(drawn, sample_negatives(split, 15, seed=7))
    assert sample_negatives(split, 21, seed=7).shape == (20, 20)  # 30 items, of which 10 were used
    everything = leave_one_out(Interactions.of([[1, 2, 3]]), items=3)
    with pytest.raises(ValueError, match="a user has used all 3 items"):
        sample_negatives(everything, 1, seed=7)


def test_negatives_are_drawn_for_those_who_are_tested_and_for_nobody_else() -> None:
    # By the moment 9.9 the second user is not seen again; the third is the second who is tested.
    plain = Interactions.of([[1, 2, 3], [4, 5, 1], [6, 7, 2]])
    times = np.array([1, 2, 20, 3, 4, 5, 6, 7, 20], np.float64)
    split = by_time(dataclasses.replace(plain, times=times), items=10)

    drawn = sample_negatives(split, 7, seed=7)

    assert drawn.shape == (2, 7)
    assert set(drawn[1]) == set(range(1, 11)) - {6, 7, 2}


def test_parquet_and_csv_items_hold_what_jsonl_holds(tmp_path: Path) -> None:
    rows = {"item_id": ["1", "2"], "title": ["A", "B"], "genres": [["x", "y"], None]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "items.parquet")
    events = {"user_id": ["u", "u"], "item_id": ["1", "2"], "timestamp": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(events), tmp_path / "events.parquet")
    write(tmp_path, items__csv='item_id,title\n1,"A, B"\n2,C\n')

    source = tabular.load(tmp_path, "items.parquet", "events.parquet")

    assert source.items[0].attributes == {"title": "A", "genres": ["x", "y"]}
    assert source.events.times == [1.0, 2.0]
    other = tabular.load(tmp_path, "items.csv", "events.parquet")
    assert [item.attributes for item in other.items] == [{"title": "A, B"}, {"title": "C"}]


def test_the_forms_of_movielens_read_alike(tmp_path: Path) -> None:
    recbole = write(
        tmp_path / "recbole",
        **{
            "ml-100k__inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            "1\t7\t3\t10\n",
            "ml-100k__item": "item_id:token\tmovie_title:token_seq\trelease_year:token\t"
            "class:token_seq\n7\tHeat\t1995\tAction Crime\n",
        },
    )
    flags = "|".join(
        "1" if genre in {"Action", "Crime"} else "0" for genre in movielens.GENRES_100K
    )
    hundred = write(
        tmp_path / "hundred",
        u__data="1\t7\t3\t10\n",
        u__item=f"7|Heat (1995)|01-Jan-1995||http://x|{flags}\n",
    )
    million = write(
        tmp_path / "million",
        ratings__dat="1::7::3::10\n",
        movies__dat="7::Heat (1995)::Action|Crime\n",
    )
    latest = write(
        tmp_path / "latest",
        ratings__csv="userId,movieId,rating,timestamp\n1,7,3.0,10\n",
        movies__csv="movieId,title,genres\n7,Heat (1995),Action|Crime\n",
    )

    for folder in (recbole, hundred, million, latest):
        source = movielens.load(folder)
        assert source.items == [
            Item(
                item_id="7",
                attributes={"title": "Heat", "release_year": "1995", "genres": ["Action", "Crime"]},
            )
        ], folder
        assert (source.events.users, source.events.items) == (["1"], ["7"])
        assert source.events.times == [10.0]
    with pytest.raises(JobError, match="holds no MovieLens data"):
        movielens.load(tmp_path)


def test_data_may_be_a_zip_file_or_a_url_of_one(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("set/items.jsonl", ITEMS)
        archive.writestr("set/interactions.csv", EVENTS)
    file = tmp_path / "set.zip"
    file.write_bytes(packed.getvalue())

    assert prepare(run_of(tmp_path, file)).facts["users"] == 6
    assert prepare(run_of(tmp_path, Path("x"), f"data.path={file.as_uri()}")).facts["users"] == 6
    with pytest.raises(JobError, match=r"there is no folder or \.zip file .*ml-100k"):
        prepare(run_of(tmp_path, tmp_path / "missing"))
