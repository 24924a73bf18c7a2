import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d.speech.disentangle import (
    FuseNet,
    StyleNet,
    expression_loss,
    lip_distance,
    statistics,
)


def test_eq3_equals_the_squared_norm_of_the_difference():
    generated = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], np.float32)
    target = np.array([[1.0, 0.0, 0.0], [0.0, 3.0, 4.0]], np.float32)
    np.testing.assert_allclose(expression_loss(generated, target), (13.0 + 25.0) / 2)


def test_eq3_gradient_is_twice_the_difference_and_zero_at_the_target():
    generated, target = jnp.array([[0.0, 2.0]]), jnp.array([[0.0, -1.0]])
    np.testing.assert_allclose(jax.grad(expression_loss)(generated, target), [[0.0, 6.0]])
    np.testing.assert_array_equal(jax.grad(expression_loss)(target, target), [[0.0, 0.0]])


def test_statistics_forget_the_order_of_sounds_and_nothing_else_of_one_feature():
    x = jnp.array([[[1.0], [3.0], [5.0]], [[5.0], [1.0], [3.0]]])
    found = statistics(x)
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], [3.0, np.sqrt(8 / 3 + 1e-4)], rtol=1e-6)
    constant = jax.grad(lambda x: statistics(x).sum())(jnp.ones((1, 4, 2)))
    assert jnp.isfinite(constant).all()


def test_lips_are_off_by_their_mean_distance_in_space():
    basis = np.zeros((79, 79 * 3), np.float32)
    basis[0] = np.tile([3.0, 0.0, 4.0], 79)  # one σ moves all lip vertices by 5 cm
    change = np.zeros((2, 79), np.float32)
    change[0, 0] = 2.0
    np.testing.assert_allclose(lip_distance(jnp.asarray(change), basis), [10.0, 0.0], atol=1e-3)
    gradient = jax.grad(lambda x: lip_distance(x, basis).mean())(jnp.zeros((2, 79)))
    assert jnp.isfinite(gradient).all()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "mel": draw(4, 16, 80),
        "identity": draw(4, 100),
        "speech": draw(4, 79),
        "target": draw(4, 79),
    }


def test_fused_expression_starts_as_the_sum_and_style_starts_at_zero(batch):
    style_net, fuse_net = StyleNet(width=8), FuseNet(width=8)
    style, _ = jax.jit(style_net.init_with_output)(
        jax.random.key(0), batch["mel"], batch["identity"]
    )
    np.testing.assert_array_equal(style, np.zeros((4, 79)))
    fused, _ = jax.jit(fuse_net.init_with_output)(
        jax.random.key(1), batch["speech"], batch["target"]
    )
    np.testing.assert_allclose(fused, batch["speech"] + batch["target"], rtol=1e-6)


def test_style_and_fusion_together_learn_four_fixed_expressions(batch):
    style_net, fuse_net = StyleNet(width=16, dropout=0.0), FuseNet(width=32, dropout=0.0)
    params = {
        "style": jax.jit(style_net.init)(jax.random.key(0), batch["mel"], batch["identity"]),
        "fuse": jax.jit(fuse_net.init)(jax.random.key(1), batch["speech"], batch["target"]),
    }

    def loss(p):
        style = style_net.apply(p["style"], batch["mel"], batch["identity"])
        return expression_loss(fuse_net.apply(p["fuse"], batch["speech"], style), batch["target"])

    optimiser = optax.adam(3e-3)
    state = optimiser.init(params)

    @jax.jit
    def step(p, s):
        value, gradient = jax.value_and_grad(loss)(p)
        updates, s = optimiser.update(gradient, s)
        return optax.apply_updates(p, updates), s, value, optax.tree.norm(gradient)

    losses = []
    for _ in range(150):
        params, state, value, norm = step(params, state)
        assert np.isfinite(norm)
        losses.append(float(value))
    assert losses[-1] < 0.05 * losses[0]
