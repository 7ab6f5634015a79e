"""LoRA's maps while an LLM is tuned, with fewer passes over memory than peft's.

Peft adds `up(down(x)) * scale` to a frozen map by operations of their own, each of which reads and
writes as much as the map gives, forwards and back. Here the matrix product itself adds in place.
Source of the formula: LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class _Adapted(torch.autograd.Function):
    """x W^T + bias + scale * (x down^T) up^T, with gradients to x, down and up.

    Products are in the dtype of W and x, gradients of down and up in float32, as these are.
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
    ) -> Tensor:
        down, up = down.to(weight.dtype), up.to(weight.dtype)
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ down.T
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        out.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(flat, low, weight, down, up)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401 - torch's
        flat, low, weight, down, up = ctx.saved_tensors
        told = gradient.reshape(-1, gradient.shape[-1])
        of_low = (told @ up).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (told @ weight).addmm_(of_low, down).view(*gradient.shape[:-1], -1)
        of_down, of_up = of_low.T @ flat, (told.T @ low).mul_(ctx.scale)
        return of_x, None, None, of_down.float(), of_up.float(), None


def fuse(tuned: nn.Module) -> None:
    """Have the LoRA maps of peft's model compute the same in fewer passes.

    Those without dropout on maps of torch's own, that is; the others stay as they are. Parameters
    are float32 when it runs; they, their names and what peft writes stay the same.
    """
    for module in tuned.modules():
        if isinstance(module, LoraLinear) and _plain(module):
            module.forward = _Map(module)  # type: ignore[method-assign]


def _plain(module: LoraLinear) -> bool:
    """Whether it is a map of torch's own and one adapter without dropout."""
    base = module.base_layer
    return (
        type(base) is nn.Linear
        and [*module.lora_A] == ["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
    )


class _Map:
    """The forward pass of one of peft's maps."""

    def __init__(self, module: LoraLinear) -> None:
        self._base: nn.Linear = module.base_layer  # type: ignore[assignment]
        self._down = module.lora_A["default"]
        self._up = module.lora_B["default"]
        self._scale: float = module.scaling["default"]

    def __call__(self, x: Tensor) -> Tensor:
        base = self._base
        found: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, self._down.weight, self._up.weight, self._scale
        )
        return found
