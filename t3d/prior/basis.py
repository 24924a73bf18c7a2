"""Where a morphable model comes from: `procedural` (built in), `ict` (ICT-FaceKit, MIT), or the
Basel Face Models `bfm09` and `bfm17`, for who has their licence."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from t3d import assets
from t3d.errors import UserError
from t3d.prior import annotate, bfm, procedural, skin
from t3d.prior.morphable import (
    EXPRESSION_DIM,
    EXPRESSION_STD,
    IDENTITY_DIM,
    MorphableModel,
    padded,
)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of ICT-FaceKit; UserError where they cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as data:
            yield data
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: damaged ({error}); run t3d assets import ict_facekit ICT-FaceKit/FaceXModel"
        ) from error


def _read_ict(path: Path) -> MorphableModel:
    """ICT-FaceKit Light from its npz (names, neutral, offsets, triangles, landmarks, regions).

    Lacrimal fluid, eye blend, occlusion and lashes are left out.
    """
    with _opened(path) as data:
        ranges = dict(zip(data["region_names"].tolist(), data["region_ranges"], strict=True))
        keep = np.concatenate([np.arange(*ranges[name]) for name in skin.REGIONS])
        region = np.repeat(np.arange(len(skin.REGIONS)), [np.ptp(ranges[n]) for n in skin.REGIONS])
        position = np.full(len(data["neutral"]), -1, np.int32)
        position[keep] = np.arange(len(keep))
        triangles = position[data["triangles"]]
        landmarks = position[data["landmarks_68"]]
        mean = data["neutral"][keep].astype(np.float32)
        identity = data["identity"][:, keep].astype(np.float32)
        shapes = data["expression"][:, keep].astype(np.float32)
        names = tuple(data["expression_names"].tolist())
    # Upper and lower lip touch: how far the open jaw carries a vertex tells them apart.
    jaw = shapes[names.index("jawOpen")][:, 1:2]
    features = np.concatenate([mean, jaw], -1)
    features[region != skin.REGIONS.index("face")] = 1e3
    rings = skin.lip_targets(features[landmarks[48:60]], features[landmarks[60:68]])
    marks = mean[landmarks]
    lips = skin.within_lips(mean, marks[48:60])
    return MorphableModel(
        mean=mean,
        identity_basis=padded(identity, IDENTITY_DIM),
        expression_basis=padded(shapes * EXPRESSION_STD, EXPRESSION_DIM),
        albedo_mean=skin.paint(mean, region, lips, marks),
        albedo_basis=skin.smooth_albedo_basis(mean, skin.albedo_share(region)),
        triangles=triangles[(triangles >= 0).all(-1)],
        landmarks68=landmarks.astype(np.int32),
        lips79=skin.nearest_distinct(features, rings),
        region=region.astype(np.int32),
        name="ict",
        expression_names=names,
        region_names=skin.REGIONS,
    )


def _basel(name: str, family: bfm.Family) -> MorphableModel:
    return bfm.model(family, _landmarks(name, family), name)


def _landmarks(name: str, family: bfm.Family) -> np.ndarray:
    """Vertices [68]: those of the user's list, else the family's own, else found on pictures.

    What was found is kept in the cache, for this mesh.
    """
    listed = assets.look_for(f"{name}_landmarks")
    if listed is not None:
        return _read_list(listed, len(family.mean))
    if family.landmarks68 is not None:
        return family.landmarks68
    mesh = hashlib.sha256(family.mean.tobytes() + family.triangles.tobytes()).hexdigest()[:12]
    kept = assets.cached(f"{name}_landmarks_{mesh}.txt")
    if not kept.is_file():
        found = annotate.find_landmarks(family, _detect)
        if found is None:
            raise UserError(
                f"{name}: no face was found on pictures of its mean; run `t3d assets import "
                f"{name}_landmarks FILE` with a text file of 68 vertex numbers"
            )
        assets.place(kept, lambda part: np.savetxt(part, found, "%d"))
    return _read_list(kept, len(family.mean))


def _detect(picture: np.ndarray) -> np.ndarray | None:
    from t3d.data import landmarks  # MediaPipe, needed once for a mesh without landmarks

    seen = landmarks.detect([picture], video=False)
    return seen.points68[0] if seen.found[0] else None


def _read_list(path: Path, count: int) -> np.ndarray:
    """68 vertex numbers from 0, in iBUG order."""
    try:
        numbers = np.array(path.read_text().replace(",", " ").split(), int)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a text file of 68 vertex numbers ({error})") from error
    if len(numbers) != 68 or numbers.min() < 0 or numbers.max() >= count:
        raise UserError(f"{path}: give 68 vertex numbers from 0 to {count - 1}, in iBUG order")
    return numbers


def _bfm09() -> MorphableModel:
    files = assets.find("bfm09"), assets.find("bfm09_expression")
    return _basel("bfm09", bfm.read_2009(*files))


PRIORS = {
    "procedural": procedural.build,
    "ict": lambda: _read_ict(assets.find("ict_facekit")),
    "bfm09": _bfm09,
    "bfm17": lambda: _basel("bfm17", bfm.read_2017(assets.find("bfm17"))),
}


def load(name: str) -> MorphableModel:
    """The morphable model of that name, NumPy arrays (host).

    Raises:
        UserError: unknown name, or the model's asset is not on this machine.
    """
    if name not in PRIORS:
        raise UserError(f"no prior named {name!r}: choose one of {', '.join(PRIORS)}")
    return PRIORS[name]()
