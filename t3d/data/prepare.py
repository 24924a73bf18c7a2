"""`t3d prepare`: a video of a person speaking to a dataset that t3d learns from.

The folder it makes:

    meta.json      name, source, fps, size, splits, prior, detector, quality, warnings, versions
    audio.wav      16 kHz mono, sample 0 = frame 0
    mel.npy        [M, 80] Wav2Lip mel, 80 steps a second
    track.npz      per frame [T, …]: found (the speaker's face is seen, and the 3D model lies on
                   it), shot, points68, lips79 (fractions of the image side), blendshapes [53],
                   expression [79], rotvec [3], translation [3] (cm), head_to_world [4, 4],
                   illumination [27], residual, face_box (cx, cy, side; fractions), au [5] 0/1 (NaN
                   where OpenFace tracked nothing), au_intensity [5] (the built-in measure), and
                   what else the tracker tells; once: identity [100], albedo [100], intrinsics [4]
    tfds/          array_record files, one example per frame (speaker_dataset.py)
    overview.mp4   video | landmarks | fitted mesh | mask

The splits are blocks of time (speaker_dataset.py). A clip whose turned frames are held out names
its splits' frames in meta.json, as runs [first, end) under "frames".

meta.json is written last: a folder that has it is complete. Until then finished parts lie in
parts/, named by what they were made from, and a rerun goes on after them. A dataset that is
replaced stays whole until all of the new one is there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import re
import shutil
import sys
import time
import wave
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from scipy.spatial.transform import Rotation

import t3d
from t3d import assets
from t3d.data import framing, overview, quality, video
from t3d.data.landmarks import BLENDSHAPES
from t3d.data.parts import Blobs, Parts, fingerprint, write_atomically
from t3d.data.source import (
    SMALLEST_SHARE,
    Clip,
    observe,
    open_clip,
    sampled,
    sha256_of,
    true_masks,
    whole,
)
from t3d.data.speaker_dataset import (
    EXAMPLE_ARRAYS,
    FACE_SIZE,
    FOLDED,
    LONG_ENOUGH,
    META,
    UNDIVIDED,
    WHOLE,
    decode_image,
    encode_image,
    fold_frames,
    on_white,
    read_meta,
    runs_of,
    split_ranges,
    turned_frames,
    turned_splits,
    write_examples,
)
from t3d.data.threads import in_order, prefetched
from t3d.errors import UserError
from t3d.metrics import action_units, lips
from t3d.prior import basis, tracker
from t3d.prior.morphable import MorphableModel
from t3d.speech.features import mel

FEWEST_TURNED, FEWEST_OTHERS = 25, 100  # frames that make a test of turned ones worth its while
TFDS, OVERVIEW = "tfds", "overview.mp4"
PART = re.compile(rf"[a-z]+-[0-9a-f]{{12}}\.(npz|bin)|{TFDS}|{OVERVIEW}")  # what lies in parts/
SLACK = video.FPS  # frames by which OpenFace's table may be longer or shorter than the clip
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Splits:
    """What is stored together, {name: (first frame, end)}, and the splits' frames {name: [N]}."""

    ranges: dict[str, tuple[int, int]]
    frames: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """A clip's head crops (JPEG) and their masks (PNG), on disk."""

    frames: Blobs
    masks: Blobs

    def image(self, frame: int) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return decode_image(self.frames[frame])

    def mask(self, frame: int) -> np.ndarray:
        """uint8 [S, S], 255 on the head."""
        return decode_image(self.masks[frame])

    def images(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, S, S, 3] of frames [n]."""
        return np.stack(list(in_order(self.image, frames)))

    def head_masks(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, S, S] of frames [n]."""
        return np.stack(list(in_order(self.mask, frames)))


class Bars:
    """Progress bars of the parts on the terminal; elsewhere a line for each finished part."""

    def __init__(self):
        self._console, self._out = Console(stderr=True), sys.stdout
        self._progress = Progress(
            TextColumn("{task.description:<14}", markup=False),  # file names hold brackets
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *error):
        self._progress.stop()

    def bar(self, name: str, total: int) -> Callable[[int, int], None]:
        """A new bar; the result takes (done, total)."""
        task, started = self._progress.add_task(name, total=total), time.monotonic()

        def update(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)
            if done == total and not self._console.is_terminal:
                seconds = time.monotonic() - started
                print(f"{name}: {total} done in {seconds:.0f} s", file=self._out, flush=True)

        return update

    def over(self, name: str, items: Iterable, total: int) -> Iterator:
        """The items, counted by a new bar; about `total` of them."""
        update, count = self.bar(name, total), 0
        for item in items:
            yield item
            count += 1
            update(count, max(total, count + 1))
        update(count, count)


def prepare(
    video,
    out,
    prior: str | None = None,
    size: int = 256,
    force: bool = False,
    fold: int | None = None,
    hold_out_yaw: float | None = None,
    openface=None,
) -> dict:
    """Makes a dataset of a talking video, or of a speaker of `t3d synthesize`.

    Args:
        video: a video file, or the folder that `t3d synthesize` made: its truth then stands for the
            detectors (landmarks, masks), while codes and poses are fitted. Its video.mp4 is a video
            file like any other.
        out: folder to make; a stopped run is continued, a finished one is left as it is.
        prior: the 3DMM, a name out of t3d.prior.basis.PRIORS; None: 'ict', 'procedural' for the
            folder of a synthetic speaker.
        size: side of the images in pixels.
        force: replace the dataset that `out` holds, once the new one is made; start an unfinished
            one anew.
        fold: 0 to 4, the block that a clip under 30 s is tested on (None: 0).
        hold_out_yaw: test on the frames turned by more than these degrees from the median yaw, and
            on nothing else; None: the splits are blocks of time.
        openface: CSV of OpenFace's FeatureExtraction that the AU labels come from; None: built in.

    Returns:
        What meta.json says.

    Raises:
        UserError: the video is no use (its message says why), or `out` is something else.
    """
    out = Path(out)
    clip = open_clip(Path(video))
    prior = prior or ("procedural" if clip.truth else "ict")
    _check_splits(clip, clip.frames, fold, hold_out_yaw)
    labels = None if openface is None else openface_labels(Path(openface), clip)
    settings = {"source": clip.sha256, "prior": prior, "size": size, "t3d": t3d.__version__}
    settings |= {"fold": fold} if fold else {}
    settings |= {} if hold_out_yaw is None else {"hold_out_yaw": float(hold_out_yaw)}
    settings |= {} if openface is None else {"openface": sha256_of([Path(openface)])}
    if (meta := _finished(out, settings, force)) is not None:
        return meta
    model = basis.load(prior)
    for name in () if clip.truth else ("face_landmarker", "deeplab_v3"):
        assets.find(name)  # said now, not when it is wanted
    with _workspace(out) as folder, Bars() as bars:
        return _Preparation(clip, out, model, settings, labels, Parts(folder), bars).run()


def _check_splits(clip: Clip, frames: int, fold: int | None, hold_out_yaw: float | None) -> None:
    """UserError for options that do not go with a clip of so many frames."""
    if hold_out_yaw is not None:
        if fold is not None:
            raise UserError("--fold, --hold-out-yaw: each makes its own test; give one of them")
        if not 0 < hold_out_yaw < 90:
            raise UserError(f"--hold-out-yaw {hold_out_yaw:g}: give degrees between 0 and 90")
    if fold is None:
        return
    if fold not in range(len(FOLDED)):
        raise UserError(f"--fold {fold}: no such fold; give one of 0 to {len(FOLDED) - 1}")
    if frames >= LONG_ENOUGH * video.FPS:
        raise UserError(
            f"{clip.path}: has {frames / video.FPS:.0f} s, and only clips under {LONG_ENOUGH} s "
            "are tested in folds; leave --fold out"
        )


def openface_labels(path: Path, clip: Clip) -> np.ndarray:
    """AU labels [T, 5] out of OpenFace's table, NaN where it tracked nothing.

    Raises:
        UserError: the file is no such table, or not of this clip.
    """
    labels = action_units.read_openface(path)
    if abs(len(labels) - clip.frames) > SLACK:
        raise UserError(
            f"{path}: labels {len(labels) / video.FPS:.1f} s, but {clip.path} has "
            f"{clip.info.duration:.1f} s; run OpenFace's FeatureExtraction on this very video"
        )
    known = np.isfinite(labels).all(1).mean()
    if known < SMALLEST_SHARE:
        raise UserError(
            f"{path}: OpenFace tracked a face in {known:.0%} of the frames; run it on a better "
            "video, or leave --openface out"
        )
    return labels


def _finished(out: Path, settings: dict, force: bool) -> dict | None:
    """meta.json of a dataset that is there and stays; UserError for what must not be replaced."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    if not _is_ours(out):
        raise UserError(f"{out}: holds other files; choose a new folder for --out")
    if not (out / META).exists():
        if force:
            shutil.rmtree(out / "parts", ignore_errors=True)
        return None
    if force:
        return None
    meta = read_meta(out)
    if meta.get("fingerprint") != fingerprint(settings):
        raise UserError(
            f"{out}: holds a dataset of another video or other settings; use --force to replace it"
        )
    return meta


def _is_ours(out: Path) -> bool:
    """Whether a folder is empty, or a dataset, finished or not."""
    if not any(out.iterdir()):
        return True
    if (out / META).exists():
        return (out / "track.npz").exists() or (out / "tfds").exists()
    if not (out / "parts").is_dir():
        return False
    names = {path.name for path in (out / "parts").iterdir()}
    names = {name for name in names if not name.startswith(".") and name != "Thumbs.db"}
    return all(map(PART.fullmatch, names)) and (bool(names) or len(list(out.iterdir())) == 1)


@contextlib.contextmanager
def _workspace(out: Path):
    """The folder of the parts; where none was finished when the video is no use, it goes again."""
    missing = [p for p in [out, *out.parents] if not p.exists()]
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except UserError:
        if not any(folder.glob("*.npz")):
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # of others, who made something there meanwhile
                for made in missing:
                    made.rmdir()
        raise


class _Preparation:
    """One run: every method is a part, and is made from the parts above it."""

    def __init__(self, clip, out, model, settings, labels, parts, bars):
        self.clip: Clip = clip
        self.out: Path = out
        self.model: MorphableModel = model
        self.settings: dict = settings
        self.labels: np.ndarray | None = labels
        self.parts: Parts = parts
        self.bars: Bars = bars

    def run(self) -> dict:
        started = time.monotonic()
        base = {"source": self.clip.sha256, "t3d": self.settings["t3d"]}
        sized = base | {"size": self.settings["size"]}
        marks = self.parts.get("landmarks", base, self._landmarks)
        seen = _in_crop(marks)
        pictures = Pictures(
            **self.parts.stream(
                "pictures", sized, ("frames", "masks"), lambda add: self._pictures(marks, seen, add)
            )
        )
        splits = self._splits(seen, pictures)
        track = self.parts.get("track", self.settings, lambda: self._track(seen, pictures, splits))
        heard = video.read_audio(self.clip.path)
        sound = video.at_length(heard, len(seen["found"]))
        meta = self._meta(marks, pictures, track, splits, heard)
        self._once(TFDS, TFDS, lambda: self._examples(pictures, track, splits.ranges, meta["name"]))
        self._once("overview", OVERVIEW, lambda: self._overview(pictures, track, sound))
        (self.out / META).unlink(missing_ok=True)  # of the dataset that is replaced from here on
        shutil.rmtree(self.out / TFDS, ignore_errors=True)
        for name in (TFDS, OVERVIEW):
            (self.parts.folder / name).replace(self.out / name)
        _write_sound(self.out / "audio.wav", sound)
        write_atomically(self.out / "mel.npy", lambda p: np.save(p, mel(sound)))
        write_atomically(self.out / "track.npz", lambda p: np.savez(p, **track))
        meta["seconds"] = round(time.monotonic() - started, 1)
        text = json.dumps(meta, indent=1)  # in ASCII: a file's name may be no text at all
        write_atomically(self.out / META, lambda p: p.write_text(text))
        shutil.rmtree(self.parts.folder)
        return meta

    def _landmarks(self) -> Arrays:
        """What is seen in the source, in its pixels; UserError if it is of no use."""
        count = self.clip.frames
        images = self.bars.over("landmarks", video.read_frames(self.clip.path), count)
        return observe(self.clip, images, whole(count))

    def _pictures(self, marks: Arrays, seen: Arrays, add: Callable[..., None]) -> None:
        """Head crops as JPEG and their masks as PNG."""
        size, waiting = self.settings["size"], deque()
        images = prefetched(video.read_frames(self.clip.path))
        images = self.bars.over("frames, masks", images, len(marks["found"]))
        points = np.where(seen["found"][:, None, None], seen["points68"], np.nan) * size

        def cut(image: np.ndarray) -> tuple[np.ndarray, bytes]:
            image = video.crop(image, marks["box"], size)
            return image, encode_image(image, "jpeg")

        def crops() -> Iterator[np.ndarray]:
            for image, jpeg in in_order(cut, images):
                waiting.append(jpeg)
                yield image

        for mask in self._masks(crops(), points, marks["shot"]):
            add(waiting.popleft(), mask)

    def _masks(self, images: Iterator[np.ndarray], points, shot) -> Iterator[bytes]:
        """The head's mask in each image, as PNG."""
        if self.clip.truth:
            true = true_masks(self.clip.truth.parent / "mask.npz", self.settings["size"])
            return (encode_image(mask, "png") for _, mask in zip(images, true, strict=True))
        from t3d.data import matting

        heads = matting.head_masks(images, points, shot=shot)
        return in_order(lambda head: encode_image(_byte(head), "png"), heads)

    def _splits(self, seen: Arrays, pictures: Pictures) -> Splits:
        """In time, or by the head's turn."""
        count, fold = len(seen["found"]), self.settings.get("fold", 0)
        if "hold_out_yaw" in self.settings:
            return self._turned(seen, pictures)
        _check_splits(self.clip, count, fold or None, None)
        ranges = split_ranges(count)
        return Splits(ranges, {name: fold_frames(ranges, name, fold) for name in WHOLE})

    def _turned(self, seen: Arrays, pictures: Pictures) -> Splits:
        """Splits by the yaw of a first fit, to all frames, that nothing else is taken from."""
        count, degrees = len(seen["found"]), self.settings["hold_out_yaw"]
        base = {k: v for k, v in self.settings.items() if k not in ("hold_out_yaw", "openface")}
        every = np.flatnonzero(seen["found"])
        yaw = self.parts.get(
            "yaw",
            base,
            lambda: {"yaw": yaw_of(self._fit("head turns", seen, pictures, every)["rotvec"])},
        )["yaw"]
        yaw = np.where(seen["found"], yaw, np.nan)
        turned, others = turned_frames(yaw, degrees)
        remedy = None
        if len(others) < FEWEST_OTHERS:
            remedy = f"raise --hold-out-yaw {degrees:g}, or take a longer video"
        elif len(turned) < FEWEST_TURNED:
            off = np.sort(np.abs(yaw[every] - np.median(yaw[every])))[-FEWEST_TURNED]
            remedy = f"take --hold-out-yaw {np.floor(10 * off - 1) / 10:g} or less"
        if remedy:
            raise UserError(
                f"{self.clip.path}: {len(turned)} frames are turned by more than {degrees:g}° from "
                f"the median yaw, {len(others)} are left to learn from, and {FEWEST_TURNED} and "
                f"{FEWEST_OTHERS} are the least; {remedy}"
            )
        return Splits({UNDIVIDED: (0, count)}, turned_splits(turned, others))

    def _fit(self, title: str, seen: Arrays, pictures: Pictures, fit_frames) -> Arrays:
        """The tracker's codes and poses of all frames, constants fitted on some."""
        return tracker.track(
            self.model,
            SimpleNamespace(**seen),
            fit_frames,
            pictures.images,
            lambda index: pictures.head_masks(index) / 255,
            doubt=1.0 if self.clip.truth is not None else tracker.MEDIAPIPE_DOUBT,
            progress=self.bars.bar(title, 1),
        )

    def _track(self, seen: Arrays, pictures: Pictures, splits: Splits) -> Arrays:
        """All per-frame arrays and constants of track.npz."""
        train = splits.frames["train"]
        train = train[seen["found"][train]]
        if not len(train):
            raise UserError(
                f"{self.clip.path}: the speaker is seen in no frame of the training split; cut the "
                "video to the shot of the speaker"
            )
        fitted = self._fit("3DMM tracking", seen, pictures, train)
        labels, intensity = action_units.from_blendshapes(
            seen["blendshapes"], tuple(BLENDSHAPES), seen["points68"]
        )
        if self.labels is not None:
            labels = _to_length(self.labels, len(labels))
        trusted = fitted.pop("trusted", seen["found"])
        return {
            **{k: seen[k] for k in ("shot", "points68", "lips79", "blendshapes")},
            "found": seen["found"] & np.asarray(trusted, bool),
            **fitted,
            "face_box": framing.face_boxes(seen["points68"], seen["shot"]),
            "au": labels.astype(np.float32),
            "au_intensity": intensity.astype(np.float32),
        }

    def _once(self, name: str, file: str, make: Callable[[], None]) -> None:
        """Makes a part that is a file or folder by itself, unless these settings' is there."""
        marker = self.parts.path(name, self.settings)
        if marker.exists() and (self.parts.folder / file).exists():
            return
        for other in self.parts.folder.glob(f"{name}-*"):
            other.unlink()
        make()
        marker.touch()

    def _examples(self, pictures, track, ranges, name) -> None:
        """The array_record files."""
        total = sum(end - first for first, end in ranges.values())
        update, written = self.bars.bar("dataset", total), 0

        def examples(split: str) -> Iterator[dict]:
            nonlocal written
            make = functools.partial(_example, name=name, pictures=pictures, track=track)
            for example in in_order(make, range(*ranges[split])):
                written += 1
                update(written, total)
                yield example

        splits = tuple(s for s, (first, end) in ranges.items() if end > first)
        write_examples(self.parts.folder / TFDS, self.settings["size"], splits, examples)

    def _overview(self, pictures, track, sound) -> None:
        mesh = overview.MeshPainter(self.model, track)

        def paint(frame: int) -> np.ndarray:
            return overview.panels(
                pictures.image(frame),
                pictures.mask(frame),
                track["points68"][frame],
                track["lips79"][frame],
                lambda image: mesh(image, frame),
            )

        count = len(track["found"])
        film = self.bars.over(OVERVIEW, overview.film(paint, count), count)
        video.write_video(self.parts.folder / OVERVIEW, film, sound)

    def _meta(self, marks, pictures, track, splits: Splits, heard) -> dict:
        turns = Rotation.from_rotvec(track["rotvec"]).as_euler("YXZ", degrees=True)[:, :2].T
        figures = quality.clip_figures(self.clip.info, marks, turns, heard)
        figures |= quality.fit_quality(self.model, track)
        count = len(track["found"])
        meta = {
            "name": self.out.resolve().name,
            "source": self.clip.path.name,
            "source_sha256": self.clip.sha256,
            "fingerprint": fingerprint(self.settings),
            "fps": video.FPS,
            "size": self.settings["size"],
            "num_frames": count,
            "prior": self.settings["prior"],
            "detector": str(marks["detector"]),
            "synthetic": self.clip.truth is not None,
            "crop": [round(float(v), 3) for v in marks["box"]],
            **self._split_meta(splits),
            "au_labels": "built in" if self.labels is None else "openface",
            "identity_frame": identity_frame(track, pictures, splits.frames["train"]),
            "quality": figures,
            "versions": _versions(),
        }
        meta["warnings"] = quality.warnings(figures, str(self.clip.path))
        unknown = 1 - np.isfinite(track["au"]).all(1).mean()
        if unknown > 1 - quality.WARN["tracked"]:
            meta["warnings"].append(
                f"OpenFace tracked no face in {unknown:.1%} of the frames: none is learned from"
            )
        return meta

    def _split_meta(self, splits: Splits) -> dict:
        """What meta.json says of the splits."""
        meta = {"splits": {name: list(pair) for name, pair in splits.ranges.items()}, "folds": 1}
        if FOLDED[0] in splits.ranges:
            fold = self.settings.get("fold", 0)
            meta |= {"folds": len(FOLDED), "fold": fold}
            return meta | {"fitted_on": f"train split of fold {fold}"}
        if UNDIVIDED in splits.ranges:
            meta["held_out_yaw"] = self.settings["hold_out_yaw"]
            meta["frames"] = {
                name: [[int(run[0]), int(run[-1]) + 1] for run in runs_of(frames)]
                for name, frames in splits.frames.items()
            }
        return meta | {"fitted_on": "train split"}


def _in_crop(marks: Arrays) -> Arrays:
    """What the tracker sees: the landmarks in fractions of the head crop, found, shot."""
    corner, side = marks["box"][:2] - marks["box"][2] / 2, marks["box"][2]
    moved = {n: ((marks[n] - corner) / side).astype(np.float32) for n in ("points68", "lips79")}
    return {name: marks[name] for name in ("found", "shot", "blendshapes")} | moved


def _byte(mask: np.ndarray) -> np.ndarray:
    return (np.clip(mask, 0, 1) * 255 + 0.5).astype(np.uint8)


def _example(frame: int, name: str, pictures: Pictures, track: Arrays) -> dict:
    image, mask = pictures.frames[frame], pictures.masks[frame]
    head = on_white(decode_image(image), decode_image(mask))
    face = video.crop(head, track["face_box"][frame] * head.shape[0], FACE_SIZE, 255)
    constant = ("identity", "albedo", "intrinsics")
    return {
        "frame": frame,
        "speaker": name,
        "found": bool(track["found"][frame]),
        "image": image,
        "mask": mask,
        "face": encode_image(face, "jpeg"),
        **{n: np.float32(track[n] if n in constant else track[n][frame]) for n in EXAMPLE_ARRAYS},
    }


def _write_sound(path: Path, samples: np.ndarray) -> None:
    """16-bit PCM at 16 kHz."""

    def write(temporary: Path) -> None:
        with wave.open(str(temporary), "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(video.RATE)
            stream.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())

    write_atomically(path, write)


def _to_length(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels [N, n] of `count` frames: cut, or NaN at the end."""
    padding = np.full((max(0, count - len(labels)), labels.shape[1]), np.nan)
    return np.concatenate([labels[:count], padding])


def yaw_of(rotvec: np.ndarray) -> np.ndarray:
    """The head's turn to the side [T] in degrees, of rotation vectors [T, 3]."""
    return Rotation.from_rotvec(rotvec).as_euler("YXZ", degrees=True)[:, 0]


def identity_frame(track: Arrays, pictures: Pictures, train: np.ndarray) -> int:
    """The frame out of `train` that is most frontal, sharp and closed-mouthed: the paper's I_id."""
    train = train[track["found"][train]]
    mouth = lips.mouth_opening(track["points68"])
    calm = framing.calm_frames(track["points68"], track["rotvec"], mouth, train)

    def sharp(frame: int) -> float:
        image = pictures.image(frame)
        box = track["face_box"][frame] * image.shape[0]
        return framing.sharpness(video.crop(image, box, FACE_SIZE))

    return int(max(calm, key=sharp))


def _versions() -> dict[str, str]:
    names = ("jax", "numpy", "scipy", "av", "mediapipe", "tensorflow-datasets")
    found = {"t3d": t3d.__version__}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def report(path, prior: str | None = None) -> dict[str, float]:
    """The figures of a video by a sampled look, with no dataset made: `quality.clip_figures`.

    Args:
        path: a video, or a folder of `t3d synthesize`.
        prior: the 3D model that the head's turns are judged by; None: as of `prepare`.

    Raises:
        UserError: the video is no use (its message says why).
    """
    clip = open_clip(Path(path))
    model = basis.load(prior or ("procedural" if clip.truth else "ict"))
    with Bars() as bars:
        images = bars.over("looking", video.read_frames(clip.path), clip.frames)
        seen = observe(clip, images, sampled(clip.frames))
    points = np.where(seen["found"][:, None, None], seen["points68"], np.nan)
    turns = quality.head_turns(model, points)
    return quality.clip_figures(clip.info, seen, turns, video.read_audio(clip.path))


def report_command(args) -> None:
    """`t3d prepare VIDEO --report [--json FILE]`."""
    figures = report(args.video, args.prior)
    _write_figures(args.json, figures)
    told = quality.lines(figures, args.video)
    print(quality.table(told))
    bad = sum(not line.fine for line in told)
    print(f"{args.video}: {f'{bad} of {len(told)} things to look at' if bad else 'all fine'}")


def _write_figures(path: str | None, figures: dict[str, float]) -> None:
    if path:
        text = json.dumps(figures, indent=1) + "\n"
        write_atomically(Path(path), lambda p: p.write_text(text))


def prepare_command(args) -> None:
    """`t3d prepare`: makes the dataset and reports on it; with --report only the latter."""
    if args.report:
        return report_command(args)
    if not args.out:
        raise UserError("--out: name the dataset's folder (or give --report to look only)")
    meta = prepare(
        args.video,
        args.out,
        args.prior,
        args.size,
        args.force,
        fold=args.fold,
        hold_out_yaw=args.hold_out_yaw,
        openface=args.openface,
    )
    fit = meta["quality"]
    _write_figures(args.json, fit)
    print(
        f"{args.out}: {meta['num_frames']} frames ({meta['num_frames'] / meta['fps']:.1f} s), "
        f"{meta['size']} × {meta['size']}, 3D model {meta['prior']}"
    )
    print(
        f"tracked {fit['tracked']:.1%} of the frames; landmarks off by "
        f"{fit['reprojection']:.2%} of the outer eye distance (median); fitted against "
        f"detected mouth opening r = {fit['mouth_r']:.3f}"
    )
    if "frames" in meta:
        counts = {name: sum(b - a for a, b in runs) for name, runs in meta["frames"].items()}
        print(
            f"test: {counts['test']} frames turned by more than {meta['held_out_yaw']:g}° from the "
            f"median yaw; train: {counts['train']}, validation: {counts['validation']} others"
        )
    for text in meta["warnings"]:
        print(f"warning: {text}")
    print(f"see {Path(args.out) / OVERVIEW}")
