"""The alerts: of metrics that the service has, each tested by promtool, each with its runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service.running import ROOT, Client

FOLDER = ROOT / "docker" / "prometheus"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
TESTS = yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]
}


def anchors(page: Path) -> set[str]:
    """What links to headings of a page may end with, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def promtool(*arguments: str | Path) -> str:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on PATH; Debian's package prometheus has it")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_happened_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]

    assert alert["annotations"].keys() == {"summary", "action", "runbook_url"}
    assert alert["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_own_paragraph_of_the_runbook(name: str) -> None:
    page, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")

    assert anchor == name.lower()
    assert anchor in anchors(ROOT / page)


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    titles = re.findall(r"^#+ (Llmemb\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M)

    assert titles == list(ALERTS)


def test_an_alert_is_of_metrics_that_the_service_has(shared: Client) -> None:
    exposed = set(re.findall(r"^([a-z_]+)", shared.get("/metrics").text, re.MULTILINE))
    watched = {
        metric
        for alert in ALERTS.values()
        for metric in re.findall(r"\b([a-z_]+)\{", alert["expr"])
    } - {"up"}

    assert watched
    assert watched <= exposed


def test_every_alert_is_tested_both_ways() -> None:
    asked = [each for test in TESTS for each in test["alert_rule_test"]]

    for name in ALERTS:
        fires = {bool(each.get("exp_alerts")) for each in asked if each["alertname"] == name}
        assert fires == {True, False}, name


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "tests.yml")
