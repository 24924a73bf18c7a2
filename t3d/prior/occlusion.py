"""What hides a part of a face: told by the picture, where a detector invents what it cannot see."""

from __future__ import annotations

import numpy as np

MISSING = 0.28  # share of the usual contrast below which a part is hidden
TELLING = 5.0  # deviations that the usual contrast must exceed for its absence to tell anything
LEAST_SEEN = 0.5  # share of the vertices
LEAST_NOISE, LEAST_COLOUR = 0.03, 0.05  # deviation of the logarithm of a colour; a colour


def hidden(colours: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The frames in which something is before a part of the face, such as the mouth.

    Lips are redder and darker than the skin around them in any light. A frame is told by how much
    of that contrast it has: by the slope of its log colours, less their mean, on the clip's median
    ones. Of the mouths of two real clips that is 0.39 or more where the fit lies on them (least
    where lips are rolled in), and at most 0.17 under black, grey, flat or ribbed skin and under
    patches of the forehead. What is there in most of the frames, or has strong patterns of its own,
    may not be noticed.

    Args:
        colours: [T, V, 3] in [0, 1], of the part's vertices where the fit puts them.
        visible: [T, V] bool: faces the camera, in a frame that shows the speaker.

    Returns:
        [T] bool; False, too, where less than half of the vertices are visible.
    """
    logs = np.log(np.maximum(colours, LEAST_COLOUR))
    weight = np.repeat(visible[..., None], 3, -1).astype(np.float64)
    usual, noise = _usual(_less_mean(logs, weight), weight)
    weight /= noise**2
    usual = _less_mean(np.broadcast_to(usual, logs.shape), weight)
    power = np.sum(weight * usual**2, (1, 2))
    shared = np.sum(weight * usual * logs, (1, 2))
    telling = (power > TELLING**2) & (visible.mean(1) >= LEAST_SEEN)
    return telling & (shared < MISSING * power)


def _less_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[T, V, 3] without the mean that each frame has in each channel."""
    total = np.maximum(weight.sum(1, keepdims=True), 1e-9)
    return values - np.sum(weight * values, 1, keepdims=True) / total


def _usual(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of the frames in which a vertex is visible, and root mean square from it, [V, 3]."""
    seen = np.ma.array(values, mask=weight == 0)
    middle = np.ma.median(seen, axis=0)
    noise = np.ma.sqrt(np.ma.mean((seen - middle) ** 2, axis=0))
    return middle.filled(0.0), np.maximum(noise.filled(1.0), LEAST_NOISE)
