"""`t3d bench prior`: how well the tracker does where the truth is known, and on prepared clips."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from t3d import camera as cameras
from t3d.data import synthetic
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.prior import morphable, tracker

PRIORS = ("ict", "procedural")
SWINGS = (25.0, 0.0)  # degrees of yaw
FIT = (
    "tracked",
    "reprojection",
    "mouth_r",
    "mouth_rmse",
    "psnr",
    "focal",
    "jitter",
)  # of `quality.fit_quality`


def bench_prior(datasets: list[SpeakerDataset]) -> dict[str, float]:
    """Figures of synthetic clips, then those that `t3d prepare` noted of the datasets."""
    figures = {}
    for prior in PRIORS:
        for swing in SWINGS:
            clip = synthetic.turning_clip(prior, swing)
            found = track_figures(clip, track_clip(clip))
            figures |= {f"{prior}, yaw ±{swing:g}°: {key}": v for key, v in found.items()}
    for data in datasets:
        fit = {key: data.meta["quality"][key] for key in FIT}
        figures |= {f"{data.meta['name']}: {key}": value for key, value in fit.items()}
    return figures


def track_clip(clip: synthetic.TurningClip) -> dict[str, np.ndarray]:
    """The tracker's fit of a clip, constants fitted on its first four fifths."""
    count = len(clip.points68)
    marks = SimpleNamespace(
        points68=clip.points68,
        lips79=clip.lips79,
        blendshapes=clip.blendshapes,
        found=np.ones(count, bool),
    )
    return tracker.track(
        clip.model,
        marks,
        np.arange(count * 4 // 5),
        lambda index: clip.pictures[index],
        lambda index: clip.masks[index],
    )


def track_figures(clip: synthetic.TurningClip, fitted: dict[str, np.ndarray]) -> dict[str, float]:
    """A fit against the truth.

    Returns:
        rotation_degrees: median error; expression_pixels: how far the fitted expression would carry
        the true head's 51 inner landmarks from where they are, median over frames of their mean;
        focal: fitted over true; focal_observable: 1 where the tracker believes it (else it is
        assumed); relighting: median error of the skin, painted and lit by the fit, as a share of
        full scale (root mean square); jitter: of the head's turns, over that of per-frame fits.
    """
    truth = clip.truth
    pose = cameras.head_pose(truth["rotvec"], truth["translation"])
    trace = np.einsum("tij,tij->t", fitted["head_to_world"][:, :3, :3], pose[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    small = morphable.restrict(clip.model, clip.model.landmarks68[17:])
    camera = cameras.recorded(truth["intrinsics"])

    def carried(expression):
        shape = morphable.vertices(small, truth["identity"], expression)
        shape = shape + truth["displacement"][clip.model.landmarks68[17:]]
        return cameras.project(camera, cameras.transform(pose, shape))[0]

    away = np.linalg.norm(carried(fitted["expression"]) - carried(truth["expression"]), axis=-1)
    return {
        "rotation_degrees": float(np.median(angle)),
        "expression_pixels": float(np.median(away.mean(1)) * clip.pictures.shape[1]),
        "focal": float(fitted["intrinsics"][0] / truth["intrinsics"][0]),
        "focal_observable": float(fitted["focal_deviation"] < tracker.OBSERVABLE),
        "relighting": float(np.nanmedian(10 ** (-fitted["psnr"] / 20))),
        "jitter": float(fitted["jitter"][1] / fitted["jitter"][0]),
    }
