"""Trains one view: a table of item vectors together with the sequence model that reads them.

Shapes: U users, n items, m rows, P predictions, N negatives, D = dim.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.bundle_writing import TrainedView
from models.encoder import runtime_device
from models.projection import Projection
from models.sequence import build
from training import JobError
from training.batches import batches, windows
from training.config import SequenceSpec
from training.interactions import Split
from training.losses import next_item_loss
from training.metrics import ndcg
from training.processes import ALONE, Processes, this_job
from training.ranking import Ranker
from training.recipe import Step

PROJECTED = 0.25  # of a projection in a hybrid vector; at 1 it drowns what is learnt
K = 10  # early stopping looks at NDCG@10
PART = 256  # users that an epoch is timed with
Align = Callable[[NDArray[np.int64], Tensor], Tensor]


class IdTable(nn.Module):
    """A learnt vector per training item: rows (m,) to (m, D)."""

    def __init__(self, items: int, dim: int, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.table = nn.Embedding(items + 1, dim)

    def reset_parameters(self) -> None:
        """Small random vectors."""
        nn.init.normal_(self.table.weight, std=0.1 if self.unit else 0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """The rows' learnt vectors."""
        vectors: Tensor = self.table(rows)
        return functional.normalize(vectors, dim=-1) if self.unit else vectors


class TextTable(nn.Module):
    """The projection over frozen LLM vectors: rows (m,) to (m, D). Row 0 reads as row 1's."""

    vectors: Tensor

    def __init__(self, projection: Projection, llm_vectors: NDArray[np.float32]) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("vectors", torch.from_numpy(llm_vectors), persistent=False)

    def reset_parameters(self) -> None:
        """Fresh layers over the fitted scaling."""
        self.projection.reset_parameters()

    def forward(self, rows: Tensor) -> Tensor:
        """The projection of the rows' LLM vectors."""
        vectors: Tensor = self.projection(self.vectors[(rows - 1).clamp(min=0)])
        return vectors


class ThawedTable(TextTable):
    """A projection over scaled LLM vectors that are learnt, too: rows (m,) to (m, D).

    What LLMEmb (arXiv 2409.19925) freezes; only to be compared with.
    """

    def __init__(self, projection: Projection, llm_vectors: NDArray[np.float32]) -> None:
        super().__init__(projection, llm_vectors)
        self.learnt = nn.Parameter(projection.scale(self.vectors))  # (n, dims[0])

    def reset_parameters(self) -> None:
        """Fresh layers over the scaled vectors as the LLM gives them."""
        super().reset_parameters()
        with torch.no_grad():
            self.learnt.copy_(self.projection.scale(self.vectors))

    def forward(self, rows: Tensor) -> Tensor:
        """The projection of what the rows' scaled vectors have become."""
        return self.projection.project(self.learnt[(rows - 1).clamp(min=0)])


class HybridTable(nn.Module):
    """A learnt vector per training item, on top of a projection: rows (m,) to (m, D).

    What the words say is known from the first step on; the learnt part is what they do not say.

    Args:
        text: gives the projection.
        items: size of the catalogue (n).
        dropout: how often a training item is read by its words alone.
        unit: whether the sum is brought to length 1, for cosines.
    """

    def __init__(self, text: TextTable, items: int, dropout: float, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.text = text
        self.learnt = nn.Embedding(items + 1, text.projection.dim)
        self.dropout = dropout

    def reset_parameters(self) -> None:
        """A fresh projection, and learnt vectors that are small beside it."""
        self.text.reset_parameters()
        nn.init.normal_(self.learnt.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """The sum of both."""
        learnt = self.learnt(rows)
        if self.training and self.dropout:
            learnt = learnt * (torch.rand(len(rows), 1, device=rows.device) >= self.dropout)
        vectors: Tensor = self.text(rows) * PROJECTED + learnt
        return functional.normalize(vectors, dim=-1) if self.unit else vectors


Table = IdTable | TextTable | HybridTable


def train_view(
    name: str,
    table: Table,
    spec: SequenceSpec,
    split: Split,
    step: Step,
    seed: int,
    align: Align | None = None,
) -> TrainedView:
    """Train one view until its validation NDCG@10 stops rising; the best epoch's view.

    A training that was killed goes on from its last whole epoch, and ends as it would have. Where
    the job has several processes, each reads its share of every batch's histories.
    Writes best.safetensors, model.safetensors, view.safetensors (items, present) and, for a table
    that any item has a vector of, projection.safetensors into the step's folder.

    Args:
        table: rows (m,) to item vectors (m, D).
        align: an extra loss over unique rows (m,) and their vectors (m, D).

    Raises:
        JobError: the loss is no number any more.
    """
    folder, job = step.folder, this_job()
    job.lead(follow_view, table, spec, split, seed, align)
    training = _Training(table, spec, split, seed, align, job)
    both, model = training.both, training.model
    epoch, best, since = 0, -1.0, 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        training.take(saved)
        epoch, best, since = saved["epoch"], saved["best"], saved["since"]
    trained = split.counts[1:] > 0
    bar = tqdm(total=spec.max_epochs, initial=epoch, desc=f"rat: {name} view", unit="epoch")
    while epoch < spec.max_epochs and since < spec.patience:
        loss = training.epoch(epoch)
        if not np.isfinite(loss):
            raise JobError(f"rat: the {name} view's loss is {loss} in epoch {epoch}")
        view = _view(name, table, model, spec, split)
        # What was never trained on is no candidate: it has no say in what is learnt.
        rank = Ranker.of([view], {name: 1.0}).ranks(
            split.validation_histories, split.validation, banned=~trained
        )
        reached = float(ndcg(rank, K).mean())
        epoch, since = epoch + 1, since + 1
        if reached > best:
            best, since = reached, 0
            save_tensors(_state(both), folder / "best.partial")
            (folder / "best.partial").replace(folder / "best.safetensors")
        step.log(view=name, epoch=epoch, loss=round(loss, 5), validation_ndcg10=round(reached, 5))
        facts = {
            "weights": both.state_dict(),
            "optimiser": training.optimiser.state_dict(),
            "epoch": epoch,
            "best": best,
            "since": since,
        }
        torch.save(facts, folder / "checkpoint.partial")
        (folder / "checkpoint.partial").replace(checkpoint)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", validation=f"{reached:.4f}", best=f"{best:.4f}")
    bar.close()
    job.end()
    both.load_state_dict(load_tensors(folder / "best.safetensors"))
    both.to("cpu")
    view = _view(name, table, model, spec, split)
    if view.source == "projection" and isinstance(table, TextTable):
        save_tensors(_state(table.projection), folder / "projection.safetensors")
    save_tensors(_state(model), folder / "model.safetensors")
    save_file({"items": view.items, "present": view.present}, folder / "view.safetensors")
    step.finish(epochs=epoch, validation_ndcg10=round(best, 5))
    checkpoint.unlink(missing_ok=True)
    return view


class _Training:
    """A table and a sequence model as they are trained, the same in every process."""

    def __init__(
        self,
        table: Table,
        spec: SequenceSpec,
        split: Split,
        seed: int,
        align: Align | None,
        job: Processes,
    ) -> None:
        self.table, self.spec, self.split, self.seed = table, spec, split, seed
        self.align, self.job = align, job
        torch.manual_seed(seed)
        self.model = build(spec.model, spec.dim, spec.max_history, **spec.options)
        table.reset_parameters()
        both = nn.ModuleDict({"table": table, "model": self.model}).to(runtime_device())
        self.both = both
        job.same([weight.data for weight in both.parameters()])
        self.optimiser = torch.optim.AdamW(
            both.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )

    def take(self, saved: dict[str, Any]) -> None:
        """Be as a checkpoint says."""
        self.job.tell(("take", saved))
        self.both.load_state_dict(saved["weights"])
        self.optimiser.load_state_dict(saved["optimiser"])

    def epoch(self, number: int) -> float:
        """One pass over the training histories; the mean loss."""
        self.job.tell(("epoch", number))
        spec = self.spec
        # Cosine decay: the last epochs settle, so less hangs on which one is picked.
        for group in self.optimiser.param_groups:
            decay = (1 + math.cos(math.pi * number / spec.max_epochs)) / 2
            group["lr"] = spec.learning_rate * decay
        seed = [self.seed, number]
        return _epoch(
            self.table, self.model, self.optimiser, spec, self.split, seed, self.align, self.job
        )


def follow_view(
    table: Table, spec: SequenceSpec, split: Split, seed: int, align: Align | None
) -> None:
    """What a process does that trains a view along with the main one; as train_view's."""
    job = this_job()
    job.follow_on(_Training(table, spec, split, seed, align, job))


def epoch_seconds(spec: SequenceSpec, split: Split) -> float:
    """What an epoch takes here, its look at the validation split included; out of a part of one.

    Of learnt vectors; a projection's epoch differs by little.
    """
    torch.manual_seed(0)
    items = len(split.counts) - 1
    table = IdTable(items, spec.dim, unit=spec.temperature > 0)
    model = build(spec.model, spec.dim, spec.max_history, **spec.options)
    both = nn.ModuleDict({"table": table, "model": model}).to(runtime_device())
    optimiser = torch.optim.AdamW(both.parameters(), fused=True)
    some = dataclasses.replace(split, train=split.train[:PART])
    started = time.monotonic()
    _epoch(table, model, optimiser, spec, some, [0, 0], None)
    trained = time.monotonic()
    view = _view("id", table, model, spec, split)
    asked = split.validation_questions(np.arange(min(PART, len(split.validation))))
    Ranker.of([view], {"id": 1.0}).ranks(*asked)
    ranked = time.monotonic() - trained
    return (trained - started) * len(split.train) / len(some.train) + ranked * len(
        split.validation
    ) / len(asked.targets)


def read_view(name: str, spec: SequenceSpec, split: Split, folder: Path) -> TrainedView:
    """What train_view left in a folder."""
    model = build(spec.model, spec.dim, spec.max_history, **spec.options)
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    arrays = load_file(folder / "view.safetensors")
    return TrainedView(
        name=name,
        source="projection" if (folder / "projection.safetensors").exists() else "table",
        sequence_model=spec.model,
        options=spec.options,
        max_history=spec.max_history,
        weight=1.0,
        model=model.eval(),
        items=arrays["items"],
        present=arrays["present"],
        trained=split.counts[1:] > 0,
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in module.state_dict().items()}


def _epoch(
    table: Table,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    spec: SequenceSpec,
    split: Split,
    seed: list[int],
    align: Align | None,
    job: Processes = ALONE,
) -> float:
    """One pass over the training histories; the mean loss.

    Of several processes each computes the whole batch's item vectors, which costs little, and
    what its share of the histories asks of them; gradients by the vectors are summed up, so what
    is exchanged does not grow with the catalogue.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(int(random.integers(2**31)))
    table.train()
    model.train()
    device = next(model.parameters()).device
    trained = np.flatnonzero(split.counts)
    losses = []
    pieces = windows(split.train, spec.max_history, random)
    for number, batch in enumerate(batches(pieces, spec.batch_tokens, random)):
        drawn = trained if spec.loss == "softmax" else random.choice(trained, spec.negatives)
        # Every distinct item of the batch goes through the table once.
        unique, places = np.unique(np.concatenate([batch.ravel(), drawn]), return_inverse=True)
        job.seed(*seed, number)
        vectors = table(torch.from_numpy(unique).to(device))  # (m, D)
        read = vectors.detach().requires_grad_()
        job.seed(*seed, number, job.index + 1)
        mine = job.share(len(batch))
        place = torch.from_numpy(places[: batch.size].reshape(batch.shape)[mine]).to(device)
        valid = torch.from_numpy(batch[mine] > 0).to(device)
        others = torch.from_numpy(places[batch.size :]).to(device)  # (N,)
        asked, loss = 0, 0 * read.sum()
        if len(mine):  # a batch of one long history leaves the others nothing
            asked, loss = _loss(model, read, place, valid, others, spec, len(trained))
        loss = loss * job.part_of_all(asked, device)
        if align is not None and job.main:
            known = np.flatnonzero(unique)
            loss = loss + align(unique[known], read[torch.from_numpy(known).to(device)])
        optimiser.zero_grad()
        loss.backward()
        job.sum_gradients([read, *model.parameters()])
        if vectors.requires_grad:
            vectors.backward(read.grad)
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(job.sum(torch.tensor(np.mean(losses), device=device)))


def _loss(
    model: nn.Module,
    vectors: Tensor,
    place: Tensor,
    valid: Tensor,
    others: Tensor,
    spec: SequenceSpec,
    items: int,
) -> tuple[int, Tensor]:
    """How many predictions some histories ask for (P), and their mean loss.

    Args:
        vectors: (m, D) of the batch's items and the negatives.
        place: (B, L) where in `vectors` an item of a history is.
        valid: (B, L) where a history has one.
        others: (N,) where in `vectors` the negatives are.
        items: that negatives were drawn from.
    """
    states, found = model.predictions(vectors[place], valid)  # type: ignore[operator]
    if spec.temperature:
        states = functional.normalize(states, dim=-1) / spec.temperature
    target = place.flatten()[found]  # (P,)
    collides = target[:, None] == others[None]
    positives, negatives = vectors[target], vectors[others]
    loss = next_item_loss(spec.loss, states, positives, negatives, collides, items)
    return len(target), loss


def _view(
    name: str, table: Table, model: nn.Module, spec: SequenceSpec, split: Split
) -> TrainedView:
    table.eval()
    model.eval()
    items = len(split.counts) - 1
    trained = split.counts[1:] > 0
    device = next(model.parameters()).device
    with torch.inference_mode():
        vectors = table(torch.arange(1, items + 1, device=device)).cpu().numpy()
    learnt = isinstance(table, ThawedTable) or not isinstance(table, TextTable)
    return TrainedView(
        name=name,
        source="table" if learnt else "projection",
        sequence_model=spec.model,
        options=spec.options,
        max_history=spec.max_history,
        weight=1.0,
        model=model,
        items=vectors,
        present=trained if learnt else np.ones(items, bool),
        trained=trained,
    )
