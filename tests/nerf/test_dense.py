"""Dense layers with a gradient of their own: JAX's, in other words."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.nerf import dense
from t3d.nerf.dense import Dense, matmul, relu


@pytest.mark.parametrize("shape", [(2, 7, 5), (3, 2, 4, 5), (1, 6, 5)])
def test_gradients_are_those_of_a_matrix_product(shape):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(5, 3)))

    def gradients(product):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(product(x, k))), (0, 1))(x, kernel)

    with jax.default_matmul_precision("highest"):
        for ours, theirs in zip(gradients(matmul), gradients(jnp.matmul)):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 5), (3, 2, 4, 5)])
def test_every_platform_sums_the_same(shape):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(*shape[:-1], c)), jnp.float32) for c in (5, 3))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(dense._by_image(x, g), dense._at_once(x, g), atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    """What an image adds to 256 ones would be lost in bfloat16's eight bits."""
    x = jnp.ones((2, 257, 1), jnp.bfloat16)
    kernel = jnp.ones((1, 1), jnp.float32)
    gradient = jax.grad(lambda k: matmul(x, k.astype(x.dtype)).sum(dtype=jnp.float32))(kernel)
    assert abs(float(gradient[0, 0]) - 514) <= 2 and gradient.dtype == jnp.float32


def test_a_layer_is_flaxs():
    x = jnp.ones((2, 6, 4))
    layer, flax = Dense(3, name="a"), nn.Dense(3, name="a")
    params = flax.init(jax.random.key(0), x)
    np.testing.assert_allclose(layer.apply(params, x), flax.apply(params, x), rtol=1e-6)


def test_relu_is_jaxs_and_keeps_no_mask():
    x = jnp.asarray([-2.0, -0.0, 0.0, 3.0])

    def kept(function):  # what backpropagation is handed
        return [leaf.dtype for leaf in jax.tree.leaves(jax.vjp(function, x)[1])]

    for got, want in zip(jax.vjp(relu, x)[1](x + 1), jax.vjp(nn.relu, x)[1](x + 1)):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(relu(x), nn.relu(x))
    assert kept(relu) == [jnp.float32] and jnp.bool_ in kept(nn.relu)
