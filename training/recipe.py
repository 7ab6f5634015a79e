"""What a run is: its configuration, its folder, and which of its steps are finished.

A run folder holds `config.toml` and a folder per step. A step's folder holds `key` (a hash of
all that its result depends on), what the step writes, and `done.json` once it is whole. A step
whose key still matches is reused; one that was killed goes on from its last checkpoint; one
whose inputs changed starts over.
"""

import hashlib
import json
import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.encoder import DTypeName
from models.projection import InputScaling
from models.prompt import PromptTemplate

STEPS = ("prepare", "scft", "encode", "rat", "evaluate", "export")


class JobError(Exception):
    """A job cannot go on; the message says what is wrong, where, and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """Where items and interactions come from; see training/sources."""

    source: Literal["movielens", "tabular"] = Field(description="its format")
    path: str = Field(description="a folder, a .zip file, a URL of one, or a pinned name")
    items: str = Field("items.jsonl", description="tabular: file of items in the folder")
    interactions: str = Field("interactions.csv", description="tabular: file in the folder")
    unknown_items: Literal["drop", "fail"] = Field(
        "drop", description="interactions with items that the items file lacks"
    )


class LLM(_Section):
    """Which LLM reads the prompts, and how."""

    path: str = Field(description="a folder, a hub id, or a pinned name")
    revision: str | None = Field(None, description="of a hub id")
    dtype: DTypeName = Field("auto", description="what the LLM runs in")
    max_tokens: int = Field(256, ge=8, le=8192, description="of an item's own text; more is cut")


class SCFT(_Section):
    """Supervised contrastive fine-tuning of the LLM with LoRA."""

    steps: int | None = Field(None, ge=0, description="0 leaves the LLM as it is")
    minutes: float = Field(5.0, gt=0, description="without `steps`: as many as fit in this time")
    batch_items: int = Field(32, ge=2, description="items of one step, two copies each")
    loss: Literal["infonce", "soft_target"] = Field(
        "infonce", description="cosine InfoNCE, or the paper's soft-target loss"
    )
    temperature: float = Field(0.05, gt=0, description="of the contrastive loss")
    drop_attribute: float = Field(
        0.4, ge=0, lt=1, description="chance that an attribute is left out"
    )
    drop_part: float = Field(0.2, ge=0, lt=1, description="chance of each word or list element")
    lora_rank: int = Field(8, ge=1, description="of the adapter, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="scale of the adapter, times the rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    learning_rate: float = Field(2e-4, gt=0, description="highest; warm-up, then linear decay")
    checkpoint_steps: int = Field(10, ge=1, description="steps between checkpoints")


class Encode(_Section):
    """LLM vectors of the whole catalogue."""

    shard_items: int = Field(512, ge=1, description="items of one shard, the unit of a resume")


class SequenceSpec(_Section):
    """Which sequence model reads the item vectors, and how it is trained."""

    model: str = Field("sasrec", description="its registered name in models/sequence.py")
    options: dict[str, int | float] = Field(
        default_factory=lambda: {"layers": 1, "heads": 2, "dropout": 0.3},
        description="arguments of the model",
    )
    dim: int = Field(128, ge=2, description="width of item vectors and states")
    max_history: int = Field(100, ge=1, description="latest items that are read")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    batch_tokens: int = Field(6400, ge=1, description="items in one batch, padding included")
    negatives: int = Field(256, ge=1, description="uniform, shared by a batch")
    max_epochs: int = Field(200, ge=1, description="at most")
    patience: int = Field(8, ge=1, description="epochs without a better validation NDCG@10")


class TextView(_Section):
    """RAT: the projection of the LLM vectors."""

    scaling: InputScaling = Field(
        "whiten", description="of the LLM vectors: centre, standardise or whiten"
    )
    principal: int = Field(256, ge=1, description="directions kept by whitening")
    hidden: int | None = Field(None, description="width of a middle linear layer; None: dim")
    temperature: float = Field(0.05, gt=0, description="of the softmax over cosines")
    alignment: float = Field(0.01, ge=0, description="weight of the alignment to the id view")
    alignment_temperature: float = Field(0.1, gt=0, description="of the alignment")


class RAT(_Section):
    """Recommendation adaptation training, and the id-only model it is compared with."""

    sequence: SequenceSpec = SequenceSpec()
    text: TextView = TextView()


class Evaluate(_Section):
    """How results are measured."""

    k: int = Field(10, ge=1, description="length of the list that is measured")
    negatives: int = Field(100, ge=1, description="of the 1 + n sampled protocol")
    bootstrap: int = Field(2000, ge=100, description="draws for an interval")


class Export(_Section):
    """What the bundle holds."""

    include_llm: bool = Field(True, description="False: the service names its folder by LLMEMB_LLM")


class Recipe(_Section):
    """One run, as its TOML file says it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the run")
    seed: int = Field(42, ge=0, description="of every random choice")
    folder: str = Field("runs/{name}", description="the run folder; {name} is filled in")
    cache: str = Field(".cache", description="where pinned downloads are kept")
    data: Data
    template: PromptTemplate = PromptTemplate()
    llm: LLM
    scft: SCFT = SCFT()
    encode: Encode = Encode()
    rat: RAT = RAT()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """The recipe in a TOML file, with `section.key=value` changes on top; values are TOML too.

    Raises:
        JobError: no such file, no TOML, or a field that is unknown or has a wrong value.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"there is no configuration {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise JobError(f"{path} cannot be read as TOML: {error}") from None
    for change in changes:
        name, found, text = change.partition("=")
        if not found or not name.strip():
            raise JobError(f"--set {change}: write it as section.key=value")
        *sections, key = name.strip().split(".")
        place = fields
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise JobError(f"--set {change}: {section} is no section")
        try:
            place[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            place[key] = text  # a bare word is a string
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise JobError(f"{path}: {field}: {first['msg']}{given}") from None


def digest(facts: object) -> str:
    """SHA-256 of facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole, on disk before this returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as target:
        target.write(text)
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)


class Step:
    """One step's folder in a run.

    Attributes:
        folder: where the step reads and writes.
        key: hash of all that its result depends on.
        facts: what it told `finish`; empty until then.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        stands = folder / "key"
        if not stands.exists() or stands.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_atomically(stands, key)

    @property
    def done(self) -> bool:
        """Whether the step's result is whole."""
        return (self.folder / "done.json").exists()

    @property
    def facts(self) -> dict[str, Any]:
        """What the step said of itself when it finished."""
        if not self.done:
            return {}
        found: dict[str, Any] = json.loads((self.folder / "done.json").read_text())
        return found

    def finish(self, **facts: object) -> None:
        """Mark the step whole, with facts worth keeping."""
        write_atomically(self.folder / "done.json", json.dumps(facts, indent=1) + "\n")

    def log(self, **numbers: object) -> None:
        """Append a line to the step's metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"time": round(time.time(), 3), **numbers}) + "\n")


class Run:
    """A recipe and its folder. One process at a time works in a run folder.

    Raises:
        JobError: the folder cannot be written.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.folder.format(name=recipe.name)).expanduser()
        self.cache = Path(recipe.cache).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "config.json", recipe.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise JobError(f"the run folder {self.folder} cannot be written: {error}") from None

    def step(self, name: str, after: str | None, facts: object) -> Step:
        """The folder of a step, ready to start, to go on, or to be read.

        Args:
            after: the step whose result it reads, which must be done.
            facts: what else its result depends on, such as its section of the recipe.

        Raises:
            JobError: the step before it is not done.
        """
        before = self.finished(after).key if after else ""
        return Step(self.folder / name, digest([name, before, facts]))

    def finished(self, name: str) -> Step:
        """A step that is done, as it stands.

        Raises:
            JobError: it is not.
        """
        folder = self.folder / name
        if not (folder / "done.json").exists():
            raise JobError(f"{folder} is not finished; run `python -m training {name}` first")
        return Step(folder, (folder / "key").read_text())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process out of this run folder.

        Raises:
            JobError: another process works in it.
        """
        import fcntl  # noqa: PLC0415 - only where a lock is taken

        with (self.folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JobError(f"another process works in {self.folder}; wait for it") from None
            yield
