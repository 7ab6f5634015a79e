"""A bundle as training writes it; models.bundle tells what is in the folder, and reads it."""

import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from models.encoder import Attention, RuntimeDType
from models.item import Catalogue, write_items
from models.llm import defining_files, fingerprint_folder, sha256_of
from models.manifest import (
    CARD,
    FORMAT,
    MANIFEST,
    BundleError,
    LLMSpec,
    Manifest,
    NeighboursSpec,
    ProjectionSpec,
    Source,
    ViewSpec,
    alike,
    files_of,
)
from models.neighbours import Neighbours
from models.plane import Plane
from models.projection import Projection
from models.prompt import PromptTemplate
from models.scorer import Floats, ViewStatistics


@dataclass(frozen=True)
class TrainedView:
    """One view as training hands it over.

    Attributes:
        model: the SequenceModel that reads it.
        items: (n, W) float32 in catalogue order; rows where `present` is False are ignored.
        present: (n,) bool, the items that have this view.
        trained: (n,) bool, the items its statistics are taken over.
    """

    name: str
    source: Source
    sequence_model: str
    options: Mapping[str, int | float]
    max_history: int
    weight: float
    model: torch.nn.Module
    items: Floats
    present: NDArray[np.bool_]
    trained: NDArray[np.bool_]

    @property
    def statistics(self) -> ViewStatistics:
        """Mean and covariance over the training items."""
        return ViewStatistics.of(self.items[self.trained & self.present])


def write_bundle(
    folder: Path,
    *,
    name: str,
    version: str,
    llm: Path,
    llm_name: str,
    llm_revision: str | None,
    include_llm: bool,
    adapter: Path | None,
    template: PromptTemplate,
    max_tokens: int,
    attention: Attention,
    lower_layer: int,
    dtype: RuntimeDType,
    catalogue: Catalogue,
    llm_vectors: Floats,
    interactions: NDArray[np.int64],
    head: NDArray[np.bool_],
    projection: Projection,
    projection_spec: ProjectionSpec,
    views: Sequence[TrainedView],
    partial_factors: Mapping[str, float],
    neighbours: Neighbours | None,
    neighbours_weight: float,
    data: str,
    metrics: Mapping[str, Any],
    card: Callable[[Manifest], str],
) -> Manifest:
    """Write a bundle whole or not at all, replacing one that stands there.

    Args:
        llm: folder of the base LLM; copied in when `include_llm`, else named by its fingerprint.
        llm_vectors: (n, d_llm) float32 in catalogue order.
        interactions: (n,) of each item in the training split.
        head: (n,) which items are the most interacted with.
        card: Markdown for MODEL_CARD.md, of the manifest as it is but for the card's own SHA-256.

    Raises:
        BundleError: shapes disagree or a vector is not finite.
    """
    arrays: dict[str, NDArray[Any]] = {
        "llm_vectors": llm_vectors,
        "interactions": interactions,
        "head": head,
        **{view.name: view.items for view in views},
    }
    for label, array in arrays.items():
        if len(array) != len(catalogue):
            raise BundleError(f"{label} has {len(array)} rows for {len(catalogue)} items")
        if not np.isfinite(array).all():
            raise BundleError(f"{label} holds a number that is not finite")

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "views").mkdir(parents=True)
    write_items(partial / "items.jsonl", catalogue)
    save_arrays({"llm": llm_vectors}, partial / "llm_vectors.safetensors")
    shown = {view.name: view for view in views}[alike({view.name: view.source for view in views})]
    plane = Plane.fit(shown.items[shown.trained & shown.present])
    save_arrays(
        {
            "interactions": np.ascontiguousarray(interactions, np.int64),
            "head": np.ascontiguousarray(head, bool),
            "map_mean": plane.mean,
            "map_axes": plane.axes,
        },
        partial / "items.safetensors",
    )
    save_tensors(_contiguous(projection), partial / "projection.safetensors")
    for view in views:
        statistics = view.statistics
        table = {
            "items": np.ascontiguousarray(view.items),
            "present": np.ascontiguousarray(view.present),
            "mean": statistics.mean,
            "covariance": statistics.covariance,
        }
        save_arrays(table, partial / "views" / f"{view.name}.safetensors")
        save_tensors(_contiguous(view.model), partial / "views" / f"{view.name}.model.safetensors")
    if neighbours:
        save_arrays(
            {"rows": neighbours.rows, "weights": neighbours.weights},
            partial / "neighbours.safetensors",
        )
    if adapter:
        (partial / "adapter").mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, partial / "adapter" / file)
    if include_llm:
        (partial / "llm").mkdir()
        for path in defining_files(llm):
            shutil.copyfile(path, partial / "llm" / path.name)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        llm=LLMSpec(
            name=llm_name,
            revision=llm_revision,
            sha256=fingerprint_folder(llm),
            included=include_llm,
        ),
        adapter=adapter is not None,
        template=template,
        pooling="mean",
        max_tokens=max_tokens,
        attention=attention,
        lower_layer=lower_layer,
        dtype=dtype,
        llm_dim=llm_vectors.shape[1],
        projection=projection_spec,
        views=tuple(
            ViewSpec(
                name=view.name,
                width=view.items.shape[1],
                source=view.source,
                sequence_model=view.sequence_model,
                options=dict(view.options),
                max_history=view.max_history,
                weight=view.weight,
            )
            for view in views
        ),
        partial_factors=dict(partial_factors),
        neighbours=NeighboursSpec(
            decay=neighbours.decay, latest=neighbours.latest, weight=neighbours_weight
        )
        if neighbours
        else None,
        items=len(catalogue),
        data=data,
        files={str(path.relative_to(partial)): sha256_of(path) for path in files_of(partial)},
        metrics=dict(metrics),
    )
    manifest = manifest.model_copy(update={"bundle_hash": manifest.hash()})
    (partial / CARD).write_text(card(manifest), encoding="utf-8")
    files = {**manifest.files, CARD: sha256_of(partial / CARD)}  # it changes no answer, and no hash
    manifest = manifest.model_copy(update={"files": dict(sorted(files.items()))})
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    _open_as(partial / MANIFEST, [path for path in partial.rglob("*") if path.is_file()])
    for path in [*partial.rglob("*"), partial]:
        _fsync(path)

    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MANIFEST).exists():
            raise BundleError(f"{folder} is there and is no bundle; it was not replaced")
        folder.rename(previous)
    partial.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)
    return manifest


def _contiguous(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous().cpu() for name, value in module.state_dict().items()}


def _open_as(plain: Path, files: Sequence[Path]) -> None:
    """Give files the mode of one that was made by the umask.

    safetensors leaves its own for their owner alone; the service's user may be another one, as in
    a container.
    """
    for path in files:
        path.chmod(stat.S_IMODE(plain.stat().st_mode))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
