"""The camera convention that everything uses.

OpenCV axes: x right, y down, z forward. Pixel centres at half integers: pixel (row i, column j)
of a W-wide image lies at u = (j + 0.5) / W. Intrinsics are fractions of the (square) image's
side, so one camera serves every resolution. The world is the recorded camera's frame; a head
moves in it by `head_to_world`. A ray's parameter is the depth along the camera's z axis.

NumPy arrays in give NumPy arrays out, JAX arrays give JAX arrays.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = Any

# Turns a head that faces the viewer (x right, y up, z out of the face) into OpenCV axes.
FRONTAL = np.diag([1.0, -1.0, -1.0]).astype(np.float32)


@struct.dataclass
class Camera:
    """A pinhole camera.

    Attributes:
        intrinsics: [..., 4] = (fx, fy, cx, cy), fractions of the image side.
        camera_to_world: [..., 4, 4] rigid motion.
    """

    intrinsics: Array
    camera_to_world: Array


def _numpy_like(*arrays: Array) -> Any:
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


def recorded(intrinsics: Array) -> Camera:
    """The camera that made the recording: its frame is the world."""
    xp = _numpy_like(intrinsics)
    eye = xp.eye(4, dtype=xp.float32)
    return Camera(intrinsics, xp.broadcast_to(eye, (*intrinsics.shape[:-1], 4, 4)))


def transform(matrix: Array, points: Array) -> Array:
    """Rigid motion [..., 4, 4] of points [..., N, 3]."""
    xp = _numpy_like(matrix, points)
    return points @ xp.swapaxes(matrix[..., :3, :3], -1, -2) + matrix[..., None, :3, 3]


def inverse(matrix: Array) -> Array:
    """Inverse of a rigid motion [..., 4, 4]."""
    xp = _numpy_like(matrix)
    rotation = xp.swapaxes(matrix[..., :3, :3], -1, -2)
    translation = -(rotation @ matrix[..., :3, 3:])
    bottom = xp.broadcast_to(matrix[..., 3:, :], (*matrix.shape[:-2], 1, 4))
    return xp.concatenate([xp.concatenate([rotation, translation], -1), bottom], -2)


def rotation_matrix(rotvec: Array) -> Array:
    """Axis-angle [..., 3] (radians) to rotation matrices [..., 3, 3] (Rodrigues), smooth at 0."""
    xp = _numpy_like(rotvec)
    squared = xp.sum(rotvec * rotvec, -1)[..., None, None]
    safe = xp.where(squared > 1e-8, squared, 1.0)
    angle = xp.sqrt(safe)
    sinc = xp.where(squared > 1e-8, xp.sin(angle) / angle, 1.0 - squared / 6.0)
    cosc = xp.where(squared > 1e-8, (1.0 - xp.cos(angle)) / safe, 0.5 - squared / 24.0)
    x, y, z = rotvec[..., 0], rotvec[..., 1], rotvec[..., 2]
    zero = xp.zeros_like(x)
    cross = xp.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    cross = cross.reshape(*rotvec.shape[:-1], 3, 3)
    eye = xp.eye(3, dtype=rotvec.dtype)
    return eye + sinc * cross + cosc * (cross @ cross)


def rigid(rotation: Array, translation: Array) -> Array:
    """Rotation [..., 3, 3] and translation [..., 3] as one matrix [..., 4, 4]."""
    xp = _numpy_like(rotation, translation)
    top = xp.concatenate([rotation, translation[..., None]], -1)
    bottom = xp.broadcast_to(
        xp.asarray([0.0, 0.0, 0.0, 1.0], dtype=top.dtype), (*top.shape[:-2], 1, 4)
    )
    return xp.concatenate([top, bottom], -2)


def head_pose(rotvec: Array, translation: Array) -> Array:
    """head_to_world [..., 4, 4] of a head turned by `rotvec` away from facing the camera.

    Args:
        rotvec: [..., 3] axis-angle in world axes, radians; 0 faces the recorded camera.
        translation: [..., 3] centimetres; z is the distance from the camera.
    """
    return rigid(rotation_matrix(rotvec) @ FRONTAL, translation)


def project(camera: Camera, points: Array) -> tuple[Array, Array]:
    """World points [..., N, 3] to image positions [..., N, 2] (fractions) and depths [..., N]."""
    local = transform(inverse(camera.camera_to_world), points)
    depth = local[..., 2]
    k = camera.intrinsics[..., None, :]
    xp = _numpy_like(local, k)
    return xp.stack(
        [
            k[..., 0] * local[..., 0] / depth + k[..., 2],
            k[..., 1] * local[..., 1] / depth + k[..., 3],
        ],
        -1,
    ), depth


def rays(camera: Camera, size: int) -> tuple[Array, Array]:
    """Rays through the centres of a size × size image, row by row.

    Returns:
        origin [..., 3] and direction [..., size², 3] in the world; the direction has unit length
        along the camera's z axis, so that a ray's parameter is the depth.
    """
    xp = _numpy_like(camera.intrinsics, camera.camera_to_world)
    centre = (xp.arange(size, dtype=xp.float32) + 0.5) / size
    v, u = xp.meshgrid(centre, centre, indexing="ij")
    k = camera.intrinsics[..., None, :]
    x = (u.reshape(-1) - k[..., 2]) / k[..., 0]
    y = (v.reshape(-1) - k[..., 3]) / k[..., 1]
    local = xp.stack([x, y, xp.ones_like(x)], -1)
    rotation = camera.camera_to_world[..., :3, :3]
    return camera.camera_to_world[..., :3, 3], local @ xp.swapaxes(rotation, -1, -2)


def orbit(camera: Camera, pivot: Array, yaw: float, pitch: float) -> Camera:
    """Moves a camera on a sphere about `pivot` [3] (world).

    Args:
        yaw: degrees; positive moves the camera to the image's right, so the head's left
            (image-right) cheek comes into view.
        pitch: degrees; positive moves the camera up.
    """
    turn = rotation_matrix(np.array([0.0, -math.radians(yaw), 0.0], np.float32)) @ rotation_matrix(
        np.array([-math.radians(pitch), 0.0, 0.0], np.float32)
    )
    pivot = np.asarray(pivot, np.float32)
    about = rigid(turn.astype(np.float32), pivot - turn.astype(np.float32) @ pivot)
    return Camera(camera.intrinsics, about @ camera.camera_to_world)
