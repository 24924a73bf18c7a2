"""What the preparation found, as a film: video, landmarks, fitted mesh and mask side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numba
import numpy as np
from PIL import Image, ImageDraw

from t3d import camera as cameras
from t3d.data import video
from t3d.data.threads import in_order
from t3d.prior import morphable, raster
from t3d.prior.morphable import MorphableModel

PANEL = 256
SKIN = (190, 205, 225)
# Parts that are not drawn: through the mouth and the lids one sees whether their rims fit.
INSIDE = ("mouth_socket", "gums_tongue", "teeth", "eye_socket_left", "eye_socket_right")
INSIDE += ("eyeball_left", "eyeball_right")


class MeshPainter:
    """Draws a fitted head over a picture, shaded by its normals."""

    def __init__(self, model: MorphableModel, track: dict[str, np.ndarray]):
        """Args: the 3DMM; the clip's track (identity, expression, head_to_world, intrinsics)."""
        shown = [k for k, name in enumerate(model.region_names) if name not in INSIDE]
        used = np.flatnonzero(np.isin(np.asarray(model.region), shown))
        place = np.full(len(model.mean), -1)
        place[used] = np.arange(len(used))
        triangles = place[np.asarray(model.triangles)]
        self._triangles = np.ascontiguousarray(triangles[(triangles >= 0).all(1)], np.int32)
        model = morphable.restrict(model, used)
        zero = np.zeros(morphable.EXPRESSION_DIM, np.float32)
        self._neutral = np.asarray(morphable.vertices(model, track["identity"], zero), np.float32)
        if _volume(self._neutral, self._triangles) < 0:
            self._triangles = self._triangles[:, ::-1]
        moving = np.flatnonzero(np.any(np.asarray(model.expression_basis), axis=(1, 2)))
        basis = np.asarray(model.expression_basis, np.float32)[moving]
        self._basis = basis.reshape(len(moving), -1)
        self._expression = track["expression"][:, moving].astype(np.float32)
        self._pose = track["head_to_world"].astype(np.float32)
        self._camera = cameras.recorded(track["intrinsics"].astype(np.float32))

    def __call__(self, image: np.ndarray, frame: int) -> np.ndarray:
        """The picture uint8 [S, S, 3] of a frame with the mesh over it."""
        size = image.shape[0]
        # Not a product by BLAS, whose threads would wait for each other's cores.
        moved = np.einsum("k,kn->n", self._expression[frame], self._basis).reshape(-1, 3)
        world = cameras.transform(self._pose[frame], self._neutral + moved)
        uv, depth = cameras.project(self._camera, world)
        light = _light(uv, world, self._triangles)
        front = light > 0
        drawn = raster.rasterize(uv * size, depth, self._triangles[front], size, size)
        colour = light[front, None] * np.array(SKIN, np.float32)
        return np.where(
            drawn.triangle[..., None] < 0, image, colour[drawn.triangle].astype(np.uint8)
        )


@numba.njit(cache=True, nogil=True)
def _light(uv, world, triangles):
    """How bright each triangle is, 0 to 1; 0 where one sees it from behind."""
    out = np.zeros(len(triangles), np.float32)
    for t in range(len(triangles)):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        down = (uv[b, 0] - uv[a, 0]) * (uv[c, 1] - uv[a, 1])
        if down >= (uv[b, 1] - uv[a, 1]) * (uv[c, 0] - uv[a, 0]):
            continue
        ux, vx = world[b, 0] - world[a, 0], world[c, 0] - world[a, 0]
        uy, vy = world[b, 1] - world[a, 1], world[c, 1] - world[a, 1]
        uz, vz = world[b, 2] - world[a, 2], world[c, 2] - world[a, 2]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = max(math.sqrt(x * x + y * y + z * z), 1e-9)
        out[t] = min(0.15 + 0.75 * abs(0.3 * x + 0.4 * y + 0.87 * z) / length, 1.0)
    return out


def _volume(vertices: np.ndarray, triangles: np.ndarray) -> float:
    """Of a mesh, more or less closed; negative where its triangles run clockwise."""
    a, b, c = np.moveaxis((vertices - vertices.mean(0))[triangles], 1, 0)
    return float(np.sum(a * np.cross(b, c)) / 6)


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


def film(paint: Callable[[int], np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """The pictures paint(0) … paint(frames - 1) in order, drawn in several threads."""
    return in_order(paint, range(frames))
