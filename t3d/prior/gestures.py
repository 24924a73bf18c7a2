"""How the built-in head moves and varies: ICT-FaceKit's 53 expressions by formula, 100 shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_JAW_HINGE = np.array([0.0, 0.5, 0.5])
_JAW_ANGLE = math.radians(17.0)
_LOOK_ANGLE = math.radians(24.0)
_RANDOM_SEED = 20


@dataclass(frozen=True)
class Anatomy:
    """What the formulas need to know of a head's V vertices; weights are in [0, 1].

    Attributes:
        points: [V, 3] centimetres.
        tissue: [V] 1 on skin, fading inside the mouth, 0 on teeth, tongue and eyeballs.
        jaw_bone: [V] 1 on what is fixed to the lower jaw.
        opening: [V] sine of the angle about the mouth: 1 above it, -1 below, 0 at its corners.
        share: [V] 0 at the lips' outer contour and outside, 1 at the slit.
        reach: [V] centimetres from the lips, seen from the front; 0 on them.
        upper_lid, lower_lid: [2, V] weights of the lids; left eye (x > 0) first, so below.
        blink: [2, V, 3] displacement (cm) that closes an eye.
        eyeball: [2, V] 1 on the eyeball.
        eye_centre: [2, 3].
    """

    points: np.ndarray
    tissue: np.ndarray
    jaw_bone: np.ndarray
    opening: np.ndarray
    share: np.ndarray
    reach: np.ndarray
    upper_lid: np.ndarray
    lower_lid: np.ndarray
    blink: np.ndarray
    eyeball: np.ndarray
    eye_centre: np.ndarray


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    u = np.clip((x - low) / (high - low), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def _spot(a: Anatomy, centre: tuple[float, float], width: tuple[float, float]) -> np.ndarray:
    """[V] a bump on the front of the skin (cm)."""
    x, y, z = a.points.T
    fall = ((x - centre[0]) / width[0]) ** 2 + ((y - centre[1]) / width[1]) ** 2
    return np.exp(-fall) * a.tissue * _smoothstep(z, 1.0, 5.0)


def _move(weight: np.ndarray, by: tuple[float, float, float]) -> np.ndarray:
    return weight[:, None] * np.array(by)


def _near_lips(a: Anatomy, width: float) -> np.ndarray:
    return np.exp(-((a.reach / width) ** 2)) * a.tissue * _smoothstep(a.points[:, 2], 3.0, 7.0)


def _upper(a: Anatomy) -> np.ndarray:
    return _smoothstep(a.opening, -0.1, 0.9)


def _lower(a: Anatomy) -> np.ndarray:
    return _smoothstep(-a.opening, -0.1, 0.9)


def _half(a: Anatomy, side: int) -> np.ndarray:
    """[V] one half of the face, blending over 1.4 cm; the two halves add up to 1."""
    return _smoothstep(side * a.points[:, 0], -0.7, 0.7)


def jaw(a: Anatomy) -> np.ndarray:
    """[V] how much of the lower jaw's movement a vertex follows."""
    _, y, z = a.points.T
    above = np.maximum(a.opening, 0.0)
    below = 0.4 * (1 - above) ** 2 + 0.6 * np.maximum(-a.opening, 0.0)
    soft = below * _smoothstep(z, 1.5, 7.0) * _smoothstep(y, -10.6, -8.3) * (a.tissue > 0)
    return np.where(a.jaw_bone > 0, 1.0, soft)


def _turn(points: np.ndarray, centre: np.ndarray, axis: int, angle: float) -> np.ndarray:
    """Displacement of points [N, 3] turned about an axis through `centre`."""
    offset = points - centre
    one, two = (axis + 1) % 3, (axis + 2) % 3
    moved = offset.copy()
    moved[:, one] = math.cos(angle) * offset[:, one] - math.sin(angle) * offset[:, two]
    moved[:, two] = math.sin(angle) * offset[:, one] + math.cos(angle) * offset[:, two]
    return moved - offset


def _jaw_open(a: Anatomy) -> np.ndarray:
    pull = _spot(a, (2.5, -3.5), (0.9, 1.3)) - _spot(a, (-2.5, -3.5), (0.9, 1.3))
    swing = _turn(a.points, _JAW_HINGE, 0, _JAW_ANGLE) * jaw(a)[:, None]
    return swing + _move(pull, (-0.3, 0.0, 0.0))


def _rolled(a: Anatomy, lip: np.ndarray, up: float) -> np.ndarray:
    """A lip curled inwards, its slit edge most."""
    inwards = (0.25 + 0.75 * a.share) * lip * _near_lips(a, 0.5)
    lift = lip * _near_lips(a, 0.7)
    return _move(inwards, (0.0, 0.0, -0.9)) + _move(lift * (1 - a.share), (0.0, up, -0.1))


def _funnel(a: Anatomy, narrow: float, apart: float, forward: float) -> np.ndarray:
    near = _near_lips(a, 1.1)
    vertical = apart * (_upper(a) - 1.3 * _lower(a)) * near
    squeeze = -narrow * a.points[:, 0] * near
    return np.stack([squeeze, vertical, forward * near], -1)


def _eye_look(a: Anatomy, eye: int, axis: int, angle: float, lids: float) -> np.ndarray:
    turned = _turn(a.points, a.eye_centre[eye], axis, angle) * a.eyeball[eye][:, None]
    return turned + _move(a.upper_lid[eye] + 0.4 * a.lower_lid[eye], (0.0, lids, 0.0))


def _sided(a: Anatomy, side: int) -> dict[str, np.ndarray]:
    """The expressions of one side of the face; side +1 is the person's left (x > 0)."""
    eye = 0 if side > 0 else 1
    half = _half(a, side)
    corner = _spot(a, (side * 2.6, -3.4), (1.1, 1.1)) * _smoothstep(side * a.points[:, 0], 0, 1.6)
    cheek = _spot(a, (side * 4.0, -0.6), (1.7, 1.5))

    def spot(x: float, y: float, wx: float, wy: float, *by: float) -> np.ndarray:
        return _move(_spot(a, (side * x, y), (wx, wy)), (side * by[0], by[1], by[2]))

    def pull(*by: float) -> np.ndarray:
        return _move(corner, (side * by[0], by[1], by[2]))

    near_upper = _upper(a) * _near_lips(a, 0.9) * half
    near_lower = _lower(a) * _near_lips(a, 0.8) * half
    press = (_lower(a) - _upper(a)) * _near_lips(a, 0.5) * (1 - a.share) * half
    return {
        "browDown": spot(2.6, 5.8, 1.9, 0.9, -0.2, -0.65, 0.1),
        "browInnerUp": spot(1.4, 5.9, 1.3, 1.1, 0.0, 0.75, 0.0),
        "browOuterUp": spot(4.3, 5.9, 1.4, 1.1, 0.0, 0.8, 0.0),
        "cheekPuff": spot(4.3, -2.8, 1.7, 1.7, 0.8, 0.0, 0.9),
        "cheekSquint": spot(3.6, 1.2, 1.5, 0.9, 0.0, 0.5, 0.25),
        "eyeBlink": a.blink[eye],
        "eyeLookDown": _eye_look(a, eye, 0, _LOOK_ANGLE, -0.3),
        "eyeLookIn": _eye_look(a, eye, 1, -side * _LOOK_ANGLE, 0.0),
        "eyeLookOut": _eye_look(a, eye, 1, side * _LOOK_ANGLE, 0.0),
        "eyeLookUp": _eye_look(a, eye, 0, -_LOOK_ANGLE, 0.2),
        "eyeSquint": _move(a.lower_lid[eye], (0.0, 0.26, 0.02))
        + _move(a.upper_lid[eye], (0.0, -0.12, 0.03)),
        "eyeWide": _move(a.upper_lid[eye], (0.0, 0.26, -0.04))
        + _move(a.lower_lid[eye], (0.0, -0.06, 0.0)),
        "mouthDimple": pull(0.5, 0.05, -0.5),
        "mouthFrown": pull(0.1, -0.65, -0.1) + spot(1.9, -5.0, 0.9, 0.7, 0.0, -0.2, 0.0),
        "mouthLowerDown": _move(near_lower, (0.0, -0.55, -0.05)),
        "mouthPress": _move(press, (0.0, 0.22, -0.05)) + pull(0.12, 0.05, -0.1),
        "mouthSmile": pull(0.8, 0.95, -0.65) + _move(cheek, (0.15 * side, 0.4, 0.3)),
        "mouthStretch": pull(0.8, -0.3, -0.6),
        "mouthUpperUp": _move(near_upper, (0.0, 0.6, -0.05)),
        "noseSneer": spot(1.2, -0.5, 0.7, 0.7, 0.05, 0.45, 0.1)
        + spot(0.7, 2.6, 0.6, 1.0, 0.0, 0.2, 0.08)
        + spot(1.8, -2.0, 0.9, 0.7, 0.0, 0.3, 0.0),
    }


def _central(a: Anatomy) -> dict[str, np.ndarray]:
    """The expressions that have no side."""
    slide = jaw(a) * np.where(a.jaw_bone > 0, 1.0, a.tissue)
    lips = _near_lips(a, 1.7)
    chin = _spot(a, (0.0, -6.2), (1.9, 1.3))
    return {
        "jawForward": _move(slide, (0.0, -0.15, 1.0)),
        "jawLeft": _move(slide, (0.9, 0.0, 0.0)),
        "jawOpen": _jaw_open(a),
        "jawRight": _move(slide, (-0.9, 0.0, 0.0)),
        "mouthClose": -_jaw_open(a) * _near_lips(a, 1.0)[:, None],
        "mouthFunnel": _funnel(a, 0.16, 0.55, 0.75),
        "mouthLeft": _move(lips, (1.0, 0.0, 0.0)),
        "mouthPucker": _funnel(a, 0.3, 0.0, 0.9),
        "mouthRight": _move(lips, (-1.0, 0.0, 0.0)),
        "mouthRollLower": _rolled(a, _lower(a), 0.55),
        "mouthRollUpper": _rolled(a, _upper(a), -0.5),
        "mouthShrugLower": _move(_lower(a) * _near_lips(a, 1.1), (0.0, 0.4, 0.3))
        + _move(chin, (0.0, 0.5, 0.15)),
        "mouthShrugUpper": _move(_upper(a) * _near_lips(a, 0.9), (0.0, 0.5, 0.1)),
    }


def expressions(a: Anatomy) -> tuple[tuple[str, ...], np.ndarray]:
    """ICT-FaceKit's 53 names in its order, and their displacements [53, V, 3] (cm, weight 1)."""
    shapes = _central(a)
    for suffix, side in (("_L", 1), ("_R", -1)):
        shapes |= {name + suffix: shape for name, shape in _sided(a, side).items()}
    names = tuple(sorted(shapes))
    return names, np.stack([shapes[name] for name in names]).astype(np.float32)


def _waves(points: np.ndarray, count: int, symmetric: int) -> list[np.ndarray]:
    """Smooth random displacement fields [V, 3], from long waves to short, falling in size."""
    rng = np.random.default_rng(_RANDOM_SEED)
    fields = []
    for k in range(count):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        length = 18.0 - 11.0 * k / count
        wave = 2 * math.pi / length * direction
        phase = rng.uniform(0, 2 * math.pi)
        along = points[:, 1:] @ wave[1:] + phase
        way = rng.normal(size=3)
        way *= (0.12 / (1.0 + 0.05 * k)) / np.linalg.norm(way)
        if k < symmetric:
            across = points[:, 0] * wave[0]
            even = np.cos(across) * np.cos(along)
            fields.append(np.stack([np.sin(across) * np.cos(along), even, even], -1) * way)
        else:
            fields.append(np.cos(points[:, 0] * wave[0] + along)[:, None] * way * 0.6)
    return fields


def identities(a: Anatomy, count: int) -> np.ndarray:
    """Shapes of people: [count, V, 3] centimetres per σ; proportions first, then smooth waves.

    An eyeball takes the displacement of its centre, so that it stays round, and its lids nearly.
    """
    points = a.points.copy()
    for eye, centre in enumerate(a.eye_centre):
        fall = np.sum(((a.points - centre) / [1.7, 1.3, 4.0]) ** 2, -1)
        follow = np.where(a.eyeball[eye] > 0, 1.0, 0.85 * np.exp(-fall))
        points += follow[:, None] * (centre - points)
    x, y, z = points.T
    zero = np.zeros_like(x)

    def at(cx: float, cy: float, cz: float, wide: float, high: float, deep: float) -> np.ndarray:
        side = np.abs(x) if cx else x
        fall = ((side - cx) / wide) ** 2 + ((y - cy) / high) ** 2 + ((z - cz) / deep) ** 2
        return np.exp(-fall)

    def along(*by: np.ndarray | float) -> np.ndarray:
        return np.stack([zero + b for b in by], -1)

    apart = np.tanh(x / 1.5)
    jaw_side, cheek = at(5.5, -5.5, 4, 3, 3.5, 5), at(5.5, 0.5, 6, 3, 3, 5)
    chin, nose = at(0, -7, 10, 2.5, 2.2, 4), at(0, 0.3, 12, 1.8, 1.8, 3)
    bridge, brow = at(0, 3, 11, 1.3, 1.6, 3), at(0, 5.6, 10, 5.5, 1.6, 5)
    eyes, mouth = at(3.1, 3.5, 9, 2.4, 1.8, 4), at(0, -3.4, 11, 3.4, 2.0, 5)
    crown, brain = _smoothstep(y, 4.0, 14.0), _smoothstep(-z, -2.0, 9.0) * _smoothstep(y, -6, 4)
    middle = _smoothstep(y, -6.0, 2.0)
    fields = [
        points * 0.025,
        along(x * 0.035, 0, 0),
        along(0, (y - 3.5) * 0.035, 0),
        along(0, 0, z * 0.03),
        along(0.35 * apart * jaw_side, 0, 0),
        along(0, -0.4 * chin, 0),
        along(0, 0, 0.4 * chin),
        along(0, -0.25 * nose, 0),
        along(0, 0, 0.3 * nose),
        along(0.12 * x * nose, 0, 0),
        along(0, 0, 0.25 * bridge),
        along(0.12 * apart * eyes, 0, 0),
        along(0, 0.15 * eyes, 0),
        along(0, 0.25 * brow, 0),
        along(0, 0, 0.25 * brow),
        along(0.3 * apart * cheek, 0, 0.1 * cheek),
        along(0, 0, 0.3 * at(4.5, -2.0, 8, 2, 2, 4)),
        along(0.07 * x * mouth, 0, 0),
        along(0, 0.2 * mouth, 0),
        along(0, 0, 0.25 * mouth),
        along(0, 0.16 * (_upper(a) - _lower(a)) * _near_lips(a, 0.5) * (1 - a.share), 0),
        along(0, 0.5 * crown, 0),
        along(0, 0, -0.5 * brain),
        along(0, 0, -0.35 * crown * _smoothstep(z, 0, 9)),
        along(0.05 * x * (1 - middle) * _smoothstep(-y, 7.5, 10), 0, 0),
        along(0.25 * np.tanh(x) * _smoothstep(np.abs(x), 7.6, 8.6), 0, 0),
    ]
    fields += _waves(points, count - len(fields), symmetric=50)
    return np.stack(fields).astype(np.float32)
