"""Frames of a clip in which nothing was found: filled from those around them."""

from __future__ import annotations

import numpy as np


def bridge(values: np.ndarray, found: np.ndarray, shot: np.ndarray | None = None) -> np.ndarray:
    """Fills frames [T, …] without a detection by interpolation between their neighbours.

    Args:
        values: [T, …], NaN allowed where not found.
        found: [T] bool, at least one.
        shot: [T] the shot of each frame: nothing is taken from beyond a cut, but for a shot in
            which nothing was found, which gets the nearest frame's. None: one shot.
    """
    index = np.arange(len(values))
    flat = values.reshape(len(values), -1)
    shot = np.zeros(len(values)) if shot is None else shot
    filled = flat[nearest(found)].astype(np.float32)
    for one in np.unique(shot[found]):
        here = shot == one
        known = here & found
        columns = [np.interp(index[here], index[known], column[known]) for column in flat.T]
        filled[here] = np.stack(columns, -1)
    return filled.reshape(values.shape)


def nearest(found: np.ndarray) -> np.ndarray:
    """The found frame that is nearest to each frame [T], of found [T] bool, at least one."""
    index, known = np.arange(len(found)), np.flatnonzero(found)
    after = np.searchsorted(known, index).clip(max=len(known) - 1)
    before = (after - 1).clip(min=0)
    return known[np.where(known[after] - index < index - known[before], after, before)]
