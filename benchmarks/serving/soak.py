"""What it is like after an hour: whether memory grows, under a mix of all that it does."""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.serving.faults import watched
from benchmarks.serving.films import Films, embed
from benchmarks.serving.load import Request, Running, fired
from benchmarks.serving.servers import ROOT, Redis, ours
from benchmarks.serving.throughput import Figures, say

SHARE = 0.7  # of capacity
SETTLING_S = 600.0  # caches fill, allocators take what they need
FINE = {200, 201, 204, 404}  # 404: what is to be deleted was not put yet
CURVE = ROOT / "docs" / "soak.svg"


def mixed(films: Films, seed: int) -> Iterator[Request]:
    """Of ten requests: five misses, a batch of eight hits, two recommendations, a put, a delete."""
    chance = np.random.default_rng(seed)
    for number in itertools.count():
        for film in films.fresh(5):
            yield embed([film])
        start = number * 8 % (len(films.known) - 8)
        yield embed(films.known[start : start + 8])
        for _ in range(2):
            history = chance.choice(films.ids, 50).tolist()
            yield "POST", "/recommend", {"history": history, "k": 25}
        yield "PUT", f"/items/soak-{number}", {"attributes": films.fresh(1)[0]}
        # Of what was put a while ago, so that some are in the index meanwhile.
        yield "DELETE", f"/items/soak-{number - 100}", None


def soak(given: argparse.Namespace) -> Figures:
    """70 % of capacity for an hour; the slope of the memory after the first ten minutes."""
    films = Films(given.bundle)
    seconds = 60 * given.minutes
    settling_s = min(SETTLING_S, seconds / 3)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        redis = Redis(Path(folder), memory_mb=256)
        try:
            redis.start()
            with ours(given.bundle, redis_url=redis.url) as us:
                some = itertools.islice(mixed(films, 1), int(20 * given.seconds * 10))
                at = fired(list(some), us.port, clients=32, seconds=given.seconds)
                say("capacity of the mix, 32 clients", at)
                answered = sum(n for status, n in at.statuses().items() if status in FINE)
                rate = SHARE * answered / at.seconds
                asked = itertools.islice(mixed(films, 2), int(rate * seconds) + 1)
                before = us.usage()
                with (
                    Running(asked, us.port, rate=rate, seconds=seconds) as running,
                    watched(us, every_s=max(0.2, seconds / 720)) as memory,
                ):
                    shots = running.shots()
                say(f"{rate:.0f} requests/s", shots, us, before)
        finally:
            redis.close()
    samples = np.array(memory.samples)
    hours, mb = (samples[:, 0] - samples[0, 0]) / 3600, samples[:, 1]
    late = hours >= settling_s / 3600
    slope = float(np.polyfit(hours[late], mb[late], 1)[0])
    failed = {s: n for s, n in shots.statuses().items() if s not in FINE}
    print(
        f"memory {mb[0]:.0f} MB, {mb[late][0]:.0f} after {settling_s:.0f} s, "
        f"{mb[-1]:.0f} at the end"
    )
    if not given.dry_run:
        CURVE.write_text(curve(hours * 60, mb))
        print(f"{CURVE} has the curve")
    unit = (
        f"MB an hour after the first {settling_s / 60:.0f} min of {given.minutes:g}; "
        f"{mb[late][0]:.0f} then and {mb[-1]:.0f} MB at the end, {rate:.0f} requests/s, p99 "
        f"{shots.ms(99):.0f} ms, failed: {failed}"
    )
    return {"serve.soak_mb_per_h": (round(slope, 2), unit)}


def curve(minutes: "np.ndarray", mb: "np.ndarray") -> str:
    """Memory over time, as SVG."""
    width, height, left, bottom = 640, 240, 56, 32
    top = float(mb.max()) * 1.1
    across = (width - left - 8) / max(float(minutes[-1]), 1e-9)
    up = (height - bottom - 8) / top
    line = " ".join(
        f"{left + m * across:.1f},{height - bottom - each * up:.1f}"
        for m, each in zip(minutes, mb, strict=True)
    )
    texts = [
        (left, height - 10, "0"),
        (width - 60, height - 10, f"{minutes[-1]:.0f} min"),
        (4, height - bottom, "0"),
        (4, 18 + (top - float(mb.max())) * up, f"{mb.max():.0f} MB"),
    ]
    labels = "".join(f'<text x="{x:.0f}" y="{y:.0f}">{text}</text>' for x, y, text in texts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
        f'<path d="M{left} 8V{height - bottom}H{width - 8}" fill="none" stroke="#888"/>\n'
        f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>\n'
        f"{labels}\n</svg>\n"
    )
