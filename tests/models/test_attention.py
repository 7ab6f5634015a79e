import pytest
import torch

from models.attention import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.75])
def test_dropout_zeroes_that_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)

    found = Dropout(probability)(torch.ones(1000, 333))

    kept = found[found > 0]
    assert 1 - len(kept) / found.numel() == pytest.approx(probability, abs=0.005)
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)
    assert kept.unique().numel() == 1  # all scaled alike


def test_dropout_draws_every_place_by_itself_and_anew() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.5)

    masks = torch.stack([dropout(torch.ones(64)) > 0 for _ in range(4000)]).float()

    assert (masks.mean(dim=0) - 0.5).abs().max() < 0.05
    together = torch.corrcoef(masks.T) - torch.eye(64)
    assert together.abs().max() < 0.1


def test_dropout_leaves_all_as_it_is_outside_training() -> None:
    values = torch.randn(3, 5)

    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    with pytest.raises(ValueError, match="dropout 1"):
        Dropout(1)
