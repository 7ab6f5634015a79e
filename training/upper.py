"""The upper layers of an LLM, tuned over what the lower ones say once and for all."""

import copy
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoder import BATCH_TOKENS, Encoder, Tokens, batches_by_length
from training import JobError
from training.recipe import write_atomically

FLUSH_S = 10.0  # between notes of what is stored; a kill costs no more than that
CLOSE = 0.02  # of the vectors' length, by which bfloat16 may be off
SAMPLE = 4  # prompts that this is seen of


def upper_linears(llm: nn.Module, upper: int) -> list[str]:
    """Names of the linear maps of a decoder's `upper` last layers.

    Raises:
        JobError: it has no more layers than that, or keeps none where decoders do.
    """
    layers = _layers(llm, upper)
    return [
        f"layers.{number}.{name}"
        for number in range(len(layers) - upper, len(layers))
        for name, module in layers[number].named_modules()
        if isinstance(module, nn.Linear)
    ]


def layers_of(llm: nn.Module) -> nn.ModuleList | None:
    """The layers of a decoder; None of anything else."""
    layers = getattr(llm, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) else None


def _layers(llm: nn.Module, upper: int) -> nn.ModuleList:
    layers = layers_of(llm)
    if layers is None:
        raise JobError(
            f"scft.layers={upper}: {type(llm).__name__} is no decoder; leave scft.layers out"
        )
    if upper >= len(layers):
        raise JobError(
            f"scft.layers={upper}: the LLM has {len(layers)} layers; name fewer, or leave it out"
        )
    return layers


def split_layers(model: nn.Module, upper: int) -> tuple[nn.Module, nn.Module]:
    """A decoder as two: the layers below the `upper` last ones, without a norm, and those.

    The two share the model's weights. Lower reads `input_ids`, upper reads what lower gave as
    `inputs_embeds`.

    Raises:
        JobError: it has no more layers than that, or keeps none where decoders do.
    """
    count = len(_layers(model, upper))
    lower, top = _part(model, range(count - upper)), _part(model, range(count - upper, count))
    lower.norm = nn.Identity()
    top.embed_tokens = nn.Identity()
    return lower, top


def _part(model: nn.Module, kept: range) -> Any:  # noqa: ANN401 - a model of transformers
    part: Any = copy.copy(model)
    part._modules = dict(model._modules)
    part.config = copy.copy(model.config)
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        part.config.layer_types = [kinds[number] for number in kept]
    part.config.num_hidden_layers = len(kept)
    layers: Any = model.layers
    part.layers = nn.ModuleList([layers[number] for number in kept])
    return part


class UpperLayers:
    """Upper layers over stored activations of the layers below.

    They are the LLM's own: what peft puts into them later, they run with.

    Args:
        llm: the whole decoder, not yet wrapped by peft; peft may wrap it afterwards.
        layers: how many are tuned.
        prompts: what will be read.
        file: where activations are stored, in the LLM's dtype; read from there as they are asked
            for, so memory does not depend on the number of prompts. What a process that was
            killed has stored there is kept: it is the caller's to see that it was of the same LLM
            and prompts. `stored_in` names the files.

    Raises:
        JobError: the LLM cannot be run in two parts, or the disk does not take the file.
    """

    def __init__(
        self, llm: nn.Module, layers: int, encoder: Encoder, prompts: Sequence[Tokens], file: Path
    ) -> None:
        lower, upper = split_layers(llm, layers)
        self.prompts = prompts
        self._encoder = Encoder(upper, encoder.tokenizer, encoder.max_tokens, encoder.attention)
        reader = Encoder(lower, encoder.tokenizer, encoder.max_tokens, encoder.attention)
        lengths = [len(each.ids) for each in prompts]
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self._spans = list(itertools.pairwise(ends))
        with torch.inference_mode():
            few = list(range(min(SAMPLE, len(prompts))))
            some = [prompts[row] for row in few]
            whole = encoder(some)
            parts = self._encoder(some, [each.cpu() for each in _states(reader, some)])
            off = (whole - parts).norm() / whole.norm()
            if not off < CLOSE:
                raise JobError(
                    f"scft.layers={layers}: this kind of LLM does not give the same in two parts; "
                    "leave scft.layers out"
                )
        self._stored = _on_disk(file, ends[-1], encoder.dim, encoder.dtype)
        with torch.inference_mode():
            self._fill(file, reader, list(batches_by_length(lengths, BATCH_TOKENS)))

    def _fill(self, file: Path, reader: Encoder, batches: Sequence[Sequence[int]]) -> None:
        """Store the activations of those batches that the file has not whole."""
        note = _note(file)
        of = f" of {len(batches)}"
        told = note.read_text() if note.exists() else ""
        done = int(told.removesuffix(of)) if told.endswith(of) else 0
        flushed = time.monotonic()
        for number, rows in enumerate(batches[done:], done + 1):
            read = _states(reader, [self.prompts[row] for row in rows])
            for row, states in zip(rows, read, strict=True):
                self._stored[slice(*self._spans[row])] = states.cpu()
            if number == len(batches) or time.monotonic() - flushed > FLUSH_S:
                try:
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())  # what is noted is on the disk
                    write_atomically(note, f"{number}{of}")
                except OSError as error:
                    raise JobError(f"scft: {note} cannot be written ({error.strerror})") from None
                flushed = time.monotonic()

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """LLM vectors (B, D) of the prompts in `rows`, with gradients if they are on."""
        vectors: Tensor = self._encoder(
            [self.prompts[row] for row in rows], self._activations(rows)
        )
        return vectors

    def all(self) -> Tensor:
        """LLM vectors of all prompts, (n, D), without gradients."""
        found = torch.empty(len(self.prompts), self._stored.shape[1])
        with torch.inference_mode():
            for rows in batches_by_length([len(each.ids) for each in self.prompts], BATCH_TOKENS):
                found[rows] = self(rows).cpu()
        return found

    def _activations(self, rows: Sequence[int]) -> list[Tensor]:
        return [self._stored[slice(*self._spans[row])] for row in rows]


def stored_in(file: Path) -> list[Path]:
    """What UpperLayers keeps there: the activations, and a note of how many are whole."""
    return [file, _note(file)]


def _note(file: Path) -> Path:
    return file.with_suffix(".stored")


def _states(reader: Encoder, prompts: Sequence[Tokens]) -> list[Tensor]:
    """Of each prompt its tokens' last hidden states (length, D)."""
    states = reader.states(prompts)
    return [each[: len(prompt.ids)] for each, prompt in zip(states, prompts, strict=True)]


def _on_disk(file: Path, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """A tensor (rows, width) that is the file's contents; those of a file of that size stay.

    Raises:
        JobError: it does not fit.
    """
    size = rows * width * dtype.itemsize
    if not file.exists() or file.stat().st_size != size:
        _note(file).unlink(missing_ok=True)
        try:
            with file.open("wb") as handle:
                # Taken now: a disk that is full later would kill the process at a write to memory.
                os.posix_fallocate(handle.fileno(), 0, size)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise JobError(
                f"scft: {size / 1e6:.0f} MB of activations cannot be written to {file.parent} "
                f"({error.strerror}); make room, set `cache` to another disk, or leave "
                "scft.layers out"
            ) from None
    return torch.from_file(str(file), shared=True, size=rows * width, dtype=dtype).view(rows, width)
