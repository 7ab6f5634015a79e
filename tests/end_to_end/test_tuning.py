"""SCFT towards what is bought together, with a tiny LLM: learnt, resumed, and served as trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.encoder import Encoder
from tests.end_to_end.conftest import write_config, write_data
from training import scft
from training.__main__ import main
from training.config import SCFT, read_config
from training.content import content_quality
from training.encode import read_llm_vectors
from training.interactions import Split
from training.places import collaborative_places
from training.prepare import read_prepared
from training.recipe import Run
from training.tuner import Tuner

BATCHES = 7  # of 8 items, in 60
STEPS = 20 * BATCHES
SETTINGS = [
    'scft.objective="places"',
    f"scft.steps={STEPS}",
    "scft.learning_rate=3e-3",
    "scft.temperature=0.1",
    "scft.checkpoint_steps=7",
]
RUNS = ("run", "untuned", "beside")


def changes(*more: str) -> list[str]:
    return [part for change in (*SETTINGS, *more) for part in ("--set", change)]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in logged(run) if "loss" in line]


def logged(run: Path) -> list[dict[str, float]]:
    lines = (run / "scft" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("layers", [["scft.layers=1"], []])
def test_an_llm_is_tuned_to_tell_what_is_bought_together(
    tmp_path: Path, tiny_llm: Path, layers: list[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)

    assert main(["prepare", "--config", str(config)]) == 0
    assert main(["scft", "--config", str(config), *changes(*layers)]) == 0

    told = losses(tmp_path / "run")
    assert len(told) == STEPS
    assert np.mean(told[-BATCHES:]) < np.mean(told[:BATCHES]) - 0.2
    assert not list((tmp_path / "cache").glob("adapters/*/activations.*"))


def test_vectors_of_a_tuned_llm_are_those_that_it_was_tuned_to(
    tmp_path: Path, tiny_llm: Path
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    for step in ("prepare", "scft", "encode"):
        assert main([step, "--config", str(config), *changes("scft.layers=1")]) == 0

    run = Run(read_config(config, [*SETTINGS, "scft.layers=1"], None))
    catalogue, _ = read_prepared(run)
    vectors = read_llm_vectors(run.finished("encode"))
    prompts = [run.config.template.render(item) for item in catalogue]
    tuned = Encoder.load(tiny_llm, tmp_path / "run" / "scft" / "adapter", "float32")
    np.testing.assert_allclose(vectors, tuned.encode(prompts).vectors, atol=1e-5)
    untuned = Encoder.load(tiny_llm, dtype="float32").encode(prompts).vectors
    assert np.abs(vectors - untuned).max() > 0.01


def test_what_the_words_alone_say_may_stay_beside_what_was_tuned(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    few = ("rat.sequence.max_epochs=2", "rat.text.max_epochs=2")
    settings = ["scft.layers=1", "scft.steps=7", "llm.lower_layer=1", *few]
    assert main(["run", "--config", str(config), *changes(*settings)]) == 0

    run = Run(read_config(config, [*SETTINGS, *settings], None))
    catalogue, _ = read_prepared(run)
    vectors = read_llm_vectors(run.finished("encode"))
    prompts = [run.config.template.render(item) for item in catalogue]
    untuned = Encoder.load(tiny_llm, dtype="float32", lower_layer=1).encode(prompts).vectors
    words = vectors.shape[1] // 2
    np.testing.assert_allclose(vectors[:, :words], untuned[:, :words], atol=1e-5)
    assert np.abs(vectors[:, words:] - untuned[:, words:]).max() > 0.01
    bundle = Bundle.open(tmp_path / "run" / "bundle")
    np.testing.assert_allclose(bundle.encode(prompts).vectors, vectors, atol=1e-5)
    other = ["export", "--format", "sentence-transformers", "--config", str(config)]
    assert main([*other, *changes(*settings)]) == 1
    assert "llm.lower_layer is 1, which sentence-transformers" in capsys.readouterr().err


def test_the_hybrid_view_may_stay_on_vectors_of_the_untuned_llm(
    tmp_path: Path, tiny_llm: Path
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    few = ("rat.sequence.max_epochs=2", "rat.text.max_epochs=2")
    tuned = changes("scft.layers=1", "scft.steps=7", 'rat.hybrid.vectors="untuned"', *few)
    untuned = changes("scft.steps=0", f"folder={tmp_path}/untuned", *few)
    beside = changes(
        "scft.steps=0",
        f"folder={tmp_path}/beside",
        *("llm.lower_layer=1", 'rat.hybrid.vectors="untuned"', *few),
    )
    for settings in (tuned, untuned, beside):
        for step in ("prepare", "scft", "encode", "rat"):
            assert main([step, "--config", str(config), *settings]) == 0

    views = {
        name: [(tmp_path / run / "rat" / name / "view.safetensors").read_bytes() for run in RUNS]
        for name in ("text", "hybrid")
    }
    assert len(set(views["hybrid"])) == 1
    assert len(set(views["text"])) == len(RUNS)
    # Each was encoded once, and of the views only `text` was trained again.
    assert len(list((tmp_path / "cache").glob("vectors/*/done.json"))) == len(RUNS)
    assert len(list((tmp_path / "cache").glob("views/*/done.json"))) == 2 + len(RUNS)


def test_the_epoch_whose_vectors_recommend_best_is_kept(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.float32]] = []  # at each look

    def vectors_of(tuner: Tuner) -> NDArray[np.float32]:
        seen.append(read(tuner))
        return seen[-1]

    read = Tuner.vectors
    monkeypatch.setattr(Tuner, "vectors", vectors_of)
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    # A rate that ruins the LLM after a while, so that the last epoch is not the best.
    settings = changes("scft.layers=1", "scft.patience=2", "scft.learning_rate=0.1")
    for step in ("prepare", "scft", "encode"):
        assert main([step, "--config", str(config), *settings]) == 0

    looks = [line for line in logged(tmp_path / "run") if "validation_ndcg10" in line]
    best = max(looks, key=lambda line: line["validation_ndcg10"])
    assert [line["step"] for line in looks] == [BATCHES * (1 + n) for n in range(len(looks))]
    assert looks.index(best) == len(looks) - 3  # two looks later it was over
    assert len(looks) < 20
    run = Run(read_config(config, settings[1::2], None))
    assert run.finished("scft").facts["steps"] == best["step"]
    _, split = read_prepared(run)
    vectors = read_llm_vectors(run.finished("encode"))
    known = np.flatnonzero(split.counts[1:])
    # The adapter is merged meanwhile, so the last digits differ.
    np.testing.assert_allclose(vectors[known], seen[looks.index(best)], atol=1e-5)
    found = content_quality(seen[looks.index(best)], known, split)
    assert found["validation_ndcg10"] == pytest.approx(best["validation_ndcg10"], abs=1e-4)
    assert found["mean_cosine"] == pytest.approx(best["mean_cosine"], abs=1e-4)


def test_vectors_that_nobody_validates_recommend_nothing() -> None:
    histories = [np.array([1, 2], np.int32), np.array([2, 3], np.int32)]
    nobody = np.empty(0, np.int64)
    none = np.empty(0, np.int32)
    split = Split(histories, nobody, none, nobody, none, np.array([0, 1, 2, 1]))
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    found = content_quality(vectors, np.arange(3), split)

    assert found["validation_ndcg10"] == found["validation_ndcg10_tail"] == 0


def tuned(folder: Path, data: Path, llm: Path, *more: str) -> set[Path]:
    """The adapters in the cache once this run's is there, too."""
    config = write_config(folder, data, llm)
    for step in ("prepare", "scft"):
        command = [step, "--config", str(config), "--set", "scft.patience=2"]
        assert main([*command, *(part for each in more for part in ("--set", each))]) == 0
    return {made.parent for made in (folder / "cache").glob("adapters/*/made.json")}


def test_an_adapter_depends_on_the_histories_that_tell_when_to_stop(
    tmp_path: Path, tiny_llm: Path
) -> None:
    data = write_data(tmp_path / "data", predictable=True)
    before = tuned(tmp_path, data, tiny_llm)
    interactions = data / "interactions.csv"
    lines = interactions.read_text().splitlines(keepends=True)
    first, second = (line.split(",") for line in lines[1:3])
    first[1], second[1] = second[1], first[1]  # one user's first two items, the other way round
    interactions.write_text("".join([lines[0], ",".join(first), ",".join(second), *lines[3:]]))

    after = tuned(tmp_path, data, tiny_llm)

    assert len(before) == 1
    assert len(after) == 2


def test_an_adapter_does_not_depend_on_what_is_trained_after_it(
    tmp_path: Path, tiny_llm: Path
) -> None:
    data = write_data(tmp_path / "data", predictable=True)
    before = tuned(tmp_path, data, tiny_llm)

    after = tuned(
        tmp_path,
        data,
        tiny_llm,
        *("llm.lower_layer=1", "rat.text.principal=3", "rat.content.latest=2"),
    )

    assert before == after


def test_an_adapter_is_found_again_where_other_threads_give_places_other_last_digits(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def almost(*given: Any) -> NDArray[np.float32]:  # noqa: ANN401
        return collaborative_places(*given) * np.float32(1 + 1e-6)

    data = write_data(tmp_path / "data", predictable=True)
    places = 'scft.objective="places"'
    before = tuned(tmp_path, data, tiny_llm, places)
    (tmp_path / "run" / "scft" / "done.json").unlink()
    monkeypatch.setattr(scft, "collaborative_places", almost)

    after = tuned(tmp_path, data, tiny_llm, places)

    assert before == after
    interactions = data / "interactions.csv"
    lines = interactions.read_text().splitlines(keepends=True)
    interactions.write_text("".join(lines[:1] + lines[7:]))  # others, who have other places
    assert len(tuned(tmp_path, data, tiny_llm, places)) == 1 + len(before)


def test_an_adapter_tells_every_setting_that_it_was_made_with(
    tmp_path: Path, tiny_llm: Path
) -> None:
    data = write_data(tmp_path / "data", predictable=True)

    (adapter,) = tuned(tmp_path, data, tiny_llm)

    told = json.loads((adapter / "made.json").read_text())["scft"]
    # Those by default, too: they may be others in a later release. But not how memory is spent, and
    # only where it is asked for what came when there were adapters already.
    unsaid = {"chunk_items", "gradient_checkpointing", "quantise"}
    assert told.keys() == SCFT.model_fields.keys() - unsaid


@pytest.mark.parametrize("patience", [[], ["scft.patience=20"]])
def test_a_tuning_that_is_interrupted_ends_as_one_that_is_not(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch, patience: list[str]
) -> None:
    data = write_data(tmp_path / "data", predictable=True)
    adapters = []
    step = Tuner.step

    def stop(tuner: Tuner, number: int, steps: int) -> float:
        if number == 16:  # two steps after a checkpoint
            raise KeyboardInterrupt
        return step(tuner, number, steps)

    for name, stops in (("whole", False), ("interrupted", True)):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, data, tiny_llm)
        assert main(["prepare", "--config", str(config)]) == 0
        command = ["scft", "--config", str(config), *changes("scft.layers=1", *patience)]
        if stops:
            with monkeypatch.context() as patched:
                patched.setattr(Tuner, "step", stop)
                assert main(command) == 130
        assert main(command) == 0
        adapters.append((folder / "run/scft/adapter/adapter_model.safetensors").read_bytes())

    assert adapters[0] == adapters[1]


def test_more_layers_than_the_llm_has_are_refused(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    assert main(["prepare", "--config", str(config)]) == 0

    assert main(["scft", "--config", str(config), *changes("scft.layers=5")]) == 1

    assert "scft.layers=5: the LLM has 2" in capsys.readouterr().err


def test_a_lower_layer_that_the_llm_has_not_is_refused_before_it_is_tuned(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    assert main(["prepare", "--config", str(config)]) == 0

    assert main(["scft", "--config", str(config), "--set", "llm.lower_layer=2"]) == 1

    assert "llm.lower_layer=2: the LLM has 2 layers; name one" in capsys.readouterr().err
    assert not (tmp_path / "run" / "scft" / "metrics.jsonl").exists()
