import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ITEMS, write_config, write_data
from tests.tiny import write_llm
from training.__main__ import main

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

    for sign in ("scft/checkpoint.pt", "encode/shards/00001.safetensors", "rat/text/checkpoint.pt"):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not (run / sign).exists():
                assert process.poll() is None, f"ended before {sign}"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not (run / sign.split("/")[0] / "done.json").exists(), "killed too late"
    assert main(["run", "--config", str(config)]) == 0

    assert metrics(run) == metrics(trained)
    hashes = [
        json.loads((each / "bundle" / "manifest.json").read_text())["bundle_hash"]
        for each in (run, trained)
    ]
    assert hashes[0] == hashes[1]


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
