import math

import pytest
import torch

from training.losses import gbce, infonce, next_item_loss, soft_target

NONE = torch.zeros(1, 2, dtype=torch.bool)


def test_sampled_softmax_by_hand() -> None:
    # One state; its positive has logit 2, two negatives have 1 and 0.
    state = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[2.0, 5.0]])
    negatives = torch.tensor([[1.0, -3.0], [0.0, 1.0]])

    loss = next_item_loss("sampled_softmax", state, positive, negatives, NONE, items=50)

    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(0)))
    assert float(loss) == pytest.approx(expected)


def test_a_negative_that_is_the_next_item_is_left_out() -> None:
    state = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[2.0, 0.0]])
    negatives = torch.cat([positive, torch.tensor([[0.0, 1.0]])])

    collides = torch.tensor([[True, False]])
    loss = next_item_loss("sampled_softmax", state, positive, negatives, collides, items=50)

    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)))


def test_the_full_softmax_is_the_cross_entropy_over_all_items() -> None:
    items = torch.randn(7, 4)
    states, targets = torch.randn(3, 4), torch.tensor([0, 6, 2])
    own = targets[:, None] == torch.arange(7)[None]

    loss = next_item_loss("softmax", states, items[targets], items, own, items=7)

    expected = torch.nn.functional.cross_entropy(states @ items.T, targets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_gbce_by_hand() -> None:
    # 2 of 10 other items drawn, t = 0.5: the rate is 0.2, the power 0.2 (0.5 (1 - 5) + 5) = 0.6.
    right, wrong = 1.5, (-0.5, 2.0)

    loss = gbce(torch.tensor([[right]]), torch.tensor([wrong]), items=11, calibration=0.5)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    terms = [0.6 * math.log(sigmoid(right)), *(math.log(1 - sigmoid(x)) for x in wrong)]
    assert float(loss) == pytest.approx(-sum(terms) / 3)


def test_gbce_with_more_negatives_than_items_is_binary_cross_entropy() -> None:
    many = torch.zeros(1, 8)

    found = gbce(torch.tensor([[1.0]]), many, items=5)

    assert float(found) == pytest.approx(float(gbce(torch.tensor([[1.0]]), many, 5, 0.0)))


def test_bce_is_binary_cross_entropy_with_one_negative() -> None:
    state = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[2.0, 0.0]])
    negatives = torch.tensor([[0.5, 0.0], [0.5, 9.0]])  # logit 0.5, whichever is drawn

    loss = next_item_loss("bce", state, positive, negatives, NONE, items=50)

    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 - 1 / (1 + math.exp(-0.5)))) / 2
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bce"])
def test_a_negative_that_collides_gives_no_gradient_that_is_no_number(loss: str) -> None:
    state = torch.tensor([[1.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[2.0, 0.0]])
    negatives = torch.cat([positive, torch.tensor([[0.0, 1.0]])])

    collides = torch.tensor([[True, False]])
    next_item_loss(loss, state, positive, negatives, collides, items=9).backward()  # type: ignore[arg-type]

    assert state.grad is not None
    assert torch.isfinite(state.grad).all()


def test_infonce_by_hand() -> None:
    # Orthogonal pairs: own cosine 1, other cosine 0, in both directions.
    pairs = torch.tensor([[3.0, 0.0], [0.0, 0.1]])

    loss = infonce(pairs, pairs, temperature=0.5)

    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))


def test_items_of_the_same_text_are_no_negatives_of_each_other() -> None:
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    same = torch.ones(2, 2, dtype=torch.bool)

    assert float(infonce(twins, twins, 0.05)) == pytest.approx(math.log(2))
    assert float(infonce(twins, twins, 0.05, same)) == pytest.approx(0.0)


def test_soft_target_by_hand() -> None:
    pairs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Cosines 1 and 0 at temperature 4.5: logits 1/4.5 and 0, targets of nine times as much.
    found, wanted = (math.exp(each) / (math.exp(each) + 1) for each in (1 / 4.5, 2))
    expected = -wanted * math.log(found) - (1 - wanted) * math.log(1 - found)

    assert float(soft_target(pairs, pairs, temperature=4.5)) == pytest.approx(expected)


def test_soft_targets_take_items_apart_that_are_near_each_other() -> None:
    # As an LLM's vectors are: all about alike, two copies of an item somewhat more so. With
    # targets no sharper than the logits a map that is learnt takes all of them to one place.
    torch.manual_seed(0)
    items, weight = torch.randn(64, 32), torch.eye(32, requires_grad=True)

    def copies() -> tuple[torch.Tensor, torch.Tensor]:
        left, right = ((4 + items + torch.randn(64, 32)) @ weight.T for _ in range(2))
        return left, right

    def others() -> float:
        left, right = (torch.nn.functional.normalize(each.detach(), dim=-1) for each in copies())
        return float((left @ right.T)[~torch.eye(64, dtype=torch.bool)].mean())

    assert others() == pytest.approx(0.89, abs=0.01)
    optimiser = torch.optim.Adam([weight], lr=0.003)
    for _ in range(60):
        optimiser.zero_grad()
        soft_target(*copies(), temperature=0.05).backward()
        optimiser.step()

    assert others() < 0.2


def test_soft_targets_carry_no_gradient_and_large_vectors_do_not_overflow() -> None:
    left = (torch.randn(4, 8) * 1e4).requires_grad_()
    right = torch.randn(4, 8) * 1e4

    soft_target(left, right, 0.05).backward()

    assert left.grad is not None
    assert torch.isfinite(left.grad).all()
