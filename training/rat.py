"""Recipe `rat`: recommendation adaptation training, and the id-only model beside it.

Trains two views, each with a sequence model of its own: `id` (a learnt vector per training item;
alone it is the id-only baseline) and `text` (a projection of the frozen LLM vectors, with an
alignment to the id view's frozen table). Source: LLMEmb (arXiv 2409.19925); sampled softmax, the
cosine with temperature, unique items in the alignment and the sum of views (EnsRec, arXiv
2512.17820) depart from it. Two more views need no training: `content`, the scaled LLM vectors
themselves, and `popularity`. Then picks the views' weights on the validation split.

Writes id/ and text/ (view.safetensors: items, present; model.safetensors; for text
projection.safetensors).
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.bundle import TrainedView
from models.manifest import ProjectionSpec
from models.projection import Projection
from models.sequence import build
from training.batches import batches, windows
from training.encode import read_llm_vectors
from training.interactions import Split
from training.losses import infonce, sampled_softmax
from training.metrics import ndcg, ranks
from training.prepare import read_prepared
from training.ranking import CHUNK, excluded_of, scorer_of, states_of, target_ranks
from training.recipe import JobError, Run, SequenceSpec, Step, TextView

K = 10  # early stopping and weights look at NDCG@10

ALIGNED_ITEMS = 256  # of a batch; all of them would cost more than the rest of the step

# Weights to choose from, and how strongly popularity counts against an item.
ID_WEIGHTS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)  # text has what id and content leave of 1
CONTENT_WEIGHTS = (0.025, 0.05, 0.1, 0.2)
POPULARITY_WEIGHTS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
CONTENT_HISTORY = 10  # latest items that the content view reads
PARTIAL_SCALES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25)
OVERALL_KEPT = 0.99  # of the id view's overall NDCG@10, while the tail's is raised
WARM_KEPT = 0.98  # of other items' NDCG@10, while new ones are let in


class IdTable(nn.Module):
    """A learnt vector per training item: rows (m,) to (m, D)."""

    def __init__(self, items: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(items + 1, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random vectors."""
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, rows: Tensor) -> Tensor:
        """The rows' learnt vectors."""
        vectors: Tensor = self.table(rows)
        return vectors


class TextTable(nn.Module):
    """The projection over frozen LLM vectors: rows (m,) to (m, D). Row 0 reads as row 1's."""

    vectors: Tensor

    def __init__(self, projection: Projection, llm_vectors: NDArray[np.float32]) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("vectors", torch.from_numpy(llm_vectors), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The projection of the rows' LLM vectors."""
        vectors: Tensor = self.projection(self.vectors[(rows - 1).clamp(min=0)])
        return vectors


def rat(run: Run) -> Step:
    """Train both views, or go on with them after a kill, and choose their weights.

    Raises:
        JobError: a loss is no number any more.
    """
    config = run.config
    spec, text = config.rat.sequence, config.rat.text
    seed = config.rat.seed
    step = run.step("rat")
    if step.done:
        return step
    catalogue, split = read_prepared(run)
    llm_vectors = read_llm_vectors(run.finished("encode"))
    trained = split.counts[1:] > 0

    table = IdTable(len(catalogue), spec.dim)
    id_view = _train("id", table, spec, split, step, seed, 1.0)
    collaborative = torch.from_numpy(id_view.items)

    def align(rows: Tensor, vectors: Tensor) -> Tensor:
        """Text and id vectors of one item belong together; the id side is frozen."""
        return text.alignment * infonce(
            vectors, collaborative[rows - 1], text.alignment_temperature
        )

    projection = new_projection(text, spec.dim, llm_vectors, trained)
    text_view = _train(
        "text",
        TextTable(projection, llm_vectors),
        spec.model_copy(update={"learning_rate": text.learning_rate}),
        split,
        step,
        seed,
        1 / text.temperature,
        align if text.alignment else None,
    )
    views = [
        id_view,
        text_view,
        content_view(projection, llm_vectors, trained),
        popularity_view(split.counts),
    ]
    weights, partial_factor, validation = choose_weights(views, split, seed)
    facts = {"weights": weights, "partial_factor": partial_factor, "validation": validation}
    step.finish(**facts, epochs={v: _epochs(step, v) for v in ("id", "text")})
    return step


def _epochs(step: Step, view: str) -> int:
    lines = map(json.loads, (step.folder / "metrics.jsonl").read_text().splitlines())
    return max(int(line["epoch"]) for line in lines if line["view"] == view)


def projection_spec(text: TextView, dim: int, llm_dim: int) -> ProjectionSpec:
    """The layer widths of the text view's projection."""
    first = min(text.principal, llm_dim) if text.scaling == "whiten" else llm_dim
    return ProjectionSpec(dims=(first, text.hidden or dim, dim), scaling=text.scaling, unit=True)


def new_projection(
    text: TextView,
    dim: int,
    llm_vectors: NDArray[np.float32],
    trained: NDArray[np.bool_],
) -> Projection:
    """An untrained Projection whose input statistics are those of the training items."""
    spec = projection_spec(text, dim, llm_vectors.shape[1])
    projection = Projection(llm_vectors.shape[1], spec.dims, spec.scaling, spec.unit)
    projection.fit(llm_vectors[trained])
    return projection


def _train(
    name: str,
    table: nn.Module,
    spec: SequenceSpec,
    split: Split,
    step: Step,
    seed: int,
    scale: float,
    align: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> TrainedView:
    """Train one view until its validation NDCG@10 stops rising; the best epoch's view.

    Args:
        table: rows (m,) to item vectors (m, D).
        scale: 1 for plain dot products; else states are normalised and multiplied by it.
        align: an extra loss over unique rows (m,) and their vectors (m, D).
    """
    folder = step.folder / name
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model = build(spec.model, spec.dim, spec.max_history, **spec.options)
    for module in table.modules():
        if isinstance(module, nn.Linear | IdTable):
            module.reset_parameters()
    both = nn.ModuleDict({"table": table, "model": model})
    if (folder / "best.safetensors").exists() and (folder / "done").exists():
        both.load_state_dict(load_tensors(folder / "best.safetensors"))
        return _view(name, table, model, spec, split)
    optimiser = torch.optim.AdamW(
        both.parameters(), lr=spec.learning_rate, weight_decay=0.0, fused=True
    )
    epoch, best, since = 0, -1.0, 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["weights"])
        optimiser.load_state_dict(saved["optimiser"])
        epoch, best, since = saved["epoch"], saved["best"], saved["since"]
    bar = tqdm(total=spec.max_epochs, initial=epoch, desc=f"rat: {name} view", unit="epoch")
    while epoch < spec.max_epochs and since < spec.patience:
        # Cosine decay: the last epochs settle, so less hangs on which one is picked.
        for group in optimiser.param_groups:
            group["lr"] = spec.learning_rate * (1 + math.cos(math.pi * epoch / spec.max_epochs)) / 2
        loss = _epoch(table, model, optimiser, spec, split, [seed, epoch], scale, align)
        if not np.isfinite(loss):
            raise JobError(f"rat: the {name} view's loss is {loss} in epoch {epoch}")
        view = _view(name, table, model, spec, split)
        rank = target_ranks([view], None, split.train, split.validation)
        reached = float(ndcg(rank, K).mean())
        epoch, since = epoch + 1, since + 1
        if reached > best:
            best, since = reached, 0
            save_tensors(_state(both), folder / "best.partial")
            (folder / "best.partial").replace(folder / "best.safetensors")
        step.log(view=name, epoch=epoch, loss=round(loss, 5), validation_ndcg10=round(reached, 5))
        facts = {
            "weights": both.state_dict(),
            "optimiser": optimiser.state_dict(),
            "epoch": epoch,
            "best": best,
            "since": since,
        }
        torch.save(facts, folder / "checkpoint.partial")
        (folder / "checkpoint.partial").replace(checkpoint)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", validation=f"{reached:.4f}", best=f"{best:.4f}")
    bar.close()
    both.load_state_dict(load_tensors(folder / "best.safetensors"))
    view = _view(name, table, model, spec, split)
    if isinstance(table, TextTable):
        save_tensors(_state(table.projection), folder / "projection.safetensors")
    save_tensors(_state(model), folder / "model.safetensors")
    save_file({"items": view.items, "present": view.present}, folder / "view.safetensors")
    (folder / "done").touch()
    checkpoint.unlink(missing_ok=True)
    return view


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in module.state_dict().items()}


def _epoch(
    table: nn.Module,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    spec: SequenceSpec,
    split: Split,
    seed: list[int],
    scale: float,
    align: Callable[[Tensor, Tensor], Tensor] | None,
) -> float:
    """One pass over the training histories; the mean loss."""
    random = np.random.default_rng(seed)
    torch.manual_seed(int(random.integers(2**31)))
    table.train()
    model.train()
    trained = np.flatnonzero(split.counts)
    losses = []
    pieces = windows(split.train, spec.max_history, random)
    for batch in batches(pieces, spec.batch_tokens, random):
        negatives = random.choice(trained, spec.negatives)
        # Every distinct item of the batch goes through the table once.
        unique, places = np.unique(np.concatenate([batch.ravel(), negatives]), return_inverse=True)
        vectors = table(torch.from_numpy(unique))  # (m, D)
        rows = torch.from_numpy(batch)
        place = torch.from_numpy(places[: batch.size]).view(rows.shape)
        valid = rows[:, :-1] > 0
        states = model(vectors[place[:, :-1]], valid)[valid]  # (P, D)
        if scale != 1.0:
            states = functional.normalize(states, dim=-1) * scale
        target = place[:, 1:][valid]  # (P,)
        others = torch.from_numpy(places[batch.size :])  # (N,)
        loss = sampled_softmax(
            states, vectors[target], vectors[others], target[:, None] == others[None]
        )
        if align is not None:
            known = np.flatnonzero(unique)
            some = random.choice(known, min(ALIGNED_ITEMS, len(known)), replace=False)
            loss = loss + align(torch.from_numpy(unique[some]), vectors[some])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def _view(
    name: str, table: nn.Module, model: nn.Module, spec: SequenceSpec, split: Split
) -> TrainedView:
    table.eval()
    model.eval()
    items = len(split.counts) - 1
    trained = split.counts[1:] > 0
    with torch.inference_mode():
        vectors = table(torch.arange(1, items + 1)).numpy()
    learnt = isinstance(table, IdTable)
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


def content_view(
    projection: Projection, llm_vectors: NDArray[np.float32], trained: NDArray[np.bool_]
) -> TrainedView:
    """The scaled LLM vectors themselves (n, dims[0]), read as the mean of the latest items."""
    with torch.inference_mode():
        items = projection.content(torch.from_numpy(llm_vectors)).numpy()
    return TrainedView(
        name="content",
        source="content",
        sequence_model="mean",
        options={},
        max_history=CONTENT_HISTORY,
        weight=1.0,
        model=build("mean", items.shape[1], CONTENT_HISTORY),
        items=items,
        present=np.ones(len(items), bool),
        trained=trained,
    )


def popularity_view(counts: NDArray[np.int64]) -> TrainedView:
    """log(1 + training interactions) of each training item (n, 1), counted against it."""
    return TrainedView(
        name="popularity",
        source="table",
        sequence_model="constant",
        options={},
        max_history=1,
        weight=1.0,
        model=build("constant", 1, 1),
        items=np.log1p(counts[1:, None]).astype(np.float32),
        present=counts[1:] > 0,
        trained=counts[1:] > 0,
    )


def choose_weights(
    views: list[TrainedView], split: Split, seed: int
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Weights of the views and the factor for items without an id view, by validation alone.

    The weights have the best tail NDCG@10 of those that keep OVERALL_KEPT of the id view's overall
    NDCG@10. For the factor a tenth of the items, drawn at random, has its id view and popularity
    hidden, as a new item's are; it is the largest with which targets that are not hidden keep
    WARM_KEPT of their NDCG@10 with the smallest.

    Returns:
        Weights by view (a weight of 0 is left out), the factor, and the validation figures.
    """
    settings = [
        {
            "id": share,
            "text": round(1 - share - content, 6),
            "content": content,
            "popularity": against,
        }
        for share in ID_WEIGHTS
        for content in CONTENT_WEIGHTS
        for against in POPULARITY_WEIGHTS
        if share + content < 1
    ]
    tail = ~split.head()[split.validation]
    alone, *reached = _measure(views, [({"id": 1.0}, 1.0), *((w, 1.0) for w in settings)], split)
    kept = [place for place, n in enumerate(reached) if n.mean() >= OVERALL_KEPT * alone.mean()]
    if kept and tail.any():
        best = max(kept, key=lambda place: float(reached[place][tail].mean()))
    else:
        best = int(np.argmax([n.mean() for n in reached]))
    weights = {name: weight for name, weight in settings[best].items() if weight}

    hidden = np.random.default_rng([seed, 3]).random(len(split.counts) - 1) < 0.1
    as_new = [_hide(view, hidden) for view in views]
    # At scale 1 an item without an id vector stands on the scale of one that has all views.
    factors = [scale / (1 - weights["id"]) for scale in PARTIAL_SCALES]
    tried = _measure(as_new, [(weights, factor) for factor in factors], split)
    warm = ~hidden[split.validation - 1]
    least = WARM_KEPT * tried[0][warm].mean()
    factor = max(f for f, n in zip(factors, tried, strict=True) if n[warm].mean() >= least)
    figures = {
        "id_ndcg10": float(alone.mean()),
        "ndcg10": float(reached[best].mean()),
        "id_tail_ndcg10": float(alone[tail].mean()) if tail.any() else 0.0,
        "tail_ndcg10": float(reached[best][tail].mean()) if tail.any() else 0.0,
    }
    return weights, factor, figures


def _measure(
    views: list[TrainedView], settings: list[tuple[dict[str, float], float]], split: Split
) -> list[NDArray[np.float64]]:
    """Validation NDCG@10 of each user (U,), for each setting of weights and factor.

    States do not depend on the weights, so they are computed once per user for all settings.
    """
    scorers = []
    for weights, factor in settings:
        chosen = [view for view in views if weights.get(view.name)]
        scorers.append((chosen, scorer_of(chosen, weights, factor)))
    found = np.empty((len(settings), len(split.train)))
    for start in range(0, len(split.train), CHUNK):
        users = slice(start, start + CHUNK)
        states = states_of(views, split.train[users])
        excluded = excluded_of(split.train[users], len(views[0].items))
        for place, (chosen, scorer) in enumerate(scorers):
            queries = scorer.queries({view.name: states[view.name] for view in chosen})
            scores = scorer.score(
                queries,
                {view.name: view.items for view in chosen},
                {view.name: view.present for view in chosen},
            )
            found[place, users] = ndcg(ranks(scores, split.validation[users] - 1, excluded), K)
    return list(found)


def _hide(view: TrainedView, hidden: NDArray[np.bool_]) -> TrainedView:
    if view.source == "table":
        return dataclasses.replace(view, present=view.present & ~hidden)
    return view


def read_views(run: Run) -> tuple[list[TrainedView], Projection, dict[str, float], float]:
    """What a finished rat step trained: views with their weights, the projection, the factor."""
    step = run.finished("rat")
    spec, text = run.config.rat.sequence, run.config.rat.text
    _, split = read_prepared(run)
    weights: dict[str, float] = step.facts["weights"]
    views = []
    for name in ("id", "text"):
        folder = step.folder / name
        model = build(spec.model, spec.dim, spec.max_history, **spec.options)
        model.load_state_dict(load_tensors(folder / "model.safetensors"))
        arrays = load_file(folder / "view.safetensors")
        views.append(
            TrainedView(
                name=name,
                source="table" if name == "id" else "projection",
                sequence_model=spec.model,
                options=spec.options,
                max_history=spec.max_history,
                weight=weights.get(name, 1.0),
                model=model.eval(),
                items=arrays["items"],
                present=arrays["present"],
                trained=split.counts[1:] > 0,
            )
        )
    llm_dim = int(run.finished("encode").facts["dim"])
    dims = projection_spec(text, spec.dim, llm_dim)
    projection = Projection(llm_dim, dims.dims, dims.scaling, dims.unit)
    projection.load_state_dict(load_tensors(Path(step.folder / "text" / "projection.safetensors")))
    llm_vectors = read_llm_vectors(run.finished("encode"))
    views.append(content_view(projection, llm_vectors, split.counts[1:] > 0))
    views.append(popularity_view(split.counts))
    views = [dataclasses.replace(view, weight=weights.get(view.name, 0.0)) for view in views]
    return views, projection.eval(), weights, float(step.facts["partial_factor"])
