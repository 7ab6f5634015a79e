"""A large catalogue in the real service: `python -m benchmarks.catalogue NAME`.

`scale` fills a catalogue with vectors that come with their items, starts the service on it, looks
at its memory, and searches while an import runs. `reindex` recommends while another bundle takes
the place of the one that is served. `concurrent` writes and searches one store from
several threads for minutes, and compares every answer with what numpy says of that very moment.
The LLM is a tiny one that is never asked.
"""

import argparse
import base64
import itertools
import json
import queue
import random
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.figures import machine, record
from benchmarks.index import between, grouped
from benchmarks.serving.servers import DIRECT, Server, ours, tiny
from models.bundle import Bundle
from models.item import Item
from service.rows import Entry
from service.store import CatalogueStore
from service.upgrade import OVER
from service.vectors import Floats
from tests.tiny import write_llm, write_tiny_bundle

Figures = dict[str, tuple[float, str]]
K = 25
CHUNK = 256  # items of a commit, as an import has them
SEARCHES = 1000
STARTS = 3
REINDEXES = 5
SETTLE_S, QUIET_S = 180, 15  # at most until memory stands still; how long it must
KNOWN = 100  # items, to the bundle that a reindex is to
NOBODY = np.empty(0, np.int64)


def entry(item_id: str, vector: Floats, title: str = "") -> Entry:
    """An item that comes with its vector."""
    item = Item(item_id=item_id, attributes={"title": title or f"Film {item_id}", "year": 1999})
    return Entry(item, None, {"text": vector}, given=True)


def fill(folder: Path, bundle: Bundle, vectors: Floats) -> float:
    """Put an item for each vector; items a second, each commit synced."""
    store = CatalogueStore.open(folder, bundle)
    started = time.perf_counter()
    for first in range(0, len(vectors), CHUNK):
        some = vectors[first : first + CHUNK]
        store.put([entry(f"item-{first + n}", vector) for n, vector in enumerate(some)])
        store.hold_back(60)
        if first % (400 * CHUNK) == 0:
            print(f"{first:>9} items after {time.perf_counter() - started:.0f} s", flush=True)
    took = time.perf_counter() - started
    store.settle()
    store.close()
    return len(vectors) / took


def searches(server: Server, queries: Floats, count: int) -> list[float]:
    """How long each of some searches took, one after the other, in milliseconds."""
    took = []
    for query in itertools.islice(itertools.cycle(queries), count):
        started = time.perf_counter()
        server.ask("/search", {"view": "text", "vector": query.tolist(), "k": K})
        took.append(1000 * (time.perf_counter() - started))
    return took


def settled_mb(server: Server) -> float:
    """Memory that a server holds once it does not change any more.

    After a start that may take a while: what the index on disk lacked is put into a new one.
    """
    found = [server.rss_mb]
    for _ in range(SETTLE_S):
        time.sleep(1)
        found.append(server.rss_mb)
        last = found[-QUIET_S:]
        if len(last) == QUIET_S and max(last) - min(last) < 0.01 * last[-1]:
            break
    print(f"memory since the start of the look, MB: {found[0]:.0f} to {max(found):.0f}")
    return found[-1]


def lines(vectors: Floats, first: int) -> Iterator[bytes]:
    """An import's file."""
    for number, vector in enumerate(vectors, first):
        told = {
            "item_id": f"item-{number}",
            "attributes": {"title": f"Film {number}", "year": 1999},
            "vectors": {"text": base64.b64encode(vector.tobytes()).decode()},
        }
        yield json.dumps(told).encode() + b"\n"


def scale(given: argparse.Namespace) -> Figures:
    """Start, memory, an import and searches beside it, with many items."""
    count, width = given.items, given.width
    vectors = grouped(count + given.more, width)
    queries = between(vectors, SEARCHES)
    with tempfile.TemporaryDirectory(prefix="scale-") as root:
        folder = Path(root) / "catalogue"
        path = tiny(Path(root), width=width)
        bundle = Bundle.open(path)
        with ours(path) as empty:
            searches(empty, queries, 50)
            base_mb = empty.rss_mb
        rate = fill(folder, bundle, vectors[:count])
        print(f"filled in this process: {rate:.0f} items/s, each commit of {CHUNK} synced")
        starts = []
        for _ in range(STARTS):
            started = time.perf_counter()
            with ours(path, folder) as server:
                starts.append(time.perf_counter() - started)
                searches(server, queries, 200)
                memory = settled_mb(server) if len(starts) == STARTS else 0.0
        print(f"start to ready: {', '.join(f'{each:.1f}' for each in starts)} s")
        with ours(path, folder, index_dtype="int8") as server:  # makes its index anew
            searches(server, queries, 200)
            int8_mb = settled_mb(server)
        raw_mb = vectors[:count].nbytes / 2**20
        print(f"{raw_mb:.0f} MB of vectors; {memory - base_mb:.0f} MB over an empty service")
        print(f"int8: {int8_mb - base_mb:.0f} MB, after its index was made")
        with ours(path, folder) as server:  # makes its index anew, as that on disk is int8
            settled_mb(server)
            searches(server, queries, 100)
            quiet = searches(server, queries, SEARCHES)
            told = imported(server, bundle.bundle_hash, vectors[count:], count, queries)
    busy, upserts = told
    p99 = float(np.percentile(quiet, 99)), float(np.percentile(busy, 99))
    print(
        f"import of {given.more} beside searches: {upserts:.0f} items/s; /search alone p50 "
        f"{np.median(quiet):.1f} p99 {p99[0]:.1f} ms, beside it p50 {np.median(busy):.1f} "
        f"p99 {p99[1]:.1f} ms"
    )
    return {
        "catalogue.start_s": (round(float(np.median(starts)), 1), f"s to ready, {count:,} items"),
        "catalogue.memory_ratio": (
            round((memory - base_mb) / raw_mb, 2),
            f"memory over an empty service, as a multiple of {raw_mb:.0f} MB of vectors",
        ),
        "catalogue.memory_ratio_int8": (
            round((int8_mb - base_mb) / raw_mb, 2),
            "the same with LLMEMB_INDEX_DTYPE=int8, after its index was made",
        ),
        "index.upserts_s": (round(upserts), "items/s of an import with vectors, beside searches"),
        "index.upserts_p99_ratio": (
            round(p99[1] / p99[0], 2),
            f"p99 of /search beside the import ({p99[1]:.1f} ms) over alone ({p99[0]:.1f} ms)",
        ),
    }


class Reindexed(NamedTuple):
    """What one reindex did to those who asked before and meanwhile.

    Attributes:
        p50, p99: milliseconds of /recommend and PUT before, and of both meanwhile.
        read: items that the LLM read.
        took_s: from asking for it to its end.
    """

    p50: list[float]
    p99: list[float]
    read: float
    took_s: float


def reindex(given: argparse.Namespace) -> Figures:
    """Recommendations and writes while another bundle becomes active, several times over."""
    found = [reindexed(given) for _ in range(REINDEXES)]
    ratios = [each.p99[2] / each.p99[0] for each in found]
    before, meanwhile = (float(np.median([each.p99[at] for each in found])) for at in (0, 2))
    read, took_s = found[0].read, float(np.median([each.took_s for each in found]))
    return {
        "catalogue.reindex_p99_ratio": (
            round(float(np.median(ratios)), 2),
            f"p99 of /recommend during a reindex over before, the median of "
            f"{', '.join(f'{each:.2f}' for each in ratios)}; medians {meanwhile:.1f} and "
            f"{before:.1f} ms; {read:,.0f} items read by a tiny LLM in {took_s:.0f} s",
        )
    }


def reindexed(given: argparse.Namespace) -> Reindexed:
    """One of them, in a service of its own."""
    with tempfile.TemporaryDirectory(prefix="reindex-") as root:
        bundles = Path(root) / "bundles"
        bundles.mkdir()
        # Of an LLM each; and what the other one's training has not known, that is to be read.
        for seed, (name, count) in enumerate({"one": given.some, "other": KNOWN}.items()):
            llm = write_llm(Path(root) / f"llm-{seed}", seed=seed)
            write_tiny_bundle(bundles / name, llm, count=count, seed=seed, width=given.width)
        chance = random.Random(0)
        with ours(bundles / "one", bundles_dir=bundles, max_queue_tokens=100_000) as server:
            ids = [each["item_id"] for each in server.ask("/items?limit=500")["items"]]

            def rounds(until: Callable[[], bool]) -> tuple[list[float], list[float]]:
                reads, writes = [], []
                while not until():
                    started = time.perf_counter()
                    server.ask("/recommend", {"history": chance.sample(ids, 20), "k": K})
                    reads.append(1000 * (time.perf_counter() - started))
                    started = time.perf_counter()
                    title = f"Film {chance.random()}"
                    server.ask("/items/new", {"attributes": {"title": title}}, "PUT")
                    writes.append(1000 * (time.perf_counter() - started))
                    time.sleep(0.01)
                return reads, writes

            end = time.monotonic() + 15
            quiet = rounds(lambda: time.monotonic() > end)
            started = time.monotonic()
            server.ask("/admin/bundles", {"bundle": "other"})

            def over() -> bool:
                return bool(server.ask("/admin/bundles")["upgrade"]["state"] in OVER)

            busy = rounds(over)
            took = time.monotonic() - started
            state = server.ask("/admin/bundles")["upgrade"]["state"]
            read = server.metric('llmemb_reindex_items_total{source="model"}')
    if state != "flipped":
        raise SystemExit(f"the reindex ended as {state}")
    p99 = [float(np.percentile(each, 99)) for each in (*quiet, *busy)]
    p50 = [float(np.median(each)) for each in (*quiet, *busy)]
    print(f"{given.some} items, {read:.0f} of them read, in {took:.1f} s")
    print(
        f"p50, p99 of /recommend {p50[0]:.1f} {p99[0]:.1f} ms, meanwhile {p50[2]:.1f} {p99[2]:.1f} "
        f"({len(busy[0])} times); of PUT {p50[1]:.1f} {p99[1]:.1f}, meanwhile {p50[3]:.1f} "
        f"{p99[3]:.1f}",
        flush=True,
    )
    return Reindexed(p50, p99, read, took)


def imported(
    server: Server, bundle: str, vectors: Floats, first: int, queries: Floats
) -> tuple[list[float], float]:
    """Searches while an import runs, and its items a second."""
    body = b"".join(lines(vectors, first))
    address = f"http://127.0.0.1:{server.port}/items:import?import_id=more&bundle={bundle}"
    request = urllib.request.Request(
        address, body, {"Content-Type": "application/x-ndjson"}, method="POST"
    )
    took: list[float] = []

    def send() -> None:
        started = time.perf_counter()
        with DIRECT.open(request, timeout=600) as answer:
            told = json.loads(answer.read())
        took.append(time.perf_counter() - started)
        if told["durable_line"] != len(vectors):
            raise SystemExit(f"the import ended early: {told}")

    sending = threading.Thread(target=send)
    sending.start()
    busy: list[float] = []
    while sending.is_alive():
        busy += searches(server, queries, 10)
    sending.join()
    return busy, len(vectors) / took[0]


class Answer(NamedTuple):
    """What a search gave, when the catalogue had had so many changes."""

    changes: int
    query: Floats
    found: list[tuple[str, float]]


class Oracle:
    """A catalogue as plain numpy has it, brought to any later moment by the log of what was done.

    Attributes:
        log: after how many changes, and of which ids vector and whether hidden; None: it is gone.
        shown: vectors of those that may be answered, at the latest moment that was asked for.
        at: the change that the latest moment begins with.
    """

    def __init__(self) -> None:
        self.log: list[tuple[int, dict[str, tuple[Floats, bool] | None]]] = []
        self.shown: dict[str, Floats] = {}
        self.at = 0
        self._read = 0

    def agrees(self, answer: Answer) -> bool:
        """Whether it would have answered the same, but for roundings."""
        while self._read < len(self.log) and self.log[self._read][0] <= answer.changes:
            self.at, changed = self.log[self._read]
            for item_id, told in changed.items():
                self.shown.pop(item_id, None)
                if told is not None and not told[1]:
                    self.shown[item_id] = told[0]
            self._read += 1
        scores = np.stack(list(self.shown.values())) @ answer.query
        best = np.sort(scores)[::-1][:K]
        ids, told_scores = zip(*answer.found, strict=True)
        if len(best) != len(ids) or len(set(ids)) != len(ids) or not set(ids) <= set(self.shown):
            return False
        own = np.stack([self.shown[each] for each in ids]) @ answer.query
        return bool(
            np.allclose(best, told_scores, atol=1e-4) and np.allclose(own, told_scores, atol=1e-4)
        )


class Trial:
    """One store that is written and searched by several threads at once."""

    def __init__(self, store: CatalogueStore, items: int, width: int) -> None:
        self.store = store
        self.oracle = Oracle()
        self.crashes: list[str] = []
        self.answers: queue.Queue[Answer] = queue.Queue(1000)
        self.over = threading.Event()
        # The log has the order of the writes; searches and the index's upkeep go on meanwhile.
        self.order = threading.Lock()
        self._ids = [f"item-{number}" for number in range(items)]
        self._width = width
        self._hidden: set[str] = set()
        for stored in store.items.page(100).items:
            item_id = stored.item.item_id
            self._log({item_id: (self._vector(item_id), False)})

    def _log(self, changed: dict[str, tuple[Floats, bool] | None]) -> None:
        self.oracle.log.append((self.store.stats.changes, changed))

    def _vector(self, item_id: str) -> Floats:
        views = self.store.snapshot.views(item_id) or {}
        return views["text"].copy()

    def run(self, work: Callable[[int], None], seed: int) -> None:
        """Work until it is over, or fails."""
        try:
            while not self.over.is_set():
                work(seed)
                seed += 1000
        except Exception as error:
            self.crashes.append(repr(error))
            self.over.set()

    def write(self, seed: int) -> None:
        """One write: of one item or of many, of a new one or not; or it goes, or is hidden."""
        chance, numbers = random.Random(seed), np.random.default_rng(seed)
        some = chance.sample(self._ids, chance.choice([1, 1, 1, 20, 300]))
        kind = chance.random()
        with self.order:
            if kind < 0.7:
                vectors = numbers.standard_normal((len(some), self._width), np.float32)
                self.store.put([entry(i, v) for i, v in zip(some, vectors, strict=True)])
                told = zip(some, vectors, strict=True)
                self._log({i: (vector, i in self._hidden) for i, vector in told})
            elif kind < 0.9:
                for item_id in some[:20]:
                    self.store.delete(item_id)
                    self._hidden.discard(item_id)
                    self._log({item_id: None})
            elif some[0] in self.store.snapshot:
                item_id, hide = some[0], chance.random() < 0.5
                self.store.hide(item_id, hide)
                (self._hidden.add if hide else self._hidden.discard)(item_id)
                self._log({item_id: (self._vector(item_id), hide)})

    def search(self, seed: int) -> None:
        """One search."""
        query = np.random.default_rng(seed).standard_normal(self._width, np.float32)
        changes, snapshot = self.store.stats.changes, self.store.snapshot
        if self.store.stats.changes != changes:
            return  # it is not known of which moment the snapshot is
        allowed = snapshot.allowed(NOBODY)
        places, scores = snapshot.search("text", query[None], [K], [allowed])[0]
        ids = [snapshot.item_id(place) for place in places.tolist()]
        with suppress(queue.Full):
            self.answers.put(
                Answer(changes, query, list(zip(ids, scores.tolist(), strict=True))), timeout=1
            )

    def check(self, few: int) -> tuple[int, list[Answer]]:
        """Compare some answers; how many were, and which are wrong."""
        answers = [self.answers.get(timeout=5) for _ in range(few)]
        with self.order:
            pass  # what was being written is in the log now
        answers.sort(key=lambda each: each.changes)
        # The oracle does not go back to moments that are over.
        still = [each for each in answers if each.changes >= self.oracle.at]
        return len(still), [each for each in still if not self.oracle.agrees(each)]


def concurrent(given: argparse.Namespace) -> Figures:
    """Two writers and two searchers; each answer is compared with the oracle's."""
    wrong: list[Answer] = []
    compared = 0
    with tempfile.TemporaryDirectory(prefix="concurrent-") as root:
        bundle = Bundle.open(tiny(Path(root), count=50, width=given.width))
        store = CatalogueStore.open(Path(root) / "catalogue", bundle)
        trial = Trial(store, given.some, given.width)
        threads = [
            threading.Thread(target=trial.run, args=(work, seed))
            for seed, work in enumerate([trial.write, trial.write, trial.search, trial.search])
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * given.minutes
        while time.monotonic() < end and not trial.over.is_set():
            more, bad = trial.check(few=50)
            compared += more
            wrong += bad
        trial.over.set()
        for thread in threads:
            thread.join()
        changes, blocks = store.stats.changes, len(store.snapshot.main)
        store.close()
    print(f"{compared} answers compared, {changes} changes, {blocks} places in the last main block")
    print(f"{len(wrong)} wrong: {wrong[:2]}; crashes: {trial.crashes}")
    return {
        "catalogue.concurrent_errors": (
            len(wrong) + len(trial.crashes),
            f"wrong answers and crashes in {given.minutes:g} min; {compared:,} answers compared "
            f"over {changes:,} changes",
        )
    }


SCENARIOS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "scale": scale,
    "reindex": reindex,
    "concurrent": concurrent,
}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", choices=list(SCENARIOS))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--more", type=int, default=50_000, help="items that are imported")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=10.0, help="of `concurrent`")
    parser.add_argument("--some", type=int, default=5000, help="items of `concurrent`, `reindex`")
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    print(machine(), flush=True)
    figures = SCENARIOS[given.scenario](given)
    for name, (value, unit) in figures.items():
        print(f"{name} = {value} {unit}")
    if not given.dry_run:
        record(figures, f"python -m benchmarks.catalogue {given.scenario}")


if __name__ == "__main__":
    main()
