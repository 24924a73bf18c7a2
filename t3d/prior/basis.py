"""Where a morphable model comes from: `procedural` (built in) and `ict` (ICT-FaceKit, MIT)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from t3d import assets
from t3d.errors import UserError
from t3d.prior import procedural, skin
from t3d.prior.morphable import (
    EXPRESSION_DIM,
    EXPRESSION_STD,
    IDENTITY_DIM,
    MorphableModel,
    padded,
)


def _read_ict(path: Path) -> MorphableModel:
    """ICT-FaceKit Light from its npz (names, neutral, offsets, triangles, landmarks, regions).

    Lacrimal fluid, eye blend, occlusion and lashes are left out.
    """
    with np.load(path, allow_pickle=False) as data:
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


PRIORS = {"procedural": procedural.build, "ict": lambda: _read_ict(assets.find("ict_facekit"))}


def load(name: str) -> MorphableModel:
    """The morphable model of that name, NumPy arrays (host).

    Raises:
        UserError: unknown name, or the model's asset is not on this machine.
    """
    if name not in PRIORS:
        raise UserError(f"no prior named {name!r}: choose one of {', '.join(PRIORS)}")
    return PRIORS[name]()
