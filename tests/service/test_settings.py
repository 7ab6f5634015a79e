import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import BadSettings, Settings, read_settings, reference
from tests.service.running import ROOT


@pytest.fixture(autouse=True)
def _bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMEMB_BUNDLE", str(tmp_path))


def test_the_environment_is_read_and_an_override_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMEMB_PORT", "9001")
    monkeypatch.setenv("LLMEMB_REDIS_URL", "")  # as compose passes a variable that is not set

    assert read_settings().port == 9001
    assert read_settings().redis_url is None
    assert read_settings(port="9002", host=None).port == 9002
    assert read_settings(port="9002", host=None).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PORT", "abc", 'LLMEMB_PORT is "abc"'),
        ("PORT", "0", "greater than or equal to 1"),
        ("PORT", "tcp://10.0.0.1:80", "enableServiceLinks"),
        ("BUNDLE", "/nowhere", 'LLMEMB_BUNDLE is "/nowhere": Path does not point to a directory'),
        ("REDIS_URL", "http://x", "LLMEMB_REDIS_URL"),
        ("DTYPE", "float16", "LLMEMB_DTYPE"),
        ("REDIS_URL", "redis+sentinel://host", "must name Sentinel's service"),
        ("MAX_QUEUE_TOKENS", "0", "LLMEMB_MAX_QUEUE_TOKENS"),
        ("FILTERABLE", "genres, *", 'LLMEMB_FILTERABLE is "genres, \\*": \\* is all attributes'),
    ],
)
def test_a_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(f"LLMEMB_{name}", value)

    with pytest.raises(BadSettings, match=reason) as error:
        read_settings()

    assert "\n" not in str(error.value)


def test_a_password_in_a_wrong_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMEMB_REDIS_URL", "rediss+sentinel://user:secret@host")

    with pytest.raises(BadSettings) as error:
        read_settings()

    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("told", "names"),
    [(None, None), (" * ", None), ("genres, year,", {"genres", "year"}), (",", set())],
)
def test_attributes_to_filter_by_are_all_or_named(
    monkeypatch: pytest.MonkeyPatch, told: str | None, names: set[str] | None
) -> None:
    if told is not None:
        monkeypatch.setenv("LLMEMB_FILTERABLE", told)

    assert read_settings().filterable_names == names


def test_a_missing_bundle_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMEMB_BUNDLE")

    with pytest.raises(BadSettings, match=r"^LLMEMB_BUNDLE is not set: folder that"):
        read_settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    lines = reference().splitlines()

    assert len(lines) == len(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


def test_a_wrong_setting_stops_the_process_with_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMEMB_BATCH_TOKENS", "-1")

    done = subprocess.run(
        [sys.executable, "-m", "service"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith('LLMEMB_BATCH_TOKENS is "-1": ')
    assert done.stderr.count("\n") == 1


def test_help_lists_every_variable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--help"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    for name in Settings.model_fields:
        assert f"LLMEMB_{name.upper()}" in done.stdout
