"""AD-NeRF's face model and tracked parameters (YudongGuo/AD-NeRF, data_util/face_tracking).

Theirs: decimetres, camera axes with y up and z towards the viewer (a face in front has z < 0),
R = Rx(θ) Ry(φ) Rz(-ψ), colours from 0 to 255, light as 3 channels × 9 bands without the 0.8 that
is added to each channel's first when it shines. The codes are in σ and so are ours: `bfm09` with
AD-NeRF's expressions is the same linear model, moved to our place. Their origin is the mean of its
vertices, in our model `model.mean.mean(0)`: the `origin` that functions here ask for.

Their `compute_tri_normal` of util.py divides by a norm over the triangles where it means one over
x, y, z; nothing here needs it. `vertex_normals` are those their renderer shades with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from t3d import camera
from t3d.errors import UserError
from t3d.peers import torch_file

CENTIMETRES = 10.0  # in their unit
_EVEN_LIGHT = 0.8


def rotation(euler: np.ndarray) -> np.ndarray:
    """Their rotation [..., 3, 3], model to camera in their axes, of euler [..., 3] (radians)."""
    turns = np.eye(3) * (np.asarray(euler) * [1, 1, -1])[..., None]
    about_x, about_y, about_z = np.moveaxis(camera.rotation_matrix(turns), -3, 0)
    return about_x @ about_y @ about_z


def head_to_world(
    euler: np.ndarray, trans: np.ndarray, origin: np.ndarray | None = None
) -> np.ndarray:
    """Our head_to_world [..., 4, 4] (centimetres, OpenCV axes).

    Args:
        euler: [..., 3] radians; trans: [..., 3] in their unit.
        origin: [3] centimetres, where their model's origin lies in our model's frame; none: at
            its origin.
    """
    turn = camera.FRONTAL @ rotation(euler)
    moved = CENTIMETRES * np.asarray(trans) @ camera.FRONTAL
    if origin is not None:
        moved = moved - turn @ origin
    return camera.rigid(turn, moved).astype(np.float32)


def intrinsics(focal: float, side: int) -> np.ndarray:
    """Our intrinsics [4] of their focal length in pixels of a square picture."""
    return np.array([focal / side, focal / side, 0.5, 0.5], np.float32)


def illumination(gamma: np.ndarray) -> np.ndarray:
    """Our code [..., 27] of their light [..., 27]."""
    light = np.array(gamma, np.float32).reshape(*np.shape(gamma)[:-1], 3, 9)
    light[..., 0] += _EVEN_LIGHT
    return np.swapaxes(light, -1, -2).reshape(np.shape(gamma))


def vertex_normals(
    points: np.ndarray, triangles: np.ndarray, vertex_triangles: np.ndarray
) -> np.ndarray:
    """Their normals [..., V, 3]: a vertex's triangles count alike, whatever their area.

    Args:
        points: [..., V, 3]; triangles: [F, 3].
        vertex_triangles: [V, N] the triangles of each vertex (their vert_tris); a list that is
            filled up by repeating triangles counts them again, as theirs does.
    """
    a, b, c = (points[..., triangles[:, k], :] for k in range(3))
    faces = _unit(np.cross(b - a, c - a))
    return _unit(faces[..., vertex_triangles, :].sum(-2))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def track(params: Mapping[str, np.ndarray], side: int, origin: np.ndarray) -> dict[str, np.ndarray]:
    """Their tracked parameters as ours.

    Args:
        params: id [1, 100] or [100], exp [T, 79], euler and trans [T, 3], focal, and where they
            were kept tex [1, 100] and light [T, 27].
        side: of the square picture in pixels.
        origin: [3] as `head_to_world`'s: `model.mean.mean(0)` of our bfm09.

    Returns:
        identity [100], expression [T, 79], head_to_world [T, 4, 4], intrinsics [4] and, of tex
        and light, albedo [100], illumination [T, 27].
    """
    ours = {
        "identity": _one(params["id"]),
        "expression": np.asarray(params["exp"], np.float32),
        "head_to_world": head_to_world(params["euler"], params["trans"], origin),
        "intrinsics": intrinsics(float(np.reshape(params["focal"], -1)[0]), side),
    }
    if "tex" in params:
        ours["albedo"] = _one(params["tex"])
    if "light" in params:
        ours["illumination"] = illumination(params["light"])
    return ours


def _one(code: np.ndarray) -> np.ndarray:
    """The first of codes [..., K] that are the same for all frames."""
    return np.asarray(code, np.float32).reshape(-1, np.shape(code)[-1])[0]


def read_track(path: str | Path, side: int, origin: np.ndarray) -> dict[str, np.ndarray]:
    """`track` of a track_params.pt.

    Raises:
        UserError: no such file, or not one of AD-NeRF's tracker.
    """
    params = torch_file.read(path)
    wanted = {"id", "exp", "euler", "trans", "focal"}
    if not isinstance(params, dict) or not wanted <= params.keys():
        raise UserError(f"{path}: no parameters of AD-NeRF's tracker; give its track_params.pt")
    return track(params, side, origin)
