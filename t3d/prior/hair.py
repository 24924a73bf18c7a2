"""Hair over the 3DMM's skull: how far it stands off, by the outlines of the head's masks.

A mask shows hair where it passes the skull's outline; what no view has shown in outline is
interpolated over the skull, where it tends to be as thick as outlines show on average.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import spsolve

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.prior import raster

MOST = 8.0  # cm that hair stands off
DIRECTIONS = 120  # in which an outline is looked at, about the middle of the skull
ROUNDS = 8
BALD = 0.25  # a vertex that is scalp by less than this share is held bald
SMOOTH = 0.1  # of a difference between neighbours, against one sight of an outline
BEND = 1.0  # of a vertex's difference from its neighbours: no ridge where an outline lay
USUAL = 0.02  # of a difference between hair and what outlines show of it on average


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

    Each round draws the head with the hair found so far, reads off by how much the masks' outlines
    lie further out than its own, and smooths that over the skull (least squares).

    Args:
        neutral: [V, 3] cm, the vertices that are drawn; triangles: [F, 3]; away: [V, 3] unit
            vectors, the directions in which hair grows.
        scalp: [V] in [0, 1], 1 where hair may grow.
        head_to_world: [n, 4, 4], masks: [n, S, S] in [0, 1], of a few frames, seen by `camera`.
    """
    differences = _laplacian(triangles, len(neutral))
    smooth = SMOOTH * differences + BEND * differences @ differences
    bald = 100.0 * np.clip(1.0 - scalp / BALD, 0.0, 1.0)
    high = away[:, 1] > 0  # ears show none
    alike = USUAL * scalp
    middle = neutral[scalp > 0.5].mean(0)
    size, hair = masks.shape[1], np.zeros(len(neutral))
    centres = cameras.project(camera, cameras.transform(head_to_world, middle[None]))[0][:, 0]
    radii = [_outline(mask, centre) for mask, centre in zip(masks, centres, strict=True)]
    for _ in range(ROUNDS):
        seen, further = np.zeros((2, len(neutral)))
        for pose, centre, radius in zip(head_to_world, centres, radii, strict=True):
            uv, depth = cameras.project(
                camera, cameras.transform(pose, neutral + hair[:, None] * away)
            )
            drawn = raster.rasterize(uv * size, depth, triangles, size, size).triangle >= 0
            gap = radius - _outline(drawn, centre)
            rim, outward = _rim(uv - centre, away @ pose[:3, :3].T @ camera.camera_to_world[:3, :3])
            off = gap[_direction(uv[rim] - centre)] * depth[rim] / camera.intrinsics[0]
            known = np.isfinite(off) & (outward > 0) & (scalp[rim] > 0.5)
            np.add.at(seen, rim[known], outward[known] ** 2)
            np.add.at(further, rim[known], outward[known] * off[known])
        wanted = seen * hair + further
        usual = wanted[high].sum() / max(seen[high].sum(), 1.0)
        known = diags_array(seen + bald + alike + 1e-3)
        hair = spsolve((smooth + known).tocsc(), wanted + alike * max(usual, 0.0))
        hair = np.clip(hair, 0.0, MOST) * (scalp > 0.01)
    return hair.astype(np.float32)


def edges(triangles: np.ndarray) -> np.ndarray:
    """Pairs [E, 2] of vertices that an edge joins, each once."""
    pairs = np.concatenate([triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    return np.unique(np.sort(pairs, 1), axis=0)


def _laplacian(triangles: np.ndarray, count: int):
    """Of the mesh's graph [V, V]: hᵀ L h is the sum of squared differences along its edges."""
    pairs = edges(triangles)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    near = coo_array((np.ones(len(both)), both.T), (count, count)).tocsr()
    return diags_array(near.sum(1)) - near


def _direction(off: np.ndarray) -> np.ndarray:
    """Number of the direction in which an offset [..., 2] in the picture points."""
    turn = np.arctan2(off[..., 1], off[..., 0]) / (2 * np.pi)
    return np.floor(turn % 1.0 * DIRECTIONS).astype(int) % DIRECTIONS


def _outline(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Radius [DIRECTIONS] of a mask [S, S] about a point [2] of it, fractions of the side; NaN
    where the mask leaves the picture."""
    angle = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * 2 * np.pi
    steps = np.arange(0.0, 1.5, 0.5 / len(mask))
    at = centre + steps[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    pixel = np.floor(at * len(mask)).astype(int)
    inside = ((pixel >= 0) & (pixel < len(mask))).all(-1)
    column, row = np.moveaxis(np.clip(pixel, 0, len(mask) - 1), -1, 0)
    covered = (mask[row, column] > 0.5) & inside
    radius = np.where(covered, steps[:, None], 0.0).max(0)
    leaves = covered[np.maximum(inside.sum(0) - 1, 0), np.arange(DIRECTIONS)]
    return np.where(leaves | (radius == 0.0), np.nan, radius)


def _rim(off: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices furthest out in each direction, and how far a cm of their hair reaches out.

    Args:
        off: [V, 2] from the skull's middle in the picture; away: [V, 3] in the camera's axes.
    """
    length, number = np.linalg.norm(off, axis=-1), _direction(off)
    order = np.lexsort((length, number))
    rim = order[np.append(number[order][1:] != number[order][:-1], True)]
    return rim, np.sum(away[rim, :2] * off[rim], -1) / np.maximum(length[rim], 1e-6)
