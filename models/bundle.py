"""The folder that training writes and the service reads. Safetensors and JSON, never pickle.

This is how it is read; models.bundle_writing writes it.

manifest.json               what this is; SHA-256 of every other file
MODEL_CARD.md               what it was made of, how good it is, what it is not for
items.jsonl                 the training catalogue, in row order
items.safetensors           `interactions` (n,) int64 of those items in the training split,
                            `head` (n,) bool, `map_mean` (W,) and `map_axes` (W, 2) of models.plane
llm_vectors.safetensors     `llm` (n, d_llm) of those items
projection.safetensors      weights of the Projection
views/NAME.safetensors      `items` (n, W), `present` (n,), `mean` (W,), `covariance` (W, W)
views/NAME.model.safetensors  weights of the view's SequenceModel
neighbours.safetensors      `rows` and `weights` (n, K) of models.neighbours; absent without them
adapter/                    LoRA, in peft's layout; absent where the LLM was not tuned
llm/                        the base LLM; absent where the bundle was exported without it
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file as load_tensors

from models.encoder import (
    BATCH_TOKENS,
    DTypeName,
    Encoded,
    Encoder,
    Tokens,
)
from models.int8 import SCHEME, why_not_int8
from models.item import Catalogue, Item, Popularity, read_items
from models.llm import fingerprint, fingerprint_folder
from models.manifest import (
    BundleError,
    Manifest,
    ViewSpec,
    alike,
    digest,
    read_manifest,
)
from models.neighbours import Neighbours
from models.plane import Plane
from models.projection import Projection
from models.prompt import Prompt
from models.scorer import Floats, Scorer, ViewStatistics
from models.sequence import build, last_states

__all__ = ["Bundle", "BundleError", "use_threads"]

DEFAULT_THREADS = torch.get_num_threads()


def use_threads(count: int | None) -> None:
    """Let what torch runs on the calling thread use this many threads; None is torch's choice.

    Other threads are not touched, but each should say what it wants: torch's default for a thread
    that says nothing is what another one said last.
    """
    # Torch sets a thread up when it is first asked anything, and that would undo what is set here.
    torch.get_num_threads()
    torch.set_num_threads(count or DEFAULT_THREADS)


class Bundle:
    """A bundle in memory: numpy in, numpy out. Made by Bundle.open.

    Nothing here changes, so that threads may share it, with one exception: `tokenise` and
    `encode_tokens` are each to be called from one thread at a time, which may be two.

    Attributes:
        manifest: what manifest.json says.
        catalogue: the training items, in row order.
        llm_vectors: (n, d_llm) float32 of those items.
        interactions: (n,) int64, theirs in the training split.
        head: (n,) bool, which of them are the most interacted with.
        plane: where vectors of the view `alike` stand on a map.
        scorer: the Scorer over this bundle's views.
        encoder_hash: LLM, LoRA, template, pooling, runtime dtype; what a cached LLM vector
            depends on.
        bundle_hash: all that changes an answer.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Encoder,
        catalogue: Catalogue,
        llm_vectors: Floats,
        interactions: NDArray[np.int64],
        head: NDArray[np.bool_],
        plane: Plane,
        projection: Projection,
        models: Mapping[str, torch.nn.Module],
        tables: Mapping[str, tuple[Floats, NDArray[np.bool_]]],
        neighbours: Neighbours | None,
        scorer: Scorer,
    ) -> None:
        self.manifest = manifest
        self.catalogue = catalogue
        self.llm_vectors = llm_vectors
        self.interactions = interactions
        self.head = head
        self.plane = plane
        self.scorer = scorer
        self.views: dict[str, ViewSpec] = {view.name: view for view in manifest.views}
        self.bundle_hash = manifest.bundle_hash
        self.dtype = encoder.runs_in
        self.encoder_hash = digest(
            {
                "llm": manifest.llm.sha256,
                "adapter": {
                    name: digest
                    for name, digest in manifest.files.items()
                    if name.startswith("adapter/")
                },
                "template": manifest.template.model_dump(mode="json"),
                "pooling": manifest.pooling,
                "max_tokens": manifest.max_tokens,
                "attention": manifest.attention,
                "dtype": self.dtype,
                "quantisation": SCHEME if self.dtype == "int8" else None,
                **({"lower_layer": manifest.lower_layer} if manifest.lower_layer else {}),
            }
        )
        self._encoder = encoder
        self._projection = projection
        self._models = models
        self._tables = tables
        self._neighbours = neighbours

    @classmethod
    def open(cls, folder: Path, *, llm: Path | None = None, dtype: DTypeName = "auto") -> "Bundle":
        """Load a bundle, strictly.

        Args:
            folder: what write_bundle wrote.
            llm: folder of the base LLM, for a bundle exported without it.
            dtype: runtime dtype of the LLM; `auto` is what the bundle's items were encoded in, for
                a float32 vector is not near enough to a bfloat16 one: what the projection makes of
                the two differs by more than it does between some items.

        Raises:
            BundleError: a file is missing, extra, truncated or changed, the base LLM is
                another than the one this bundle was trained with, or this machine cannot run it
                in that dtype.
        """
        manifest = read_manifest(folder)
        dtype = manifest.dtype if dtype == "auto" else dtype
        if dtype == "int8" and (reason := why_not_int8()):
            raise BundleError(f"{folder} cannot be opened here: {reason}")
        inside = folder / "llm"
        if manifest.llm.included:
            llm = inside
            found = fingerprint(
                {Path(n).name: h for n, h in manifest.files.items() if n.startswith("llm/")}
            )
        elif llm is None:
            raise BundleError(
                f"{folder} was exported without its LLM; name the folder of {manifest.llm.name}"
            )
        else:
            found = fingerprint_folder(llm)
        if found != manifest.llm.sha256:
            raise BundleError(
                f"{llm} is another LLM than {manifest.llm.name} (SHA-256 {found[:12]}…, "
                f"the bundle was trained with {manifest.llm.sha256[:12]}…)"
            )
        try:
            return cls._load(manifest, folder, llm, dtype)
        except BundleError:
            raise
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise BundleError(f"{folder} does not fit its own manifest: {error}") from error

    @classmethod
    def _load(cls, manifest: Manifest, folder: Path, llm: Path, dtype: DTypeName) -> "Bundle":
        encoder = Encoder.load(
            llm,
            folder / "adapter" if manifest.adapter else None,
            dtype,
            manifest.max_tokens,
            manifest.attention,
            manifest.lower_layer,
        )
        catalogue = Catalogue(read_items(folder / "items.jsonl"))
        llm_vectors: Floats = load_arrays(folder / "llm_vectors.safetensors")["llm"]
        if encoder.dim != manifest.llm_dim or llm_vectors.shape != (
            manifest.items,
            manifest.llm_dim,
        ):
            raise BundleError(
                f"{folder}: llm_vectors {llm_vectors.shape} and an encoder of width {encoder.dim} "
                f"do not match {manifest.items} items of width {manifest.llm_dim}"
            )
        known = load_arrays(folder / "items.safetensors")
        if not len(known["interactions"]) == len(known["head"]) == len(catalogue):
            raise BundleError(f"{folder}: items.safetensors is not of {len(catalogue)} items")
        projection = Projection(manifest.llm_dim, **dict(manifest.projection))
        projection.load_state_dict(load_tensors(folder / "projection.safetensors"))
        models, tables, statistics = {}, {}, {}
        for view in manifest.views:
            arrays = load_arrays(folder / "views" / f"{view.name}.safetensors")
            if arrays["items"].shape != (len(catalogue), view.width):
                raise BundleError(
                    f"{folder}: view {view.name} is {arrays['items'].shape}, "
                    f"not {(len(catalogue), view.width)}"
                )
            model = build(view.sequence_model, view.width, view.max_history, **view.options)
            model.load_state_dict(load_tensors(folder / "views" / f"{view.name}.model.safetensors"))
            models[view.name] = model.eval().requires_grad_(False)
            tables[view.name] = (arrays["items"], arrays["present"])
            statistics[view.name] = ViewStatistics(arrays["mean"], arrays["covariance"])
        neighbours = None
        if manifest.neighbours:
            arrays = load_arrays(folder / "neighbours.safetensors")
            neighbours = Neighbours(
                arrays["rows"],
                arrays["weights"],
                manifest.neighbours.decay,
                manifest.neighbours.latest,
            )
        scorer = Scorer(
            statistics,
            {view.name: view.weight for view in manifest.views},
            manifest.partial_factors,
            manifest.neighbours.weight if manifest.neighbours else 0.0,
        )
        return cls(
            manifest,
            encoder,
            catalogue,
            llm_vectors,
            known["interactions"],
            known["head"],
            Plane(known["map_mean"], known["map_axes"]),
            projection.eval().requires_grad_(False),
            models,
            tables,
            neighbours,
            scorer,
        )

    def prompt(self, item: Item) -> Prompt:
        """The text this bundle's LLM reads for an item."""
        return self.manifest.template.render(item)

    def encode(self, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS) -> Encoded:
        """LLM vectors of prompts; see models.encoder.Encoder.encode.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        return self._encoder.encode(prompts, batch_tokens)

    def tokenise(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        """Token ids of prompts; see models.encoder.Encoder.tokenise.

        Raises:
            InvalidItem: the LLM's tokenizer finds nothing in a prompt.
        """
        return self._encoder.tokenise(prompts)

    def encode_tokens(self, tokens: Sequence[Tokens], batch_tokens: int = BATCH_TOKENS) -> Encoded:
        """LLM vectors of what `tokenise` gave; see models.encoder.Encoder.encode_tokens.

        Raises:
            OutOfMemory: a batch does not fit.
            FloatingPointError: the LLM gave a vector that is not finite.
        """
        return self._encoder.encode_tokens(tokens, batch_tokens)

    def project(self, llm_vectors: Floats) -> dict[str, Floats]:
        """Item vectors (n, W) of LLM vectors (n, d_llm), of each view that is made of them.

        Raises:
            ValueError: the vectors have another width.
        """
        if llm_vectors.ndim != 2 or llm_vectors.shape[1] != self.manifest.llm_dim:
            raise ValueError(
                f"LLM vectors are {llm_vectors.shape}, not (n, {self.manifest.llm_dim})"
            )
        vectors = torch.from_numpy(llm_vectors)
        makers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "projection": self._projection,
            "content": self._projection.content,
        }
        with torch.inference_mode():
            return {
                name: makers[view.source](vectors).numpy()
                for name, view in self.views.items()
                if view.source in makers
            }

    def item_views(self, item_ids: Sequence[str], llm_vectors: Floats) -> list[dict[str, Floats]]:
        """Of each item, its vector (W,) in every view that it has.

        Views that are tables come by id and only training items have them; the others come
        from the LLM vectors (n, d_llm).
        """
        projected = self.project(llm_vectors)
        found: list[dict[str, Floats]] = []
        for position, item_id in enumerate(item_ids):
            views = {name: items[position] for name, items in projected.items()}
            row = self.catalogue.rows.get(item_id)
            for name, view in self.views.items():
                if view.source == "table" and row is not None and self._tables[name][1][row - 1]:
                    views[name] = self._tables[name][0][row - 1]
            found.append(views)
        return found

    def following(self, history: Sequence[str]) -> tuple[NDArray[np.int32], Floats]:
        """Rows (m,) of the training items that follow a history, oldest first, and their scores.

        Every other item's score is 0. See models.neighbours.Neighbours.scores.
        """
        if self._neighbours is None:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return self._neighbours.scores([self.catalogue.rows.get(each, 0) for each in history])

    @property
    def open_views(self) -> list[str]:
        """The views that any item has, whether training knew it or not, from its attributes."""
        return [n for n, view in self.views.items() if view.source in {"projection", "content"}]

    @property
    def alike(self) -> str:
        """The view in which items are near that are alike by what they are."""
        return alike({name: view.source for name, view in self.views.items()})

    def popularity(self, item_id: str) -> Popularity:
        """How much training knew of an item: `cold` is one without interactions, or unknown."""
        row = self.catalogue.rows.get(item_id)
        if row is None or not self.interactions[row - 1]:
            return "cold"
        return "head" if self.head[row - 1] else "tail"

    def training_views(self) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
        """Of each view, the exported vectors (n, W) of the training catalogue and who has one."""
        return dict(self._tables)

    def states(self, histories: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
        """States (B, W) of histories in each view.

        Args:
            histories: of each, per view, the vectors (L, W) of those of its items that have
                the view, oldest first; L may be 0, which gives a state of zeros.
        """
        states = {}
        for name, view in self.views.items():
            told = [row for row, history in enumerate(histories) if len(history[name])]
            state = np.zeros((len(histories), view.width), np.float32)
            if told:
                state[told] = last_states(
                    self._models[name], [histories[row][name] for row in told], view.max_history
                )
            states[name] = state
        return states
