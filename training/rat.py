"""Recipe `rat`: recommendation adaptation training, and the id-only model beside it.

Trains three views, each with a sequence model of its own: `id` (a learnt vector per training
item; it is the id-only baseline), `text` (a projection of the frozen LLM vectors) and `hybrid` (a
learnt vector on top of such a projection). Source: LLMEmb (arXiv 2409.19925); sampled softmax,
the cosine with temperature, unique items in the alignment, and the sum of views (EnsRec, arXiv
2512.17820) depart from it. `content`, the scaled LLM vectors themselves, and the neighbours - what
followed what - need no training. Then the validation split chooses how they are summed.

Writes id/, text/ and hybrid/ (see training.views) and neighbours.safetensors.
"""

import hashlib
import shutil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from models.bundle_writing import TrainedView
from models.manifest import ProjectionSpec
from models.neighbours import Neighbours
from models.projection import PRINCIPAL, Projection
from training import JobError
from training.config import RAT, RunConfig, SequenceSpec, TextView
from training.content import content_view
from training.encode import read_llm_vectors, read_untuned_vectors
from training.interactions import Split
from training.losses import contrastive
from training.neighbours import fit_neighbours
from training.prepare import read_cold, read_prepared, split_digest
from training.ranking import Ranker
from training.recipe import Run, Step
from training.views import (
    HybridTable,
    IdTable,
    Table,
    TextTable,
    ThawedTable,
    read_view,
    train_view,
)
from training.weights import (
    choose_partial_factors,
    choose_weights,
    partial_factors_by_hiding,
)

OTHER = 1000  # seeds of id2 lie that far from those of id, so that seeds of a run share none
TEACHER = "teacher"  # an id view of another sequence model; aligned with, never summed
ALIGNED_ITEMS = 256  # of a batch; all of them would cost more than the rest of the step


class Trained(NamedTuple):
    """What a finished rat step holds.

    Attributes:
        views: by name; those that are summed, and `id`.
        projection: of the text view.
        weights: by view and under `neighbours`.
    """

    views: dict[str, TrainedView]
    projection: Projection
    neighbours: Neighbours
    weights: dict[str, float]
    partial_factors: dict[str, float]

    @property
    def summed(self) -> list[TrainedView]:
        """The views that are in the sum."""
        return [view for name, view in self.views.items() if name in self.weights]

    @property
    def ours(self) -> Ranker:
        """What the service ranks with."""
        return Ranker.of(self.summed, self.weights, self.partial_factors, self.neighbours)

    @property
    def id_only(self) -> Ranker:
        """The id-only model."""
        return Ranker.of([self.views["id"]], {"id": 1.0})


def rat(run: Run) -> Step:
    """Train the views, or go on with them after a kill, and choose how they are summed.

    Raises:
        JobError: a loss is no number any more.
    """
    config = run.config.rat
    step = run.step("rat")
    if step.done:
        return step
    catalogue, split = read_prepared(run)
    told = split_digest(split)
    llm_vectors = read_llm_vectors(run.finished("encode"))
    for name in trained_views(run.config):
        untuned = name == "hybrid" and config.hybrid.vectors == "untuned"
        _train(name, step, run, split, read_untuned_vectors(run) if untuned else llm_vectors, told)
    neighbours = fit_neighbours(split.train, len(catalogue), config.neighbours)
    arrays = {"rows": neighbours.rows, "weights": neighbours.weights}
    save_file(arrays, step.folder / "neighbours.safetensors")
    views, _ = _read_views(run, step, split)
    summed = [views[name] for name in config.parts if name != "neighbours"]
    follow = neighbours if "neighbours" in config.parts else None
    chosen = choose_weights(summed, follow, split)
    save_file({"ranks": chosen.held_out}, step.folder / "validation.safetensors")
    cold = read_cold(run)
    if cold:
        held, interactions = cold
        known = np.flatnonzero(split.counts[split.validation] > 0)
        factors, routed = choose_partial_factors(
            summed,
            follow,
            chosen.weights,
            split.validation_questions(known),
            held.questions(interactions, held.validation),
            banned=held.mask(len(catalogue), held.test),
        )
    else:
        factors, routed = partial_factors_by_hiding(
            summed, follow, chosen.weights, split, config.seed
        )
    step.finish(
        weights=chosen.weights,
        partial_factors=factors,
        validation={**chosen.figures, **routed},
    )
    return step


def _train(
    name: str,
    step: Step,
    run: Run,
    split: Split,
    llm_vectors: NDArray[np.float32],
    told: str,
) -> None:
    """Train one view in the cache, where other runs find it too, and copy it into the step.

    Args:
        told: hash of the split, which the cached view depends on, too.
    """
    config = run.config.rat
    spec = sequence_spec(config, name)
    trained = split.counts[1:] > 0
    items = len(trained)
    seed = config.seed + OTHER * (name == "id2")
    kind = "id" if name == "id2" else name
    made = {"view": kind, "split": told, "seed": seed, "sequence": spec.model_dump()}
    table: Table
    align = None
    if kind in {"id", TEACHER}:
        made["view"] = "id"
        table = IdTable(items, spec.dim, unit=spec.temperature > 0)
    else:
        layers = projection_spec(config, llm_vectors.shape[1])
        made["vectors"] = hashlib.sha256(llm_vectors.tobytes()).hexdigest()
        made["projection"] = layers.model_dump(exclude_defaults=True)
        projection = new_projection(config, llm_vectors, trained)
        table = TextTable(projection, llm_vectors)
        if kind == "hybrid":
            made["hybrid"] = config.hybrid.model_dump(exclude={"vectors"})
            table = HybridTable(table, items, config.hybrid.dropout, unit=spec.temperature > 0)
            table.text.projection.unit = False
        else:
            if not config.text.frozen:
                made |= {"frozen": False}
                table = ThawedTable(projection, llm_vectors)
            if config.text.alignment:
                fields = {n for n in type(config.text).model_fields if n.startswith("alignment")}
                made |= {
                    "alignment": config.text.model_dump(include=fields),
                    "aligned with": sequence_spec(config, teacher_of(config)).model_dump(),
                }
                align = _alignment(step, config, split)
    with run.shared("views", **made) as shared:
        if not shared.done:
            train_view(name, table, spec, split, shared, seed, align)
        shutil.rmtree(step.folder / name, ignore_errors=True)
        kept = shutil.ignore_patterns("best.*", "checkpoint.*")
        shutil.copytree(shared.folder, step.folder / name, ignore=kept)


class Alignment:
    """The loss by which text and id vectors of one item belong together; the id side is frozen.

    Each item of a batch counts once, however often it stands there.

    Args:
        collaborative: (n, D) vectors of the id side.
        counts: (n + 1,) interactions in training, by row.
    """

    def __init__(
        self, collaborative: NDArray[np.float32], counts: NDArray[np.int64], spec: TextView
    ) -> None:
        self.collaborative = torch.from_numpy(collaborative)
        self.chances = torch.from_numpy(np.maximum(counts, 1.0)) ** spec.alignment_popularity
        self.spec = spec

    def __call__(self, rows: NDArray[np.int64], vectors: Tensor) -> Tensor:
        """Of unique rows (m,) and their text vectors (m, D)."""
        spec = self.spec
        places = torch.from_numpy(rows)
        some = torch.multinomial(self.chances[places], min(len(rows), ALIGNED_ITEMS))
        other = self.collaborative[places[some] - 1].to(vectors.device)
        left = vectors[some.to(vectors.device)]
        loss = contrastive(spec.alignment_loss, left, other, spec.alignment_temperature)
        return spec.alignment * loss


def _alignment(step: Step, config: RAT, split: Split) -> Alignment:
    name = teacher_of(config)
    teacher = read_view(name, sequence_spec(config, name), split, step.folder / name)
    return Alignment(teacher.items, split.counts, config.text)


def trained_views(config: RunConfig) -> list[str]:
    """The views that are trained: those in the sum, and `id`, which they are compared with.

    Cold items are asked of the sum alone: an id-only model cannot rank them. But it may be what
    the text view is aligned with, unless that has a model of its own, the teacher.
    """
    summed: list[str] = [part for part in config.rat.parts if part not in {"content", "neighbours"}]
    first = [] if config.data.cold else ["id"]
    if config.rat.text.alignment and "text" in summed:
        first.append(teacher_of(config.rat))
    return list(dict.fromkeys([*first, *summed]))


def teacher_of(config: RAT) -> str:
    """The view that the text view is aligned with."""
    return TEACHER if config.text.teacher else "id"


def sequence_spec(config: RAT, view: str) -> SequenceSpec:
    """How the sequence model of one view is trained."""
    if view == TEACHER and config.text.teacher:
        return config.text.teacher
    own: dict[str, float] = {}
    if view == "hybrid":
        own = {"temperature": config.hybrid.temperature}
    elif view == "text":
        own = {"max_epochs": config.text.max_epochs, "batch_tokens": config.text.batch_tokens}
    return config.sequence.model_copy(update=own)


def projection_spec(config: RAT, llm_dim: int) -> ProjectionSpec:
    """The layer widths of the text view's projection.

    Raises:
        JobError: no layers, and fewer directions than item vectors are wide.
    """
    text, dim = config.text, config.sequence.dim
    if not text.layers and dim > llm_dim:
        raise JobError(
            f"rat.text.layers = 0: LLM vectors are {llm_dim} wide, fewer than "
            f"rat.sequence.dim = {dim}; lower it"
        )
    first = min(text.principal, llm_dim) if text.scaling in PRINCIPAL else llm_dim
    dims = {0: (dim,), 1: (first, dim), 2: (first, text.hidden or dim, dim)}[text.layers]
    unit = sequence_spec(config, "text").temperature > 0
    return ProjectionSpec(dims=dims, scaling=text.scaling, unit=unit, activation=text.activation)


def new_projection(
    config: RAT, llm_vectors: NDArray[np.float32], trained: NDArray[np.bool_]
) -> Projection:
    """An untrained Projection whose input statistics are those of the training items."""
    spec = projection_spec(config, llm_vectors.shape[1])
    projection = Projection(llm_vectors.shape[1], **dict(spec))
    projection.fit(llm_vectors[trained])
    return projection


def _read_views(run: Run, step: Step, split: Split) -> tuple[dict[str, TrainedView], Projection]:
    config = run.config.rat
    views = {
        name: read_view(name, sequence_spec(config, name), split, step.folder / name)
        for name in trained_views(run.config)
    }
    llm_vectors = read_llm_vectors(run.finished("encode"))
    trained = split.counts[1:] > 0
    projection = new_projection(config, llm_vectors, trained)
    if "text" in views and config.text.frozen:
        projection.load_state_dict(load_tensors(step.folder / "text" / "projection.safetensors"))
    projection.eval()
    views["content"] = content_view(projection, llm_vectors, split.counts[1:] > 0, config.content)
    return views, projection


def read_trained(run: Run) -> Trained:
    """What a finished rat step trained and chose."""
    step = run.finished("rat")
    _, split = read_prepared(run)
    views, projection = _read_views(run, step, split)
    arrays = load_file(step.folder / "neighbours.safetensors")
    spec = run.config.rat.neighbours
    return Trained(
        views,
        projection,
        Neighbours(arrays["rows"], arrays["weights"], spec.history_decay, spec.latest),
        dict(step.facts["weights"]),
        dict(step.facts["partial_factors"]),
    )
