"""manifest.json of a bundle: what the bundle is, its hash, and whether it is whole."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.encoder import Attention, RuntimeDType
from models.llm import sha256_of
from models.projection import Activation, InputScaling
from models.prompt import PromptTemplate

FORMAT = 4
MANIFEST = "manifest.json"
CARD = "MODEL_CARD.md"
CARDS = (CARD, "README.md")  # as bundles of this format had it at first, too
Source = Literal["projection", "content", "table"]
# What changes no answer; the LLM counts by its own SHA-256, wherever it lies.
NOT_HASHED: dict[str, Any] = {
    "name": True,
    "version": True,
    "data": True,
    "metrics": True,
    "bundle_hash": True,
    "llm": {"name", "revision", "included"},
}


class BundleError(ValueError):
    """The folder is no bundle that can be trusted; the message says which file and why."""


class LLMSpec(BaseModel):
    """The base LLM that the LoRA adapter and every vector belong to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    revision: str | None
    sha256: str
    included: bool


class ProjectionSpec(BaseModel):
    """Arguments of models.projection.Projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dims: tuple[int, ...]
    scaling: InputScaling
    unit: bool
    activation: Activation = "none"


class ViewSpec(BaseModel):
    """One view: where its vectors come from, what reads a history of them, its weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    width: int
    source: Source = Field(
        description="projection: of the LLM vector, so any item has it; content: the scaled LLM "
        "vector itself; table: from interactions, so only training items have it"
    )
    sequence_model: str
    options: dict[str, int | float]
    max_history: int
    weight: float


class NeighboursSpec(BaseModel):
    """Arguments of models.neighbours.Neighbours, and its weight in the sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: float
    latest: int
    weight: float


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    name: str
    version: str = Field(description="of the software that exported it")
    llm: LLMSpec
    adapter: bool
    template: PromptTemplate
    pooling: Literal["mean"]
    max_tokens: int
    attention: Attention = Field(description="see models.encoder.Encoder")
    lower_layer: int = Field(0, description="see models.encoder.Encoder")
    dtype: RuntimeDType = Field(description="the stored LLM vectors ran in it")
    llm_dim: int
    projection: ProjectionSpec
    views: tuple[ViewSpec, ...] = Field(min_length=1)
    partial_factors: dict[str, float] = Field(description="by view; see models.scorer.Scorer")
    neighbours: NeighboursSpec | None = Field(None, description="none: views alone are scored")
    items: int
    data: str = Field(description="fingerprint of the training data")
    files: dict[str, str] = Field(description="path -> SHA-256")
    metrics: dict[str, Any] = Field(default_factory=dict, description="with their protocol")
    bundle_hash: str = ""

    def hash(self) -> str:
        """The hash of all that changes an answer."""
        facts = self.model_dump(mode="json", exclude=NOT_HASHED)
        if not self.lower_layer:  # as bundles from before it was a setting were hashed
            del facts["lower_layer"]
        facts["files"] = {
            name: digest
            for name, digest in self.files.items()
            if name not in CARDS and not name.startswith("llm/")
        }
        return digest(facts)


def alike(sources: Mapping[str, Source]) -> str:
    """The view in which items are near that are alike by what they are.

    Of views by name: the first of scaled LLM vectors, else of projected ones, else of any.
    """
    ranked: list[Source] = ["content", "projection", "table"]
    return min(sources, key=lambda name: ranked.index(sources[name]))


def digest(facts: object) -> str:
    """SHA-256 of facts as canonical JSON."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, by path."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle whose every file is present, unchanged and listed.

    Raises:
        BundleError: one is not; says which.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}")
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is not whole JSON ({error}); export the bundle again") from None
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{path} has format {found}; this version reads format {FORMAT}: "
            "export the bundle again"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {field}: {first['msg']}") from None
    if manifest.hash() != manifest.bundle_hash:
        raise BundleError(f"{path} was edited: its bundle_hash does not match what it says")

    present = {str(file.relative_to(folder)): file for file in files_of(folder)}
    present.pop(MANIFEST)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise BundleError(f"{folder / name} is missing; the manifest lists it")
    for name in sorted(present.keys() - manifest.files.keys()):
        raise BundleError(f"{folder / name} is not in the manifest; remove it")
    for name, file in present.items():
        if sha256_of(file) != manifest.files[name]:
            raise BundleError(f"{file} is not what was exported: its SHA-256 differs")
    return manifest
