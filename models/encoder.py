"""Prompts to LLM vectors: LLM, LoRA adapter, masked mean. One implementation for both sides.

Shapes: B prompts of one batch, T tokens, n prompts in all, D = d_llm.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from models import OutOfMemory
from models.cpu import cpu_words
from models.int8 import TEXTS, Int8Linear, exactly, quantise, why_not_int8
from models.item import InvalidItem
from models.llm import LLMError, load_model, load_tokenizer, quiet_peft
from models.prompt import Prompt

RuntimeDType = Literal["bfloat16", "float32", "int8"]
DTypeName = Literal["auto"] | RuntimeDType
Attention = Literal["native", "bidirectional"]
# CPU and CUDA allocators; "an illegal memory access" is another thing.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")
MAX_TOKENS = 512  # of the item's own text; attributes beyond are cut and reported
BATCH_TOKENS = 1024  # more pads more
TUNED_TOKENS = 512  # of a part of a step, which has fewer prompts to find alike ones among


def settled_dtype(name: DTypeName = "auto") -> RuntimeDType:
    """What an LLM runs in here, by the name that a manifest and a cache key know it by.

    `auto` is bfloat16 where it is faster than float32, else float32: of CPUs on those with AMX, and
    AMD's with AVX512_BF16. Others emulate bfloat16, or have it and are slower in it, as an Intel
    Xeon with AVX512_BF16 alone is. int8 changes vectors, so it has to be asked for.
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    words = cpu_words()
    fast = "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words
    return "bfloat16" if fast else "float32"


def runtime_dtype(name: DTypeName = "auto") -> torch.dtype:
    """The dtype to load an LLM in; of int8, what is around its linear maps, and what is tuned."""
    return torch.bfloat16 if settled_dtype(name) == "bfloat16" else torch.float32


def runtime_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One prompt as token ids.

    `own` counts the ids, at the end, that are the item's own words; only they are pooled.
    `cut` names the attributes that lost text to the limit.
    """

    ids: list[int]
    own: int
    cut: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What encode returns, row i for prompt i.

    Attributes:
        vectors: (n, D) float32, finite, not normalised.
        tokens: (n,) int32, the item's own tokens that were pooled.
        cut: attributes that did not fit whole; empty where all did.
        padding: share of the tokens that the LLM ran which are padding.
    """

    vectors: NDArray[np.float32]
    tokens: NDArray[np.int32]
    cut: list[tuple[str, ...]]
    padding: float = 0.0


class Encoder(nn.Module):
    """An LLM with its adapter and pooling.

    The mean of the last layer's states over the item's own tokens: the instruction, which all
    items share, is read by the LLM but not pooled, nor is any end-of-text token (the published
    LLMEmb code pools both, which gives all items a common component). Padding is on the right
    and, under causal attention, invisible.

    An LLM that is not being tuned reads an instruction once: nothing before an item's own words
    depends on them under causal attention, so its keys and values are kept and read again by
    every batch.

    Args:
        llm: a causal decoder that returns `last_hidden_state`.
        tokenizer: its fast tokenizer.
        max_tokens: the longest an item's own text may be; the rest is cut and reported.
        attention: `native` is the LLM's own, causal in a decoder; `bidirectional` lets every
            token see the whole prompt (LLM2Vec, COLM 2024, arXiv 2404.05961, section 2.1), which
            a decoder has to be tuned for.
        lower_layer: where it is not 0, pool the states after so many layers, too: through the
            LLM's last norm, so that both are of one scale, and before the last layer's, so that D
            is twice the LLM's width. Below what was tuned, they are still the LLM's own.

    Raises:
        LLMError: there is no such layer below the last, or the LLM is no decoder.
    """

    def __init__(
        self,
        llm: nn.Module,
        tokenizer: Any,  # noqa: ANN401 - transformers is untyped here
        max_tokens: int = MAX_TOKENS,
        attention: Attention = "native",
        lower_layer: int = 0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.lower_layer = lower_layer
        self.llm = llm
        if lower_layer:
            check_lower_layer(llm, lower_layer)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        bare = tokenizer("x", add_special_tokens=False)["input_ids"]
        whole = tokenizer("x", add_special_tokens=True)["input_ids"]
        # What the tokenizer itself puts in front, usually BOS or nothing.
        self._opening: list[int] = whole[: whole.index(bare[0])] if bare[0] in whole else []
        # Of a longer text not even the longest tokens reach the end. Twice, as a word that is cut
        # here is other tokens than the whole word.
        self._longest = 2 * max_tokens * max(map(len, tokenizer.get_vocab()))
        self._instructions: dict[str, list[int]] = {}
        self._read: dict[tuple[int, ...], _Instruction | None] = {}
        pad = tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else 0  # masked, so any id will do

    @classmethod
    def load(
        cls,
        folder: Path,
        adapter: Path | None = None,
        dtype: DTypeName = "auto",
        max_tokens: int = MAX_TOKENS,
        attention: Attention = "native",
        lower_layer: int = 0,
    ) -> "Encoder":
        """The encoder of an LLM folder, its LoRA adapter merged in fp32 before the cast to dtype.

        Raises:
            LLMError: the folder holds no usable LLM, or it cannot run in that dtype here.
        """
        target = runtime_dtype(dtype)
        if dtype == "int8" and (reason := why_not_int8()):
            raise LLMError(reason)
        model = load_model(folder, torch.float32 if adapter else target)
        if adapter:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        model = model.to(device=runtime_device(), dtype=target).eval().requires_grad_(False)
        tokenizer = load_tokenizer(folder)
        if dtype == "int8" and not quantise(model, [tokenizer(text).input_ids for text in TEXTS]):
            raise LLMError(f"{folder}: {type(model).__name__} has no linear maps to make int8")
        return cls(model, tokenizer, max_tokens, attention, lower_layer)

    @property
    def dim(self) -> int:
        """Width of the LLM vectors (D)."""
        width: int = self.llm.config.hidden_size  # type: ignore[union-attr, assignment]
        return 2 * width if self.lower_layer else width

    @property
    def dtype(self) -> torch.dtype:
        """What states are in."""
        return next(self.llm.parameters()).dtype

    @property
    def runs_in(self) -> RuntimeDType:
        """What the forward pass runs in, by the name of settled_dtype."""
        if any(isinstance(module, Int8Linear) for module in self.llm.modules()):
            return "int8"
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    def _instruction(self, text: str) -> list[int]:
        if text not in self._instructions:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._instructions[text] = self._opening + ids
        return self._instructions[text]

    def tokenise(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        """Token ids of each prompt; instruction and body apart, so that no token spans both.

        Raises:
            InvalidItem: a body that the tokenizer turns into no token at all.
        """
        texts = [prompt.body[: self._longest] for prompt in prompts]
        bodies = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        tokens = []
        for prompt, text, ids, offsets in zip(
            prompts, texts, bodies["input_ids"], bodies["offset_mapping"], strict=True
        ):
            if not ids:
                raise InvalidItem(f"the tokenizer finds no token in {prompt.body[:80]!r}")
            kept = ids[: self.max_tokens]
            cut: tuple[str, ...] = ()
            if len(kept) < len(ids) or len(text) < len(prompt.body):
                reached = offsets[len(kept) - 1][1]
                cut = tuple(name for name, end in prompt.ends if end > reached)
            tokens.append(Tokens(self._instruction(prompt.instruction) + kept, len(kept), cut))
        return tokens

    def reads(self, batch: Sequence[Tokens]) -> list[int]:
        """How many tokens of each prompt the LLM runs in a batch of these: (B,).

        Without gradients that is the item's own, after an instruction that they share.
        """
        shared = self._shared(batch)
        return [each.own if shared else len(each.ids) for each in batch]

    def _shared(self, batch: Sequence[Tokens]) -> "_Instruction | None":
        """The instruction that all prompts begin with, as read before; None where it cannot be."""
        first = self._alike(batch)
        if torch.is_grad_enabled() or not first:
            return None
        if first not in self._read:
            tuned = any(weight.requires_grad for weight in self.llm.parameters())
            if tuned:  # what it says of the instruction changes with every step
                return None
            # All that comes after reads what the opening tokens say, so in int8 these are exact.
            with torch.inference_mode(), exactly(self.llm):
                self._read[first] = _Instruction.read(self.llm, first)
        return self._read[first]

    def _alike(self, batch: Sequence[Tokens]) -> tuple[int, ...]:
        """The instruction that all prompts begin with; empty where nothing hangs on it alone."""
        first = tuple(batch[0].ids[: -batch[0].own])
        if self.attention != "native" or any(
            tuple(each.ids[: -each.own]) != first for each in batch
        ):
            return ()
        return first

    def states(self, batch: Sequence[Tokens], inputs: Sequence[Tensor] | None = None) -> Tensor:
        """The last layer's states of one batch, padded on the right: (B, T, D).

        Args:
            inputs: (T, D) of each prompt, that an LLM without its lower layers reads in place of
                the ids.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        ids, mask = self._padded([tokens.ids for tokens in batch])
        device = next(self.llm.parameters()).device
        with _out_of_memory_told(*ids.shape):
            if inputs is None:
                read = {"input_ids": ids.to(device)}
            else:
                read = {"inputs_embeds": pad_sequence(list(inputs), batch_first=True).to(device)}
            return self._run(**read, attention_mask=self._mask(mask).to(device))

    def _run(self, **read: object) -> Tensor:
        """The states that are pooled, of what the LLM reads: (B, T, D)."""
        if not self.lower_layer:
            last: Tensor = self.llm(**read, use_cache=False).last_hidden_state
            return last
        found = self.llm(**read, use_cache=False, output_hidden_states=True)
        lower = self.llm.norm(found.hidden_states[self.lower_layer])  # type: ignore[operator]
        return torch.cat([lower, found.last_hidden_state], dim=-1)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids padded on the right, and 1 where there are any, 0 on padding: (B, T) int64."""
        rows = [torch.tensor(ids) for ids in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._pad)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)

    def forward(self, batch: Sequence[Tokens], inputs: Sequence[Tensor] | None = None) -> Tensor:
        """LLM vectors of one batch, with gradients if they are on: (B, D) float32.

        Args:
            inputs: as of `states`.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        shared = self._shared(batch) if inputs is None else None
        return self._pooled(batch, shared, inputs)

    def tuned(self, batch: Sequence[Tokens]) -> Tensor:
        """As `forward`, of a batch of one step of tuning: (B, D) float32.

        The instruction is read once a step, with gradients, and the items' own tokens in parts
        of similar length, so that little is padding.

        Raises:
            OutOfMemory: a part does not fit.
        """
        first = self._alike(batch)
        shared = _Instruction.read(self.llm, first) if first else None
        lengths = [each.own if shared else len(each.ids) for each in batch]
        parts = list(batches_by_length(lengths, TUNED_TOKENS))
        vectors = torch.cat([self._pooled([batch[r] for r in rows], shared) for rows in parts])
        order = torch.tensor([row for rows in parts for row in rows], device=vectors.device)
        return vectors[order.argsort()]

    def _pooled(
        self,
        batch: Sequence[Tokens],
        shared: "_Instruction | None",
        inputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The mean over each prompt's own tokens: (B, D) float32."""
        states = self._own_states(batch, shared) if shared else self.states(batch, inputs)
        # Torch's default is everybody's, and another dtype while an LLM is loaded elsewhere.
        own = torch.zeros(*states.shape[:2], 1, dtype=torch.float32)
        for row, tokens in enumerate(batch):
            start = 0 if shared else len(tokens.ids) - tokens.own
            own[row, start : start + tokens.own] = 1 / tokens.own
        with _out_of_memory_told(*states.shape[:2]):
            pooled: Tensor = (states.float() * own.to(states.device)).sum(dim=1)
        return pooled

    def _own_states(self, batch: Sequence[Tokens], shared: "_Instruction") -> Tensor:
        """The last layer's states of the items' own tokens, padded on the right: (B, T, D)."""
        ids, _ = self._padded([tokens.ids[-tokens.own :] for tokens in batch])
        device = next(self.llm.parameters()).device
        with _out_of_memory_told(*ids.shape):
            # No mask: what is causal does not see the padding on its right.
            return self._run(input_ids=ids.to(device), past_key_values=shared)

    def _mask(self, mask: Tensor) -> Tensor:
        """What the LLM is handed for a (B, T) mask of the tokens that are there."""
        if self.attention == "native":
            return mask
        # Transformers takes a mask of four dimensions as it is, (B, 1, T, T), and adds it.
        hidden = (1 - mask).to(self.dtype) * torch.finfo(self.dtype).min
        return hidden[:, None, None, :].expand(-1, 1, mask.shape[1], -1)

    def encode(self, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS) -> Encoded:
        """LLM vectors of any number of prompts, in their order.

        Prompts run in batches of similar length, each of at most `batch_tokens` tokens with
        padding (a longer single prompt runs alone), so memory does not depend on n.

        Raises:
            OutOfMemory: a batch does not fit.
            FloatingPointError: the LLM gave a vector that is not finite.
        """
        return self.encode_tokens(self.tokenise(prompts), batch_tokens)

    def encode_tokens(self, tokens: Sequence[Tokens], batch_tokens: int = BATCH_TOKENS) -> Encoded:
        """As `encode`, of prompts that are tokenised already.

        Raises:
            OutOfMemory: a batch does not fit.
            FloatingPointError: the LLM gave a vector that is not finite.
        """
        vectors = np.empty((len(tokens), self.dim), np.float32)
        run = 0
        with torch.inference_mode():
            lengths = self.reads(tokens) if tokens else []
            for rows in batches_by_length(lengths, batch_tokens):
                vectors[rows] = self([tokens[row] for row in rows]).cpu().numpy()
                run += len(rows) * max(lengths[row] for row in rows)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            worst = tokens[int(np.argmin(finite))]
            text = self.tokenizer.decode(worst.ids[-worst.own :])[:80]
            raise FloatingPointError(
                f"the LLM gives no finite vector for {text!r}; run it in float32"
            )
        return Encoded(
            vectors,
            np.array([each.own for each in tokens], np.int32),
            [each.cut for each in tokens],
            1 - sum(lengths) / run if run else 0.0,
        )


def check_lower_layer(llm: nn.Module, lower_layer: int) -> None:
    """See that an LLM has a layer of that number, counted from 1, below its last.

    Raises:
        LLMError: it has not.
    """
    layers = getattr(llm, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(
        getattr(llm, "norm", None), nn.Module
    ):
        raise LLMError(
            f"llm.lower_layer={lower_layer}: {type(llm).__name__} is no decoder whose layers and "
            "last norm are known; leave it out"
        )
    if not 1 <= lower_layer < len(layers):
        raise LLMError(
            f"llm.lower_layer={lower_layer}: the LLM has {len(layers)} layers; name one from 1 to "
            f"{len(layers) - 1}"
        )


class _Instruction(Cache):
    """Keys and values of the tokens that prompts share, for any number of prompts.

    A cache of transformers that keeps nothing of what is read after it, so that batches, and
    threads, may share it.
    """

    @classmethod
    def read(cls, llm: Any, ids: Sequence[int]) -> "_Instruction | None":  # noqa: ANN401
        """What an LLM keeps of these tokens, with gradients if they are on.

        None where it keeps other things than those.
        """
        if getattr(llm.config, "is_encoder_decoder", False) or not hasattr(llm, "layers"):
            return None
        cache = DynamicCache(config=llm.config)
        device = next(llm.parameters()).device
        llm(input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        whole = all(
            type(layer) in {DynamicLayer, DynamicSlidingWindowLayer}
            and layer.is_initialized
            and layer.keys.shape[-2] == len(ids)  # a window may be shorter than the instruction
            for layer in layers
        )
        return cls(layers=layers) if whole and len(cache) == len(llm.layers) else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """These keys and values behind the instruction's; nothing is kept."""
        layer: Any = self.layers[layer_idx]
        both = ((layer.keys, key_states), (layer.values, value_states))
        rows = len(key_states)
        keys, values = (torch.cat([kept.expand(rows, -1, -1, -1), new], 2) for kept, new in both)
        return keys, values


@contextmanager
def _out_of_memory_told(prompts: int, tokens: int) -> Iterator[None]:
    """Turns what CPU and GPU raise when a batch does not fit into OutOfMemory."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise OutOfMemory(f"{prompts} prompts of {tokens} tokens do not fit") from error


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, longest first, each within `budget` when padded.

    Every position appears once. Longest first, so that what does not fit shows at once.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
