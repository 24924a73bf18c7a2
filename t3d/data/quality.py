"""How well a clip was prepared, and what may spoil a speaker learned from it."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from t3d import camera as cameras
from t3d.data import framing, video
from t3d.data.speaker_dataset import LONG_ENOUGH
from t3d.metrics import lips
from t3d.prior import morphable
from t3d.prior.morphable import MorphableModel

Arrays = dict[str, np.ndarray]
# Below or above which a clip is warned about: shares of frames; pixels of face height; degrees of
# yaw; decibels of full scale; face sides a frame; eye distances; Pearson r.
WARN = dict(tracked=0.99, others=0.05, face=96, yaw=20.0, silence=-45.0, quiet_share=0.8)
WARN |= dict(jump=0.3, reprojection=0.05, mouth=0.9)


def fitted_points(model: MorphableModel, track: Arrays) -> np.ndarray:
    """The fitted model's 68 landmarks [T, 68, 2], fractions of the image side."""
    small = morphable.restrict(model, model.landmarks68)
    shape = morphable.vertices(small, track["identity"], track["expression"])
    world = cameras.transform(track["head_to_world"], np.asarray(shape))
    return np.asarray(cameras.project(cameras.recorded(track["intrinsics"]), world)[0])


def fit_quality(model: MorphableModel, track: Arrays) -> dict[str, float]:
    """How well the model lies on the landmarks, over the frames in which a face was found.

    Returns:
        tracked: share of frames; reprojection: median distance of the 68 landmarks over the outer
        eye distance; mouth_r: Pearson r of fitted and detected mouth opening.
    """
    found = track["found"]
    fitted, detected = fitted_points(model, track)[found], track["points68"][found]
    error = np.linalg.norm(fitted - detected, axis=-1).mean(-1) / lips.eye_distance(detected)
    openings = lips.mouth_opening(fitted), lips.mouth_opening(detected)
    return {
        "tracked": float(found.mean()),
        "reprojection": float(np.median(error)),
        "mouth_r": lips.pearson(*openings),
    }


def warnings(
    track: Arrays, quality: dict, others: float, face_pixels: float, sound: np.ndarray
) -> list[str]:
    """What may spoil a speaker learned from this clip, in words.

    Args:
        track: arrays of track.npz.
        quality: of `fit_quality`.
        others: share of frames with a second face.
        face_pixels: height of the face in the source.
        sound: [N] at 16 kHz.
    """
    yaw = np.degrees(Rotation.from_rotvec(track["rotvec"]).as_euler("YXZ")[:, 0])
    spread = float(np.subtract(*np.percentile(yaw, [97.5, 2.5])))
    seconds = len(yaw) / video.FPS
    loudness = _loudness(sound)
    eyes = track["points68"][:, framing.EYE_CORNERS].mean(1)
    jumps = np.linalg.norm(np.diff(eyes, axis=0), axis=-1) / np.median(track["face_box"][:, 2])
    checks = [
        (
            seconds < LONG_ENOUGH,
            f"only {seconds:.0f} s: few mouth shapes are seen; a minute or more is better",
        ),
        (
            quality["tracked"] < WARN["tracked"],
            f"no face was found in {1 - quality['tracked']:.1%} of the frames",
        ),
        (others > WARN["others"], f"a second face is in {others:.0%} of the frames"),
        (
            face_pixels < WARN["face"],
            f"the face is only {face_pixels:.0f} pixels high: the head will be blurred",
        ),
        (
            spread < WARN["yaw"],
            f"the head turns by {spread:.0f}° only: side views rest on the 3D prior",
        ),
        (
            np.max(loudness) < WARN["silence"],
            "the sound is silent: nothing can be learned from it",
        ),
        (
            np.mean(loudness < np.max(loudness) - 30) > WARN["quiet_share"],
            "the sound is quiet most of the time: there is little speech in it",
        ),
        (
            np.max(jumps, initial=0) > WARN["jump"],
            f"{int(np.sum(jumps > WARN['jump']))} cuts or jumps of the head: use one shot",
        ),
        (
            quality["reprojection"] > WARN["reprojection"],
            f"the 3D model is {quality['reprojection']:.1%} of the eye distance off the landmarks",
        ),
        (
            quality["mouth_r"] < WARN["mouth"],
            f"the fitted mouth follows the detected one poorly (r = {quality['mouth_r']:.2f})",
        ),
    ]
    return [text for holds, text in checks if holds]


def _loudness(sound: np.ndarray) -> np.ndarray:
    """Level of every tenth of a second in dB of full scale."""
    blocks = sound[: len(sound) // 1600 * 1600].reshape(-1, 1600).astype(np.float64)
    return 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)
