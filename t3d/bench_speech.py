"""`t3d bench speech`: what a talker hears, on every part of a clip that its networks did not see.

The clip is cut into six blocks; for each of them the stages sync, lip, prior and speech are trained
on the others, and a ridge regression beside them. What a fold measured is kept in its folder.
Trained up to lip only, it tells what LipNet's code of the sound says itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from t3d import checkpoint, controls, disentanglement, flops, judges, stream
from t3d import run as runs
from t3d import talker as talkers
from t3d.data import video
from t3d.data.parts import fingerprint, write_atomically
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.metrics import lips, probes, uncertainty
from t3d.prior import basis, morphable
from t3d.prior.encoder import marks_basis
from t3d.run import Run, Speaker
from t3d.speech import features, lipnet

Figures = dict[str, float]
Series = dict[str, np.ndarray]
FOLDS = 6
STAGES = ("sync", "lip", "prior", "speech")
PICTURES = 256  # side of the frames that judges see; the stored one if that is less
SHIFTS = range(-10, 11)  # frames by which sound is moved to see whether that is found
RIDGE_STEPS = 25  # mel steps: 12 on either side
PENALTIES = (300.0, 1e3, 3e3, 1e4, 3e4)
SNR = 10.0  # dB
CLOSED = 10.0  # % of the training frames, by the detector: a closed mouth
NOISES = {"white": 0.0, "pink": 0.5}
SYSTEMS = ("fused", "lip_wav", "sound", "ridge")
SECONDS = 10.0  # of sound that speed is measured on
CLOCKED = 5  # calls


# ---- what is measured


class Mouth:
    """A speaker's mouth as codes move it."""

    def __init__(self, dataset: SpeakerDataset):
        """Args: dataset: whose identity it has, and whose detector says how open it is."""
        model = basis.load(dataset.meta["prior"])
        small, identity = morphable.restrict(model, model.landmarks68), dataset.track["identity"]
        shape = jax.jit(jax.vmap(lambda code: morphable.vertices(small, identity, code)))
        self._shape = lambda codes: np.asarray(shape(jnp.asarray(codes, jnp.float32)))
        self._lips = np.asarray(marks_basis(model))[-79:, 68 * 3 :]

    def opening(self, codes: np.ndarray) -> np.ndarray:
        """[T]: inner-lip gap over eye distance, of expressions [T, 79] on a head seen in front."""
        return lips.mouth_opening(self._shape(codes))

    def error(self, codes: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """[T]: mean distance (cm) of the lips' vertices in the head's frame."""
        moved = ((codes - truth) @ self._lips).reshape(len(codes), -1, 3)
        return np.linalg.norm(moved, axis=-1).mean(-1)


def expressions(run: Run, dataset: SpeakerDataset, frames: np.ndarray) -> dict[str, np.ndarray]:
    """What systems say of unseen frames from sound alone.

    Returns:
        {fused: f_gen-exp, lip_wav: f_exp-aud, read in Lip-wav images, sound: what LipNet's code of
        the sound says itself, ridge: the control}, each [T, 79]; the first two of a run whose
        speech stage is read.
    """
    said = {"sound": _sound_codes(run, dataset, frames), "ridge": ridge_codes(dataset, frames)}
    if "speech" in run.params:
        motion = runs.motion_of(run, run.speakers[0], dataset.mel, frames)
        said |= {"fused": motion.expression, "lip_wav": motion.speech}
    return said


def _sound_codes(run: Run, dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
    apply = partial(run.talker.lip.apply, run.params["lip"])
    move = jax.jit(lambda mel: apply(apply(mel, method="hear"), method="move"))
    voice = runs.voice_of(run.config, dataset.mel, run.speakers[0].voice)
    windows = runs.mel_windows(dataset.mel, frames, run.config.mel_steps)
    moved = runs.in_batches(move, lipnet.without_voice(windows, voice[None]))
    return dataset.track["expression"][dataset.frames("train")].mean(0) + moved


def ridge_codes(dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
    """Ridge regression from ±12 mel steps to the codes: its penalty chosen on the validation
    frames, its weights fitted on the training and the validation frames."""
    mouth, codes = Mouth(dataset), dataset.track["expression"]
    train, validation = dataset.frames("train"), dataset.frames("validation")

    def heard(of: np.ndarray) -> np.ndarray:
        return runs.mel_windows(dataset.mel, of, RIDGE_STEPS).reshape(len(of), -1)

    def follows(penalty: float) -> float:
        said = controls.ridge(heard(train), codes[train], heard(validation), penalty)
        return lips.pearson(mouth.opening(said), true_opening(dataset, validation))

    both = np.concatenate([train, validation])
    return controls.ridge(heard(both), codes[both], heard(frames), max(PENALTIES, key=follows))


def true_opening(dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
    """[T] by the landmarks of the dataset's detector."""
    return lips.mouth_opening(dataset.track["points68"][frames])


def series_of(run: Run, dataset: SpeakerDataset) -> Series:
    """By test frame: {opening, opening_SYSTEM, error_SYSTEM, error_mean, and, of a run with speech,
    the opening under noise, and manner_own and manner_shuffled: squared errors of brows and eyes
    with their own f_exp-style and with that shuffled in time}, each [T]."""
    frames, codes = dataset.frames("test"), dataset.track["expression"]
    mouth, truth = Mouth(dataset), codes[dataset.frames("test")]
    mean = np.broadcast_to(codes[dataset.frames("train")].mean(0), truth.shape)
    series = {"opening": true_opening(dataset, frames), "error_mean": mouth.error(mean, truth)}
    for name, said in expressions(run, dataset, frames).items():
        series[f"opening_{name}"] = mouth.opening(said)
        series[f"error_{name}"] = mouth.error(said, truth)
    if "speech" not in run.params:
        return series
    sound, rng = dataset.audio(), np.random.default_rng(0)
    for name, fall in NOISES.items():
        noise = features.coloured_noise(len(sound), fall, rng)
        noise *= sound.std() * 10 ** (-SNR / 20)
        moved = runs.motion_of(run, run.speakers[0], features.mel(sound + noise), frames)
        series[f"opening_{name}"] = mouth.opening(moved.expression)
    errors = disentanglement.upper_face_errors(run, disentanglement.listen(run, 0, dataset))
    return series | {f"manner_{name}": errors[name][1] for name in ("own", "shuffled")}


def opening_under(run: Run, dataset: SpeakerDataset, sound: np.ndarray) -> np.ndarray:
    """[T] what another sound (float [N], 16 kHz) does to the speaker's mouth."""
    frames = int(len(sound) * video.FPS / video.RATE)
    moved = runs.motion_of(run, run.speakers[0], features.mel(sound), frames)
    return Mouth(dataset).opening(moved.expression)


def other_figures(run: Run, dataset: SpeakerDataset, voice: np.ndarray | None) -> Figures:
    """SyncNets on unseen footage, silence, and another voice.

    The openings in silence and, as the tracker reads it, of a closed mouth are shares of the mean
    opening under the own sound.
    """
    frames = dataset.frames("test")
    images = np.stack([dataset.picture(f, "head", min(PICTURES, dataset.size)) for f in frames])
    boxes, sound, figures = dataset.track["face_box"][frames], dataset.audio(), {}
    for name in ("coach", "judge"):
        judge = judges.of_run(run, name)
        proof = judges.proof(judge, images, boxes, sound, frames)
        figures |= {f"{name}/windows": proof.windows, f"{name}/seconds": proof.seconds}
        found = judges.found_offsets(judge, images, boxes, sound, frames, SHIFTS)
        right = np.abs(found + np.array(SHIFTS)) <= 1
        figures[f"{name}/offsets"] = float(right.mean())
    train, mouth = dataset.frames("train"), Mouth(dataset)
    seen = true_opening(dataset, train)
    closed = train[seen <= np.percentile(seen, CLOSED)]
    own = opening_under(run, dataset, sound)
    silent = float(opening_under(run, dataset, np.zeros(2 * video.RATE, np.float32)).mean())
    figures["silence/opening"] = silent / float(own.mean())
    shut = float(mouth.opening(dataset.track["expression"][closed]).mean())
    figures["silence/closed"] = shut / float(own.mean())
    if voice is not None:
        moved = opening_under(run, dataset, voice)
        figures["voice/deviation"] = float(moved.std() / own[frames].std())
    return figures


# ---- the folds


def bench_speech(
    config: ConfigDict,
    dataset: SpeakerDataset,
    out: Path,
    voice: np.ndarray | None,
    folds: Sequence[int] = range(FOLDS),
    log: Callable[[str], None] = print,
    last_stage: str = STAGES[-1],
) -> Figures:
    """Every figure, 'system/figure'; means over the folds, and paired intervals.

    Args:
        config: of the runs; dataset: of one speaker.
        out: folder of the folds' runs; what is finished there is not trained again.
        voice: another sound, float [N] at 16 kHz, or None.
        folds: that are measured.
        last_stage: to train: speech; or lip, which tells what the sound's codes say, and no more.
    """
    stages = STAGES[: STAGES.index(last_stage) + 1]
    series, others, last = [], [], None
    for number in folds:
        last = dataset.block(number, FOLDS), out / f"fold_{number}"
        log(f"fold {number + 1} of {FOLDS}: {last[1]}")
        found, figures = _fold(config, *last, voice, stages, log)
        series.append(found)
        others.append(figures)
    figures = fold_figures(series)
    for name in others[0]:
        figures[name] = float(np.mean([other[name] for other in others]))
    if "speech" not in stages:
        return figures
    return figures | speed_figures(runs.open_run(last[1], stages), last[0])


def _fold(config, dataset, workdir: Path, voice, stages, log) -> tuple[Series, Figures]:
    """Trains and measures one fold, or reads what it measured of these networks and this voice."""
    learner = runs.Learner(config, [dataset], workdir, workdir / runs.CACHE, log)
    for stage in stages:
        if not learner.is_finished(stage):
            runs.train(config, [dataset], workdir, stage, log)
    done = checkpoint.read_run(workdir)["stages"]
    heard = None if voice is None else hashlib.sha256(np.asarray(voice, "f4")).hexdigest()
    made_of = [heard, config.speech.smooth, *(done[stage]["sha256"] for stage in stages)]
    name = f"{stages[-1]}-{fingerprint(made_of)}"
    stored, told = workdir / f"{name}_series.npz", workdir / f"{name}.json"
    if not told.exists():
        run = runs.open_run(workdir, stages)
        series = series_of(run, dataset)
        figures = other_figures(run, dataset, voice) if "speech" in stages else {}
        write_atomically(stored, lambda path: np.savez(path, **series))
        write_atomically(told, lambda path: path.write_text(json.dumps(figures)))
    with np.load(stored, allow_pickle=False) as kept:
        return dict(kept), json.loads(told.read_text())


def fold_figures(folds: Sequence[Series]) -> Figures:
    """Figures of systems over folds: mouth r, gain of the lips' error over the mean expression (%),
    what ours are above the ridge regression, and by how many % style lowers the squared error of
    brows and eyes under that of shuffled style ('style/helps'), with 95 % intervals."""
    figures: Figures = {}
    systems = [name for name in SYSTEMS if f"opening_{name}" in folds[0]]
    for name in systems:
        figures[f"{name}/mouth_r"] = _over(folds, partial(_follows, name))
        figures[f"{name}/gain"] = _over(folds, partial(_gain, name))
    for k, fold in enumerate(folds):
        figures |= {f"{name}/mouth_r/{k}": _follows(name, fold) for name in systems}
    for name in (name for name in NOISES if f"opening_{name}" in folds[0]):
        lost = _over(folds, partial(_follows, "fused")) - _over(folds, partial(_follows, name))
        figures[f"noise/{name}_costs"] = lost
    if "manner_own" in folds[0]:
        low, high = _interval(folds, _style_helps)
        value = _over(folds, _style_helps)
        figures |= {"style/helps": value, "style/helps_low": low, "style/helps_high": high}
        figures |= {f"style/helps/{k}": _style_helps(fold) for k, fold in enumerate(folds)}
    for name in (name for name in systems if name != "ridge"):
        for key, of in (("mouth_r", _follows), ("gain", _gain)):
            above = partial(_above_ridge, of, name)
            low, high = _interval(folds, above)
            place = f"{name}_above_ridge/{key}"
            figures |= {place: _over(folds, above), f"{place}_low": low, f"{place}_high": high}
    return figures


def _follows(name: str, fold: Series) -> float:
    return lips.pearson(fold[f"opening_{name}"], fold["opening"])


def _gain(name: str, fold: Series) -> float:
    return 100 * float(1 - fold[f"error_{name}"].mean() / fold["error_mean"].mean())


def _style_helps(fold: Series) -> float:
    return probes.lower(fold["manner_own"], fold["manner_shuffled"])


def _above_ridge(figure: Callable[[str, Series], float], name: str, fold: Series) -> float:
    return figure(name, fold) - figure("ridge", fold)


def _over(folds: Sequence[Series], figure: Callable[[Series], float]) -> float:
    return float(np.mean([figure(fold) for fold in folds]))


def _interval(folds: Sequence[Series], figure: Callable[[Series], float]) -> tuple[float, float]:
    """Of a mean over folds, each resampled by itself in blocks of a second."""
    means = []
    for number, fold in enumerate(folds):
        length = len(fold["opening"])
        picked = uncertainty.rows(length, uncertainty.block_of(length), seed=number)
        means.append([figure({k: v[row] for k, v in fold.items()}) for row in picked])
    return uncertainty.bounds(np.mean(means, 0))


# ---- speed


def speed_figures(run: Run, dataset: SpeakerDataset) -> Figures:
    """GFLOP a frame from sound to codes, how much faster than it lasts sound becomes codes, and how
    a stream of 40 ms does."""
    speaker, sound = run.speakers[0], dataset.audio()[: int(SECONDS * video.RATE)]
    frames = int(len(sound) / stream.CHUNK)

    def drive() -> talkers.Motion:
        return runs.motion_of(run, speaker, features.mel(sound), frames, speaker.voice)

    offline, seconds = _timed(drive)
    streamed, stream_seconds = _timed(lambda: _streamed(run, speaker, sound))
    off = np.abs(np.stack([codes.expression for codes in streamed]) - offline.expression)
    lasts = len(sound) / video.RATE
    return {
        "speed/gflop_a_frame": flop_a_frame(run, speaker) / 1e9,
        "speed/times_real_time": lasts / seconds,
        "stream/times_real_time": lasts / stream_seconds,
        "stream/look_ahead_seconds": stream.look_ahead(run.config),
        "stream/differs_by": float(off.max()),
    }


def _timed(call: Callable) -> tuple:
    """What a call gives, and the median of its seconds after a first one, which compiles."""
    given, seconds = call(), []
    for _ in range(CLOCKED):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return given, float(np.median(seconds))


def _streamed(run: Run, speaker: Speaker, sound: np.ndarray) -> list[talkers.Motion]:
    """In chunks of 40 ms."""
    heard = stream.Stream(run, speaker)
    chunks = np.split(sound, range(stream.CHUNK, len(sound), stream.CHUNK))
    return [codes for chunk in chunks for codes in heard.push(chunk)] + heard.finish()


def flop_a_frame(run: Run, speaker: Speaker) -> float:
    """Of `talker.drive`: matrix products and convolutions, from mel to codes, of one frame."""
    window = np.zeros((1, run.config.mel_steps, features.BANDS), np.float32)
    given = window, speaker.voice[None], speaker.identity[None], speaker.identity_face[None]
    jaxpr = jax.make_jaxpr(partial(talkers.drive, run.talker, run.params))(*given)
    return float(sum(flops.products(flops.count(jaxpr.jaxpr)).values()))
