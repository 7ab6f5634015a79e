"""How the service serves, as a real process on this machine: `python -m benchmarks.serve NAME`.

Each scenario starts what it needs, prints what it measures and writes its figures. `all` runs
them one after the other, but for the soak. Latencies count from when a request was due, see
benchmarks.serving.load; the generator's own share of the CPU stands in every line.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import machine, record
from benchmarks.serving import faults, fuzz, parity, soak, throughput

Figures = dict[str, tuple[float, str]]
SCENARIOS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "embed": throughput.embed_misses,
    "batches": throughput.embed_batches,
    "single": throughput.single,
    "hits": throughput.hits,
    "recommend": throughput.recommend,
    "overload": faults.overload,
    "redis-faults": faults.redis_faults,
    "fuzz": fuzz.fuzz,
    "parity": parity.parity,
    "soak": soak.soak,
}
LONG = {"soak"}  # not in `all`
WITHOUT_BUNDLE = {"fuzz", "redis-faults"}  # they make a tiny one
# Of a scenario, where it wants others than the parser's.
SECONDS = {"embed": 20.0, "overload": 60.0}


def main() -> None:
    """Run one scenario, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", choices=[*SCENARIOS, "all"])
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--infinity", help="python of an environment that holds infinity-emb")
    parser.add_argument("--dtype", help="of `embed`, in place of the bundle's; names the figures")
    parser.add_argument("--infinity-dtype", help="of infinity-emb; ours where it is not told")
    parser.add_argument("--seconds", type=float, help="of one measurement; default 10 to 60")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, help="where a scenario leaves it open")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the soak")
    parser.add_argument("--items", type=int, default=1000, help="of the parity")
    parser.add_argument("--requests", type=int, default=10_000, help="of each kind of the fuzzing")
    parser.add_argument("--dry-run", action="store_true", help="print figures, write none")
    given = parser.parse_args()
    names = [n for n in SCENARIOS if n not in LONG] if given.scenario == "all" else [given.scenario]
    if set(names) - WITHOUT_BUNDLE and not (given.bundle / "manifest.json").exists():
        sys.exit(f"there is no bundle in {given.bundle}; run `make demo` first, or say --bundle")
    print(machine(), flush=True)
    for name in names:
        print(f"== {name}", flush=True)
        own = argparse.Namespace(**vars(given))
        own.seconds = given.seconds or SECONDS.get(name, 10.0)
        figures = SCENARIOS[name](own)
        for label, (value, unit) in figures.items():
            print(f"{label} = {value} {unit}", flush=True)
        if not given.dry_run and figures:
            record(figures, command(parser, given, name))


def command(parser: argparse.ArgumentParser, given: argparse.Namespace, name: str) -> str:
    """What to type to have the figures again; a folder of this machine is no part of it."""
    told = f"python -m benchmarks.serve {name}"
    for option, value in vars(given).items():
        if option in {"scenario", "dry_run"} or value == parser.get_default(option):
            continue
        shown = {"infinity": "PYTHON", "bundle": "BUNDLE"}.get(option, value)
        told += f" --{option.replace('_', '-')} {shown}"
    return told


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    main()
