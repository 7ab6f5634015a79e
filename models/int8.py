"""Linear maps in int8: whole numbers for weights and activations, exact products between them.

Source: activations scaled by token, weights by output (ZeroQuant, arXiv 2206.01861), and a factor
by channel that leaves as much to round in either (SmoothQuant, arXiv 2211.10438, alpha .5). A
token's scale is its own, never its batch's, so what it becomes does not depend on its company.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cpu import cpu_words

SCHEME = "int8: weights by output, activations by token and channel, 1"
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
MOST = 127
ZERO = 128  # oneDNN multiplies signed activations without VNNI; these are unsigned, with a zero
LEAST = 1e-5  # of a channel's largest activation, and of a token's: what is always zero stays zero
SINKS = 4  # opening tokens, whose activations are hundreds of times those of others
# What channels are measured on. Any texts of the kind will do: the factors are coarse.
TEXTS = (
    "The item is a book with following attributes: title is The Left Hand of Darkness; author is "
    "Ursula K. Le Guin; year is 1969; genres is science fiction, politics, classics",
    "The item is a product with following attributes: title is Hydrating Face Cream with Aloe, "
    "50 ml (Pack of 2); brand is Green Valley; price is 12.99; categories is Beauty > Skin > Face",
    "The item is a place with following attributes: name is Joe's Pizza & Bar; city is Tucson; "
    "state is AZ; features is outdoor seating, takes reservations, free Wi-Fi; stars is 4.5",
    "The item is a song with following attributes: title is Blue Monday '88; artist is New Order; "
    "album is Substance; released is 1987-08-17; description is a long, cold dance track",
)


class _Activations:
    """States as int8, made once for all maps of an LLM that read the very same ones.

    Attributes:
        exact: whether states stay as they are meanwhile, and maps are those from before.
    """

    def __init__(self) -> None:
        self.exact = False
        self._made: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def of(self, states: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """States (..., I) divided by factors (I,): (n, I) uint8 around ZERO, and scales (n, 1)."""
        made = self._made
        if made is None or made[0] is not states or made[1] is not factors:
            self._made = None  # the memory is wanted again
            rows = states.reshape(-1, states.shape[-1]) / factors
            scale = _scale(rows)
            # What is cut off behind the point rounds, as nothing is below 0.
            tokens = rows.div_(scale).add_(ZERO + 0.5).to(torch.uint8)
            self._made = made = (states, factors, tokens, scale)
        return made[2], made[3]


def _scale(rows: Tensor) -> Tensor:
    """What whole numbers up to MOST are to be multiplied by to be rows (n, I): (n, 1)."""
    # Two passes that keep nothing are faster than one of absolute values.
    largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
    return largest.clamp_(min=LEAST).div_(MOST)


class Int8Linear(nn.Module):
    """A linear map with int8 weights, over activations that it makes int8, token by token.

    States (..., I) float32 become (..., O) float32. The weights are kept in bfloat16, too, for the
    few tokens that are read exactly.

    Args:
        linear: what it takes the place of; its weights (O, I).
        factors: (I,) by which states are divided and weights multiplied.
        activations: shared by all maps of the LLM.
    """

    kept: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, factors: Tensor, activations: _Activations) -> None:
        super().__init__()
        weight = linear.weight.detach()
        weighed = weight.float() * factors
        scale = _scale(weighed)
        numbers = weighed.div_(scale).round_().to(torch.int8)
        self.factors = factors
        self.activations = activations
        # Torch's own export of quantised models runs on these two.
        self.packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        self.register_buffer("kept", weight.bfloat16())
        self.register_buffer("scale", scale[:, 0].contiguous())
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int64))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, states: Tensor) -> Tensor:
        """The map of each token."""
        if self.activations.exact:
            return functional.linear(states, self.kept.float(), self.bias)
        tokens, scale = self.activations.of(states, self.factors)
        mapped: Tensor = torch.ops.onednn.qlinear_pointwise(
            tokens, 1.0, ZERO, self.packed, self.scale, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        mapped.mul_(scale)
        if self.bias is not None:
            mapped += self.bias
        return mapped.view(*states.shape[:-1], -1)


def why_not_int8() -> str | None:
    """Why this machine cannot run an LLM in int8, as a sentence that says what to do; or None."""
    if torch.cuda.is_available():
        return "int8 is for CPUs; on a GPU take bfloat16"
    if cpu_words() & VNNI:
        return None
    return "int8 needs a CPU with AVX512_VNNI, AVX_VNNI or AMX; take float32 or bfloat16 here"


def quantise(llm: nn.Module, prompts: Sequence[Sequence[int]]) -> int:
    """Put an Int8Linear in the place of each linear map that an LLM runs; how many there were.

    Args:
        llm: in float32.
        prompts: token ids, that activations are measured on.
    """
    groups = _groups(llm, prompts)
    activations = _Activations()
    made: dict[nn.Module, Int8Linear] = {}
    for linears, largest in groups:
        weights = torch.stack([linear.weight.detach().abs().amax(0) for linear in linears]).amax(0)
        factors = (largest.clamp(min=LEAST) / weights.clamp(min=LEAST)).sqrt()
        made |= {linear: Int8Linear(linear, factors, activations) for linear in linears}
    for module in list(llm.modules()):
        for name, child in list(module.named_children()):
            if child in made:
                setattr(module, name, made[child])
    return len(made)


def _groups(
    llm: nn.Module, prompts: Sequence[Sequence[int]]
) -> list[tuple[list[nn.Linear], Tensor]]:
    """Linear maps that read the very same states, together, and each channel's largest, (I,)."""
    groups: list[tuple[list[nn.Linear], Tensor]] = []
    group_of: dict[nn.Module, int] = {}
    read: list[Tensor | None] = [None]

    def seen(linear: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        (states,) = inputs
        largest = states.detach()[:, SINKS:].abs().flatten(0, -2).amax(0)
        if linear not in group_of:
            if states is read[0]:
                groups[-1][0].append(linear)
            else:
                groups.append(([linear], torch.zeros_like(largest)))
            group_of[linear] = len(groups) - 1
        torch.maximum(groups[group_of[linear]][1], largest, out=groups[group_of[linear]][1])
        read[0] = states

    found = [each for each in llm.modules() if type(each) is nn.Linear]
    hooks = [linear.register_forward_pre_hook(seen) for linear in found]
    try:
        with torch.inference_mode():
            for ids in prompts:
                llm(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return groups


@contextmanager
def exactly(llm: nn.Module) -> Iterator[None]:
    """Meanwhile an LLM multiplies as it did before it was made int8, but for bfloat16 weights."""
    found = {each.activations for each in llm.modules() if isinstance(each, Int8Linear)}
    for activations in found:
        activations.exact = True
    try:
        yield
    finally:
        for activations in found:
            activations.exact = False
