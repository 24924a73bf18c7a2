"""SyncNet confidence (the paper, Table I; Chung & Zisserman's LSE-C and LSE-D)."""

from __future__ import annotations

import numpy as np
from flax import struct

# Added inside the norm by the distance that syncnet_python takes.
EPSILON = 1e-6


@struct.dataclass
class Sync:
    """How well lips and sound belong together.

    Attributes:
        confidence: LSE-C, the median of the mean distances over all shifts minus the smallest.
        distance: LSE-D, the smallest mean distance.
        offset: frames by which the sound is early; 3 frames late gives −3.
    """

    confidence: float
    distance: float
    offset: int


def shifted_distances(face: np.ndarray, audio: np.ndarray, max_shift: int = 15) -> np.ndarray:
    """Distances [T, 2·max_shift + 1] of each face [T, D] to the sound [T, D] around it.

    Column s pairs frame t with sound t + s − max_shift; beyond the ends the sound is zeros, which
    count like any other (syncnet_python's way).
    """
    face, audio = np.asarray(face, np.float64), np.asarray(audio, np.float64)
    if face.shape != audio.shape or face.ndim != 2:
        raise ValueError(f"two equal shapes [T, D] wanted, not {face.shape} and {audio.shape}")
    padded = np.pad(audio, ((max_shift, max_shift), (0, 0)))
    columns = [
        np.linalg.norm(face - padded[s : s + len(face)] + EPSILON, axis=-1)
        for s in range(2 * max_shift + 1)
    ]
    return np.stack(columns, -1)


def sync_confidence(face: np.ndarray, audio: np.ndarray, max_shift: int = 15) -> Sync:
    """Confidence, distance and offset of a clip's embeddings.

    Args:
        face: [T, D] an embedding of each window of five frames.
        audio: [T, D] of the sound of the same windows.
        max_shift: largest shift in frames that is tried.
    """
    mean = shifted_distances(face, audio, max_shift).mean(0)
    best = int(mean.argmin())
    return Sync(
        confidence=float(np.median(mean) - mean[best]),
        distance=float(mean[best]),
        offset=max_shift - best,
    )
