"""Rendered heads with random codes, light and background: faces whose every code is known.

A clip shows one person in one light who never says all that a mouth can do. The 3DMM encoder
(encoder.py) learns from these heads beside it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.sparse import csr_array

from t3d import camera as cameras
from t3d.prior import morphable, raster, shading
from t3d.prior.morphable import MorphableModel

Arrays = dict[str, np.ndarray]
CODES = ("identity", "expression", "albedo", "illumination", "head_to_world")
FINER = 2  # pixels drawn beside each other that make one
CHUNK = 16  # heads whose vertices are in memory at once
TURN = np.radians([5.0, 9.0, 4.0])  # deviations from the clip's poses: nod, shake, tilt
FAR = 1.3  # most that a head is further away or nearer
# What mouths do, as weights of blendshapes: (least, most) of each.
GESTURES = (
    {"jawOpen": (0.1, 0.8)},
    {"jawOpen": (0.05, 0.4), "mouthFunnel": (0.2, 1.0)},
    {"jawOpen": (0.0, 0.2), "mouthPucker": (0.3, 1.0)},
    {"jawOpen": (0.0, 0.4), "mouthSmile": (0.2, 0.8)},
    {"jawOpen": (0.0, 0.3), "mouthStretch": (0.2, 0.8)},
    {"jawOpen": (0.0, 0.3), "mouthLowerDown": (0.1, 0.7), "mouthUpperUp": (0.0, 0.5)},
    {"mouthPress": (0.1, 0.8), "mouthRollLower": (0.0, 0.7), "mouthRollUpper": (0.0, 0.7)},
    {"jawOpen": (0.0, 0.1), "mouthFrown": (0.0, 0.5), "mouthShrugLower": (0.0, 0.5)},
)
UPPER = {"eyeBlink": 0.3, "browDown": 0.3, "browInnerUp": 0.3, "cheekSquint": 0.2}
INSIDE = ("mouth_socket", "gums_tongue", "teeth")


def draw_codes(model: MorphableModel, seen: Arrays, count: int, rng: np.random.Generator) -> Arrays:
    """Codes of heads like a speaker's and beyond.

    Half of the heads have a shape and a skin near the speaker's, the others anyone's; half make a
    face that the speaker makes, or a mixture of two such, the others one of GESTURES (where the
    model's expressions have names).

    Args:
        seen: identity [100] and albedo [100] of the speaker; expression [N, 79], illumination
            [N, 27] and head_to_world [N, 4, 4] of a clip.

    Returns:
        CODES, [count, …] each, float32.
    """
    near = rng.random((count, 1)) < 0.5
    one, other = rng.integers(len(seen["expression"]), size=(2, count))
    codes = {
        name: np.where(near, seen[name] + 0.3 * rng.normal(size=(count, 100)), _any(count, rng))
        for name in ("identity", "albedo")
    }
    share = rng.uniform(-0.3, 1.3, (count, 1))
    mixed = share * seen["expression"][one] + (1 - share) * seen["expression"][other]
    made = (rng.random((count, 1)) < 0.5) & bool(model.expression_names)
    codes["expression"] = np.where(made, _gestures(model, mixed, rng), mixed)
    codes["illumination"] = _lights(seen["illumination"][other], rng)
    codes["head_to_world"] = _poses(seen["head_to_world"][one], rng)
    return {name: value.astype(np.float32) for name, value in codes.items()}


def _any(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.8, (count, 100))


def _gestures(model: MorphableModel, mixed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gesture of the mouth for each head [N, 79], over a little of what the speaker does."""
    positions = {name: k for k, name in enumerate(model.expression_names)}
    out = rng.uniform(0, 0.3, (len(mixed), 1)) * mixed
    for row in out:
        chosen = GESTURES[rng.integers(len(GESTURES))]
        weights = {name: rng.uniform(*bounds) for name, bounds in chosen.items()}
        weights |= {name: rng.exponential(scale) for name, scale in UPPER.items()}
        for name, weight in weights.items():
            for full in (name, f"{name}_L", f"{name}_R"):
                if full in positions:
                    weight *= rng.uniform(0.8, 1.2)
                    row[positions[full]] += min(weight, 1.0) / morphable.EXPRESSION_STD
    return out


def _lights(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lights [N, 27] brighter or darker than given ones, tinted, and with another direction."""
    bands = light.reshape(-1, 9, 3) * rng.uniform(0.7, 1.25, (len(light), 1, 1))
    bands = bands * rng.uniform(0.9, 1.1, (len(light), 1, 3))
    strength = bands[:, :1].mean(-1, keepdims=True)
    bands[:, 1:4] += strength * rng.normal(0, 0.2, (len(light), 3, 1))
    return bands.reshape(-1, 27)


def _poses(head_to_world: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poses [N, 4, 4] turned away from given ones, nearer or further off."""
    count = len(head_to_world)
    turn = cameras.rotation_matrix(TURN * rng.normal(size=(count, 3)))
    place = head_to_world[:, :3, 3] * FAR ** rng.uniform(-1, 1, (count, 1))
    return cameras.rigid(turn @ head_to_world[:, :3, :3], place)


def draw_heads(
    model: MorphableModel,
    codes: Arrays,
    intrinsics: np.ndarray,
    boxes: np.ndarray,
    side: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws face crops, lit as their codes say, on white, a colour or noise.

    Args:
        codes: CODES [N, …]; intrinsics: [4]; boxes: [N, 3] (cx, cy, side) of the crops, fractions
            of the image side.
        side: of the crops in pixels.

    Returns:
        uint8 [N, side, side, 3].
    """
    focal = intrinsics[:2] / boxes[:, 2:]
    middle = (intrinsics[2:] - boxes[:, :2]) / boxes[:, 2:] + 0.5
    crops = np.concatenate([focal, middle], 1)
    seeds = rng.integers(2**63, size=len(boxes))
    painter = _Painter(model, side)
    faces = np.empty((len(boxes), side, side, 3), np.uint8)
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(boxes), CHUNK):
            rows = slice(first, first + CHUNK)
            part = {name: codes[name][rows] for name in CODES}
            shapes = morphable.vertices(model, part["identity"], part["expression"])
            worlds = cameras.transform(part["head_to_world"], shapes)
            skins = morphable.albedo(model, part["albedo"])
            given = (worlds, skins, part["illumination"], crops[rows], seeds[rows])
            for k, face in enumerate(pool.map(painter, *given)):
                faces[first + k] = face
    return faces


class _Painter:
    """Draws one head after the other of one model."""

    def __init__(self, model: MorphableModel, side: int):
        self._triangles, self._side = np.asarray(model.triangles), side
        corners = self._triangles.T.ravel()
        faces = np.tile(np.arange(len(self._triangles)), 3)
        shape = (len(model.mean), len(self._triangles))
        self._around = csr_array((np.ones(len(faces), np.float32), (corners, faces)), shape)
        self._reach = light_inside(model, model.mean[model.landmarks68])

    def __call__(self, world, skin, light, intrinsics, seed) -> np.ndarray:
        rng, size = np.random.default_rng(seed), FINER * self._side
        uv, depth = cameras.project(cameras.recorded(intrinsics), world)
        seen = raster.rasterize(uv * size, depth, self._triangles, size, size)
        reach = self._reach ** rng.uniform(0.6, 1.6)
        colour = shading.shade(skin * reach[:, None], self._normals(world), light)
        head = raster.interpolate(seen, self._triangles, colour.clip(0, 1))
        paper = _background(size, rng)
        image = np.where(seen.triangle[..., None] >= 0, head, paper)
        small = image.reshape(self._side, FINER, self._side, FINER, 3).mean((1, 3))
        return (small * 255).round().astype(np.uint8)

    def _normals(self, world: np.ndarray) -> np.ndarray:
        a, b, c = (world[self._triangles[:, k]] for k in range(3))
        total = self._around @ np.cross(b - a, c - a)
        return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-10)


def light_inside(model: MorphableModel, marks: np.ndarray) -> np.ndarray:
    """[V] how much light reaches a vertex: the mouth's inside darkens with its depth (cm).

    Args:
        marks: [68, 3] cm, the landmarks of a head.
    """
    reach = np.ones(len(model.mean), np.float32)
    names = [k for k, name in enumerate(model.region_names) if name in INSIDE]
    inside = np.isin(model.region, names)
    depth = marks[48:68, 2].mean() - model.mean[inside, 2]
    reach[inside] = np.clip(0.85 - depth / 5, 0.12, 0.7)
    return reach


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """White, as behind a cut-out head, or a colour with soft noise: [size, size, 3] or [3]."""
    if rng.random() < 0.5:
        return np.ones(3)
    coarse = rng.uniform(size=3) + 0.25 * rng.normal(size=(size // 8, size // 8, 3))
    return np.clip(zoom(gaussian_filter(coarse, (1, 1, 0)), (8, 8, 1), order=1), 0, 1)
