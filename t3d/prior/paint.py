"""Colours of a speaker's surface: as the frames show it, and where none does, like its neighbours.

A radiance field learns nothing of what no frame shows, and turned views show that. Hair is
continued by hair and skin by skin, and either by its mirror image.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import minimum_filter
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.prior import appearance, hair, morphable, raster
from t3d.prior.shell import BARE, Shell, draw, expressed

RIM = 5  # pixels: side of the square that has to lie in the mask
NEARER = 0.3  # cm that a surface has to be in front of a vertex to hide it
GLANCED, SHOWN = 0.2, 0.5  # cosines of a look under which nothing is told, and from which all is
ACROSS = 0.02  # of a difference between hair and skin, against one within either
MIRROR = 0.2  # of a difference between a vertex and its mirror image
APART = 1.0  # cm between a vertex and the mirror image of another that are still a pair
TOLD = 30.0  # of what a frame shows, against a difference between neighbours


def paint(
    head: Shell,
    expression: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    images: np.ndarray,
    masks: np.ndarray,
) -> np.ndarray:
    """Colours [V, 3] in [0, 1] of a head with its hair, of its shell's vertices, by some frames.

    Args:
        expression: [n, 79]; head_to_world: [n, 4, 4]; camera: of all of them.
        images: uint8 [n, S, S, 3]; masks: [n, S, S] in [0, 1].
    """
    count = len(head.neutral)
    total, power, seen = np.zeros((count, 3)), np.zeros(count), np.zeros(count)
    for code, pose, *picture in zip(expression, head_to_world, images, masks, strict=True):
        colour, cosine = _look(head, code, pose, camera, *picture)
        total += cosine[:, None] ** 2 * colour
        power += cosine**2
        seen = np.maximum(seen, cosine)
    seen = np.clip((seen - GLANCED) / (SHOWN - GLANCED), 0.0, 1.0)
    mean = total / np.maximum(power, 1e-9)[:, None]
    told = TOLD * seen + 1e-6
    smooth = splu((diags_array(told) + _alike(head)).tocsc())
    usual = mean[seen > 0].mean(0) if (seen > 0).any() else np.full(3, 0.5)
    colour = smooth.solve(told[:, None] * np.where(seen[:, None] > 0, mean, usual))
    return np.clip(colour, 0, 1).astype(np.float32)


def drawn(
    head: Shell,
    colours: np.ndarray,
    expression: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours uint8 [size², 3] that the rays of a size × size view meet, and which of them [size²]
    meet any: skin or hair. Mouths, which are another in each frame, and eyes have none.

    Args:
        colours: [V, 3] in [0, 1]; expression: [79]; head_to_world: [4, 4]; camera: of the view.
    """
    vertices = expressed(head, expression) + head.hairy
    seen = draw(head, vertices, head_to_world, camera, size)
    met = raster.interpolate(seen, head.triangles, colours)
    painted = (seen.triangle >= 0) & _outer(head)[head.triangles].all(1)[seen.triangle]
    return (255 * met).round().astype(np.uint8).reshape(-1, 3), painted.reshape(-1)


def _outer(head: Shell) -> np.ndarray:
    """[V] bool: skin, with or without hair; not the mouth's inside, teeth or eyes."""
    return head.normals.any(-1)


def _look(head, code, pose, camera, image, mask) -> tuple[np.ndarray, np.ndarray]:
    """Colours [V, 3] at the vertices, and cosines [V] of the looks at them, 0 where hidden."""
    size, vertices = mask.shape[0], expressed(head, code) + head.hairy
    world = cameras.transform(pose, vertices)
    uv, depth = cameras.project(camera, world)
    normals = np.asarray(morphable.vertex_normals(world, head.triangles))
    way = world - camera.camera_to_world[:3, 3]
    cosine = -np.sum(normals * way, -1) / np.linalg.norm(way, axis=-1)
    front = draw(head, vertices, pose, camera, size).depth
    column, row = np.clip((uv * size).astype(int), 0, size - 1).T
    inside = minimum_filter(mask, RIM, mode="constant")[row, column] > 0.5
    shown = inside & (depth < front[row, column] + NEARER) & _outer(head)
    colours = appearance.sample(image[None], uv[None])[0] / 255
    return colours, np.where(shown, np.maximum(cosine, 0.0), 0.0)


def _alike(head: Shell):
    """[V, V] sparse: cᵀ A c is what colours cost that differ from a neighbour's or the mirror's."""
    pairs, count = hair.edges(head.triangles), len(head.neutral)
    apart, other = cKDTree(head.neutral).query(head.neutral * [-1, 1, 1])
    own = np.flatnonzero((apart < APART) & (other != np.arange(count)))
    mirrored = np.unique(np.sort(np.stack([own, other[own]], 1), 1), axis=0)
    both = np.concatenate([pairs, mirrored])
    hairy = head.hair >= BARE
    alike = np.where(hairy[both[:, 0]] == hairy[both[:, 1]], 1.0, ACROSS)
    weight = alike * np.repeat([1.0, MIRROR], [len(pairs), len(mirrored)])
    near = coo_array((weight, both.T), (count, count)).tocsr()
    near = near + near.T
    return diags_array(np.asarray(near.sum(1)).ravel()) - near
