"""A finished run, written for other software and read back as that software reads it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from models.projection import Projection
from tests.end_to_end.conftest import write_config, write_data
from training.__main__ import main
from training.config import read_config
from training.encode import read_llm_vectors
from training.formats import linears_of
from training.prepare import read_prepared
from training.rat import read_trained
from training.recipe import Run


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return Run(read_config(trained.parent / "run.toml", [], None))


def exported(trained: Path, form: str, *more: str) -> Path:
    config = str(trained.parent / "run.toml")
    assert main(["export", "--config", config, "--format", form, *more]) == 0
    return trained / form


def view(run: Run, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    found = read_trained(run).views[name]
    return found.items, found.present


def test_npy_has_ids_and_every_view_in_row_order(trained: Path, run: Run) -> None:
    folder = exported(trained, "npy")

    catalogue, _ = read_prepared(run)
    ids = json.loads((folder / "item_ids.json").read_text())
    assert ids == [item.item_id for item in catalogue]
    llm = np.load(folder / "llm.npy")
    assert llm.dtype == np.float32
    np.testing.assert_array_equal(llm, read_llm_vectors(run.finished("encode")))
    for name in read_trained(run).weights.keys() - {"neighbours"}:
        items, present = view(run, name)
        vectors = np.load(folder / f"{name}.npy")
        np.testing.assert_array_equal(vectors[present], items[present])
        assert not vectors[~present].any()


def test_parquet_says_the_same(trained: Path, run: Run) -> None:
    table = pq.read_table(exported(trained, "parquet") / "items.parquet")

    assert set(table.column_names) == {"item_id", "llm", *read_trained(run).weights} - {
        "neighbours"
    }
    for name in set(table.column_names) - {"item_id", "llm"}:
        items, present = view(run, name)
        column = table[name].combine_chunks()
        np.testing.assert_array_equal(column.is_valid().to_numpy(zero_copy_only=False), present)
        told = np.array([row for row in column.to_pylist() if row is not None], np.float32)
        np.testing.assert_array_equal(told, items[present])


def test_sentence_transformers_loads_the_model_and_gives_the_same_vectors(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "moved"
    shutil.copytree(exported(trained, "sentence-transformers"), folder)

    model = SentenceTransformer(str(folder), device="cpu")

    catalogue, _ = read_prepared(run)
    bodies = [run.config.template.render(item).body for item in catalogue]
    items, _ = view(run, "text")
    # Whitening as a layer with a bias takes the mean off after the product: a few digits go.
    np.testing.assert_allclose(model.encode(bodies), items, atol=2e-4)
    np.testing.assert_allclose(model.encode(bodies[0]), items[0], atol=2e-4)


def test_sentence_transformers_runs_it_in_what_the_catalogue_was_encoded_in(
    tmp_path: Path, tiny_llm: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    changes = ["llm.dtype=bfloat16", "scft.steps=0", "rat.sequence.max_epochs=1"]
    changes += ['rat.parts=["content"]']
    arguments = ["--config", str(config), *(part for each in changes for part in ("--set", each))]
    for step in ("prepare", "scft", "encode", "rat"):
        assert main([step, *arguments]) == 0

    assert main(["export", *arguments, "--format", "sentence-transformers"]) == 0

    model = SentenceTransformer(str(tmp_path / "run" / "sentence-transformers"), device="cpu")
    assert {weight.dtype for weight in model[0].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("scaling", ["centre", "standardise", "pca", "whiten"])
def test_a_projection_is_its_linear_layers(scaling: str) -> None:
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(50, 8)) * np.arange(1, 9) + 5).astype(np.float32)
    projection = Projection(8, (8, 6, 4), scaling, unit=False, activation="gelu")  # type: ignore[arg-type]
    projection.fit(vectors)

    told = torch.from_numpy(vectors)
    with torch.no_grad():
        for linear, gelu in linears_of(projection):
            told = linear(told)
            told = torch.nn.functional.gelu(told) if gelu else told

        np.testing.assert_allclose(told, projection(torch.from_numpy(vectors)), atol=1e-4)


def test_an_export_replaces_its_own_folder_and_no_other(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(path.name for path in exported(trained, "npy").iterdir())
    assert sorted(path.name for path in exported(trained, "npy").iterdir()) == first

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    config = str(trained.parent / "run.toml")
    command = ["export", "--config", config, "--format", "npy", "--output", str(mine)]
    assert main(command) == 1

    assert "no export wrote it" in capsys.readouterr().err
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_format_goes_with_export_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(trained.parent / "run.toml")

    assert main(["rat", "--config", config, "--format", "npy"]) == 2

    assert "--format goes with export, not with rat" in capsys.readouterr().err
