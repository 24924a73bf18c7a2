"""What is measured of a talking head: series of figures by frame, and figures of series.

`series_of` looks at a film beside its truth once and keeps numbers by frame. Every figure, its
interval and every comparison is a function of such series alone, so that they may be cut over
hosts, pooled over speakers and folds, and kept in a file.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import judges
from t3d import run as runs
from t3d.data import landmarks, quality, video
from t3d.data.parts import write_atomically
from t3d.data.pipeline import crop_faces
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.judges import Judge
from t3d.metrics import action_units, image, lips, motion, uncertainty
from t3d.metrics.action_units import ACTION_UNITS, RARE
from t3d.metrics.uncertainty import Paired
from t3d.peers import lpips
from t3d.prior import basis
from t3d.prior import encoder as encoders
from t3d.prior.morphable import EXPRESSION_STD
from t3d.run import Run

LPIPS_BATCH = 8  # images that fit into memory at once
MOUTH = slice(48, 68)  # of the 68 landmarks
HIGHEST_PSNR = 100.0  # dB given to a frame that is better or equal to the truth's to the bit
NO_FIGURE = "not available"

# By frame, [T, …], NaN where unknown; or [] of str: the words that say why there is nothing.
Series = dict[str, np.ndarray]
Figures = dict[str, float | str]


@dataclass(frozen=True)
class Marks:
    """What a detector sees in T images: points68 [T, 68, 2] and lips79 [T, 79, 2] pixels, au
    [T, 5] 0 or 1; NaN where it finds no face."""

    points68: np.ndarray
    lips79: np.ndarray
    au: np.ndarray

    @property
    def opening(self) -> np.ndarray:
        """[T] of the mouth, over the eye distance."""
        return lips.mouth_opening(self.points68)


@dataclass(frozen=True)
class Truth:
    """What a film is held against.

    Attributes:
        images: uint8 [T, s, s, 3] the real frames; masks: [T, s, s] in [0, 1], of the head.
        marks: of the real frames; boxes: [T, 3] of the faces (cx, cy, side; fractions).
        sound: float32 [N] of the whole clip, 16 kHz; empty if it has none.
        frames: [T] the frames' numbers in that sound, at 25 fps.
    """

    images: np.ndarray
    masks: np.ndarray
    marks: Marks
    boxes: np.ndarray
    sound: np.ndarray
    frames: np.ndarray


# ---- detectors


def by_mediapipe(images: np.ndarray) -> Marks:
    """Looks for the face in a film uint8 [T, s, s, 3] with MediaPipe's FaceLandmarker."""
    size = images.shape[1]
    side = max(size, landmarks.FINDER_SIZE)
    seen = landmarks.detect(video.resize(i, side) if side > size else i for i in images)
    au, _ = action_units.from_blendshapes(
        seen.blendshapes, tuple(landmarks.BLENDSHAPES), seen.points68
    )
    return Marks(seen.points68 * size / side, seen.lips79 * size / side, au)


@cache
def mediapipe_missing() -> str:
    """Why MediaPipe cannot look for faces on this machine; '' where it can."""
    try:
        landmarks.detect([np.zeros((64, 64, 3), np.uint8)], video=False)
    except UserError as error:
        return str(error)
    return ""


def expression_names(prior: str) -> tuple[str, ...]:
    """The names of a 3DMM's expressions, which the encoder tells action units by.

    Raises:
        UserError: they have none.
    """
    names = basis.load(prior).expression_names
    if not names:
        raise UserError(
            f"the expressions of {prior} have no names to tell action units by; run `t3d assets "
            "fetch face_landmarker`, so that MediaPipe tells them"
        )
    return names


def by_encoder(run: Run, prior: str, boxes: np.ndarray, images: np.ndarray) -> Marks:
    """Reads the faces in a film uint8 [T, s, s, 3] with a run's own encoder.

    Args:
        prior: name of the 3DMM; boxes: [T, 3] of the faces.

    Raises:
        UserError: as `expression_names`.
    """
    names = expression_names(prior)
    read = jax.jit(partial(run.talker.encoder.apply, run.params["prior"]))
    seen = runs.in_batches(lambda f: read(f.astype(jnp.float32) / 255), crop_faces(images, boxes))
    points = encoders.in_image(seen["points"], boxes) * images.shape[1]
    weights = np.clip(seen["expression"][:, : len(names)] * EXPRESSION_STD, 0, 1)
    au, _ = action_units.from_blendshapes(weights, names, points[:, :68])
    return Marks(points[:, :68], points[:, 68:], au)


# ---- the encoder, beside the tracker that taught it


def encoder_figures(run: Run, dataset: SpeakerDataset, split: str = "test") -> dict[str, float]:
    """How well a run's encoder reads the mouths of a split's real frames.

    All is held against the landmarks that the dataset's detector found. An error is the mean
    distance of the twenty mouth landmarks in % of the outer eye distance, its mean over the frames.

    Args:
        run: with its prior stage; dataset: that it may or may not have learned from.

    Returns:
        frames; mouth_error of 'tracker/', of 'encoder/' (its codes and pose through the 3DMM) and
        of 'points/' (its landmarks), mouth_r (of the mouth's opening) and mouth_gain (deviation of
        the opening over the detected one's) of each; ratio of the latter two's errors to the
        tracker's.
    """
    frames = dataset.frames(split)
    true = dataset.track["points68"][frames]
    tracked = quality.fitted_points(basis.load(dataset.meta["prior"]), dataset.track)[frames]
    found = _mouth_figures("tracker", tracked, true)
    for name, points in _read_points(run, dataset, frames).items():
        found |= _mouth_figures(name, points, true)
        found[f"{name}/ratio"] = found[f"{name}/mouth_error"] / found["tracker/mouth_error"]
    return {"frames": len(frames), **found}


def _read_points(run: Run, dataset: SpeakerDataset, frames: np.ndarray) -> dict[str, np.ndarray]:
    """The 68 landmarks [N, 68, 2] of real frames, fractions of the image, in two ways."""
    marks = encoders.marks_basis(basis.load(dataset.meta["prior"]))
    intrinsics = dataset.track["intrinsics"]

    @jax.jit
    def read(faces: jax.Array, boxes: jax.Array) -> dict[str, jax.Array]:
        codes = run.talker.encoder.apply(run.params["prior"], faces.astype(jnp.float32) / 255)
        cameras = jnp.broadcast_to(intrinsics, (len(faces), 4))
        seen = {"encoder": encoders.seen_marks(marks, codes, cameras, boxes)}
        seen |= {"points": codes["points"]}
        return {name: encoders.in_image(points[:, :68], boxes) for name, points in seen.items()}

    faces = np.stack([dataset.picture(f, "face") for f in frames])
    return runs.in_batches(read, faces, dataset.track["face_box"][frames])


def _mouth_figures(name: str, points: np.ndarray, true: np.ndarray) -> dict[str, float]:
    off = np.linalg.norm(points - true, axis=-1)[:, MOUTH].mean(-1) / lips.eye_distance(true)
    openings = lips.mouth_opening(points), lips.mouth_opening(true)
    return {
        f"{name}/mouth_error": float(100 * off.mean()),
        f"{name}/mouth_r": lips.pearson(*openings),
        f"{name}/mouth_gain": float(openings[0].std() / openings[1].std()),
    }


# ---- series


def series_of(
    images: np.ndarray,
    truth: Truth,
    marks: Marks,
    judge: Judge | str,
    weights: lpips.Weights | str,
    sound: np.ndarray | None = None,
    lpips_every: int = 1,
) -> Series:
    """All that is measured of a film by frame.

    Args:
        images: uint8 [T, s, s, 3]; marks: of its faces.
        judge: of lip sync, or why there is none; weights: of LPIPS, or why there are none.
        sound: [N] of the film, as long as the truth's; the truth's own if None.
        lpips_every: frames from one that LPIPS is taken of to the next; NaN between.

    Returns:
        [T] each: ssim, ssim_head, psnr, psnr_head, lpips; lmd (% of the eye distance), lmd_px;
        opening, found, jitter, pose_jitter, sharpness, and the truth's true_opening, true_jitter,
        true_pose_jitter, true_sharpness; clip (a number that stands for the clip). au and true_au:
        [T, 5]. sync: [T, 31] distances to the sound at each shift, at the first frame of each
        window of five.
    """
    off = lips.lmd(marks.points68, truth.marks.points68, marks.lips79, truth.marks.lips79)
    sound = truth.sound if sound is None else sound
    return {
        **image.image_series(images, truth.images, truth.masks),
        "lpips": _lpips(weights, images, truth.images, lpips_every),
        "lmd": off.aligned,
        "lmd_px": off.pixels,
        "opening": marks.opening,
        "true_opening": truth.marks.opening,
        "found": np.isfinite(marks.opening).astype(float),
        "au": marks.au,
        "true_au": truth.marks.au,
        "sync": _sync(judge, images, truth, sound),
        **_jitters("", marks, truth.frames),
        **_jitters("true_", truth.marks, truth.frames),
        "sharpness": image.sharpness(images, truth.masks),
        "true_sharpness": image.sharpness(truth.images, truth.masks),
        "clip": np.full(len(images), zlib.crc32(truth.sound.tobytes())),
    }


def _lpips(weights: lpips.Weights | str, images, truth, every: int) -> np.ndarray:
    if isinstance(weights, str):
        return np.array(weights)

    def distance(a: np.ndarray, b: np.ndarray) -> jax.Array:
        return lpips.distance(weights, a.astype(np.float32) / 255, b.astype(np.float32) / 255)

    series = np.full(len(images), np.nan)
    series[::every] = runs.in_batches(distance, images[::every], truth[::every], size=LPIPS_BATCH)
    return series


def _sync(judge: Judge | str, images: np.ndarray, truth: Truth, sound: np.ndarray) -> np.ndarray:
    if isinstance(judge, str):
        return np.array(judge)
    if not len(sound):
        return np.array(f"{NO_FIGURE}: there is no sound")
    rows = judges.sync_rows(judge, images, truth.boxes, sound, truth.frames)
    return rows if np.isfinite(rows).any() else np.array(f"{NO_FIGURE}: no five frames in a row")


def _jitters(prefix: str, marks: Marks, frames: np.ndarray) -> Series:
    """Second differences, NaN where the frames beside are not those before and after in time."""
    angles = motion.head_pose(marks.points68, _generic_head())
    steady = np.pad((np.diff(frames)[:-1] == 1) & (np.diff(frames)[1:] == 1), 1)[: len(frames)]
    return {
        f"{prefix}jitter": np.where(steady, motion.jitter(marks.points68), np.nan),
        f"{prefix}pose_jitter": np.where(steady, motion.pose_jitter(angles), np.nan),
    }


@cache
def _generic_head() -> np.ndarray:
    """[68, 3] landmarks of the built-in model's mean head: only the turns between frames count."""
    model = basis.load("procedural")
    return np.asarray(model.mean)[np.asarray(model.landmarks68)]


# ---- figures: functions of weights [n, T] (how often each frame counts) and series → [n]


@dataclass(frozen=True)
class Figure:
    """One figure of a film.

    Attributes:
        keys: of the series that it is made of.
        of: (weights [n, T], *series) → [n]: one value for each way to count the frames.
        better: +1 when more is better, −1 when less is, 0 when neither.
        title: for people, without an arrow; digits: after the point.
    """

    keys: tuple[str, ...]
    of: Callable[..., np.ndarray]
    better: int
    title: str
    digits: int


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Over the frames where values [T, …] are known: [n, …]."""
    rows = values.reshape(len(values), -1)
    known = np.isfinite(rows).all(1)
    with np.errstate(invalid="ignore"):
        means = weights[:, known] @ rows[known] / weights[:, known].sum(1, keepdims=True)
    return means.reshape(len(weights), *values.shape[1:])


def _capped_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _mean(weights, np.minimum(values, HIGHEST_PSNR))


def _ratio(weights: np.ndarray, values: np.ndarray, true_values: np.ndarray) -> np.ndarray:
    """Mean over the truth's mean, where both are known."""
    both = np.stack([values, true_values], -1)
    mean = _mean(weights, both)
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean[:, 0] / mean[:, 1]


def _correlation(
    weights: np.ndarray, truth: np.ndarray, measured: np.ndarray, clip: np.ndarray
) -> np.ndarray:
    """Within clips: what one clip's mean is above another's does not count. 0 if constant."""
    moments = np.zeros((3, len(weights)))
    for name in np.unique(clip):
        rows = np.flatnonzero((clip == name) & np.isfinite(truth))
        if len(rows):
            pair = lips.against_truth(truth[rows], measured[rows])
            moments += _moments(weights[:, rows], *(p - p.mean() for p in pair))
    scale = np.sqrt(moments[0] * moments[1])
    return np.clip(np.where(scale > 1e-12, moments[2] / np.maximum(scale, 1e-12), 0.0), -1, 1)


def _moments(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[3, n] sums of squares of a and of b about their means, and of their products."""
    total = np.maximum(weights.sum(1), 1e-12)
    sum_a, sum_b, aa, bb, ab = (weights @ np.stack([a, b, a * a, b * b, a * b], 1)).T
    squares = np.stack([aa - sum_a**2 / total, bb - sum_b**2 / total])
    return np.stack([*np.maximum(squares, 0.0), ab - sum_a * sum_b / total])


def _au_rates(weights, au, true_au) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy and balanced accuracy [n, 5] of each AU, and the share of frames it is on in [5]."""
    known = np.isfinite(true_au).all(1)
    weights, true = weights[:, known], true_au[known] > 0.5
    right = np.isfinite(au[known]) & ((au[known] > 0.5) == true)
    rows = np.hstack([true, ~true, right & true, right & ~true]).astype(float)
    on, off, hits_on, hits_off = np.split(weights @ rows, 4, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = 0.5 * (hits_on / on + hits_off / off)
        return (hits_on + hits_off) / (on + off), balanced, true.mean(0)


def _au_mean(which: int, weights, au, true_au) -> np.ndarray:
    """Accuracy (0) or balanced accuracy (1) over the AUs that are neither absent nor constant."""
    *rates, share = _au_rates(weights, au, true_au)
    judged = (share >= RARE) & (share <= 1 - RARE)
    values = rates[which][:, judged]
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(1) / known.sum(1)


def _au_one(which: int, column: int, weights, au, true_au) -> np.ndarray:
    """The same of one AU, NaN if it is absent or constant."""
    *rates, share = _au_rates(weights, au, true_au)
    return rates[which][:, column] * (1.0 if RARE <= share[column] <= 1 - RARE else np.nan)


def _sync_confidence(weights: np.ndarray, distances: np.ndarray) -> np.ndarray:
    mean = _mean(weights, distances)
    return np.median(mean, 1) - mean.min(1)


def _sync_distance(weights: np.ndarray, distances: np.ndarray) -> np.ndarray:
    return _mean(weights, distances).min(1)


def _sync_offset(weights: np.ndarray, distances: np.ndarray) -> np.ndarray:
    return distances.shape[1] // 2 - _mean(weights, distances).argmin(1).astype(float)


_AU = ("au", "true_au")
FIGURES = {
    "ssim_head": Figure(("ssim_head",), _mean, 1, "SSIM over the head", 3),
    "ssim": Figure(("ssim",), _mean, 1, "SSIM", 3),
    "psnr_head": Figure(("psnr_head",), _capped_mean, 1, "PSNR over the head, dB", 2),
    "psnr": Figure(("psnr",), _capped_mean, 1, "PSNR, dB", 2),
    "lpips": Figure(("lpips",), _mean, -1, "LPIPS", 3),
    "lmd": Figure(("lmd",), _mean, -1, "LMD-79, head aligned, % of eye distance", 2),
    "lmd_px": Figure(("lmd_px",), _mean, -1, "LMD-79, pixels", 2),
    "mouth_r": Figure(
        ("true_opening", "opening", "clip"),
        _correlation,
        1,
        "mouth opening, r with the true one",
        2,
    ),
    "au_accuracy": Figure(_AU, partial(_au_mean, 0), 1, "AU accuracy", 3),
    "au_balanced": Figure(_AU, partial(_au_mean, 1), 1, "AU accuracy, balanced", 3),
    "sync_confidence": Figure(("sync",), _sync_confidence, 1, "sync confidence", 3),
    "sync_distance": Figure(("sync",), _sync_distance, -1, "sync distance", 3),
    "sync_offset": Figure(("sync",), _sync_offset, 0, "sync offset, frames", 0),
    "sharpness": Figure(
        ("sharpness", "true_sharpness"), _ratio, 0, "sharpness, times the real clip's", 2
    ),
    "jitter": Figure(
        ("jitter", "true_jitter"), _ratio, 0, "jitter of rigid landmarks, times the real clip's", 2
    ),
    "pose_jitter": Figure(
        ("pose_jitter", "true_pose_jitter"), _ratio, 0, "jitter of the pose, times the real's", 2
    ),
    "found": Figure(("found",), _mean, 1, "share of frames with a face", 3),
}
# The columns of the paper's Table I.
TABLE_I = ("ssim_head", "lpips", "au_accuracy", "lmd", "sync_confidence")
AU_FIGURES = {
    f"au{unit:02d}_{name}": Figure(_AU, partial(_au_one, which, k), 1, f"AU{unit:02d} {name}", 3)
    for k, unit in enumerate(ACTION_UNITS)
    for which, name in enumerate(("accuracy", "balanced"))
}


def figures(series: Series) -> Figures:
    """All figures of a film with their 95 % intervals, flat.

    Returns:
        {name, name_low, name_high} of FIGURES and AU_FIGURES; only name, and words, where there is
        no figure: 'identical', or 'not available: …'.
    """
    length = _length(series)
    counts = _counts(length, uncertainty.block_of(length))
    found: Figures = {}
    for name, figure in (FIGURES | AU_FIGURES).items():
        words = _words(figure, series)
        if words:
            found[name] = words
            continue
        values = [series[key] for key in figure.keys]
        found[name] = float(figure.of(np.ones((1, length)), *values)[0])
        found[f"{name}_low"], found[f"{name}_high"] = uncertainty.bounds(figure.of(counts, *values))
    return found


def compare(a: Series, b: Series) -> dict[str, Paired]:
    """What film a is above film b, for each figure that both have; frame by frame the same.

    Raises:
        ValueError: they have different numbers of frames.
    """
    length = _length(a)
    if _length(b) != length:
        raise ValueError(f"series of equal length wanted, not {length} and {_length(b)}")
    counts = np.concatenate([np.ones((1, length)), _counts(length, uncertainty.block_of(length))])
    found = {}
    for name, figure in (FIGURES | AU_FIGURES).items():
        if not (_words(figure, a) or _words(figure, b)):
            mine, other = (figure.of(counts, *(s[key] for key in figure.keys)) for s in (a, b))
            difference = mine - other
            low, high = uncertainty.bounds(difference[1:])
            found[name] = Paired(float(difference[0]), low, high, bool(low > 0 or high < 0))
    return found


def merge(parts: Sequence[Series]) -> Series:
    """One series of several: of a clip's parts, of folds, or of speakers.

    A figure that one part has no numbers for is words in the whole.
    """
    whole = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        words = [value for value in values if not value.ndim]
        whole[key] = words[0] if words else np.concatenate(values)
    return whole


def _length(series: Series) -> int:
    return len(series["found"])


@cache
def _counts(length: int, block: int) -> np.ndarray:
    """[n, T] how often each frame is drawn in each resample."""
    rows = uncertainty.rows(length, block)
    flat = rows + length * np.arange(len(rows))[:, None]
    counts = np.bincount(flat.ravel(), minlength=len(rows) * length)
    return counts.reshape(len(rows), length).astype(float)


def _words(figure: Figure, series: Series) -> str:
    """Why there is no number; '' if there is one."""
    values = [series[key] for key in figure.keys]
    for value in values:
        if not value.ndim:
            return str(value)
    known = values[0][~np.isnan(values[0])]
    if known.size and np.isposinf(known).all():
        return "identical"
    if np.isfinite(figure.of(np.ones((1, len(values[0]))), *values)[0]):
        return ""
    if figure.keys == _AU:
        return f"{NO_FIGURE}: absent, constant or unknown in the true frames"
    return f"{NO_FIGURE}: no frame to measure it on"


# ---- files


def save_series(
    path: Path, systems: Mapping[str, Series], frames: np.ndarray, **what: str | int
) -> None:
    """Writes the series of a clip's films.

    Args:
        path: of the .npz; systems: name → series of frames [T].
        what: they are about, as plain values: what must agree for a comparison.
    """
    flat = {f"{name}/{key}": value for name, s in systems.items() for key, value in s.items()}
    about = json.dumps(what, sort_keys=True)
    write_atomically(
        Path(path), lambda p: np.savez_compressed(p, frames=frames, what=np.array(about), **flat)
    )


def load_series(path: Path) -> tuple[dict[str, Series], np.ndarray, dict[str, str | int]]:
    """The systems' series, their frames [T] and what they are about; UserError if damaged."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: not there; evaluate it first: t3d evaluate --workdir {path.parent}"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            flat = dict(stored)
        frames, what = flat.pop("frames"), json.loads(str(flat.pop("what")))
        systems: dict[str, Series] = {}
        for name, value in flat.items():
            system, key = name.split("/")
            systems.setdefault(system, {})[key] = value
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); run t3d evaluate again") from error
    return systems, frames, what
