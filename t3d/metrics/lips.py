"""Lips: mouth opening, LMD-79 and the figures that say whether a mouth follows its audio.

Landmarks are the 68 of iBUG (in its order) and 79 of MediaPipe's 80 lip-region points: which ones,
and in which order, is `t3d.data.landmarks.LIPS79`. Any unit will do as long as both are alike;
`pixels` results are in that unit. A frame in which no face was found has NaN landmarks.
"""

from __future__ import annotations

import numpy as np
from flax import struct

EYE_CORNERS = (36, 45)
INNER_LIPS = (62, 66)
# What a talking face hardly moves: the four eye corners and the bridge of the nose.
RIGID = (36, 39, 42, 45, 27, 28, 29, 30)
# Distance given to a frame without a face, in % of the eye distance.
MISSING = 100.0


@struct.dataclass
class LandmarkDistance:
    """LMD of each frame; NaN where the true frame itself has no face.

    Attributes:
        aligned: [T] % of the eye distance, after the head has been laid onto the true one.
        pixels: [T] unaligned, in the landmarks' unit.
    """

    aligned: np.ndarray
    pixels: np.ndarray


def eye_distance(points68: np.ndarray) -> np.ndarray:
    """[...] distance of the outer eye corners of [..., 68, 2]."""
    return np.linalg.norm(
        points68[..., EYE_CORNERS[0], :] - points68[..., EYE_CORNERS[1], :], axis=-1
    )


def mouth_opening(points68: np.ndarray) -> np.ndarray:
    """Inner-lip gap over outer-eye-corner distance: [..., 68, 2] → [...]; NaN without a face."""
    gap = np.linalg.norm(points68[..., INNER_LIPS[0], :] - points68[..., INNER_LIPS[1], :], axis=-1)
    return gap / eye_distance(points68)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation, scale and shift in the plane that bring points onto others best.

    Args:
        source, target: [..., N, 2], N ≥ 2.

    Returns:
        matrix [..., 2, 2] and shift [..., 2]: target ≈ source @ matrixᵀ + shift (least squares).
    """
    mean_s, mean_t = source.mean(-2, keepdims=True), target.mean(-2, keepdims=True)
    s, t = source - mean_s, target - mean_t
    power = (s**2).sum((-2, -1))
    real = (s * t).sum((-2, -1)) / power
    imaginary = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(-1) / power
    matrix = np.stack([np.stack([real, -imaginary], -1), np.stack([imaginary, real], -1)], -2)
    shift = mean_t - mean_s @ np.swapaxes(matrix, -1, -2)
    return matrix, shift[..., 0, :]


def lmd(
    points: np.ndarray, true_points: np.ndarray, lips: np.ndarray, true_lips: np.ndarray
) -> LandmarkDistance:
    """LMD-79 (the paper's [30] with 79 lip landmarks), raw and with the head aligned.

    Alignment lays the rendered head onto the true one by the similarity of their eye corners and
    nose bridges, so that a turn of the head is not counted as a lip error.

    Args:
        points, true_points: [T, 68, 2] of the rendered and of the true frames.
        lips, true_lips: [T, 79, 2].

    Returns:
        `LandmarkDistance`; a rendered frame without a face scores `MISSING` % (that share of the
        true eye distance in the landmarks' unit), or as the worst frame that has one, if worse.
    """
    eyes = eye_distance(true_points)
    matrix, shift = similarity(points[:, RIGID], true_points[:, RIGID])
    moved = lips @ np.swapaxes(matrix, -1, -2) + shift[:, None]
    aligned = 100.0 * np.linalg.norm(moved - true_lips, axis=-1).mean(-1) / eyes
    raw = np.linalg.norm(lips - true_lips, axis=-1).mean(-1)
    missing = ~np.isfinite(points).all((1, 2)) | ~np.isfinite(lips).all((1, 2))
    return LandmarkDistance(
        aligned=_worst(aligned, missing, np.full_like(eyes, MISSING), eyes),
        pixels=_worst(raw, missing, MISSING / 100.0 * eyes, eyes),
    )


def _worst(
    values: np.ndarray, missing: np.ndarray, penalty: np.ndarray, eyes: np.ndarray
) -> np.ndarray:
    found = values[np.isfinite(values)]
    worst = np.maximum(penalty, found.max()) if found.size else penalty
    return np.where(np.isfinite(eyes), np.where(missing, worst, values), np.nan)


def against_truth(truth: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two series [T] fit for `pearson`: frames without a face count against the measured one.

    Frames whose truth is NaN are left out. Where only the measured value is NaN it becomes the
    truth mirrored about the mean: as wrong as a value of the same spread can be.
    """
    known = np.isfinite(truth)
    truth, measured = truth[known], measured[known]
    found = np.isfinite(measured)
    if found.all() or truth.size == 0:
        return truth, measured
    centre, spread = truth.mean(), truth.std()
    middle, deviation = (
        (measured[found].mean(), measured[found].std()) if found.any() else (0.0, 1.0)
    )
    mirrored = middle - (truth - centre) / max(spread, 1e-12) * max(deviation, 1e-12)
    return truth, np.where(found, measured, mirrored)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two series [T]; 0 where one of them is constant (it follows nothing)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 1e-12 else 0.0
