"""The options of rat that the paper's recipe needs."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.end_to_end.conftest import write_config, write_data
from tests.training.test_views import ITEMS, split_of
from training import JobError
from training.__main__ import main
from training.config import RAT, SequenceSpec
from training.losses import infonce
from training.rat import _alignment, projection_spec
from training.recipe import Step
from training.views import IdTable, train_view

PAPER = Path(__file__).parents[2] / "training" / "configs" / "llmemb-paper.toml"
TEACHER = SequenceSpec(dim=8, max_history=8, max_epochs=1, temperature=0, options={"dropout": 0.1})


def test_item_vectors_have_length_one_only_where_they_are_trained_on_cosines() -> None:
    assert projection_spec(RAT(), 576).unit
    assert not projection_spec(RAT(sequence={"temperature": 0}), 576).unit


@pytest.mark.parametrize(("layers", "dims"), [(0, (128,)), (1, (224, 128)), (2, (224, 64, 128))])
def test_the_projection_has_as_many_layers_as_it_is_told(
    layers: int, dims: tuple[int, ...]
) -> None:
    config = RAT(text={"layers": layers, "hidden": 64})

    assert projection_spec(config, 576).dims == dims


def test_item_vectors_without_layers_cannot_be_wider_than_the_llms() -> None:
    with pytest.raises(JobError, match="LLM vectors are 16 wide"):
        projection_spec(RAT(text={"layers": 0}), 16)
    with pytest.raises(ValidationError, match="layers = 0 needs scaling pca or whiten"):
        RAT(text={"layers": 0, "scaling": "centre"})


@pytest.mark.parametrize(("own", "name"), [(False, "teacher"), (True, "id")])
def test_each_item_of_a_batch_is_aligned_once_with_the_teachers_vector_of_it(
    own: bool, name: str, tmp_path: Path
) -> None:
    split = split_of(predictable=True)
    text = {"alignment": 0.5, "alignment_temperature": 0.2}
    config = RAT(sequence=TEACHER, text=text if own else text | {"teacher": TEACHER})
    step = Step(tmp_path / "rat", {})
    table = IdTable(ITEMS, 8, unit=False)
    teacher = train_view(name, table, TEACHER, split, Step(step.folder / name, {}), 0)
    rows, vectors = np.array([3, 9, 27]), torch.randn(3, 8, requires_grad=True)

    loss = _alignment(step, config, split)(rows, vectors)

    expected = 0.5 * infonce(vectors, torch.from_numpy(teacher.items[rows - 1]), 0.2)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # the teacher is frozen
    assert vectors.grad is not None


def test_aligned_items_are_drawn_by_a_power_of_their_popularity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(predictable=True)
    split.counts[[3, 9]] = 1, 99
    step = Step(tmp_path / "rat", {})
    table = IdTable(ITEMS, 8, unit=False)
    teacher = train_view("id", table, TEACHER, split, Step(step.folder / "id", {}), 0)
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr("training.rat.ALIGNED_ITEMS", 1)
    monkeypatch.setattr("training.rat.contrastive", lambda _, left, right, __: drawn.append(right))
    popular = torch.from_numpy(teacher.items[9 - 1])

    shares = []
    for power in (-1.0, 0.0, 1.0):
        text = {"alignment": 1, "alignment_popularity": power}
        align = _alignment(step, RAT(sequence=TEACHER, text=text), split)
        drawn.clear()
        for _ in range(200):
            with contextlib.suppress(TypeError):  # None is no loss
                align(np.array([3, 9]), torch.randn(2, 8))
        shares.append(np.mean([torch.equal(each[0], popular) for each in drawn]))

    np.testing.assert_allclose(shares, [0.01, 0.5, 0.99], atol=0.12)


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "bert4rec"])
def test_the_papers_recipe_runs_from_attributes_to_a_bundle(
    model: str, tmp_path: Path, tiny_llm: Path
) -> None:
    data = write_data(tmp_path / "data", predictable=True)
    options = "{dropout=0.1}"
    changes = {
        "folder": tmp_path / "run",
        "cache": tmp_path / "cache",
        "llm.path": tiny_llm,
        "llm.dtype": "float32",
        "scft.steps": 2,
        "scft.batch_items": 8,
        "rat.sequence.model": model,
        "rat.sequence.options": options,
        "rat.sequence.max_history": 8,
        "rat.sequence.dim": 16,
        "rat.sequence.learning_rate": 0.01,
        "rat.text.teacher.dim": 16,
        "rat.text.teacher.max_epochs": 5,
        "rat.text.max_epochs": 30,
        "rat.text.batch_tokens": 128,
        "evaluate.negatives": 30,
        "evaluate.bootstrap": 200,
    }
    command = ["run", "--config", str(PAPER), "--source", str(data)]
    for name, value in changes.items():
        command += ["--set", f"{name}={value}"]

    assert main(command) == 0

    found = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert found["full"]["ours"]["overall"]["hr"]["mean"] > 0.3  # chance is .19
    manifest = json.loads((tmp_path / "run" / "bundle" / "manifest.json").read_text())
    assert [view["name"] for view in manifest["views"]] == ["text"]
    projection = manifest["projection"]
    assert projection.pop("activation") == "none"
    assert projection == {"dims": [16, 768, 16], "scaling": "pca", "unit": False}


def test_a_run_of_learnt_llm_vectors_is_not_exported(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    command = ["run", "--config", str(config), "--set", "scft.steps=0"]
    command += ["--set", 'rat.parts=["text"]', "--set", "rat.text.frozen=false"]

    assert main(command) == 1

    assert "rat.text.frozen is false: a new item has no such vector" in capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert found["full"]["ours"]["overall"]["hr"]["mean"] > 0.6
