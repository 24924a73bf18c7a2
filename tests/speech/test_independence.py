"""The dependence of codes, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np

from t3d.speech.independence import dependence


def test_it_is_one_of_a_code_with_itself_turned_and_scaled_and_small_of_noise():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, 400, 4)).astype(np.float32)
    turned, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    np.testing.assert_allclose(dependence(x, 3 * x @ turned + 1), 1, atol=1e-4)
    assert 0 <= dependence(x, other) < 0.06
    assert dependence(x, other + 2 * x) > 0.3


def test_it_sees_what_no_correlation_sees():
    x = np.random.default_rng(0).normal(size=(400, 1)).astype(np.float32)
    y = x**2
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.15
    shuffled = np.random.default_rng(1).permutation(y)
    assert dependence(x, y) > 5 * dependence(x, shuffled)


def test_of_one_speaker_there_is_nothing_to_hide_and_no_gradient():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    same = jnp.ones((16, 100))
    value, gradient = jax.value_and_grad(dependence)(x, same)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    gradient = jax.grad(dependence)(jnp.zeros((16, 4)), x)
    assert jnp.isfinite(gradient).all()


def test_going_down_its_gradient_makes_codes_independent():
    rng = np.random.default_rng(0)
    speaker = jnp.asarray(np.repeat(np.eye(2), 32, 0), jnp.float32)
    code = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32) + 2 * speaker[:, :1]
    first = dependence(code, speaker)
    step = jax.jit(lambda c: c - 3.0 * jax.grad(dependence)(c, speaker))
    for _ in range(200):
        code = step(code)
    assert dependence(code, speaker) < 0.2 * first and jnp.isfinite(code).all()
