"""Views from elsewhere: silhouettes, depth, and the similarity between two worlds."""

from __future__ import annotations

import numpy as np


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks [..., H, W], true or above 0.5: [...]; NaN if both empty."""
    a, b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    union = (a | b).sum((-2, -1))
    return np.where(union > 0, (a & b).sum((-2, -1)) / np.maximum(union, 1), np.nan)


def depth_error(
    depth: np.ndarray, truth: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute error of depth maps.

    Args:
        depth, truth: [..., H, W], any unit; not finite where nothing is hit.
        mask: [..., H, W], true or above 0.5 where to compare.

    Returns:
        error [...], in the depths' unit, over the pixels of the mask that both see (NaN without
        any), and the share [...] of the mask's pixels with a truth that `depth` sees, too.
    """
    wanted = (np.asarray(mask) > 0.5) & np.isfinite(truth)
    both = wanted & np.isfinite(depth)
    off = np.abs(np.where(both, depth, 0.0) - np.where(both, truth, 0.0)).sum((-2, -1))
    seen, all_of = both.sum((-2, -1)), wanted.sum((-2, -1))
    return (
        np.where(seen > 0, off / np.maximum(seen, 1), np.nan),
        np.where(all_of > 0, seen / np.maximum(all_of, 1), np.nan),
    )


def similarity3(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The scale, rotation and shift in space that bring points onto others best (Umeyama 1991).

    Args:
        source, target: [N, 3], N ≥ 3, not all on a line.

    Returns:
        scale, rotation [3, 3] (no mirror) and shift [3]:
        target ≈ scale · source @ rotationᵀ + shift (least squares).
    """
    mean_s, mean_t = source.mean(0), target.mean(0)
    s, t = source - mean_s, target - mean_t
    u, sizes, vt = np.linalg.svd(t.T @ s)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((sizes * signs).sum() / (s**2).sum())
    return scale, rotation, mean_t - scale * rotation @ mean_s
