from pathlib import Path

import pytest

from training import JobError
from training.__main__ import main
from training.config import read_config

MINIMAL = '[data]\nsource = "movielens"\npath = "ml-100k"\n[llm]\npath = "x"\n'


def write(folder: Path, text: str = f'name = "t"\n{MINIMAL}') -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_values_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    changes = ["scft.steps=7", "rat.sequence.dim=16", "llm.path=some/folder", "evaluate.k=5"]

    found = read_config(write(tmp_path), changes)

    assert (found.scft.steps, found.rat.sequence.dim) == (7, 16)
    assert (found.llm.path, found.evaluate.k) == ("some/folder", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f'name = "t"\nsede = 3\n{MINIMAL}',
            r"sede: there is no such setting; did you mean seed\?",
        ),
        (f'name = "t"\n{MINIMAL}[data.columns]\nuzer = "a"\n', "did you mean user"),
        (f'name = "t"\n{MINIMAL}[export]\nzip = true\n', "there are include_llm"),
        (f'name = "../t"\n{MINIMAL}', "name"),
        (f'name = "t"\n{MINIMAL}[scft]\nloss = "hinge"\n', r"scft\.loss.*'hinge'"),
        (f'name = "t"\n{MINIMAL}[scft]\nbatch_items = 1\n', r"scft\.batch_items.*got 1"),
        (f'name = "t"\n{MINIMAL}[rat]\nparts = ["text", "text"]\n', "names one twice"),
        (f'name = "t"\n{MINIMAL}[rat]\nparts = ["neighbours"]\n', "add a view"),
        (f'name = "t"\n{MINIMAL}[rat.sequence.options]\ndropout = 0.995\n', r"0 to 0\.99"),
        ('name = "t"\n', "data: Field required; docs/reference/settings.md has all"),
        ("name = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_configuration_is_named_by_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        read_config(write(tmp_path, text), [])


def test_a_users_mistake_ends_in_one_line_and_a_status_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", str(tmp_path / "none.toml")]) == 1

    told = capsys.readouterr().err
    assert told == f"error: there is no configuration {tmp_path / 'none.toml'}\n"
