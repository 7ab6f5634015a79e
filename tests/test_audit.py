"""`make check` fails on a pin with a known vulnerability, and not for want of a network."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class _Database(BaseHTTPRequestHandler):
    """OSV's query API, that knows of one vulnerability."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        package, version = question["package"], question["version"]
        known = {"vulns": [vulnerability("leaky", "1.0", "1.1")]}
        hit = (package["name"], version) == ("leaky", "1.0")
        body = json.dumps(known if hit else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def vulnerability(name: str, version: str, mended: str) -> dict[str, object]:
    package = {"name": name, "ecosystem": "PyPI"}
    events = [{"introduced": "0"}, {"fixed": mended}]
    ranges = [{"type": "ECOSYSTEM", "events": events}]
    affected = [{"package": package, "ranges": ranges, "versions": [version]}]
    return {"id": "PYSEC-2026-1", "summary": "leaks", "affected": affected,
            "published": "2026-01-01T00:00:00Z", "modified": "2026-01-01T00:00:00Z"}  # fmt: skip


@pytest.fixture
def database() -> Iterator[str]:
    pytest.importorskip("pip_audit", reason="make check installs it")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(database: str, pins: Path) -> subprocess.CompletedProcess[str]:
    arguments = [f"--pins={pins}", f"--database={database}"]
    return subprocess.run(
        [sys.executable, "scripts/audit.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"no_proxy": "127.0.0.1"},
    )  # fmt: skip


def test_a_pin_that_is_known_to_be_vulnerable_fails(database: str, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("# ours\nleaky==1.0\ntight==2.0\n")

    done = audit(database, pins)

    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == "audit: leaky 1.0: PYSEC-2026-1, mended in 1.1\n"


def test_pins_that_nothing_is_known_against_pass(database: str, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("leaky==1.1\ntight==2.0\n")

    done = audit(database, pins)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing known against pins.txt" in done.stdout


def test_pins_that_cannot_be_read_fail(database: str, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("leaky>=1.0\n")

    done = audit(database, pins)

    assert done.returncode == 1
    assert "pip-audit failed" in done.stderr


def test_without_the_database_it_is_skipped_at_once_and_says_so(tmp_path: Path) -> None:
    started = time.monotonic()

    done = audit("http://127.0.0.1:9/v1/query", tmp_path / "pins.txt")

    assert done.returncode == 0
    assert done.stdout.startswith("audit: SKIPPED, http://127.0.0.1:9/v1/query cannot be reached")
    assert time.monotonic() - started < 15
