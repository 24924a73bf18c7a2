"""The Standardized Space: both codebooks, decoder, Eq. 11."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d.space import codebook as cb
from t3d.space import standardize as sp

TINY = {"n_au": 2, "dim": 8, "au_codes": 6, "global_codes": 16, "width": 16}


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    return image, jax.random.normal(jax.random.key(1), (2, 2, 8))


@pytest.fixture(scope="module")
def space(batch):
    net = sp.StandardizedSpace(**TINY)
    return jax.jit(net.apply), jax.jit(net.init)(jax.random.key(2), *batch)


def test_depth_to_space_undoes_space_to_depth():
    image = np.random.default_rng(0).random((2, 8, 12, 3))
    packed = sp.space_to_depth(image, 4)
    assert packed.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(packed[1, 0, 2].reshape(4, 4, 3), image[1, :4, 8:12])
    np.testing.assert_array_equal(sp.depth_to_space(packed, 4), image)


def test_a_frame_goes_through_both_codebooks(space, batch):
    apply, params = space
    image, aux = apply(params, *batch)
    assert image.shape == (2, 16, 16, 3) and image.min() >= 0 and image.max() <= 1
    assert aux["global"].indices.shape == (2, 4, 4)
    assert aux["au"].indices.shape == (2, 2) and aux["au"].counts.shape == (2, 6)
    codebook = params["params"]["au_codebook"]
    for unit in range(2):
        alone = cb.quantize(codebook[unit], batch[1][:, unit])
        np.testing.assert_array_equal(aux["au"].indices[unit], alone.indices)


def test_au_features_reach_the_image(space, batch):
    apply, params = space
    image, _ = apply(params, *batch)
    other, _ = apply(params, batch[0], -batch[1])
    assert float(jnp.abs(image - other).max()) > 1e-6


def test_image_gradient_reaches_both_encoders(space, batch):
    apply, params = space

    def error(image, features):
        return jnp.sum(apply(params, image, features)[0])

    to_image, to_features = jax.jit(jax.grad(error, argnums=(0, 1)))(*batch)
    assert np.any(to_image) and np.any(to_features)


@pytest.mark.parametrize("without", ["use_au", "use_global"])
def test_a_space_left_out_leaves_no_parameters_and_no_loss(batch, without):
    net = sp.StandardizedSpace(**TINY, **{without: False})
    params = jax.eval_shape(net.init, jax.random.key(0), *batch)
    image, aux = jax.eval_shape(net.apply, params, *batch)
    _, terms = jax.eval_shape(sp.space_loss, image, batch[0], aux)
    name = without.removeprefix("use_")
    assert f"{name}_codebook" not in params["params"] and f"{name}_codebook" not in terms
    assert jax.eval_shape(sp.restart_codes, params, aux, jax.random.key(1)) == params


def test_loss_is_eq_11_term_by_term(space, batch):
    apply, params = space
    target = batch[0]
    image, aux = apply(params, *batch)
    found, asked = aux["au"], np.asarray(aux["au_queries"])
    s = np.asarray(params["params"]["au_codebook"])
    gap_au = np.mean([(asked[u] - s[u][found.indices[u]]) ** 2 for u in range(2)])
    g = np.asarray(params["params"]["global_codebook"])
    whole = sp.GlobalEncoder(8, 16, 4).apply(
        {"params": params["params"]["GlobalEncoder_0"]}, batch[0]
    )
    gap_global = np.mean((np.asarray(whole) - g[aux["global"].indices]) ** 2)
    np.testing.assert_allclose(aux["global_queries"], whole, atol=1e-5)
    expected = np.abs(np.asarray(image) - np.asarray(target)).mean()
    expected += 1.3 * gap_au + 1.7 * gap_global
    loss, _ = sp.space_loss(image, target, aux, beta_au=0.3, beta_global=0.7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_gradient_difference_sees_edges_and_not_brightness():
    ramp = np.broadcast_to(np.linspace(0, 1, 5)[None, None, :, None], (1, 4, 5, 3))
    flat = np.full((1, 4, 5, 3), 0.2)
    np.testing.assert_allclose(sp.gradient_difference(ramp, flat), 0.25, rtol=1e-5)
    assert float(sp.gradient_difference(ramp, ramp + 0.3)) < 1e-6


def test_restart_moves_unused_codes_only(space, batch):
    apply, params = space
    leaves = dict(params["params"])
    leaves["global_usage"] = jnp.ones(16).at[3].set(0.0)
    leaves["au_usage"] = jnp.ones((2, 6))
    leaves["global_codebook"] = leaves["global_codebook"].at[3].set(50.0)
    _, aux = apply({"params": leaves}, *batch)
    after = sp.restart_codes({"params": leaves}, aux, jax.random.key(0))["params"]
    assert np.abs(after["global_codebook"][3]).max() < 10.0
    np.testing.assert_array_equal(
        np.delete(after["global_codebook"], 3, 0), np.delete(leaves["global_codebook"], 3, 0)
    )
    np.testing.assert_array_equal(after["au_codebook"], leaves["au_codebook"])


def test_space_learns_two_frames_and_codes_stay_alive(space, batch):
    apply, params = space
    smooth = jax.image.resize(batch[0][:, :4, :4], (2, 16, 16, 3), "linear")
    optimiser = optax.adam(5e-3)

    @jax.jit
    def step(params, state, key):
        def objective(p):
            image, aux = apply(p, smooth, batch[1])
            loss, terms = sp.space_loss(image, smooth, aux, gradient_weight=0.5)
            return loss, (terms, aux)

        (_, (terms, aux)), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = optimiser.update(gradient, state, params)
        return sp.restart_codes(optax.apply_updates(params, updates), aux, key), state, terms

    state = optimiser.init(params)
    params, state, first = step(params, state, jax.random.key(0))
    for n in range(1, 120):
        params, state, terms = step(params, state, jax.random.key(n))
    assert float(terms["l1"]) < 0.4 * float(first["l1"])
    assert float(terms["global_usage"]) > 0.5


def test_a_frame_of_128_pixels_costs_less_than_two_and_a_half_gigaflop():
    net = sp.StandardizedSpace()
    image, features = jnp.zeros((1, 128, 128, 3)), jnp.zeros((1, 5, 256))
    params = jax.eval_shape(net.init, jax.random.key(0), image, features)
    cost = jax.jit(net.apply).lower(params, image, features).compile().cost_analysis()
    assert cost["flops"] < 2.5e9


def test_codes_that_are_moving_averages_learn_without_their_loss(space, batch):
    apply, params = space
    image, aux = apply(params, *batch)
    usual, terms = sp.space_loss(image, batch[0], aux)
    without, _ = sp.space_loss(image, batch[0], aux, codebook_weight=0.0)
    codes = terms["au_codebook"] + terms["global_codebook"]
    np.testing.assert_allclose(usual - without, codes, rtol=1e-4)
    errors = []
    for step in range(40):
        _, aux = apply(params, *batch)
        errors.append(float(aux["global"].codebook_loss))
        params = sp.restart_codes(params, aux, jax.random.key(step), decay=0.5)
    assert errors[-1] < 0.8 * errors[0]


def test_codebooks_are_told_in_words():
    every = np.arange(200).reshape(100, 2) % 50
    assert sp.in_words("au", every, 50) == "AU codebooks: 50% of 50 codes in use"
    few = np.zeros((10, 8, 8), int)
    few[0, 0] = np.arange(8)
    whole = sp.in_words("global", few, 200)
    assert whole.startswith("global codebook: 4% of 200 codes in use; a collapse")
    assert "config.space.global_codes" in whole
    one_frame = np.array([[3, 4]])  # it cannot find more codes than one of each
    assert "collapse" not in sp.in_words("au", one_frame, 500)
