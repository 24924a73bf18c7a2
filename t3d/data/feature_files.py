"""Files of speech features that other programs made: HuBERT, wav2vec, DeepSpeech, any .npy [T, D].

Step k is of the time k / rate. LipNet and StyleNet hear them in place of the mel.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from t3d.errors import UserError
from t3d.speech.features import BANDS, MEL_RATE, resample

TOLERANCE = 0.2  # seconds by which a file may be longer or shorter than its sound
NAME = "{name}"  # in a file's name: the dataset's


def path_of(pattern: str, name: str) -> Path:
    """The file of a dataset: `pattern` with the dataset's name for {name}."""
    return Path(pattern.replace(NAME, name))


def read(path: str | Path, rate: float, steps: int) -> np.ndarray:
    """The features of a sound at the times of its mel.

    Args:
        path: of the file [T, D]; rate: of its steps, a second; steps: M of the sound's mel.

    Returns:
        float32 [M, D], 80 steps a second.

    Raises:
        UserError: no such file, no array [T, D] of finite numbers, or one of another length than
            the sound (by more than 0.2 s).
    """
    features = _load(Path(path))
    if not np.isfinite(features).all():
        raise UserError(f"{path}: holds values that are not finite numbers; make it again")
    lasts, seconds = len(features) / rate, (steps - 1) / MEL_RATE
    if abs(lasts - seconds) > TOLERANCE:
        fitting = (
            f"a rate of {len(features) / seconds:.4g} would fit" if seconds else "no rate fits"
        )
        raise UserError(
            f"{path}: its {len(features)} steps at {rate:g} a second last {lasts:.2f} s, its sound "
            f"{seconds:.2f} s; give the file of this sound, [T, D], and its rate ({fitting})"
        )
    return resample(features, rate, steps)


def width(file: str) -> int:
    """D of what is heard: of a file's features; '': of the mel, 80."""
    if NAME in file:
        raise UserError(
            f"config.features.file={file}: without a dataset nobody knows the name; give the file "
            "of one of them"
        )
    return _load(Path(file)).shape[1] if file else BANDS


def entry(path: Path, rate: float) -> dict:
    """What a run's record says of a dataset's file: path, rate, and the sha256 of its bytes."""
    _load(path)
    return {"path": str(path.resolve()), "rate": rate, "sha256": _sha256(path)}


def identity(entry: dict | None) -> str:
    """Tells whether two entries are of the same features, wherever they lie; None: of the mel."""
    return f"{entry['sha256']} {entry['rate']}" if entry else ""


def describe(entry: dict | None) -> str:
    """An entry in words."""
    if entry is None:
        return "the mel"
    return f"{entry['path']} (sha256 {entry['sha256'][:12]}, {entry['rate']:g} steps a second)"


def find(entry: dict, folder: Path) -> Path:
    """The file of a record's entry: where it was, or in the dataset's folder.

    Raises:
        UserError: it is in neither place as it was.
    """
    there = Path(entry["path"])
    for path in (there, folder / there.name):
        if path.is_file() and _sha256(path) == entry["sha256"]:
            return path
    raise UserError(
        f"{there}: the features that the run was trained with are not there, or have changed; put "
        f"them back, or a copy of them into {folder}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(path: Path) -> np.ndarray:
    """[T, D] as it is in the file, not yet in memory."""
    if not path.is_file():
        raise UserError(f"{path}: no such feature file; make it, or check --config.features.file")
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); save it with numpy.save") from error
    if not isinstance(features, np.ndarray) or features.dtype.kind not in "fiu":
        raise UserError(f"{path}: is not one array of real numbers; save it with numpy.save")
    if features.ndim != 2 or not features.size:
        raise UserError(
            f"{path}: is of shape {features.shape}, not (steps, features); save one sound's array "
            "without a batch axis"
        )
    return features
