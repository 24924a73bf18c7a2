"""H_u: its parts against torch's definitions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve

from t3d.nerf.upsampler import Upsampler, blur, double, pixel_shuffle


def test_pixel_shuffle_puts_channel_4c_2i_j_at_row_i_column_j():
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 8)).astype(np.float32)
    y = np.asarray(pixel_shuffle(jnp.asarray(x)))
    assert y.shape == (1, 4, 6, 2)
    for h, w, c, i, j in np.ndindex(2, 3, 2, 2, 2):
        assert y[0, 2 * h + i, 2 * w + j, c] == x[0, h, w, 4 * c + 2 * i + j]


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
