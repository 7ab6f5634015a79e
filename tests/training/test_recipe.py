from pathlib import Path

import pytest

from training import JobError
from training.__main__ import main
from training.config import read_config
from training.recipe import Run, Step


def config(folder: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(
        'name = "t"\n[data]\nsource = "movielens"\npath = "ml-100k"\n[llm]\npath = "x"\n'
    )
    return path


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
