"""What it does when too much comes, and when Redis fails in each of the ways it can."""

import argparse
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving.films import Films, embed
from benchmarks.serving.load import Running, Shots, fired
from benchmarks.serving.servers import Redis, Server, ours, tiny
from benchmarks.serving.throughput import Figures, checked, say

SATURATING = 64  # clients, with which capacity is measured
TIMES = 10  # what is offered, of capacity
BACK_S = 5.0
MOST = 10_000  # connections of the generator
GROWTH = 1.05  # of memory, from an overload's first half to its second; more is not flat


class Memory:
    """A server's memory, sampled once a second in the background."""

    def __init__(self, server: Server, every_s: float = 1.0) -> None:
        self.samples: list[tuple[float, float]] = []  # (monotonic s, MB)
        self._server = server
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.samples.append((time.monotonic(), self._server.rss_mb))

    def close(self) -> None:
        """Sample no more."""
        self._over.set()
        self._thread.join()


@contextmanager
def watched(server: Server, every_s: float = 1.0) -> Iterator[Memory]:
    """The memory of a server during a block."""
    memory = Memory(server, every_s)
    try:
        yield memory
    finally:
        memory.close()


def overload(given: argparse.Namespace) -> Figures:
    """Ten times what it can do: what is accepted stays quick, the rest is told to come again."""
    films = Films(given.bundle)
    with ours(given.bundle) as us:

        def misses(count: float) -> list[tuple[str, str, object]]:
            return [embed([film]) for film in films.fresh(int(count))]

        fired(misses(256), us.port, clients=SATURATING)
        measured = min(20.0, given.seconds)
        at = checked(fired(misses(measured * 400), us.port, clients=SATURATING, seconds=measured))
        say(f"capacity, {SATURATING} clients", at)
        calm = checked(fired(misses(20), us.port))
        say("idle", calm)
        rate = TIMES * at.per_s
        before = us.usage()
        with (
            watched(us) as memory,
            Running(
                misses(rate * given.seconds), us.port, rate=rate, seconds=given.seconds, most=MOST
            ) as running,
        ):
            shots = running.shots()
        say(f"{rate:.0f} requests/s offered", shots, us, before)
        # Open loop for as long as it may take to be itself again; the last seconds count.
        after = fired(misses(2 * BACK_S * 4), us.port, rate=4.0, seconds=2 * BACK_S)
        say("afterwards", after)
    refused = shots.table["status"] == 429
    half = [mb for _, mb in memory.samples]
    first, second = half[: len(half) // 2], half[len(half) // 2 :]
    growth = max(second, default=0) / max(first, default=1)
    back = after.since(after.table["due"].min() + BACK_S, after.table["due"].max() + 1)
    verdicts = {
        f"accepted p99 {shots.ms(99):.0f} ms, {at.ms(99):.0f} at capacity": (
            shots.ms(99) <= 2 * at.ms(99)
        ),
        f"{int(refused.sum())} times 429, with Retry-After": bool(
            shots.table["retry_after"][refused].all()
        ),
        f"others: { {s: n for s, n in shots.statuses().items() if s not in {200, 429}} }": bool(
            (shots.ok | refused).all()
        ),
        f"memory {min(half):.0f} to {max(half):.0f} MB": growth <= GROWTH,
        f"after {BACK_S:g} s p99 {back.ms(99):.0f} ms": bool(
            back.ok.all() and back.ms(99) <= 2 * calm.ms(99)
        ),
    }
    told = (
        f"{int(shots.ok.sum())} accepted of {len(shots)} at {rate:.0f} requests/s, "
        f"{TIMES} x {at.per_s:.1f}"
    )
    return {"serve.overload_ok": judged(verdicts, told)}


def judged(verdicts: dict[str, bool], told: str) -> tuple[float, str]:
    """1 if all are kept, else 0, with the numbers."""
    for sentence, kept in verdicts.items():
        print(f"{'kept  ' if kept else 'BROKEN'} {sentence}", flush=True)
    unit = "; ".join([told, *(s if kept else f"NOT KEPT: {s}" for s, kept in verdicts.items())])
    return float(all(verdicts.values())), f"1 is kept; {unit}"


def redis_faults(given: argparse.Namespace) -> Figures:
    """Redis stopped, killed, started again and answering garbage, under load.

    The LLM takes no time here: what is judged is the cache, many times a second.
    """
    with tempfile.TemporaryDirectory(prefix="tiny-") as made:
        return _redis_faults(tiny(Path(made), count=300), given.seconds)


def _redis_faults(bundle: Path, seconds: float) -> Figures:
    films = Films(bundle)
    known = [embed([film]) for film in films.known[:20]]
    timeout_s = 0.1  # LLMEMB_REDIS_TIMEOUT_S's default, told to the service all the same
    verdicts: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        redis = Redis(Path(folder))
        try:
            redis.start()
            with ours(bundle, redis_url=redis.url, redis_timeout_s=timeout_s) as us:
                rate = 0.25 * capacity(us, films)
                load = {"rate": rate, "seconds": seconds, "mark": '"cached":true'}
                fired(known, us.port)

                def phase(name: str, fresh: bool = False) -> Shots:
                    asked = known
                    if fresh:
                        asked = [embed([f]) for f in films.fresh(int(rate * seconds) + 1)]
                    shots = fired(asked, us.port, repeat=not fresh, **load)
                    share = shots.marked.mean()
                    say(f"{name}, {share:.2f} from the cache", shots)
                    verdicts[f"{name}: statuses {shots.statuses()}"] = bool(shots.ok.all())
                    return shots

                phase("healthy")
                # Without a cache everything is computed; that, and the timeout, may be waited for.
                bound = phase("healthy, nothing known", fresh=True).ms(99) + 1000 * timeout_s

                def fault(name: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
                    begin()
                    p99 = phase(name).ms(99)
                    verdicts[f"{name}: p99 {p99:.0f} ms, at most {bound:.0f}"] = p99 <= bound
                    end()
                    healed = time.monotonic()
                    shots = phase(f"after {name}")
                    used = shots.table["done"][shots.marked]
                    wait = float(used.min() - healed) if len(used) else float("inf")
                    verdicts[f"after {name}: the cache used after {wait:.1f} s"] = wait <= BACK_S

                fault(
                    "stopped",
                    lambda: redis.signal(signal.SIGSTOP),
                    lambda: redis.signal(signal.SIGCONT),
                )
                fault("killed", redis.kill, redis.start)

                def garble() -> None:
                    redis.kill()
                    redis.garble()

                def restore() -> None:
                    redis.ungarble()
                    redis.start()

                fault("garbage", garble, restore)
        finally:
            redis.close()
    told = f"{rate:.0f} requests/s, {seconds:g} s each"
    return {"serve.redis_faults_ok": judged(verdicts, told)}


def capacity(server: Server, films: Films, clients: int = 16, seconds: float = 5.0) -> float:
    """Single items a second, all misses."""
    asked = [embed([film]) for film in films.fresh(int(seconds * 400))]
    shots = checked(fired(asked, server.port, clients=clients, seconds=seconds))
    say(f"capacity, {clients} clients", shots)
    return shots.per_s
