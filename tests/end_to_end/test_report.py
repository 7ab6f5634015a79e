"""The report on a run: what a browser gets, and that it says what the run says."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.end_to_end.conftest import write_config, write_data
from training.__main__ import main
from training.report_page import as_html

VOID = {"meta", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """A page taken apart: its charts, its text, and what it refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.charts: list[dict[str, str]] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(html)
        assert self.open == [], "not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.refers += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.ids += [found[name] for name in ("id",) if name in found]
        if tag == "svg":
            self.charts.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "
        if "svg" in self.open and self.open[-1] in {"title", "desc"}:
            self.charts[-1][self.open[-1]] = data


@pytest.fixture(scope="module")
def run(trained: Path) -> Path:
    """The finished run, its cold items asked for, too."""
    assert main(["evaluate", "--cold", "--config", str(trained.parent / "run.toml")]) == 0
    return trained


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def test_the_page_is_whole_and_needs_nothing_but_itself(page: Page, run: Path) -> None:
    html = (run / "report.html").read_text()

    assert all(each.startswith("#") and each[1:] in page.ids for each in page.refers)
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert len(set(page.ids)) == len(page.ids)


def test_every_chart_has_a_title_and_says_in_words_what_it_shows(page: Page) -> None:
    titles = [chart["title"] for chart in page.charts]

    assert len(set(titles)) == len(titles)
    assert all(chart["role"] == "img" and chart["desc"] for chart in page.charts)
    for expected in (
        "HR@10 by popularity of the hidden item",
        "NDCG@10 by kind of item",
        "NDCG@10 of cold items and of others",
        "SCFT: contrastive loss",
        "RAT: validation NDCG@10 of each view",
        "Map of the items before SCFT",
        "Map of the items after SCFT",
        "Map of the items after RAT (text view)",
        "Time of each step",
    ):
        assert expected in titles


def test_its_numbers_are_those_of_the_run(page: Page, run: Path) -> None:
    figures = json.loads((run / "evaluate" / "metrics.json").read_text())
    cold = json.loads((run / "cold" / "evaluate" / "metrics.json").read_text())
    data = json.loads((run / "prepare" / "done.json").read_text())

    for protocol in ("full", "unfiltered", "sampled"):
        for model, sign in (("ours", ""), ("id-only", ""), ("difference", "+")):
            for group in figures[protocol][model].values():
                for cell in group.values():
                    mean, low, high = (f"{cell[n]:{sign}.4f}" for n in ("mean", "low", "high"))
                    assert f"{mean} [{low}, {high}]" in page.text
    for metric in ("hr", "ndcg"):
        assert f"cold items {cold['cold_test'][metric]['mean']:.4f}" in page.text
    assert f"{data['items']:,} items and {data['interactions']:,} interactions" in page.text
    for view in ("id", "text", "hybrid"):
        best = json.loads((run / "rat" / view / "done.json").read_text())["validation_ndcg10"]
        assert f"{view} (best {best:.4f})" in page.text


def test_its_curves_have_a_point_for_every_step_and_epoch(facts: dict[str, Any], run: Path) -> None:
    text = (run / "scft" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert facts["scft"]["loss"] == [[line["step"], line["loss"]] for line in lines]
    for view, found in facts["rat"]["views"].items():
        epochs = json.loads((run / "rat" / view / "done.json").read_text())["epochs"]
        assert [epoch for epoch, _ in found["validation"]] == list(range(1, epochs + 1))


def test_users_in_the_buckets_of_popularity_are_all_users_and_their_mean_is_the_whole(
    facts: dict[str, Any],
) -> None:
    quality = facts["quality"]
    users = [bucket["targets"] for bucket in quality["buckets"]]
    hits = sum(each["targets"] * each["ours"]["hr"]["mean"] for each in quality["buckets"])

    assert sum(users) == quality["targets"]["overall"]
    assert hits / sum(users) == pytest.approx(quality["full"]["ours"]["overall"]["hr"]["mean"])


def test_ten_items_are_judged_each_with_its_nearest_in_every_stage_and_never_itself(
    facts: dict[str, Any], page: Page
) -> None:
    space = facts["space"]
    stages = ["before SCFT", "after SCFT", "after RAT (text view)"]

    assert list(space["stages"]) == stages
    assert len(space["judged"]) == 10
    for item in space["judged"]:
        assert item["title"] in page.text
        for stage in stages:
            near = [each["item_id"] for each in item["near"][stage]]
            assert len(set(near)) == 4
            assert item["item_id"] not in near
    assert {len(stage["points"]) for stage in space["stages"].values()} == {space["items"]}


def test_the_exact_command_machine_and_versions_are_on_it(page: Page, run: Path) -> None:
    config = run.parent / "run.toml"
    assert f"python -m training run --config {config}" in page.text
    assert "version: torch" in page.text
    assert "machine: cpu" in page.text


def test_what_is_not_there_yet_is_said_with_what_to_run_and_has_no_chart(
    tmp_path: Path, tiny_llm: Path
) -> None:
    config = write_config(tmp_path, write_data(tmp_path / "data", predictable=True), tiny_llm)
    assert main(["prepare", "--config", str(config)]) == 0

    assert main(["report", "--run", str(tmp_path / "run")]) == 0

    page = Page((tmp_path / "run" / "report.html").read_text())
    assert [chart["title"] for chart in page.charts] == ["Time of each step"]
    for step in ("evaluate", "rat", "scft", "encode"):
        assert f"python -m training {step} --config {config}" in page.text
    assert f"python -m training evaluate --config {config} --cold" in page.text
    assert "60 items and 1,080 interactions" in page.text


def test_a_step_whose_settings_changed_since_is_missing_and_not_mixed_in(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["rat"]["seed"] += 1
    path.write_text(json.dumps(config))

    assert main(["report", "--run", str(tmp_path / "run")]) == 0

    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "was made with another `rat`" in found["rat"]["missing"]
    assert "missing" in found["quality"]
    assert "missing" not in found["scft"]
    assert json.loads(path.read_text()) == config  # a report changes nothing


def test_passwords_in_addresses_are_in_no_report(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["path"] = "https://me:secret@shop/data.zip"
    path.write_text(json.dumps(config))

    assert main(["report", "--run", str(tmp_path / "run")]) == 0

    for name in ("report.json", "report.html"):
        told = (tmp_path / "run" / name).read_text()
        assert "secret" not in told
        assert "https://…@shop/data.zip" in told


def test_a_run_that_holds_items_out_has_a_report_too(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "cold", tmp_path / "cold")

    assert main(["report", "--run", str(tmp_path / "cold")]) == 0

    found = json.loads((tmp_path / "cold" / "report.json").read_text())
    assert found["quality"]["missing"] == "this run holds items out; see cold items"
    assert found["data"]["items"] == 60


def test_a_comparison_of_the_same_data_is_shown_beside_it(run: Path) -> None:
    folder = run.parent / "compare-small"
    (folder / "ours" / "seed-1").mkdir(parents=True)
    shutil.copyfile(run / "config.json", folder / "ours" / "seed-1" / "config.json")
    cell = {"mean": 0.1234, "deviation": 0.001}
    row = {"protocols": {"full": {"overall": {"ndcg10": cell}, "tail": {"ndcg10": cell}}}}
    other = {"mean": 0.1, "deviation": 0.002, "difference": -0.0234, "p": 0.012}
    less = {"protocols": {"full": {"overall": {"ndcg10": other}, "tail": {"ndcg10": other}}}}
    results = {
        "seeds": [1, 2],
        "reference": "ours",
        "targets": {"overall": 9, "tail": 4},
        "rows": [
            {"variant": "ours", "model": "ours", **row},
            {"variant": "no-scft", "model": "ours", **less},
        ],
    }
    (folder / "results.json").write_text(json.dumps(results))

    assert main(["report", "--run", str(run)]) == 0

    page = Page((run / "report.html").read_text())
    shutil.rmtree(folder)
    assert "NDCG@10 of the variants in compare-small" in [each["title"] for each in page.charts]
    assert "0.1000 ± 0.0020 (-0.0234, p 0.012)" in page.text


def test_it_says_how_the_run_was_split_and_what_read_the_items(facts: dict[str, Any]) -> None:
    config = facts["config"]
    by_time = {**config, "data": {**config["data"], "split": "time"}}
    counted = {**config, "encode": {**config["encode"], "vectors": "tf-idf"}}

    assert "users' last item was hidden" in as_html(facts)
    assert config["llm"]["path"] in as_html(facts).split("<nav>")[0]
    told = as_html({**facts, "config": by_time})
    assert "All that came after one moment was hidden" in told
    assert "last item was hidden" not in told
    head = as_html({**facts, "config": counted}).split("<nav>")[0]
    assert "read by <b>counted words (TF-IDF), no LLM</b>" in head
    assert config["llm"]["path"] not in head


@pytest.mark.parametrize(
    ("line", "logged"),
    [
        ('{"epoch": 0, "loss": NaN, "validation_ndcg10": NaN}', "report: "),
        ('{"loss": 1.0}', "the run's report was not written (Damaged: "),
    ],
)
def test_a_damaged_curve_never_fails_a_command_whose_work_is_done(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, logged: str
) -> None:
    caplog.set_level("INFO")
    shutil.copytree(trained, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    page.unlink()
    with (tmp_path / "run" / "rat" / "id" / "metrics.jsonl").open("a") as metrics:
        metrics.write(line + "\n")
    config = str(trained.parent / "run.toml")

    assert main(["export", "--config", config, "--set", f"folder={tmp_path / 'run'}"]) == 0

    assert logged in caplog.messages[-1]
    assert page.exists() == (logged == "report: ")


def test_what_is_no_finite_number_is_null_in_strict_json(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with (run / "rat" / "id" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 99, "loss": NaN, "validation_ndcg10": Infinity}\n')

    assert main(["report", "--run", str(run)]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((run / "report.json").read_text(), parse_constant=refuse)
    assert found["rat"]["views"]["id"]["loss"][-1] == [99, None]
    assert found["rat"]["views"]["id"]["validation"][-1] == [99, None]


@pytest.mark.parametrize(
    ("damaged", "content", "told"),
    [
        ("rat/id/metrics.jsonl", '{"epoch": 1, "validation_ndcg10": 0}', "line 1 has no number `l"),
        ("rat/id/metrics.jsonl", '{"loss": 1, "validation_ndcg10": 0}', "line 1 has no number `e"),
        ("rat/id/metrics.jsonl", '{"epoch": 1, "loss": "x"}', "line 1 has no number `loss`"),
        ("scft/metrics.jsonl", '{"step": 1, "loss": 1}\n[]', "line 2 has no number `step`"),
        ("scft/metrics.jsonl", '{"step": 1, "loss": null}', "line 1 has no number `loss`"),
        ("rat/made.json", "{", "Expecting property name"),
        ("rat/made.json", "{}", "it has no `sections`; remove the folder "),
        ("prepare/done.json", "{}", "it has no `data`; remove it, and run what wrote it again"),
        ("scft/done.json", '{"adapter": null}', "it has no `steps`"),
        ("rat/done.json", '{"weights": {}}', "it has no `validation`"),
        ("evaluate/done.json", '{"k": 10}', "it has no `targets`"),
        ("evaluate/done.json", '{"k": 1', "Expecting ',' delimiter"),
        ("prepare/done.json", "3", "it is no JSON object"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
    content: str,
    told: str,
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / damaged
    path.write_text(content)

    assert main(["report", "--run", str(tmp_path / "run")]) == 1

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path} is damaged: ")
    assert told in error


def test_tensorboard_has_the_same_curves(run: Path, facts: dict[str, Any]) -> None:
    events = EventAccumulator(str(run / "tensorboard" / "scft"))
    events.Reload()

    found = [[event.step, event.value] for event in events.Scalars("loss")]

    assert found == [[step, pytest.approx(loss)] for step, loss in facts["scft"]["loss"]]


def test_text_from_the_data_cannot_become_markup(tmp_path: Path, tiny_llm: Path) -> None:
    data = write_data(tmp_path / "data", predictable=True)
    path = data / "items.jsonl"
    path.write_text(path.read_text().replace('"title": "', '"title": "<script>alert(1)</script>'))
    config = write_config(tmp_path, data, tiny_llm)
    for step in ("prepare", "scft", "encode"):
        assert main([step, "--config", str(config), "--set", "scft.steps=0"]) == 0

    assert main(["report", "--run", str(tmp_path / "run")]) == 0

    html = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in html
    assert re.search(r"&lt;script&gt;alert\(1\)&lt;/script&gt;a", html)
    assert "LLM as it comes" in html
