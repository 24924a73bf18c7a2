"""Eq. 5 against closed forms and a fine quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.nerf.integral import integrate, weights


def test_constant_density_is_exact_whatever_the_intervals():
    sigma, near, far = 0.7, 3.0, 5.5
    for edges in (np.linspace(near, far, 3), np.array([3.0, 3.1, 4.9, 5.0, 5.5])):
        n = len(edges) - 1
        hit = integrate(
            jnp.full((1, n), sigma), jnp.ones((1, n, 2)), jnp.asarray(edges)[None], jnp.ones(1)
        )
        np.testing.assert_allclose(hit.alpha, 1 - np.exp(-sigma * (far - near)), rtol=1e-6)
        np.testing.assert_allclose(hit.feature, 1 - np.exp(-sigma * (far - near)), rtol=1e-6)


def test_integral_equals_a_brute_force_quadrature_of_equation_5():
    rng = np.random.default_rng(0)
    density = rng.uniform(0, 3, 5)
    values = rng.normal(size=5)
    edges = np.sort(rng.uniform(1, 4, 6))
    stretch = 1.3
    t = np.linspace(edges[0], edges[-1], 400_001)
    middle = 0.5 * (t[1:] + t[:-1])
    cell = np.clip(np.searchsorted(edges, middle) - 1, 0, 4)
    step = np.diff(t) * stretch
    optical = np.cumsum(density[cell] * step) - 0.5 * density[cell] * step
    expected = np.sum(density[cell] * values[cell] * np.exp(-optical) * step)
    hit = integrate(
        jnp.asarray(density)[None],
        jnp.asarray(values)[None, :, None],
        jnp.asarray(edges)[None],
        jnp.full(1, stretch),
    )
    np.testing.assert_allclose(hit.feature[0, 0], expected, rtol=1e-4)


def test_splitting_an_interval_leaves_the_integral_unchanged():
    density = jnp.array([[0.5, 2.0]])
    features = jnp.array([[[1.0], [3.0]]])
    whole = integrate(density, features, jnp.array([[0.0, 1.0, 2.0]]), jnp.ones(1))
    split = integrate(
        jnp.repeat(density, 2, -1),
        jnp.repeat(features, 2, -2),
        jnp.array([[0.0, 0.4, 1.0, 1.7, 2.0]]),
        jnp.ones(1),
    )
    np.testing.assert_allclose(whole.feature, split.feature, rtol=1e-6)
    np.testing.assert_allclose(whole.alpha, split.alpha, rtol=1e-6)


def test_weights_are_shares_of_at_most_one_and_an_opaque_sample_hides_the_rest():
    density = jnp.array([0.0, 1e6, 5.0])
    share = weights(density, jnp.ones(3))
    np.testing.assert_allclose(share, [0.0, 1.0, 0.0], atol=1e-6)


def test_depth_of_a_wall_is_the_middle_of_its_interval():
    hit = integrate(
        jnp.array([[0.0, 1e3, 0.0]]),
        jnp.ones((1, 3, 1)),
        jnp.array([[1.0, 2.0, 2.5, 9.0]]),
        jnp.ones(1),
    )
    np.testing.assert_allclose(hit.depth, 2.25, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1.0, 1e4, 1e8])
def test_gradients_are_finite_for_empty_and_opaque_rays(sigma):
    def total(density, features):
        edges = jnp.linspace(1.0, 2.0, 5)[None]
        hit = integrate(density, features, edges, jnp.ones(1))
        return hit.feature.sum() + hit.alpha.sum() + hit.depth.sum()

    grads = jax.grad(total, (0, 1))(jnp.full((1, 4), sigma), jnp.ones((1, 4, 3)))
    assert all(np.isfinite(g).all() for g in grads)
