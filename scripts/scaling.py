"""The tables of docs/scaling.md: what was measured, and what formulas make of it.

`python -m tests.test_documents` writes them, from docs/figures.json, so that neither can be
changed without the other.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.config import Encode

FIGURES = Path(__file__).parents[1] / "docs" / "figures.json"
SIZES = (10**6, 10**8, 10**9)
TOKENS = 60  # of an item's own text
NUMBERS = 480  # of an item over the views of the default recipe: hybrid 128, text 128, content 224
GPU = 4e14  # FLOP/s; assumed, see the page
CORES = 2  # of the machine that encoding was measured on
SHARDS = 100_000  # files in a folder, more of which are slow to list and to read again


class LLM(NamedTuple):
    """The shape of a decoder: what its parameters follow from.

    Attributes:
        width: D, of its states, and so of its vectors.
    """

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    head: int

    @property
    def parameters(self) -> int:
        """Without embeddings and norms."""
        attention = 2 * self.width * self.head * (self.heads + self.groups)
        return self.layers * (attention + 3 * self.width * self.inner)


LLMS = (
    LLM("135M (SmolLM2)", 30, 576, 1536, 9, 3, 64),
    LLM("0.6B (Qwen3)", 28, 1024, 3072, 16, 8, 128),
    LLM("7B (Mistral)", 32, 4096, 14336, 32, 8, 128),
)

# By the figure's id: what it is in the formulas.
CONSTANTS = {
    "encode.items_s": "encode, items/s",
    "encode.flop_share": "of the ceiling that encode reaches",
    "encode.padding": "padding / all tokens",
    "encode.gpu_flop_share": "of a GPU's bfloat16 rate",
    "encode.memory_growth": "memory of encode, 1,000,000 items over 10,000",
    "scft.tokens_s": "tuning, tokens/s",
    "catalogue.memory_ratio": "memory of the service over its vectors",
    "catalogue.memory_ratio_int8": "the same, int8 index",
    "catalogue.start_s": "seconds to ready, 1,000,000 items",
    "index.upserts_s": "import with vectors, items/s",
    "index.p50_ms": "one search of 1,000,000 vectors, ms",
}


def scaling() -> str:
    """What stands below the mark of docs/scaling.md."""
    figures: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text())
    return "\n".join(_parts(figures))


def _parts(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield "## Measured\n"
    yield "| figure | | value | machine |\n|---|---|--:|---|"
    for name, what in CONSTANTS.items():
        if name in figures:
            value, machine = figures[name]["value"], figures[name]["machine"].partition(",")[0]
            yield f"| `{name}` | {what} | {_plain(value)} | {machine} |"
        else:
            yield f"| `{name}` | {what} | not measured | |"
    rate = rate_of(figures)
    yield (
        f"\nSo a core gives R = {rate / CORES / 1e9:.0f} GFLOP/s to the LLM (derived: "
        f"`encode.flop_share` times the ceiling in its unit, over {CORES} cores).\n"
    )
    yield f"## Encoding, {TOKENS} tokens an item\n"
    yield "| LLM | P | items | core-hours | cores for a day | GPU-hours | GPUs for a day |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for llm in LLMS:
        for items in SIZES:
            operations = 2 * llm.parameters * TOKENS * items
            cores = operations / (rate / CORES) / 3600
            gpus = operations / GPU / 3600
            yield (
                f"| {llm.name} | {_short(llm.parameters)} | {_short(items)} | {_short(cores)} "
                f"| {math.ceil(cores / 24):,} | {_short(gpus)} | {math.ceil(gpus / 24):,} |"
            )
    yield "\n## Storage of LLM vectors\n"
    few = f"`encode.shard_items` for {SHARDS:,} shards"
    yield f"| LLM | D | items | 4 D N | shards of {Encode().shard_items} | {few} |"
    yield "|---|--:|--:|--:|--:|--:|"
    for llm in LLMS:
        for items in SIZES:
            yield (
                f"| {llm.name} | {llm.width} | {_short(items)} | {_bytes(4 * llm.width * items)} "
                f"| {math.ceil(items / Encode().shard_items):,} "
                f"| {max(Encode().shard_items, math.ceil(items / SHARDS)):,} |"
            )
    ratio, small = (_value(figures, f"catalogue.memory_ratio{end}") for end in ("", "_int8"))
    start, added = _value(figures, "catalogue.start_s"), _value(figures, "index.upserts_s")
    yield f"\n## A catalogue, {NUMBERS} numbers an item\n"
    yield "| items | vectors, 4 V N | memory | memory, int8 index | start | import with vectors |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for items in (*SIZES[:1], 10**7, *SIZES[1:]):
        vectors = 4 * NUMBERS * items
        yield (
            f"| {_short(items)} | {_bytes(vectors)} | {_bytes(ratio * vectors)} "
            f"| {_bytes(small * vectors)} | {_time(start * items / 1e6)} | {_time(items / added)} |"
        )
    yield ""


def rate_of(figures: dict[str, dict[str, Any]]) -> float:
    """FLOP/s that encode gives to the LLM on the machine that its figures are of."""
    told = figures["encode.flop_share"]
    ceiling = re.search(r"([\d.]+) GFLOP/s", told["unit"])
    if ceiling is None:
        raise ValueError(f"encode.flop_share does not tell the ceiling: {told['unit']}")
    share: float = told["value"]
    return share * float(ceiling[1]) * 1e9


def _value(figures: dict[str, dict[str, Any]], name: str) -> float:
    found: float = figures[name]["value"]
    return found


def _plain(value: float) -> str:
    return f"{value:,}" if value == int(value) else f"{value}"


def _short(value: float) -> str:
    """Three digits, and M or G."""
    for factor, letter in ((1e9, " G"), (1e6, " M")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _bytes(value: float) -> str:
    for factor, letters in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if value >= factor:
            return f"{value / factor:.3g} {letters}"
    return f"{value / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    for factor, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= factor:
            return f"{seconds / factor:.2g} {unit}"
    return f"{seconds:.2g} s"
