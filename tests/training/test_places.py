import numpy as np
import torch

from training.config import NeighboursSpec
from training.interactions import Rows
from training.places import PlaceHead, collaborative_places

SPEC = NeighboursSpec()


def two_camps() -> list[Rows]:
    """Users who buy among items 1 to 10, and users who buy among 11 to 20; nobody buys 21."""
    random = np.random.default_rng(0)
    return [
        (random.permutation(10)[:6] + 1 + 10 * (user % 2)).astype(np.int32) for user in range(80)
    ]


def test_what_is_bought_together_has_places_nearby_and_others_far() -> None:
    places = collaborative_places(two_camps(), 21, SPEC)

    near = places @ places.T
    first, second = near[:10, :10], near[10:20, 10:20]
    assert min(first.mean(), second.mean()) > near[:10, 10:20].mean() + 0.1


def test_places_have_unit_length_and_an_item_that_nobody_bought_has_none() -> None:
    places = collaborative_places(two_camps(), 21, SPEC)

    np.testing.assert_allclose(np.linalg.norm(places[:20], axis=1), 1, atol=1e-5)
    assert not places[20].any()


def test_the_same_histories_give_the_same_places() -> None:
    assert np.array_equal(
        collaborative_places(two_camps(), 21, SPEC), collaborative_places(two_camps(), 21, SPEC)
    )


def test_vectors_that_know_the_place_are_told_from_vectors_that_do_not() -> None:
    random = np.random.default_rng(1)
    places = random.normal(size=(300, 8)).astype(np.float32)
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    knowing = (places @ random.normal(size=(8, 24)) + random.normal(size=24)).astype(np.float32)
    noise = random.normal(size=knowing.shape).astype(np.float32)
    rows = np.arange(300)

    heads = [PlaceHead(each, places, temperature=0.1, seed=0) for each in (knowing, noise)]
    with torch.inference_mode():
        known, random_loss = (
            float(head(torch.tensor(each), rows))
            for head, each in zip(heads, (knowing, noise), strict=True)
        )

    assert known < random_loss - 0.2
