"""The notebook that reads a run's report, its cells run one after the other."""

import json
from pathlib import Path

import pytest

from tests.service.running import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "report.ipynb").read_text())


def run_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMEMB_RUN", str(folder))
    names: dict[str, object] = {}
    for number, cell in enumerate(NOTEBOOK["cells"], 1):
        if cell["cell_type"] == "code":
            source = compile("".join(cell["source"]), f"report.ipynb:cell {number}", "exec")
            exec(source, names)


def test_the_notebook_prints_what_the_report_says(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(trained, monkeypatch)

    told = capsys.readouterr().out
    report = json.loads((trained / "report.json").read_text())
    overall = report["quality"]["full"]["ours"]["overall"]
    assert f"{overall['hr']['mean']:.4f} [{overall['hr']['low']:.4f}" in told
    assert all(f"\n{view} " in told for view in report["rat"]["views"])
    assert all(item["title"] in told for item in report["space"]["judged"])
    assert "█" in told


def test_the_notebook_says_of_a_run_that_is_not_finished_what_is_missing(
    tmp_path: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = json.loads((trained / "report.json").read_text())
    for section in ("data", "quality", "rat", "space"):
        report[section] = {"missing": "it is not finished", "command": f"make {section}"}
    report["timings"] = dict.fromkeys(report["timings"])
    (tmp_path / "report.json").write_text(json.dumps(report))

    run_all(tmp_path, monkeypatch)

    told = capsys.readouterr().out
    assert told.count("it is not finished; make quality") == 2
    assert told.count("not run yet") == 6


def test_no_output_of_the_notebook_is_kept() -> None:
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
