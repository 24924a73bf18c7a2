"""The shell around the 3DMM's surface: where a radiance field has to be sampled at all.

Host geometry, made once per view and baked into the dataset or by the loader's workers: depths
that bound each ray, and the offset that carries a point back to the neutral head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.prior import morphable, raster
from t3d.prior.morphable import MorphableModel

FACE_MARGIN = 0.6  # cm in front of the skin
BEHIND = 0.9  # cm behind the surface that was hit
HAIR_CHORD = 6.0  # cm: how deep a ray that only grazes the hair is followed
THIN = ("face", "head_neck")  # regions that are inflated; teeth, eyes and sockets are not


@dataclass(frozen=True)
class Shell:
    """A speaker's head as the sampler sees it (NumPy).

    Attributes:
        neutral: [V, 3] cm, the vertices that are drawn (no neck); triangles: [F, 3] of them.
        expression_basis: [K, V · 3] of the expression vectors that move anything, the first K.
        outward: [V, 3] cm, added to a vertex it gives the outer hull (skin margin, hair).
    """

    neutral: np.ndarray
    expression_basis: np.ndarray
    triangles: np.ndarray
    outward: np.ndarray


def make_shell(model: MorphableModel, identity: np.ndarray, scalp: float) -> Shell:
    """The shell of one speaker.

    Args:
        model: the 3DMM (NumPy arrays); identity: [100].
        scalp: cm of room for hair over the skull.
    """
    neutral = np.asarray(
        morphable.vertices(model, np.asarray(identity, np.float32), np.zeros(79, np.float32))
    )
    triangles = np.asarray(model.triangles)
    normals = np.asarray(morphable.vertex_normals(neutral, triangles))
    landmarks = neutral[np.asarray(model.landmarks68)]
    margin = FACE_MARGIN + scalp * _scalp(neutral, landmarks)
    thin = np.isin(np.asarray(model.region), [model.region_names.index(n) for n in THIN])
    kept = triangles[(neutral[:, 1] > _jaw_plane(neutral, landmarks))[triangles].all(1)]
    used, triangles = np.unique(kept, return_inverse=True)
    basis = np.asarray(model.expression_basis, np.float32)
    moving = 1 + np.flatnonzero(basis.any((1, 2))).max()
    return Shell(
        neutral=neutral[used].astype(np.float32),
        expression_basis=np.ascontiguousarray(basis[:moving, used].reshape(moving, -1)),
        triangles=np.ascontiguousarray(triangles.reshape(kept.shape), np.int32),
        outward=(normals * (margin * thin)[:, None])[used].astype(np.float32),
    )


def _scalp(vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """[V] in [0, 1]: 1 on the part of the skull that hair may cover, 0 on the face."""
    brow = landmarks[17:27, 1].max()
    ears = landmarks[[0, 16], 2].mean()
    above = (vertices[:, 1] - brow - 2.5) / 1.0
    behind = (ears - vertices[:, 2] + 0.5) / 1.0
    return 1.0 / (1.0 + np.exp(-np.clip(np.maximum(above, behind), -20, 20)))


def _jaw_plane(vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """[V]: height of the cut under the jaw at each vertex's depth (the neck lies below it)."""
    chin = landmarks[8] - [0, 1.0, 0]
    corner = landmarks[[4, 12]].mean(0) - [0, 1.5, 0]
    share = np.clip((vertices[:, 2] - corner[2]) / (chin[2] - corner[2]), 0.0, 1.0)
    return corner[1] + share * (chin[1] - corner[1])


def guide(
    shell: Shell, expression: np.ndarray, head_to_world: np.ndarray, camera: Camera, size: int
) -> dict[str, np.ndarray]:
    """What the rays of one size × size view need to know (fields of nerf.rays.Guide, and depth).

    Args:
        expression: [79]; head_to_world: [4, 4]; camera: of the view; size: rays per
            side, R = size².

    Returns:
        near, far [R] cm; offset [R, 3] cm; active [R] bool; depth [R] cm of the bare surface
        (infinite where a ray misses it).
    """
    basis = shell.expression_basis
    moved = (np.asarray(expression, np.float32)[: len(basis)] @ basis).reshape(-1, 3)
    expressed = shell.neutral + moved

    def draw(vertices: np.ndarray, farthest: bool = False) -> raster.Raster:
        uv, depth = cameras.project(camera, cameras.transform(head_to_world, vertices))
        return raster.rasterize(uv * size, depth, shell.triangles, size, size, farthest)

    skin, hull = draw(expressed), draw(expressed + shell.outward)
    back = draw(expressed + shell.outward, farthest=True).depth
    hit, inside = skin.triangle >= 0, hull.triangle >= 0
    near = np.where(hit, np.minimum(hull.depth, skin.depth - FACE_MARGIN), hull.depth)
    far = np.where(hit, skin.depth + BEHIND, np.minimum(back, hull.depth + HAIR_CHORD))
    offset = np.where(
        hit[..., None],
        raster.interpolate(skin, shell.triangles, -moved),
        raster.interpolate(hull, shell.triangles, -moved),
    )
    active = hit | inside
    distance = float(np.linalg.norm(head_to_world[:3, 3] - camera.camera_to_world[:3, 3]))
    return {
        "near": np.where(active, near, distance).astype(np.float32).reshape(-1),
        "far": np.where(active, np.maximum(far, near + 0.1), distance + 1.0)
        .astype(np.float32)
        .reshape(-1),
        "offset": np.where(active[..., None], offset, 0).astype(np.float32).reshape(-1, 3),
        "active": active.reshape(-1),
        "depth": skin.depth.astype(np.float32).reshape(-1),
    }


def fit_scalp(
    model: MorphableModel,
    identity: np.ndarray,
    expression: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    masks: np.ndarray,
    choices: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    share: float = 0.995,
) -> float:
    """The least room for hair (cm) whose hull covers `share` of the head masks' pixels.

    Args:
        expression [n, 79], head_to_world [n, 4, 4], masks [n, S, S] in [0, 1] of a few frames.
    """
    size = masks.shape[1]
    for scalp in choices:
        shell = make_shell(model, identity, scalp)
        covered = [
            guide(shell, e, pose, camera, size)["active"].reshape(size, size)[mask > 0.5].mean()
            for e, pose, mask in zip(expression, head_to_world, masks)
            if (mask > 0.5).any()
        ]
        if np.mean(covered) >= share:
            return scalp
    return choices[-1]
