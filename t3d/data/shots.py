"""Shots of a clip: where it is cut, which pictures are missing, which faces are the speaker's.

A cut changes colours and layout between two frames and stays; a fast head changes the layout of a
part, a flash the brightness, a dropped picture comes back. Thumbnails tell them apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import median_filter

from t3d.data import framing

SIDE = 24  # pixels of a thumbnail
CUT = 0.3  # difference of two pictures (0 to 1) beyond which they show different scenes
OUTSTANDING = 4.0  # times the difference that is usual around it: a pan is no cut
AROUND = 13  # frames that "around" means
JUMP = 0.2  # face heights from one frame to the next that no head moves by alone
GLITCH = 5  # frames: a shorter "shot" between two parts of one scene is a flash or a fault
GAP = 25  # frames: so long pictures may be missing within a shot
FAR, LARGER = 1.5, 1.5  # face heights from the usual place; times the usual size


class Shots(NamedTuple):
    """shot: [T] int32 index of each frame's shot; odd: [T] bool, a flash or a missing picture
    within its shot; scene: [T] int32, alike for shots that show the same scene."""

    shot: np.ndarray
    odd: np.ndarray
    scene: np.ndarray


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [24, 24, 3]."""
    step = max(1, min(image.shape[:2]) // (8 * SIDE))
    small = Image.fromarray(np.ascontiguousarray(image[::step, ::step]))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))


def difference(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """How different pictures are [N] in [0, 1], of thumbnails uint8 [N, 24, 24, 3].

    The geometric mean of how the colours differ (half the L1 distance of histograms of 64) and how
    the layout does (1 - r of the brightness, at most 1): a cut changes both.
    """
    colour = np.abs(_histogram(one) - _histogram(two)).sum(-1) / 2
    return np.sqrt(colour * np.clip(1 - _correlation(one, two), 0, 1))


def _histogram(thumbs: np.ndarray) -> np.ndarray:
    """[N, 64] shares of the pixels, each spread over the two nearest of four levels a channel."""
    level = thumbs.reshape(len(thumbs), -1, 3) / 255 * 3
    near = np.maximum(0, 1 - np.abs(level[..., None] - np.arange(4)))
    joint = np.einsum("npi,npj,npk->nijk", *np.moveaxis(near, 2, 0), optimize=True)
    return joint.reshape(len(thumbs), 64) / level.shape[1]


def _correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Pearson r [N] of the brightness; 0 where a picture is all of one brightness."""
    a, b = (t.reshape(len(t), -1, 3).mean(-1) for t in (one, two))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    power = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(power > 1e-3 * SIDE**2, (a * b).sum(-1) / np.maximum(power, 1e-9), 0.0)


def find(thumbs: np.ndarray, points68: np.ndarray, found: np.ndarray) -> Shots:
    """The shots of a clip.

    Args:
        thumbs: uint8 [T, 24, 24, 3] of `thumbnail`; points68: [T, 68, 2] pixels; found: [T] bool.
    """
    cut = _changes(thumbs) | _jumps(thumbs, points68, found)
    starts = np.flatnonzero(np.concatenate([[True], cut]))
    odd = np.zeros(len(thumbs), bool)
    starts = _without_interruptions(thumbs, found, starts, odd)
    shot = np.cumsum(np.isin(np.arange(len(thumbs)), starts)).astype(np.int32) - 1
    return Shots(shot, odd, _scenes(thumbs, shot, odd))


def _changes(thumbs: np.ndarray) -> np.ndarray:
    """[T - 1] whether the scene is another one from each frame to the next."""
    blocks = range(0, len(thumbs) - 1, 500)
    change = [difference(thumbs[k : k + 501][:-1], thumbs[k + 1 : k + 501]) for k in blocks]
    change = np.concatenate([[], *change])
    return (change > CUT) & _stands_out(change)


def _stands_out(values: np.ndarray) -> np.ndarray:
    usual = median_filter(values, AROUND, mode="nearest") if len(values) else values
    return values > OUTSTANDING * usual


def _jumps(thumbs: np.ndarray, points68: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[T - 1] whether the head is elsewhere at once, in picture and landmarks: a jump cut."""
    anchor = points68[:, framing.EYE_CORNERS].mean(1)
    tall = np.median(framing.face_height(points68[found]))
    step = np.linalg.norm(np.diff(anchor, axis=0), axis=-1) / tall
    step = np.where(found[1:] & found[:-1], step, 0.0)
    moved = np.abs(np.diff(thumbs.astype(np.int16), axis=0)).mean((1, 2, 3))
    return (step > JUMP) & _stands_out(step) & _stands_out(moved)


def _without_interruptions(thumbs, found, starts: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """The first frames of the shots; an interruption of one is marked in `odd`, and is none."""
    kept, k, edges = [0], 1, [*starts, len(thumbs)]
    while k < len(starts):
        first = edges[k]
        ends = [e for e in edges[k + 1 : -1] if _interrupts(thumbs, found, first, e)]
        if ends:
            odd[first : ends[-1]] = True
            k = edges.index(ends[-1]) + 1
        else:
            kept.append(first)
            k += 1
    return np.array(kept)


def _interrupts(thumbs: np.ndarray, found: np.ndarray, first: int, end: int) -> bool:
    """Whether the scene before `first` goes on at `end`, and what is between is no shot."""
    short = end - first <= GLITCH or (end - first <= GAP and not found[first:end].any())
    return short and difference(thumbs[first - 1 : first], thumbs[end : end + 1])[0] < CUT


def _scenes(thumbs: np.ndarray, shot: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """[T] an index for each scene: a shot is of the first scene that it looks like."""
    scenes, of_shot = [], []
    for one in range(shot[-1] + 1):
        mean = thumbs[(shot == one) & ~odd].mean(0, keepdims=True)
        alike = [k for k, other in enumerate(scenes) if difference(mean, other)[0] < CUT]
        of_shot.append(alike[0] if alike else len(scenes))
        scenes += [] if alike else [mean]
    return np.array(of_shot, np.int32)[shot]


def speaker_frames(shots: Shots, points68: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[T] bool: the found frames that show the speaker, in the scene of most found frames.

    The face must be near its usual place and size there. Judged by stretches, between cuts, gaps
    and leaps from one face to another, so that a head may lean out of its usual place and back.
    """
    seen = found & ~shots.odd
    if not seen.any():
        return seen
    seen &= shots.scene == np.bincount(shots.scene[seen]).argmax()
    anchor = points68[:, framing.EYE_CORNERS].mean(1)
    height = framing.face_height(points68)
    usual, tall = np.median(anchor[seen], axis=0), np.median(height[seen])
    leaps = np.linalg.norm(np.diff(anchor, axis=0, prepend=anchor[:1]), axis=-1) > tall / 2
    breaks = leaps | (np.diff(shots.shot, prepend=0) != 0) | (seen != np.roll(seen, 1))
    kept = np.zeros(len(found), bool)
    for stretch in np.split(np.arange(len(found)), np.flatnonzero(breaks)):
        if len(stretch) and seen[stretch[0]]:
            away = np.linalg.norm(np.median(anchor[stretch], axis=0) - usual) / tall
            scale = np.median(height[stretch]) / tall
            kept[stretch] = away < FAR and 1 / LARGER < scale < LARGER
    return kept
