"""A source of a dataset: the video, and what is seen in it before any 3D model is fitted."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from t3d.data import framing, quality, shots, video
from t3d.data.landmarks import Landmarks, detect
from t3d.data.threads import prefetched
from t3d.errors import UserError
from t3d.prior import gaps

SMALLEST_SHARE = 0.5  # of frames with the speaker's face, below which a clip is refused
BLOCKS, BLOCK = 5, 8 * video.FPS  # how many parts of a clip a sampled look takes, and how long
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Clip:
    """A source: the video, the hash of what it is made of, and a synthetic speaker's truth."""

    path: Path
    sha256: str
    info: video.VideoInfo
    truth: Path | None

    @property
    def frames(self) -> int:
        """About how many frames it has at 25 fps."""
        return round(self.info.duration * video.FPS)


def open_clip(path: Path) -> Clip:
    """Looks at a source without decoding it; UserError when it is no talking video."""
    truth = None
    if path.is_dir():
        path, truth = path / "video.mp4", path / "truth.npz"
        if not path.exists():
            raise UserError(
                f"{path.parent}: a folder without video.mp4; give a video, or a folder made by "
                "t3d synthesize"
            )
        truth = truth if truth.exists() else None
    info = video.probe_talking(path)
    sha256 = sha256_of([path, *([truth, path.parent / "mask.npz"] if truth else [])])
    return Clip(path, sha256, info, truth)


def sha256_of(paths: Iterable[Path]) -> str:
    """Of some files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def sampled(frames: int) -> list[tuple[int, int]]:
    """Blocks (first, end) of a clip of about so many frames that stand for it: at most 40 s."""
    if frames <= BLOCKS * BLOCK:
        return whole(frames)
    return [(int(k), int(k) + BLOCK) for k in np.linspace(0, frames - BLOCK, BLOCKS)]


def whole(frames: int) -> list[tuple[int, int]]:
    """All of a clip of about so many frames as one block."""
    return [(0, 2 * frames + BLOCK)]


def observe(clip: Clip, images: Iterable[np.ndarray], blocks: list[tuple[int, int]]) -> Arrays:
    """What is seen in a clip's pictures: the speaker's landmarks, shots, light, the head's crop.

    Args:
        clip: the source; a synthetic one's truth stands for the detector.
        images: uint8 [H, W, 3], all T of them.
        blocks: (first, end) in which faces are looked for.

    Returns:
        looked [T] (whether it lies in a block), detected [T] (any face), found [T] (the speaker's);
        points68, lips79 (pixels) and blendshapes, bridged where not found; shot [T]; looks [T, 2]
        (quality.look); others: share of frames with a second face; detector; shape (height, width);
        box: the head's crop (cx, cy, side) in pixels. A synthetic one's crop is all of it.

    Raises:
        UserError: less than half of the clip shows the speaker.
    """
    watch, images = _Watch(), prefetched(images)
    read = _read_truth if clip.truth else _detect
    marks, looked = read(clip, images, watch, blocks)
    check_share(clip, "a face was found", marks.found[looked])
    thumbs, looks = watch.results()
    cut = shots.find(thumbs, marks.points68, marks.found)
    found = shots.speaker_frames(cut, marks.points68, marks.found)
    check_share(clip, "one face, in one scene and one place, was found", found[looked])
    names = ("points68", "lips79", "blendshapes")
    bridged = {n: gaps.bridge(getattr(marks, n), found, cut.shot) for n in names}
    height, width = watch.shape[:2]
    box = (width / 2, height / 2, max(width, height))
    if not clip.truth:
        box = framing.head_crop(bridged["points68"][found], width, height)
    return bridged | {
        "looked": looked,
        "detected": marks.found,
        "found": found,
        "shot": cut.shot,
        "looks": looks,
        "others": np.float32(marks.others),
        "detector": np.array(marks.detector),
        "shape": np.array(watch.shape),
        "box": np.array(box),
    }


def check_share(clip: Clip, what: str, found: np.ndarray) -> None:
    """UserError if less than half of the frames [T] are found."""
    if np.mean(found) < SMALLEST_SHARE:
        share = f"in {np.mean(found):.0%} of the frames" if np.any(found) else "in no frame"
        raise UserError(
            f"{clip.path}: {what} {share}; give a video of one person speaking to the camera, in "
            "one shot"
        )


class _Watch:
    """Makes thumbnails and looks at faces in a thread of its own while faces are being found."""

    def __init__(self):
        self.shape, self._pool, self._waiting = (0, 0), ThreadPoolExecutor(1), []

    def __call__(self, image: np.ndarray, points68: np.ndarray | None) -> None:
        self.shape = image.shape[:2]
        closely = len(self._waiting) % quality.LOOKED_AT == 0
        self._waiting.append(self._pool.submit(_see, image, points68, closely))

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Thumbnails uint8 [T, 24, 24, 3] and what `quality.look` says [T, 2]."""
        thumbs, looks = zip(*(job.result() for job in self._waiting), strict=True)
        self._pool.shutdown()
        return np.stack(thumbs), np.array(looks, np.float32)


def _see(image: np.ndarray, points68, closely: bool) -> tuple[np.ndarray, tuple[float, float]]:
    return shots.thumbnail(image), quality.look(image, points68, closely)


def _detect(_, images: Iterator[np.ndarray], watch: _Watch, blocks) -> tuple[Landmarks, np.ndarray]:
    """The landmarks [T] by MediaPipe, NaN outside the blocks; [T] whether inside."""
    parts, looked = [], []

    def skip(frames: Iterable[np.ndarray]) -> None:
        for image in frames:
            watch(image, None)
            looked.append(False)

    for first, end in blocks:
        skip(islice(images, first - len(looked)))
        parts.append(detect(islice(images, end - first), watch=watch))
        looked += [True] * len(parts[-1].found)
    skip(images)
    looked = np.array(looked, bool)

    def spread(name: str) -> np.ndarray:
        values = np.concatenate([getattr(part, name) for part in parts])
        out = np.full((len(looked), *values.shape[1:]), np.nan, np.float32)
        out[looked] = values
        return out

    found = spread("found") == 1
    others = float(np.mean([part.others for part in parts]))
    arrays = (spread(name) for name in ("points68", "lips79", "blendshapes"))
    return Landmarks(found, *arrays, others, parts[0].detector), looked


def _read_truth(clip: Clip, images, watch: _Watch, _) -> tuple[Landmarks, np.ndarray]:
    """The landmarks of a synthetic clip, in all of it."""
    with np.load(clip.truth) as truth:
        marks = [np.float32(truth[name]) for name in ("points68", "lips79", "blendshapes")]
    for image, points in zip(images, marks[0], strict=True):
        watch(image, points)
    found = np.ones(len(marks[0]), bool)
    return Landmarks(found, *marks, 0.0, "truth of the synthetic speaker"), found


def true_masks(path: Path, size: int) -> Iterator[np.ndarray]:
    """The masks of a synthetic clip as uint8 [size, size], read one by one."""
    with zipfile.ZipFile(path) as archive, archive.open("mask.npy") as stream:
        np.lib.format.read_magic(stream)
        (count, height, width), _, _ = np.lib.format.read_array_header_1_0(stream)
        for _ in range(count):
            mask = np.frombuffer(stream.read(height * width), bool).reshape(height, width)
            yield video.resize(mask.astype(np.uint8) * 255, size)
