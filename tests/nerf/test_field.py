"""F_θ (Eq. 4): encodings against oracles, and what the codes may and may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from t3d import codes
from t3d.nerf.field import Field, fourier_features, sample_plane


def test_fourier_features_are_the_sines_and_cosines_of_doubling_frequencies():
    point = np.array([0.3, -0.7, 0.1])
    got = np.asarray(fourier_features(jnp.asarray(point), 3))
    expected = list(point)
    for k in range(3):
        expected += list(np.sin(2.0**k * point)) + list(np.cos(2.0**k * point))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_plane_lookup_equals_scipys_bilinear_interpolation():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(9, 9, 2)).astype(np.float32)
    where = rng.uniform(-1.2, 1.2, (50, 2)).astype(np.float32)
    got = sample_plane(jnp.asarray(plane), jnp.asarray(where))
    at = (np.clip(where, -1, 1) + 1) / 2 * 8
    for channel in range(2):
        expected = map_coordinates(plane[..., channel], [at[:, 1], at[:, 0]], order=1)
        np.testing.assert_allclose(got[:, channel], expected, atol=1e-5)


def head(seed: int, batch: int = 2) -> codes.HeadCodes:
    keys = jax.random.split(jax.random.key(seed), len(codes.WIDTHS))
    return codes.HeadCodes(
        **{n: jax.random.normal(k, (batch, w)) for k, (n, w) in zip(keys, codes.WIDTHS.items())}
    )


@pytest.fixture(scope="module", params=["fourier", "planes"])
def field(request):
    field = Field(width=16, depth=6, features=8, encoding=request.param, resolutions=(8,))
    points = jax.random.uniform(jax.random.key(1), (2, 5, 3), minval=-10, maxval=10)
    params = field.init(jax.random.key(0), points, head(0), jnp.zeros((2, 3)))
    return field, params, points


def test_density_is_positive_and_depends_on_the_shape_codes_alone(field):
    field, params, points = field
    feature, density = field.apply(params, points, head(0), jnp.zeros((2, 3)))
    assert feature.shape == (2, 5, 8) and density.shape == (2, 5) and (density > 0).all()
    relit = head(0).replace(illumination=head(1).illumination, albedo=head(1).albedo)
    other, same = field.apply(params, points, relit, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(density, same)
    assert np.abs(other - feature).max() > 1e-4
    for name in ("identity", "expression_speech", "expression_style"):
        moved = head(0).replace(**{name: getattr(head(1), name)})
        assert np.abs(field.apply(params, points, moved, jnp.zeros((2, 3)))[1] - density).max() > 0


def test_a_point_does_not_feel_its_neighbours_nor_their_order(field):
    field, params, points = field
    both = field.apply(params, points, head(0), jnp.zeros((2, 3)))
    turned = field.apply(params, points[:, ::-1], head(0), jnp.zeros((2, 3)))
    for a, b in zip(both, turned):
        np.testing.assert_allclose(a, b[:, ::-1], atol=1e-5)


def test_the_last_layer_of_a_weighted_sum_is_the_weighted_sum_of_its_results(field):
    field, params, points = field
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases begin at zero
    colour, density = field.apply(params, points, head(0), jnp.zeros((2, 3)), method="shade")
    feature, same = field.apply(params, points, head(0), jnp.zeros((2, 3)))
    np.testing.assert_array_equal(density, same)
    share = jax.random.uniform(jax.random.key(2), density.shape)
    summed = jnp.einsum("bn,bnc->bc", share, colour)
    out = field.apply(params, summed, share.sum(1), method=lambda field, *args: field.out(*args))
    want = jnp.einsum("bn,bnc->bc", share, feature)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_at_extreme_codes_and_far_points(field):
    field, params, _ = field
    extreme = jax.tree.map(lambda x: 100 * x, head(0))
    points = jnp.full((2, 5, 3), 1e3)

    def total(params, extreme):
        feature, density = field.apply(params, points, extreme, jnp.zeros((2, 3)))
        return feature.sum() + density.sum()

    grads = jax.grad(total, (0, 1))(params, extreme)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
