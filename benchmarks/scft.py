"""How fast SCFT reads tokens, beside a plain loop of peft and transformers on the same texts.

Both tune the same LLM with the same LoRA in the same dtype, on the same copies of the same items,
and take the same step: forward, InfoNCE, backward, AdamW. They take turns, step by step, so that
whatever the machine does meanwhile hits both. The figure is the ratio of the medians.

The objective `places` reads an item once, and of the LLM tunes upper layers over what the lower
ones said once and for all; no plain loop does the same. Its tokens a second stand beside, in a
figure of their own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.figures import machine, record
from models.encoder import Tokens, runtime_dtype, settled_dtype
from models.llm import quiet_peft
from models.prompt import Prompt
from training.config import RunConfig, read_config
from training.fetch import llm_folder
from training.losses import infonce
from training.places import collaborative_places
from training.prepare import prepare, read_prepared
from training.recipe import Run
from training.tuner import Tuner

PLACES = Path("training/configs/amazon-beauty-scft.toml")


class Way(NamedTuple):
    """One way to take steps.

    Attributes:
        step: takes the step of a number.
        tokens: how many tokens the prompts of the step that was taken last had in all, without
            padding.
    """

    step: Callable[[int], object]
    tokens: Callable[[int], int]


class Heard:
    """What a tuner's encoder was last asked to tokenise, so that another can read the same."""

    def __init__(self, tuner: Tuner) -> None:
        self.prompts: list[Prompt] = []
        self.tokens = 0
        tokenise = tuner.encoder.tokenise

        def heard(prompts: Sequence[Prompt]) -> list[Tokens]:
            self.prompts = [*prompts]
            found = tokenise(prompts)
            self.tokens = sum(len(each.ids) for each in found)
            return found

        tuner.encoder.tokenise = heard  # type: ignore[method-assign]


def main() -> None:
    """Take steps in turns, print a table, and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("training/configs/ml-100k.toml"))
    parser.add_argument("--source", help="folder of the data (data.path)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--steps", type=int, default=7, help="of each way, the first not counted")
    parser.add_argument("--items", type=int, default=512, help="that `places` is measured with")
    parser.add_argument("--name", default="", help="ending of the figures' ids")
    parser.add_argument("--dry-run", action="store_true", help="write no figure")
    given = parser.parse_args()
    changes = ["folder=runs/bench-scft-{name}", *given.set]
    config = read_config(given.config, changes, given.source)
    run = Run(config)
    with run.lock():
        prepare(run)
    llm = llm_folder(config.llm.path, config.llm.revision, run.cache)
    catalogue, split = read_prepared(run)
    known = np.flatnonzero(split.counts[1:])
    with tempfile.TemporaryDirectory() as work:
        copies = Tuner([catalogue[row] for row in known], llm, config, None, Path(work))
        places = collaborative_places(split.train, len(catalogue), config.rat.neighbours)
        some = np.flatnonzero(places.any(axis=1))[: given.items]
        settings = config.model_copy(update={"scft": read_config(PLACES, []).scft})
        started = time.perf_counter()
        upper = Tuner([catalogue[row] for row in some], llm, settings, places[some], Path(work))
        below = time.perf_counter() - started
        heard = Heard(copies)
        ways = {
            "ours, copies": Way(
                lambda number: copies.step(number, given.steps), lambda _: heard.tokens
            ),
            "plain peft and transformers": plain_loop(llm, config, heard),
            "ours, places": Way(
                lambda number: upper.step(number, given.steps),
                lambda number: sum(len(upper.tokens[row].ids) for row in upper._rows(number)),
            ),
        }
        rates = measured(ways, given.steps)
    print(f"{machine()}; {settled_dtype(config.llm.dtype)}")
    print("| way | tokens/s | over plain |\n|---|--:|--:|")
    ours, plain, upper_rate = rates.values()
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / plain:.2f} |")
    read_once = sum(len(each.ids) for each in upper.tokens)
    print(f"places: {read_once / below:.0f} tokens/s of the lower layers and the head, once")
    told = f"{config.scft.batch_items} items, {settled_dtype(config.llm.dtype)}"
    unit = f"ratio of tokens/s, medians of {given.steps - 1} steps, {told}"
    spec = settings.scft
    ending = f".{given.name}" if given.name else ""
    values = {
        f"scft.tokens_s{ending}": (round(ours), f"tokens/s, objective copies, {told}"),
        f"scft.vs_plain{ending}": (round(ours / plain, 3), f"{unit}, the same copies"),
        f"scft.places_vs_plain{ending}": (
            round(upper_rate / plain, 3),
            f"{unit}; objective places, the upper {spec.layers} layers and batches of "
            f"{spec.batch_items}, without what the lower ones say once",
        ),
    }
    if not given.dry_run:
        record(values, command(given, parser))


def command(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command, without the paths of this machine."""
    told = "python -m benchmarks.scft"
    for name in ("config", "steps", "items", "name"):
        value = getattr(given, name)
        told += f" --{name} {value}" if value != parser.get_default(name) else ""
    told += "".join(f" --set {change}" for change in given.set)
    return told + (" --source DIR" if given.source else "")


def plain_loop(llm: Path, config: RunConfig, heard: Heard) -> Way:
    """What a reader of peft's and transformers' documentation writes: padded batches.

    It is handed the copies that ours made and read in its step just before.
    """
    spec = config.scft
    model = AutoModel.from_pretrained(llm, dtype=runtime_dtype(config.llm.dtype))
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lora = LoraConfig(r=spec.lora_rank, lora_alpha=spec.lora_alpha, target_modules="all-linear")
    torch.manual_seed(config.seed)
    with quiet_peft():
        tuned: Any = get_peft_model(model, lora).train()
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=spec.learning_rate)

    def step(_: int) -> float:
        texts = [prompt.text for prompt in heard.prompts]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        states: Tensor = tuned(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        vectors = (states * mask).sum(1).float() / mask.sum(1)
        left, right = vectors.chunk(2)
        loss = infonce(left, right, spec.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return Way(step, lambda _: heard.tokens)


def measured(ways: dict[str, Way], steps: int) -> dict[str, float]:
    """Median tokens a second of each way, by name; the first step of each is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(steps):
        for name, way in ways.items():
            started = time.perf_counter()
            way.step(number)
            seconds = time.perf_counter() - started
            rates[name].append(way.tokens(number) / seconds)
        told = ", ".join(f"{name} {each[-1]:.0f}" for name, each in rates.items())
        print(f"step {number + 1}, tokens/s: {told}", flush=True)
    return {name: statistics.median(each[1:]) for name, each in rates.items()}


if __name__ == "__main__":
    main()
