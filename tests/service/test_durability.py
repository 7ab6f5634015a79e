"""What was acknowledged is there after a kill, and each write is there whole or not at all."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from service.rows import Entry, Writing
from tests.service.catalogues import TOGETHER, open_store
from tests.service.running import ROOT

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>
static void note(void) {
    int log = open(COUNT_FILE, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(log, "x", 1) < 0) {}
    close(log);
}
int fsync(int fd) { note(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { note(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


def writer(folder: Path, mode: str, start: int = 0, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.service.catalogues", str(folder), mode, str(start)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at_random(folder: Path, mode: str, start: int, chance: random.Random) -> int:
    """Kill a writer in the middle of its work; the last number that is acknowledged by now."""
    process = writer(folder, mode, start)
    assert process.stdout
    assert process.stdout.readline() == "open\n"
    # By its writes, not by the clock: there are as many on a machine that is busy.
    told = "".join(process.stdout.readline() for _ in range(chance.randrange(12)))
    time.sleep(chance.uniform(0, 0.01))
    process.kill()
    lines = (told + process.stdout.read()).split("\n")[:-1]  # the last may be cut
    process.wait()
    process.stdout.close()
    return int(lines[-1]) if lines else start - 1


def test_no_acknowledged_change_is_lost_by_sigkill(tmp_path: Path) -> None:
    chance = random.Random(0)
    acknowledged = -1
    for _ in range(6):
        acknowledged = kill_at_random(tmp_path, "kill", acknowledged + 1, chance)

        store = open_store(tmp_path)
        for number in range(acknowledged + 1):
            deleted = number % 3 == 2 and number < acknowledged
            # The one put that was under way when the process died may be there or not.
            assert (f"i{number}" in store.snapshot) == (not deleted) or number == acknowledged
        store.close()

    assert acknowledged > 10


def test_a_batch_that_sigkill_meets_is_whole_or_not_there(tmp_path: Path) -> None:
    chance = random.Random(1)
    acknowledged = -1
    for _ in range(6):
        acknowledged = kill_at_random(tmp_path, "batch", acknowledged + 1, chance)

        store = open_store(tmp_path)
        held = [each.item.item_id for each in store.items.page(1_000_000, query="ran").items]
        batches = Counter(int(each[1:].partition("-")[0]) for each in held if each[0] == "i")
        assert set(batches.values()) <= {TOGETHER}
        assert set(range(acknowledged + 1)) <= batches.keys() <= set(range(acknowledged + 2))
        assert len(held) == len(store.snapshot) == store.stats.kinds["title", "string"]
        versions = [each.version for each in store.items.page(1_000_000).items]
        assert len(set(versions)) == len(versions)
        assert max(versions) == store.stats.changes
        acknowledged = max(batches, default=-1)
        store.close()

    assert acknowledged > 10


def test_an_import_that_sigkill_meets_knows_the_line_that_it_has_stored(tmp_path: Path) -> None:
    chance = random.Random(2)
    chunks = 0
    for _ in range(6):
        last = kill_at_random(tmp_path, "import", chunks, chance)

        store = open_store(tmp_path)
        progress = store.imports.progress("one")
        assert progress
        held = {each.item.item_id for each in store.items.page(1_000_000).items} - {
            f"seed{n}" for n in range(5)
        }
        assert held == {f"i{line}" for line in range(progress.line)}
        assert progress.created == progress.line
        assert progress.line >= TOGETHER * (last + 1)
        chunks = progress.line // TOGETHER
        store.close()

    assert chunks > 10


def test_seeding_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = Writing.insert
    seen = []

    def killed(writing: Writing, entry: Entry) -> int:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return insert(writing, entry)

    monkeypatch.setattr(Writing, "insert", killed)
    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path)
    monkeypatch.undo()

    store = open_store(tmp_path)

    assert len(store.snapshot) == 5
    store.close()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to count fsync with")
def test_every_commit_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    counts = {}
    for mode in ("synced", "unsynced"):
        count, source = tmp_path / f"{mode}.count", tmp_path / "counter.c"
        library = tmp_path / f"{mode}.so"
        source.write_text(COUNTER)
        macro = f'-DCOUNT_FILE="{count}"'
        subprocess.run(["cc", "-shared", "-fPIC", macro, "-o", library, source], check=True)
        process = writer(tmp_path / mode, mode, LD_PRELOAD=str(library))
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        # Seeding is synced in both modes, and is over: the writer waits for nobody, so count
        # what all of it did and subtract what opening alone does.
        process.stdout.read()
        assert process.wait() == 0
        process.stdout.close()
        counts[mode] = count.stat().st_size

    # 20 puts and 6 deletes that find something: a commit each.
    assert counts["synced"] - counts["unsynced"] >= 26
    assert counts["unsynced"] < 26  # the control: opening and seeding, and no commit after
