"""Where to cut: the head crop of a clip, the face crop of every frame, the identity frame."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

BROWS = slice(17, 27)
CHIN = 8
EYE_CORNERS = (36, 39, 42, 45)
# The head around the face, in brow-to-chin heights: hair above, neck below, ears and hair beside.
ABOVE, BELOW, BESIDE = 0.85, 0.12, 0.9
FACE_SIDE = 1.25
SMOOTH = 3.0  # frames, deviation of the Gaussian that smooths the face crop's centre


def face_height(points68: np.ndarray) -> np.ndarray:
    """Height [T] from the top of the brows to the chin, in the unit of points68 [T, 68, 2]."""
    return points68[:, CHIN, 1] - points68[:, BROWS, 1].min(1)


def head_crop(points68: np.ndarray, width: int, height: int) -> tuple[float, float, float]:
    """A square that holds the head with its hair in every frame of a clip.

    Args:
        points68: [T, 68, 2] pixels of the frames in which a face was found.
        width: of the video in pixels.
        height: of the video in pixels.

    Returns:
        (cx, cy, side) in pixels. It is no larger than the video's longer side, and lies inside the
        video on every axis on which it fits.
    """
    tall = np.median(face_height(points68))
    middle = (points68[..., 0].min(1) + points68[..., 0].max(1)) / 2
    left, right = np.percentile(middle, [0.5, 99.5]) + np.array([-BESIDE, BESIDE]) * tall
    top = np.percentile(points68[:, BROWS, 1].min(1), 0.5) - ABOVE * tall
    bottom = np.percentile(points68[:, CHIN, 1], 99.5) + BELOW * tall
    side = min(max(right - left, bottom - top), max(width, height))
    return (
        _inside((left + right) / 2, side, width),
        _inside((top + bottom) / 2, side, height),
        float(side),
    )


def _inside(centre: float, side: float, length: int) -> float:
    if side >= length:
        return length / 2
    return float(np.clip(centre, side / 2, length - side / 2))


def face_boxes(points68: np.ndarray, shot: np.ndarray | None = None) -> np.ndarray:
    """The face crop of every frame, brows to just below the chin.

    Its side is fixed and its centre follows the eyes alone, smoothly, so that the crop says nothing
    about the mouth.

    Args:
        points68: [T, 68, 2] fractions of the image side, without gaps.
        shot: [T] the shot of each frame, within which the centre is smooth; None: one shot.

    Returns:
        [T, 3] = (cx, cy, side), fractions of the image side.
    """
    anchor = points68[:, EYE_CORNERS].mean(1)
    middle_y = points68[:, CHIN, 1] - face_height(points68) / 2
    middle_x = (points68[:, 0, 0] + points68[:, 16, 0]) / 2
    offset = np.median(np.stack([middle_x, middle_y], -1) - anchor, axis=0)
    centre = anchor + offset
    for one in [slice(None)] if shot is None else [shot == k for k in np.unique(shot)]:
        centre[one] = gaussian_filter1d(centre[one], SMOOTH, axis=0, mode="nearest")
    side = np.full((len(points68), 1), FACE_SIDE * np.median(face_height(points68)))
    return np.concatenate([centre, side], 1).astype(np.float32)


def eye_opening(points68: np.ndarray) -> np.ndarray:
    """Mean lid gap [T] over the outer eye distance, of points68 [T, 68, 2]."""
    upper, lower = points68[:, [37, 38, 43, 44]], points68[:, [41, 40, 47, 46]]
    gap = np.linalg.norm(upper - lower, axis=-1).mean(-1)
    return gap / np.linalg.norm(points68[:, 36] - points68[:, 45], axis=-1)


def calm_frames(
    points68: np.ndarray, rotvec: np.ndarray, mouth: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """The tenth of `frames` [N] (at least 8) that is most frontal and open-eyed, among the fifth
    (at least 8) whose mouths are most closed: silence looks like one of them.

    Args:
        points68: [T, 68, 2]; rotvec: [T, 3] radians; mouth: [T] opening; frames: candidates.
    """
    closed = frames[np.argsort(mouth[frames], kind="stable")[: max(8, len(frames) // 5)]]

    def rank(values):
        return np.argsort(np.argsort(values[closed]))

    angle = np.linalg.norm(rotvec, axis=-1)
    score = rank(angle) + 0.5 * rank(-eye_opening(points68))
    return closed[np.argsort(score, kind="stable")[: max(8, len(frames) // 10)]]


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of an image's brightness, uint8 [H, W, 3]."""
    grey = image.astype(np.float32).mean(-1)
    laplacian = (
        grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    )
    return float(laplacian.var())
