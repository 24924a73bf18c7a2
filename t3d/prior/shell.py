"""The shell around the 3DMM's surface: where a radiance field has to be sampled at all.

Host geometry, made once per view and baked into the dataset or by the loader's workers: depths
that bound each ray, and the offset that carries a point back to the neutral head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.prior import hair as hairs
from t3d.prior import morphable, raster
from t3d.prior.morphable import MorphableModel

FACE_MARGIN = 0.6  # cm in front of the skin
BEHIND = 0.9  # cm behind the surface that was hit
HAIR_CHORD = 6.0  # cm: how deep a ray that only grazes the hair is followed
THIN = ("face", "head_neck")  # regions that are inflated; teeth, eyes and sockets are not
NECK = (1.0, 1.5)  # cm under the chin and the jaw's corners down to which rays are followed
HEAD = (0.5, 0.5)  # the same of the head itself, which masks cut from the neck
BARE = 0.3  # cm of hair: a vertex with less of it is skin
ROOM = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # cm beyond the hair that are tried
COVERED = 0.995  # share of the masks' pixels that the hull has to cover


@dataclass(frozen=True)
class Shell:
    """A speaker's head as the sampler sees it (NumPy).

    Attributes:
        drawn: [V] numbers of the model's vertices that are drawn (little neck), which hang on the
            identity; neutral: [V, 3] cm, where they are; triangles: [F, 3] of them, the first
            `solid` of which are the head's, the others the neck's.
        expression_basis: [K, V · 3] of the expression vectors that move anything, the first K.
        normals: [V, 3] directions in which the skin is inflated, 0 where it is not.
        scalp: [V] in [0, 1], 1 where hair may grow; away: [V, 3] from the skull's middle, the
            direction in which it does (normals would tie knots about the ears).
        hair: [V] cm of it over each vertex; room: cm for more of it on the scalp.
    """

    drawn: np.ndarray
    neutral: np.ndarray
    expression_basis: np.ndarray
    triangles: np.ndarray
    solid: int
    normals: np.ndarray
    scalp: np.ndarray
    away: np.ndarray
    hair: np.ndarray
    room: float

    @property
    def hairy(self) -> np.ndarray:
        """[V, 3] cm, added to a vertex it gives the surface of the hair."""
        return self.away * self.hair[:, None]

    @property
    def outward(self) -> np.ndarray:
        """[V, 3] cm, added to a vertex it gives the outer hull."""
        grown = self.hair + self.room * self.scalp
        return self.normals * FACE_MARGIN + self.away * grown[:, None]


def make_shell(
    model: MorphableModel, identity: np.ndarray, hair: np.ndarray | float, room: float
) -> Shell:
    """The shell of one speaker.

    Args:
        model: the 3DMM (NumPy arrays); identity: [100].
        hair: cm over each of the model's vertices (`fit_hair`), or one for the whole scalp.
        room: cm for hair beyond that.
    """
    neutral = np.asarray(
        morphable.vertices(model, np.asarray(identity, np.float32), np.zeros(79, np.float32))
    )
    triangles = np.asarray(model.triangles)
    normals = np.asarray(morphable.vertex_normals(neutral, triangles))
    landmarks = neutral[np.asarray(model.landmarks68)]
    thin = np.isin(np.asarray(model.region), [model.region_names.index(n) for n in THIN])
    near, above = (
        (neutral[:, 1] > _jaw_plane(neutral, landmarks, *below))[triangles].all(1)
        for below in (NECK, HEAD)
    )
    kept = np.concatenate([triangles[near & above], triangles[near & ~above]])
    used, triangles = np.unique(kept, return_inverse=True)
    basis = np.asarray(model.expression_basis, np.float32)
    moving = 1 + np.flatnonzero(basis.any((1, 2))).max()
    scalp = (_scalp(neutral, landmarks) * thin)[used].astype(np.float32)
    neutral = neutral[used].astype(np.float32)
    away = neutral - neutral[scalp > 0.5].mean(0)
    return Shell(
        drawn=used,
        neutral=neutral,
        expression_basis=np.ascontiguousarray(basis[:moving, used].reshape(moving, -1)),
        triangles=np.ascontiguousarray(triangles.reshape(kept.shape), np.int32),
        solid=int((near & above).sum()),
        normals=(normals * thin[:, None])[used].astype(np.float32),
        scalp=scalp,
        away=away / np.linalg.norm(away, axis=-1, keepdims=True),
        hair=np.asarray(hair * scalp if np.ndim(hair) == 0 else hair[used], np.float32),
        room=room,
    )


def _scalp(vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """[V] in [0, 1]: 1 on the part of the skull that hair may cover, 0 on the face."""
    brow = landmarks[17:27, 1].max()
    ears = landmarks[[0, 16], 2].mean()
    above = (vertices[:, 1] - brow - 2.5) / 1.0
    behind = (ears - vertices[:, 2] + 0.5) / 1.0
    return 1.0 / (1.0 + np.exp(-np.clip(np.maximum(above, behind), -20, 20)))


def _jaw_plane(vertices, landmarks, below_chin: float, below_corners: float) -> np.ndarray:
    """[V]: height of a cut under the jaw at each vertex's depth (the neck lies below it)."""
    chin = landmarks[8] - [0, below_chin, 0]
    corner = landmarks[[4, 12]].mean(0) - [0, below_corners, 0]
    share = np.clip((vertices[:, 2] - corner[2]) / (chin[2] - corner[2]), 0.0, 1.0)
    return corner[1] + share * (chin[1] - corner[1])


def surface(
    shell: Shell, expressed: np.ndarray, head_to_world: np.ndarray, camera: Camera, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The head with its hair as a camera sees it: depth [size, size] (cm, infinite beside it) and
    where it is skin [size, size] bool.

    Args:
        expressed: [V, 3] the shell's vertices in motion.
    """
    vertices = expressed + shell.hairy
    seen = draw(shell, vertices, head_to_world, camera, size)
    skin = (shell.hair < BARE)[shell.triangles].all(1)
    # Through the neck the skull is seen from inside: that is no surface of a head.
    head = _faces(shell, vertices, head_to_world, camera) & (np.arange(len(skin)) < shell.solid)
    hit = (seen.triangle >= 0) & head[seen.triangle]
    return np.where(hit, seen.depth, np.inf), hit & skin[seen.triangle]


def _faces(shell, vertices, head_to_world, camera) -> np.ndarray:
    """[F] whether the triangles turn their outside to the camera."""
    a, b, c = cameras.transform(head_to_world, vertices)[shell.triangles].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    return np.sum(normal * (camera.camera_to_world[:3, 3] - a), -1) > 0


def expressed(shell: Shell, expression: np.ndarray) -> np.ndarray:
    """The shell's vertices [V, 3] with an expression [79] (cm, head frame)."""
    basis = shell.expression_basis
    moved = np.asarray(expression, np.float32)[: len(basis)] @ basis
    return shell.neutral + moved.reshape(-1, 3)


def draw(shell, vertices, head_to_world, camera, size, farthest=False) -> raster.Raster:
    """A shell's vertices [V, 3], wherever they are, in size × size pixels of a camera; `farthest`:
    what lies behind all else.
    """
    uv, depth = cameras.project(camera, cameras.transform(head_to_world, vertices))
    return raster.rasterize(uv * size, depth, shell.triangles, size, size, farthest)


def guide(
    shell: Shell, expression: np.ndarray, head_to_world: np.ndarray, camera: Camera, size: int
) -> dict[str, np.ndarray]:
    """What the rays of one size × size view need to know (fields of nerf.rays.Guide, and more).

    Args:
        expression: [79]; head_to_world: [4, 4]; camera: of the view; size: rays per
            side, R = size².

    Returns:
        near, far [R] cm; offset [R, 3] cm; active [R] bool; depth [R] cm of the surface, hair
        included (infinite where a ray misses it), and skin [R] bool, where that is no hair.
    """
    vertices = expressed(shell, expression)
    at = head_to_world, camera, size
    bare, hull = draw(shell, vertices, *at), draw(shell, vertices + shell.outward, *at)
    back = draw(shell, vertices + shell.outward, *at, farthest=True).depth
    depth, skin = surface(shell, vertices, *at)
    hit, inside = bare.triangle >= 0, hull.triangle >= 0
    near = np.where(hit, np.minimum(hull.depth, bare.depth - FACE_MARGIN), hull.depth)
    far = np.where(hit, bare.depth + BEHIND, np.minimum(back, hull.depth + HAIR_CHORD))
    moved = vertices - shell.neutral
    offset = np.where(
        hit[..., None],
        raster.interpolate(bare, shell.triangles, -moved),
        raster.interpolate(hull, shell.triangles, -moved),
    )
    there = np.isfinite(depth)  # what is asked for there can be reached
    near = np.where(there, np.minimum(near, depth - FACE_MARGIN), near)
    far = np.where(there, np.maximum(far, depth + BEHIND), far)
    active = hit | inside | there
    distance = float(np.linalg.norm(head_to_world[:3, 3] - camera.camera_to_world[:3, 3]))
    return {
        "near": np.where(active, near, distance).astype(np.float32).reshape(-1),
        "far": np.where(active, np.maximum(far, near + 0.1), distance + 1.0)
        .astype(np.float32)
        .reshape(-1),
        "offset": np.where(active[..., None], offset, 0).astype(np.float32).reshape(-1, 3),
        "active": active.reshape(-1),
        "depth": depth.astype(np.float32).reshape(-1),
        "skin": skin.reshape(-1),
    }


def fit_hair(
    model: MorphableModel,
    identity: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    masks: np.ndarray,
) -> np.ndarray:
    """Thickness (cm) of a speaker's hair over the model's vertices, by the masks' outlines.

    Args:
        identity: [100]; head_to_world [n, 4, 4], masks [n, S, S] in [0, 1] of a few frames.
    """
    bald = make_shell(model, identity, 0.0, 0.0)
    hair = np.zeros(len(model.mean), np.float32)
    hair[bald.drawn] = hairs.fit(
        bald.neutral, bald.away, bald.triangles, bald.scalp, head_to_world, camera, masks
    )
    return hair


def fit_room(
    shell: Shell,
    expression: np.ndarray,
    head_to_world: np.ndarray,
    camera: Camera,
    masks: np.ndarray,
) -> float:
    """The least room beyond the hair (cm) whose hull covers the masks.

    Args:
        expression [n, 79], head_to_world [n, 4, 4], masks [n, S, S] in [0, 1] of a few frames.
    """
    size = masks.shape[1]
    for room in ROOM:
        roomy = replace(shell, room=room)
        covered = [
            guide(roomy, e, pose, camera, size)["active"].reshape(size, size)[mask > 0.5].mean()
            for e, pose, mask in zip(expression, head_to_world, masks, strict=True)
            if (mask > 0.5).any()
        ]
        if np.mean(covered) >= COVERED:
            break
    return room
