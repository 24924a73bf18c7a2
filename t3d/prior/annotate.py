"""Where the 68 landmarks lie on a family of faces: found on pictures of its mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t3d import camera as cameras
from t3d.prior import bfm, morphable, procedural, raster, shading, skin
from t3d.prior.bfm import Family

Detector = Callable[[np.ndarray], np.ndarray | None]

SIZE = 512  # pixels
_DISTANCE = 100.0  # cm
_SHARE = 0.6  # of the picture's side that is filled
_GROUND, _INSIDE = 0.75, 0.1  # brightness of what is behind the head, and within it
_JAW, _INNER, _MOUTH = slice(0, 17), slice(17, 68), slice(48, 68)


def find_landmarks(family: Family, detect: Detector) -> np.ndarray | None:
    """Vertices [68] of the landmarks, or None when no face is seen.

    Each is the visible vertex that lies nearest to where the detector sees the landmark in a
    picture from the front. The mouth's are looked for while it is open, since lips that touch
    cannot be told apart; the jaw's, which are seen edge on, are taken from the built-in head,
    stretched until the other landmarks agree.

    Args:
        family: of faces that look along z.
        detect: picture uint8 [512, 512, 3] → points [68, 2] (pixels), or None.
    """
    calm = np.zeros(len(family.expression), np.float32)
    rough = _seen(family, calm, family.mean, detect)
    marks = None if rough is None else _seen(family, calm, family.mean[rough], detect)
    if marks is None:
        return None
    open_ = bfm.opening(family, marks[51], marks[57])
    again = _seen(family, open_, family.mean[marks], detect)
    if again is not None:
        marks[_MOUTH] = again[_MOUTH]
    marks[_JAW] = skin.nearest_distinct(family.mean, _jaw(family.mean[marks[_INNER]]))
    return marks


def _jaw(inner: np.ndarray) -> np.ndarray:
    """Positions [17, 3] of the jaw line, of those of the 51 other landmarks."""
    built_in = procedural.build()
    marks = built_in.mean[built_in.landmarks68]
    known = marks[_INNER]
    return (marks[_JAW] - known.mean(0)) * inner.std(0) / known.std(0) + inner.mean(0)


def _seen(
    family: Family, expression: np.ndarray, frame: np.ndarray, detect: Detector
) -> np.ndarray | None:
    """Visible vertices [68] under the detected points, in a picture framed on points [N, 3]."""
    points = family.mean + np.einsum("k,kvc->vc", expression, family.expression)
    low, high = frame.min(0), frame.max(0)
    pose = cameras.head_pose(np.zeros(3), np.zeros(3))
    pose[:3, 3] = [0, 0, _DISTANCE] - pose[:3, :3] @ ((low + high) / 2)
    world = cameras.transform(pose, points)
    focal = _SHARE * _DISTANCE / (high - low)[:2].max()
    uv, depth = cameras.project(cameras.recorded(np.array([focal, focal, 0.5, 0.5])), world)
    normals = morphable.vertex_normals(world, family.triangles)
    light = shading.ambient(0.8).reshape(9, 3)
    light[1:3] += np.array([[-0.08], [0.1]], np.float32)  # from above and the front
    colours = shading.shade(np.clip(family.albedo_mean, 0, 1), normals, light.reshape(-1))
    seen = raster.rasterize(uv * SIZE, depth, family.triangles, SIZE, SIZE)
    drawn = seen.triangle >= 0
    outside = drawn & _faces_camera(world, family.triangles)[seen.triangle]
    picture = raster.interpolate(seen, family.triangles, colours)
    picture = np.where(outside[..., None], picture, np.where(drawn, _INSIDE, _GROUND)[..., None])
    found = detect(np.uint8(255 * np.clip(picture, 0, 1) + 0.5))
    if found is None:
        return None
    visible = np.unique(family.triangles[np.unique(seen.triangle[outside])])
    return visible[skin.nearest_distinct(uv[visible] * SIZE, found)]


def _faces_camera(world: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[F] bool: its outside is seen. An open mouth shows the inside of the back of the head."""
    a, b, c = (world[triangles[:, k]] for k in range(3))
    return np.sum(np.cross(b - a, c - a) * a, -1) < 0
