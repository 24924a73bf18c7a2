"""Image quality: SSIM (the paper's [28]) and PSNR, on the host in float64."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SIGMA = 1.5
TRUNCATE = 3.5
RADIUS = int(TRUNCATE * SIGMA + 0.5)
K1, K2 = 0.01, 0.03


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity around each pixel and channel.

    An 11 × 11 Gaussian window of deviation 1.5, mirrored borders, population covariance: Wang et
    al. 2004, and scikit-image with gaussian_weights and without sample covariance.

    Args:
        a, b: [..., H, W, C] in [0, 1]; H and W at least 11.

    Returns:
        [..., H, W, C] float64, at most 1.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check(a, b)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean structural similarity of each image pair, the 5 border pixels left out.

    Args:
        a, b: [..., H, W, C] in [0, 1].

    Returns:
        [...] float64.
    """
    return _inside(ssim_map(a, b)).mean((-3, -2, -1))


def ssim_over(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Structural similarity over a mask: its map's mean, weighted by the mask, border left out.

    Args:
        a, b: [..., H, W, C] in [0, 1].
        mask: [..., H, W] or [..., H, W, 1], weights ≥ 0.

    Returns:
        [...] float64; NaN where the mask is empty.
    """
    mask = np.asarray(mask, np.float64)
    if mask.ndim < np.ndim(a):
        mask = mask[..., None]
    weights = _inside(np.broadcast_to(mask, np.shape(a)))
    total = weights.sum((-3, -2, -1))
    weighted = (_inside(ssim_map(a, b)) * weights).sum((-3, -2, -1))
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of image pairs [..., H, W, C] in [0, 1]; inf if equal."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    _check(a, b)
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(np.square(a - b).mean((-3, -2, -1)))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"two equal shapes [..., H, W, C] wanted, not {a.shape} and {b.shape}")
    if min(a.shape[-3:-1]) < 2 * RADIUS + 1:
        raise ValueError(f"images of at least {2 * RADIUS + 1}² pixels wanted, not {a.shape}")


def _blur(image: np.ndarray) -> np.ndarray:
    axes = (image.ndim - 3, image.ndim - 2)
    return ndimage.gaussian_filter(image, SIGMA, mode="reflect", truncate=TRUNCATE, axes=axes)


def _inside(values: np.ndarray) -> np.ndarray:
    return values[..., RADIUS:-RADIUS, RADIUS:-RADIUS, :]
