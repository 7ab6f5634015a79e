"""The LLM that is tuned, step by step; training.scft says how many.

A step's batch is read in parts: each process its share of the items, and that in turns of
`chunk_items` where memory is scarce. The loss is over the vectors of the whole batch, so what an
item is told from depends on neither. Source: GradCache (Gao et al. 2021, arXiv 2101.06983): the
loss's gradient by the vectors is found first, then each part's gradient by the weights. Here a
part keeps its graph where it is the only one, and the vectors of all processes are summed up, as
each has those of its own share.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BitsAndBytesConfig

from models.encoder import (
    BATCH_TOKENS,
    Encoder,
    Tokens,
    batches_by_length,
    check_lower_layer,
    runtime_device,
    runtime_dtype,
)
from models.item import Item
from models.llm import load_model, load_tokenizer, quiet_peft
from models.prompt import Prompt
from training import JobError
from training.config import RunConfig
from training.copies import shuffle, thin
from training.lora import fuse
from training.losses import contrastive
from training.places import HEAD_DECAY, HEAD_RATE, PlaceHead
from training.processes import ALONE, Processes, this_job
from training.upper import UpperLayers, layers_of, upper_linears

ACTIVATIONS = "activations.bin"
LENGTH_SPREAD = 8  # tokens by which prompts of one batch may come to differ
PARTS_APART = 1 << 40  # between the seeds of a step's parts; those of its steps are near each other


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


class _Batch(NamedTuple):
    """What one step reads.

    Attributes:
        items: how many (B).
        copies: texts of each; text c * B + i is copy c of item i.
        read: vectors of some of the texts, in the order that they are asked for.
        loss: of the vectors of all texts.
    """

    items: int
    copies: int
    read: Callable[[NDArray[np.int64]], Tensor]
    loss: Callable[[Tensor], Tensor]


class Tuner:
    """The LLM with its LoRA adapter, its optimiser, and the batches they see.

    Args:
        places: (m, d) of the m items where the objective is `places`.
        work: folder for what is stored while it runs.
        processes: those that tune together, each with a tuner of its own; see follow_tuning.
    """

    def __init__(
        self,
        items: Sequence[Item],
        folder: Path,
        config: RunConfig,
        places: NDArray[np.float32] | None,
        work: Path,
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.processes = processes
        self.spec = config.scft
        self.items = items
        self.size = min(self.spec.batch_items, len(items))
        if self.size < 2:
            raise JobError("scft needs at least two items; set scft.steps=0 for fewer")
        if self.size < processes.count:
            raise JobError(
                f"scft: a batch of {self.size} items cannot be shared by {processes.count} "
                "processes; raise scft.batch_items, or start fewer"
            )
        self.batches = len(items) // self.size  # of one epoch
        self.llm = self._load(folder)
        tokenizer, limit = load_tokenizer(folder), config.llm.max_tokens
        if config.llm.lower_layer:  # said now, and not when all is tuned
            check_lower_layer(self.llm, config.llm.lower_layer)
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
            untuned = self.upper.all().numpy() if self.upper else self._read_all(plain)
            head = PlaceHead(untuned, places, self.spec.temperature, config.seed)
            self.head = head.to(runtime_device())
        self.peft = self._add_lora()
        self.encoder = Encoder(self.peft, tokenizer, limit, config.llm.attention)
        self.weights = {n: p for n, p in self.peft.named_parameters() if p.requires_grad}
        for weight in self.weights.values():
            weight.data = weight.data.float()  # Adam's small updates vanish in bfloat16
        if self.head:
            self.weights |= {f"head.{n}": p for n, p in self.head.head.named_parameters()}
        told = self.head.buffers() if self.head else ()
        processes.same([*(weight.data for weight in self.weights.values()), *told])
        self._start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.reset()

    def _load(self, folder: Path) -> nn.Module:
        """The LLM, where and how its weights are kept while it is tuned."""
        dtype, spec = runtime_dtype(self.config.llm.dtype), self.spec
        if self.processes.sharded and (
            spec.quantise or (spec.layers and spec.objective == "places")
        ):
            raise JobError("scft: FSDP goes neither with scft.quantise nor with places and layers")
        if spec.quantise:
            llm = _four_bits(folder, dtype)
        elif self.processes.sharded:
            llm = _shard(load_model(folder, dtype), self.processes.count)
        else:
            llm = load_model(folder, dtype).to(runtime_device())
        if spec.gradient_checkpointing:
            _compute_again(llm)
        return llm

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
            tuned = get_peft_model(self.llm, lora)
        if not self.processes.sharded:  # whose weights are there only while torch's own maps run
            fuse(tuned)
        return tuned

    def reset(self) -> None:
        """Back to the untuned LLM, as if no step had been taken."""
        self.processes.tell(("reset",))
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
        self.processes.tell(("step", number, steps))
        self.peft.train()
        # Linear decay after a short warm-up, as the published recipe decays.
        share = min((number + 1) / max(1, steps // 20), 1 - number / steps)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        loss = self._find_gradients(number)
        self.optimiser.step()
        return loss

    def _find_gradients(self, number: int) -> float:
        """The loss of one step's batch, and its gradient by all weights."""
        batch = self._batch(number)
        parts = self._parts(batch)
        once = len(parts) == 1
        found = torch.zeros(batch.items * batch.copies, self.encoder.dim, device=runtime_device())
        for turn, texts in enumerate(parts):
            with torch.set_grad_enabled(once):
                read = self._read(batch, number, turn, texts)
            found[texts] = read.detach()
        whole = self.processes.sum(found).requires_grad_()
        loss = batch.loss(whole)
        value = float(loss.detach())
        if self.processes.main and not np.isfinite(value):  # the same in every process
            raise JobError(f"scft: the loss is {value} at step {number}; try llm.dtype=float32")
        self.optimiser.zero_grad()
        loss.backward()
        gradient = whole.grad
        assert gradient is not None  # noqa: S101 - each vector is in the loss
        for turn, texts in enumerate(parts):
            if not once:
                read = self._read(batch, number, turn, texts)
            read.backward(gradient[texts])
        self._sum_gradients()
        return value

    def _parts(self, batch: _Batch) -> list[NDArray[np.int64]]:
        """This process's texts of a batch, by turns; every process has as many turns."""
        most = -(-batch.items // self.processes.count)
        turns = -(-most // (self.spec.chunk_items or most))
        shares = np.array_split(self.processes.share(batch.items), turns)
        first = batch.items * np.arange(batch.copies)[:, None]
        return [(first + share).ravel() for share in shares]

    def _read(self, batch: _Batch, number: int, turn: int, texts: NDArray[np.int64]) -> Tensor:
        """Vectors of a part; a second time, with the same dropout."""
        part = turn * self.processes.count + self.processes.index
        torch.manual_seed(self.config.seed * 1_000_003 + number + part * PARTS_APART)
        return batch.read(texts)

    def _sum_gradients(self) -> None:
        """Of the LLM's weights every process has a share's; of the head's each has the whole."""
        if self.processes.count == 1:
            return
        for name, weight in self.weights.items():
            if name.startswith("head.") and weight.grad is not None:
                weight.grad.div_(self.processes.count)
        self.processes.sum_gradients(self.weights.values())

    def vectors(self) -> NDArray[np.float32]:
        """LLM vectors (m, D) of the items, as tuned so far."""
        self.processes.tell(("vectors",))
        self.peft.eval()
        if self.upper:
            return self.upper.all().numpy()
        return self._read_all(self.encoder)

    def _read_all(self, encoder: Encoder) -> NDArray[np.float32]:
        if not self.processes.sharded:
            return encoder.encode_tokens(self.tokens).vectors
        # Weights that are gathered in inference mode, as there, could not be trained on afterwards;
        # and an instruction is read in that mode where there are no gradients and no LoRA.
        tuned = any(weight.requires_grad for weight in encoder.parameters())
        found = np.empty((len(self.tokens), encoder.dim), np.float32)
        with torch.set_grad_enabled(not tuned):
            for rows in batches_by_length([len(each.ids) for each in self.tokens], BATCH_TOKENS):
                vectors = encoder([self.tokens[row] for row in rows])
                found[rows] = vectors.detach().cpu().numpy()
        return found

    def _batch(self, number: int) -> _Batch:
        """The texts of one step, and the loss over their vectors; the same in every process."""
        head = self.head
        if head is None:
            return self._copies(number)
        rows = self._rows(number)
        return _Batch(
            len(rows), 1, lambda texts: self._vectors(rows[texts]), lambda found: head(found, rows)
        )

    def _vectors(self, rows: NDArray[np.int64]) -> Tensor:
        if self.upper:
            return self.upper(rows.tolist())
        return self._encode([self.tokens[row] for row in rows])

    def _encode(self, batch: Sequence[Tokens]) -> Tensor:
        # Where weights are shared out, every process has to run the LLM as often as the others;
        # and what is computed again keeps no keys and values of an instruction.
        if self.processes.sharded or self.spec.gradient_checkpointing:
            vectors: Tensor = self.encoder(batch)
            return vectors
        return self.encoder.tuned(batch)

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

    def _copies(self, number: int) -> _Batch:
        """Two copies of each of this step's items; items that read the same are no negatives."""
        epoch, place = divmod(number, self.batches)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.items))
        items = [self.items[i] for i in order[place * self.size : (place + 1) * self.size]]
        random = np.random.default_rng([self.config.seed, number, 2])
        copies = [self._copy(item, random) for _ in range(2) for item in items]
        texts = [self.config.template.render(item).body for item in items]
        numbers = {text: number for number, text in enumerate(texts)}
        code = np.array([numbers[text] for text in texts])

        def read(some: NDArray[np.int64]) -> Tensor:
            return self._encode(self.encoder.tokenise([copies[i] for i in some]))

        def loss(found: Tensor) -> Tensor:
            same = torch.from_numpy(code[:, None] == code).to(found.device)
            left, right = found[: len(items)], found[len(items) :]
            return contrastive(self.spec.loss, left, right, self.spec.temperature, same)

        return _Batch(len(items), 2, read, loss)

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
        """Go on from a checkpoint; how many steps it had taken, and what was seen by then.

        It is of no number of processes: weights and optimiser are the same in each, and order,
        copies and dropout follow from the seed and the step's number.
        """
        facts = torch.load(path, map_location="cpu", weights_only=True)
        self.take(facts)
        return facts["taken"], Watched(*facts["watched"])

    def take(self, facts: dict[str, Any]) -> None:
        """Be as a checkpoint says."""
        self.processes.tell(("take", facts))
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(facts["weights"][name])
        self.optimiser.load_state_dict(facts["optimiser"])


def follow_tuning(
    items: Sequence[Item], folder: Path, config: RunConfig, places: NDArray[np.float32] | None
) -> None:
    """What a process does that tunes along with the main one; arguments as of Tuner.

    What it stores is in a folder of its own, in the cache.
    """
    cache = Path(config.cache).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="tuning-") as work:
        tuner = Tuner(items, folder, config, places, Path(work), this_job())
        this_job().follow_on(tuner)


def _shard(llm: nn.Module, count: int) -> nn.Module:
    """An LLM of whose weights each process keeps a part, and has a layer's whole while it runs.

    LoRA's are put in later and are not among them: every process has those.
    """
    mesh = init_device_mesh(runtime_device().type, (count,))
    for layer in layers_of(llm.requires_grad_(False)) or ():
        fully_shard(layer, mesh=mesh)
    fully_shard(llm, mesh=mesh)
    return llm


def _compute_again(llm: Any) -> None:  # noqa: ANN401 - a model of transformers
    """Have an LLM keep what goes into its layers only, and compute the rest again for gradients.

    Raises:
        JobError: it is one that cannot.
    """
    # Transformers is giving it another name.
    enable = getattr(llm, "activation_checkpointing_enable", llm.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise JobError(f"scft.gradient_checkpointing: {error}; leave it out") from None


def _four_bits(folder: Path, dtype: torch.dtype) -> nn.Module:
    """An LLM whose weights have 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

    Raises:
        JobError: there is no GPU with CUDA, or no bitsandbytes.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise JobError(
            'scft.quantise = "4bit" needs a GPU with CUDA and the package bitsandbytes; leave it '
            "out, and the LLM's weights stay as they are"
        )
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return load_model(
        folder, dtype, quantization_config=four, device_map={"": torch.cuda.current_device()}
    )
