"""How fast it serves: beside infinity-emb, beside the encoder alone, and out of the cache.

Each scenario alternates what it compares, so that whatever else the machine does hits both, and
gives ratios of medians over the rounds.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.serving.films import Attributes, Films, batches, embed
from benchmarks.serving.load import Request, Shots, fired
from benchmarks.serving.servers import SERVED, Alone, Redis, Server, infinity, ours

Figures = dict[str, tuple[float, str]]
CLIENTS = 16
PAIR = 2  # clients of batches: one is read while the other is computed
MOST_PER_S = 400  # items that two cores may encode in a second, and some
CATALOGUE = 12_101  # items; as many as Amazon Beauty has
HISTORY = 50
K = 25


def say(
    name: str,
    shots: Shots,
    server: Server | None = None,
    before: tuple[float, float] = (0.0, 0.0),
) -> None:
    """A line on what was measured, with what the server used since `before`, its usage then."""
    share = f", server {server.cores(before):.2f} cores" if server else ""
    print(f"{name}: {shots.told()}{share}", flush=True)


def in_turns(*ways: Callable[[], None], rounds: int) -> None:
    """Every way in every round, the first one changing."""
    for number in range(rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            way()


def checked(shots: Shots) -> Shots:
    """The shots, if all were answered.

    Raises:
        SystemExit: one was not; figures of a server that fails say nothing.
    """
    if not shots.ok.all():
        raise SystemExit(f"not everything was answered: statuses {shots.statuses()}")
    return shots


def asked_of_infinity(films: Films, some: Sequence[Attributes]) -> list[Request]:
    """The same films as infinity-emb is asked for them, one a request."""
    return [
        ("POST", "/embeddings", {"model": SERVED, "input": [films.text(film)]}) for film in some
    ]


def embed_misses(given: argparse.Namespace) -> Figures:
    """/embed from concurrent single-item clients, all misses, beside infinity-emb."""
    films = Films(given.bundle)
    found: dict[str, list[Shots]] = {"ours": [], "infinity-emb": []}
    with ExitStack() as running:
        asked_for = {"dtype": given.dtype} if given.dtype else {}
        us = running.enter_context(ours(given.bundle, **asked_for))
        dtype = us.ask("/info")["dtype"]
        theirs = given.infinity_dtype or dtype  # it has no int8
        other = None
        if given.infinity:
            them = infinity(given.infinity, given.bundle / "llm", dtype=theirs)
            other = running.enter_context(them)
        warming = films.fresh(64)
        fired([embed([film]) for film in warming], us.port, clients=CLIENTS)
        if other:
            fired(asked_of_infinity(films, warming), other.port, clients=CLIENTS)
        load = {"clients": CLIENTS, "seconds": given.seconds}
        made = [films.fresh(int(given.seconds * MOST_PER_S)) for _ in range(given.rounds)]
        rounds = {name: iter(made) for name in found}

        def ask_us() -> None:
            before = us.usage()
            shots = fired([embed([film]) for film in next(rounds["ours"])], us.port, **load)
            found["ours"].append(checked(shots))
            say("ours", shots, us, before)

        def ask_them() -> None:
            assert other
            before = other.usage()
            asked = asked_of_infinity(films, next(rounds["infinity-emb"]))
            shots = fired(asked, other.port, **load)
            found["infinity-emb"].append(checked(shots))
            say("infinity-emb", shots, other, before)

        in_turns(*([ask_us, ask_them] if other else [ask_us]), rounds=given.rounds)
    speed = {name: median(s.per_s for s in each) for name, each in found.items() if each}
    late = {name: median(s.ms(99) for s in each) for name, each in found.items() if each}
    print("| server | items/s | p99, ms |\n|---|--:|--:|")
    for name, items_s in speed.items():
        print(f"| {name} | {items_s:.1f} | {late[name]:.0f} |")
    if len(speed) < 2:
        print("without --infinity there is nothing to compare with; nothing to record")
        return {}
    unit = f"{CLIENTS} single-item clients, all misses, medians of {given.rounds} rounds"
    unit += f"; {dtype}" if dtype == theirs else f"; {dtype} and {theirs}"
    label = f"_{dtype}" if given.dtype else ""
    return {
        f"serve.vs_infinity{label}": (
            round(speed["ours"] / speed["infinity-emb"], 3),
            f"ratio of items/s, {speed['ours']:.1f} and {speed['infinity-emb']:.1f}; {unit}",
        ),
        f"serve.p99_vs_infinity{label}": (
            round(late["ours"] / late["infinity-emb"], 3),
            f"ratio of p99, {late['ours']:.0f} and {late['infinity-emb']:.0f} ms; {unit}",
        ),
    }


def embed_batches(given: argparse.Namespace) -> Figures:
    """/embed of 32 items a request, all misses, beside the encoder alone on the same batches."""
    films = Films(given.bundle)
    size, count = 32, max(2, round(given.seconds * 3))
    found: dict[str, list[float]] = {"served": [], "alone": []}
    with ours(given.bundle) as us, Alone(given.bundle) as encoder:
        fired([embed(some) for some in batches(films.fresh(4 * size), size)], us.port)
        made = [batches(films.fresh(count * size), size) for _ in range(given.rounds)]
        rounds = {name: iter(made) for name in found}

        def served() -> None:
            before = us.usage()
            asked = [embed(some) for some in next(rounds["served"])]
            shots = checked(fired(asked, us.port, clients=given.clients or PAIR))
            found["served"].append(size * shots.per_s)
            say(f"served, {found['served'][-1]:.1f} items/s", shots, us, before)

        def alone() -> None:
            seconds = sum(encoder.seconds(next(rounds["alone"])))
            found["alone"].append(size * count / seconds)
            print(f"alone, {found['alone'][-1]:.1f} items/s", flush=True)

        in_turns(served, alone, rounds=given.rounds)
    speed = {name: median(each) for name, each in found.items()}
    unit = (
        f"items/s over the encoder alone, {speed['served']:.1f} and {speed['alone']:.1f}; batches "
        f"of {size}, {given.clients or PAIR} clients, medians of {given.rounds} rounds"
    )
    return {"serve.batch_efficiency": (round(speed["served"] / speed["alone"], 3), unit)}


def single(given: argparse.Namespace) -> Figures:
    """One item that no cache knows, on an idle server, beside its forward pass."""
    films = Films(given.bundle)
    count = max(10, round(given.seconds * 10))
    found: dict[str, list[float]] = {"served": [], "alone": []}
    with ours(given.bundle) as us, Alone(given.bundle) as encoder:
        fired([embed([film]) for film in films.fresh(20)], us.port)
        made = [films.fresh(count) for _ in range(given.rounds)]
        rounds = {name: iter(made) for name in found}

        def served() -> None:
            shots = checked(fired([embed([film]) for film in next(rounds["served"])], us.port))
            found["served"].append(shots.ms(50))
            say("served", shots)

        def alone() -> None:
            seconds = encoder.seconds([[film] for film in next(rounds["alone"])])
            found["alone"].append(1000 * median(seconds))
            print(f"alone: p50 {found['alone'][-1]:.1f} ms", flush=True)

        in_turns(served, alone, rounds=given.rounds)
    p50 = {name: median(each) for name, each in found.items()}
    unit = (
        f"p50 over that of the encoder alone, {p50['served']:.1f} and {p50['alone']:.1f} ms; one "
        f"item at a time, medians of {given.rounds} rounds of {count}"
    )
    return {"serve.single_overhead": (round(p50["served"] / p50["alone"], 3), unit)}


def hits(given: argparse.Namespace) -> Figures:
    """Items that Redis knows: one alone, and 64 a request in base64."""
    films = Films(given.bundle)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        redis = Redis(Path(folder))
        try:
            redis.start()
            with ours(given.bundle, redis_url=redis.url) as us:
                return _hits(given, films, us)
        finally:
            redis.close()


def _hits(given: argparse.Namespace, films: Films, us: Server) -> Figures:
    size = 64
    many = batches(films.known, size)[:16]
    checked(fired([embed(some) for some in many], us.port))
    missed = us.metric('llmemb_cache_requests_total{result="miss"}')
    seconds = given.seconds
    one = [embed([film]) for some in many for film in some]
    idle = [checked(fired(one, us.port, seconds=seconds, repeat=True)) for _ in range(given.rounds)]
    say("one item, one client", idle[-1])
    found = []
    for _ in range(given.rounds):
        before = us.usage()
        asked = [embed(some, view="text", encoding="base64") for some in many]
        shots = fired(asked, us.port, clients=given.clients or PAIR, seconds=seconds, repeat=True)
        found.append(size * checked(shots).per_s)
        say(f"{size} items, {found[-1]:.0f} items/s", shots, us, before)
    if us.metric('llmemb_cache_requests_total{result="miss"}') > missed:
        raise SystemExit("some were no hits")
    p50 = median(shots.ms(50) for shots in idle)
    unit = f"items/s, view text in base64, {size} a request, all in Redis, "
    unit += f"{given.clients or PAIR} clients"
    return {
        "serve.hit_p50_ms": (round(p50, 2), "ms, one item that Redis knows, one client"),
        "serve.hit_items_s": (round(median(found), 1), unit),
    }


def recommend(given: argparse.Namespace) -> Figures:
    """/recommend out of 12,101 items, for histories of 50."""
    films = Films(given.bundle)
    chance = np.random.default_rng(0)
    asked = [
        (
            "POST",
            "/recommend",
            {"history": chance.choice(films.ids, HISTORY, replace=False).tolist(), "k": K},
        )
        for _ in range(1000)
    ]
    with tempfile.TemporaryDirectory(prefix="catalogue-") as folder:
        print(f"a catalogue of {CATALOGUE:,} items ...", flush=True)
        fill(given.bundle, Path(folder), CATALOGUE)
        with ours(given.bundle, Path(folder)) as us:
            items = us.ask("/health/ready")["items"]
            if items != CATALOGUE:
                raise SystemExit(f"the catalogue has {items} items")
            checked(fired(asked[:200], us.port, clients=4))
            load = {"seconds": given.seconds, "repeat": True}
            idle, busy = [], []
            for _ in range(given.rounds):
                idle.append(checked(fired(asked, us.port, clients=1, **load)))
                say("one client", idle[-1])
                before = us.usage()
                busy.append(checked(fired(asked, us.port, clients=CLIENTS, **load)))
                say(f"{CLIENTS} clients", busy[-1], us, before)
            rate = 0.8 * median(shots.per_s for shots in busy)
            say(f"open loop, {rate:.0f} requests/s", fired(asked, us.port, rate=rate, **load))
    unit = f"{CATALOGUE:,} items, history of {HISTORY}, k={K}, medians of {given.rounds} rounds"
    figures = {
        "recommend.rps": (
            round(median(s.per_s for s in busy), 1),
            f"requests/s, {CLIENTS} clients",
        ),
        "recommend.p99_ms": (round(median(s.ms(99) for s in busy), 2), f"ms, {CLIENTS} clients"),
        "recommend.idle_p50_ms": (round(median(s.ms(50) for s in idle), 2), "ms, one client"),
    }
    return {name: (value, f"{told}; {unit}") for name, (value, told) in figures.items()}


def fill(bundle: Path, folder: Path, count: int) -> None:
    """A catalogue of so many items: a bundle's own, and others near them in every view."""
    from models.bundle import Bundle  # noqa: PLC0415 - torch comes with it
    from models.item import Item  # noqa: PLC0415
    from service.store import CatalogueStore, Entry  # noqa: PLC0415

    opened = Bundle.open(bundle)
    store = CatalogueStore.open(folder, opened)
    chance = np.random.default_rng(0)
    tables = opened.training_views()
    entries = []
    for number in range(count - len(store.snapshot)):
        row = number % len(opened.catalogue)
        views = {
            name: (
                items[row] + 0.3 * items.std(axis=0) * chance.standard_normal(items.shape[1])
            ).astype(np.float32)
            for name, (items, _) in tables.items()
        }
        item = Item(item_id=f"more-{number}", attributes=opened.catalogue[row].attributes)
        entries.append(Entry(item, opened.llm_vectors[row], views))
    store.put(entries)
    store.close()
