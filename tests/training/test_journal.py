import json
from pathlib import Path

import pytest

from training.journal import Journal
from training.recipe import Step


def test_the_work_of_a_step_is_summed_over_the_commands_that_did_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    step = Step(tmp_path / "rat", {"of": 1})
    with pytest.raises(KeyboardInterrupt), journal.step("rat", step.folder):
        raise KeyboardInterrupt
    with journal.step("rat", step.folder):
        step.finish()
    with journal.step("rat", step.folder):
        pass  # reused

    took = journal.took("rat", step.folder)

    assert took is not None
    assert (took.commands, took.finished) == (2, True)
    assert [line["ended"] for line in journal.lines()] == ["stopped", "done", "reused"]


def test_the_work_in_a_result_that_was_thrown_away_is_not_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.step("rat", tmp_path / "rat"):
        Step(tmp_path / "rat", {"of": 1}).finish()
    assert journal.took("rat", tmp_path / "rat")

    Step(tmp_path / "rat", {"of": 2})

    assert journal.took("rat", tmp_path / "rat") is None


def test_a_password_in_an_address_is_not_written_down_and_a_cut_line_is_passed_over(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    journal.command(["run", "--config", "a b.toml", "--source", "https://me:secret@host/x.zip"])
    with journal.path.open("ab") as lines:
        lines.write('{"event": "stopped", "step": "é'.encode()[:-1])  # within a letter

    (line,) = journal.lines()

    assert "secret" not in json.dumps(line)
    assert "run --config 'a b.toml' --source" in line["command"]
    assert journal.again("evaluate", "--cold").startswith(
        "python -m training evaluate --config 'a b.toml'"
    )


def test_without_a_command_so_far_the_file_is_left_to_be_filled_in(tmp_path: Path) -> None:
    assert Journal(tmp_path).again("rat") == "python -m training rat --config FILE"
