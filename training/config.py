"""What a run is asked to do, as its TOML file says it: one frozen section per job."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.encoder import Attention, DTypeName
from models.projection import PRINCIPAL, Activation, InputScaling
from models.prompt import PromptTemplate
from models.sequence import build
from training import JobError
from training.losses import ContrastiveLoss, NextItemLoss
from training.sources.tabular import Columns


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """Where items and interactions come from; see training/sources."""

    source: Literal["amazon", "mind", "movielens", "recbole", "steam", "tabular", "yelp"] = Field(
        description="its format"
    )
    path: str = Field(description="a folder, a .zip file, a URL of one, or a pinned name")
    items: str = Field("items.jsonl", description="tabular: file of items in the folder")
    interactions: str = Field("interactions.csv", description="tabular: file in the folder")
    columns: Columns = Columns()
    delimiter: str | None = Field(
        None,
        pattern=r'^[^"\r\n]$',
        description="tabular: of CSV files; None: comma, semicolon, tab or bar, whichever fits",
    )
    encoding: str = Field("utf-8", description="tabular: of CSV files")
    unknown_items: Literal["drop", "fail"] = Field(
        "drop", description="interactions with items that the items file lacks"
    )
    core: int = Field(
        0, ge=0, description="k-core: users and items with fewer interactions are left out"
    )
    split: Literal["leave-one-out", "time"] = Field(
        "leave-one-out", description="of each user the last item tests, or what came after a moment"
    )
    validation_users: int = Field(
        5000,
        ge=1,
        description="users whose latest item before the test is held out to choose by, at most; "
        "the others' is trained on",
    )
    cold: float = Field(
        0.0, ge=0, lt=0.5, description="share of each of two sets of items held out as cold"
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, value: str) -> str:
        try:
            "".encode(value)  # not all that codecs.lookup finds is of text
        except (LookupError, ValueError):
            raise ValueError(f"{value!r} is no encoding that Python knows, as utf-8 is") from None
        return value


class LLM(_Section):
    """Which LLM reads the prompts, and how."""

    path: str = Field(description="a folder, a hub id, or a pinned name")
    revision: str | None = Field(None, description="of a hub id")
    dtype: DTypeName = Field("auto", description="what the LLM runs in")
    max_tokens: int = Field(256, ge=8, le=8192, description="of an item's own text; more is cut")
    attention: Attention = Field(
        "native", description="or bidirectional: every token sees all, which takes tuning"
    )
    lower_layer: int = Field(
        0,
        ge=0,
        description="pool the states after so many layers beside those after the last, which makes "
        "vectors twice as wide; below what scft tunes they keep what the words alone say; 0: the "
        "last alone",
    )


class SCFT(_Section):
    """Supervised contrastive fine-tuning of the LLM with LoRA."""

    objective: Literal["copies", "places"] = Field(
        "copies",
        description="two copies of an item land together; or its vector tells its place among "
        "what is bought together",
    )
    layers: int | None = Field(
        None, ge=1, description="the upper ones that are tuned; None: all of them"
    )
    steps: int | None = Field(None, ge=0, description="0 leaves the LLM as it is")
    epochs: float | None = Field(None, gt=0, description="without `steps`: passes over the items")
    minutes: float = Field(5.0, gt=0, description="without both: as many steps as fit in this time")
    batch_items: int = Field(32, ge=2, description="items of one step; of copies, two each")
    chunk_items: int | None = Field(
        None,
        ge=2,
        description="of those, as many as a process reads at once, where memory is scarce: each is "
        "then read twice; None: its whole share",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the layers a second time, in place of keeping what they gave"
    )
    quantise: Literal["4bit"] | None = Field(
        None, description="the LLM's own weights while it is tuned; only with CUDA and bitsandbytes"
    )
    loss: ContrastiveLoss = Field(
        "infonce", description="cosine InfoNCE, or the paper's soft-target loss"
    )
    temperature: float = Field(0.05, gt=0, description="of the loss over cosines")
    copies: Literal["thinned", "shuffled"] = Field(
        "thinned", description="values lose parts, too; or whole attributes only, as in the paper"
    )
    drop_attribute: float = Field(
        0.4, ge=0, lt=1, description="chance that an attribute is left out; shuffled: the share"
    )
    drop_part: float = Field(
        0.2, ge=0, lt=1, description="thinned: chance of each word or list element"
    )
    lora_rank: int = Field(8, ge=1, description="of the adapter, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="scale of the adapter, times the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    learning_rate: float = Field(2e-4, gt=0, description="highest; warm-up, then linear decay")
    checkpoint_steps: int = Field(10, ge=1, description="steps between checkpoints")
    patience: int | None = Field(
        None,
        ge=1,
        description="epochs without a better validation NDCG@10 of the vectors by themselves, "
        "after which the best are kept; None: no look at them",
    )

    @model_validator(mode="after")
    def _upper_layers_are_run_as_they_are(self) -> "SCFT":
        if self.objective != "places" or not self.layers:
            return self
        for name in ("gradient_checkpointing", "quantise"):
            if getattr(self, name):
                raise ValueError(f'{name} does not go with objective = "places" with layers')
        return self


class Encode(_Section):
    """LLM vectors of the whole catalogue."""

    vectors: Literal["llm", "tf-idf"] = Field(
        "llm", description="tf-idf: words counted instead, as a control; not to be exported"
    )
    shard_items: int = Field(512, ge=1, description="items of one shard, the unit of a resume")


class SequenceSpec(_Section):
    """Which sequence model reads the item vectors, and how it is trained."""

    model: str = Field("sasrec", description="its registered name in models/sequence.py")
    options: dict[str, int | float] = Field(
        default_factory=lambda: {"dropout": 0.4}, description="arguments of the model"
    )
    dim: int = Field(128, ge=2, description="width of item vectors and states")
    max_history: int = Field(50, ge=1, description="latest items that are read")
    loss: NextItemLoss = Field(
        "sampled_softmax", description="sampled_softmax, softmax, gbce or bce"
    )
    negatives: int = Field(256, ge=1, description="uniform, shared by a batch")
    temperature: float = Field(
        0.05, ge=0, description="of the loss over cosines; 0 for plain dot products"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW; decays to 0 over the epochs")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    batch_tokens: int = Field(800, ge=1, description="items in one batch, padding included")
    max_epochs: int = Field(40, ge=1, description="at most; the rate decays to 0 over them")
    patience: int = Field(6, ge=1, description="epochs without a better validation NDCG@10")

    @model_validator(mode="after")
    def _model_can_be_built(self) -> "SequenceSpec":
        try:
            build(self.model, self.dim, self.max_history, **self.options)
        except ZeroDivisionError:
            raise ValueError(f"{self.model}: an option is 0 that divides") from None
        return self


class TextView(_Section):
    """RAT: the projection of the LLM vectors."""

    scaling: InputScaling = Field(
        "whiten", description="of the LLM vectors: centre, standardise, pca or whiten"
    )
    principal: int = Field(224, ge=1, description="directions kept by pca and whiten")
    layers: int = Field(
        2, ge=0, le=2, description="linear layers; 0: the dim first directions are item vectors"
    )
    activation: Activation = Field("none", description="between two layers: none or gelu")
    hidden: int | None = Field(None, ge=1, description="width between two layers; None: dim")
    frozen: bool = Field(
        True, description="False trains the scaled vectors, too; such a run is not to be exported"
    )
    max_epochs: int = Field(15, ge=1, description="in place of rat.sequence.max_epochs")
    batch_tokens: int = Field(1600, ge=1, description="in place of rat.sequence.batch_tokens")
    alignment: float = Field(0.0, ge=0, description="weight of the alignment to a teacher's items")
    alignment_loss: ContrastiveLoss = Field(
        "infonce", description="infonce, or the paper's soft_target"
    )
    alignment_temperature: float = Field(0.1, gt=0, description="of the alignment")
    alignment_popularity: float = Field(
        0.0, description="an item's chance to be aligned, by this power of its count in training"
    )
    teacher: SequenceSpec | None = Field(
        None, description="of the id model that is aligned with; None: that of the id view"
    )

    @model_validator(mode="after")
    def _scaled_vectors_fit(self) -> "TextView":
        if not self.layers and self.scaling not in PRINCIPAL:
            raise ValueError(f"layers = 0 needs scaling pca or whiten, not {self.scaling}")
        return self


class HybridView(_Section):
    """A learnt vector per training item on top of a projection of its LLM vector."""

    vectors: Literal["tuned", "untuned"] = Field(
        "tuned", description="of the LLM as scft leaves it, or as it was before"
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="how often a training item is read by its words alone"
    )
    temperature: float = Field(
        0.0, ge=0, description="of the loss over cosines; 0 for plain dot products"
    )


class ContentView(_Section):
    """The scaled LLM vectors themselves; nothing is trained."""

    latest: int = Field(10, ge=1, description="items of a history that are read")
    decay: float = Field(0.7, gt=0, le=1, description="what an item counts less than the next")


class NeighboursSpec(_Section):
    """What followed what in the training histories."""

    per_item: int = Field(16, ge=1, description="neighbours kept of each item")
    window: int = Field(10, ge=1, description="steps apart, at most")
    gap_decay: float = Field(0.8, gt=0, le=1, description="per step apart")
    backward: float = Field(0.5, ge=0, description="what the earlier of a pair gets")
    item_power: float = Field(0.4, ge=0, le=1, description="of the item's count, divided by")
    neighbour_power: float = Field(0.2, ge=0, le=1, description="of the neighbour's count")
    latest: int = Field(20, ge=1, description="items of a history that are read")
    history_decay: float = Field(0.6, gt=0, le=1, description="per item of the history")


Part = Literal["id", "id2", "text", "hybrid", "content", "neighbours"]


class RAT(_Section):
    """Recommendation adaptation training, and the id-only model it is compared with."""

    seed: int = Field(42, ge=0, description="of the sequence models")
    parts: tuple[Part, ...] = Field(
        ("text", "hybrid", "content", "neighbours"),
        min_length=1,
        description="what is summed, of id, id2 (id of another seed), text, hybrid, content, "
        "neighbours",
    )
    sequence: SequenceSpec = SequenceSpec()
    text: TextView = TextView()
    hybrid: HybridView = HybridView()
    content: ContentView = ContentView()
    neighbours: NeighboursSpec = NeighboursSpec()

    @model_validator(mode="after")
    def _parts_can_be_summed(self) -> "RAT":
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts {list(self.parts)} names one twice")
        if set(self.parts) == {"neighbours"}:
            raise ValueError("parts: neighbours alone rank nothing new; add a view")
        return self


class Evaluate(_Section):
    """How results are measured."""

    k: int = Field(10, ge=1, description="length of the list that is measured")
    negatives: int = Field(
        100, ge=1, description="of the 1 + n sampled protocol; fewer where there are not as many"
    )
    bootstrap: int = Field(2000, ge=100, description="draws for an interval")


class Export(_Section):
    """What the bundle holds."""

    include_llm: bool = Field(True, description="False: the service names its folder by LLMEMB_LLM")


class RunConfig(_Section):
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

    def facts(self, *sections: str) -> dict[str, Any]:
        """Sections, as JSON, by which results that depend on them are known.

        How memory is spent changes no result but its last digits, and is left out. So is, at its
        default, what became a setting later, and what was made before stays valid.
        """
        unsaid = {"chunk_items", "gradient_checkpointing"}
        if self.scft.quantise is None:
            unsaid.add("quantise")
        excluded = {"scft": unsaid}
        if not self.llm.lower_layer:
            excluded["llm"] = {"lower_layer"}
        told = self.model_dump_json(include=set(sections), exclude=excluded)
        return json.loads(told)  # type: ignore[no-any-return]


def read_config(
    path: Path,
    changes: Sequence[str],
    source: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration in a TOML file, with `section.key=value` changes, in TOML too, on top.

    Args:
        source: takes the place of data.path.
        values: further changes, by section.key, that are not text.

    Raises:
        JobError: no such file, no TOML, or a field that is unknown or has a wrong value.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"there is no configuration {path}") from None
    except tomllib.TOMLDecodeError as error:
        told = "text stands in quotes, and a section's name in brackets"
        raise JobError(f"{path} cannot be read as TOML: {error}; {told}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path} cannot be read as TOML: {error}") from None
    for change in changes:
        name, found, text = change.partition("=")
        if not found or not name.strip():
            raise JobError(f"--set {change}: write it as section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string
        _put(fields, name.strip(), value)
    for name, value in (values or {}).items():
        _put(fields, name, value)
    if source is not None:
        fields.setdefault("data", {})["path"] = source
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        raise JobError(f"{path}: {_told(error)}") from None


def _told(error: ValidationError) -> str:
    """What is wrong with the first wrong field, and for an unknown one, what there is."""
    first = error.errors(include_url=False)[0]
    *sections, name = [str(part) for part in first["loc"]] or [""]
    field = ".".join([*sections, name])
    if first["type"] == "extra_forbidden":
        known = _settings(sections)
        near = difflib.get_close_matches(name, known, 1)
        there = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{field}: there is no such setting; {there}"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{field}: {reason}; docs/reference/settings.md has all"
    return f"{field}: {reason}" + (
        "" if first["type"] == "value_error" else f" (got {first['input']!r})"
    )


def _settings(sections: Sequence[str]) -> list[str]:
    """Names in a section of RunConfig; in one that is none, of the whole."""
    model: type[BaseModel] = RunConfig
    for section in sections:
        kind = model.model_fields[section].annotation if section in model.model_fields else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
    return list(model.model_fields)


def _put(fields: dict[str, Any], name: str, value: object) -> None:
    *sections, key = name.split(".")
    place = fields
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise JobError(f"{name}={value}: {section} is no section")
    place[key] = value
