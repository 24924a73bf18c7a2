"""How sure a figure of a clip is: a block bootstrap over time.

Neighbouring frames are alike, so frames are resampled in blocks of neighbours (the circular block
bootstrap of Politis and Romano 1992).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flax import struct

Figure = Callable[..., float]
MOST_FRAMES = 25  # of a block: a second
RESAMPLES = 1000
LEVEL = 0.95


@struct.dataclass
class Paired:
    """By how much one system's figure differs from another's on the same frames.

    Attributes:
        difference: the first's figure minus the second's.
        low, high: 95 % interval of the difference.
        separates: whether the interval leaves 0 out; otherwise the difference is inside the noise.
    """

    difference: float
    low: float
    high: float
    separates: bool


def block_of(length: int) -> int:
    """Frames that a series of `length` keeps together: a second, at most a quarter of it."""
    return min(MOST_FRAMES, max(1, length // 4))


def rows(length: int, block: int, n: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Row numbers [n, length] of resampled series: blocks of neighbours, wrapping round the end."""
    block = min(block, length)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, length, (n, -(-length // block)))
    picked = (starts[:, :, None] + np.arange(block)) % length
    return picked.reshape(n, -1)[:, :length]


def bounds(figures: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Percentiles that hold the middle `level` of resampled figures [n]; NaNs are left out.

    They are two of the values themselves, so that infinite ones do no harm; NaN without any value.
    """
    known = np.sort(figures[~np.isnan(figures)])
    if not known.size:
        return float("nan"), float("nan")
    ranks = np.array([0.5 * (1 - level), 0.5 * (1 + level)]) * (known.size - 1)
    low, high = known[np.round(ranks).astype(int)]
    return float(low), float(high)


def interval(
    figure: Figure,
    *series: np.ndarray,
    block: int | None = None,
    n: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a figure of time series, by resampling blocks of neighbouring frames.

    Args:
        figure: of the resampled series, each [T, ...], to a number; NaN says there is none.
        series: arrays with the same first axis; all are resampled alike.
        block: frames that stay together, wrapping around the end; `block_of` the length if None.
        n: resamples.
        seed: of the resampling.
        level: of the interval.

    Returns:
        The lower and the upper percentile of the resampled figures; NaN where all are.
    """
    series = _arrays(series)
    picked = rows(len(series[0]), block or block_of(len(series[0])), n, seed)
    return bounds(np.array([figure(*(s[r] for s in series)) for r in picked], float), level)


def _arrays(series: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    series = [np.asarray(s) for s in series]
    if len({len(s) for s in series}) != 1 or not len(series[0]):
        raise ValueError(f"series of one length wanted, not {[len(s) for s in series]}")
    return series
