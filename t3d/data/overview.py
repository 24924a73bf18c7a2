"""What the preparation found, as a film: video, landmarks, fitted mesh and mask side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw

from t3d import camera as cameras
from t3d.data import video
from t3d.prior import morphable, raster
from t3d.prior.morphable import MorphableModel

PANEL = 256
CHUNK = 32


class MeshPainter:
    """Draws a fitted head over a picture, shaded by its normals."""

    def __init__(self, model: MorphableModel, track: dict[str, np.ndarray]):
        """Args: the 3DMM; the clip's track (identity, expression, head_to_world, intrinsics)."""
        zero = np.zeros(morphable.EXPRESSION_DIM, np.float32)
        self._neutral = np.asarray(morphable.vertices(model, track["identity"], zero), np.float32)
        used = np.flatnonzero(np.any(np.asarray(model.expression_basis), axis=(1, 2)))
        basis = np.asarray(model.expression_basis, np.float32)[used]
        self._basis = basis.reshape(len(used), -1)
        self._expression = track["expression"][:, used].astype(np.float32)
        self._triangles = np.asarray(model.triangles)
        self._pose = track["head_to_world"].astype(np.float32)
        self._camera = cameras.recorded(track["intrinsics"].astype(np.float32))

    def __call__(self, image: np.ndarray, frame: int) -> np.ndarray:
        """The picture uint8 [S, S, 3] of a frame with the mesh over it."""
        size = image.shape[0]
        moved = (self._expression[frame] @ self._basis).reshape(-1, 3)
        world = cameras.transform(self._pose[frame], self._neutral + moved)
        uv, depth = cameras.project(self._camera, world)
        drawn = raster.rasterize(uv * size, depth, self._triangles, size, size)
        seen, where = np.unique(drawn.triangle[drawn.triangle >= 0], return_inverse=True)
        corners = world[self._triangles[seen]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        light = np.clip(0.15 + 0.75 * np.abs(normal @ np.array([0.3, 0.4, 0.87])), 0, 1)
        out = image.copy()
        out[drawn.triangle >= 0] = (light[where, None] * [190, 205, 225]).astype(np.uint8)
        return out


def draw_points(image: np.ndarray, points: np.ndarray, lips: np.ndarray) -> np.ndarray:
    """A picture uint8 [S, S, 3] with points [N, 2] and lips [M, 2] (fractions) marked on it."""
    size = image.shape[0]
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for marks, colour, radius in ((lips, (255, 90, 90), 0.6), (points, (60, 255, 120), 1.2)):
        for x, y in np.asarray(marks) * size:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(picture)


def panels(
    image: np.ndarray,
    mask: np.ndarray,
    points: np.ndarray,
    lips: np.ndarray,
    mesh: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """One frame of the film, uint8 [256, 1024, 3].

    Args:
        image: uint8 [S, S, 3]; mask: uint8 [S, S]; points and lips: fractions; mesh: draws over
            a picture.
    """
    small = video.resize(image, PANEL)
    share = video.resize(mask, PANEL)[..., None].astype(np.float32) / 255
    tinted = small * share + (0.25 * small + [40, 60, 110]) * (1 - share)
    return np.concatenate(
        [small, draw_points(small, points, lips), mesh(small), tinted.astype(np.uint8)], axis=1
    )


def film(paint: Callable[[int], np.ndarray], frames: int, threads: int = 2) -> Iterator[np.ndarray]:
    """The pictures paint(0) … paint(frames - 1) in order, drawn in several threads."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, frames, CHUNK):
            yield from pool.map(paint, range(start, min(start + CHUNK, frames)))
