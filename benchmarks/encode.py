"""How fast prompts become LLM vectors, beside other ways to do it, on the same prompts.

Each way runs alone, in turns, so that whatever the machine does meanwhile hits all of them; the
figure is the ratio of medians. Beside them stands the machine's ceiling: its fastest square
bfloat16 matrix product.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.figures import machine, record
from benchmarks.serving.servers import BATCH, embeddings, infinity
from models.encoder import Encoder, RuntimeDType
from models.prompt import Prompt
from training.config import read_config
from training.fetch import llm_folder
from training.prepare import prepare, read_prepared
from training.recipe import Run


class Way(NamedTuple):
    """One way to encode.

    Attributes:
        label: of its figures.
        run: encodes prompts.
    """

    name: str
    label: str
    run: Callable[[Sequence[Prompt]], object]


def main() -> None:
    """Measure every way that is there, print a table, and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="", help="ending of the figures' ids")
    parser.add_argument("--infinity", help="python of an environment that holds infinity-emb")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[], metavar="TOKENS",
        help="ours in batches of so many tokens, too",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes", choices=["float32", "int8"], nargs="+", default=[],
        help="ours in these, too, beside the same others",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="LABEL",
        help="beside ours this way alone (infinity, transformers …); may be repeated",
    )  # fmt: skip
    given = parser.parse_args()
    config = read_config(given.config, ["folder=runs/bench-encode-{name}"], given.source)
    run = Run(config)
    with run.lock():
        prepare(run)
    catalogue, _ = read_prepared(run)
    drawn = np.random.default_rng(0).permutation(len(catalogue))[: given.prompts]
    prompts = [config.template.render(catalogue[row]) for row in drawn]
    llm = llm_folder(config.llm.path, config.llm.revision, run.cache)
    ceiling = matmul_ceiling()
    encoder = Encoder.load(llm, dtype="bfloat16")
    ours = Way("ours", "ours", encoder.encode)
    budgets = [budget_way(encoder, tokens) for tokens in given.budgets]
    dtypes = [dtype_way(llm, dtype) for dtype in given.dtypes]
    others = [plain_transformers(llm), *sentence_transformers(llm)]
    server: AbstractContextManager[list[Way]] = nullcontext([])
    if given.infinity:
        server = served_by_infinity(given.infinity, llm)
    with server as served:
        others += served
        others = [way for way in others if not given.only or way.label in given.only]
        medians = measured([ours, *budgets, *dtypes, *others], prompts, given.rounds)
    print(f"{machine()}; bfloat16 ceiling {ceiling / 1e9:.0f} GFLOP/s")
    values = ours_alone(encoder, prompts, medians[ours.name], ceiling)
    print("| way | items/s | ours / it |\n|---|--:|--:|")
    for name, seconds in sorted(medians.items(), key=lambda each: each[1]):
        ratio = seconds / medians[ours.name]
        print(f"| {name} | {len(prompts) / seconds:.1f} | {ratio:.2f} |")
    unit = f"ratio of items/s, medians of {given.rounds}, {len(prompts)} prompts"
    for way in others:
        values[f"vs_{way.label}"] = (round(medians[way.name] / medians[ours.name], 3), unit)
    for way in dtypes:
        speed = len(prompts) / medians[way.name]
        values[f"items_s_{way.label}"] = (round(speed, 1), "items/s")
        for other in others:
            ratio = medians[other.name] / medians[way.name]
            values[f"{way.label}_vs_{other.label}"] = (round(ratio, 3), f"{unit}; it in bfloat16")
    for way, tokens in zip(budgets, given.budgets, strict=True):
        speed = len(prompts) / medians[way.name]
        padding = encoder.encode(prompts, tokens).padding
        values[f"items_s_{way.label}"] = (round(speed, 1), "items/s")
        values[f"padding_{way.label}"] = (round(padding, 4), "padding / all tokens run")
    ending = f".{given.name}" if given.name else ""
    record({f"encode.{what}{ending}": value for what, value in values.items()}, told(given, parser))


def told(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command, without the paths of this machine."""
    command = "python -m benchmarks.encode"
    for name in ("config", "name", "prompts", "rounds"):
        value = getattr(given, name)
        command += f" --{name} {value}" if value != parser.get_default(name) else ""
    command += " --dtypes " + " ".join(given.dtypes) if given.dtypes else ""
    command += " --infinity PYTHON" if given.infinity else ""
    command += " --source DIR" if given.source else ""
    command += "".join(f" --only {label}" for label in given.only)
    if given.budgets:
        command += " --budgets " + " ".join(str(tokens) for tokens in given.budgets)
    return command


def ours_alone(
    encoder: Encoder, prompts: Sequence[Prompt], seconds: float, ceiling: float
) -> dict[str, tuple[float, str]]:
    """How fast ours is, how much of that is padding, and what share of the ceiling it reaches."""
    encoded = encoder.encode(prompts)
    own = int(encoded.tokens.sum())
    print(f"{len(prompts)} prompts, {own} tokens of their own, padding {encoded.padding:.3f}")
    body = sum(p.numel() for n, p in encoder.llm.named_parameters() if "embed_tokens" not in n)
    share = 2 * body * own / (1 - encoded.padding) / seconds / ceiling
    return {
        "items_s": (round(len(prompts) / seconds, 1), "items/s"),
        "flop_share": (
            round(share, 3),
            f"of the bfloat16 ceiling, {ceiling / 1e9:.0f} GFLOP/s",
        ),
        "padding": (round(encoded.padding, 4), "padding / all tokens run"),
    }


def budget_way(encoder: Encoder, tokens: int) -> Way:
    """Ours, in batches of so many tokens."""
    return Way(
        f"ours, batches of {tokens} tokens",
        str(tokens),
        lambda prompts: encoder.encode(prompts, tokens),
    )


def dtype_way(llm: Path, dtype: RuntimeDType) -> Way:
    """Ours in another dtype than bfloat16."""
    return Way(f"ours, {dtype}", dtype, Encoder.load(llm, dtype=dtype).encode)


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

    return Way("transformers, bfloat16, batches of 32", "transformers", encode)


def sentence_transformers(llm: Path) -> list[Way]:
    """Sentence-transformers' encode, in bfloat16 and as it comes; none where it is missing."""
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
    except ImportError:
        return []

    def way(name: str, label: str, dtype: torch.dtype) -> Way:
        # A folder without modules.json is read as an LLM with a mean over its tokens.
        model = SentenceTransformer(str(llm), device="cpu", model_kwargs={"dtype": dtype})
        model.tokenizer.pad_token = model.tokenizer.pad_token or model.tokenizer.eos_token
        return Way(
            f"sentence-transformers, {name}",
            f"sentence_transformers{label}",
            lambda prompts: model.encode(
                [each.text for each in prompts], batch_size=BATCH, show_progress_bar=False
            ),
        )

    return [way("bfloat16", "", torch.bfloat16), way("its defaults", "_defaults", torch.float32)]


def measured(ways: Sequence[Way], prompts: Sequence[Prompt], rounds: int) -> dict[str, float]:
    """Median seconds of each way, by name, after a first go that is not counted."""
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        way.run(prompts[: 2 * BATCH])
    for number in range(rounds):
        for way in ways:
            started = time.perf_counter()
            way.run(prompts)
            times[way.name].append(time.perf_counter() - started)
        seconds = ", ".join(f"{name} {each[-1]:.1f}" for name, each in times.items())
        print(f"round {number + 1}, seconds: {seconds}", flush=True)
    return {name: statistics.median(each) for name, each in times.items()}


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


@contextmanager
def served_by_infinity(python: str, llm: Path) -> Iterator[list[Way]]:
    """An infinity-emb server of the same LLM; the way that asks it, in a list.

    It is asked for 32 texts at a time, one request after the other.
    """
    with infinity(python, llm) as server:
        yield [
            Way(
                "infinity-emb, bfloat16, batches of 32",
                "infinity",
                lambda prompts: [
                    embeddings(server, [prompt.text for prompt in some])
                    for some in batches(prompts)
                ],
            )
        ]


if __name__ == "__main__":
    main()
