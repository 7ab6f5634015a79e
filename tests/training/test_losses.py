import math

import pytest
import torch

from training.losses import infonce, sampled_softmax, soft_target


def test_sampled_softmax_by_hand() -> None:
    # One state; its positive has logit 2, two negatives have 1 and 0.
    state = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[2.0, 5.0]])
    negatives = torch.tensor([[1.0, -3.0], [0.0, 1.0]])

    loss = sampled_softmax(state, positive, negatives, torch.zeros(1, 2, dtype=torch.bool))

    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(0)))
    assert float(loss) == pytest.approx(expected)


def test_a_negative_that_is_the_next_item_is_left_out() -> None:
    state = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[2.0, 0.0]])
    negatives = torch.cat([positive, torch.tensor([[0.0, 1.0]])])

    loss = sampled_softmax(state, positive, negatives, torch.tensor([[True, False]]))

    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)))


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
    probability = math.exp(2) / (math.exp(2) + 1)  # cosines 1 and 0 at temperature 0.5
    entropy = -sum(p * math.log(p) for p in (probability, 1 - probability))

    assert float(soft_target(pairs, pairs, temperature=0.5)) == pytest.approx(entropy)


def test_soft_targets_carry_no_gradient_and_large_vectors_do_not_overflow() -> None:
    left = (torch.randn(4, 8) * 1e4).requires_grad_()
    right = torch.randn(4, 8) * 1e4

    soft_target(left, right, 0.05).backward()

    assert left.grad is not None
    assert torch.isfinite(left.grad).all()
