"""Linear probes: what a weighted sum can read from codes, and statistics of codes over time.

A probe is fitted on training frames, its penalty is chosen on validation frames, and it is judged
on others. Features are standardised by the training frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import struct
from scipy.optimize import minimize
from scipy.special import log_softmax

from t3d.metrics import lips, uncertainty

PENALTIES = 10.0 ** np.arange(2, -6, -1)  # on squared weights, beside the mean loss of a frame
TINY = 1e-6  # of the largest deviation: a feature that moves less says nothing
STEPS = 1000  # of the classifier's optimiser
MOST_LAG = 10  # frames
Pair = tuple[np.ndarray, np.ndarray]


@struct.dataclass
class Probe:
    """A weighted sum of features: [..., D] → [...] or [..., K].

    Attributes:
        centre, scale: [D] that standardise; weights: [D] or [D, K]; bias: [] or [K].
    """

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return self.standardised(features) @ self.weights + self.bias

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """The features [..., D] about their training mean, in their training deviations."""
        return (features - self.centre) / self.scale


def _standard(features: np.ndarray) -> Probe:
    """A probe without weights yet."""
    deviation = features.std(0, dtype=np.float64)
    scale = np.where(deviation > TINY * deviation.max(), deviation, np.inf)
    nothing = np.zeros(features.shape[1])
    return Probe(features.mean(0, dtype=np.float64), scale, nothing, np.zeros(()))


def regression(train: Pair, validation: Pair) -> Probe:
    """Ridge regression of a number on features.

    Args:
        train, validation: features [N, D] and numbers [N].

    Returns:
        The probe [..., D] → [...] whose penalty has the least squared error in validation.
    """
    plain = _standard(train[0])
    u, s, vt = np.linalg.svd(plain.standardised(train[0]), full_matrices=False)
    bias = np.mean(train[1])
    along = u.T @ (train[1] - bias)
    fits = [
        plain.replace(weights=vt.T @ (along * s / (s**2 + penalty * len(u))), bias=bias)
        for penalty in PENALTIES
    ]
    return min(fits, key=lambda probe: np.mean((probe(validation[0]) - validation[1]) ** 2))


def explained(truth: np.ndarray, predicted: np.ndarray) -> float:
    """R² of predictions [T]: share of the truth's variance that they explain; below 0 where its
    own mean would do better, NaN where the truth is constant."""
    total = np.sum((truth - truth.mean()) ** 2)
    return float(1 - np.sum((truth - predicted) ** 2) / total) if total > 0 else float("nan")


# ---- which of several classes


def classifier(train: Pair, validation: Pair) -> Probe:
    """Multinomial logistic regression; every class weighs the same, however many rows it has.

    Args:
        train, validation: features [N, D] and classes [N] int, 0 … K−1, all of which occur.

    Returns:
        The probe [..., D] → scores [..., K] whose penalty has the least log loss in validation.
    """
    plain = _standard(train[0])
    features, held = plain.standardised(train[0]), plain.standardised(validation[0])
    count = int(train[1].max()) + 1
    fits, weights = [], np.zeros((features.shape[1] + 1, count))
    for penalty in PENALTIES:  # from the strongest on: each fit begins where the last one ended
        weights = _logistic(features, train[1], penalty, weights)
        loss = _log_loss(weights, held, validation[1], 0.0)[0]
        fits.append((loss, len(fits), plain.replace(weights=weights[1:], bias=weights[0])))
    return min(fits)[2]


def _logistic(features, classes, penalty: float, start: np.ndarray) -> np.ndarray:
    """Weights [1 + D, K], the bias first."""

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _log_loss(flat.reshape(start.shape), features, classes, penalty)
        return value, slope.ravel()

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return found.x.reshape(start.shape)


def _log_loss(weights, features, classes, penalty: float) -> tuple[float, np.ndarray]:
    """The balanced, penalised log loss and its gradient [1 + D, K]."""
    share = 1 / (weights.shape[1] * np.bincount(classes, minlength=weights.shape[1])[classes])
    right = np.eye(weights.shape[1])[classes]
    log_p = log_softmax(features @ weights[1:] + weights[0], axis=1)
    off = share[:, None] * (np.exp(log_p) - right)
    slope = np.concatenate([off.sum(0)[None], features.T @ off + penalty * weights[1:]])
    value = -np.sum(share[:, None] * right * log_p) + penalty / 2 * np.sum(weights[1:] ** 2)
    return float(value), slope


def balanced(right: Sequence[np.ndarray]) -> np.ndarray:
    """Balanced accuracy: the mean over classes of the share of frames that are told right.

    Args:
        right: a series [T_k] for each class: of each frame, the share that is told right.

    Returns:
        [1 + n]: the figure, then n resampled ones (blocks of each class's own time). Resamples of
        two probes on the same frames are paired.
    """
    shares = []
    for number, series in enumerate(right):
        block = uncertainty.block_of(len(series))
        picked = uncertainty.rows(len(series), block, seed=number)
        shares.append(np.append(series.mean(), series[picked].mean(1)))
    return np.mean(shares, 0)


def plane(probe: Probe, features: np.ndarray) -> Probe:
    """The plane that a classifier's choice is seen in.

    Args:
        probe: of `classifier`; features: [N, D] to find the second axis in.

    Returns:
        A probe [..., D] → [..., 2]: along the direction that tells the classes apart most, and
        along the principal component of what is left at right angles to it.
    """
    apart = np.linalg.svd(probe.weights, full_matrices=False)[0][:, 0]
    seen = probe.standardised(features)
    rest = seen - np.outer(seen @ apart, apart)
    widest = np.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0]
    return probe.replace(weights=np.stack([apart, widest], 1), bias=np.zeros(2))


# ---- over time


def lower(errors: np.ndarray, others: np.ndarray) -> float:
    """By how many % the mean of errors [T] is below that of others [T]."""
    return float(100 * (1 - errors.mean() / others.mean()))


def deviation(codes: np.ndarray) -> float:
    """Deviation of codes [T, D] over time, all together: the root of the summed variances."""
    return float(np.sqrt(codes.var(0).sum()))


def shifts(length: int, count: int = 20) -> np.ndarray:
    """Circular shifts [≤ count] that bring no frame of a series nearer than a second to its place
    (a quarter of a short series)."""
    least = uncertainty.block_of(length)
    return np.unique(np.linspace(least, length - least, count).round().astype(int))


def best_lag(series: np.ndarray, other: np.ndarray) -> float:
    """Frames by which `other` [T] comes after `series` [T] where they correlate best; at most ten,
    or a quarter of the series; NaN where one is constant."""
    if not (np.ptp(series) and np.ptp(other)):
        return float("nan")
    most = min(MOST_LAG, len(series) // 4)
    end = len(series) - most
    lags = np.arange(-most, most + 1)
    found = [lips.pearson(series[most:end], other[most + lag : end + lag]) for lag in lags]
    return float(lags[np.argmax(found)])
