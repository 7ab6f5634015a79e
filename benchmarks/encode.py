"""How fast prompts become LLM vectors, beside other ways to do it, on the same prompts.

Each way runs alone, in turns, so that whatever the machine does meanwhile hits all of them; the
figure is the ratio of medians. Beside them stands the machine's ceiling: its fastest square
bfloat16 matrix product.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.figures import machine, record
from benchmarks.serving.servers import BATCH, Server, embeddings, infinity
from models.encoder import Encoder
from models.prompt import Prompt
from training.config import read_config
from training.fetch import llm_folder
from training.prepare import prepare, read_prepared
from training.recipe import Run

Way = Callable[[Sequence[Prompt]], object]


def main() -> None:
    """Measure every way that is there, print a table, and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="ml100k", help="ending of the figures' ids")
    parser.add_argument("--infinity", help="python of an environment that holds infinity-emb")
    given = parser.parse_args()
    config = read_config(given.config, [f"folder=runs/bench-encode-{given.name}"], given.source)
    run = Run(config)
    with run.lock():
        prepare(run)
    catalogue, _ = read_prepared(run)
    drawn = np.random.default_rng(0).permutation(len(catalogue))[: given.prompts]
    prompts = [config.template.render(catalogue[row]) for row in drawn]
    llm = llm_folder(config.llm.path, config.llm.revision, run.cache)
    ceiling = matmul_ceiling()
    served = infinity(given.infinity, llm) if given.infinity else nullcontext()
    with served as server:
        ways, encoder = ways_of(llm, server)
        times = measured(ways, prompts, given.rounds)
    encoded = encoder.encode(prompts)
    own = int(encoded.tokens.sum())
    body = sum(p.numel() for n, p in encoder.llm.named_parameters() if "embed_tokens" not in n)
    useful = 2 * body * own / (1 - encoded.padding)
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{machine()}; bfloat16 ceiling {ceiling / 1e9:.0f} GFLOP/s")
    print(f"{len(prompts)} prompts, {own} tokens of their own, padding {encoded.padding:.3f}")
    print("| way | items/s | ours / it |\n|---|--:|--:|")
    for name, seconds in sorted(medians.items(), key=lambda each: each[1]):
        ratio = seconds / medians["ours"]
        print(f"| {name} | {len(prompts) / seconds:.1f} | {ratio:.2f} |")
    unit = f"ratio of items/s, medians of {given.rounds}, {len(prompts)} prompts"
    values = {
        f"encode.vs_{label}.{given.name}": (round(medians[name] / medians["ours"], 3), unit)
        for name, label in LABELS.items()
        if name in medians
    }
    share = useful / medians["ours"] / ceiling
    told = f"of the bfloat16 ceiling, {ceiling / 1e9:.0f} GFLOP/s"
    values |= {
        f"encode.items_s.{given.name}": (round(len(prompts) / medians["ours"], 1), "items/s"),
        f"encode.flop_share.{given.name}": (round(share, 3), told),
        f"encode.padding.{given.name}": (round(encoded.padding, 4), "padding / all tokens run"),
    }
    command = f"python -m benchmarks.encode --config {given.config} --name {given.name}"
    command += (
        f" --prompts {given.prompts}" if given.prompts != parser.get_default("prompts") else ""
    )
    command += " --infinity PYTHON" if given.infinity else ""
    command += " --source DIR" if given.source else ""
    record(values, command)


LABELS = {
    "transformers, bfloat16, batches of 32": "transformers",
    "sentence-transformers, bfloat16": "sentence_transformers",
    "sentence-transformers, its defaults": "sentence_transformers_defaults",
    "infinity-emb, bfloat16, batches of 32": "infinity",
}


def ways_of(llm: Path, server: Server | None) -> tuple[dict[str, Way], Encoder]:
    """The ways to encode, by name; ours first, with its encoder."""
    encoder = Encoder.load(llm, dtype="bfloat16")
    ways: dict[str, Way] = {"ours": encoder.encode}
    ways["transformers, bfloat16, batches of 32"] = plain_transformers(llm)
    ways |= sentence_transformers(llm)
    if server:
        ways["infinity-emb, bfloat16, batches of 32"] = lambda prompts: [
            embeddings(server, [prompt.text for prompt in some]) for some in batches(prompts)
        ]
    return ways, encoder


def batches(prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
    """As they come, 32 at a time."""
    for start in range(0, len(prompts), BATCH):
        yield prompts[start : start + BATCH]


def plain_transformers(llm: Path) -> Way:
    """What a reader of transformers' documentation writes: padded batches, a masked mean."""
    model = AutoModel.from_pretrained(llm, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def encode(prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        found = []
        with torch.inference_mode():
            for some in batches(prompts):
                read = tokenizer([each.text for each in some], padding=True, return_tensors="pt")
                states = model(**read).last_hidden_state
                mask = read["attention_mask"][..., None]
                found.append((states * mask).sum(1) / mask.sum(1))
        return found

    return encode


def sentence_transformers(llm: Path) -> dict[str, Way]:
    """Sentence-transformers' encode, in bfloat16 and as it comes; none where it is missing."""
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
    except ImportError:
        return {}
    ways: dict[str, Way] = {}
    kinds = {"sentence-transformers, bfloat16": torch.bfloat16}
    kinds["sentence-transformers, its defaults"] = torch.float32
    for name, dtype in kinds.items():
        # A folder without modules.json is read as an LLM with a mean over its tokens.
        model = SentenceTransformer(str(llm), device="cpu", model_kwargs={"dtype": dtype})
        model.tokenizer.pad_token = model.tokenizer.pad_token or model.tokenizer.eos_token
        ways[name] = lambda prompts, model=model: model.encode(  # type: ignore[misc]
            [each.text for each in prompts], batch_size=BATCH, show_progress_bar=False
        )
    return ways


def measured(
    ways: dict[str, Way], prompts: Sequence[Prompt], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after a first go that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(prompts[: 2 * BATCH])
    for number in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(prompts)
            times[name].append(time.perf_counter() - started)
        told = ", ".join(f"{name} {each[-1]:.1f}" for name, each in times.items())
        print(f"round {number + 1}, seconds: {told}", flush=True)
    return times


def matmul_ceiling() -> float:
    """FLOP/s of the fastest square bfloat16 product, of 1024 to 4096."""
    best = 0.0
    for size in (1024, 2048, 4096):
        left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        left @ right
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
