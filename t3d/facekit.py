"""ICT-FaceKit's folder of OBJ files as one npz of arrays."""

import json
from pathlib import Path

import numpy as np

from t3d.errors import UserError

IDENTITIES = 100
# First vertex of each part of the mesh (ICT-FaceKit's README); the last one ends the mesh.
_PARTS = {
    "face": 0,
    "head_neck": 9409,
    "mouth_socket": 11248,
    "eye_socket_left": 13294,
    "eye_socket_right": 13678,
    "gums_tongue": 14062,
    "teeth": 17039,
    "eyeball_left": 21451,
    "eyeball_right": 23021,
    "lacrimal": 24591,
    "eye_blend": 24999,
    "eye_occlusion": 25047,
    "eyelashes": 25351,
}
_VERTICES = 26719


def convert(folder) -> dict[str, np.ndarray]:
    """Reads the folder FaceXModel of an ICT-FaceKit checkout (Li et al. 2020).

    Returns neutral [26719, 3], identity [100, 26719, 3] and expression [53, 26719, 3] offsets in
    centimetres (float16), expression_names, triangles, uv, triangle_uv, landmarks_68, region_names
    and region_ranges. Raises UserError naming the file that is missing or is another mesh.
    """
    folder = Path(folder)
    indices = json.loads(_text(folder / "vertex_indices.json"))
    names = indices["expressions"]
    neutral_text = _text(folder / "generic_neutral_mesh.obj")
    neutral = _rows(neutral_text, "v ", folder)[:, :3]
    corners = [line.split()[1:] for line in neutral_text.splitlines() if line.startswith("f ")]
    starts = list(_PARTS.values())
    return {
        "neutral": neutral,
        "identity": _offsets(folder, [f"identity{k:03d}" for k in range(IDENTITIES)], neutral),
        "expression": _offsets(folder, names, neutral),
        "expression_names": np.array(names),
        "triangles": _triangles(corners, 0),
        "uv": _rows(neutral_text, "vt ", folder)[:, :2],
        "triangle_uv": _triangles(corners, 1),
        "landmarks_68": np.array(indices["idx_to_landmark_verts"], np.int32),
        "region_names": np.array(list(_PARTS)),
        "region_ranges": np.array(list(zip(starts, [*starts[1:], _VERTICES], strict=True)), "i4"),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read; give the folder FaceXModel of an ICT-FaceKit checkout"
        ) from error


def _rows(text: str, key: str, source: Path) -> np.ndarray:
    """The numbers of an OBJ's lines of one kind: float32 [N, …]."""
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith(key)]
    if key == "v " and len(rows) != _VERTICES:
        raise UserError(f"{source}: {len(rows)} vertices, not {_VERTICES}: not ICT-FaceKit Light's")
    return np.array(rows, np.float32)


def _offsets(folder: Path, names: list[str], neutral: np.ndarray) -> np.ndarray:
    shapes = []
    for name in names:
        path = folder / f"{name}.obj"
        shapes.append((_rows(_text(path), "v ", path)[:, :3] - neutral).astype(np.float16))
    return np.stack(shapes)


def _triangles(corners: list[list[str]], part: int) -> np.ndarray:
    """Triangles [F, 3] of vertex (part 0) or texture (part 1) indices.

    The first halves of the quads (and the triangles) come first, then the second halves.
    """
    faces = [[int(corner.split("/")[part]) - 1 for corner in face] for face in corners]
    first = [face[:3] for face in faces]
    second = [(face[0], *face[2:]) for face in faces if len(face) == 4]
    return np.array([*first, *second], np.int32)
