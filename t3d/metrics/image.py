"""Image quality: SSIM (the paper's [28]), PSNR and sharpness, in float64.

Single precision would do for a mean SSIM and not for its map: where an image is flat, its variance
is the small difference of two large numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

SIGMA = 1.5
TRUNCATE = 3.5
RADIUS = int(TRUNCATE * SIGMA + 0.5)
K1, K2 = 0.01, 0.03
_LOT = 16  # images
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity around each pixel and channel.

    An 11 × 11 Gaussian window of deviation 1.5, mirrored borders, population covariance: Wang et
    al. 2004, and scikit-image with gaussian_weights and without sample covariance.

    Args:
        a, b: [..., H, W, C] in [0, 1]; H and W at least 11.

    Returns:
        [..., H, W, C] float64, at most 1.
    """
    return _compare(_mirrored_map, a, b)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean structural similarity of each image pair, the 5 border pixels left out.

    Args:
        a, b: [..., H, W, C] in [0, 1].

    Returns:
        [...] float64.
    """
    return _compare(_ssim, a, b)


def ssim_over(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Structural similarity over a mask: its map's mean, weighted by the mask, border left out.

    Args:
        a, b: [..., H, W, C] in [0, 1].
        mask: [..., H, W] or [..., H, W, 1], weights ≥ 0.

    Returns:
        [...] float64; NaN where the mask is empty.
    """
    mask = np.asarray(mask).reshape(np.shape(a)[:-1])
    return _compare(_ssim_over, a, b, mask)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of image pairs [..., H, W, C] in [0, 1]; inf if equal."""
    return _compare(_psnr, a, b)


def image_series(images: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """SSIM and PSNR of each of T images, over all of it and over the head.

    Args:
        images, truth: uint8 [T, s, s, 3].
        masks: [T, s, s] in [0, 1], of the true head.

    Returns:
        ssim, ssim_head, psnr, psnr_head: [T] float64; PSNR (dB) is inf where nothing differs; the
        head's figures are NaN where the mask is empty.
    """
    _check(images, truth)
    return _in_lots(_image_series, images, truth, masks)


def sharpness(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Energy of fine detail: the mean squared Laplacian of the luminance (BT.601) over a mask.

    It grows with noise, too: a figure says something divided by the real clip's only.

    Args:
        images: uint8 [T, s, s, 3].
        masks: [T, s, s] in [0, 1]; a pixel counts as little as its least counting neighbour, so
            that the mask's own outline is no detail.

    Returns:
        [T] float64, of luminance in [0, 1]; NaN where the mask is empty.
    """
    return _in_lots(_sharpness, images, masks)


# ---- of one image: float64 planes [C, H, W] in [0, 1] and masks [H, W]


def _ssim_map(a: jax.Array, b: jax.Array) -> jax.Array:
    """[C, H - 10, W - 10]: where the window lies inside."""
    mean_a, mean_b, power, product = _window(jnp.stack([a, b, a * a + b * b, a * b]))
    product_of_means, power_of_means = mean_a * mean_b, mean_a**2 + mean_b**2
    c1, c2 = K1**2, K2**2
    top = (2 * product_of_means + c1) * (2 * (product - product_of_means) + c2)
    return top / ((power_of_means + c1) * (power - power_of_means + c2))


def _window(planes: jax.Array) -> jax.Array:
    """Gaussian means of [..., H, W], by columns and by rows."""
    *some, height, width = planes.shape
    steps = np.arange(-RADIUS, RADIUS + 1)
    taps = np.exp(-0.5 * (steps / SIGMA) ** 2)
    taps = jnp.asarray(taps / taps.sum(), planes.dtype)
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    means = convolve(planes.reshape(-1, height, width, 1), taps[:, None, None, None])
    means = convolve(means, taps[None, :, None, None])
    return means.reshape(*some, height - 2 * RADIUS, width - 2 * RADIUS)


def _mirrored_map(a: jax.Array, b: jax.Array) -> jax.Array:
    around = ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS))
    alike = _ssim_map(*(jnp.pad(x, around, mode="symmetric") for x in (a, b)))
    return jnp.moveaxis(alike, 0, -1)


def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    return _ssim_map(a, b).mean()


def _ssim_over(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    return _mean_over(_ssim_map(a, b).mean(0), _inside(mask))


def _psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    return _decibels(jnp.square(a - b).mean())


def _image_series(images: jax.Array, truth: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    alike = _ssim_map(images / 255.0, truth / 255.0).mean(0)
    error = jnp.square((images - truth) / 255.0).mean(0)
    return {
        "ssim": alike.mean(),
        "ssim_head": _mean_over(alike, _inside(masks)),
        "psnr": _decibels(error.mean()),
        "psnr_head": _decibels(_mean_over(error, masks)),
    }


def _sharpness(images: jax.Array, masks: jax.Array) -> jax.Array:
    red, green, blue = images / 255.0
    grey = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
    centre, *beside = _crosses(grey)
    weights = jnp.stack(_crosses(masks)).min(0)
    return _mean_over(jnp.square(sum(beside) - 4 * centre), weights)


def _crosses(x: jax.Array) -> list[jax.Array]:
    """Each inner pixel of [H, W], and its four neighbours."""
    inner = slice(1, -1)
    return [x[inner, inner], x[:-2, inner], x[2:, inner], x[inner, :-2], x[inner, 2:]]


def _mean_over(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / weights.sum()


def _inside(mask: jax.Array) -> jax.Array:
    return mask[RADIUS:-RADIUS, RADIUS:-RADIUS]


def _decibels(error: jax.Array) -> jax.Array:
    return -10.0 * jnp.log10(error)


# ---- batches


def _compare(figure: Callable, a: np.ndarray, b: np.ndarray, *masks: np.ndarray) -> np.ndarray:
    """A figure of image pairs with any leading axes."""
    a, b = np.asarray(a), np.asarray(b)
    _check(a, b)
    some = a.shape[:-3]
    flat = (x.reshape(-1, *x.shape[len(some) :]) for x in (a, b, *masks))
    values = _in_lots(figure, *flat)
    return values.reshape(*some, *values.shape[1:])


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"two equal shapes [..., H, W, C] wanted, not {a.shape} and {b.shape}")
    if min(a.shape[-3:-1]) < 2 * RADIUS + 1:
        raise ValueError(f"images of at least {2 * RADIUS + 1}² pixels wanted, not {a.shape}")


@partial(jax.jit, static_argnums=0)
def _one_by_one(figure: Callable, *arrays: jax.Array):
    """A figure of each image; a loop, so that each uses the memory of the last."""

    def one(parts: tuple) -> jax.Array | dict[str, jax.Array]:
        planes = (jnp.moveaxis(x, -1, 0) if x.ndim == 3 else x for x in parts)
        return figure(*(x.astype(jnp.float64) for x in planes))

    return jax.lax.map(one, arrays)


def _in_lots(figure: Callable, *arrays: np.ndarray):
    """A figure of each of n images [n, H, W, C] and masks [n, H, W].

    `_LOT` at once go to the device; the last lot is filled up with copies: all compile alike.
    """
    count = len(arrays[0])
    size = min(count, _LOT)
    with jax.enable_x64(True):
        lots = [
            jax.device_get(_one_by_one(figure, *(x.take(rows, 0, mode="clip") for x in arrays)))
            for rows in np.arange(-(-count // size) * size).reshape(-1, size)
        ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *lots)
