"""The AU encoder, Eq. 7 and Eq. 8."""

import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.space import action_units as au


def test_weights_are_eq_7s():
    r = [0.5, 0.25, 0.1]  # 1/r = 2, 4, 10; sum 16; times 3
    np.testing.assert_allclose(au.au_weights(r), [6 / 16, 12 / 16, 30 / 16], rtol=1e-6)


@pytest.mark.parametrize("r", [[0.0, 0.5, 0.3], [1e-9, 0.5, 0.3], [0.0, 0.0, 0.0], [1, 1, 1]])
def test_weights_of_rare_and_absent_aus_are_finite_and_sum_to_their_number(r):
    weights = np.asarray(au.au_weights(r))
    assert np.isfinite(weights).all() and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 3.0, rtol=1e-5)


def test_an_absent_au_does_not_silence_the_others():
    weights = np.asarray(au.au_weights([0.0, 0.5, 0.5]))
    assert weights[0] < weights[1]


def _logit(p):
    return math.log(p / (1 - p))


def test_bce_is_eq_7_by_hand():
    logits = jnp.array([[_logit(0.8), _logit(0.3)]])
    labels = jnp.array([[1.0, 0.0]])
    weights = jnp.array([0.5, 1.5])
    expected = -0.5 * (0.5 * math.log(0.8) + 1.5 * math.log(0.7))
    np.testing.assert_allclose(au.au_bce(logits, labels, weights), expected, rtol=1e-6)


def test_dice_is_eq_8_by_hand():
    logits = jnp.array([[_logit(0.8), _logit(0.3)], [_logit(0.5), _logit(0.9)]])
    labels = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    w, e = (0.5, 1.5), 0.2
    frames = [
        w[0] * (1 - (1.6 + e) / (1 + 0.64 + e)) + w[1] * (1 - e / (0.09 + e)),
        w[0] * (1 - e / (0.25 + e)) + w[1] * (1 - (1.8 + e) / (1 + 0.81 + e)),
    ]
    got = au.au_dice(logits, labels, jnp.array(w), e)
    np.testing.assert_allclose(got, sum(frames) / 4, rtol=1e-5)


def test_right_and_sure_costs_nothing():
    labels = jnp.array([[1.0, 0.0, 1.0]])
    loss = au.au_loss(jnp.array([[40.0, -40.0, 40.0]]), labels, jnp.ones(3))
    assert 0.0 <= float(loss) < 1e-6


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_losses_and_gradients_are_finite_at_any_logit(logit, label):
    logits, labels = jnp.full((2, 3), logit), jnp.full((2, 3), label)
    weights = au.au_weights(jnp.array([0.0, 0.01, 1.0]))
    loss, gradient = jax.value_and_grad(au.au_loss)(logits, labels, weights)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def encoder():
    net = au.AUEncoder(n_au=3, dim=8, width=4, hidden=16)
    faces = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
    return net, jax.jit(net.init)(jax.random.key(1), faces), faces


def test_encoder_has_four_convolutions_and_four_fully_connected_layers(encoder):
    net, params, faces = encoder
    features, logits = jax.jit(net.apply)(params, faces)
    assert features.shape == (4, 3, 8) and logits.shape == (4, 3)
    kernels = [
        v.ndim for k, v in flax.traverse_util.flatten_dict(params).items() if "kernel" in k[-1]
    ]
    assert kernels.count(4) == 4 and len(kernels) == 8


def test_an_aus_logit_depends_on_its_own_feature_alone(encoder):
    net, params, faces = encoder
    features, logits = jax.jit(net.apply)(params, faces)
    jacobian = jax.jacobian(lambda f: _decide(params, f))(features[0])
    np.testing.assert_allclose(_decide(params, features[0]), logits[0], rtol=1e-5, atol=1e-6)
    across = np.abs(jacobian).sum(-1)
    assert (np.diag(across) > 0).all() and across[~np.eye(3, dtype=bool)].max() == 0.0


def _decide(params, features):
    p = params["params"]
    hidden = jnp.stack(
        [features[i] @ p["judge_kernel"][i] + p["judge_bias"][i] for i in range(len(features))]
    )
    hidden = hidden * jax.nn.sigmoid(hidden)
    return jnp.stack(
        [hidden[i] @ p["decide_kernel"][i, :, 0] + p["decide_bias"][i, 0] for i in range(3)]
    )


def test_encoder_learns_what_four_faces_show(encoder):
    net, params, faces = encoder
    labels = jnp.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], jnp.float32)
    weights = au.au_weights(labels.mean(0))
    step = jax.jit(
        jax.value_and_grad(lambda p: au.au_loss(net.apply(p, faces)[1], labels, weights))
    )
    first = float(step(params)[0])
    for _ in range(60):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert float(value) < 0.1 * first
