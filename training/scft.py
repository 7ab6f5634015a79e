"""Recipe `scft`: tune the LLM with LoRA, by one of two objectives.

`copies`: two thinned copies of an item land together. Source: LLMEmb (arXiv 2409.19925),
supervised contrastive fine-tuning. Departs from its published code: copies are drawn afresh every
epoch, and thinned inside values too; the title stays; items of identical text are no negatives of
each other; only the item's own words are pooled.

`places`: an item's vector tells, through a linear map, its place among what is bought together
(training.places), found among those of all training items.

Writes adapter/ in peft's layout; nothing where `steps` is 0. It is made in the cache, where
another run that tunes the same LLM on the same items finds it.
"""

import functools
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from tqdm import tqdm

from models.encoder import Encoder, runtime_device, runtime_dtype
from models.item import AttributeValue, Item, is_missing
from models.llm import fingerprint_folder, load_model, load_tokenizer, quiet_peft
from models.prompt import Prompt, PromptTemplate
from training import JobError
from training.config import SCFT, NeighboursSpec, RunConfig
from training.content import content_quality
from training.fetch import llm_folder
from training.losses import contrastive
from training.places import HEAD_DECAY, HEAD_RATE, PlaceHead, collaborative_places
from training.prepare import read_prepared, split_digest
from training.recipe import Run, Step, digest, write_atomically
from training.run_llm import RunLLM
from training.upper import UpperLayers, upper_linears

log = logging.getLogger(__name__)
CALIBRATION_STEPS = 3
ACTIVATIONS = "activations.bin"
LENGTH_SPREAD = 8  # tokens by which prompts of one batch may come to differ
Part = TypeVar("Part")
Look = Callable[[NDArray[np.float32]], dict[str, float]]


def thin(
    item: Item,
    template: PromptTemplate,
    drop_attribute: float,
    drop_part: float,
    random: np.random.Generator,
) -> Item:
    """A copy of an item with some attributes, and parts of values, left out at random.

    The first rendered attribute, usually the title, always stays and keeps at least half of its
    words; every other is dropped with probability `drop_attribute`, and of those that stay every
    word or list element with probability `drop_part`, but never all of them.
    """
    first, *others = template.names(item)
    kept = {first: _thin_value(item.attributes[first], drop_part, random, keep=0.5)}
    for name in others:
        if random.random() >= drop_attribute:
            kept[name] = _thin_value(item.attributes[name], drop_part, random)
    return Item(item_id=item.item_id, attributes=kept)


def _thin_value(
    value: AttributeValue, drop: float, random: np.random.Generator, keep: float = 0.0
) -> AttributeValue:
    if isinstance(value, str):
        return " ".join(_thin_list(value.split(), drop, random, keep))
    if isinstance(value, list):
        said = [part for part in value if not is_missing(part)]
        parts = _thin_list(said, drop, random, keep)
        return [_thin_value(p, drop, random) if isinstance(p, list) else p for p in parts]
    return value


def _thin_list(
    parts: list[Part], drop: float, random: np.random.Generator, keep: float
) -> list[Part]:
    stays = random.random(len(parts)) >= drop
    floor = max(1, int(np.ceil(keep * len(parts))))
    if stays.sum() < floor:
        stays[:] = False
        stays[random.choice(len(parts), floor, replace=False)] = True
    return [part for part, stay in zip(parts, stays, strict=True) if stay]


def shuffle(
    item: Item, template: PromptTemplate, drop: float, random: np.random.Generator
) -> Prompt:
    """An item's attributes in a random order, int(drop * N) of the N left out.

    Source: LLMEmb (arXiv 2409.19925), attribute-level augmentation. A single attribute stays;
    the published code leaves the bare instruction of such an item.
    """
    order = random.permutation(np.array(template.names(item), dtype=object)).tolist()
    kept = order[: len(order) - int(drop * len(order))]
    attributes = {name: item.attributes[name] for name in kept}
    ordered = template.model_copy(update={"priority": tuple(kept)})
    return ordered.render(Item(item_id=item.item_id, attributes=attributes))


def scft(run: Run) -> Step:
    """Tune the LLM on the items with training interactions, or go on with it after a kill.

    Without `steps` and `epochs`, three steps are timed and as many taken as fit in `minutes`; the
    count is decided once, written down, and kept when the run is resumed. Of `places`, items
    without a neighbour in the training histories are left out.

    Raises:
        JobError: the LLM cannot be had, or the loss is no number any more.
        InvalidItem: the template leaves nothing of an item.
    """
    config = run.config
    folder = llm_folder(config.llm.path, config.llm.revision, run.cache)
    step = run.step("scft", llm=fingerprint_folder(folder))
    if step.done:
        return step
    catalogue, split = read_prepared(run)
    for item in catalogue:
        config.template.render(item)
    if config.scft.steps == 0:
        step.finish(steps=0, adapter=None, llm=str(folder))
        return step
    places = None
    known = np.flatnonzero(split.counts[1:])
    if config.scft.objective == "places":
        everywhere = collaborative_places(split.train, len(catalogue), NeighboursSpec())
        known = np.flatnonzero(everywhere.any(axis=1))
        places = everywhere[known]
    trained = [catalogue[row] for row in known]
    made = {
        **RunLLM(folder, None, config.llm).facts(),
        "prompts": digest([config.template.render(item).text for item in trained]),
        "scft": config.scft.model_dump(),
        "places": None if places is None else hashlib.sha256(places.tobytes()).hexdigest(),
        "seed": config.seed,
    }
    look: Look | None = None
    if config.scft.patience:
        # What is seen decides when to stop, so the adapter depends on it.
        made["watched"] = split_digest(split)
        look = functools.partial(content_quality, rows=known, split=split)
    with run.shared("adapters", **made) as shared:
        if not shared.done:
            tuner = _Tuner(trained, folder, config, places, shared.folder)
            _tune(tuner, shared, config.scft, look)
        shutil.rmtree(step.folder / "adapter", ignore_errors=True)
        shutil.copytree(shared.folder / "adapter", step.folder / "adapter")
        shutil.copyfile(shared.folder / "metrics.jsonl", step.folder / "metrics.jsonl")
        step.finish(**shared.facts, adapter="adapter", llm=str(folder))
    return step


def _tune(tuner: "_Tuner", shared: Step, spec: SCFT, look: Look | None) -> None:
    """Take the steps that are not taken yet.

    Args:
        look: what the vectors (m, D) of the tuned items do by themselves; None where nobody asks.
    """
    steps, taken, watched = _plan(tuner, shared, spec)
    checkpoint, best = shared.folder / "checkpoint.pt", shared.folder / "best.pt"
    bar = tqdm(total=steps, initial=taken, desc="scft", unit="step")
    while taken < steps and not (spec.patience and watched.since >= spec.patience):
        loss = tuner.step(taken, steps)
        taken += 1
        shared.log(step=taken, loss=round(loss, 5))
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if look and (taken % tuner.batches == 0 or taken == steps):
            seen = look(tuner.vectors())
            shared.log(step=taken, **seen)
            watched = watched.after(seen["validation_ndcg10"], taken)
            if not watched.since:
                tuner.save(best, taken, watched)
        if taken % spec.checkpoint_steps == 0 or taken == steps:
            tuner.save(checkpoint, taken, watched)
    bar.close()
    if best.exists():
        tuner.load(best)
    tuner.save_adapter(shared.folder / "adapter")
    shared.finish(steps=watched.step if look else steps)
    for each in (checkpoint, best, shared.folder / ACTIVATIONS):
        each.unlink(missing_ok=True)


def step_seconds(items: Sequence[Item], folder: Path, config: RunConfig) -> float:
    """What a step takes here, by one of them on some items; nothing of it is kept.

    Args:
        items: as many as one batch has, or more.
        folder: of the LLM.
    """
    places = None
    if config.scft.objective == "places":
        places = np.random.default_rng(0).normal(size=(len(items), 64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as work:
        tuner = _Tuner(items, folder, config, places, Path(work))
        started = time.monotonic()
        tuner.step(0, 2)
        return time.monotonic() - started


class _Watched(NamedTuple):
    """The best validation NDCG@10 so far, after how many steps, and how many looks ago."""

    best: float = -1.0
    step: int = 0
    since: int = 0

    def after(self, reached: float, step: int) -> "_Watched":
        """What is known after one look more."""
        if reached > self.best:
            return _Watched(reached, step, 0)
        return self._replace(since=self.since + 1)


def _plan(tuner: "_Tuner", step: Step, spec: SCFT) -> tuple[int, int, _Watched]:
    """How many steps there are in all, how many of them are done, and what was seen by then."""
    plan = step.folder / "steps"
    checkpoint = step.folder / "checkpoint.pt"
    if plan.exists():
        done = tuner.load(checkpoint) if checkpoint.exists() else (0, _Watched())
        return int(plan.read_text()), *done
    steps = spec.steps
    if steps is None and spec.epochs:
        steps = max(1, round(spec.epochs * tuner.batches))
    if steps is None:
        started = time.monotonic()
        for number in range(CALIBRATION_STEPS):
            tuner.step(number, CALIBRATION_STEPS)
        seconds = (time.monotonic() - started) / CALIBRATION_STEPS
        steps = max(1, int(spec.minutes * 60 / seconds))
        log.info("scft: %.1f s a step, so %d steps in %g minutes", seconds, steps, spec.minutes)
        tuner.reset()
    write_atomically(plan, str(steps))
    return steps, 0, _Watched()


class _Tuner:
    """The LLM with its LoRA adapter, its optimiser, and the batches they see.

    Args:
        places: (m, d) of the m items where the objective is `places`.
        work: folder for what is stored while it runs.
    """

    def __init__(
        self,
        items: Sequence[Item],
        folder: Path,
        config: RunConfig,
        places: NDArray[np.float32] | None,
        work: Path,
    ) -> None:
        self.config = config
        self.spec = config.scft
        self.items = items
        self.size = min(self.spec.batch_items, len(items))
        if self.size < 2:
            raise JobError("scft needs at least two items; set scft.steps=0 for fewer")
        self.batches = len(items) // self.size  # of one epoch
        self.llm = load_model(folder, runtime_dtype(config.llm.dtype)).to(runtime_device())
        tokenizer, limit = load_tokenizer(folder), config.llm.max_tokens
        plain = Encoder(self.llm, tokenizer, limit, config.llm.attention)
        self._epoch = -1
        self._order: list[NDArray[np.int64]] = []  # batches of that epoch
        self.upper: UpperLayers | None = None
        self.head: PlaceHead | None = None
        self.tokens = plain.tokenise([config.template.render(item) for item in items])
        if places is not None:
            if self.spec.layers:
                self.upper = UpperLayers(
                    self.llm, self.spec.layers, plain, self.tokens, work / ACTIVATIONS
                )
            if self.upper:
                untuned = self.upper.all().numpy()
            else:
                untuned = plain.encode_tokens(self.tokens).vectors
            head = PlaceHead(untuned, places, self.spec.temperature, config.seed)
            self.head = head.to(runtime_device())
        self.peft = self._add_lora()
        self.encoder = Encoder(self.peft, tokenizer, limit, config.llm.attention)
        self.weights = {n: p for n, p in self.peft.named_parameters() if p.requires_grad}
        for weight in self.weights.values():
            weight.data = weight.data.float()  # Adam's small updates vanish in bfloat16
        if self.head:
            self.weights |= {f"head.{n}": p for n, p in self.head.head.named_parameters()}
        self._start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.reset()

    def _add_lora(self) -> PeftModel:
        targets: str | list[str] = "all-linear"
        if self.spec.layers:
            targets = upper_linears(self.llm, self.spec.layers)
        lora = LoraConfig(
            r=self.spec.lora_rank,
            lora_alpha=self.spec.lora_alpha,
            lora_dropout=self.spec.lora_dropout,
            target_modules=targets,
        )
        torch.manual_seed(self.config.seed)
        with quiet_peft():
            return get_peft_model(self.llm, lora)

    def reset(self) -> None:
        """Back to the untuned LLM, as if no step had been taken."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self._start[name])
        of_head = [w for name, w in self.weights.items() if name.startswith("head.")]
        of_llm = [w for name, w in self.weights.items() if not name.startswith("head.")]
        groups: list[dict[str, Any]] = [{"params": of_llm, "lr": self.spec.learning_rate}]
        if of_head:
            groups.append({"params": of_head, "lr": HEAD_RATE, "weight_decay": HEAD_DECAY})
        # Places are learnt in some hundred steps at a high rate; the second moment has to follow.
        betas = (0.9, 0.98) if of_head else (0.9, 0.999)
        self.optimiser = torch.optim.AdamW(groups, betas=betas)
        self._rates = [float(group["lr"]) for group in groups]

    def step(self, number: int, steps: int) -> float:
        """Take one step; the same number gives the same batch, copies and dropout.

        Raises:
            JobError: the loss is not finite.
        """
        self.peft.train()
        torch.manual_seed(self.config.seed * 1_000_003 + number)
        # Linear decay after a short warm-up, as the published recipe decays.
        share = min((number + 1) / max(1, steps // 20), 1 - number / steps)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        loss = self._loss(number)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise JobError(f"scft: the loss is {value} at step {number}; try llm.dtype=float32")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return value

    def vectors(self) -> NDArray[np.float32]:
        """LLM vectors (m, D) of the items, as tuned so far."""
        self.peft.eval()
        if self.upper:
            self.upper.bind(self.peft)
            return self.upper.all().numpy()
        return self.encoder.encode_tokens(self.tokens).vectors

    def _loss(self, number: int) -> Tensor:
        if not self.head:
            left, right, same = self._batch(number)
            return contrastive(self.spec.loss, left, right, self.spec.temperature, same)
        rows = self._rows(number)
        if self.upper:
            self.upper.bind(self.peft)
            vectors = self.upper(rows.tolist())
        else:
            vectors = self.encoder.tuned([self.tokens[row] for row in rows])
        loss: Tensor = self.head(vectors, rows)
        return loss

    def _rows(self, number: int) -> NDArray[np.int64]:
        """This step's items: about as long, so that padding costs little; each once an epoch."""
        epoch, place = divmod(number, self.batches)
        if epoch != self._epoch:
            random = np.random.default_rng([self.config.seed, epoch])
            lengths = np.array([len(each.ids) for each in self.tokens])
            near = lengths + random.uniform(0, LENGTH_SPREAD, len(lengths))
            batches = np.array_split(np.argsort(near, kind="stable"), self.batches)
            self._epoch = epoch
            self._order = [batches[i] for i in random.permutation(self.batches)]
        return self._order[place]

    def _batch(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (B, D) of the two copies of this step's items, and which items read the same."""
        epoch, place = divmod(number, self.batches)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.items))
        items = [self.items[i] for i in order[place * self.size : (place + 1) * self.size]]
        random = np.random.default_rng([self.config.seed, number, 2])
        copies = [self._copy(item, random) for _ in range(2) for item in items]
        vectors = self.encoder.tuned(self.encoder.tokenise(copies))
        texts = [self.config.template.render(item).body for item in items]
        same = torch.tensor([[a == b for b in texts] for a in texts], device=vectors.device)
        return vectors[: len(items)], vectors[len(items) :], same

    def _copy(self, item: Item, random: np.random.Generator) -> Prompt:
        template, spec = self.config.template, self.spec
        if spec.copies == "shuffled":
            return shuffle(item, template, spec.drop_attribute, random)
        return template.render(thin(item, template, spec.drop_attribute, spec.drop_part, random))

    def save(self, path: Path, taken: int, watched: _Watched) -> None:
        """Write adapter weights and optimiser state; whole or not at all."""
        partial = path.with_suffix(".partial")
        facts = {
            "taken": taken,
            "watched": tuple(watched),
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(facts, partial)
        partial.replace(path)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's layout, the same bytes for the same adapter."""
        self.peft.save_pretrained(str(folder), safe_serialization=True)
        config = folder / "adapter_config.json"
        fields = json.loads(config.read_text())
        # A set in a new order each time, and a path of this machine.
        fields["target_modules"] = sorted(fields["target_modules"])
        fields["base_model_name_or_path"] = self.config.llm.path
        config.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")

    def load(self, path: Path) -> tuple[int, _Watched]:
        """Go on from a checkpoint; how many steps it had taken, and what was seen by then."""
        facts = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(facts["weights"][name])
        self.optimiser.load_state_dict(facts["optimiser"])
        return facts["taken"], _Watched(*facts["watched"])
