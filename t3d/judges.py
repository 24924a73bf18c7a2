"""Judges of lip sync: who says how well lips and sound belong together, and proof that it can.

A judge embeds five face frames and the sound beside them into one space. There are three kinds: the
SyncNet that every run trains and no loss sees, the public one of syncnet_python, and Wav2Lip's sync
expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import convert
from t3d.data import video
from t3d.data.pipeline import SYNC_STEPS, WINDOW, crop_faces, sync_start, window_starts
from t3d.data.speaker_dataset import runs_of
from t3d.metrics.sync import shifted_distances
from t3d.peers import syncnet as public_syncnet
from t3d.peers import wav2lip
from t3d.run import BATCH, Run, in_batches, open_run
from t3d.speech import features

SHIFTS = np.arange(-15, 16)  # frames; the columns of sync_rows
OTHER = 5  # frames from which on a shifted sound counts as another
SECOND = 25  # windows that a proof averages over
PROVED_WINDOWS, PROVED_OFFSET = 0.75, 1
# syncnet_python's crop beside our face box: a face detector's box reaches about a third of the
# brow-to-chin height above the brows; the crop is 1.4 times as large and lowered by 0.2 of it.
PUBLIC_SIDE, PUBLIC_LOWER = 1.5, 0.08


@dataclass(frozen=True)
class Judge:
    """Embeds lips and sound, so that what belongs together lies close.

    Attributes:
        name: what it is, in words.
        look: (images uint8 [T, s, s, 3], boxes [T, 3] face boxes (cx, cy, side) in fractions of the
            image, rows [W]) → [W, D], of the five frames from each row on.
        hear: (sound float32 [N] at 16 kHz, starts [W] frame numbers in it) → [W, D], of the 0.2 s
            from each start on.
    """

    name: str
    look: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    hear: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Proof:
    """What a judge can tell on real footage.

    Attributes:
        windows: share of the pairs (window of five frames, sound 5 to 15 frames off) in which the
            window is nearer to its own sound; 0.5 is chance, NaN where nothing can be compared.
        seconds: the same of distances averaged over 1 s.
        offset: frames, as syncnet_python signs it.
        proved: windows ≥ 0.75 and |offset| ≤ 1.
    """

    windows: float
    seconds: float
    offset: int
    proved: bool


# ---- the three kinds


def of_run(run: Run, which: str = "judge") -> Judge:
    """A SyncNet that a run trained; stage `sync` is all it needs of the run.

    Args:
        which: judge, which no loss ever sees, or coach, which taught LipNet (Eq. 2).
    """
    net, params = getattr(run.talker, which), run.params["sync"][which]
    embed_faces = jax.jit(
        lambda faces: net.apply(params, faces.astype(jnp.float32) / 255, method="face_embedding")
    )
    embed_sound = jax.jit(partial(net.apply, params, method="audio_embedding"))
    seen = "seen by no loss" if which == "judge" else "LipNet's coach"
    name = f"trained in {run.workdir}, {seen}"
    return Judge(name, _looker(crop_faces, embed_faces), _mel_hearer(embed_sound))


def of_expert(weights: wav2lip.Weights) -> Judge:
    """Wav2Lip's sync expert, which is shown the faces that a run's judge is shown.

    Wav2Lip cuts faces by another detector, whose boxes are not square: the proof on real frames
    tells whether the expert can do with these.
    """

    def embed_faces(faces: np.ndarray) -> jax.Array:
        lower = faces[:, :, faces.shape[2] // 2 :, :, ::-1]  # BGR
        return wav2lip.expert_face_embedding(weights, lower / np.float32(255))

    embed_sound = partial(wav2lip.expert_audio_embedding, weights)
    return Judge(
        "Wav2Lip's sync expert", _looker(crop_faces, embed_faces), _mel_hearer(embed_sound)
    )


def public() -> Judge | str:
    """syncnet_python's network, or a line that says why it is not there."""
    weights = public_syncnet.available()
    return weights if isinstance(weights, str) else of_public(weights)


def of_public(weights: public_syncnet.Weights) -> Judge:
    """syncnet_python's network."""
    embed_faces = partial(public_syncnet.lip_embedding, weights)
    embed_sound = partial(public_syncnet.audio_embedding, weights)

    def hear(sound: np.ndarray, starts: np.ndarray) -> np.ndarray:
        mfcc, each = features.mfcc(sound), features.MFCC_RATE // video.FPS
        steps = public_syncnet.MFCC_STEPS
        windows = [features.mel_window(mfcc, each * int(s), steps) for s in starts]
        return in_batches(embed_sound, np.stack(windows))

    return Judge("the public SyncNet (syncnet_python)", _looker(_public_crops, embed_faces), hear)


def best(run: Run | None) -> Judge | str:
    """The public judge if its weights are among the assets, else the run's, else why there is none.

    Args:
        run: with at least its stage `sync`, or None.
    """
    judge = public()
    if isinstance(judge, str) and run:
        return of_run(run)
    if isinstance(judge, str):
        return f"{judge}, or name a trained run or converted weights with --judge DIR"
    return judge


def of_folder(folder: str | Path) -> Judge:
    """The judge in a folder: of a run, or a network that `t3d convert` wrote there.

    Raises:
        UserError: it holds neither a run whose stage `sync` is trained nor weights of a judge.
    """
    kind = convert.kind_of(folder)
    if kind is None:
        return of_run(open_run(folder, ["sync"]))
    if kind == "sync-expert":
        judge = of_expert(convert.load(folder, kind))
    else:
        judge = of_public(convert.load(folder, "syncnet-v2"))
    return replace(judge, name=f"{judge.name}, converted in {folder}")


def _looker(crop: Callable, embed: Callable) -> Callable:
    """`look` of a judge out of how it cuts faces and how it embeds uint8 [B, 5, side, side, 3]."""

    def look(images: np.ndarray, boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        windows = rows[:, None] + np.arange(WINDOW)
        used, at = np.unique(windows, return_inverse=True)
        faces = crop(images[used], boxes[used])
        chosen = at.reshape(windows.shape)
        return in_batches(lambda batch: embed(faces[batch]), chosen, size=BATCH)

    return look


def _mel_hearer(embed: Callable) -> Callable:
    """`hear` of a judge that embeds the mel windows [B, 16, 80] of Wav2Lip."""

    def hear(sound: np.ndarray, starts: np.ndarray) -> np.ndarray:
        mel = features.mel(sound)
        windows = [features.mel_window(mel, sync_start(int(s)), SYNC_STEPS) for s in starts]
        return in_batches(embed, np.stack(windows))

    return hear


def _public_crops(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Faces uint8 [T, 224, 224, 3] BGR, about as syncnet_python's pipeline cuts them."""
    side = images.shape[1]
    lower = np.array([0, PUBLIC_LOWER, 0])
    wide = (boxes + lower * boxes[:, 2:]) * [1, 1, PUBLIC_SIDE] * side
    size = public_syncnet.SIZE
    return np.stack([video.crop(i, box, size)[..., ::-1] for i, box in zip(images, wide)])


# ---- what they say


def windows(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where five consecutive frames begin among frames [T], ascending, with holes.

    Returns:
        rows [W], starts [W]: row of the first of the five, and its frame number.
    """
    starts, _ = window_starts(frames)
    return np.searchsorted(frames, starts), starts


def sync_rows(
    judge: Judge, images: np.ndarray, boxes: np.ndarray, sound: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """How far lips and sound lie apart, at each frame and each shift of the sound.

    As syncnet_python on a film of these frames: beyond their ends the sound is zeros. Frames with
    holes are no film: there the sound of each shift is heard where it is in the clip, and is zeros
    beyond that.

    Args:
        images: uint8 [T, s, s, 3]; boxes: [T, 3] face boxes in fractions of the image.
        sound: float32 [N] at 16 kHz; frames: [T] their numbers in it at 25 fps.

    Returns:
        [T, 31]: distances at the first frame of each window of five (metrics.sync), column k for
        sound from k − 15 frames later; NaN at the other frames.
    """
    rows, starts = windows(frames)
    distances = np.full((len(frames), len(SHIFTS)), np.nan)
    if len(rows):
        face, (own, around) = judge.look(images, boxes, rows), _sounds(judge, sound, starts)
        distances[rows] = _by_shift(face, own, around, starts)
    return distances


def _by_shift(face, own, around, starts: np.ndarray) -> np.ndarray:
    """[W, 31] distances with zeros beyond the film or, of windows with holes, the clip."""
    if len(runs_of(starts)) == 1:
        return shifted_distances(face, own, int(SHIFTS[-1]))
    return _apart(face, np.nan_to_num(around))


def _apart(face: np.ndarray, around: np.ndarray) -> np.ndarray:
    """[W, 31] distances of faces [W, D] and the sounds about them [W, 31, D]."""
    return np.linalg.norm(face[:, None].astype(np.float64) - around, axis=-1)


def proof(
    judge: Judge, images: np.ndarray, boxes: np.ndarray, sound: np.ndarray, frames: np.ndarray
) -> Proof:
    """Whether a judge can tell right from wrong sound, on real footage with its own sound.

    Every sound that begins 5 to 15 frames off and lies within the clip is another one. Arguments as
    `sync_rows`.
    """
    rows, starts = windows(frames)
    if not len(rows):
        return Proof(float("nan"), float("nan"), 0, False)
    face, (own, around) = judge.look(images, boxes, rows), _sounds(judge, sound, starts)
    apart = _apart(face, around)
    lasting = np.flatnonzero(starts[SECOND - 1 :] - starts[: 1 - SECOND] == SECOND - 1)
    averages = [apart[first : first + SECOND].mean(0) for first in lasting]
    offset = -int(SHIFTS[_by_shift(face, own, around, starts).mean(0).argmin()])
    share = _nearer(apart)
    return Proof(
        windows=share,
        seconds=_nearer(np.reshape(averages, (-1, len(SHIFTS)))),
        offset=offset,
        proved=share >= PROVED_WINDOWS and abs(offset) <= PROVED_OFFSET,
    )


def found_offsets(
    judge: Judge,
    images: np.ndarray,
    boxes: np.ndarray,
    sound: np.ndarray,
    frames: np.ndarray,
    shifts: Sequence[int],
) -> np.ndarray:
    """The offsets that a judge finds when the sound comes so many frames later than it should.

    Arguments as `sync_rows`, of frames without holes.

    Returns:
        [K] frames, as syncnet_python signs it: a right one is minus the shift.
    """
    rows, starts = windows(frames)
    face = judge.look(images, boxes, rows)
    step = video.RATE // video.FPS
    found = []
    for shift in shifts:
        late = np.roll(sound, shift * step)  # what comes round the ends is another sound
        apart = shifted_distances(face, judge.hear(late, starts), int(SHIFTS[-1]))
        found.append(-int(SHIFTS[apart.mean(0).argmin()]))
    return np.array(found)


def _sounds(judge: Judge, sound: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sound of windows [W, D], and [W, 31, D] that of all shifts; NaN outside the clip."""
    wanted = starts[:, None] + SHIFTS
    last = len(sound) * video.FPS // video.RATE - WINDOW
    inside = (wanted >= 0) & (wanted <= last)
    heard, at = np.unique(np.append(wanted[inside], starts), return_inverse=True)
    embedded = judge.hear(sound, heard)[at]
    around = np.full((*wanted.shape, embedded.shape[-1]), np.nan)
    around[inside] = embedded[: inside.sum()]
    return embedded[inside.sum() :], around


def _nearer(apart: np.ndarray) -> float:
    """Share of other sounds that are further than the own one, of distances [N, 31]."""
    own, other = apart[:, SHIFTS == 0], apart[:, abs(SHIFTS) >= OTHER]
    known = np.isfinite(own) & np.isfinite(other)
    return float((own < other)[known].mean()) if known.any() else float("nan")
