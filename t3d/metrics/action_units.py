"""Speech-related facial action units: labels, their accuracy, and OpenFace's files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import struct

from t3d.errors import UserError
from t3d.metrics.lips import mouth_opening

# The AUs of the paper's [6] as the authors' release lists them.
ACTION_UNITS = (10, 14, 20, 25, 26)
# ICT-FaceKit's FACS table. It has no AU25 (lips part: the lip gap) and no AU26 (jaw drop).
SHAPES = {
    10: ("mouthShrugUpper",),
    14: ("mouthDimple_L", "mouthDimple_R"),
    20: ("mouthStretch_L", "mouthStretch_R"),
    26: ("jawOpen",),
}
# On above: blendshape weights (0 to 1); AU25's is the inner-lip gap over the eye distance. Set
# where MediaPipe's weights leave their noise on a talking newsreader.
THRESHOLDS = {10: 0.03, 14: 0.05, 20: 0.03, 25: 0.03, 26: 0.06}
# An AU on in less than this share of frames is absent, in more than the rest of it constant.
RARE = 0.05
MILLISECOND = 0.001  # OpenFace rounds its time stamps to it


@struct.dataclass
class AUAccuracy:
    """How often predicted AUs agree with the true ones.

    Attributes:
        mean: accuracy over the judged AUs (neither absent nor constant); NaN without any.
        balanced: the mean of the judged AUs' balanced accuracies.
        accuracy: {"AU10": share of frames that agree} for every AU.
        balanced_accuracy: {"AU10": mean of the hit rates on and off}; NaN where one never occurs.
        absent, constant: AUs that are on in under 5 % or over 95 % of the true frames: right
            answers about them say nothing.
    """

    mean: float
    balanced: float
    accuracy: dict[str, float]
    balanced_accuracy: dict[str, float]
    absent: tuple[str, ...]
    constant: tuple[str, ...]


def from_blendshapes(
    blendshapes: np.ndarray,
    names: Sequence[str],
    points68: np.ndarray,
    thresholds: Mapping[int, float] = THRESHOLDS,
) -> tuple[np.ndarray, np.ndarray]:
    """AU labels from blendshape weights and the lip gap (ICT-FaceKit's FACS table).

    Args:
        blendshapes: [T, 53] weights, 0 to 1; NaN without a face.
        names: ICT's name of each column.
        points68: [T, 68, 2] landmarks.
        thresholds: an AU is on above.

    Returns:
        labels [T, 5], 0 or 1 in the order of `ACTION_UNITS`, and intensity [T, 5], the measure that
        the threshold cuts; NaN in both where no face was found.
    """
    columns = {name: i for i, name in enumerate(names)}
    intensity = np.stack(
        [
            mouth_opening(points68)
            if unit not in SHAPES
            else np.mean([blendshapes[:, columns[shape]] for shape in SHAPES[unit]], 0)
            for unit in ACTION_UNITS
        ],
        -1,
    ).astype(np.float32)
    cuts = np.array([thresholds[unit] for unit in ACTION_UNITS], np.float32)
    labels = np.where(np.isnan(intensity), np.nan, intensity > cuts)
    return labels.astype(np.float32), intensity


def au_accuracy(
    predicted: np.ndarray, true: np.ndarray, units: Sequence[int] = ACTION_UNITS
) -> AUAccuracy:
    """AU Acc (the paper, Table I), per AU and over those that can be judged.

    Args:
        predicted: [T, n] 0 or 1 (above 0.5 is on); NaN (no face found) counts as wrong.
        true: [T, n] 0 or 1; frames with a NaN are left out.
        units: the AUs' numbers.
    """
    known = np.isfinite(true).all(-1)
    predicted, true = np.asarray(predicted)[known], np.asarray(true)[known] > 0.5
    right = np.isfinite(predicted) & ((predicted > 0.5) == true)
    names = [f"AU{unit:02d}" for unit in units]
    share = true.mean(0) if len(true) else np.zeros(len(names))
    accuracy = {n: float(right[:, i].mean()) for i, n in enumerate(names)} if len(true) else {}
    balanced = {n: _balanced(right[:, i], true[:, i]) for i, n in enumerate(names)}
    absent = tuple(n for n, s in zip(names, share, strict=True) if s < RARE)
    constant = tuple(n for n, s in zip(names, share, strict=True) if s > 1 - RARE)
    judged = [n for n in names if n not in absent and n not in constant]
    return AUAccuracy(
        mean=float(np.mean([accuracy[n] for n in judged])) if judged else float("nan"),
        balanced=float(np.mean([balanced[n] for n in judged])) if judged else float("nan"),
        accuracy=accuracy,
        balanced_accuracy=balanced,
        absent=absent,
        constant=constant,
    )


def _balanced(right: np.ndarray, true: np.ndarray) -> float:
    if true.all() or not true.any():
        return float("nan")
    return float(0.5 * (right[true].mean() + right[~true].mean()))


def read_openface(
    path: str | Path, fps: float = 25.0, units: Sequence[int] = ACTION_UNITS
) -> np.ndarray:
    """AU presence from a CSV of OpenFace's FeatureExtraction, `fps` labels a second.

    Tolerates what its versions and spreadsheets do to the file: blanks around the names, any case,
    a byte-order mark, commas, semicolons or tabs, missing frames, several faces (the one seen
    most often is taken) and missing presence columns (an intensity ≥ 1 of 5 counts as present).

    Args:
        path: the file.
        fps: of the labels: each is the nearest row's by time stamp. A file without time stamps, or
            with one for all, is taken row by row, by frame number.
        units: the AUs' numbers.

    Returns:
        [T, n] 0 or 1, the video's start first; NaN where a frame is missing or not tracked.

    Raises:
        UserError: the file is missing, is no such table or lacks one of the AUs.
    """
    rows = _table(Path(path))
    sources = [_column(path, rows[0], unit) for unit in units]
    try:
        if "face_id" in rows[0]:
            faces = [row["face_id"] for row in rows]
            most_seen = max(sorted(set(faces)), key=faces.count)
            rows = [row for row in rows if row["face_id"] == most_seen]
        labels = np.array([_presence(row, sources) for row in rows], np.float32)
        return _at_rate(labels, *_clock(rows, fps), fps)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: a damaged OpenFace table ({error}); run OpenFace's FeatureExtraction again"
        ) from error


def _presence(row: Mapping[str, str], sources: Sequence[tuple[str, float]]) -> list[float]:
    """One frame's AUs; NaN where the face was not tracked."""
    if _number(row.get("success", row.get("confidence", 1))) <= 0.5:
        return [np.nan] * len(sources)
    return [float(_number(row[name]) >= cut) for name, cut in sources]


def _clock(rows: Sequence[Mapping[str, str]], fps: float) -> tuple[np.ndarray, float]:
    """Each row's time, and the time from frame to frame, in seconds."""
    frames = np.array([int(_number(row.get("frame", i + 1))) for i, row in enumerate(rows)])
    if frames.min() < 1:
        raise ValueError(f"frame {frames.min()}")
    if "timestamp" in rows[0]:
        times = np.array([_number(row["timestamp"]) for row in rows])
        if not np.isfinite(times).all() or times.min() < 0:
            raise ValueError("a time stamp that is none")
        apart = np.diff(frames) > 0
        steps = np.diff(times)[apart] / np.diff(frames)[apart]
        if len(steps) and np.median(steps) > 0:
            return times, float(np.median(steps))
    return (frames - 1) / fps, 1 / fps


def _at_rate(labels: np.ndarray, times: np.ndarray, step: float, fps: float) -> np.ndarray:
    """Labels [R, n] taken at `times` [R], `step` apart, at `fps`: the nearest row's, if near."""
    wanted = np.arange(round((times.max() + step) * fps)) / fps
    order = np.argsort(times, kind="stable")
    after = np.clip(np.searchsorted(times[order], wanted), 1, max(1, len(times) - 1))
    pair = order[np.minimum(np.stack([after - 1, after]), len(times) - 1)]
    off = np.abs(times[pair] - wanted)
    nearest = np.where(off[0] <= off[1], pair[0], pair[1])
    near = off.min(0) <= max(step, 1 / fps) / 2 + MILLISECOND
    return np.where(near[:, None], labels[nearest], np.nan).astype(np.float32)


def _table(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a CSV of OpenFace ({error})") from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    names = [name.strip().lower() for name in head.split(delimiter)]
    body = csv.reader(text.splitlines()[1:], delimiter=delimiter)
    rows = [dict(zip(names, (v.strip() for v in row), strict=False)) for row in body if row]
    if not rows:
        raise UserError(f"{path}: an empty table; give the CSV of OpenFace's FeatureExtraction")
    return rows


def _column(path: str | Path, row: dict[str, str], unit: int) -> tuple[str, float]:
    for name, cut in ((f"au{unit:02d}_c", 0.5), (f"au{unit:02d}_r", 1.0)):
        if name in row:
            return name, cut
    raise UserError(f"{path}: has no column AU{unit:02d}_c; run FeatureExtraction with -aus")


def _number(text: str | float) -> float:
    return float(str(text).replace(",", "."))
