"""The head's motion in a film: pose from landmarks, and how much it trembles.

A film whose head trembles more than the real one's looks wrong however good its frames are.
Landmarks are the 68 of iBUG, in any unit; a frame in which no face was found has NaN landmarks.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from t3d.camera import FRONTAL
from t3d.metrics.lips import RIGID, eye_distance

# What gives the pose: the rigid landmarks and the base of the nose, whose depth tells a turn.
POSE = (*RIGID, 31, 32, 33, 34, 35)


def head_pose(points68: np.ndarray, model_points: np.ndarray) -> np.ndarray:
    """Head angles by a weak-perspective fit, in closed form: the nearest scaled rotation to the
    affine map that brings the model's points onto the image's.

    Args:
        points68: [T, 68, 2] image positions (x right, y down).
        model_points: [68, 3] of the head at rest in its own frame (x right, y up, z out of the
            face), any unit.

    Returns:
        [T, 3] yaw, pitch, roll in degrees, 0 where the head faces the camera; NaN without a face.
        Positive yaw turns the nose to the image's left, positive pitch turns it down (what
        `camera.orbit` shows at such angles), positive roll turns the head clockwise.
    """
    model = model_points[list(POSE)]
    model = (model - model.mean(0)) @ FRONTAL
    image = points68[:, POSE]
    image = image - image.mean(1, keepdims=True)
    known = np.isfinite(image).all((1, 2))
    angles = np.full((len(image), 3), np.nan)
    if known.any():
        affine = np.swapaxes(np.linalg.pinv(model) @ image[known], -1, -2)
        u, _, vt = np.linalg.svd(affine, full_matrices=False)
        top = u @ vt
        matrix = np.concatenate([top, np.cross(top[:, 0], top[:, 1])[:, None]], 1)
        angles[known] = Rotation.from_matrix(matrix).as_euler("YXZ", degrees=True)
    return angles


def jitter(points68: np.ndarray) -> np.ndarray:
    """How much the rigid landmarks tremble: their second difference over time.

    Args:
        points68: [T, 68, 2].

    Returns:
        [T] mean over the points, % of the clip's mean eye distance per frame²; NaN at both ends
        and beside a frame without a face.
    """
    known = np.isfinite(points68).all((1, 2))
    if not known.any():
        return np.full(len(points68), np.nan)
    eyes = eye_distance(points68[known]).mean()
    return 100.0 * np.linalg.norm(_second(points68[:, RIGID]), axis=-1).mean(-1) / eyes


def pose_jitter(angles: np.ndarray) -> np.ndarray:
    """Norm of the second difference over time of head angles [T, 3] in degrees: [T], degrees per
    frame²; NaN at both ends and beside a frame without a face."""
    return np.linalg.norm(_second(angles), axis=-1)


def _second(values: np.ndarray) -> np.ndarray:
    """Second difference over the first axis, NaN at both ends."""
    out = np.full(values.shape, np.nan)
    out[1:-1] = values[:-2] - 2 * values[1:-1] + values[2:]
    return out
