"""The Basel Face Models of 2009 and 2017, which their university gives out under a licence.

2009 (Paysan et al.) has no expressions: those of Guo et al., as AD-NeRF uses them, come from a file
of their own. Both models are a face without the inside of the mouth, and name no expression.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
import scipy.io.matlab

from t3d.errors import UserError
from t3d.prior import skin
from t3d.prior.morphable import (
    ALBEDO_DIM,
    EXPRESSION_DIM,
    IDENTITY_DIM,
    MorphableModel,
    padded,
)

_MICROMETRES, _MILLIMETRES = 1e4, 10.0  # in a centimetre
# Mean of the 68 landmarks in ICT-FaceKit's frame, to which these models are moved.
_MIDDLE = np.array([0.0, -0.26, 9.44], np.float32)
_EYE_DISTANCE = 7.0, 12.0  # cm from outer corner to outer corner, of any adult
_GAPE, _FARTHEST = 1.8, 6.0  # cm that `opening` parts the lips, σ that it goes at most


_WRONG = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError),
    *(zipfile.BadZipFile, scipy.io.matlab.MatReadError),
)


class Family(NamedTuple):
    """A linear family of faces, in its file's own place and order.

    Attributes:
        mean: [V, 3] centimetres; identity: [100, V, 3]; expression: [79, V, 3], per σ.
        albedo_mean: [V, 3] in [0, 1]; albedo: [100, V, 3] per σ.
        triangles: [F, 3] counter-clockwise seen from outside.
        landmarks68: [68], or None where the files name none.
    """

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    albedo_mean: np.ndarray
    albedo: np.ndarray
    triangles: np.ndarray
    landmarks68: np.ndarray | None = None


def read_2009(path: Path, expression_path: Path) -> Family:
    """The family of BFM 2009 on the vertices that have expressions.

    Args:
        path: 01_MorphableModel.mat (micrometres, colours 0 to 255, triangles from 1).
        expression_path: npz with mu_exp [3n] and base_exp [79, 3n] (micrometres), sig_exp [79],
            sub_inds [n] (the vertices of the 2009 mesh, from 0) and perhaps keyinds [68] (among
            the n). `t3d assets import bfm09_expression FOLDER` makes it.

    Raises:
        UserError: naming the file that is not of this layout.
    """
    with _layout(path, "01_MorphableModel.mat of BFM 2009"):
        names = [f"{kind}{part}" for kind in ("shape", "tex") for part in ("MU", "PC", "EV")]
        found = scipy.io.loadmat(path, variable_names=[*names, "tl"])
        basel = {name: np.asarray(found[name]) for name in [*names, "tl"]}
    with _layout(expression_path, "the npz that `t3d assets import bfm09_expression` makes"):
        with np.load(expression_path, allow_pickle=False) as data:
            guo = dict(data)
        kept = guo["sub_inds"].reshape(-1).astype(int)
        arrays = {k: guo[k] for k in ("mu_exp", "sig_exp")} | {"b_exp": guo["base_exp"]}
        for kind in ("shape", "tex"):
            arrays[f"mu_{kind}"] = _rows(basel[f"{kind}MU"], kept)[0]
            arrays[f"b_{kind}"] = _rows(basel[f"{kind}PC"][:, :IDENTITY_DIM], kept)
            arrays[f"sig_{kind}"] = basel[f"{kind}EV"]
        position = np.full(basel["shapeMU"].size // 3, -1)
        position[kept] = np.arange(len(kept))
        triangles = position[basel["tl"].astype(int) - 1]
        return from_guo(arrays, triangles[(triangles >= 0).all(-1)], guo.get("keyinds"))


def _rows(columns: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Columns [3V, K] of a MATLAB file as vectors [K, 3n] of the kept vertices."""
    vectors = columns.reshape(-1, 3, columns.shape[-1])[kept]
    return vectors.reshape(-1, columns.shape[-1]).T


def from_guo(
    arrays: Mapping[str, np.ndarray], triangles: np.ndarray, landmarks68: np.ndarray | None = None
) -> Family:
    """The family of AD-NeRF's 3DMM_info: mean, vectors and deviations (Guo et al. 2018).

    Args:
        arrays: mu_shape, mu_exp, mu_tex [3n], b_shape [K, 3n], b_exp, b_tex, sig_shape [K],
            sig_exp, sig_tex; micrometres, and colours from 0 to 255.
        triangles: [F, 3] from 0, of either sense; landmarks68: [68] or None.
    """
    counts = {"shape": IDENTITY_DIM, "exp": EXPRESSION_DIM, "tex": ALBEDO_DIM}
    scaled = {}
    for kind, count in counts.items():
        deviation = np.asarray(arrays[f"sig_{kind}"]).reshape(-1)[:count]
        scaled[kind] = arrays[f"b_{kind}"][:count] * deviation[:, None]
    mean = (arrays["mu_shape"] + arrays["mu_exp"]) / _MICROMETRES
    return _family(
        mean,
        scaled["shape"] / _MICROMETRES,
        scaled["exp"] / _MICROMETRES,
        arrays["mu_tex"] / 255,
        scaled["tex"] / 255,
        triangles,
        landmarks68,
    )


def read_2017(path: Path) -> Family:
    """The family of BFM 2017: model2017-1_bfm_nomouth.h5, or the cropped model2017-1_face12.

    The HDF5 file holds shape, expression (millimetres) and color (0 to 1) as groups of model/mean
    [3V], model/pcaBasis [3V, K] and model/pcaVariance [K], and shape/representer/cells [3, F].
    Raises UserError when it is another file, or h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("bfm17 needs h5py: run `pip install h5py`") from error
    with _layout(path, "model2017-1_bfm_nomouth.h5 of BFM 2017"), h5py.File(path) as file:
        counts = {"shape": IDENTITY_DIM, "expression": EXPRESSION_DIM, "color": ALBEDO_DIM}
        mean = {kind: file[f"{kind}/model/mean"][:] for kind in counts}
        scaled = {
            kind: file[f"{kind}/model/pcaBasis"][:, :count].T
            * np.sqrt(file[f"{kind}/model/pcaVariance"][:count])[:, None]
            for kind, count in counts.items()
        }
        cells = file["shape/representer/cells"][:]
        return _family(
            (mean["shape"] + mean["expression"]) / _MILLIMETRES,
            scaled["shape"] / _MILLIMETRES,
            scaled["expression"] / _MILLIMETRES,
            mean["color"],
            scaled["color"],
            cells.T if cells.shape[0] == 3 else cells,
        )


@contextlib.contextmanager
def _layout(path: Path, expected: str) -> Iterator[None]:
    """Turns what goes wrong in reading `path` into one line that says what file was expected."""
    try:
        yield
    except _WRONG as error:
        raise UserError(f"{path}: not {expected} ({error})") from error


def _family(mean, identity, expression, albedo_mean, albedo, triangles, landmarks68=None) -> Family:
    """Flat vectors as [K, V, 3] float32, triangles turned outwards."""
    shaped = [
        np.ascontiguousarray(flat.reshape(*flat.shape[:-1], -1, 3), np.float32)
        for flat in (mean, identity, expression, albedo_mean, albedo)
    ]
    if len({part.shape[-2] for part in shaped}) > 1 or triangles.max() >= len(shaped[0]):
        raise ValueError("its arrays are of different meshes")
    marks = None if landmarks68 is None else landmarks68.reshape(68).astype(np.int32)
    return Family(*shaped, _outwards(shaped[0], triangles).astype(np.int32), marks)


def _outwards(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The triangles, all turned about if most of their area faces the inside of the head."""
    inside = points.mean(0) - [0.0, 0.0, 3.0]
    a, b, c = (points[triangles[:, k]] - inside for k in range(3))
    volume = np.sum(a * np.cross(b, c))
    return triangles if volume > 0 else triangles[:, ::-1]


def opening(family: Family, upper: int, lower: int) -> np.ndarray:
    """Expression [79] (σ) that parts two vertices by _GAPE cm: the likeliest that does."""
    gap = family.expression[:, upper, 1] - family.expression[:, lower, 1]
    code = _GAPE * gap / max(float(gap @ gap), 1e-9)
    return (code * min(1.0, _FARTHEST / max(float(np.linalg.norm(code)), 1e-9))).astype(np.float32)


def model(family: Family, landmarks68: np.ndarray, name: str) -> MorphableModel:
    """The family as a MorphableModel in ICT-FaceKit's place.

    Args:
        landmarks68: [68] vertices.
        name: of the model, for its errors, too.

    Raises:
        UserError: the landmarks are not those of a face of human size in this family.
    """
    marks = family.mean[landmarks68]
    eyes = float(np.linalg.norm(marks[36] - marks[45]))
    if not _EYE_DISTANCE[0] < eyes < _EYE_DISTANCE[1] or marks[36, 0] > marks[45, 0]:
        raise UserError(
            f"{name}: its eyes lie {eyes:.2g} cm apart by its landmarks; give the file of its "
            f"own units and 68 vertices in iBUG order (`t3d assets import {name}_landmarks FILE`)"
        )
    mean = family.mean + (_MIDDLE - marks.mean(0))
    region = _regions(mean, mean[landmarks68])
    return MorphableModel(
        mean=mean,
        identity_basis=padded(family.identity, IDENTITY_DIM),
        expression_basis=padded(family.expression, EXPRESSION_DIM),
        albedo_mean=np.clip(family.albedo_mean, 0, 1),
        albedo_basis=padded(family.albedo, ALBEDO_DIM),
        triangles=family.triangles,
        landmarks68=landmarks68.astype(np.int32),
        lips79=_lips(family, mean, landmarks68),
        region=region,
        name=name,
        expression_names=(),
        region_names=skin.REGIONS,
    )


def _lips(family: Family, mean: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """lips79; how far an opening mouth carries a vertex tells lips that touch apart."""
    code = opening(family, marks[62], marks[66])
    lift = np.einsum("k,kv->v", code, family.expression[..., 1])
    features = np.concatenate([mean, 2 * lift[:, None]], -1)
    rings = skin.lip_targets(features[marks[48:60]], features[marks[60:68]])
    return skin.nearest_distinct(features, rings)


def _regions(mean: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """[V] index into skin.REGIONS: the eyes, the face as high as its forehead, the rest."""
    brows = marks[26:16:-1]
    forehead = brows + [0.0, 0.55 * (brows[:, 1].mean() - marks[33, 1]), 0.0]
    front = mean[:, 2] > marks[[0, 16], 2].mean() - 1.0
    region = np.full(len(mean), skin.REGIONS.index("head_neck"), np.int32)
    outlines = {
        "face": np.concatenate([marks[:17], forehead]),
        "eyeball_right": marks[36:42],
        "eyeball_left": marks[42:48],
    }
    for name, outline in outlines.items():
        region[front & skin.inside(mean[:, :2], outline[:, :2])] = skin.REGIONS.index(name)
    return region
