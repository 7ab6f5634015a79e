import numpy as np

from models.plane import Plane


def test_the_farthest_vector_stands_at_the_edge_and_the_scale_is_one() -> None:
    # Twice as wide as high; the third number is the same in all.
    vectors = np.array([[4, 0, 7], [-4, 0, 7], [0, 2, 7], [0, -2, 7]], np.float32)

    places = Plane.fit(vectors).places(vectors)

    np.testing.assert_allclose(places, [[1, 0], [-1, 0], [0, 0.5], [0, -0.5]], atol=1e-6)


def test_equal_vectors_give_equal_planes_in_any_order() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)

    one, other = Plane.fit(vectors), Plane.fit(vectors[::-1])

    np.testing.assert_allclose(one.axes, other.axes, atol=1e-6)
    assert (one.axes[np.abs(one.axes).argmax(axis=0), [0, 1]] > 0).all()


def test_a_vector_beyond_the_fitted_ones_stands_at_the_edge() -> None:
    vectors = np.array([[1, 0], [-1, 0], [0, 0.5], [0, -0.5]], np.float32)

    far = Plane.fit(vectors).places(np.array([[9, 0], [-9, -9]], np.float32))

    np.testing.assert_allclose(far, [[1, 0], [-1, -1]])


def test_vectors_of_one_number_or_all_alike_have_places() -> None:
    line = np.array([[2], [0], [-2]], np.float32)
    alike = np.ones((3, 4), np.float32)

    np.testing.assert_allclose(Plane.fit(line).places(line), [[1, 0], [0, 0], [-1, 0]])
    np.testing.assert_allclose(Plane.fit(alike).places(alike), np.zeros((3, 2)))
