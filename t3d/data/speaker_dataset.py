"""A prepared speaker on disk: its TFDS builder, its splits, and random access to its frames."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from t3d.data import framing, video
from t3d.data.parts import fingerprint
from t3d.errors import UserError
from t3d.metrics import lips

META = "meta.json"
NEEDED = {"name", "size", "num_frames", "splits", "identity_frame"}
FACE_SIZE = 96
BLOCKS = 5
WHOLE = ("train", "validation", "test")
FOLDED = tuple(f"block{k}" for k in range(BLOCKS))
UNDIVIDED = "clip"  # what is stored of a clip whose turned frames are held out: all of it
LONG_ENOUGH = 30  # seconds: shorter clips are split into blocked folds
GUARD = 5  # frames left out on both sides of a turned frame that is held out
VALIDATION = 0.15  # of the frames that are not tested, where the turned ones are
CACHE_BYTES = 2**29

# Shapes of what one example holds beside its pictures (docs: prepare.py).
EXAMPLE_ARRAYS = {
    "points68": (68, 2),
    "lips79": (79, 2),
    "blendshapes": (53,),
    "expression": (79,),
    "identity": (100,),
    "albedo": (100,),
    "illumination": (27,),
    "rotvec": (3,),
    "translation": (3,),
    "head_to_world": (4, 4),
    "intrinsics": (4,),
    "face_box": (3,),
    "au": (5,),
}


def split_ranges(num_frames: int, fps: int = video.FPS) -> dict[str, tuple[int, int]]:
    """Frame ranges {split: (first, end)} of a clip.

    At least 30 s: train 70 %, validation 15 %, test 15 % in time with gaps of 1 s between. Shorter:
    block0 … block4, of which `fold_frames` makes folds.
    """
    if num_frames < LONG_ENOUGH * fps:
        edges = np.linspace(0, num_frames, BLOCKS + 1).round().astype(int)
        return {name: (int(edges[k]), int(edges[k + 1])) for k, name in enumerate(FOLDED)}
    usable = num_frames - 2 * fps
    train, rest = round(0.7 * usable), round(0.15 * usable)
    second = train + fps
    third = second + rest + fps
    return {"train": (0, train), "validation": (second, second + rest), "test": (third, num_frames)}


def fold_frames(
    ranges: dict[str, tuple[int, int]], split: str, fold: int = 0, fps: int = video.FPS
) -> np.ndarray:
    """The frames [N] int of a split.

    For a clip in blocks, fold f tests on block f and validates on the next one; the others train. A
    gap of 1 s (half a block where blocks are shorter than 2 s) is left out on the training and
    validation side of every border between splits.

    Args:
        ranges: of `split_ranges`.
        split: train, validation or test.
        fold: 0 … 4; only 0 for a clip that is not in blocks.
        fps: frames a second.
    """
    if split not in WHOLE:
        raise ValueError(f"no split {split!r}: one of {', '.join(WHOLE)}")
    if "train" in ranges:
        if fold:
            raise ValueError("a clip of 30 s or more has one fold: 0")
        return np.arange(*ranges[split])
    if not 0 <= fold < BLOCKS:
        raise ValueError(f"no fold {fold}: 0 to {BLOCKS - 1}")
    test = np.arange(*ranges[FOLDED[fold]])
    validation = np.arange(*ranges[FOLDED[(fold + 1) % BLOCKS]])
    if split == "test":
        return test
    gap = min(fps, min(end - first for first, end in ranges.values()) // 2)
    validation = _away(validation, test, gap)
    if split == "validation":
        return validation
    train = np.concatenate([np.arange(*ranges[FOLDED[(fold + k) % BLOCKS]]) for k in (2, 3, 4)])
    held = np.concatenate([test, np.arange(*ranges[FOLDED[(fold + 1) % BLOCKS]])])
    return np.sort(_away(train, held, gap))


def block_frames(num_frames: int, number: int, count: int, fps: int) -> dict[str, np.ndarray]:
    """Splits {train, validation, test: frames} of `SpeakerDataset.block`."""
    if not 0 <= number < count:
        raise ValueError(f"no block {number}: 0 to {count - 1}")
    edges = np.linspace(0, num_frames, count + 1).round().astype(int)
    first, end = edges[number], edges[number + 1]
    third = (end - first) // 3
    after = np.arange(end + fps, end + fps + third)
    before = np.arange(first - fps - third, first - fps)
    test, validation = np.arange(first, end), before if number == count - 1 else after
    train = _away(np.arange(num_frames), np.concatenate([test, validation]), fps)
    return {"train": train, "validation": validation, "test": test}


def turned_frames(yaw: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a clip in which the head is turned furthest, and those far from them.

    Args:
        yaw: [T] degrees; NaN where no face was found: such a frame is in neither.
        degrees: from the clip's median yaw.

    Returns:
        The frames [N] turned by more than that, and the others that are not within five of one.
    """
    seen = np.flatnonzero(np.isfinite(yaw))
    beyond = np.abs(yaw[seen] - np.median(yaw[seen])) > degrees
    turned = seen[beyond]
    return turned, _away(seen[~beyond], turned, GUARD)


def turned_splits(turned: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Splits {train, validation, test: frames} out of the two results of `turned_frames`.

    The turned frames are the test. 15 % of the others validate, in blocks of a second or more, at
    most five, spread over the clip; the rest trains but for what is within five frames of them.
    """
    blocks = int(np.clip(VALIDATION * len(others) // video.FPS, 1, BLOCKS))
    validation = np.concatenate([_densest(part) for part in np.array_split(others, blocks)])
    train = _away(np.setdiff1d(others, validation), validation, GUARD)
    return {"train": train, "validation": validation, "test": turned}


def _densest(frames: np.ndarray) -> np.ndarray:
    """The 15 % of some frames, one after the other, that span the shortest time."""
    count = round(VALIDATION * len(frames))
    first = int(np.argmin(frames[count - 1 :] - frames[: len(frames) - count + 1]))
    return frames[first : first + count]


def _away(frames: np.ndarray, others: np.ndarray, gap: int) -> np.ndarray:
    """The frames with at least `gap` frames between them and every one of the others."""
    near = np.unique(others[:, None] + np.arange(-gap, gap + 1))
    return frames[~np.isin(frames, near)]


def runs_of(frames: np.ndarray) -> list[np.ndarray]:
    """The frames [N] (ascending) cut into runs of consecutive ones."""
    if not len(frames):
        return []
    return np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1)


class Speaker(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of one prepared speaker: an example is a frame."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "One example per frame."}
    # No checksums or citations lie beside the code; looking for them needs importlib_resources,
    # which tensorflow-datasets 4.9.10 imports without requiring it.
    code_path = None

    def __init__(
        self,
        *,
        size: int,
        splits: tuple[str, ...] = (),
        examples: Callable[[str], Iterator[dict]] | None = None,
        **kwargs,
    ):
        """Args: size of the images; names of the splits; split name -> its examples in order."""
        self._size, self._splits, self._examples = size, splits, examples
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        shape = (self._size, self._size)
        arrays = {
            name: features.Tensor(shape=shape, dtype=np.float32)
            for name, shape in EXAMPLE_ARRAYS.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A person speaking, one example per frame of a 25 fps video.",
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "frame": np.int32,
                    "speaker": features.Text(),
                    "found": np.bool_,
                    "image": features.Image(shape=(*shape, 3), encoding_format="jpeg"),
                    "mask": features.Image(shape=(*shape, 1), encoding_format="png"),
                    "face": features.Image(shape=(FACE_SIZE, FACE_SIZE, 3), encoding_format="jpeg"),
                    **arrays,
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, split: str):
        for example in self._examples(split):
            yield int(example["frame"]), example


def write_examples(
    folder: Path, size: int, splits: tuple[str, ...], examples: Callable[[str], Iterator[dict]]
) -> None:
    """Writes a speaker's array_record files into `folder`, which is complete or absent.

    Args:
        folder: replaced if it exists.
        size: side of the images in pixels.
        splits: their names.
        examples: split name -> examples (the features of `Speaker`; pictures encoded) in order.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tfds-", dir=folder.parent) as temporary:
        tfds.disable_progress_bar()
        builder = Speaker(
            size=size,
            splits=splits,
            examples=examples,
            data_dir=temporary,
            file_format="array_record",
        )
        with contextlib.redirect_stdout(io.StringIO()):  # its announcements
            _write(builder, folder)
        shutil.rmtree(Path(temporary) / "downloads", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        whole = Path(temporary) / "whole"
        whole.mkdir()
        (Path(temporary) / builder.name).rename(whole / builder.name)
        whole.rename(folder)


def _write(builder: Speaker, folder: Path) -> None:
    try:
        builder.download_and_prepare()
    except RuntimeError as error:  # array_record's, without an errno
        words = str(error).partition("write() failed: ")[2]
        if not words:
            raise
        raise UserError(
            f"{folder}: cannot be written ({words.splitlines()[0]}); free some space and run the "
            "same command again"
        ) from error


def encode_image(image: np.ndarray, kind: str) -> bytes:
    """A uint8 picture [H, W, 3] or [H, W] as 'jpeg' (quality 95) or 'png' bytes."""
    stream = io.BytesIO()
    options = {"quality": 95} if kind == "jpeg" else {"compress_level": 3}
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes as uint8 [H, W, 3] or [H, W]."""
    return np.asarray(Image.open(io.BytesIO(data)))


def on_white(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] where mask [H, W] (uint8) is 255, white where it is 0."""
    share = mask[..., None].astype(np.uint16)
    mixed = image.astype(np.uint16) * share + 255 * (255 - share)
    return ((mixed + 127) // 255).astype(np.uint8)


class SpeakerDataset:
    """One prepared speaker, opened for reading.

    Attributes:
        path: of its folder.
        meta: what meta.json says.
        track: arrays of track.npz: per frame [T, …] and the speaker's constants (prepare.py).
        mel: [M, 80] float32, 80 steps a second.
    """

    def __init__(self, path):
        """Opens a folder of `t3d prepare`; raises UserError when it is missing or unfinished."""
        self.path = Path(path)
        self.meta = read_meta(self.path)
        try:
            with np.load(self.path / "track.npz", allow_pickle=False) as arrays:
                self.track = dict(arrays)
            self.mel = np.load(self.path / "mel.npy", allow_pickle=False)
            self._sources = self._open_sources()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.path}: a damaged dataset ({error}); run t3d prepare again with --force"
            ) from error
        self._cache: dict[tuple, np.ndarray] = {}
        self._room = CACHE_BYTES
        self._lock = threading.Lock()

    def _open_sources(self) -> list[tuple[int, int, object]]:
        """(first frame, end, examples) of each stored split."""
        folders = sorted((self.path / "tfds").glob("*/*/features.json"))
        if not folders:
            raise FileNotFoundError("tfds/ holds no examples")
        builder = tfds.builder_from_directory(folders[-1].parent)
        raw = dict.fromkeys(("image", "mask", "face"), tfds.decode.SkipDecoding())
        sources = []
        for name, (first, end) in self.ranges.items():
            if end > first:
                source = builder.as_data_source(name, decoders=raw)
                if len(source) != end - first:
                    raise ValueError(f"split {name} has {len(source)} of {end - first} frames")
                sources.append((first, end, source))
        return sources

    @cached_property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """{name of what is stored together: (first frame, end)}; `frames` makes splits of it."""
        return {name: tuple(pair) for name, pair in self.meta["splits"].items()}

    @property
    def fold(self) -> int:
        """That the dataset was made for: nothing in it was fitted on this fold's test frames."""
        return self.meta.get("fold", 0)

    @property
    def name(self) -> str:
        """The speaker's name."""
        return self.meta["name"]

    @property
    def size(self) -> int:
        """Side of the stored images in pixels."""
        return self.meta["size"]

    @property
    def num_frames(self) -> int:
        """Frames of the clip, those in no split included."""
        return self.meta["num_frames"]

    def frames(self, split: str) -> np.ndarray:
        """The frames [N] of train, validation or test, ascending, perhaps with holes.

        Those in which the speaker's face was not found are left out: their codes and poses are
        bridged, and there is no truth to hold a head against. So are those with an unknown action
        unit, but for test.
        """
        chosen, usable = self._all_frames(split), self.track["found"]
        if split != "test":
            usable = usable & np.isfinite(self.track["au"]).all(-1)
        return chosen[usable[chosen]]

    def faceless(self, split: str) -> int:
        """How many frames `frames` leaves out because the face was not found in them."""
        return int(np.sum(~self.track["found"][self._all_frames(split)]))

    def _all_frames(self, split: str) -> np.ndarray:
        if "frames" in self.meta:
            return np.concatenate([np.arange(*run) for run in self.meta["frames"][split]])
        return fold_frames(self.ranges, split, self.fold, self.meta["fps"])

    def block(self, number: int, count: int) -> SpeakerDataset:
        """The same clip in blocked folds: tested on one of `count` equal parts of its frames.

        A third of a part after it (before it, of the last) validates, the rest trains but for 1 s
        on both sides of every border; I_id is chosen anew. What t3d prepare fitted to its own
        training frames (identity, albedo, focal length, light) stays.
        """
        frames = block_frames(self.num_frames, number, count, self.meta["fps"])
        stored = np.concatenate([np.arange(*pair) for pair in self.ranges.values()])
        runs = {
            split: [(int(run[0]), int(run[-1]) + 1) for run in runs_of(np.intersect1d(of, stored))]
            for split, of in frames.items()
        }
        folded = copy.copy(self)
        named = fingerprint([self.meta["fingerprint"], "block", number, count])
        folded.meta = self.meta | {"frames": runs, "fingerprint": named}
        mouth = lips.mouth_opening(self.track["points68"])
        points, turns = self.track["points68"], self.track["rotvec"]
        calm = framing.calm_frames(points, turns, mouth, folded.frames("train"))
        sharp = [framing.sharpness(self.picture(f, "face")) for f in calm]
        folded.meta["identity_frame"] = int(calm[np.argmax(sharp)])
        return folded

    def split_title(self, split: str) -> str:
        """What the frames of a split are, for a reader: 'test', 'test of fold 2', …"""
        if "held_out_yaw" in self.meta:
            side = "beyond" if split == "test" else "within"
            return f"{split} (yaw {side} {self.meta['held_out_yaw']:g}° of the median)"
        return split if split in self.ranges else f"{split} of fold {self.fold}"

    def example(self, frame: int) -> dict:
        """The stored example of a frame, its pictures still encoded.

        Raises KeyError for a frame in the gap between two splits.
        """
        for first, end, source in self._sources:
            if first <= frame < end:
                return source[int(frame) - first]
        raise KeyError(f"{self.path}: frame {frame} lies in no split")

    def picture(self, frame: int, kind: str, size: int | None = None) -> np.ndarray:
        """A picture of a frame, uint8; decoded ones are kept in memory up to half a gigabyte.

        Args:
            frame: in one of the splits.
            kind: 'image' (as filmed), 'head' (on white), 'mask' (0 … 255), 'face' (on white).
            size: side in pixels; the stored one if None.

        Returns:
            [S, S, 3], or [S, S] of a mask.
        """
        key = (int(frame), kind, size)
        if key not in self._cache:
            picture = self._decode(frame, kind)
            if size and size != picture.shape[0]:
                picture = video.resize(picture, size)
            with self._lock:
                if key in self._cache or picture.nbytes > self._room:
                    return picture
                self._room -= picture.nbytes
                self._cache[key] = picture
        return self._cache[key]

    def _decode(self, frame: int, kind: str) -> np.ndarray:
        example = self.example(frame)
        if kind != "head":
            picture = decode_image(example[kind])
            return picture.reshape(picture.shape[:2]) if kind == "mask" else picture
        return on_white(decode_image(example["image"]), decode_image(example["mask"]))

    def audio(self) -> np.ndarray:
        """The clip's sound: float32 [N] mono, 16 kHz, sample 0 = frame 0."""
        return video.read_audio(self.path / "audio.wav")


def read_meta(path: Path) -> dict:
    """meta.json of a prepared dataset; UserError when the folder is none or is unfinished."""
    remedy = f"make it with: t3d prepare VIDEO --out {path}"
    if not path.exists():
        raise UserError(f"{path}: no such dataset; {remedy}")
    if not path.is_dir():
        raise UserError(f"{path}: is a file, not a prepared dataset; {remedy}")
    if not (path / META).exists():
        if (path / "parts").exists():
            raise UserError(f"{path}: its preparation was not finished; run t3d prepare again")
        raise UserError(f"{path}: not a prepared dataset (no {META}); {remedy}")
    damaged = f"{path / META}: damaged; run t3d prepare again with --force"
    try:
        meta = json.loads((path / META).read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(damaged) from error
    if not isinstance(meta, dict) or not meta.keys() >= NEEDED:
        raise UserError(damaged)
    return meta
