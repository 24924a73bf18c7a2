"""H_u: its parts against torch's definitions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve

from t3d.nerf.upsampler import Upsampler, blur, double


def pixel_shuffle(x):
    """torch.nn.PixelShuffle(2): channel 4c + 2i + j goes to row i, column j."""
    b, h, w, c = x.shape
    y = np.empty((b, 2 * h, 2 * w, c // 4), x.dtype)
    for i, j in np.ndindex(2, 2):
        y[:, i::2, j::2] = x[..., 2 * i + j :: 4]
    return y


@pytest.mark.parametrize("spread", ["tile", "nearest"])
def test_a_block_shuffles_pixels_before_it_narrows(spread):
    rng = np.random.default_rng(3)
    up = Upsampler(16, spread=spread)
    params = up.init(jax.random.key(0), jnp.zeros((1, 8, 8, 6)))["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    x = rng.normal(size=(2, 8, 8, 6)).astype(np.float32)

    def dense(name, x):
        return x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    wide = leaky(dense("shuffle_0", leaky(dense("widen_0", x))))
    kept = np.tile(x, 4) if spread == "tile" else np.repeat(x, 4, -1)
    small = leaky(np.asarray(blur(dense("narrow_0", pixel_shuffle(wide + kept)))))
    rgb = np.asarray(double(dense("rgb_in", x))) + dense("rgb_0", small)
    want = 1 / (1 + np.exp(-rgb.astype(np.float64)))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(up.apply({"params": params}, x), want, atol=1e-4)


def test_blur_is_a_binomial_filter_with_mirrored_borders():
    x = np.random.default_rng(1).normal(size=(1, 5, 6, 1)).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    np.testing.assert_allclose(
        blur(jnp.asarray(x))[0, ..., 0], convolve(x[0, ..., 0], kernel, mode="mirror"), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 9, 2), (3, 8, 6, 1)])
def test_what_flows_back_through_blur_is_its_transpose(shape):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, *shape)).astype(np.float32)
    blurred, back = jax.vjp(blur, jnp.asarray(x))
    np.testing.assert_allclose(np.sum(blurred * y), np.sum(x * back(y)[0]), rtol=1e-4, atol=1e-5)


def test_doubling_a_constant_image_changes_nothing():
    np.testing.assert_allclose(double(jnp.full((1, 4, 4, 3), 0.3)), 0.3, rtol=1e-6)


def test_image_has_the_asked_size_and_lies_in_zero_to_one():
    up = Upsampler(32)
    image, _ = up.init_with_output(jax.random.key(0), 5 * jnp.ones((1, 8, 8, 6)))
    assert image.shape == (1, 32, 32, 3) and (image >= 0).all() and (image <= 1).all()
