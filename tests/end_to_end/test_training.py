import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.conftest import ITEMS, USERS, write_config, write_data
from tests.tiny import write_llm
from training.__main__ import main
from training.compare import compare_cold

ROOT = Path(__file__).parents[2]


def metrics(run: Path) -> dict:
    return json.loads((run / "evaluate" / "metrics.json").read_text())


def test_predictable_histories_are_learnt(trained: Path) -> None:
    full = metrics(trained)["full"]

    assert full["id-only"]["overall"]["hr"]["mean"] > 0.9
    assert full["ours"]["overall"]["hr"]["mean"] > 0.9
    assert metrics(trained)["sampled"]["ours"]["overall"]["ndcg"]["mean"] > 0.8


def test_random_histories_cannot_be_learnt(tmp_path: Path, tiny_llm: Path) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=False), tiny_llm)

    assert main(["run", "--config", str(config)]) == 0

    # Eight of the items are in the history and excluded; a leak would lift this far above chance.
    chance = 10 / (ITEMS - 8)
    for model in ("id-only", "ours"):
        hit_rate = metrics(tmp_path / "run")["full"][model]["overall"]["hr"]
        assert hit_rate["mean"] < chance + 0.1, model


def test_a_run_that_is_killed_at_every_step_ends_as_one_that_is_not(
    trained: Path, tmp_path: Path, tiny_llm: Path
) -> None:
    config = write_config(tmp_path, trained.parent / "data", tiny_llm)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "training", "run", "--config", str(config)]

    for step, sign in (
        ("scft", "cache/adapters/*/checkpoint.pt"),
        ("encode", "cache/vectors/*/00001.safetensors"),
        ("rat", "cache/views/*/checkpoint.pt"),
    ):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not any(tmp_path.glob(sign)):
                assert process.poll() is None, f"ended before {sign}"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not (run / step / "done.json").exists(), "killed too late"
    assert main(["run", "--config", str(config)]) == 0

    assert metrics(run) == metrics(trained)
    hashes = [
        json.loads((each / "bundle" / "manifest.json").read_text())["bundle_hash"]
        for each in (run, trained)
    ]
    assert hashes[0] == hashes[1]


def test_a_disk_that_fills_while_encoding_is_told_and_what_is_there_is_kept(
    tmp_path: Path,
    tiny_llm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    for step in ("prepare", "scft"):
        assert main([step, "--config", str(config), "--set", "scft.steps=0"]) == 0
    command = ["encode", "--config", str(config), "--set", "scft.steps=0"]
    fsync, shards = os.fsync, []

    def full(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        shards.extend([name] * name.endswith(".safetensors.partial"))
        if len(shards) > 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(command) == 1
    told = capsys.readouterr().err
    assert "00002.safetensors cannot be written (No space left on device); make room" in told
    (folder,) = {path.parent for path in tmp_path.glob("cache/vectors/*/made.json")}
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*")}
    assert sorted(there) == ["00000.safetensors", "00001.safetensors"]

    assert main(command) == 0

    assert {name: (folder / name).stat().st_mtime_ns for name in there} == there


def test_a_second_run_reuses_every_step(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    assert main(["run", "--config", str(trained.parent / "run.toml")]) == 0

    assert caplog.text.count("reused, as finished before") == 6


def test_a_changed_configuration_is_noticed_by_every_later_step(
    trained: Path, tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, trained.parent / "data", tiny_llm)
    shutil.copytree(trained, tmp_path / "run")
    other = write_llm(tmp_path / "other", seed=3)

    for step, change, told in (
        ("evaluate", "rat.sequence.max_history=4", "rat was made with another `rat`"),
        ("export", "template.noun=film", "scft was made with another `template`"),
        ("rat", f"llm.path={other}", "scft was made with another `llm`"),
    ):
        assert main([step, "--config", str(config), "--set", change]) == 1
        assert told in capsys.readouterr().err

    assert main(["scft", "--config", str(config), "--set", "scft.steps=2"]) == 0
    assert main(["rat", "--config", str(config), "--set", "scft.steps=2"]) == 1
    assert "encode was made from another scft" in capsys.readouterr().err


def test_cold_items_are_held_out_of_everything_and_asked_for(
    tmp_path: Path, tiny_llm: Path
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    command = ["evaluate", "--cold", "--config", str(config), "--set", "scft.steps=0"]

    assert main(command) == 0

    found = json.loads((tmp_path / "run" / "cold" / "evaluate" / "metrics.json").read_text())
    assert found["cold_items"] == ITEMS // 10
    assert found["targets"]["cold_test"] > 0
    assert found["warm"]["hr"]["mean"] > 0.9
    assert not (tmp_path / "run" / "evaluate").exists()


def test_a_split_by_time_asks_for_what_came_after_one_moment(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    command = ["evaluate", "--time", "--config", str(config), "--set", "scft.steps=0"]

    assert main(command) == 0
    found = metrics(tmp_path / "run" / "time")
    assert found["protocol"].startswith("split by time")
    assert found["targets"]["overall"] == USERS  # each has its ninth step after the moment
    assert found["full"]["ours"]["overall"]["hr"]["mean"] > 0.9

    assert main([*command, "--cold"]) == 2
    assert "ask for one after the other" in capsys.readouterr().err


def cold_rows(run: Path, *sets: str) -> np.ndarray:
    cold = load_file(run / "prepare" / "cold.safetensors")
    return np.concatenate([cold[name] for name in sets])


def plant(data: Path, items: set[str]) -> None:
    """Some items say something else, of the same length, so that batches stay the same to the bit;
    and everybody used them, after all else."""
    lines = [json.loads(line) for line in (data / "items.jsonl").read_text().splitlines()]
    for item in lines:
        if item["item_id"] in items:
            item["attributes"] = {"title": "zz", "kind": "z"}
    (data / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    with (data / "interactions.csv").open("a") as rows:
        for user in range(USERS):
            rows.writelines(f"u{user},{item},99999\n" for item in sorted(items))


def test_what_is_said_and_done_with_cold_items_reaches_nothing_that_is_fitted(
    tmp_path: Path, tiny_llm: Path
) -> None:
    runs: dict[str, Path] = {}
    for name, sets in (
        ("plain", []),
        ("both planted", ["validation", "test"]),
        ("test planted", ["test"]),
    ):
        folder = tmp_path / name
        data = write_data(folder / "data", predictable=True)
        config = write_config(folder, data, tiny_llm)
        if sets:  # the same items are drawn as before
            prepared = (runs["plain"] / "prepare" / "items.jsonl").read_text().splitlines()
            rows = cold_rows(runs["plain"], *sets)
            plant(data, {json.loads(prepared[row - 1])["item_id"] for row in rows})
        for step in ("prepare", "scft", "encode", "rat"):
            assert main([step, "--config", str(config), "--set", "data.cold=0.1"]) == 0
        run = runs[name] = folder / "run"
        views = load_file(run / "rat" / "hybrid" / "view.safetensors")
        assert not views["present"][cold_rows(run, "validation", "test") - 1].any()

    fitted = [
        "scft/adapter/adapter_model.safetensors",  # SCFT's texts
        "rat/text/projection.safetensors",  # whitening, and RAT's layers
        "rat/text/model.safetensors",
        "rat/hybrid/model.safetensors",
        "rat/neighbours.safetensors",
    ]
    for name in ("both planted", "test planted"):
        for path in fitted:
            for tensor, values in load_file(runs["plain"] / path).items():
                planted = load_file(runs[name] / path)[tensor]
                np.testing.assert_array_equal(values, planted, err_msg=f"{name} {path} {tensor}")
    # Weights, factors, and all figures that they were chosen by.
    chosen = [json.loads((runs[n] / "rat" / "done.json").read_text()) for n in runs]
    assert chosen[2] == chosen[0]
    assert chosen[1]["weights"] == chosen[0]["weights"]


def test_a_comparison_reads_the_test_split_when_it_is_told_to_and_once(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    (tmp_path / "small.toml").write_text(
        """
config = "run.toml"
seeds = [1, 2]
reference = "ours"
cold = ["ours"]
[variants.ours]
"scft.steps" = 0
[variants.tf-idf]
"scft.steps" = 0
"encode.vectors" = "tf-idf"
[variants.two-ids]
"scft.steps" = 0
"rat.parts" = ["id", "id2"]
"""
    )
    folder = tmp_path / "runs" / "compare-small"
    command = ["compare", "--config", "small.toml", "--set", "rat.sequence.max_epochs=4"]

    assert main(command) == 0
    results = json.loads((folder / "results.json").read_text())
    assert [row["variant"] for row in results["rows"]] == ["ours", "tf-idf", "two-ids"]
    assert list(results["rows"][0]["protocols"]) == ["full"]
    assert list(results["cold"]["ours"]) == ["ndcg10", "warm_kept"]  # of the cold validation items
    assert not list(folder.rglob("evaluate"))
    assert not (folder / "test-reads.jsonl").exists()

    for _ in range(2):
        assert main([*command, "--final"]) == 0
    results = json.loads((folder / "final-results.json").read_text())
    assert [(row["variant"], row["model"]) for row in results["rows"][:2]] == [
        ("ours", "ours"),
        ("ours", "id-only"),
    ]
    assert list(results["rows"][0]["protocols"]) == ["full", "unfiltered", "sampled"]
    assert results["cold"]["ours"]["targets"]["mean"] > 0
    assert results["cold"]["ours"]["hr10_low"]["mean"] <= results["cold"]["ours"]["hr10"]["mean"]
    reads = (folder / "test-reads.jsonl").read_text().splitlines()
    assert len(reads) == 3 * 2 + 2  # 3 variants of 2 seeds, and the cold items of one of them
    assert "<svg" in (folder / "final-results.svg").read_text()

    # Cold items can be asked alone; what was read is not read again.
    changes = ["rat.sequence.max_epochs=4"]
    assert compare_cold(Path("small.toml"), changes, None) == results["cold"]
    assert (folder / "test-reads.jsonl").read_text().splitlines() == reads

    # Another recipe in the same folders reads the test again, and that is written down too.
    assert main([*command, "--final", "--set", "rat.content.latest=3"]) == 0
    assert len((folder / "test-reads.jsonl").read_text().splitlines()) == 2 * len(reads)


def test_variants_that_are_not_tested_on_the_same_items_cannot_be_compared(
    tmp_path: Path,
    tiny_llm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    (tmp_path / "unlike.toml").write_text(
        """
config = "run.toml"
seeds = [1]
reference = "ours"
[variants.ours]
scft.steps = 0
[variants.fewer]
scft.steps = 0
data.validation_users = 20
"""
    )
    command = ["compare", "--config", "unlike.toml", "--set", "rat.sequence.max_epochs=1"]

    assert main(command) == 1
    assert "fewer asks for other items, or of other users, than ours" in capsys.readouterr().err
