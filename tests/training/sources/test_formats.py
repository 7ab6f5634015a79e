"""Published formats by their names, and through `prepare`."""

from pathlib import Path
from typing import get_args

import pytest

from tests.training.sources.samples import objects, review
from tests.training.test_prepare import run_of
from training import JobError
from training.config import Data
from training.interactions import Interactions
from training.prepare import prepare, read_prepared
from training.sources.formats import FORMATS


def test_the_configuration_knows_every_format() -> None:
    known = get_args(Data.model_fields["source"].annotation)

    assert set(known) == {*FORMATS, "tabular"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yelp", r"no Yelp data: neither yelp_academic_dataset_review\.json nor .*\.gz"),
        ("steam", r"no Steam data: neither steam_reviews\.json nor steam_reviews\.json\.gz"),
        ("mind", r"no MIND data: neither behaviors\.tsv nor"),
        ("recbole", r"no RecBole data: no NAME\.inter"),
        ("movielens", r"no MovieLens data: none of ml-100k\.inter"),
    ],
)
def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        FORMATS[name].files(tmp_path)


def test_prepare_reads_a_published_format_and_leaves_its_core(tmp_path: Path) -> None:
    # Four users use a, b, c and d. `one` has a single user. `unknown` has no metadata: without it,
    # w has three interactions and goes.
    data = tmp_path / "data"
    data.mkdir()
    objects(
        data / "X_5.json.gz",
        *(review(f"u{n}", item, t) for n in range(4) for t, item in enumerate("abcd")),
        review("u0", "one", 9),
        review("u0", "a", 10),
        *(review("w", item, t) for t, item in enumerate(["a", "b", "c", "unknown"])),
        *(review(f"u{n}", "unknown", 20) for n in range(4)),
    )
    objects(data / "meta_X.json.gz", *({"asin": i, "title": i} for i in [*"abcd", "one"]))
    run = run_of(tmp_path, data, "data.source=amazon", "data.core=4")

    step = prepare(run)

    catalogue, _ = read_prepared(run)
    assert sorted(catalogue.ids) == ["a", "b", "c", "d"]
    assert step.facts["interactions"] == 16
    assert step.facts["interactions_with_unknown_items"] == 5
    assert step.facts["interactions_repeated"] == 1
    loaded = Interactions.load(step.folder)
    assert loaded.users == ["u0", "u1", "u2", "u3"]
    ids = ["", *catalogue.ids]
    assert ["".join(ids[row] for row in history) for history in loaded.histories()] == ["abcd"] * 4


def test_prepare_says_when_nothing_is_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    objects(data / "X.json", *(review("u", item, 1) for item in "abcd"))
    objects(data / "meta_X.json", *({"asin": item, "title": item} for item in "abcd"))
    run = run_of(tmp_path, data, "data.source=amazon", "data.core=2")

    with pytest.raises(JobError, match=r"data\.core: of 4 interactions none is left"):
        prepare(run)

    objects(data / "meta_X.json", {"asin": "e", "title": "e"})
    with pytest.raises(JobError, match=r"X\.json and meta_X\.json hold no item with attributes"):
        prepare(run)
    objects(data / "X.json")
    with pytest.raises(JobError, match=r"X\.json and meta_X\.json hold no interaction"):
        prepare(run)
