"""Every panel of the dashboard asks for what the service really says, and gets it."""

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.service.conftest import RedisServer
from tests.service.running import ROOT, Client, free_port, in_a_process

GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "llmemb.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(title of the panel, expression) of every query."""
    return [(panel["title"], each["expr"]) for panel in PANELS for each in panel["targets"]]


def selected(expression: str) -> list[tuple[str, set[str]]]:
    """(metric, names of the labels that are asked for) of every selector."""
    found = re.findall(r"\b([a-z_]+)\{([^}]*)\}", expression)
    return [
        (metric, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))) for metric, labels in found
    ]


def known(text: str) -> dict[str, set[str]]:
    """Of each metric that a service exposes, the names of its labels."""
    found: dict[str, set[str]] = {}
    for metric, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(metric, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize(("title", "expression"), queries())
def test_a_panel_asks_for_metrics_and_labels_that_the_service_has(
    shared: Client, title: str, expression: str
) -> None:
    shared.recommended(["1"])  # the labels of histograms that stand at 0
    exposed = known(shared.get("/metrics").text)

    for metric, labels in selected(expression):
        assert metric in exposed, f"{title}: {metric}"
        # Prometheus adds these two.
        assert labels <= exposed[metric] | {"job", "instance"}, f"{title}: {metric}{labels}"
        assert {"job", "instance"} <= labels, f"{title}: whose {metric}?"


def test_every_metric_of_the_service_but_those_of_other_use_is_on_a_panel(shared: Client) -> None:
    shown = {metric for _, expression in queries() for metric, _ in selected(expression)}

    families = {
        re.sub("_(bucket|count|sum)$", "", name) for name in known(shared.get("/metrics").text)
    }
    seen = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}

    assert families - seen == {"process_virtual_memory_bytes"}


def test_panels_have_a_title_a_unit_and_a_place_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in PANELS]
    for panel in PANELS:
        assert titles.count(panel["title"]) == 1
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


def test_grafana_is_told_of_prometheus_and_of_the_dashboard() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    grafana = compose["services"]["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    (provider,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "llmemb.yml").read_text()
    )["providers"]

    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert "prometheus" in compose["services"]
    assert mounted["./docker/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounted["./docker/grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/llmemb.json"


# --- with a real Prometheus ------------------------------------------------------------------


@contextmanager
def prometheus(folder: Path, *targets: int) -> Iterator[httpx.Client]:
    """A real Prometheus by the project's own configuration, but for targets and intervals."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus on PATH; Debian's package of that name has it")
    config = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in targets]}]
    shutil.copy(ROOT / "docker" / "prometheus" / "rules.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client,
    ):
        try:
            wait_until(lambda: client.get("/-/ready").status_code == 200)
            yield client
        finally:
            process.terminate()
            process.wait(30)


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask until it holds; who cannot be reached does not yet hold."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(httpx.TransportError):
            if holds():
                return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def answered(client: httpx.Client, expression: str) -> list[float]:
    """The values that an expression has now, as a panel asks for it; without those that are NaN."""
    asked = expression.replace("$__rate_interval", "10s").replace("$instance", ".*")
    assert "$" not in asked
    answer = client.get("/api/v1/query", params={"query": asked}).json()
    assert answer["status"] == "success", f"{expression}: {answer['error']}"
    values = [float(each["value"][1]) for each in answer["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


def load(client: Client, stop: threading.Event) -> None:
    """What makes every metric move: all sorts of requests, some of them wrong, over and over."""
    number = 0
    while not stop.is_set():
        number += 1
        film = {"item_id": f"new-{number}", "attributes": {"title": f"Film {number} " + "x" * 40}}
        old = {"item_id": "again", "attributes": {"title": "A film that the cache knows"}}
        client.put(f"/items/new-{number}", json={"attributes": film["attributes"]})
        client.post("/embed", json={"items": [film, old]})
        client.post("/recommend", json={"history": ["1", "2", "no such film"]})
        client.post("/recommend", json={"history": ["no such film"]})
        client.post("/embed", json={"items": []})
        client.get("/items/1")
        stop.wait(0.02)


@pytest.mark.monitoring
def test_every_panel_has_data_under_load(tiny_bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    stop = threading.Event()
    with (
        RedisServer(tmp_path) as redis,
        in_a_process(tiny_bundle, tmp_path / "catalogue", port, LLMEMB_REDIS_URL=redis.url) as one,
        Client(port) as client,
        prometheus(tmp_path, port) as asked,
    ):
        client.wait_until_ready(one)
        loading = threading.Thread(target=load, args=(client, stop))
        loading.start()
        missing = dict.fromkeys(queries())
        try:
            deadline = time.monotonic() + 60
            while missing and time.monotonic() < deadline:
                time.sleep(1)
                missing = {each: None for each in missing if not answered(asked, each[1])}
            instances = asked.get("/api/v1/label/instance/values").json()["data"]
            rules = asked.get("/api/v1/rules").json()["data"]["groups"]
        finally:
            stop.set()
            loading.join()

    assert list(missing) == []
    assert instances == [f"127.0.0.1:{port}"]
    assert rules[0]["rules"]
    assert {rule["health"] for rule in rules[0]["rules"]} == {"ok"}


@pytest.mark.monitoring
def test_prometheus_raises_an_alert_for_a_service_that_has_died(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    port = free_port()

    def state(client: httpx.Client) -> str:
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        return {rule["name"]: str(rule["state"]) for rule in rules}["LlmembDown"]

    with (
        in_a_process(tiny_bundle, tmp_path / "catalogue", port) as one,
        Client(port) as client,
    ):
        client.wait_until_ready(one)
        with prometheus(tmp_path, port) as asked:
            wait_until(lambda: answered(asked, 'up{job="llmemb"}') == [1])
            assert state(asked) == "inactive"
            one.kill()
            wait_until(
                lambda: state(asked) == "pending"
            )  # a minute later it fires, as promtool has tested
