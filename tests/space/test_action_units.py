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


@pytest.mark.parametrize("even", [False, True])
def test_right_and_sure_costs_nothing(even):
    labels, often = jnp.array([[1.0, 0.0, 1.0]]), jnp.array([0.5, 0.1, 0.0])
    loss = au.au_loss(jnp.array([[40.0, -40.0, 40.0]]), labels, often, even)
    assert 0.0 <= float(loss) < 1e-6


def test_the_papers_loss_weighs_aus_by_how_rare_they_are():
    logits, labels = jnp.array([[0.3, -0.2]]), jnp.array([[1.0, 0.0]])
    often = jnp.array([0.5, 0.1])
    weights = au.au_weights(often)
    expected = au.au_bce(logits, labels, weights) + au.au_dice(logits, labels, weights)
    np.testing.assert_allclose(au.au_loss(logits, labels, often, False), expected, rtol=1e-6)


def test_sides_that_weigh_alike_cost_a_constant_guess_the_same_whatever_the_prevalence():
    """A guess of one half costs ln 2, of an AU that is on in half or in a tenth of the frames."""
    for on in (5, 1):
        labels = jnp.array([[1.0]] * on + [[0.0]] * (10 - on))
        sides = au.side_weights(jnp.array([on / 10]))
        loss = au.au_bce(jnp.zeros((10, 1)), labels, jnp.ones(1), sides)
        np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert np.isfinite(au.side_weights(jnp.array([0.0, 1.0]))).all()


def test_the_lower_face_is_found_wherever_the_head_is():
    """A head with a dark mouth lies at the same place, at the same size, of what is looked at."""

    def head(x, y, size):
        image = np.ones((64, 64, 3), np.float32)
        image[y : y + size, x : x + size // 2] = 0.6
        mouth = y + int(0.75 * size)
        image[mouth : mouth + size // 8, x + size // 8 : x + 3 * size // 8] = 0.0
        return image

    images = np.stack([head(10, 4, 32), head(22, 20, 40)])
    seen = np.asarray(au.lower_face(jnp.asarray(images)))
    dark = seen.min(-1) < 0.3
    places = np.stack([np.mean(np.nonzero(one), 1) for one in dark])
    assert np.abs(places[0] - places[1]).max() < 3
    assert dark.sum((1, 2)).min() > 0.85 * dark.sum((1, 2)).max()
    white = au.lower_face(jnp.ones((1, 64, 64, 3)))
    np.testing.assert_allclose(white, 1.0, atol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_losses_and_gradients_are_finite_at_any_logit(logit, label):
    logits, labels = jnp.full((2, 3), logit), jnp.full((2, 3), label)
    for even in (False, True):
        loss, gradient = jax.value_and_grad(au.au_loss)(
            logits, labels, jnp.array([0.0, 0.01, 1.0]), even
        )
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
    often = labels.mean(0)
    step = jax.jit(
        jax.value_and_grad(lambda p: au.au_loss(net.apply(p, faces)[1], labels, often, False))
    )
    first = float(step(params)[0])
    for _ in range(60):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert float(value) < 0.1 * first
