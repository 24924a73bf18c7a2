"""What a geometric head model is given here: a plain albedo, its variation, the lip rings."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
import scipy.spatial

from t3d.prior.morphable import ALBEDO_DIM, padded

_SKIN = (0.80, 0.60, 0.51)
_LIPS = (0.68, 0.36, 0.35)
_BROWS = (0.36, 0.25, 0.19)
_IRIS = (0.30, 0.22, 0.15)
_PUPIL = (0.05, 0.04, 0.04)
_REGION_COLOURS = {
    "face": _SKIN,
    "head_neck": _SKIN,
    "mouth_socket": (0.15, 0.05, 0.05),
    "eye_socket_left": (0.55, 0.33, 0.29),
    "eye_socket_right": (0.55, 0.33, 0.29),
    "gums_tongue": (0.50, 0.22, 0.22),
    "teeth": (0.90, 0.87, 0.80),
    "eyeball_left": (0.92, 0.90, 0.88),
    "eyeball_right": (0.92, 0.90, 0.88),
}
REGIONS = tuple(_REGION_COLOURS)


def smooth_modes(points: np.ndarray, count: int, spacing: float = 1.0) -> np.ndarray:
    """Low-frequency Laplacian eigenvectors over a cloud of points, the constant one first.

    The eigenvectors are those of a graph of the points' means in cubes of side `spacing`, spread
    back to the points by the same kernel; so parts that only touch vary together.

    Args:
        points: [V, 3] centimetres.
        count: how many.
        spacing: centimetres.

    Returns:
        [count, V] float32, each of unit mean square.
    """
    cells, member = np.unique(np.floor(points / spacing), axis=0, return_inverse=True)
    member = member.reshape(-1)
    size = np.bincount(member, minlength=len(cells))
    centres = np.stack([np.bincount(member, points[:, k]) / size for k in range(3)], -1)
    tree = scipy.spatial.cKDTree(centres)
    distance, neighbour = tree.query(centres, 10)
    weight = np.exp(-((distance / spacing) ** 2))
    row = np.repeat(np.arange(len(centres)), 10)
    graph = scipy.sparse.coo_matrix((weight.ravel(), (row, neighbour.ravel()))).tocsr()
    laplacian = scipy.sparse.csgraph.laplacian(graph.maximum(graph.T)).tocsc()
    start = np.ones(len(centres))
    _, modes = scipy.sparse.linalg.eigsh(laplacian, count, sigma=-1e-3, v0=start)
    distance, neighbour = tree.query(points, 4)
    weight = np.exp(-((distance / spacing) ** 2)) + 1e-12
    spread = np.einsum("vk,vkm->mv", weight / weight.sum(-1, keepdims=True), modes[neighbour])
    # An eigenvector's sign is arbitrary: the same on every machine by a direction that no symmetry
    # of a head is at right angles to.
    spread *= np.sign(spread @ (points @ [1.0, 0.7, 0.4] + 40.0))[:, None]
    return (spread / np.sqrt(np.mean(spread**2, -1, keepdims=True))).astype(np.float32)


_HUES = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])  # light to dark, two hues
_HUE_DEVIATIONS = (0.04, 0.01, 0.005)
_HUE_MODES = (60, 20, 19)


def smooth_albedo_basis(points: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Albedo basis [100, V, 3] of a model without one: smooth modes, each in up to three colours.

    The colours are orthogonal: light to dark (60 modes), then two hues (20 and 19), less strong, as
    skin varies; coarse modes first, and deviations fall with the mode's number. The 100th is zero.

    Args:
        points: [V, 3] centimetres.
        share: [V] in [0, 1], how much of the variation a vertex takes.
    """
    modes = smooth_modes(points, max(_HUE_MODES))
    basis = [
        np.outer(mode * share * deviation / (1.0 + 0.1 * k), hue).reshape(-1, 3)
        for k, mode in enumerate(modes)
        for hue, deviation, count in zip(_HUES, _HUE_DEVIATIONS, _HUE_MODES, strict=True)
        if k < count
    ]
    return padded(np.stack(basis), ALBEDO_DIM)


def lip_targets(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The 79 points on four rings between two closed lip contours, in MorphableModel's order.

    Args:
        outer: [12, D] iBUG 48..59 (from the corner at image left along the upper lip and back).
        inner: [8, D] iBUG 60..67.

    Returns:
        [79, D].
    """
    rings = []
    for share in (0.0, 1 / 3, 2 / 3, 1.0):
        halves = [
            (1 - share) * resample(outer[a], 11) + share * resample(inner[b], 11)
            for a, b in (
                (np.array([0, 11, 10, 9, 8, 7, 6]), np.array([0, 7, 6, 5, 4])),
                (np.array([0, 1, 2, 3, 4, 5, 6]), np.array([0, 1, 2, 3, 4])),
            )
        ]
        rings.append(np.concatenate([halves[0], halves[1][9:0:-1]]))
    return np.concatenate(rings)[:79]


def resample(line: np.ndarray, count: int) -> np.ndarray:
    """`count` points at even arc length on a polyline [N, D]."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=-1))])
    at = np.linspace(0.0, length[-1], count)
    return np.stack([np.interp(at, length, line[:, k]) for k in range(line.shape[1])], -1)


def nearest_distinct(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Index [K] of a point of its own for each target [K, D], least squared distance in all."""
    _, near = scipy.spatial.cKDTree(points).query(targets, 12)
    pool = np.unique(near)
    cost = scipy.spatial.distance.cdist(targets, points[pool], "sqeuclidean")
    return pool[scipy.optimize.linear_sum_assignment(cost)[1]].astype(np.int32)


def _bump(points: np.ndarray, line: np.ndarray, radius: float) -> np.ndarray:
    """[V] weight in [0, 1] that falls off with the distance from a polyline [N, 3]."""
    distance, _ = scipy.spatial.cKDTree(resample(line, 60)).query(points)
    return np.exp(-((distance / radius) ** 2))


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """[V] bool: points [V, 2] inside a closed polygon [N, 2] (crossing number)."""
    crossed = np.zeros(len(points), bool)
    for (xa, ya), (xb, yb) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ya != yb:
            crosses = (ya > points[:, 1]) != (yb > points[:, 1])
            crossed ^= crosses & (points[:, 0] < xa + (points[:, 1] - ya) * (xb - xa) / (yb - ya))
    return crossed


def within_lips(points: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """[V] bool: points [V, 3] seen from the front inside the outer lip contour [12, 3]."""
    contour = resample(np.concatenate([outer, outer[:1]]), 80)[:-1]
    return (points[:, 2] > outer[:, 2].min() - 0.5) & inside(points[:, :2], contour[:, :2])


def paint(mean: np.ndarray, region: np.ndarray, lips: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """A plain albedo [V, 3] in [0, 1] for a head: skin, lips, brows, eyes, mouth.

    Args:
        mean: [V, 3] vertices.
        region: [V] index into REGIONS.
        lips: [V] bool, the red of the lips.
        marks: [68, 3] landmark positions.
    """
    colour = np.array(list(_REGION_COLOURS.values()))[region]
    face = region == REGIONS.index("face")
    colour[lips & face] = _LIPS
    for brow in (marks[17:22], marks[22:27]):
        weight = (_bump(mean, brow + [0.0, 0.1, 0.0], 0.38) * face)[:, None]
        colour = colour + np.minimum(1.4 * weight, 1.0) * (np.array(_BROWS) - colour)
    for name in ("eyeball_left", "eyeball_right"):
        ball = np.flatnonzero(region == REGIONS.index(name))
        offset = mean[ball] - (mean[ball].min(0) + mean[ball].max(0)) / 2
        from_axis = np.linalg.norm(offset[:, :2], axis=-1)
        front = offset[:, 2] > 0
        colour[ball[front & (from_axis < 0.62)]] = _IRIS
        colour[ball[front & (from_axis < 0.27)]] = _PUPIL
    return colour.astype(np.float32)


def albedo_share(region: np.ndarray) -> np.ndarray:
    """[V]: skin takes the whole of the albedo variation, teeth and eyes a quarter."""
    skin = [0.25 if name.startswith(("teeth", "eyeball")) else 1.0 for name in REGIONS]
    return np.array(skin)[region]
