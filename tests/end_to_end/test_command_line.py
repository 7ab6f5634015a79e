import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import write_config, write_data
from training import recipe
from training.__main__ import main
from training.command_line import COMMANDS, STEPS, completion, parse

ROOT = Path(__file__).parents[2]


def test_the_steps_of_the_command_line_are_those_of_a_run() -> None:
    assert STEPS == recipe.STEPS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_teaches_by_examples_that_parse(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out

    examples = re.findall(r"^  (python -m training .*)$", told, re.M)
    assert examples or command == "completion"
    for example in examples:
        assert parse(shlex.split(example)[3:]).command == command
    assert told.startswith(f"usage: python -m training {command} [-h]")
    assert "exit codes:" in told
    assert all(f"\n  {code} " in told for code in (0, 1, 2, 130))


def test_help_names_every_command_and_starts_without_torch() -> None:
    code = "import sys; from training.__main__ import main; main(['--help']); "
    code += "print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert all(f"\n  {name} " in told for name in COMMANDS)
    assert told.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rat", "--config", "x", "--format", "npy"], "--format goes with export, not with rat"),
        (["rat", "--config", "x", "--cold"], "--cold goes with evaluate, not with rat"),
        (["rat", "--config", "x", "more"], "rat has no option or argument more"),
        (["rat"], "--config"),
        (["train", "--config", "x"], "invalid choice: 'train'"),
        (["evaluate", "--config", "x", "--cold", "--time"], "ask for one after the other"),
        (["encode", "--config", "x", "--items", "y"], "--items and --output FOLDER go together"),
        (["export", "--config", "x", "--output", "y"], "--output goes with a --format"),
        (["export", "--config", "x", "--format", "npy", "--dry-run"], "--dry-run plans a run's"),
        (
            ["encode", "--config", "x", "--items", "y", "--output", "z", "--dry-run"],
            "--dry-run plans a run's own steps, and --items are no part of it",
        ),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_says_what_is_wrong_and_exits_with_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert "--help` has examples" in line


def test_a_mistake_in_what_is_named_is_one_line_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["run", "--config", str(tmp_path / "none.toml")],
        ["run", "--config", str(tmp_path)],
        ["report", "--run", str(tmp_path)],
        ["doctor", "--config", str(tmp_path / "none.toml")],
    ):
        assert main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert str(tmp_path) in line


def test_fetch_says_where_data_and_llm_are_and_makes_no_run(
    tmp_path: Path, tiny_llm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)

    with caplog.at_level("INFO"):
        assert main(["fetch", "--config", str(config)]) == 0

    assert caplog.messages == [f"data: {tmp_path / 'data'}", f"LLM: {tiny_llm}"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/none", "there is no folder /none"),
        ("{data}", "{data} holds no LLM: it needs config.json and *.safetensors"),
        ("smollm2", "'smollm2' is neither a folder nor an LLM that the model hub gives"),
    ],
)
def test_fetch_says_of_what_is_no_llm_which_ones_are_pinned(
    tmp_path: Path,
    tiny_llm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    told: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = write_data(tmp_path / "data", predictable=True)
    config = write_config(tmp_path, data, tiny_llm)

    assert main(["fetch", "--config", str(config), "--set", f"llm.path={path}".format(data=data)])

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: llm.path: {told.format(data=data)}")
    assert line.endswith("; pinned names: all-minilm-l6-v2, smollm2-135m-instruct")


def test_ctrl_c_leaves_what_the_printed_command_goes_on_with(
    tmp_path: Path, tiny_llm: Path, trained: Path
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    command = [sys.executable, "-m", "training", "run", "--config", str(config)]
    checkpoint = f"{tmp_path}/cache/views/*/checkpoint.pt"
    # A shell that runs the tests in the background has the signal ignored.
    heard = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(heard, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("cache/views/*/checkpoint.pt")):
            assert process.poll() is None, "ended too early"
            assert time.monotonic() < deadline, f"no {checkpoint}"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(60) == 130

    assert "Traceback" not in told
    *_, said, again = told.strip().splitlines()
    assert "To go on where it was" in said
    assert shlex.split(again) == ["python", *command[1:]]
    assert main(shlex.split(again)[3:]) == 0  # in the same way, and to the same end
    ended = [
        json.loads((each / "bundle" / "manifest.json").read_text())["bundle_hash"]
        for each in (tmp_path / "run", trained)
    ]
    assert ended[0] == ended[1]
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    of_rat = [line["ended"] for line in lines if line.get("step") == "rat"]
    assert of_rat == ["stopped", "done"]


def completed(words: str) -> list[str]:
    """What a real bash offers for the last word of a line."""
    script = (
        f"{completion('bash')}\n"
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_llmemb_python 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    answer = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return answer.stdout.split()


def test_bash_completes_commands_options_and_files_after_python_m_training() -> None:
    assert completed("python -m training pre") == ["prepare"]
    assert set(completed('python -m training ""')) >= set(COMMANDS)
    assert completed("python -m training evaluate --co") == ["--config", "--cold"]
    assert completed("python -m training export --format np") == ["npy"]
    assert completed("python -m training run --config pypro") == ["pyproject.toml"]
    assert completed("python pypro") == ["pyproject.toml"]  # as before


def test_a_dry_run_prints_plan_and_estimate_and_writes_nothing(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    before = sorted(tmp_path.rglob("*"))

    assert main(["run", "--config", str(config), "--dry-run"]) == 0

    told = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"scft +would be done +6 steps of [\d.]+ s", told)
    assert re.search(r"encode +would be done +60 items at [\d.]+ a second", told)
    assert re.search(r"rat +would be done +at most .* epochs id 15 of", told)
    assert re.search(r"memory +about [\d.]+ GiB .* are free", told)
    assert re.search(r"disk +about [\d.]+ GiB more", told)
    assert "60 items, 120 users" in told
    assert "measurement of some seconds" in told


def test_a_dry_run_of_what_is_finished_measures_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trained.parent / "run.toml")

    assert main(["run", "--config", config, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert told.out.count("finished, would be reused") == 6
    assert "nothing would be done" in told.out
    assert "measuring" not in told.err

    assert main(["rat", "--config", config, "--set", "rat.seed=9", "--dry-run"]) == 0
    assert "changed, would start over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        ("evaluate", "rat.seed=9", "evaluate cannot be done before rat is: "),
        ("export", "rat.seed=9", "export cannot be done before evaluate is: "),
        ("run", "encode.vectors=tf-idf", 'encode.vectors is "tf-idf"'),
        ("export", "data.cold=0.1", "data.cold holds items out"),
        ("run", "data.path=no/such", "data.path: there is no folder or .zip file no/such"),
    ],
)
def test_a_dry_run_of_what_cannot_be_done_says_why_in_one_line_and_exits_with_1(
    trained: Path, command: str, change: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(trained.parent / "run.toml")

    assert main([command, "--config", config, "--set", change, "--dry-run"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")


def test_a_dry_run_tells_of_a_measurement_only_where_there_was_one(
    tmp_path: Path, tiny_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    command = ["prepare", "--config", str(config), "--dry-run"]

    assert main(command) == 0
    assert "measurement of some seconds" not in capsys.readouterr().out
    assert main([*command, "--set", "data.source=movielens", "--source", "ml-100k"]) == 0
    told = capsys.readouterr().out

    assert "not on this disk yet" in told
    assert "measurement of some seconds" not in told
    assert told.endswith("Nothing was changed.\n")
