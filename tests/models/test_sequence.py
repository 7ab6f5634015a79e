import numpy as np
import pytest
import torch

from models.sequence import build, last_states


@pytest.fixture(params=["sasrec"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(request.param, dim=8, max_history=12, dropout=0.0).eval()


def test_padding_never_changes_a_state(model: torch.nn.Module) -> None:
    history = torch.randn(1, 3, 8)
    junk = torch.full((1, 2, 8), 9.0)

    plain = model(history, torch.ones(1, 3, dtype=torch.bool))
    padded = model(
        torch.cat([junk, history], dim=1), torch.tensor([[False, False, True, True, True]])
    )

    torch.testing.assert_close(padded[:, 2:], plain)


def test_a_later_item_never_changes_an_earlier_state(model: torch.nn.Module) -> None:
    history = torch.randn(1, 5, 8)
    changed = history.clone()
    changed[0, 3] = torch.randn(8)
    valid = torch.ones(1, 5, dtype=torch.bool)

    before, after = model(history, valid), model(changed, valid)

    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_last_states_of_a_batch_equal_those_of_its_singles(model: torch.nn.Module) -> None:
    random = np.random.default_rng(0)
    histories = [random.normal(size=(length, 8)).astype(np.float32) for length in (1, 4, 30)]

    together = last_states(model, histories, max_history=12)

    alone = [last_states(model, [history], max_history=12)[0] for history in histories]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(
        together[2], last_states(model, [histories[2][-12:]], max_history=12)[0], atol=1e-5
    )


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'lstm'; known: .*sasrec"):
        build("lstm", dim=8, max_history=3)


def test_an_option_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="sasrec: .*depth"):
        build("sasrec", dim=8, max_history=3, depth=2)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim 8 is not divisible by 3 heads"):
        build("sasrec", dim=8, max_history=3, heads=3)


def test_the_mean_model_averages_what_it_has_seen_without_padding() -> None:
    mean = build("mean", dim=2, max_history=3)
    items = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [3.0, 2.0]]])

    states = mean(items, torch.tensor([[False, True, True]]))

    assert states[0, 1:].tolist() == [[1.0, 0.0], [2.0, 1.0]]


def test_the_constant_model_says_the_same_of_every_history() -> None:
    constant = build("constant", dim=1, max_history=1)

    states = last_states(constant, [np.zeros((3, 1), np.float32), np.ones((1, 1), np.float32)], 1)

    assert states.tolist() == [[-1.0], [-1.0]]
