"""Is an acknowledged write ever lost? SIGKILLs the real service at random moments under writes.

Items are put, hidden and deleted one by one, in batches and by imports, all at once, and meanwhile
another bundle is made ready and takes the place of the one that is served, again and again. After
each kill the service is started again on the same folder, all that it has is exported, and
compared with what was acknowledged. What was under way at the kill may be there or not.
"""

import argparse
import base64
import json
import random
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogue import fill
from benchmarks.figures import machine, record
from benchmarks.index import grouped
from benchmarks.serving.servers import DIRECT, Server, ours
from models.bundle import Bundle
from service.upgrade import OVER
from tests.tiny import write_llm, write_tiny_bundle

WIDTH = 16
BATCH, LINES = 20, 200  # of a batch, of an import
BUNDLES = "/admin/bundles"
CONFLICT = 409
LONGEST_S = 6.0  # between a start and a kill
RESTS_S = (0.0, 1.0, LONGEST_S)  # after a write
OPENING, READY = "opening the catalogue", "ready"


class Killed(Exception):
    """There was no answer."""


class Writers:
    """What writes, and what must be there.

    Attributes:
        sure: of each id what was acknowledged last: its title and whether it is hidden; None: gone.
        acknowledged: how many writes were.
        flips: how often another bundle became the active one.

    Args:
        bundles: names of those that take turns.
    """

    def __init__(self, bundles: Sequence[str]) -> None:
        self.sure: dict[str, tuple[str, bool] | None] = {}
        self.acknowledged = 0
        self.flips = 0
        self._bundles = bundles
        self._number = 0
        self._rest_s = 0.0
        self._settled: list[str] = []
        self._lock = threading.Lock()

    def until_killed(self, server: Server, chance: random.Random) -> None:
        """Write in every way until nobody answers; some of the times with rests.

        Without any, more is written than another bundle can be told of.
        """
        self._rest_s = chance.choice(RESTS_S)
        ways = [self._one, self._batch, self._import, self._again, self._reindex]
        threads = [
            threading.Thread(
                target=self._repeat, args=(way, server, random.Random(chance.random()))
            )
            for way in ways
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _repeat(
        self, way: Callable[[Server, random.Random], None], server: Server, chance: random.Random
    ) -> None:
        try:
            while not server.killed:
                way(server, chance)
                until = time.monotonic() + self._rest_s
                while time.monotonic() < until and not server.killed:
                    time.sleep(0.02)
        except Killed:
            pass

    def _fresh(self, count: int) -> list[str]:
        with self._lock:
            self._number += count
            return [f"kill/{number}" for number in range(self._number - count, self._number)]

    def _done(self, told: dict[str, tuple[str, bool] | None]) -> None:
        with self._lock:
            self.sure |= told
            self.acknowledged += len(told)

    def _one(self, server: Server, chance: random.Random) -> None:
        (item_id,) = self._fresh(1)
        call(server, "PUT", f"/items/{item_id}", {"attributes": {"title": item_id}})
        self._done({item_id: (item_id, False)})
        if chance.random() < 0.3:
            self._uncertain(item_id, lambda: call(server, "DELETE", f"/items/{item_id}"))
            self._done({item_id: None})
        elif chance.random() < 0.3:
            body = {"hidden": True}
            self._uncertain(item_id, lambda: call(server, "PATCH", f"/items/{item_id}", body))
            self._done({item_id: (item_id, True)})

    def _uncertain(self, item_id: str, write: Callable[[], object]) -> None:
        """A write that may be done or not if nobody answers."""
        with self._lock:
            self.sure.pop(item_id, None)
        write()

    def _batch(self, server: Server, chance: random.Random) -> None:
        ids = self._fresh(BATCH)
        items = [{"item_id": each, "attributes": {"title": each}} for each in ids]
        call(server, "POST", "/items:batch", {"items": items, "atomic": chance.random() < 0.5})
        self._done({each: (each, False) for each in ids})
        self._settled += ids
        time.sleep(0.01)

    def _import(self, server: Server, chance: random.Random) -> None:
        ids = self._fresh(LINES)
        vector = base64.b64encode(np.float32([chance.gauss(0, 1) for _ in range(WIDTH)]).tobytes())
        lines = [
            {"item_id": each, "attributes": {"title": each}, "vectors": {"text": vector.decode()}}
            for each in ids
        ]
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        name = ids[0].replace("/", "-")
        active = call(server, "GET", "/info")["bundle"]
        try:
            call(server, "POST", f"/items:import?import_id={name}&bundle={active}", body)
        except urllib.error.HTTPError as error:
            if error.code != CONFLICT:
                raise
            return  # another bundle is active meanwhile
        self._done({each: (each, False) for each in ids})
        self._settled += ids
        time.sleep(0.2)  # else nobody keeps up with it

    def _reindex(self, server: Server, chance: random.Random) -> None:
        """Have the bundle active that is not."""
        known = call(server, "GET", BUNDLES)["bundles"]
        active = {each["name"] for each in known if each["active"]}
        other = chance.choice([name for name in self._bundles if name not in active])
        call(server, "POST", BUNDLES, {"bundle": other})
        while (told := call(server, "GET", BUNDLES)["upgrade"])["state"] not in OVER:
            time.sleep(0.05)
        if told["state"] == "flipped":
            self.flips += 1

    def _again(self, server: Server, chance: random.Random) -> None:
        """An item of a batch or an import gets another title."""
        if not self._settled:
            time.sleep(0.01)
            return
        item_id, title = chance.choice(self._settled[-2000:]), f"again {chance.random()}"
        body = {"attributes": {"title": title}}
        self._uncertain(item_id, lambda: call(server, "PUT", f"/items/{item_id}", body))
        self._done({item_id: (title, False)})


def call(server: Server, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401
    """The decoded answer of one request that is to succeed.

    Raises:
        Killed: there was no answer.
    """
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = "application/json"
    if isinstance(body, bytes):
        kind = "application/x-ndjson"
    elif method == "PATCH":
        kind = "application/merge-patch+json"
    address = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(address, raw, {"Content-Type": kind}, method=method)  # type: ignore[arg-type]
    try:
        with DIRECT.open(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        if error.code not in {429, 503}:
            raise
        time.sleep(0.2)
        raise Killed from None
    except (OSError, urllib.error.URLError):
        raise Killed from None


def exported(server: Server) -> dict[str, tuple[str, bool]]:
    """Of each item its title, and whether it is hidden."""
    with DIRECT.open(f"http://127.0.0.1:{server.port}/items:export", timeout=120) as answer:
        items = [json.loads(line) for line in answer]
    return {
        each["item_id"]: (each["attributes"].get("title", ""), each["hidden"]) for each in items
    }


def opened_in(log: Path) -> float:
    """Seconds from when the catalogue was opened to ready, by the service's own log."""
    times: dict[str, datetime] = {}
    while READY not in times:  # it is said to us before it is said to the log
        for line in log.read_text().splitlines(keepends=True):
            told = json.loads(line) if line.startswith("{") and line.endswith("\n") else {}
            if told.get("message") in {OPENING, READY}:
                times[told["message"]] = datetime.fromisoformat(told["time"])
    return (times[READY] - times[OPENING]).total_seconds()


def main() -> None:
    """Kill, start again, and look for all that was acknowledged."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--items", type=int, default=100_000, help="that are there at first")
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    print(machine(), flush=True)
    chance = random.Random(0)
    lost: list[str] = []
    opened, ready = [], []
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        folder, bundles = Path(root) / "catalogue", Path(root) / "bundles"
        bundles.mkdir()
        llm = write_llm(Path(root) / "llm")
        names = ["one", "other"]
        for seed, name in enumerate(names):  # other projections of the same LLM vectors
            write_tiny_bundle(bundles / name, llm, count=100, seed=seed, width=WIDTH)
        path = bundles / names[0]
        fill(folder, Bundle.open(path), grouped(given.items, WIDTH))
        writers = Writers(names)
        for kill in range(given.kills + 1):
            started = time.monotonic()
            with ours(path, folder, bundles_dir=bundles) as server:
                ready.append(time.monotonic() - started)
                opened.append(opened_in(server.log))
                there = exported(server)
                for item_id, told in writers.sure.items():
                    if there.get(item_id) != told:
                        lost.append(item_id)
                if kill == given.kills:
                    break
                threading.Timer(chance.uniform(0.05, LONGEST_S), server.kill).start()
                writers.until_killed(server, chance)
                server.process.wait()
            print(
                f"kill {kill + 1}: {writers.acknowledged} acknowledged, {len(lost)} lost, "
                f"{writers.flips} flips, {len(there)} items, opened in {opened[-1]:.1f} s",
                flush=True,
            )
    print(f"lost: {lost[:5]}")
    print(f"from opening to ready: median {np.median(opened):.1f} s, at most {max(opened):.1f} s")
    figures: dict[str, tuple[float, str]] = {
        "catalogue.lost_after_kills": (
            len(lost),
            f"of {writers.acknowledged:,} acknowledged writes, after {given.kills} SIGKILLs; "
            f"{writers.flips} times another bundle had become active",
        ),
        "catalogue.restart_s": (
            round(float(np.median(opened)), 2),
            f"s from opening the catalogue to ready after a kill, {given.items:,} items and more; "
            f"at most {max(opened):.1f}; from the start of the process {np.median(ready):.1f}",
        ),
    }
    for name, (value, unit) in figures.items():
        print(f"{name} = {value} {unit}")
    if not given.dry_run:
        record(figures, f"python -m benchmarks.kills --kills {given.kills}")


if __name__ == "__main__":
    main()
