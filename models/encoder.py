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

from models import OutOfMemory
from models.item import InvalidItem
from models.llm import load_model, load_tokenizer, quiet_peft
from models.prompt import Prompt

DTypeName = Literal["auto", "bfloat16", "float32"]
Attention = Literal["native", "bidirectional"]
# CPU and CUDA allocators; "an illegal memory access" is another thing.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")
MAX_TOKENS = 512  # of the item's own text; attributes beyond are cut and reported
BATCH_TOKENS = 2048


def runtime_dtype(name: DTypeName = "auto") -> torch.dtype:
    """The dtype to run an LLM in; `auto` is bfloat16 where the hardware multiplies it, else fp32.

    A CPU without AVX512_BF16 or AMX emulates bfloat16, which is slower than fp32.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    return torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32


def runtime_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_name(dtype: torch.dtype) -> Literal["bfloat16", "float32"]:
    """The name that a manifest and a cache key know this dtype by."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


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
    """

    vectors: NDArray[np.float32]
    tokens: NDArray[np.int32]
    cut: list[tuple[str, ...]]


class Encoder(nn.Module):
    """An LLM with its adapter and pooling.

    The mean of the last layer's states over the item's own tokens: the instruction, which all
    items share, is read by the LLM but not pooled, nor is any end-of-text token (the published
    LLMEmb code pools both, which gives all items a common component). Padding is on the right
    and, under causal attention, invisible.

    Args:
        llm: a causal decoder that returns `last_hidden_state`.
        tokenizer: its fast tokenizer.
        max_tokens: the longest an item's own text may be; the rest is cut and reported.
        attention: `native` is the LLM's own, causal in a decoder; `bidirectional` lets every
            token see the whole prompt (LLM2Vec, COLM 2024, arXiv 2404.05961, section 2.1), which
            a decoder has to be tuned for.
    """

    def __init__(
        self,
        llm: nn.Module,
        tokenizer: Any,  # noqa: ANN401 - transformers is untyped here
        max_tokens: int = MAX_TOKENS,
        attention: Attention = "native",
    ) -> None:
        super().__init__()
        self.attention = attention
        self.llm = llm
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        bare = tokenizer("x", add_special_tokens=False)["input_ids"]
        whole = tokenizer("x", add_special_tokens=True)["input_ids"]
        # What the tokenizer itself puts in front, usually BOS or nothing.
        self._opening: list[int] = whole[: whole.index(bare[0])] if bare[0] in whole else []
        self._instructions: dict[str, list[int]] = {}
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
    ) -> "Encoder":
        """The encoder of an LLM folder, its LoRA adapter merged in fp32 before the cast to dtype.

        Raises:
            LLMError: the folder holds no usable LLM.
        """
        target = runtime_dtype(dtype)
        model = load_model(folder, torch.float32 if adapter else target)
        if adapter:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        model = model.to(device=runtime_device(), dtype=target).eval().requires_grad_(False)
        return cls(model, load_tokenizer(folder), max_tokens, attention)

    @property
    def dim(self) -> int:
        """Width of the LLM vectors (D)."""
        width: int = self.llm.config.hidden_size  # type: ignore[union-attr, assignment]
        return width

    @property
    def dtype(self) -> torch.dtype:
        """What the forward pass runs in."""
        return next(self.llm.parameters()).dtype

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
        bodies = self.tokenizer(
            [prompt.body for prompt in prompts],
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        tokens = []
        for prompt, ids, offsets in zip(
            prompts, bodies["input_ids"], bodies["offset_mapping"], strict=True
        ):
            if not ids:
                raise InvalidItem(f"the tokenizer finds no token in {prompt.body[:80]!r}")
            kept = ids[: self.max_tokens]
            cut: tuple[str, ...] = ()
            if len(kept) < len(ids):
                reached = offsets[len(kept) - 1][1]
                cut = tuple(name for name, end in prompt.ends if end > reached)
            tokens.append(Tokens(self._instruction(prompt.instruction) + kept, len(kept), cut))
        return tokens

    def states(self, batch: Sequence[Tokens], inputs: Sequence[Tensor] | None = None) -> Tensor:
        """The last layer's states of one batch, padded on the right: (B, T, D).

        Args:
            inputs: (T, D) of each prompt, that an LLM without its lower layers reads in place of
                the ids.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        longest = max(len(tokens.ids) for tokens in batch)
        device = next(self.llm.parameters()).device
        ids = torch.full((len(batch), longest), self._pad)  # (B, T)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
            mask[row, : len(tokens.ids)] = 1
        with _out_of_memory_told(len(batch), longest):
            if inputs is None:
                read = {"input_ids": ids.to(device)}
            else:
                read = {"inputs_embeds": pad_sequence(list(inputs), batch_first=True).to(device)}
            states: Tensor = self.llm(
                **read, attention_mask=self._mask(mask).to(device), use_cache=False
            ).last_hidden_state
        return states

    def forward(self, batch: Sequence[Tokens], inputs: Sequence[Tensor] | None = None) -> Tensor:
        """LLM vectors of one batch, with gradients if they are on: (B, D) float32.

        Args:
            inputs: as of `states`.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        states = self.states(batch, inputs)
        own = torch.zeros(*states.shape[:2], 1)
        for row, tokens in enumerate(batch):
            length = len(tokens.ids)
            own[row, length - tokens.own : length] = 1 / tokens.own
        with _out_of_memory_told(*states.shape[:2]):
            pooled: Tensor = (states.float() * own.to(states.device)).sum(dim=1)
        return pooled

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
        tokens = self.tokenise(prompts)
        vectors = np.empty((len(tokens), self.dim), np.float32)
        with torch.inference_mode():
            for rows in batches_by_length([len(each.ids) for each in tokens], batch_tokens):
                vectors[rows] = self([tokens[row] for row in rows]).cpu().numpy()
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            text = prompts[int(np.argmin(finite))].body[:80]
            raise FloatingPointError(
                f"the LLM gives no finite vector for {text!r}; run it in float32"
            )
        return Encoded(
            vectors,
            np.array([each.own for each in tokens], np.int32),
            [each.cut for each in tokens],
        )


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
