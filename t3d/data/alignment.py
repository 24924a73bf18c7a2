"""Whether sound and lips of a clip belong to the same instant, by their cross-correlation.

How fast the mouth opens is compared with how fast the voice rises, at every shift. It needs no
network, and tells the offset of a recording rather than how good a talker's lips are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from t3d.data.video import FPS, RATE
from t3d.metrics.lips import pearson
from t3d.speech.features import MEL_RATE, mel

FARTHEST = 15  # frames that the sound may be off by
VOICE = slice(8, 40)  # mel bands, about 300 Hz to 2 kHz
CHANCE = 200  # shifts far away, at which only chance correlates
LEAST = dict(r=0.2, deviations=4.0, frames=75)  # that an offset is believed at


class Offset(NamedTuple):
    """frames by which the sound is early (3 frames late: -3, as of metrics.sync); r: Pearson's at
    that offset; deviations: how far that is from 0, in those of r at shifts far away, which are
    chance; certain: whether to believe it."""

    frames: int
    r: float
    deviations: float
    certain: bool


def voice(sound: np.ndarray, frames: int) -> np.ndarray:
    """How loud the voice is at each frame [T], from sound [N] at 16 kHz (sample 0 = frame 0).

    The mean of the mel bands from about 300 Hz to 2 kHz, over a sixteenth of a second.
    """
    sound = np.pad(sound, (0, max(0, frames * RATE // FPS - len(sound))))
    loud = mel(sound)[:, VOICE].mean(1)
    loud = np.convolve(loud, np.full(5, 0.2), "same")
    steps = np.round(np.arange(frames) * MEL_RATE / FPS).astype(int)
    return loud[steps.clip(max=len(loud) - 1)]


def sound_offset(opening: np.ndarray, sound: np.ndarray) -> Offset:
    """The offset of a clip's sound against its mouth.

    Args:
        opening: [T] of the mouth, NaN where no face was found.
        sound: [N] at 16 kHz, sample 0 = frame 0.
    """
    moves, rises = np.gradient(opening), np.gradient(voice(sound, len(opening)))
    known = np.isfinite(moves)
    if known.sum() < LEAST["frames"] or np.std(moves[known]) == 0:
        return Offset(0, 0.0, 0.0, False)
    late = np.arange(-FARTHEST, FARTHEST + 1)
    r = _shifted_r(moves, rises, known, late)
    away = np.linspace(2 * FARTHEST, len(rises) - 2 * FARTHEST, CHANCE).round().astype(int)
    chance = np.sqrt(np.mean(_shifted_r(moves, rises, known, away) ** 2))
    best = int(np.argmax(r))
    deviations = float(r[best] / max(chance, 1e-9))
    certain = r[best] >= LEAST["r"] and deviations >= LEAST["deviations"]
    return Offset(-int(late[best]), float(r[best]), deviations, bool(certain))


def _shifted_r(moves: np.ndarray, rises: np.ndarray, known: np.ndarray, late) -> np.ndarray:
    """Pearson r [K] of moves [T] where known with rises [T] that are late by [K] frames (those
    beyond an end come from the other)."""
    here = np.flatnonzero(known)
    return np.array([pearson(moves[here], rises[(here + k) % len(rises)]) for k in late])
