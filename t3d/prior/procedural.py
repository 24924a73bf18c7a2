"""The built-in head: a mesh made by formula, with ICT-FaceKit's expressions, frame and landmarks.

The skin is a lofted tube (half width, front and back by height) closed by a cap, on which the face
is sculpted along z by bumps in the frontal plane. Around the eyes and the mouth the vertices lie on
rings, so that lids and lips are real edges; the rest is filled and triangulated in a conformal map.
Everything is computed, nothing is measured on a person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.interpolate
import scipy.spatial

from t3d.prior import gestures, skin
from t3d.prior.morphable import (
    EXPRESSION_DIM,
    EXPRESSION_STD,
    IDENTITY_DIM,
    MorphableModel,
    padded,
)

# Height; half width, middle, front and back of the section there (cm).
_SECTIONS = np.array(
    [
        [-17.0, 5.9, -2.0, 2.4, -7.4],
        [-13.0, 4.8, -2.0, 2.5, -6.7],
        [-10.8, 4.65, -1.9, 3.0, -6.5],
        [-9.6, 4.65, -1.5, 4.8, -6.5],
        [-8.8, 4.75, -0.9, 7.4, -6.6],
        [-8.2, 4.9, -0.5, 9.1, -6.7],
        [-7.5, 5.15, -0.2, 10.0, -6.9],
        [-6.5, 5.65, 0.0, 10.3, -7.2],
        [-5.5, 6.05, 0.1, 10.3, -7.6],
        [-4.0, 6.5, 0.2, 10.4, -8.2],
        [-2.0, 6.85, 0.2, 10.5, -8.8],
        [0.0, 7.2, 0.1, 10.5, -9.2],
        [2.0, 7.45, 0.0, 10.5, -9.5],
        [4.5, 7.6, -0.3, 10.45, -9.7],
        [6.5, 7.65, -0.5, 10.4, -9.7],
    ]
)
_CAP_START, _CAP_HEIGHT = 6.5, 7.8
# Relief along z: x, y, width, height of the bump, and how far it stands out (cm); mirrored in x.
_BUMPS = (
    (0.0, -3.4, 2.5, 1.7, 0.55),  # muzzle
    (0.0, -5.35, 1.5, 0.5, -0.35),  # under the lower lip
    (0.0, -6.8, 1.3, 0.9, 0.55),  # chin
    (0.0, -1.9, 0.3, 0.5, -0.12),  # philtrum
    (2.9, 3.5, 1.5, 1.1, -0.85),  # eye sockets
    (1.45, 3.4, 0.45, 0.9, -0.35),
    (2.9, 5.5, 2.2, 0.65, 0.4),  # brows
    (0.0, 5.2, 1.2, 0.9, 0.15),
    (4.9, 1.0, 1.5, 1.2, 0.45),  # cheekbones
    (4.6, -2.2, 1.4, 1.6, -0.25),
    (2.1, -1.6, 0.5, 1.2, -0.18),  # beside nose and mouth
    (1.1, -0.5, 0.45, 0.5, 1.15),  # wings of the nose
    (0.5, -1.25, 0.28, 0.22, -0.35),  # nostrils
)
_NOSE = np.array(  # height, how far the ridge stands out, its half width
    [
        [4.6, 0.0, 0.6],
        [3.7, 0.3, 0.6],
        [2.6, 0.95, 0.6],
        [1.6, 1.6, 0.65],
        [0.6, 2.3, 0.78],
        [0.0, 2.45, 0.88],
        [-0.5, 2.1, 0.9],
        [-1.0, 1.2, 0.85],
        [-1.4, 0.5, 0.75],
        [-1.9, 0.1, 0.6],
        [-2.4, 0.0, 0.5],
    ]
)
_EYE = np.array([3.1, 3.45, 8.0])
_EYE_RADIUS = 1.45
_LID_STEPS, _LIP_STEPS = 28, 40
_MOUTH_Y = -3.45
_MOUTH_REACH = np.array([3.8, 2.0])  # half axes of the outermost ring


@dataclass
class _Part:
    """A piece of mesh: points [N, 3], triangles [F, 3], the name of its region for each point."""

    points: np.ndarray
    triangles: np.ndarray
    region: np.ndarray

    @staticmethod
    def of(points: np.ndarray, triangles: np.ndarray, region: str) -> _Part:
        return _Part(points, triangles, np.full(len(points), skin.REGIONS.index(region)))


def _section(y: np.ndarray) -> np.ndarray:
    """[..., 4] half width, middle, front, back at heights up to the cap."""
    return scipy.interpolate.PchipInterpolator(_SECTIONS[:, 0], _SECTIONS[:, 1:])(y)


def _bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
    return np.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)


def _ball(x: np.ndarray, y: np.ndarray, grow: float) -> np.ndarray:
    """Front z of the eyeballs, `grow` cm bigger, at frontal positions."""
    squared = (_EYE_RADIUS + grow) ** 2 - (np.abs(x) - _EYE[0]) ** 2 - (y - _EYE[1]) ** 2
    return _EYE[2] + np.sqrt(np.maximum(squared, 0.0))


def _relief(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the face stands out of the tube (cm along z)."""
    z = np.zeros_like(x)
    for cx, cy, sx, sy, out in _BUMPS:
        z += out * _bump(x, y, cx, cy, sx, sy)
        if cx:
            z += out * _bump(x, y, -cx, cy, sx, sy)
    ridge = scipy.interpolate.PchipInterpolator(_NOSE[::-1, 0], _NOSE[::-1, 1:])
    out, width = np.moveaxis(ridge(np.clip(y, _NOSE[-1, 0], _NOSE[0, 0])), -1, 0)
    return z + out * np.exp(-((np.abs(x) / width) ** 2.2))


def _loft(angle: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Skin [N, 3] at the angle about the vertical axis (0 = front) and t: height, then the cap.

    Above the cap's start, t goes on as (cap angle in radians) times the cap's height.
    """
    width, middle, front, back = np.moveaxis(_section(np.minimum(t, _CAP_START)), -1, 0)
    cap = np.clip((t - _CAP_START) / _CAP_HEIGHT, 0.0, math.pi / 2)
    reach = np.where(np.cos(angle) > 0, front - middle, middle - back) * np.cos(cap)
    x = width * np.sin(angle) * np.cos(cap) ** 0.85
    y = np.minimum(t, _CAP_START) + _CAP_HEIGHT * np.sin(cap)
    z = middle + reach * np.cos(angle)
    forward = np.clip((np.cos(angle) - 0.1) / 0.4, 0.0, 1.0)
    z = z + _relief(x, y) * forward
    lids = _ball(x, y, 0.1)
    over = 0.5 * (z + lids + np.sqrt((z - lids) ** 2 + 0.01))
    near_eye = (np.cos(angle) > 0.2) & (lids > _EYE[2] + 1e-6)
    return np.stack([x, y, np.where(near_eye, over, z)], -1)


def _front(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(angle, t) of the front skin at frontal positions [N, 2] below the cap."""
    width = _section(xy[:, 1])[..., 0]
    return np.arcsin(np.clip(xy[:, 0] / width, -0.999, 0.999)), xy[:, 1]


def _conformal(angle: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[N, 2]: the skin flattened without a seam, the crown in the middle."""
    cap = np.clip((t - _CAP_START) / _CAP_HEIGHT, 0.0, math.pi / 2)
    radius = np.exp((_CAP_START - np.minimum(t, _CAP_START)) / 7.5) * np.tan(math.pi / 4 - cap / 2)
    return radius[:, None] * np.stack([np.sin(angle), -np.cos(angle)], -1)


def _strip(rings: int, steps: int) -> np.ndarray:
    """Triangles of closed rings [rings, steps], ring after ring outwards, steps anticlockwise."""
    ring, step = np.meshgrid(np.arange(rings - 1), np.arange(steps), indexing="ij")
    a = (ring * steps + step).ravel()
    b = (ring * steps + (step + 1) % steps).ravel()
    quads = [np.stack([a, a + steps, b + steps], -1), np.stack([a, b + steps, b], -1)]
    return np.concatenate(quads)


def _angles(steps: int) -> np.ndarray:
    return 2 * math.pi * np.arange(steps) / steps


def lid_edge(theta: np.ndarray, side: float) -> np.ndarray:
    """Frontal position [N, 2] of the edge of an eye's lids; side is +1 at image right."""
    height = np.where(np.sin(theta) > 0, 0.55, 0.42) * np.abs(np.sin(theta)) ** 0.85
    x = side * _EYE[0] + 1.32 * np.cos(theta)
    y = _EYE[1] - 0.05 + side * 0.1 * np.cos(theta) + np.copysign(height, np.sin(theta))
    return np.stack([x, y], -1)


def _lip_line(theta: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Frontal position [N, 2] on the lips: share 0 is the outer contour, 1 the mouth's slit."""
    u = np.cos(theta)
    arch = np.maximum(1 - u * u, 0.0)
    bow = -0.1 * np.exp(-((u * 2.5 / 0.3) ** 2)) - 0.06 * np.exp(-((u * 2.5 / 1.5) ** 2))
    upper = 1.12 * arch**0.75 + bow * (arch > 0)
    outer = np.where(np.sin(theta) > 0, upper, -0.98 * arch**0.7)
    x = (2.5 - 0.25 * share) * u
    return np.stack([x, _MOUTH_Y + (1 - share) * outer], -1)


def _mouth_patch() -> tuple[np.ndarray, np.ndarray]:
    """Frontal positions [13, 40, 2] of rings from the slit outwards, and their share of lip."""
    theta = _angles(_LIP_STEPS)
    shares = np.linspace(1.0, 0.0, 7)
    lips = [_lip_line(theta, share) for share in shares]
    ellipse = np.stack([np.cos(theta), np.sin(theta)], -1)
    ellipse = ellipse * _MOUTH_REACH + [0.0, _MOUTH_Y]
    outside = [lips[-1] + (ellipse - lips[-1]) * s for s in (0.1, 0.25, 0.45, 0.7, 1.0)]
    return np.stack(lips + outside), np.concatenate([shares, np.zeros(5)])


def _lip_relief(xy: np.ndarray, share: np.ndarray) -> np.ndarray:
    """How far the red of the lips stands out, rolling inwards at the slit (cm)."""
    middle = np.sqrt(np.maximum(1 - (xy[..., 0] / 2.6) ** 2, 0.0))
    full = np.where(xy[..., 1] > _MOUTH_Y, 0.36, 0.42)
    return middle * (full * np.sin(math.pi * np.minimum(share, 1.0) ** 0.8) - 0.12 * share**4)


def _eye_patch(side: float) -> np.ndarray:
    """Frontal positions [8, 28, 2] of rings from the lids' edge outwards."""
    theta = _angles(_LID_STEPS)
    edge = lid_edge(theta, side)
    ellipse = np.stack(
        [side * (_EYE[0] - 0.02) + 1.95 * np.cos(theta), 3.55 + 1.55 * np.sin(theta)], -1
    )
    steps = np.linspace(0.0, 1.0, 8) ** 1.4
    return np.stack([edge + (ellipse - edge) * s for s in steps])


def _marked_points() -> np.ndarray:
    """Frontal positions [36, 2] of landmarks 0..35 (jaw line, brows, nose)."""
    jaw = np.array(
        [
            [7.3, 3.6],
            [7.15, 1.6],
            [6.85, -0.4],
            [6.4, -2.4],
            [5.65, -4.4],
            [4.4, -6.2],
            [3.1, -7.1],
            [1.55, -7.55],
        ]
    )
    brow = np.array([[5.7, 4.9], [4.9, 5.5], [3.8, 5.75], [2.45, 5.65], [1.2, 5.35]])
    base = np.array([[1.2, -1.1], [0.6, -1.25]])
    flip = np.array([-1.0, 1.0])
    ridge = np.array([[0.0, 3.7], [0.0, 2.6], [0.0, 1.5], [0.0, 0.35]])
    return np.concatenate(
        [
            jaw * flip,
            [[0.0, -7.7]],
            jaw[::-1],
            brow * flip,
            brow[::-1],
            ridge,
            base * flip,
            [[0.0, -1.3]],
            base[::-1],
        ]
    )


def _grid(half: float, low: float, high: float, spacing: float) -> np.ndarray:
    """Points [N, 2] of a triangular lattice on the front, |x| up to `half`, symmetric in x."""
    rows = []
    for k, y in enumerate(np.arange(low, high, spacing * 0.87)):
        count = 2 * round(half / spacing) + 1 - k % 2
        x = (np.arange(count) - (count - 1) / 2) * spacing
        x = x[np.abs(x) < 0.97 * _section(y)[0]]
        rows.append(np.stack([x, np.full(len(x), y)], -1))
    return np.concatenate(rows)


def _fill(taken: np.ndarray) -> np.ndarray:
    """More (angle, t) [N, 2] to cover the skin about the points `taken` [M, 2]: fine to coarse."""
    front = [
        np.stack(_front(_grid(1.9, -2.3, 4.6, 0.33)), -1),
        np.stack(_front(_grid(6.2, 4.4, 6.5, 0.32)), -1),
        np.stack(_front(_grid(6.6, -8.8, 6.5, 0.6)), -1),
    ]
    rows = [np.linspace(-math.pi, math.pi, 40, endpoint=False) + 0.08 * (k % 2) for k in range(21)]
    tube = np.concatenate(
        [np.stack([a, np.full(40, t)], -1) for a, t in zip(rows, np.linspace(-17, _CAP_START, 21))]
    )
    cap = []
    for k in range(1, 10):
        turn = k / 10 * math.pi / 2
        count = max(6, round(42 * math.cos(turn)))
        a = np.linspace(-math.pi, math.pi, count, endpoint=False) + 0.07 * (k % 2)
        cap.append(np.stack([a, np.full(count, _CAP_START + turn * _CAP_HEIGHT)], -1))
    crown = [[0.0, _CAP_START + _CAP_HEIGHT * math.pi / 2]]
    chosen, added = taken, []
    for points, gap in zip(
        [*front, tube, np.concatenate([*cap, crown])], (0.26, 0.26, 0.45, 0.75, 0.75)
    ):
        tree = scipy.spatial.cKDTree(_loft(*chosen.T))
        free = tree.query(_loft(*points.T))[0] > gap
        added.append(points[free])
        chosen = np.concatenate([chosen, points[free]])
    return np.concatenate(added)


def _skin() -> tuple[_Part, dict[str, np.ndarray]]:
    """The skin with lips and lids, and the vertex numbers of its rings and landmarks 0..35."""
    mouth, share = _mouth_patch()
    eyes = {"eye_right": _eye_patch(-1.0), "eye_left": _eye_patch(1.0)}
    marked = _marked_points()
    patches = {"mouth": mouth, **eyes}
    xy = np.concatenate([marked, *(p.reshape(-1, 2) for p in patches.values())])
    lip_share = np.zeros(len(xy))
    numbers, start = {"marked": np.arange(len(marked))}, len(marked)
    for name, patch in patches.items():
        size = patch.shape[0] * patch.shape[1]
        numbers[name] = np.arange(start, start + size).reshape(patch.shape[:2])
        start += size
    lip_share[numbers["mouth"]] = share[:, None]

    at = np.stack(_front(xy), -1)
    outline = np.concatenate([numbers["marked"], *(numbers[n][-1] for n in patches)])
    fill = _fill(at)
    fill = fill[~_in_patch(_loft(*fill.T), patches)]
    at = np.concatenate([at, fill])
    points = _loft(*at.T)
    points[: len(xy), 2] += _lip_relief(xy, lip_share) * (lip_share > 0)

    flat = np.concatenate([outline, np.arange(len(xy), len(at))])
    triangles = flat[scipy.spatial.Delaunay(_conformal(*at[flat].T)).simplices]
    for name in patches:
        triangles = triangles[~np.isin(triangles, numbers[name][-1]).all(-1)]
    strips = [
        numbers[n].reshape(-1)[_strip(patch.shape[0], patch.shape[1])]
        for n, patch in patches.items()
    ]
    triangles = np.concatenate([_outwards(triangles, at), *strips])
    face = (np.cos(at[:, 0]) > 0.15) & (at[:, 1] > -8.4) & (at[:, 1] < 9.0)
    region = np.where(face, skin.REGIONS.index("face"), skin.REGIONS.index("head_neck"))
    return _Part(points, triangles, region), numbers


def _in_patch(points: np.ndarray, patches: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool: points in or close to the outermost ring of a patch, seen from the front."""
    inside = np.zeros(len(points), bool)
    for patch in patches.values():
        centre = patch[-1].mean(0)
        radius = np.ptp(patch[-1], axis=0) / 2
        inside |= (np.sum(((points[:, :2] - centre) / radius) ** 2, -1) < 1.2) & (points[:, 2] > 5)
    return inside


def _outwards(triangles: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The skin's triangles, each turned anticlockwise as seen from outside."""
    flat = _conformal(*at.T)[triangles]
    one, two = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    inwards = one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0] < 0
    return np.where(inwards[:, None], triangles[:, ::-1], triangles)


def _mouth_bag(slit: np.ndarray) -> np.ndarray:
    """Rings [6, 40, 3] from the back of the mouth forwards to just behind the slit [40, 3]."""
    sine = np.sin(_angles(_LIP_STEPS))
    front = slit[:, 2].max()
    rings = []
    for wide, high, follow, back in (
        (0.02, 0.02, 0.0, -6.0),
        (1.15, 2.1, 0.0, -4.8),
        (1.25, 2.1, 0.2, -2.6),
        (1.1, 1.3, 0.6, -1.1),
        (1.02, 0.5, 0.9, -0.65),
        (1.0, 0.02, 1.0, -0.3),
    ):
        z = follow * slit[:, 2] + (1 - follow) * front + back
        rings.append(np.stack([wide * slit[:, 0], _MOUTH_Y + high * sine, z], -1))
    return np.stack(rings)


def _socket(edge: np.ndarray, side: float) -> np.ndarray:
    """A ring [1, 28, 3] inside the lids' edge [28, 3], just under the eyeball's surface."""
    centre = _EYE[:2] * [side, 1]
    xy = centre + 0.88 * (edge[:, :2] - centre)
    return np.column_stack([xy, _ball(*xy.T, -0.03)])[None]


def _eyeball(side: float) -> _Part:
    polar = np.radians([6, 10, 11.5, 18, 24.5, 26.5, 35, 50, 70, 95])
    theta = _angles(20)
    ring = np.stack(
        [
            np.sin(polar)[:, None] * np.cos(theta),
            np.sin(polar)[:, None] * np.sin(theta),
            np.cos(polar)[:, None] + 0 * theta,
        ],
        -1,
    ).reshape(-1, 3)
    points = np.concatenate([ring, [[0.0, 0.0, 1.0]]]) * _EYE_RADIUS + _EYE * [side, 1, 1]
    step = np.arange(20)
    front = np.stack([np.full(20, len(ring)), step, (step + 1) % 20], -1)
    name = "eyeball_left" if side > 0 else "eyeball_right"
    return _Part.of(points, np.concatenate([_strip(10, 20), front]), name)


def _arch(heights: list[float], out: float, region: str) -> _Part:
    """A band of the dental arch: rows of 37 points at the given heights, top to bottom."""
    turn = np.radians(np.linspace(-100, 100, 37))
    x, z = (2.35 + out) * np.sin(turn), 6.6 + (3.5 + out) * np.cos(turn)
    z = z - 0.08 * (np.arange(37) % 3 == 0)
    points = np.concatenate([np.stack([x, 0 * x + h, z], -1) for h in heights])
    a = (37 * np.arange(len(heights) - 1)[:, None] + np.arange(36)).ravel()
    quads = [np.stack([a, a + 37, a + 38], -1), np.stack([a, a + 38, a + 1], -1)]
    return _Part.of(points, np.concatenate(quads), region)


def _ellipsoid(rings: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit sphere about the x axis: points [rings · steps + 2, 3], triangles."""
    polar = math.pi * (np.arange(rings) + 1) / (rings + 1)
    theta = _angles(steps)
    ring = np.stack(
        [
            np.cos(polar)[:, None] + 0 * theta,
            np.sin(polar)[:, None] * np.cos(theta),
            np.sin(polar)[:, None] * np.sin(theta),
        ],
        -1,
    ).reshape(-1, 3)
    step = np.arange(steps)
    count, last = len(ring), steps * (rings - 1)
    near = np.stack([np.full(steps, count), step, (step + 1) % steps], -1)
    far = np.stack([np.full(steps, count + 1), last + (step + 1) % steps, last + step], -1)
    points = np.concatenate([ring, [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    return points, np.concatenate([_strip(rings, steps), near, far])


def _ear_relief(up: np.ndarray, front: np.ndarray) -> np.ndarray:
    """How far an ear's outer face stands out (cm) at places of the unit disc: rim, ridge, bowl."""
    radius, turn = np.hypot(up, front), np.arctan2(front + 0.3, up + 0.1)
    behind = 1 / (1 + np.exp((np.abs(turn + 0.75) - 1.75) / 0.2))  # from the root over the top
    rim = 0.30 * np.exp(-(((radius - 0.86) / 0.11) ** 2)) * behind
    ridge = 0.22 * np.exp(-(((np.hypot(up + 0.1, front - 0.25) - 0.62) / 0.14) ** 2)) * behind
    bowl = -0.46 * _bump(front, up, 0.3, -0.12, 0.38, 0.4)
    tragus = 0.4 * _bump(front, up, 0.78, -0.2, 0.2, 0.2)
    return rim + ridge + bowl + tragus + 0.1 * _bump(front, up, 0.1, -0.85, 0.5, 0.25)


def _ear(side: float) -> _Part:
    """A cupped disc with rim, ridge, bowl and lobe that stands off the head at its back edge."""
    unit, triangles = _ellipsoid(14, 30)
    out, up, front = unit.T
    relief = _ear_relief(up, front) * np.clip(3.0 * out, 0.0, 1.0)
    wide = 1.7 * (1.0 - 0.3 * np.maximum(-up, 0.0) ** 2 + 0.1 * up)
    y, z = up * (2.9 - 0.3 * (up < 0)), front * wide
    x = 7.35 + 0.25 * out + relief + 0.65 * (1.0 - front) + 0.07 * y
    points = np.stack([x, 2.2 + y, -0.7 + z - 0.22 * y], -1) * [side, 1, 1]
    return _Part.of(points, triangles if side > 0 else triangles[:, ::-1], "head_neck")


def _tongue() -> _Part:
    unit, triangles = _ellipsoid(8, 14)
    points = unit[:, [1, 2, 0]] * [1.75, 0.6, 2.3] + [0.0, -4.1, 7.3]
    return _Part.of(points, triangles, "gums_tongue")


def _join(parts: list[_Part]) -> tuple[_Part, list[int]]:
    """All parts in one, and where each begins."""
    starts = np.concatenate([[0], np.cumsum([len(p.points) for p in parts])])
    triangles = [p.triangles + s for p, s in zip(parts, starts[:-1], strict=True)]
    whole = _Part(
        np.concatenate([p.points for p in parts]),
        np.concatenate(triangles),
        np.concatenate([p.region for p in parts]),
    )
    return whole, starts[:-1].tolist()


def _attach(inside: np.ndarray, start: int, edge: np.ndarray) -> np.ndarray:
    """Triangles of rings numbered from `start` (deepest first), closed onto the ring `edge`."""
    rings, steps = inside.shape[:2]
    numbers = np.concatenate([np.arange(start, start + rings * steps), edge])
    return numbers[_strip(rings + 1, steps)]


def _blink(points: np.ndarray, patch: np.ndarray, side: float) -> np.ndarray:
    """Displacement [V, 3] that lays the upper lid over the eyeball onto the lower lid."""
    theta = _angles(_LID_STEPS)
    upper = np.flatnonzero(np.sin(theta) > 1e-6)
    edge = points[patch[0]]
    lower = np.flatnonzero(np.sin(theta) <= 1e-6)
    order = lower[np.argsort(edge[lower, 0])]
    goal = np.interp(edge[:, 0], edge[order, 0], edge[order, 1])
    shift = np.zeros_like(points)
    follow = (1.0 - np.linspace(0.0, 1.0, len(patch)) ** 1.4) ** 1.3
    for ring, weight in zip(patch, follow, strict=True):
        vertex = ring[upper]
        x, y, z = points[vertex].T
        drop = weight * (goal[upper] - 0.03 - edge[upper, 1])
        over = np.maximum(_ball(x, y + drop, 0.14), z)
        shift[vertex] = np.stack([0 * x, drop, over - z], -1)
    return shift


def _lid_weights(patch: np.ndarray, count: int) -> np.ndarray:
    """[2, V] weights of the upper and the lower lid: 1 at the middle of the edge, 0 far off."""
    fall = (1.0 - np.linspace(0.0, 1.0, len(patch)) ** 1.4)[:, None] ** 2
    sine = np.sin(_angles(_LID_STEPS))
    weights = np.zeros((2, count))
    for row, half in zip(weights, (sine, -sine), strict=True):
        row[patch] = fall * np.maximum(half, 0.0)
    return weights


def _reach(points: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """[V] distance seen from the front from the outer lip contour [40, 3], 0 inside."""
    line = skin.resample(np.concatenate([outer, outer[:1]])[:, :2], 200)
    distance = scipy.spatial.cKDTree(line).query(points[:, :2])[0]
    return np.where(skin.within_lips(points, outer), 0.0, distance)


def _anatomy(
    whole: _Part, numbers: dict[str, np.ndarray], bag: np.ndarray, lower: np.ndarray
) -> gestures.Anatomy:
    """What gestures.py needs to know; `bag` [6, 40] and `lower` are vertex numbers."""
    points, count = whole.points, len(whole.points)
    is_skin = np.isin(whole.region, [skin.REGIONS.index(n) for n in ("face", "head_neck")])
    tissue = is_skin.astype(float)
    tissue[bag] = np.array([0.0, 0.0, 0.15, 0.5, 0.9, 1.0])[:, None]
    beside = (points[:, 1] - _MOUTH_Y) * _MOUTH_REACH[0] / _MOUTH_REACH[1]
    opening = beside / np.maximum(np.hypot(beside, points[:, 0]), 1e-6)
    sine = np.sin(_angles(_LIP_STEPS))
    opening[numbers["mouth"]] = sine
    opening[bag] = sine
    opening[bag[:4]] = np.cbrt(sine)  # floor and roof go with jaw and skull
    share = np.zeros(count)
    share[numbers["mouth"]] = _mouth_patch()[1][:, None]
    share[bag] = 1.0
    outer = points[numbers["mouth"][6]]
    reach = _reach(points, outer)
    reach[numbers["mouth"][:7]] = 0.0
    reach[bag] = 0.0
    lids = [_lid_weights(numbers[name], count) for name in ("eye_left", "eye_right")]
    balls = [whole.region == skin.REGIONS.index(n) for n in ("eyeball_left", "eyeball_right")]
    return gestures.Anatomy(
        points=points,
        tissue=tissue,
        jaw_bone=np.isin(np.arange(count), lower).astype(float),
        opening=opening,
        share=share,
        reach=reach,
        upper_lid=np.stack([lid[0] for lid in lids]),
        lower_lid=np.stack([lid[1] for lid in lids]),
        blink=np.stack(
            [_blink(points, numbers["eye_left"], 1.0), _blink(points, numbers["eye_right"], -1.0)]
        ),
        eyeball=np.stack(balls).astype(float),
        eye_centre=np.stack([_EYE, _EYE * [-1, 1, 1]]),
    )


def _landmarks(numbers: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """landmarks68 and lips79 from the rings' vertex numbers."""
    mouth = numbers["mouth"]
    lids = [14, 10, 4, 0, 24, 18]  # corner at image left, over the top, the other, underneath
    outer = [20, 16, 13, 10, 7, 4, 0, 36, 33, 30, 27, 24]
    inner = [20, 14, 10, 6, 0, 34, 30, 26]
    marks = np.concatenate(
        [
            numbers["marked"],
            numbers["eye_right"][0][lids],
            numbers["eye_left"][0][lids],
            mouth[6][outer],
            mouth[0][inner],
        ]
    )
    around = np.arange(20, 60, 2) % _LIP_STEPS
    rings = np.concatenate([mouth[k][around] for k in (6, 4, 2, 0)])
    return marks.astype(np.int32), rings[:79].astype(np.int32)


def _colours(
    whole: _Part, numbers: dict[str, np.ndarray], marks: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    """Albedo [V, 3]: the common paint, dark lid edges and nostrils, a red glow on the cheeks."""
    lips = np.isin(np.arange(len(whole.points)), numbers["mouth"][:7])
    colour = skin.paint(whole.points, whole.region, lips, marks)
    edges = np.concatenate([numbers[name][0] for name in ("eye_left", "eye_right")])
    colour[edges] *= 0.45
    x, y, z = whole.points.T
    front = (whole.region == skin.REGIONS.index("face"))[:, None]
    nostril = np.maximum(_bump(x, y, 0.55, -1.1, 0.28, 0.14), _bump(x, y, -0.55, -1.1, 0.28, 0.14))
    cheek = np.maximum(_bump(x, y, 4.0, 0.2, 1.6, 1.3), _bump(x, y, -4.0, 0.2, 1.6, 1.3))
    colour *= 1 - 0.7 * nostril[:, None] * front
    return colour + cheek[:, None] * front * [0.01, -0.025, -0.02]


def build() -> MorphableModel:
    """The built-in model `procedural`: about 4,600 vertices in ICT-FaceKit's frame and names."""
    face, numbers = _skin()
    bag = _mouth_bag(face.points[numbers["mouth"][0]])
    sockets = [
        _socket(face.points[numbers[name][0]], side)
        for name, side in (("eye_left", 1.0), ("eye_right", -1.0))
    ]
    hollow = [
        _Part.of(rings.reshape(-1, 3), np.zeros((0, 3), int), name)
        for rings, name in zip(
            [bag, *sockets], ("mouth_socket", "eye_socket_left", "eye_socket_right"), strict=True
        )
    ]
    upper = [_arch([-2.3, -2.95, -3.62], 0.12, "teeth"), _arch([-1.5, -2.3], 0.14, "gums_tongue")]
    lower = [
        _arch([-3.32, -3.9, -4.5], -0.08, "teeth"),
        _arch([-4.5, -5.0], -0.15, "gums_tongue"),
        _tongue(),
    ]
    whole, starts = _join(
        [face, *hollow, *upper, _eyeball(1.0), _eyeball(-1.0), _ear(1.0), _ear(-1.0), *lower]
    )
    edges = [numbers[name][0] for name in ("mouth", "eye_left", "eye_right")]
    attached = [
        _attach(rings, start, edge)
        for rings, start, edge in zip([bag, *sockets], starts[1:4], edges, strict=True)
    ]
    triangles = np.concatenate([whole.triangles, *attached])
    bag_numbers = starts[1] + np.arange(bag.shape[0] * bag.shape[1]).reshape(bag.shape[:2])
    in_jaw = np.arange(starts[-3], len(whole.points))
    anatomy = _anatomy(whole, numbers, bag_numbers, in_jaw)
    names, shapes = gestures.expressions(anatomy)
    landmarks, lips = _landmarks(numbers)
    mean = whole.points.astype(np.float32)
    colour = _colours(whole, numbers, mean[landmarks], in_jaw)
    return MorphableModel(
        mean=mean,
        identity_basis=gestures.identities(anatomy, IDENTITY_DIM),
        expression_basis=padded(shapes * EXPRESSION_STD, EXPRESSION_DIM),
        albedo_mean=colour.astype(np.float32),
        albedo_basis=skin.smooth_albedo_basis(mean, skin.albedo_share(whole.region)),
        triangles=triangles.astype(np.int32),
        landmarks68=landmarks,
        lips79=lips,
        region=whole.region.astype(np.int32),
        name="procedural",
        expression_names=names,
        region_names=skin.REGIONS,
    )
