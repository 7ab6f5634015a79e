"""LoRA's maps while an LLM is tuned, with fewer passes over memory than peft's.

Peft adds `up(down(x)) * scale` to a frozen map by operations of their own, each of which reads and
writes as much as the map gives, forwards and back. Here the matrix product itself adds in place,
and dropout, which torch's generator gives an element at a time, comes of its bits by four.
Source of the formula: LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

LEVELS = 1 << 16  # of a chance: the numbers that 16 random bits make


class _Adapted(torch.autograd.Function):
    """x W^T + bias + scale * ((x * kept) down^T) up^T, with gradients to x, down and up.

    Products are in the dtype of W and x, gradients of down and up in float32, as these are.
    `kept` is a bool of each number of x; without it all are.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        kept: Tensor | None,
    ) -> Tensor:
        down, up = down.to(weight.dtype), up.to(weight.dtype)
        flat = x.reshape(-1, x.shape[-1])
        low = _of_kept(flat, kept) @ down.T
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        out.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(flat, low, weight, down, up, kept)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401 - torch's
        flat, low, weight, down, up, kept = ctx.saved_tensors
        told = gradient.reshape(-1, gradient.shape[-1])
        of_low = (told @ up).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = told @ weight
            if kept is None:
                of_x.addmm_(of_low, down)
            else:
                of_x.add_(_of_kept(of_low @ down, kept))
            of_x = of_x.view(*gradient.shape[:-1], -1)
        of_down, of_up = of_low.T @ _of_kept(flat, kept), (told.T @ low).mul_(ctx.scale)
        return of_x, None, None, of_down.float(), of_up.float(), None, None


def _of_kept(flat: Tensor, kept: Tensor | None) -> Tensor:
    """A matrix with 0 where nothing is kept."""
    # Torch multiplies by a number of the same dtype five times as fast as by a bool.
    return flat if kept is None else flat * kept.to(flat.dtype)


def _drawn(x: Tensor, dropped: int) -> Tensor:
    """Which numbers of x (..., D) are kept: (n, D) bool; each not, by a chance of dropped/LEVELS.

    By torch's generator, as torch.dropout draws.
    """
    count = x.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None)  # all 64 of them
    drawn = bits.view(torch.int16)[:count].view(-1, x.shape[-1])
    return drawn >= dropped - LEVELS // 2  # the least of them is -LEVELS / 2


def fuse(tuned: nn.Module) -> None:
    """Have the LoRA maps of peft's model compute the same in fewer passes.

    On maps of torch's own, that is; the others stay as they are. Parameters are float32 when it
    runs; they, their names and what peft writes stay the same. A chance of dropout is taken to the
    nearest of LEVELS.
    """
    for module in tuned.modules():
        if isinstance(module, LoraLinear) and _plain(module):
            module.forward = _Map(module)  # type: ignore[method-assign]


def _plain(module: LoraLinear) -> bool:
    """Whether it is a map of torch's own and one adapter."""
    return type(module.base_layer) is nn.Linear and [*module.lora_A] == ["default"]


class _Map:
    """The forward pass of one of peft's maps."""

    def __init__(self, module: LoraLinear) -> None:
        self._base: nn.Linear = module.base_layer  # type: ignore[assignment]
        self._down = module.lora_A["default"]
        self._up = module.lora_B["default"]
        self._scale: float = module.scaling["default"]
        self._dropout = module.lora_dropout["default"]
        chance = getattr(self._dropout, "p", 0.0)
        self._dropped = min(round(chance * LEVELS), LEVELS - 1)

    def __call__(self, x: Tensor) -> Tensor:
        base, scale, kept = self._base, self._scale, None
        if self._dropped and self._dropout.training:
            kept = _drawn(x, self._dropped)
            scale /= 1 - self._dropped / LEVELS  # so that the mean stays
        found: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, self._down.weight, self._up.weight, scale, kept
        )
        return found
