"""Is an acknowledged item ever lost? SIGKILLs the real service at random moments under writes."""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.figures import record


def call(address: str, method: str, path: str, body: object = None) -> int:
    """The status of one request; 0 where there was no answer."""
    request = urllib.request.Request(address + path, method=method)
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0


def main() -> None:
    """Kill, restart, look for every item whose PUT or DELETE was answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--kills", type=int, default=50)
    given = parser.parse_args()
    chance = random.Random(0)
    acknowledged: dict[str, bool] = {}  # id -> whether it must be there
    lost, acknowledgements, restarts = [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        for kill in range(given.kills + 1):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            address = f"http://127.0.0.1:{port}"
            arguments = ["--bundle", str(given.bundle), "--catalogue", folder, "--port", str(port)]
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *arguments], stderr=subprocess.DEVNULL
            )
            started = time.monotonic()
            while call(address, "GET", "/health/ready") != 200:
                if process.poll() is not None:
                    sys.exit(f"the service did not come back after {kill} kills")
                time.sleep(0.05)
            restarts.append(time.monotonic() - started)
            for item, there in acknowledged.items():
                if (call(address, "GET", f"/items/{item}") == 200) != there:
                    lost.append(item)
            if kill == given.kills:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                break
            threading.Timer(chance.uniform(0.05, 1.5), process.kill).start()
            number = 0
            while process.poll() is None:
                item = f"kill-{kill}-{number}"
                body = {"attributes": {"title": f"Film {item}", "release_year": "1999"}}
                if call(address, "PUT", f"/items/{item}", body) in {200, 201}:
                    acknowledged[item] = True
                    acknowledgements += 1
                if number % 5 == 4:
                    gone = f"kill-{kill}-{number - 2}"
                    status = call(address, "DELETE", f"/items/{gone}")
                    if status == 204:
                        acknowledged[gone] = False
                        acknowledgements += 1
                    elif status == 0:
                        acknowledged.pop(gone, None)  # it may have happened or not
                number += 1
            process.wait()
            print(f"kill {kill + 1}: {acknowledgements} acknowledged, {len(lost)} lost", flush=True)
    restart = sorted(restarts)[len(restarts) // 2]
    print(
        f"{given.kills} kills, {acknowledgements} acknowledged writes, {len(lost)} lost: {lost[:5]}"
    )
    print(f"start to ready, median: {restart:.1f} s")
    record(
        {
            "catalogue.kills": (given.kills, "SIGKILLs"),
            "catalogue.acknowledged_writes": (acknowledgements, "PUTs and DELETEs"),
            "catalogue.lost": (len(lost), "acknowledged writes"),
        },
        f"python -m benchmarks.kills --bundle {given.bundle} --kills {given.kills}",
    )


if __name__ == "__main__":
    main()
