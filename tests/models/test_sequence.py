import numpy as np
import pytest
import torch

from models.sasrec import SASRec
from models.sequence import build, last_states

MODELS = ["sasrec", "gru4rec", "bert4rec"]


@pytest.fixture(params=MODELS)
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

    torch.testing.assert_close(padded, plain)


def test_a_state_reads_every_item_and_their_order(model: torch.nn.Module) -> None:
    history = torch.randn(1, 4, 8)
    valid = torch.ones(1, 4, dtype=torch.bool)
    state = model(history, valid)

    for place in range(4):
        changed = history.clone()
        changed[0, place] = torch.randn(8)
        assert not torch.allclose(model(changed, valid), state, atol=1e-4), place
    assert not torch.allclose(model(history.flip(1), valid), state, atol=1e-4)


def test_no_prediction_sees_the_item_it_is_to_find(model: torch.nn.Module) -> None:
    history = torch.randn(4, 6, 8)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[1, :3] = False
    torch.manual_seed(1)
    before, places = model.predictions(history, valid)  # type: ignore[operator]
    assert len(before) == len(places) > 0
    assert valid.flatten()[places].all()

    for place in range(24):
        changed = history.clone().view(24, 8)
        changed[place] = torch.randn(8)
        torch.manual_seed(1)  # the same items are masked
        after, same = model.predictions(changed.view(4, 6, 8), valid)  # type: ignore[operator]
        assert same.equal(places)
        torch.testing.assert_close(after[places == place], before[places == place])


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_in_a_causal_model_a_later_item_never_changes_an_earlier_state(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, dim=8, max_history=12, dropout=0.0).eval()
    history = torch.randn(1, 5, 8)
    changed = history.clone()
    changed[0, 3] = torch.randn(8)
    valid = torch.ones(1, 5, dtype=torch.bool)

    before, places = model.predictions(history, valid)  # type: ignore[operator]
    after, _ = model.predictions(changed, valid)  # type: ignore[operator]

    assert places.tolist() == [1, 2, 3, 4]  # every item but the first is to be found
    torch.testing.assert_close(after[:3], before[:3])
    assert not torch.allclose(after[3], before[3])


def test_bert4rec_also_reads_what_comes_after_a_masked_item() -> None:
    torch.manual_seed(0)
    model = build("bert4rec", dim=8, max_history=12, dropout=0.0, masked=0.5).eval()
    history = torch.randn(64, 5, 8)
    valid = torch.ones(64, 5, dtype=torch.bool)
    torch.manual_seed(1)
    before, places = model.predictions(history, valid)  # type: ignore[operator]
    changed = history.clone()
    changed[:, 4] = torch.randn(64, 8)
    torch.manual_seed(1)
    after, _ = model.predictions(changed, valid)  # type: ignore[operator]

    hidden = places.view(-1)
    early = hidden % 5 == 0
    last_shown = ~torch.isin(hidden // 5 * 5 + 4, hidden)
    assert (early & last_shown).any()
    assert not torch.allclose(after[early & last_shown], before[early & last_shown])


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


def test_an_option_that_the_model_lacks_is_refused(model: torch.nn.Module) -> None:
    name = type(model).__name__.lower()
    with pytest.raises(ValueError, match=f"{name}: .*depth"):
        build(name, dim=8, max_history=3, depth=2)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_heads_must_divide_the_width(name: str) -> None:
    with pytest.raises(ValueError, match="dim 8 is not divisible by 3 heads"):
        build(name, dim=8, max_history=3, heads=3)


def test_a_history_longer_than_the_model_reads_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="a history of 13 items exceeds 12"):
        model(torch.zeros(1, 13, 8), torch.ones(1, 13, dtype=torch.bool))


def test_the_mean_model_averages_without_padding_and_the_latest_counts_most() -> None:
    items = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [3.0, 2.0]]])
    valid = torch.tensor([[False, True, True]])

    assert build("mean", dim=2, max_history=3)(items, valid).tolist() == [[2.0, 1.0]]
    # Weights 0.5 and 1 of 1.5.
    decayed = build("mean", dim=2, max_history=3, decay=0.5)(items, valid)
    torch.testing.assert_close(decayed, torch.tensor([[3.5 / 1.5, 2 / 1.5]]))


def test_a_decay_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay 1\.5 must be above 0"):
        build("mean", dim=2, max_history=3, decay=1.5)


def test_the_latest_state_alone_is_the_last_of_all_states() -> None:
    torch.manual_seed(0)
    model = SASRec(dim=8, max_history=6, layers=2).eval()
    items = torch.randn(3, 5, 8)
    valid = torch.tensor([[True] * 5, [False] * 2 + [True] * 3, [False] * 4 + [True]])

    torch.testing.assert_close(model(items, valid), model.states(items, valid)[:, -1])
