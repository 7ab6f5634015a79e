"""LoRA in fewer passes is peft's LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from training.lora import fuse


class Two(nn.Module):
    """Two maps, of which one has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x)))
        return found


def with_lora(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PeftModel:
    torch.manual_seed(0)
    lora = LoraConfig(
        r=2,
        lora_alpha=6,
        lora_dropout=dropout,
        target_modules=["first", "second"],
        init_lora_weights=False,
    )
    return get_peft_model(Two().to(dtype), lora)  # type: ignore[arg-type]


def found_by(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    """What it gives, and the gradients of the sum of its squares."""
    out = model(x)
    out.square().sum().backward()
    told = {"out": out.detach(), **({"x": x.grad} if x.grad is not None else {})}
    return told | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("asked", [True, False], ids=["with", "without"])
def test_values_and_gradients_are_those_of_peft(asked: bool) -> None:
    theirs = with_lora()
    ours = copy.deepcopy(theirs)
    fuse(ours)
    x = torch.randn(2, 7, 5)

    expected = found_by(theirs, x.clone().requires_grad_(asked))
    found = found_by(ours, x.clone().requires_grad_(asked))

    assert found.keys() == expected.keys()
    assert len([name for name in found if "lora_" in name]) == 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_in_bfloat16_they_are_as_near_as_that_can_be() -> None:
    theirs = with_lora(dtype=torch.bfloat16)
    ours = copy.deepcopy(theirs)
    fuse(ours)
    x = torch.randn(2, 7, 5).bfloat16()

    expected, found = found_by(theirs, x), found_by(ours, x)

    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, atol=0.05, rtol=0.05)


def test_with_dropout_gradients_are_those_of_the_numbers_that_it_kept() -> None:
    model = with_lora(dropout=0.4)
    fuse(model)
    layer = model.base_model.model.second
    parts = (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    base, down, up = (part.weight for part in parts)
    x = torch.randn(6, 4, requires_grad=True)
    torch.manual_seed(1)
    out = layer(x)
    # Of each column, alone, LoRA's part tells whether it was kept, and by what it grew.
    one = torch.eye(4)[:, None].expand(-1, 6, -1)
    grew = []
    for column in one:
        torch.manual_seed(1)
        told = layer(column) - column @ base.T - layer.base_layer.bias
        alone = 3 * column @ down.T @ up.T
        grew.append((told * alone).sum(1) / alone.square().sum(1))
    kept = torch.stack(grew, 1).detach()  # (6, 4), 0 or 1 / .6

    expected = x @ base.T + layer.base_layer.bias + 3 * (x * kept) @ down.T @ up.T

    assert {round(each, 3) for each in kept.flatten().tolist()} == {0.0, 1.667}
    torch.testing.assert_close(out, expected)
    asked = (x, down, up)
    of_ours = torch.autograd.grad(out.square().sum(), asked)
    of_expected = torch.autograd.grad(expected.square().sum(), asked)
    torch.testing.assert_close(of_ours, of_expected)


def test_dropout_takes_its_share_and_leaves_the_mean_and_none_when_nothing_is_tuned() -> None:
    model = with_lora(dropout=0.25)
    fuse(model)
    layer = model.base_model.model.first
    whole = torch.ones(40_000, 5)
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            getattr(layer, name)["default"].weight.fill_(1 / 5)
        layer.base_layer.weight.zero_()

        drawn = layer(whole)[:, 0]
        model.eval()
        plain = layer(whole)[:, 0]

    # 3 * (2 / 5) * the mean of what is kept, of five numbers each.
    torch.testing.assert_close(plain, torch.full_like(plain, 1.2))
    assert drawn.mean().item() == pytest.approx(1.2, abs=0.01)
    none, few = ((drawn == 0).float().mean().item(), 0.25**5)
    assert none == pytest.approx(few, abs=0.001)
    assert drawn.max().item() == pytest.approx(1.2 / 0.75)


def test_a_map_is_its_own_and_the_scaled_product_of_lora() -> None:
    model = with_lora()
    fuse(model)
    layer = model.base_model.model.first
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 5)

    found = layer(x)

    scale = 6 / 2  # lora_alpha over the rank
    torch.testing.assert_close(found, x @ (layer.base_layer.weight + scale * up @ down).T)
