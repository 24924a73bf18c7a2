"""Batches for training out of prepared speakers, through Grain.

The batch of a step is a function of (seed, name, step) alone, so that a stopped run and an
unstopped one see the same frames. All arrays are float32 unless said otherwise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grain
import numpy as np

from t3d.data import video
from t3d.data.speaker_dataset import FACE_SIZE, SpeakerDataset, runs_of
from t3d.speech.features import MEL_RATE, mel_window, voice_of

Sound = TypeVar("Sound")
WINDOW = 5  # frames that the lip-sync networks see at once
SYNC_STEPS = 16  # mel steps beside them
ENDLESS = 10**9  # epochs; Grain's own endless repeat overflows at batch size 1
WINDOW_FIELDS = {"faces5", "mel5", "mel16", "mel16_shifted"}
HARD_SHIFT = (5, 15)  # frames by which a hard negative's sound is late or early


def centred_start(frame: int, steps: int) -> int:
    """First step of the mel window of `steps` steps whose middle is the frame's middle."""
    return round((frame + 0.5) * MEL_RATE / video.FPS - (steps - 1) / 2)


def sync_start(frame: int) -> int:
    """First mel step beside five frames that begin with `frame` (Wav2Lip: int(80 · frame / 25))."""
    return int(MEL_RATE * frame / video.FPS)


@dataclass(frozen=True)
class _Sample:
    """One element of a batch before its fields are read."""

    data: SpeakerDataset
    speaker: int
    frame: int
    start: int  # first of the five frames of the window
    starts: np.ndarray  # all legal first frames of windows of this speaker's split
    rng: np.random.Generator
    size: int
    mel_steps: int
    heard: np.ndarray  # [M, D] what LipNet and StyleNet hear of the clip, this time
    voice: np.ndarray  # [2, D] mean and deviation of it that LipNet leaves out


def _unit(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) / 255


def _faces5(sample: _Sample) -> np.ndarray:
    frames = range(sample.start, sample.start + WINDOW)
    return _unit(np.stack([sample.data.picture(f, "face") for f in frames]))


def _heard(clean: Sound, noisy: Sequence[Sound] | None, rng: np.random.Generator) -> Sound:
    """A clip's sound, or half of the time one of its noisy copies."""
    if noisy is None or rng.random() < 0.5:
        return clean
    return noisy[rng.integers(len(noisy))]


def _mel_at(sample: _Sample, frame: int) -> np.ndarray:
    start = centred_start(frame, sample.mel_steps)
    return mel_window(sample.heard, start, sample.mel_steps)


def _shifted_start(sample: _Sample) -> int:
    """First frame of a window whose sound is not this window's: near by, or another place."""
    shift = int(sample.rng.integers(HARD_SHIFT[0], HARD_SHIFT[1] + 1))
    near = sample.start + (shift if sample.rng.random() < 0.5 else -shift)
    hard = sample.rng.random() < 0.5
    if hard and near in sample.starts:
        return near
    far = sample.starts[np.abs(sample.starts - sample.start) >= HARD_SHIFT[0]]
    return int(sample.rng.choice(far)) if len(far) else near


def _points_face(sample: _Sample) -> np.ndarray:
    track = sample.data.track
    points = np.concatenate([track["points68"][sample.frame], track["lips79"][sample.frame]])
    return to_face(points, track["face_box"][sample.frame]).astype(np.float32)


def to_face(points: np.ndarray, face_box: np.ndarray) -> np.ndarray:
    """Points [..., N, 2] in fractions of the image to fractions of the face crop (cx, cy, side)."""
    corner = face_box[..., None, :2] - face_box[..., None, 2:] / 2
    return (points - corner) / face_box[..., None, 2:]


def _sync_mel(sample: _Sample, start: int) -> np.ndarray:
    return mel_window(sample.data.mel, sync_start(start), SYNC_STEPS)


_PER_FRAME = ("expression", "illumination", "head_to_world", "rotvec", "translation", "au")
_PER_FRAME += ("points68", "lips79", "face_box", "blendshapes")
_CONSTANT = ("identity", "albedo", "intrinsics")

FIELDS: dict[str, Callable[[_Sample], np.ndarray]] = {
    "image": lambda s: _unit(s.data.picture(s.frame, "head", s.size)),
    "mask": lambda s: _unit(s.data.picture(s.frame, "mask", s.size))[..., None],
    "face": lambda s: _unit(s.data.picture(s.frame, "face")),
    "faces5": _faces5,
    "identity_face": lambda s: _unit(s.data.picture(s.data.meta["identity_frame"], "face")),
    "identity_expression": lambda s: np.float32(
        s.data.track["expression"][s.data.meta["identity_frame"]]
    ),
    "mel": lambda s: _mel_at(s, s.frame),
    "voice": lambda s: s.voice,
    "mel5": lambda s: np.stack([_mel_at(s, s.start + k) for k in range(WINDOW)]),
    "mel16": lambda s: _sync_mel(s, s.start),
    "mel16_shifted": lambda s: _sync_mel(s, _shifted_start(s)),
    "points_face": _points_face,
    "frame": lambda s: np.int32(s.frame),
    "window": lambda s: np.int32(s.start),
    "speaker": lambda s: np.int32(s.speaker),
    **{n: lambda s, n=n: np.float32(s.data.track[n][s.frame]) for n in _PER_FRAME},
    **{n: lambda s, n=n: np.float32(s.data.track[n]) for n in _CONSTANT},
}


def window_starts(frames: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Where five consecutive frames of a split begin.

    Args:
        frames: [N] of the split, ascending, with holes.

    Returns:
        All legal first frames, and {frame: first frame of its window}: the frame itself, or the
        last legal one before it where its run of frames ends; frames of runs shorter than five are
        absent.
    """
    starts, of = [], {}
    for run in runs_of(frames):
        if len(run) >= WINDOW:
            last = int(run[-1]) - WINDOW + 1
            starts.append(np.arange(run[0], last + 1))
            of |= {int(f): min(int(f), last) for f in run}
    return np.concatenate(starts or [np.zeros(0, int)]), of


class _Rows(grain.MapDataset):
    """Of every `batch_size` elements in a row only some, in order."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, place = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[place]]


class Source:
    """The frames of one split of one or several speakers.

    Attributes:
        frames: list of (speaker index, frame) in order.
    """

    def __init__(
        self,
        datasets: Sequence[SpeakerDataset],
        split: str,
        heard: Sequence[np.ndarray] | None = None,
        voice_of: Callable[[np.ndarray], np.ndarray] = voice_of,
    ):
        """Args: datasets; split train, validation or test; heard: [M, D] of each dataset, what
        `mel` and `mel5` are windows of (80 steps a second); None: its mel; voice_of: gives the
        `voice` of that, and of noisy copies."""
        self.datasets = list(datasets)
        heard = [d.mel for d in datasets] if heard is None else heard
        self._voice_of = voice_of
        self._heard = [(mel, voice_of(mel)) for mel in heard]
        self.split = split
        per_speaker = [dataset.frames(split) for dataset in datasets]
        self.frames = [(k, int(f)) for k, frames in enumerate(per_speaker) for f in frames]
        self._windows = [window_starts(frames) for frames in per_speaker]

    def batches(
        self,
        fields: Sequence[str],
        batch_size: int,
        seed: int,
        name: str,
        start_step: int = 0,
        size: int | None = None,
        mel_steps: int = 16,
        arrays: Mapping[str, np.ndarray | Sequence[np.ndarray]] | None = None,
        rows: Sequence[int] | None = None,
        threads: int = 2,
        noisy: Sequence[np.ndarray] | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Endless shuffled batches; that of step n depends on (seed, name, n) only.

        Args:
            fields: names out of FIELDS and of `arrays`.
                image [B, s, s, 3] head on white; mask [B, s, s, 1]; face [B, 96, 96, 3] on white;
                faces5 [B, 5, 96, 96, 3] five frames from `window` on; identity_face [B, 96, 96, 3];
                mel [B, mel_steps, D] what is heard about the frame's middle (the mel: D = 80);
                voice [B, 2, D] mean and deviation of the whole of it; mel5
                [B, 5, mel_steps, D] the same of each frame of faces5; mel16 [B, 16, 80] the mel of
                faces5; mel16_shifted [B, 16, 80] that of another moment; points68, lips79 fractions
                of the image;
                points_face [B, 147, 2] both in fractions of the face crop; expression [B, 79],
                illumination [B, 27], identity [B, 100], albedo [B, 100], intrinsics [B, 4],
                head_to_world [B, 4, 4], rotvec, translation [B, 3], face_box [B, 3], au [B, 5],
                blendshapes [B, 53]; frame, window, speaker [B] int32.
            batch_size: B.
            seed: of the run.
            name: of the stage.
            start_step: step of the first batch.
            size: side s of image and mask in pixels; the stored one if None.
            mel_steps: of mel and mel5.
            arrays: {name: [T, …] per frame of the only dataset, or a list with one for each}.
            rows: of each batch, the only ones read: this host's part; None: all.
            threads: that read ahead.
            noisy: of each dataset, [K, M, 80] its mel with noise: half of the time one of them is
                what mel and mel5 are of.
        """
        if noisy:
            noisy = [[(mel, self._voice_of(mel)) for mel in copies] for copies in noisy]
        load = self._loader(fields, size, mel_steps, arrays, noisy)
        elements = self._elements(fields)
        dataset = (
            grain.MapDataset.source(elements)
            .seed(zlib.crc32(f"{seed}/{name}".encode()))
            .shuffle()
            .repeat(ENDLESS)
            .random_map(load)
        )
        if rows is not None:
            dataset = _Rows(dataset, batch_size, rows)
        dataset = dataset.batch(batch_size if rows is None else len(rows))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        return iter(dataset[start_step:].to_iter_dataset(options))

    def even_batches(
        self,
        fields: Sequence[str],
        batch_size: int,
        count: int,
        size: int | None = None,
        mel_steps: int = 16,
        arrays: Mapping[str, np.ndarray | Sequence[np.ndarray]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """At most `count` batches of frames spread evenly over the split, always the same ones.

        At least one batch; frames repeat where the split has fewer than batch_size. Arguments as
        `batches`.
        """
        load = self._loader(fields, size, mel_steps, arrays)
        elements = self._elements(fields)
        total = batch_size * self.count_batches(fields, batch_size, count)
        chosen = np.linspace(0, len(elements) - 1, total).round().astype(int)
        chosen = chosen.reshape(-1, batch_size)
        for batch in chosen if rows is None else chosen[:, rows]:
            samples = [load(elements[k], np.random.default_rng(int(k))) for k in batch]
            yield {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def count_batches(self, fields: Sequence[str], batch_size: int, count: int) -> int:
        """How many batches `even_batches` gives."""
        return max(1, min(count, len(self._elements(fields)) // batch_size))

    def _elements(self, fields: Sequence[str]) -> list[tuple[int, int]]:
        elements = self.frames
        if WINDOW_FIELDS & set(fields):
            elements = [(k, f) for k, f in self.frames if f in self._windows[k][1]]
        elements = _balanced(elements)
        if not elements:
            names = ", ".join(str(d.path) for d in self.datasets)
            raise ValueError(f"{names}: the {self.split} split has no frames to learn from")
        return elements

    def _loader(self, fields, size, mel_steps, arrays, noisy=None):
        arrays = {
            name: value if isinstance(value, (list, tuple)) else [value]
            for name, value in (arrays or {}).items()
        }
        unknown = [name for name in fields if name not in FIELDS and name not in arrays]
        if unknown:
            raise KeyError(f"no field {', '.join(unknown)}: {', '.join([*FIELDS, *arrays])}")

        def load(element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
            speaker, frame = element
            data = self.datasets[speaker]
            starts, of = self._windows[speaker]
            start = of.get(frame, frame)
            heard = _heard(self._heard[speaker], noisy[speaker] if noisy else None, rng)
            side = size or data.size
            sample = _Sample(data, speaker, frame, start, starts, rng, side, mel_steps, *heard)
            return {
                name: np.asarray(arrays[name][speaker][frame])
                if name in arrays
                else FIELDS[name](sample)
                for name in fields
            }

        return load


def _balanced(elements: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(speaker, frame) pairs, those of speakers with few of them repeated until all have alike."""
    by_speaker: dict[int, list[tuple[int, int]]] = {}
    for element in elements:
        by_speaker.setdefault(element[0], []).append(element)
    most = max(map(len, by_speaker.values()), default=0)
    return [own[k % len(own)] for own in by_speaker.values() for k in range(most)]


def crop_faces(images: np.ndarray, face_boxes: np.ndarray) -> np.ndarray:
    """Face crops as the dataset stores them, of images that are already on white.

    Args:
        images: uint8 [N, S, S, 3].
        face_boxes: [N, 3] = (cx, cy, side), fractions of the image side.

    Returns:
        uint8 [N, 96, 96, 3].
    """
    side = images.shape[1]
    return np.stack(
        [video.crop(image, box * side, FACE_SIZE, 255) for image, box in zip(images, face_boxes)]
    )
