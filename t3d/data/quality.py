"""How good a clip is to learn a speaker from: figures, what is fine, and what to do if not.

Every figure is made of the source's own pictures and sound; `lines` is the one place that says what
is good enough.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import median_filter
from scipy.spatial.transform import Rotation

from t3d import camera as cameras
from t3d.data import framing, video
from t3d.data.alignment import sound_offset
from t3d.data.speaker_dataset import LONG_ENOUGH
from t3d.metrics import lips
from t3d.prior import morphable, tracker
from t3d.prior.morphable import MorphableModel

Arrays = dict[str, np.ndarray]
# Where a figure stops being fine. Shares of frames; pixels of face height; degrees; shares of the
# brightness; decibels of full scale; seconds; openings over the eye distance; eye distances;
# Pearson r.
WARN = dict(tracked=0.99, elsewhere=0.01, others=0.05, fps=20.0, face=96.0, sharp=96.0, blur=0.5)
WARN |= dict(yaw=20.0, mouth=0.012, dark=0.2, bright=0.85, light=0.25, flicker=0.02)
WARN |= dict(
    silence=-45.0, quiet_share=0.8, apart=0.5, reprojection=0.05, mouth_r=0.9, mouth_rmse=0.5
)
OFFSET = 1  # frames that sound and lips may be apart
SHARP = 0.5  # least strength of the finest detail of a sharp face, over the next coarser one
SMALLEST = 32  # pixels of face height that detail is looked for in
LOOKED_AT = 10  # each so many frames, for detail


class Line(NamedTuple):
    """One thing about a clip: what, its figure in words, whether it is fine, what to do if not."""

    what: str
    figure: str
    fine: bool
    advice: str


# ---- what is seen in the pictures


def look(image: np.ndarray, points68: np.ndarray | None, closely: bool) -> tuple[float, float]:
    """Brightness of the face (0 to 1) and the height in pixels that it is as sharp as.

    Args:
        image: uint8 [H, W, 3]; points68: [68, 2] pixels, None without a face: both are NaN then.
        closely: else the second is NaN.
    """
    if points68 is None:
        return np.nan, np.nan
    low = np.array([points68[:, 0].min(), points68[framing.BROWS, 1].min()]).clip(0)
    left, top, right, bottom = *low, *np.array([points68[:, 0].max(), points68[framing.CHIN, 1]])
    face = image[int(top) : int(bottom), int(left) : int(right)]
    if min(face.shape[:2]) < 8:
        return np.nan, np.nan
    grey = Image.fromarray(np.ascontiguousarray(face)).convert("L")
    return float(np.mean(grey)) / 255, sharp_height(grey) if closely else np.nan


def sharp_height(face: Image.Image) -> float:
    """Height in pixels up to which more pixels show more of a face.

    A picture scaled to a height is sharp while its finest detail is at least `SHARP` times as
    strong as the next coarser one: sharp pictures have 0.5 to 0.8, enlarged ones 0.3. Searched from
    `SMALLEST` upwards, so that noise and compression beyond it do not count.
    """
    height, before = float(min(SMALLEST, face.height)), None
    while True:
        size = max(4, round(face.width * height / face.height)), max(4, round(height))
        detail = _detail(np.asarray(face.resize(size, Image.Resampling.BICUBIC), np.float32))
        if detail < SHARP:
            break
        if height == face.height:
            return height
        height, before = min(height * np.sqrt(2), face.height), (height, detail)
    if before is None:
        return height
    share = (before[1] - SHARP) / (before[1] - detail)
    return float(before[0] * (height / before[0]) ** share)


def _detail(grey: np.ndarray) -> float:
    """Deviation of the Laplacian of a picture over that of the picture at half the size."""
    grey = grey[: grey.shape[0] // 2 * 2, : grey.shape[1] // 2 * 2]
    half = grey.reshape(grey.shape[0] // 2, 2, -1, 2).mean((1, 3))
    fine, coarse = (np.sqrt(framing.sharpness(g[..., None])) for g in (grey, half))
    return float(fine / max(coarse, 1e-6))


def head_turns(model: MorphableModel, points68: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch [T] in degrees, roughly, of landmarks [T, 68, 2] (NaN where they are).

    The scaled orthographic fit of the model's own mean to points that an expression does not move.
    """
    known = np.isfinite(points68).all((1, 2))
    turn, _, _ = tracker.orthographic_poses(model, points68[known])
    angles = np.full((2, len(points68)), np.nan)
    angles[:, known] = Rotation.from_matrix(turn).as_euler("YXZ", degrees=True)[:, :2].T
    return angles[0], angles[1]


# ---- figures


def clip_figures(info: video.VideoInfo, seen: Arrays, turns: tuple, sound) -> dict[str, float]:
    """The figures of a clip that need no 3D model fitted to it.

    Args:
        info: of the file.
        seen: of `observe.observe`; frames that were not looked at are no part of it.
        turns: yaw and pitch [T] in degrees.
        sound: [N] of the file, at 16 kHz, sample 0 = frame 0; it counts as long as the pictures do.
    """
    found, looked = seen["found"], seen["looked"]
    points = seen["points68"]
    opening = np.where(found, lips.mouth_opening(points), np.nan)
    seconds, sound = len(sound) / video.RATE, video.at_length(sound, len(found))
    loudness = _loudness(sound)
    offset = sound_offset(opening, sound)
    return {
        "seconds": len(found) / video.FPS,
        "width": float(seen["shape"][1]),
        "height": float(seen["shape"][0]),
        "fps": info.fps,
        "detected": float(seen["detected"][looked].mean()),
        "speaker": float(found[looked].mean()),
        "others": float(seen["others"]),
        "cuts": float(seen["shot"].max()),
        "face": float(np.median(framing.face_height(points[found]))),
        "yaw": _spread(turns[0][found]),
        "pitch": _spread(turns[1][found]),
        "mouth": float(np.std(opening[found])),
        **_light(seen["looks"][found]),
        "loudest": float(np.max(loudness, initial=-120.0)),
        "quiet": float(np.mean(loudness < np.max(loudness, initial=-120.0) - 30)),
        "sound_seconds": seconds,
        "sound_offset": float(offset.frames),
        "sound_offset_r": offset.r,
        "sound_offset_deviations": offset.deviations,
        "sound_offset_certain": float(offset.certain),
    }


def _spread(values: np.ndarray) -> float:
    return float(np.subtract(*np.nanpercentile(values, [97.5, 2.5])))


def _light(looks: np.ndarray) -> dict[str, float]:
    """Figures of `look` [T, 2] at frames with a face.

    light: median brightness; light_change: its range in time (5 to 95 %, smoothed over 1 s) over
    the median; flicker: how far a frame is from its neighbours, likewise; sharp: pixels.
    """
    light = looks[np.isfinite(looks[:, 0]), 0]
    usual = max(float(np.median(light)), 1e-6)
    slow, near = (median_filter(light, size, mode="nearest") for size in (video.FPS, 5))
    return {
        "light": usual,
        "light_change": float(np.subtract(*np.percentile(slow, [95, 5]))) / usual,
        "flicker": float(np.std(light - near)) / usual,
        "sharp": float(np.nanmedian(looks[:, 1])),
    }


def fitted_points(model: MorphableModel, track: Arrays) -> np.ndarray:
    """The fitted model's 68 landmarks [T, 68, 2], fractions of the image side."""
    small = morphable.restrict(model, model.landmarks68)
    shape = morphable.vertices(small, track["identity"], track["expression"])
    world = cameras.transform(track["head_to_world"], np.asarray(shape))
    return np.asarray(cameras.project(cameras.recorded(track["intrinsics"]), world)[0])


def fit_quality(model: MorphableModel, track: Arrays) -> dict[str, float]:
    """How well the model lies on the pictures, over the frames in which a face was found.

    Returns:
        tracked: share of frames; reprojection: median distance of the 68 landmarks over the outer
        eye distance; mouth_r: Pearson r of fitted and detected mouth opening, mouth_rmse: their
        difference over the deviation of the detected one; and, if the tracker tells it, psnr: over
        visible skin in dB by the albedo's codes, psnr_texture: by each vertex's own colour, focal:
        in image sides, focal_deviation: of its logarithm, jitter: of the head's turns over that of
        frames fitted each by itself.
    """
    found = track["found"]
    fitted, detected = fitted_points(model, track)[found], track["points68"][found]
    error = np.linalg.norm(fitted - detected, axis=-1).mean(-1) / lips.eye_distance(detected)
    ours, theirs = lips.mouth_opening(fitted), lips.mouth_opening(detected)
    figures = {
        "tracked": float(found.mean()),
        "reprojection": float(np.median(error)),
        "mouth_r": lips.pearson(ours, theirs),
        "mouth_rmse": float(np.sqrt(np.mean((ours - theirs) ** 2)) / max(np.std(theirs), 1e-9)),
    }
    if "psnr" in track:
        for key in ("psnr", "psnr_texture"):
            figures[key] = float(np.nanmedian(track[key]))
    if "focal_deviation" in track:
        own, joined = track["jitter"]
        figures |= {
            "focal": float(track["intrinsics"][0]),
            "focal_deviation": float(track["focal_deviation"]),
            "jitter": float(joined / max(own, 1e-9)),
        }
    return figures


def _loudness(sound: np.ndarray) -> np.ndarray:
    """Level of every tenth of a second in dB of full scale."""
    blocks = sound[: len(sound) // 1600 * 1600].reshape(-1, 1600).astype(np.float64)
    return 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)


# ---- words


def lines(figures: dict[str, float], name: str = "VIDEO") -> list[Line]:
    """What `clip_figures` and `fit_quality` (perhaps without the latter) say of a clip.

    Args:
        figures: of the two.
        name: of the file, as it was given, for commands that the advice holds.
    """
    told = [*_picture_lines(figures), *_face_lines(figures), *_sound_lines(figures, name)]
    return told + (_fit_lines(figures) if "tracked" in figures else [])


def _picture_lines(f: dict[str, float]) -> list[Line]:
    size = f"{f['width']:.0f} × {f['height']:.0f}, {f['fps']:.4g} frames a second"
    return [
        Line(
            "length",
            f"{f['seconds']:.0f} s",
            f["seconds"] >= LONG_ENOUGH,
            f"only {f['seconds']:.0f} s: few mouth shapes are seen; a minute or more is better",
        ),
        Line(
            "picture",
            size,
            f["fps"] >= WARN["fps"],
            f"{f['fps']:.4g} frames a second: pictures are repeated to make {video.FPS}; film with "
            f"{video.FPS} or more",
        ),
        Line(
            "face height",
            f"{f['face']:.0f} pixels",
            f["face"] >= WARN["face"],
            f"the face is only {f['face']:.0f} pixels high: the head will be blurred; film closer, "
            "or take the original",
        ),
        _sharp_line(f),
        *_light_lines(f),
    ]


def _sharp_line(f: dict[str, float]) -> Line:
    share = f["sharp"] / f["face"]
    fine = share >= WARN["blur"] and f["sharp"] >= min(WARN["sharp"], 0.8 * f["face"])
    return Line(
        "sharpness",
        f"as of a face of {f['sharp']:.0f} pixels",
        fine,
        f"the face is blurred: no sharper than one {f['sharp']:.0f} pixels high; mind the focus, "
        "and take the original rather than an enlarged or much compressed copy",
    )


def _light_lines(f: dict[str, float]) -> list[Line]:
    dark = f["light"] < WARN["dark"]
    return [
        Line(
            "light",
            f"face at {f['light']:.0%} of full brightness",
            not dark and f["light"] <= WARN["bright"],
            f"the face is too {'dark' if dark else 'bright'} ({f['light']:.0%} of full "
            f"brightness): {'light it' if dark else 'expose it less'}",
        ),
        Line(
            "light changes",
            f"{f['light_change']:.0%} in time, {f['flicker']:.1%} from frame to frame",
            f["light_change"] <= WARN["light"] and f["flicker"] <= WARN["flicker"],
            f"the light on the face changes ({f['light_change']:.0%} in time, {f['flicker']:.1%} "
            "from frame to frame): fix exposure and lamps, or cut to an even part",
        ),
    ]


def _face_lines(f: dict[str, float]) -> list[Line]:
    elsewhere = f["detected"] - f["speaker"]
    return [
        Line(
            "face found",
            f"in {f['detected']:.1%} of the frames",
            f["detected"] >= WARN["tracked"],
            f"no face was found in {1 - f['detected']:.1%} of the frames: they are marked and not "
            "learned from",
        ),
        Line(
            "shots",
            f"{f['cuts']:.0f} cuts, the speaker's scene in {f['speaker']:.1%} of the frames",
            elsewhere <= WARN["elsewhere"],
            f"{elsewhere:.1%} of the frames show a face elsewhere, of another size or in another "
            "scene: they are not learned from; cut to one shot if they are the speaker",
        ),
        Line(
            "second face",
            f"in {f['others']:.0%} of the frames",
            f["others"] <= WARN["others"],
            f"a second face is in {f['others']:.0%} of the frames: the larger one is followed",
        ),
        Line(
            "head turns",
            f"{f['yaw']:.0f}° to the sides, {f['pitch']:.0f}° up and down",
            f["yaw"] >= WARN["yaw"],
            f"the head turns by {f['yaw']:.0f}° only: side views rest on the 3D prior; turn the "
            "head slowly while speaking",
        ),
        Line(
            "mouth",
            f"opening varies by {f['mouth']:.3f} eye distances",
            f["mouth"] >= WARN["mouth"],
            f"the mouth hardly moves (by {f['mouth']:.3f} eye distances): is this the speaker?",
        ),
    ]


def _sound_lines(f: dict[str, float], name: str) -> list[Line]:
    silent = f["loudest"] < WARN["silence"]
    return [
        Line(
            "sound",
            f"{f['loudest']:.0f} dB at its loudest, quiet {f['quiet']:.0%} of the time",
            not silent and f["quiet"] <= WARN["quiet_share"],
            "the sound is silent: nothing can be learned from it"
            if silent
            else "the sound is quiet most of the time: there is little speech in it",
        ),
        _length_line(f),
        _offset_line(f, name),
    ]


def _length_line(f: dict[str, float]) -> Line:
    longer = f["sound_seconds"] - f["seconds"]
    remedy = (
        "what follows is not used: do pictures lack?"
        if longer > 0
        else "from there on it counts as silence; cut the video there"
    )
    return Line(
        "sound's length",
        f"{f['sound_seconds']:.1f} s",
        abs(longer) <= WARN["apart"],
        f"the sound ends {abs(longer):.1f} s {'after' if longer > 0 else 'before'} the pictures: "
        f"{remedy}",
    )


def _offset_line(f: dict[str, float], name: str) -> Line:
    late = -f["sound_offset"] / video.FPS
    words = f"the sound is {abs(late) * 1000:.0f} ms {'late' if late > 0 else 'early'}"
    measured = f"r = {f['sound_offset_r']:.2f}, {f['sound_offset_deviations']:.1f} × chance"
    if not f["sound_offset_certain"]:
        return Line("lips and sound", f"offset cannot be told ({measured})", True, "")
    fine, name = abs(f["sound_offset"]) <= OFFSET, shlex.quote(name)
    return Line(
        "lips and sound",
        f"{'together' if fine else words} ({measured})",
        fine,
        f"{words}: shift it with ffmpeg -i {name} -itsoffset {-late:g} -i {name} -map 0:v -map 1:a "
        "-c copy shifted.mp4",
    )


def _focal_line(f: dict[str, float]) -> Line:
    known = f["focal_deviation"] < tracker.OBSERVABLE
    how = f"found to {f['focal_deviation']:.0%}" if known else "mostly assumed"
    return Line(
        "focal length",
        f"{f['focal']:.2f} image sides, {how}",
        known,
        "the head turns too little to tell the focal length: it is mostly assumed, views from the "
        "side are as deep or flat as that makes them",
    )


def _fit_lines(f: dict[str, float]) -> list[Line]:
    lost = f["speaker"] - f["tracked"]
    return [
        *([_focal_line(f)] if "focal_deviation" in f else []),
        Line(
            "3D model",
            f"trusted in {f['tracked']:.1%} of the frames",
            lost <= 1 - WARN["tracked"],
            f"the face is covered or turned away in {lost:.1%} of the frames: they are marked and "
            "not learned from",
        ),
        Line(
            "landmarks",
            f"off by {f['reprojection']:.2%} of the outer eye distance (median)",
            f["reprojection"] <= WARN["reprojection"],
            f"the 3D model is {f['reprojection']:.1%} of the eye distance off the landmarks; look "
            "at overview.mp4",
        ),
        Line(
            "fitted mouth",
            f"follows the detected one with r = {f['mouth_r']:.3f}, off by {f['mouth_rmse']:.2f} "
            "of its deviation",
            f["mouth_r"] >= WARN["mouth_r"] and f["mouth_rmse"] <= WARN["mouth_rmse"],
            f"the fitted mouth follows the detected one poorly (r = {f['mouth_r']:.2f}, off by "
            f"{f['mouth_rmse']:.2f} of its deviation)",
        ),
    ]


def warnings(figures: dict[str, float], name: str = "VIDEO") -> list[str]:
    """What may spoil a speaker learned from a clip of these figures, and what to do."""
    return [line.advice for line in lines(figures, name) if not line.fine]


def table(told: list[Line]) -> str:
    """Lines as text: what, figure, fine or what to do."""
    wide = max(len(line.what) for line in told)
    shown = [(f"{one.what:<{wide}}  {one.figure}", one) for one in told]
    return "\n".join(
        f"{'fine ' if one.fine else 'look '} {text}" + ("" if one.fine else f"\n{'':8}{one.advice}")
        for text, one in shown
    )
