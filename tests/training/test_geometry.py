import numpy as np
import pytest

from training.geometry import geometry, nearest, plane


def test_vectors_that_all_point_one_way_have_mean_cosine_1_and_a_balanced_cross_minus_a_third() -> (
    None
):
    same = np.outer(np.arange(1, 6), [1, 2]).astype(np.float32)
    cross = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)

    assert geometry(same).mean_cosine == pytest.approx(1)
    assert geometry(cross).mean_cosine == pytest.approx(-1 / 3)  # (4 * -1 + 8 * 0) / 12


def test_nearest_are_the_nearest_others_by_cosine_whatever_the_lengths() -> None:
    vectors = np.array([[1, 0], [50, 1], [1, 1], [0, 1]], np.float32)

    assert nearest(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]] or nearest(
        vectors, 2
    ).tolist() == [[1, 2], [0, 2], [1, 3], [2, 1]]
    assert nearest(vectors, 9).shape == (4, 3)  # never itself


def test_a_hub_is_in_everybodys_ten_nearest_and_makes_the_skewness_large() -> None:
    random = np.random.default_rng(0)
    ring = np.stack(
        [np.cos(np.arange(60) / 60 * 2 * np.pi), np.sin(np.arange(60) / 60 * 2 * np.pi)]
    )
    even = geometry(ring.T.astype(np.float32))
    spread = random.normal(size=(200, 3000)).astype(np.float32)
    hub = np.concatenate([spread, spread.mean(axis=0, keepdims=True)])

    found = geometry(hub)

    assert (even.most, even.never) == (10, 0)  # everybody has the same ten places
    assert found.most > 150
    assert found.hubness > 5


def test_a_plane_shows_all_that_is_flat_and_turns_to_lie_as_another_does() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(30, 3)).astype(np.float32)
    vectors[:, 2] = 0
    points, shown = plane(vectors)
    turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)

    again, _ = plane(vectors @ turn, like=points)

    assert shown == pytest.approx(1)
    np.testing.assert_allclose(again, points, atol=1e-4)
