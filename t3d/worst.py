"""The frames that came out worst, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

APART = 12  # frames between two that are shown: neighbours fail alike
STANDS_OUT = 3.0  # robust standard deviations from the film's median
TURNED = 1.0  # degrees away from any training view that are worth saying
LEAST = {"mouth": 0.01, "image": 0.02, "blur": 0.1}  # spread below which nothing stands out


@dataclass(frozen=True)
class Bad:
    """One bad frame: its row in the series, and its causes in words, the gravest first."""

    row: int
    cause: str


def beyond(train: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """How far a head is turned from any view of it in training: [T] degrees.

    A view is the direction in which the head has the camera, which stands in the world's origin.

    Args:
        train, poses: [N, 4, 4] and [T, 4, 4] head to world.
    """

    def directions(to_world: np.ndarray) -> np.ndarray:
        toward = -np.einsum("nji,nj->ni", to_world[:, :3, :3], to_world[:, :3, 3])
        return toward / np.linalg.norm(toward, axis=1, keepdims=True)

    nearest = (directions(poses) @ directions(train).T).max(1)
    return np.degrees(np.arccos(np.clip(nearest, -1, 1)))


def worst(
    series: Mapping[str, np.ndarray], beyond: np.ndarray | None = None, count: int = 10
) -> list[Bad]:
    """The worst frames of a film, the worst first, at least `APART` frames from each other.

    A frame is as bad as the worst of: no face found where the truth has one, the mouth's opening
    off, the image unlike the truth, blur; each in robust standard deviations from the film's
    median. A frame whose figures are all at or under the median is never among them.

    Args:
        series: of `measure.series_of`; opening, true_opening, ssim_head, sharpness and
            true_sharpness [T] are read.
        beyond: [T] degrees, of `beyond`; named as a cause beside the others.
    """
    faults = _faults(series)
    score = np.max([_standing_out(values, LEAST[name]) for name, values in faults.items()], axis=0)
    lost = np.isnan(series["opening"]) & np.isfinite(series["true_opening"])
    score = np.where(lost, np.inf, score)
    chosen: list[int] = []
    for row in np.argsort(-score, kind="stable"):
        if len(chosen) == count or not score[row] > 0:
            break
        if all(abs(row - other) >= APART for other in chosen):
            chosen.append(int(row))
    return [Bad(row, "; ".join(_causes(series, faults, lost, beyond, row))) for row in chosen]


def _faults(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How bad each frame is [T], by cause: the more the worse; NaN where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        blur = -np.log(series["sharpness"] / series["true_sharpness"])
    return {
        "mouth": np.abs(series["opening"] - series["true_opening"]),
        "image": 1 - series["ssim_head"],
        "blur": blur,
    }


def _standing_out(values: np.ndarray, least: float) -> np.ndarray:
    """[T] robust standard deviations above the median; 0 where unknown."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values))
    middle = np.median(known)
    spread = max(1.4826 * np.median(np.abs(known - middle)), least)
    return np.nan_to_num((values - middle) / spread, nan=0.0)


def _causes(series, faults, lost, beyond, row: int) -> list[str]:
    """What stands out of a frame, the most first; at least one cause."""
    above = {n: _standing_out(values, LEAST[n])[row] for n, values in faults.items()}
    order = sorted(above, key=above.get, reverse=True)
    named = [n for n in order if above[n] >= STANDS_OUT] or ([] if lost[row] else order[:1])
    words = ["no face found"] if lost[row] else []
    words += [_words(series, name, row) for name in named]
    if beyond is not None and beyond[row] >= TURNED:
        words.append(f"head turned {beyond[row]:.0f}° further than in training")
    return words


def _words(series, name: str, row: int) -> str:
    if name == "mouth":
        off = 100 * (series["opening"] - series["true_opening"])[row]
        how = "open" if off > 0 else "closed"
        return f"mouth too {how} by {abs(off):.1f} % of the eye distance"
    if name == "image":
        alike = series["ssim_head"]
        return f"image error: SSIM over the head {alike[row]:.2f}, median {np.nanmedian(alike):.2f}"
    sharp = series["sharpness"] / series["true_sharpness"]
    return f"blur: sharpness {sharp[row]:.0%} of the real, median {np.nanmedian(sharp):.0%}"
