"""`t3d evaluate --speech`: whether f_exp-aud holds what is said and f_exp-style how (II-B).

Every speaker's sound is given to the talker with every speaker's identity, so that what a code
tells of a speaker can only have come through the sound. Probes are fitted on training frames, their
penalties chosen on validation frames; every figure is of test frames. Codes are those that drive
the head (smoothed in time), and the full audio that they are held against is smoothed alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import permutations
from pathlib import Path

import jax
import numpy as np

from t3d import evaluate, plots, report
from t3d import run as runs
from t3d import talker as talkers
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.measure import NO_FIGURE, Figures
from t3d.metrics import lips, probes, uncertainty
from t3d.prior import basis
from t3d.prior import encoder as encoders
from t3d.report import Section
from t3d.run import Run, Speaker

NEEDED = ("lip", "prior", "speech")  # stages of a run
SPLITS = ("train", "validation", "test")
UPPER_FACE = (*range(17, 27), *range(36, 48))  # of the 68 landmarks: brows and eyes
READ = {  # what a probe reads
    "aud": "f_exp-aud",
    "style": "f_exp-style",
    "both": "both codes",
    "audio": "full audio (mel window)",
}
NEEDS_TWO = f"{NO_FIGURE}: it takes a run of two speakers or more (t3d train --data a,b)"
MILLIMETRES = 10.0  # in a centimetre
DRAWN = 3  # codes whose curves are drawn
POINTS = 120  # drawn of each sound on each identity


@dataclass(frozen=True)
class Heard:
    """The frames of one split of a speaker's sound, and what the talker makes of them.

    Attributes:
        frames: [T] their numbers.
        opening: [T] of the mouth over the eye distance, as the dataset's detector saw it.
        tracked: [T, 79] expression (σ), as the tracker saw it.
        audio: [T, S · 80] the mel windows.
        aud, style, fused: [N, T, 79] f_exp-aud, f_exp-style and f_gen-exp (σ), for the identity
            image and the identity code of each of N speakers.
    """

    frames: np.ndarray
    opening: np.ndarray
    tracked: np.ndarray
    audio: np.ndarray
    aud: np.ndarray
    style: np.ndarray
    fused: np.ndarray


@dataclass(frozen=True)
class Voice:
    """A speaker of a run: its sound, heard on every speaker's identity.

    Attributes:
        number: in the run; heard: by split.
    """

    number: int
    speaker: Speaker
    dataset: SpeakerDataset
    heard: dict[str, Heard]

    @property
    def name(self) -> str:
        """The speaker's."""
        return self.speaker.name

    def read(self, what: str, split: str) -> np.ndarray:
        """What a probe reads (READ) of a split, on the speaker's own identity: [T, D]."""
        heard = self.heard[split]
        if what == "audio":
            return heard.audio
        if what == "both":
            return np.concatenate([self.read("aud", split), self.read("style", split)], 1)
        return getattr(heard, what)[self.number]

    def opening(self, codes: np.ndarray) -> np.ndarray:
        """Mouth opening [T] over the eye distance that expressions [T, 79] give the 3DMM."""
        return self.speaker.opening(codes)

    def upper_face(self, codes: np.ndarray) -> np.ndarray:
        """Where expressions [..., 79] move brows and eyes from rest: [..., 22, 3] mm."""
        return np.tensordot(codes, self._upper_face, 1)

    @cached_property
    def _upper_face(self) -> np.ndarray:
        """[79, 22, 3] mm that each expression vector moves them by."""
        marks = encoders.marks_basis(basis.load(self.speaker.prior)).reshape(180, -1, 3)
        return MILLIMETRES * marks[-79:, UPPER_FACE]


# ---- listening


def open_voices(workdir: str | Path, places: Sequence[str] = ()) -> tuple[Run, list[Voice]]:
    """A run whose speech stage is done, and its speakers heard by it.

    Args:
        places: of the datasets in the run's order, if they have moved.

    Raises:
        UserError: no such run, a stage that is missing, a dataset that is not there.
    """
    run = runs.open_run(workdir, NEEDED)
    if places and len(places) != len(run.speakers):
        names = ", ".join(speaker.name for speaker in run.speakers)
        raise UserError(f"--data: give the datasets of {names}, in this order")
    moved = places or [None] * len(run.speakers)
    datasets = [runs.dataset_of(run, *pair) for pair in zip(run.speakers, moved)]
    return run, [listen(run, k, dataset) for k, dataset in enumerate(datasets)]


def listen(run: Run, number: int, dataset: SpeakerDataset) -> Voice:
    """What a run makes of the sound of its speaker `number`, which the dataset is of."""
    sound = runs.hear_clip(run, run.speakers[number], dataset)
    heard = {split: _hear(run, sound, dataset, split) for split in SPLITS}
    return Voice(number, run.speakers[number], dataset, heard)


def _hear(run: Run, sound: np.ndarray, dataset: SpeakerDataset, split: str) -> Heard:
    frames = dataset.frames(split)
    if not len(frames):
        raise UserError(
            f"{dataset.path}: its {split} split has no frame with a face; use a longer clip"
        )
    motions = [runs.motion_of(run, speaker, sound, frames) for speaker in run.speakers]
    windows = runs.mel_windows(sound, frames, run.config.mel_steps)
    audio = runs.smooth(windows.reshape(len(frames), -1), run.config.speech.smooth)
    return Heard(
        frames=frames,
        opening=lips.mouth_opening(dataset.track["points68"][frames]),
        tracked=dataset.track["expression"][frames],
        audio=audio,
        aud=np.stack([motion.speech for motion in motions]),
        style=np.stack([motion.style for motion in motions]),
        fused=np.stack([motion.expression for motion in motions]),
    )


def swapped(run: Run, voice: Voice, other: Voice) -> np.ndarray:
    """Expressions [T, 79] of a voice's test frames in another speaker's style: the own f_exp-aud
    with the other's f_exp-style of its training frames, again from the first where they end."""
    aud = voice.read("aud", "test")
    style = other.read("style", "train")
    style = style[np.arange(len(aud)) % len(style)]
    with talkers.exact():
        fuse = jax.jit(partial(talkers.fuse, run.talker, run.params))
        return runs.in_batches(fuse, aud, style).expression


# ---- figures


def figures(run: Run, voices: Sequence[Voice]) -> Figures:
    """All figures, flat: 'speaker/…', 'speakers/…' (who speaks), 'swap/sound/style/…'.

    Where the run has one speaker, words stand for 'speakers' and 'swap'.
    """
    found: Figures = {"frames": sum(len(voice.heard["test"].frames) for voice in voices)}
    for voice in voices:
        own = opening_figures(voice) | manner_figures(run, voice)
        found |= {f"{voice.name}/{key}": value for key, value in own.items()}
    if len(voices) < 2:
        return evaluate.plain(found | dict.fromkeys(("speakers", "swap"), NEEDS_TWO))
    found |= {f"speakers/{key}": value for key, value in speaker_figures(voices).items()}
    for voice, other in permutations(voices, 2):
        moved = swap_figures(voice, other, swapped(run, voice, other))
        found |= {f"swap/{voice.name}/{other.name}/{key}": v for key, v in moved.items()}
    return evaluate.plain(found)


def _figure(name: str, of: Callable[..., float], *series: np.ndarray) -> Figures:
    """A figure of series over the same frames, with its interval."""
    low, high = uncertainty.interval(of, *series)
    return _told(name, of(*series), low, high)


def _told(name: str, value: float, low: float, high: float) -> Figures:
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def opening_figures(voice: Voice) -> Figures:
    """How well linear probes tell the mouth's opening on unseen sound.

    Returns:
        'opening/…/r' and '/r2' of chance (the training mean) and of what is in READ; of `adds`, by
        how much both codes are above f_exp-aud alone, frame by frame the same.
    """
    train, validation, test = (voice.heard[split].opening for split in SPLITS)
    said = {"chance": np.full(len(test), train.mean())}
    for what in READ:
        read_train, read_validation, read_test = (voice.read(what, split) for split in SPLITS)
        probe = probes.regression((read_train, train), (read_validation, validation))
        said[what] = probe(read_test)
    found: Figures = {}
    for key, of in (("r", lips.pearson), ("r2", probes.explained)):
        for what, opening in said.items():
            found |= _figure(f"opening/{what}/{key}", of, test, opening)
        found |= _figure(
            f"opening/adds/{key}", partial(_above, of), test, said["both"], said["aud"]
        )
    for what in (what for what, opening in said.items() if not np.ptp(opening)):
        for end in ("", "_low", "_high"):
            del found[f"opening/{what}/r{end}"]
        found[f"opening/{what}/r"] = f"{NO_FIGURE}: what is constant follows nothing"
    return found


def _above(of: Callable[..., float], truth: np.ndarray, one: np.ndarray, other: np.ndarray):
    return of(truth, one) - of(truth, other)


def manner_figures(run: Run, voice: Voice) -> Figures:
    """How style moves within a speaker, and what it is worth to brows and eyes.

    Returns:
        'deviation/…' (σ) over time of style, aud and the tracked expression, all codes together,
        and 'deviation/style/NN' of each; 'upper_face/…/mm' of the expression with its own style,
        with that shuffled in time (`shuffled`), with its mean, and of the training's mean
        expression; by how many % the own error is lower: 'upper_face/…/lower', of squared errors
        'lower_squared'.
    """
    test, own = voice.heard["test"], voice.read("style", "test")
    codes = {"style": own, "aud": voice.read("aud", "test"), "tracked": test.tracked}
    found = {f"deviation/{name}": probes.deviation(values) for name, values in codes.items()}
    found |= {f"deviation/style/{k:02d}": float(value) for k, value in enumerate(own.std(0))}
    errors = upper_face_errors(run, voice)
    for name, (distance, squared) in errors.items():
        found |= _figure(f"upper_face/{name}/mm", np.mean, distance)
        if name != "own":
            mine = errors["own"]
            found |= _figure(f"upper_face/{name}/lower", probes.lower, mine[0], distance)
            found |= _figure(f"upper_face/{name}/lower_squared", probes.lower, mine[1], squared)
    return found


def upper_face_errors(run: Run, voice: Voice) -> dict[str, np.ndarray]:
    """Distance (mm) and its square [2, T] of brows and eyes to where the tracker has them in the
    test frames: `own` style, that `shuffled` in time, its `mean`, and the mean expression of
    `training`."""
    test = voice.heard["test"]
    aud, style = (voice.read(name, "test") for name in ("aud", "style"))
    fuse = jax.jit(partial(talkers.fuse, run.talker, run.params))

    def error(expression: np.ndarray) -> np.ndarray:
        away = np.linalg.norm(voice.upper_face(expression - test.tracked), axis=-1)
        return np.stack([away.mean(1), (away**2).mean(1)])

    def with_style(values: np.ndarray) -> np.ndarray:
        return error(runs.in_batches(fuse, aud, values).expression)

    with talkers.exact():
        turned = [with_style(np.roll(style, by, 0)) for by in probes.shifts(len(style))]
        return {
            "own": with_style(style),
            "shuffled": np.mean(turned, 0),
            "mean": with_style(np.broadcast_to(style.mean(0), style.shape)),
            "training": error(voice.heard["train"].tracked.mean(0)),
        }


def speaker_probe(voices: Sequence[Voice], what: str) -> probes.Probe:
    """A linear classifier of whose sound it was, on every speaker's identity.

    Args:
        what: aud, style, or audio, which knows no identity.
    """
    rows = {split: [_on_all(voice, what, split) for voice in voices] for split in SPLITS[:2]}
    pairs = []
    for parts in rows.values():
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        classes = np.repeat(np.arange(len(flat)), [len(part) for part in flat])
        pairs.append((np.concatenate(flat), classes))
    return probes.classifier(*pairs)


def _on_all(voice: Voice, what: str, split: str) -> np.ndarray:
    """What a probe reads on every identity: [N, T, D]; N is 1 where none takes part."""
    heard = voice.heard[split]
    return heard.audio[None] if what == "audio" else getattr(heard, what)


def speaker_figures(voices: Sequence[Voice]) -> Figures:
    """How well linear probes tell whose sound it was, whoever's identity it was given.

    Returns:
        '…/accuracy', balanced over speakers, of chance, style, aud and audio; 'less/accuracy': by
        how much aud is below style.
    """
    found: Figures = {"chance/accuracy": 1 / len(voices)}
    drawn = {}
    for what in ("aud", "style", "audio"):
        probe = speaker_probe(voices, what)
        right = [
            (probe(_on_all(voice, what, "test")).argmax(-1) == voice.number).mean(0)
            for voice in voices
        ]
        drawn[what] = probes.balanced(right)
    drawn["less"] = drawn["style"] - drawn["aud"]
    for what, values in drawn.items():
        found |= _told(f"{what}/accuracy", values[0], *uncertainty.bounds(values[1:]))
    return found


def swap_figures(voice: Voice, other: Voice, moved: np.ndarray) -> Figures:
    """What another speaker's style does to an expression.

    Args:
        moved: [T, 79] of `swapped`.

    Returns:
        'timing_r' of the mouth's opening before and after, and 'lag' (frames); for what is moved
        towards the other's tracked training expression (its mean: 'mean' in σ and 'upper_face' in
        mm; its deviation over time of each code: 'deviation' in σ) the distance '/before', '/after'
        and '/nearer', by how many % it is less.
    """
    own = voice.heard["test"].fused[voice.number]
    goal = other.heard["train"].tracked
    openings = voice.opening(own), voice.opening(moved)
    found = _figure("timing_r", lips.pearson, *openings)
    found["lag"] = probes.best_lag(*openings)

    def shape_away(codes: np.ndarray) -> float:
        off = other.upper_face(codes.mean(0) - goal.mean(0))
        return float(np.linalg.norm(off, axis=-1).mean())

    away = {
        "mean": lambda codes: float(np.linalg.norm(codes.mean(0) - goal.mean(0))),
        "upper_face": shape_away,
        "deviation": lambda codes: float(np.linalg.norm(codes.std(0) - goal.std(0))),
    }
    for name, of in away.items():
        found |= _figure(f"{name}/before", of, own) | _figure(f"{name}/after", of, moved)
        found |= _figure(f"{name}/nearer", partial(_nearer, of), own, moved)
    return found


def _nearer(of: Callable[[np.ndarray], float], before: np.ndarray, after: np.ndarray) -> float:
    return 100 * (1 - of(after) / of(before))


# ---- tables


def tables(found: Figures, names: Sequence[str]) -> list[Section]:
    """The figures of `figures` as tables; names: of the run's speakers."""
    cell = partial(report.cell, found)
    sections = [
        _opening_table(cell, names),
        _by_speaker(
            "Style within a speaker",
            [(f"deviation/{k}", t, 2) for k, t in _DEVIATIONS],
            cell,
            names,
        ),
        _by_speaker("Brows and eyes against the tracked ones", _UPPER_FACE, cell, names),
    ]
    if len(names) < 2:
        return sections
    return [*sections[:1], _speaker_table(cell), *sections[1:], _swap_table(cell, names)]


def notes(found: Figures) -> list[str]:
    """What must be known to read the tables."""
    lines = [
        f"{found['frames']} test frames. Probes are linear, fitted on training frames.",
        "In brackets: 95 % intervals, blocks of a second resampled.",
    ]
    if "speakers/audio/accuracy" in found:
        lines.append(
            "Recordings differ by more than the speaker (microphone, room): how much, the full "
            "audio's row tells."
        )
    missing = {"speakers": "Whose sound it was", "swap": "Another speaker's style"}
    return lines + [f"{what}: {found[key]}." for key, what in missing.items() if key in found]


_DEVIATIONS = (
    ("style", "f_exp-style over time, σ"),
    ("aud", "f_exp-aud over time, σ"),
    ("tracked", "tracked expression over time, σ"),
)
_UPPER_FACE = (
    ("upper_face/own/mm", "error with its own style, mm", 2),
    ("upper_face/shuffled/mm", "with the style shuffled in time, mm", 2),
    ("upper_face/mean/mm", "with the style's mean, mm", 2),
    ("upper_face/training/mm", "of the mean expression of training, mm", 2),
    ("upper_face/shuffled/lower", "own lower than shuffled by, %", 1),
    ("upper_face/shuffled/lower_squared", "the same of squared errors, %", 1),
    ("upper_face/mean/lower_squared", "own lower than the mean style's, squared, %", 1),
    ("upper_face/training/lower_squared", "own lower than the mean expression's, squared, %", 1),
)
_SWAP = (
    ("timing_r", "opening, r with the own style's", 2),
    ("lag", "lag, frames", 0),
    ("mean/before", "mean off the other's, σ", 2),
    ("mean/after", "in its style, σ", 2),
    ("mean/nearer", "nearer by, %", 1),
    ("upper_face/nearer", "brows and eyes nearer by, %", 1),
    ("deviation/nearer", "deviations nearer by, %", 1),
)


def _opening_table(cell: Callable[[str, int], str], names: Sequence[str]) -> Section:
    rows = {"chance": "training mean", **READ, "adds": "both above f_exp-aud alone by"}
    headings = [f"{name}, {title}" for name in names for title in ("r", "R²")]
    filled = [
        [title, *(cell(f"{n}/opening/{what}/{key}", 2) for n in names for key in ("r", "r2"))]
        for what, title in rows.items()
    ]
    return Section("Mouth opening on unseen sound, told from", ["", *headings], filled)


def _by_speaker(title: str, rows, cell: Callable, names: Sequence[str]) -> Section:
    filled = [[words, *(cell(f"{n}/{key}", digits) for n in names)] for key, words, digits in rows]
    return Section(title, ["", *names], filled)


def _speaker_table(cell: Callable[[str, int], str]) -> Section:
    rows = {
        "chance": "chance",
        "style": f"{READ['style']}, identity code swapped",
        "aud": f"{READ['aud']}, identity image swapped",
        "audio": READ["audio"],
        "less": "f_exp-aud below f_exp-style by",
    }
    filled = [[title, cell(f"speakers/{what}/accuracy", 3)] for what, title in rows.items()]
    return Section("Whose sound it was, told from", ["", "balanced accuracy"], filled)


def _swap_table(cell: Callable[[str, int], str], names: Sequence[str]) -> Section:
    rows = [
        [f"{a} in the style of {b}", *(cell(f"swap/{a}/{b}/{key}", n) for key, _, n in _SWAP)]
        for a, b in permutations(names, 2)
    ]
    return Section("Another speaker's style", ["", *(title for _, title, _ in _SWAP)], rows)


def show(found: Figures, names: Sequence[str]) -> None:
    """Prints the tables and what must be known to read them."""
    report.show_sections(tables(found, names), notes(found))


# ---- pictures, as SVG


def opening_curves(voice: Voice) -> bytes:
    """The mouth as it was, as f_exp-aud and as FuseNet have it, above the sound; test frames."""
    test = voice.heard["test"]
    openings = {
        "seen in the video": test.opening,
        READ["aud"]: voice.opening(voice.read("aud", "test")),
        "fused": voice.opening(test.fused[voice.number]),
    }
    return plots.mouth_curves(openings, test.frames, _sound(voice))


def swap_curves(run: Run, voice: Voice, other: Voice) -> bytes:
    """The mouth in its own and in another speaker's style, above the sound; test frames."""
    test = voice.heard["test"]
    openings = {
        f"{voice.name} in its own style": voice.opening(test.fused[voice.number]),
        f"in the style of {other.name}": voice.opening(swapped(run, voice, other)),
    }
    return plots.mouth_curves(openings, test.frames, _sound(voice))


def _sound(voice: Voice) -> np.ndarray:
    """[T · 640] of the test frames, 16 kHz."""
    return runs.sound_of(voice.dataset, voice.heard["test"].frames)


def speaker_planes(voices: Sequence[Voice]) -> bytes:
    """Test frames of both codes in the plane that the speakers' probe chooses in."""
    panels = {}
    for what in ("style", "aud"):
        probe = speaker_probe(voices, what)
        fitted = [voice.heard["train"] for voice in voices]
        fitted = np.concatenate([getattr(heard, what).reshape(-1, 79) for heard in fitted])
        plane = probes.plane(probe, fitted)
        panels[READ[what]] = {
            (voice.name, face.name): plane(_some(getattr(voice.heard["test"], what)[face.number]))
            for voice in voices
            for face in voices
        }
    return plots.planes(panels, ("sound of", "identity of"))


def _some(rows: np.ndarray) -> np.ndarray:
    return rows[:: max(1, len(rows) // POINTS)]


def style_curves(voice: Voice) -> bytes:
    """The codes of f_exp-style that move most, over time; test frames."""
    style = voice.read("style", "test")
    names = basis.load(voice.speaker.prior).expression_names
    most = np.argsort(-style.std(0))[:DRAWN]
    curves = {names[k] if k < len(names) else f"code {k}": style[:, k] for k in most}
    return plots.code_curves(curves, voice.heard["test"].frames)


def swap_bars(found: Figures, names: Sequence[str]) -> bytes:
    """How far expressions are from the other speaker's, in the own style and in the other's."""
    panels = {
        "mean expression, σ": "mean",
        "mean of brows and eyes, mm": "upper_face",
        "deviation over time, σ": "deviation",
    }
    ends = {"own style": "before", "the other's style": "after"}
    pairs = list(permutations(names, 2))

    def bar(a: str, b: str, key: str) -> plots.Whisker:
        place = f"swap/{a}/{b}/{key}"
        return plots.Whisker(*(found[f"{place}{end}"] for end in ("", "_low", "_high")))

    return plots.bars(
        {
            title: {
                label: {f"{a} → {b}": bar(a, b, f"{key}/{end}") for a, b in pairs}
                for label, end in ends.items()
            }
            for title, key in panels.items()
        }
    )


# ---- the command


def speech_command(args) -> None:
    """`t3d evaluate --speech`."""
    run, voices = open_voices(args.workdir, args.data.split(",") if args.data else ())
    found = figures(run, voices)
    place = run.workdir / "speech.json"
    for path in (place, args.json):
        if path:
            evaluate.write_json(Path(path), found)
    show(found, [voice.name for voice in voices])
    print(place)
