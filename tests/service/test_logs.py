"""What a log line holds."""

import json
import logging
import signal
from pathlib import Path

import pytest

from service.logs import formatter
from service.metrics import add_stage
from tests.service.conftest import Serve
from tests.service.running import Client, free_port, in_a_process, wait_for_record

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EMBED = {"items": [{"item_id": "secret-id", "attributes": {"title": "secret text"}}]}


def test_every_line_of_the_process_is_json(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("shop read,write s3cr3t-key\n")
    port = free_port()
    settings = {"LLMEMB_LOG_LEVEL": "debug", "LLMEMB_API_KEYS_FILE": str(keys)}
    with in_a_process(tiny_bundle, tmp_path / "catalogue", port, **settings) as process:
        with Client(port) as client:
            client.wait_until_ready(process)
            headers = {"authorization": "Bearer s3cr3t-key", "x-request-id": "abc"}
            served = client.post("/embed", json=EMBED, headers=headers)
            refused = client.post("/embed", json=EMBED, headers={"authorization": "Bearer other"})
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)

    lines = [json.loads(line) for line in output.splitlines()]
    requests = [line for line in lines if line.get("route") == "/embed"]
    assert (served.status_code, refused.status_code) == (200, 401)
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    line, unknown = requests
    assert line["message"] == "request"
    assert (line["level"], line["logger"]) == ("INFO", "service.edge")
    assert (line["request_id"], line["method"], line["status"]) == ("abc", "POST", 200)
    assert line["key"] == "shop"
    assert line["bytes_in"] == int(served.request.headers["content-length"])
    assert line["ms"] > 0
    assert unknown["status"] == 401
    assert "key" not in unknown
    assert "plain keys" in next(line for line in lines if line["level"] == "WARNING")["message"]
    for secret in ("secret", "s3cr3t", "Ran"):
        assert secret not in output


def test_a_refused_request_has_its_line_and_its_route(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keys = tmp_path / "keys"
    keys.write_text("shop read s3cr3t-key\n")
    client = serve(api_keys_file=keys)

    client.post("/embed", json=EMBED)
    client.delete("/items/a%2Fb")
    client.get("/invented")
    client.delete("/items/c", headers={"authorization": "Bearer s3cr3t-key"})

    record = wait_for_record(caplog, "request", method="POST", route="/embed", status=401)
    assert not hasattr(record, "key")
    wait_for_record(caplog, "request", method="DELETE", route="/items/{item_id}", status=401)
    wait_for_record(caplog, "request", method="GET", route="unmatched", status=401)
    wait_for_record(caplog, "request", method="DELETE", status=403, key="shop")


def test_stages_and_the_callers_trace_are_in_the_line(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = serve()
    app = client.app

    @app.get("/staged")
    async def staged() -> None:
        add_stage("thinking", 0.0123)

    client.get("/staged", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    client.get("/staged", headers={"traceparent": "00-nonsense-01"})

    first = wait_for_record(caplog, "request", route="/staged", trace_id=TRACE)
    assert first.stages_ms == {"thinking": 12.3}  # type: ignore[attr-defined]
    others = [each for each in caplog.records if getattr(each, "route", "") == "/staged"]
    assert [each for each in others if not hasattr(each, "trace_id")] or len(others) == 1


def test_stages_of_one_request_are_not_in_anothers(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client = serve()

    @client.app.get("/staged/{name}")
    async def staged(name: str) -> None:
        add_stage(name, 1.0)

    for name in ("a", "b", "c"):
        client.get(f"/staged/{name}", headers={"x-request-id": name})

    for name in ("a", "b", "c"):
        record = wait_for_record(caplog, "request", request_id=name)
        assert record.stages_ms == {name: 1000.0}  # type: ignore[attr-defined]


def a_record(**fields: object) -> logging.LogRecord:
    record = logging.LogRecord("service.edge", logging.INFO, "", 0, "two\n%s", ("lines",), None)
    record.__dict__.update(fields)
    return record


def test_a_json_line_is_one_line_whatever_it_holds() -> None:
    line = formatter("json").format(a_record(route="/x\n{", ms=1.5, color_message="\x1b[32m"))

    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").startswith("20")
    assert found == {
        "level": "INFO",
        "logger": "service.edge",
        "message": "two\nlines",
        "route": "/x\n{",
        "ms": 1.5,
    }


def test_a_traceback_is_a_field() -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        record = a_record(exc_info=(type(error), error, error.__traceback__))

    line = formatter("json").format(record)

    assert "ZeroDivisionError" in json.loads(line)["traceback"]


def test_a_text_line_has_its_fields_behind_the_message() -> None:
    line = formatter("text").format(a_record(route="/embed", status=200))

    assert line.endswith(" INFO service.edge two\nlines route=/embed status=200")
