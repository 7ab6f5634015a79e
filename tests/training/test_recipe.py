from pathlib import Path

import pytest

from training.__main__ import main
from training.recipe import JobError, Run, Step, read_config

MINIMAL = '[data]\nsource = "movielens"\npath = "ml-100k"\n[llm]\npath = "x"\n'


def config(folder: Path, text: str = f'name = "t"\n{MINIMAL}') -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_values_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    changes = ["scft.steps=7", "rat.sequence.dim=16", "llm.path=some/folder", "evaluate.k=5"]

    found = read_config(config(tmp_path), changes)

    assert (found.scft.steps, found.rat.sequence.dim) == (7, 16)
    assert (found.llm.path, found.evaluate.k) == ("some/folder", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'name = "t"\nsede = 3\n{MINIMAL}', "sede"),
        (f'name = "../t"\n{MINIMAL}', "name"),
        (f'name = "t"\n{MINIMAL}[scft]\nloss = "hinge"\n', r"scft\.loss.*'hinge'"),
        (f'name = "t"\n{MINIMAL}[scft]\nbatch_items = 1\n', r"scft\.batch_items.*got 1"),
        (f'name = "t"\n{MINIMAL}[rat]\nparts = ["text", "text"]\n', "names one twice"),
        (f'name = "t"\n{MINIMAL}[rat]\nparts = ["neighbours"]\n', "add a view"),
        (f'name = "t"\n{MINIMAL}[rat.sequence.options]\ndropout = 0.995\n', r"0 to 0\.99"),
        ('name = "t"\n', "data: Field required"),
        ("name = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_configuration_is_named_by_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        read_config(config(tmp_path, text), [])


def test_a_step_keeps_its_files_while_its_key_stands_and_loses_them_when_it_changes(
    tmp_path: Path,
) -> None:
    (Step(tmp_path / "scft", {"of": 1}).folder / "checkpoint").touch()
    assert (Step(tmp_path / "scft", {"of": 1}).folder / "checkpoint").exists()
    assert not (Step(tmp_path / "scft", {"of": 2}).folder / "checkpoint").exists()


def test_a_folder_that_no_run_made_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").touch()

    with pytest.raises(JobError, match="is not of a run"):
        Step(tmp_path / "export", {"of": 1})

    assert (tmp_path / "export" / "mine.txt").exists()


def test_a_step_whose_predecessor_is_not_done_says_which_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config(tmp_path)), "--set", f"folder={tmp_path}/run"]

    assert main(["rat", *arguments]) == 1
    assert "run `python -m training encode` first" in capsys.readouterr().err


def test_two_processes_cannot_work_in_one_run_folder(tmp_path: Path) -> None:
    run = Run(read_config(config(tmp_path), [f"folder={tmp_path}/run"]))

    with (
        run.lock(),
        pytest.raises(JobError, match="another process works in"),
        run.lock(),
    ):
        pass


def test_a_users_mistake_ends_in_one_line_and_a_status_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", str(tmp_path / "none.toml")]) == 1

    told = capsys.readouterr().err
    assert told == f"error: there is no configuration {tmp_path / 'none.toml'}\n"
