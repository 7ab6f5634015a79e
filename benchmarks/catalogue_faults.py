"""What a sick disk or clock does to a catalogue: `python -m benchmarks.catalogue_faults`, as root.

The real service on a file system of its own, a few megabytes of memory: it is filled to the brim,
made read-only, and its files are damaged, one fault after the other. After each nothing that was
acknowledged is lost, or the start is refused in one sentence and a backup helps; and no vector is
ever wrong. The LLM is a tiny one.
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.catalogue import entry, fill
from benchmarks.figures import machine, record
from benchmarks.index import grouped
from benchmarks.serving.servers import Server, free_port, ours, tiny
from models.bundle import Bundle
from service.schema import FILE
from service.store import CatalogueStore
from service.vectors import Floats

WIDTH = 16
ITEMS = 25_000  # so many that the index is kept on disk


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Verdicts:
    """What was kept of what was promised."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def say(self, promise: str, kept: bool) -> None:
        """Print it, and remember it if it is broken."""
        print(f"{'kept  ' if kept else 'BROKEN'} {promise}", flush=True)
        if not kept:
            self.broken.append(promise)


def status(server: Server, method: str, path: str, body: object = None) -> int:
    """Of one request."""
    try:
        server.ask(path, body, method)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def right(server: Server, vectors: Floats, some: range) -> bool:
    """Whether items have the vectors that they were given, by /search and by what is stored."""
    for number in some:
        vector = vectors[number]
        told = server.ask("/search", {"view": "text", "vector": vector.tolist(), "k": 500})
        found = {each["item_id"]: each["score"] for each in told["items"]}
        best = float(np.sort(vectors @ vector)[-1])
        if abs(max(found.values()) - best) > 1e-3 * abs(best):
            return False
    return True


def refused(bundle: Path, folder: Path) -> str:
    """The last thing a service says that does not start; empty if it does."""
    command = [sys.executable, "-m", "service", f"--bundle={bundle}", f"--catalogue={folder}"]
    environment = os.environ | {"LLMEMB_PORT": str(free_port()), "LLMEMB_LOG_FORMAT": "text"}
    try:
        told = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    last = told.stderr.strip().splitlines()[-1:]
    return last[0] if last and told.returncode == 1 and "Traceback" not in told.stderr else ""


def full(root: Path, bundle: Path, verdicts: Verdicts) -> None:
    """A disk without room."""
    with disk(root / "full", 3) as folder:
        acknowledged = []
        with ours(bundle, folder) as server:
            answer = 200
            for number in range(20_000):
                body = {"attributes": {"title": f"Film {number}", "plot": "long " * 500}}
                answer = status(server, "PUT", f"/items/full-{number}", body)
                if answer != 200:
                    break
                acknowledged.append(f"full-{number}")
            verdicts.say(f"full disk: 507 after {len(acknowledged)} items", answer == 507)
            there = all(status(server, "GET", f"/items/{each}") == 200 for each in acknowledged)
            verdicts.say("full disk: all that was acknowledged is there", there)
            body = {"history": acknowledged[:3], "k": 5}
            verdicts.say(
                "full disk: it recommends", status(server, "POST", "/recommend", body) == 200
            )
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        with ours(bundle, folder) as server:
            there = all(status(server, "GET", f"/items/{each}") == 200 for each in acknowledged)
            verdicts.say("full disk: all is there after a start with more room", there)
            answer = status(server, "PUT", "/items/more", {"attributes": {"title": "More"}})
            verdicts.say("full disk: and it takes more", answer == 200)


def read_only(root: Path, bundle: Path, verdicts: Verdicts) -> None:
    """A disk that may not be written."""
    with disk(root / "readonly", 64) as folder:
        with ours(bundle, folder) as server:
            status(server, "PUT", "/items/one", {"attributes": {"title": "One"}})
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        sentence = refused(bundle, folder)
        verdicts.say(f"read-only folder: refused: {sentence}", "cannot be written" in sentence)
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        with ours(bundle, folder) as server:
            verdicts.say(
                "read-only folder: all is there after", status(server, "GET", "/items/one") == 200
            )


def damaged(root: Path, bundle: Path, vectors: Floats, verdicts: Verdicts) -> None:
    """Files of the index, then a page of the database, that say something else."""
    folder = root / "damaged"
    fill(folder, Bundle.open(bundle), vectors)
    backup = root / "backup.sqlite"
    command = [sys.executable, "-m", "service", "backup", str(backup), "--catalogue", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for number, name in enumerate(["text.faiss", "places.npz", "manifest.json"]):
        for generation in (folder / "index").iterdir():
            path = generation / name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 255
            path.write_bytes(content)
        with ours(bundle, folder) as server:
            log = server.log.read_text()
            told = "is not used" in log and "anew" in log
            verdicts.say(f"damaged {name}: told, and the index is made anew", told)
            some = range(number * 10, number * 10 + 10)
            verdicts.say(f"damaged {name}: every vector is right", right(server, vectors, some))
            time.sleep(3)  # it is kept on disk again
    path = folder / FILE
    whole = path.read_bytes()
    shutil.rmtree(folder / "index")
    content = bytearray(whole)
    content[content.index(vectors[5].tobytes()) + 1] ^= 1
    path.write_bytes(content)
    sentence = refused(bundle, folder)
    verdicts.say(f"a bit of a vector: refused: {sentence}", "not what was written" in sentence)
    content = bytearray(whole)
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    sentence = refused(bundle, folder)
    verdicts.say(f"damaged page: refused: {sentence}", "is damaged" in sentence)
    again = root / "restored"
    command = [sys.executable, "-m", "service", "restore", str(backup), "--catalogue", str(again)]
    restored = subprocess.run(command, check=False, capture_output=True).returncode == 0
    with ours(bundle, again) as server:
        items = server.ask("/info")["catalogue"]["items"]
        verdicts.say(
            f"damaged page: the backup has all {items} items, and their vectors",
            restored and items >= len(vectors) and right(server, vectors, range(50, 60)),
        )
    shutil.rmtree(folder)


def clock(root: Path, bundle: Path, verdicts: Verdicts) -> None:
    """A clock that goes backwards."""
    opened, vectors = Bundle.open(bundle), grouped(100, WIDTH)
    now = time.time()
    with patch("time.time", lambda: now - 1e6):
        store = CatalogueStore.open(root / "clock", opened)
        first = store.put([entry("a", vectors[0])])[0].version
    with patch("time.time", lambda: now - 2e6):
        second = store.put([entry("a", vectors[1])])[0].version
        store.close()
        store = CatalogueStore.open(root / "clock", opened)
        views = store.snapshot.views("a") or {}
        latest = np.array_equal(views["text"], vectors[1])
        store.close()
    verdicts.say("clock: versions grow", bool(first and second and second > first))
    verdicts.say("clock: the latest write stands after a start", latest)
    with closing(sqlite3.connect(root / "clock" / FILE)) as database:
        verdicts.say(
            "clock: the file is whole",
            database.execute("PRAGMA integrity_check").fetchone()[0] == "ok",
        )


def main() -> None:
    """One fault after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("only root may mount the file systems that are filled and made read-only")
    print(machine(), flush=True)
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        root = Path(name)
        bundle = tiny(root, width=WIDTH)
        vectors = grouped(ITEMS, WIDTH)
        full(root, bundle, verdicts)
        read_only(root, bundle, verdicts)
        damaged(root, bundle, vectors, verdicts)
        clock(root, bundle, verdicts)
    kept = not verdicts.broken
    print(f"catalogue.faults_ok = {int(kept)}")
    if not given.dry_run:
        unit = "1 is kept: full disk, read-only folder, damaged index and page, clock backwards"
        record({"catalogue.faults_ok": (int(kept), unit)}, "python -m benchmarks.catalogue_faults")


if __name__ == "__main__":
    main()
