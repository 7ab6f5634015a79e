"""The LLM that is tuned, step by step; training.scft says how many."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from models.encoder import Encoder, runtime_device, runtime_dtype
from models.item import Item
from models.llm import load_model, load_tokenizer, quiet_peft
from models.prompt import Prompt
from training import JobError
from training.config import RunConfig
from training.copies import shuffle, thin
from training.losses import contrastive
from training.places import HEAD_DECAY, HEAD_RATE, PlaceHead
from training.upper import UpperLayers, upper_linears

ACTIVATIONS = "activations.bin"
LENGTH_SPREAD = 8  # tokens by which prompts of one batch may come to differ


class Watched(NamedTuple):
    """The best validation NDCG@10 so far, after how many steps, and how many looks ago."""

    best: float = -1.0
    step: int = 0
    since: int = 0

    def after(self, reached: float, step: int) -> "Watched":
        """What is known after one look more."""
        if reached > self.best:
            return Watched(reached, step, 0)
        return self._replace(since=self.since + 1)


class Tuner:
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
            vectors = self.encoder([self.tokens[row] for row in rows])
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
        vectors = self.encoder(self.encoder.tokenise(copies))
        texts = [self.config.template.render(item).body for item in items]
        same = torch.tensor([[a == b for b in texts] for a in texts], device=vectors.device)
        return vectors[: len(items)], vectors[len(items) :], same

    def _copy(self, item: Item, random: np.random.Generator) -> Prompt:
        template, spec = self.config.template, self.spec
        if spec.copies == "shuffled":
            return shuffle(item, template, spec.drop_attribute, random)
        return template.render(thin(item, template, spec.drop_attribute, spec.drop_part, random))

    def save(self, path: Path, taken: int, watched: Watched) -> None:
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

    def load(self, path: Path) -> tuple[int, Watched]:
        """Go on from a checkpoint; how many steps it had taken, and what was seen by then."""
        facts = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(facts["weights"][name])
        self.optimiser.load_state_dict(facts["optimiser"])
        return facts["taken"], Watched(*facts["watched"])
