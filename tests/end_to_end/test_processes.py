"""SCFT and RAT by two processes, started as `accelerate launch` starts them, on the CPU by gloo."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.end_to_end.conftest import write_config, write_data
from training.__main__ import main

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
ADAPTER = "scft/adapter/adapter_model.safetensors"
NO_DROPOUT = [
    "rat.sequence.options={layers=1, heads=2, dropout=0.0}",
    "rat.hybrid.dropout=0.0",
    "rat.sequence.max_epochs=3",
    "rat.text.max_epochs=3",
    "rat.text.alignment=0.1",
    "rat.text.batch_tokens=8",  # one history, which leaves the second process nothing
]
PLACES = ['scft.objective="places"', "scft.layers=1", "scft.patience=20"]
LESS_MEMORY = ["scft.chunk_items=2", "scft.gradient_checkpointing=true"]


def launched(*words: str, how: str = "--multi_gpu") -> list[str]:
    """The command line of two processes; `--multi_gpu` is how accelerate names it on a CPU, too."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", how, "--num_processes", "2"]
    rest = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launch, *rest, "--main_process_port", "0", "-m", "training", *words]


def command(step: str, folder: Path, changes: list[str]) -> list[str]:
    pairs = [part for change in changes for part in ("--set", change)]
    return [step, "--config", str(folder / "run.toml"), *pairs]


def run_by_two(*words: str, how: str = "--multi_gpu") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launched(*words, how=how), cwd=ROOT, capture_output=True, text=True, check=False
    )


@contextlib.contextmanager
def running_by_two(told: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher of two processes, which tell a file; nothing of them is left."""
    with (
        told.open("wb") as stderr,
        subprocess.Popen(launched(*words), cwd=ROOT, stderr=stderr) as launcher,
    ):
        try:
            yield launcher
        finally:
            kill(launcher)


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """Both processes and what started them, at once."""
    for each in [*followed(launcher.pid).values(), launcher.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def followed(launcher: int) -> dict[int, int]:
    """The processes that a launcher started, by their number in the job."""
    found = {}
    for told in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            parent = (told.parent / "stat").read_text().rpartition(")")[2].split()[1]
            pairs = told.read_bytes().split(b"\0")
            names = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            if int(parent) == launcher and b"RANK" in names:
                found[int(names[b"RANK"])] = int(told.parent.name)
    return found


def wait_for(folder: Path, sign: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 400
    while not any(folder.glob(sign)):
        assert process.poll() is None, f"ended before {sign}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def figures(run: Path, step: str, name: str) -> list[float]:
    lines = [line for path in sorted(run.glob(step)) for line in path.read_text().splitlines()]
    return [json.loads(line)[name] for line in lines if f'"{name}"' in line]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", predictable=True)


def prepared(folder: Path, data: Path, llm: Path) -> Path:
    folder.mkdir()
    write_config(folder, data, llm)
    assert main(command("prepare", folder, [])) == 0
    return folder


def test_two_processes_run_all_steps_as_one_does(
    tmp_path: Path, data: Path, tiny_llm: Path
) -> None:
    one, two = (prepared(tmp_path / name, data, tiny_llm) for name in ("one", "two"))
    changes = [*PLACES, *NO_DROPOUT]
    assert main(command("run", one, changes)) == 0

    told = run_by_two(*command("run", two, changes))

    assert told.returncode == 0, told.stderr
    assert told.stderr.count("scft (step 2 of 6)") == 1  # one of them says what is done
    losses = [figures(each / "run", "scft/metrics.jsonl", "loss") for each in (one, two)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    losses = [figures(each / "run", "rat/*/metrics.jsonl", "loss") for each in (one, two)]
    assert len(losses[0]) == 3 * len(["id", "text", "hybrid"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    adapters = [load_file(each / "run" / ADAPTER) for each in (one, two)]
    for name, weights in adapters[0].items():
        np.testing.assert_allclose(adapters[1][name], weights, atol=1e-4, err_msg=name)
    assert json.loads((two / "run" / "evaluate" / "metrics.json").read_text())["full"]


def test_two_processes_that_are_killed_end_as_two_that_are_not(
    tmp_path: Path, data: Path, tiny_llm: Path
) -> None:
    one, whole, killed = (
        prepared(tmp_path / name, data, tiny_llm) for name in ("one", "whole", "killed")
    )
    changes = ["scft.steps=60", "scft.lora_dropout=0.1", *LESS_MEMORY]
    words = command("scft", killed, changes)

    # The one that follows is lost: the job ends, and says so by its status.
    with running_by_two(tmp_path / "told", *words) as job:
        wait_for(killed, "cache/adapters/*/checkpoint.pt", job)
        os.kill(followed(job.pid)[1], signal.SIGKILL)
        assert job.wait(120) != 0
    assert not (killed / "run" / "scft" / "done.json").exists(), "killed too late"
    (checkpoint,) = killed.glob("cache/adapters/*/checkpoint.pt")
    before = checkpoint.stat().st_mtime_ns
    # Then all are.
    with running_by_two(tmp_path / "told", *words) as job:
        while checkpoint.stat().st_mtime_ns == before:
            wait_for(killed, "cache/adapters/*/checkpoint.pt", job)
        kill(job)
    assert not (killed / "run" / "scft" / "done.json").exists(), "killed too late"
    for folder in (killed, whole):
        told = run_by_two(*command("scft", folder, changes))
        assert told.returncode == 0, told.stderr

    assert (killed / "run" / ADAPTER).read_bytes() == (whole / "run" / ADAPTER).read_bytes()
    assert not list(tmp_path.glob("*/cache/tuning-*/**/*.bin"))
    # One process draws other dropout, and learns the same.
    assert main(command("scft", one, changes)) == 0
    losses = [figures(each / "run", "scft/metrics.jsonl", "loss")[-10:] for each in (one, whole)]
    assert np.mean(losses[1]) == pytest.approx(np.mean(losses[0]), abs=0.3)


@pytest.mark.parametrize("objective", [[], ['scft.objective="places"', "scft.patience=20"]])
def test_an_llm_in_shards_is_tuned_as_a_whole_one(
    tmp_path: Path, data: Path, tiny_llm: Path, objective: list[str]
) -> None:
    one, two = (prepared(tmp_path / name, data, tiny_llm) for name in ("one", "two"))
    steps = [*objective, "scft.steps=9"]  # a look at the vectors after seven
    assert main(command("scft", one, steps)) == 0

    told = run_by_two(*command("scft", two, [*steps, *LESS_MEMORY]), how="--use_fsdp")

    assert told.returncode == 0, told.stderr
    losses = [figures(each / "run", "scft/metrics.jsonl", "loss") for each in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    adapters = [load_file(each / "run" / ADAPTER) for each in (one, two)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weights in adapters[0].items():
        np.testing.assert_allclose(adapters[1][name], weights, atol=1e-4, err_msg=name)


def test_what_is_wrong_is_told_once(tmp_path: Path, data: Path, tiny_llm: Path) -> None:
    folder = prepared(tmp_path / "run", data, tiny_llm)

    told = run_by_two(*command("scft", folder, ["scft.layers=9"]))

    assert told.returncode != 0
    assert told.stderr.count("error: ") == 1
    assert "error: scft.layers=9: the LLM has 2 layers" in told.stderr


def test_two_processes_that_are_stopped_say_how_to_go_on_and_one_can(
    tmp_path: Path, data: Path, tiny_llm: Path
) -> None:
    folder = prepared(tmp_path / "run", data, tiny_llm)
    words = command("scft", folder, ["scft.steps=200"])

    with running_by_two(tmp_path / "told", *words) as job:
        wait_for(folder, "cache/adapters/*/checkpoint.pt", job)
        job.send_signal(signal.SIGINT)
        assert job.wait(120) != 0

    told = (tmp_path / "told").read_text()
    assert told.count("stopped; nothing that was finished is lost") == 1
    assert f"  accelerate launch … -m training scft --config {folder}/run.toml" in told
    assert main(words) == 0
    assert len(figures(folder / "run", "scft/metrics.jsonl", "loss")) >= 200
