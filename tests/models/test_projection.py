import numpy as np
import pytest
import torch

from models.projection import Activation, Projection

RANDOM = np.random.default_rng(0)


def vectors(count: int = 200, width: int = 6) -> np.ndarray:
    mix = RANDOM.normal(size=(width, width))
    return (RANDOM.normal(size=(count, width)) @ mix + 5.0).astype(np.float32)


def scaled(projection: Projection, given: np.ndarray) -> np.ndarray:
    return ((torch.from_numpy(given) - projection.mean) @ projection.directions).numpy()


def test_whitening_gives_mean_zero_and_the_identity_as_covariance() -> None:
    given = vectors()
    projection = Projection(6, (4, 3), "whiten")

    projection.fit(given)

    white = scaled(projection, given)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(4), atol=1e-3)


def test_principal_directions_keep_what_lengths_and_angles_they_can() -> None:
    given = vectors()
    centred = given - given.mean(axis=0)
    whole, cut = (Projection(6, (width, 3), "pca") for width in (6, 2))
    for projection in (whole, cut):
        projection.fit(given)

    turned = scaled(whole, given)
    np.testing.assert_allclose(turned @ turned.T, centred @ centred.T, atol=0.02)
    np.testing.assert_array_equal(scaled(cut, given), turned[:, :2])
    assert (np.diff(turned.var(axis=0)) <= 0).all()


def test_without_layers_item_vectors_are_the_scaled_vectors() -> None:
    given = vectors()
    projection = Projection(6, (2,), "pca", unit=False)

    projection.fit(given)

    np.testing.assert_array_equal(projection(torch.from_numpy(given)), scaled(projection, given))
    assert projection.dim == 2


def test_standardising_gives_every_dimension_variance_one_and_a_constant_one_zero() -> None:
    given = vectors()
    given[:, 2] = 7.0
    projection = Projection(6, (6, 3), "standardise")

    projection.fit(given)

    np.testing.assert_allclose(scaled(projection, given).std(axis=0), [1, 1, 0, 1, 1, 1], atol=1e-4)


def test_fewer_items_than_directions_do_no_harm() -> None:
    projection = Projection(6, (6, 3), "whiten")

    projection.fit(vectors(count=3))

    assert np.isfinite(projection(torch.from_numpy(vectors(5))).detach().numpy()).all()


def test_a_batch_equals_its_singles_and_vectors_have_length_one() -> None:
    given = vectors(5)
    projection = Projection(6, (4, 3), "whiten")
    projection.fit(given)

    together = projection(torch.from_numpy(given)).detach()

    alone = torch.stack([projection(torch.from_numpy(row)).detach() for row in given])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(("activation", "linear"), [("none", True), ("gelu", False)])
def test_two_layers_are_one_linear_map_but_with_an_activation(
    activation: Activation, linear: bool
) -> None:
    one, other = torch.from_numpy(vectors(2))
    projection = Projection(6, (6, 32, 3), "centre", unit=False, activation=activation)

    between = projection((one + other) / 2)

    mean = (projection(one) + projection(other)) / 2
    assert torch.allclose(between, mean, atol=1e-5) == linear


def test_fresh_layers_leave_the_fitted_scaling() -> None:
    given = vectors(20)
    projection = Projection(6, (4, 8, 3), activation="gelu")
    projection.fit(given)
    before = {name: value.clone() for name, value in projection.state_dict().items()}

    projection.reset_parameters()

    changed = {n for n, value in projection.state_dict().items() if not value.equal(before[n])}
    assert changed == {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}


@pytest.mark.parametrize(
    ("dims", "scaling"),
    [((), "whiten"), ((4, 0), "pca"), ((7, 3), "whiten"), ((7, 3), "pca"), ((4, 3), "centre")],
)
def test_widths_that_do_not_fit_are_refused(dims: tuple[int, ...], scaling: str) -> None:
    with pytest.raises(ValueError, match="dims"):
        Projection(6, dims, scaling)  # type: ignore[arg-type]
