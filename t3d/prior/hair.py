"""Hair over the 3DMM's skull: how far it stands off, by the outlines of the head's masks.

A mask shows hair where it passes the skull's outline; what no view has shown in outline is
interpolated over the skull, and at the back it tends to be as thick as above the ears.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import spsolve

from t3d import camera as cameras
from t3d.camera import Camera

MOST = 8.0  # cm that hair stands off
DIRECTIONS = 120  # in which an outline is looked at, about the middle of the skull
ROUNDS = 8
SMOOTH = 1.0  # of a difference between neighbours, against one sight of an outline
BEND = 1.0  # of a vertex's difference from its neighbours: no ridge where an outline lay
REAR = 0.05  # of a difference between hair at the back of the head and what outlines show of it
SLANT = 0.3  # least cosine between hair and the direction in the picture that an outline is read in


def fit(
    neutral: np.ndarray,
    away: np.ndarray,
    triangles: np.ndarray,
    scalp: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    masks: np.ndarray,
) -> np.ndarray:
    """Thickness [V] of the hair over each vertex (cm).

    Each round draws the head's outline with the hair found so far, reads off by how much the
    masks' outlines lie further out, and smooths that over the skull (least squares).

    Args:
        neutral: [V, 3] cm, the vertices that are drawn; triangles: [F, 3]; away: [V, 3] unit
            vectors, the directions in which hair grows.
        scalp: [V] in [0, 1], 1 where hair may grow.
        head_to_world: [n, 4, 4], masks: [n, S, S] in [0, 1], of a few frames, seen by `camera`.
    """
    differences = _laplacian(triangles, len(neutral))
    smooth = SMOOTH * differences + BEND * differences @ differences
    bald = 100.0 * (1.0 - scalp) ** 2
    high = away[:, 1] > 0  # ears show none
    rear = REAR * scalp * (away[:, 2] < 0)
    outlines = [
        _outline(mask, pose, neutral, scalp, camera) for mask, pose in zip(masks, head_to_world)
    ]
    hair = np.zeros(len(neutral))
    for _ in range(ROUNDS):
        seen, further = np.zeros((2, len(neutral)))
        for pose, (centre, radius) in zip(head_to_world, outlines):
            rim, off = _beyond(neutral + hair[:, None] * away, away, pose, camera, centre, radius)
            known = scalp[rim] > 0.5
            np.add.at(seen, rim[known], 1.0)
            np.add.at(further, rim[known], off[known])
        wanted = seen * hair + further
        usual = wanted[high].sum() / max(seen[high].sum(), 1.0)
        known = diags_array(seen + bald + rear + 1e-3)
        hair = spsolve((smooth + known).tocsc(), wanted + rear * max(usual, 0.0))
        hair = np.clip(hair, 0.0, MOST) * (scalp > 0.01)
    return hair.astype(np.float32)


def _laplacian(triangles: np.ndarray, count: int):
    """Of the mesh's graph [V, V]: hᵀ L h is the sum of squared differences along its edges."""
    pairs = np.concatenate([triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    near = coo_array((np.ones(len(both)), both.T), (count, count)).tocsr()
    return diags_array(near.sum(1)) - near


def _direction(off: np.ndarray) -> np.ndarray:
    """Number of the direction in which an offset [..., 2] in the picture points."""
    turn = np.arctan2(off[..., 1], off[..., 0]) / (2 * np.pi)
    return np.floor(turn % 1.0 * DIRECTIONS).astype(int) % DIRECTIONS


def _outline(mask, pose, neutral, scalp, camera) -> tuple[np.ndarray, np.ndarray]:
    """The skull's middle [2] in the picture and the mask's radius [DIRECTIONS] about it, fractions
    of the side; NaN where the mask leaves the picture."""
    middle = neutral[scalp > 0.5].mean(0)
    centre, _ = cameras.project(camera, cameras.transform(pose, middle[None]))
    angle = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * 2 * np.pi
    steps = np.arange(0.0, 1.5, 0.5 / len(mask))
    at = centre[0] + steps[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    pixel = np.floor(at * len(mask)).astype(int)
    inside = ((pixel >= 0) & (pixel < len(mask))).all(-1)
    column, row = np.moveaxis(np.clip(pixel, 0, len(mask) - 1), -1, 0)
    covered = (mask[row, column] > 0.5) & inside
    radius = np.where(covered, steps[:, None], 0.0).max(0)
    leaves = covered[np.maximum(inside.sum(0) - 1, 0), np.arange(DIRECTIONS)]
    return centre[0], np.where(leaves | (radius == 0.0), np.nan, radius)


def _beyond(points, away, pose, camera, centre, radius) -> tuple[np.ndarray, np.ndarray]:
    """The outline's vertices, and by how much hair (cm) the mask's outline is further out."""
    uv, depth = cameras.project(camera, cameras.transform(pose, points))
    off = uv - centre
    length = np.linalg.norm(off, axis=-1)
    number = _direction(off)
    farthest = np.lexsort((length, number))
    last = np.append(number[farthest][1:] != number[farthest][:-1], True)
    rim = farthest[last]
    turned = away[rim] @ pose[:3, :3].T @ camera.camera_to_world[:3, :3]
    outward = np.sum(turned[:, :2] * off[rim], -1) / np.maximum(length[rim], 1e-6)
    gap = (radius[number[rim]] - length[rim]) * depth[rim] / camera.intrinsics[0]
    known = np.isfinite(gap) & (outward > SLANT)
    return rim[known], gap[known] / outward[known]
