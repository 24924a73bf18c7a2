"""`t3d evaluate --pred A --truth B`: how close any video of a talking head is to the real one.

No run of ours is needed. Both videos are read at 25 frames a second on their own clocks, the first
is brought to the size of the second, and both are cut to one square about the real head, hair
included. Images are compared over that square, background and all, and over the head alone, which
is cut out of the real video. A frame in which no face is found scores worst and is never dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from t3d import assets, judges, measure, report
from t3d.data import framing, landmarks, matting, video
from t3d.data.landmarks import BLENDSHAPES, Landmarks
from t3d.data.prepare import SMALLEST_SHARE, Bars
from t3d.data.speaker_dataset import on_white
from t3d.errors import UserError
from t3d.evaluate import SERIES, judge_figures, plain, write_json
from t3d.judges import Judge
from t3d.measure import NO_FIGURE, Figures, Marks, Series, Truth
from t3d.metrics import action_units
from t3d.peers import lpips
from t3d.prior import gaps

LARGEST = 512  # pixels: side of the square that is compared
UNLIKE = 0.02  # of the aspect ratio that two videos may differ by
SLACK = 1.0  # seconds that one may be longer by
CROWD = 0.05  # share of frames with a second face above which it is told
LPIPS_FRAMES, LPIPS_APART = 50, 5  # frames it is taken of if there are so many; most left between
STEP = video.RATE // video.FPS  # samples of a frame


@dataclass(frozen=True)
class Square:
    """What is cut out of the frames of both videos.

    shape: (height, width) of the real video's frames; box: (cx, cy, side) of the square in them,
    whole pixels; side: pixels that it is brought to.
    """

    shape: tuple[int, int]
    box: tuple[float, float, int]
    side: int

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] -> uint8 [side, side, 3]."""
        return video.crop(frame, self.box, self.side)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] from pixels of the frame to pixels of the square."""
        cx, cy, side = self.box
        return (points - (np.array([cx, cy]) - side / 2)) * self.side / side


@dataclass(frozen=True)
class Film:
    """The head's square of one video.

    path: of the video; images: uint8 [T, s, s, 3]; seen: the face in pixels of the square; sound:
    float32 at 16 kHz, sample 0 = frame 0, or None.
    """

    path: Path
    images: np.ndarray
    seen: Landmarks
    sound: np.ndarray | None

    def first(self, count: int) -> Film:
        """The same, trimmed at the end to `count` frames and exactly their sound."""
        arrays = ("found", "points68", "lips79", "blendshapes")
        seen = replace(self.seen, **{name: getattr(self.seen, name)[:count] for name in arrays})
        sound = self.sound
        if sound is not None:
            sound = np.pad(sound[: count * STEP], (0, max(0, count * STEP - len(sound))))
        return Film(self.path, self.images[:count], seen, sound)

    @property
    def boxes(self) -> np.ndarray:
        """[T, 3] face crops (cx, cy, side), fractions of the square's side."""
        points = gaps.bridge(self.seen.points68, self.seen.found)
        return framing.face_boxes(points / self.images.shape[1])

    @property
    def marks(self) -> Marks:
        """The face with its action units, by the detector's own blendshapes."""
        au, _ = action_units.from_blendshapes(
            self.seen.blendshapes, tuple(BLENDSHAPES), self.seen.points68
        )
        return Marks(self.seen.points68, self.seen.lips79, au)


@dataclass(frozen=True)
class Pair:
    """Two videos made comparable.

    films: 'pred', 'reencoded' (the real one through our own H.264 and AAC: what no video written
    to a file does better than) and 'truth'; masks: float32 [T, s, s] in [0, 1], the real head;
    notes: what was done to the videos.
    """

    films: dict[str, Film]
    masks: np.ndarray
    notes: tuple[str, ...]


def load_pair(pred, truth) -> Pair:
    """Reads two videos, and the second one's re-encoding, and finds the faces and the real head.

    Raises:
        UserError: one is no video, shorter than 1 s, more than 1 s longer than the other, of
            another shape, or shows no face; MediaPipe or its models are missing.
    """
    pred, truth = Path(pred), Path(truth)
    infos = [video.probe(path) for path in (pred, truth)]
    _check_lengths([(path, info.duration) for path, info in zip((pred, truth), infos)])
    notes = _shape_notes(pred, truth)
    for name in ("face_landmarker", "deeplab_v3"):
        assets.find(name)  # said now, not when it is wanted
    with Bars() as bars, tempfile.TemporaryDirectory() as folder:
        count = round(infos[1].duration * video.FPS)
        frames = bars.over("the real faces", video.read_frames(truth), count)
        seen, shape = _find(frames)
        _check_faces(truth, seen, SMALLEST_SHARE)
        square = _square(seen, shape)
        films = {"truth": _cut(truth, square, seen)}
        masks = _masks(films["truth"], bars)
        films["pred"], frames_of_pred = _read(pred, square, len(seen.found), bars)
        _check_faces(pred, films["pred"].seen, 0.0)
        copy = video.write_video(
            Path(folder) / "copy.mp4", video.read_frames(truth), films["truth"].sound
        )
        films["reencoded"], _ = _read(copy, square, len(seen.found), bars, copied=True)
    counts = [(pred, frames_of_pred), (truth, len(seen.found))]
    count = min(count for _, count in counts)
    ordered = {name: films[name].first(count) for name in ("pred", "reencoded", "truth")}
    notes += _trim_notes(counts) + _crowd_notes(truth, seen)
    return Pair(ordered, masks[:count], tuple(notes))


def _check_lengths(seconds: list[tuple[Path, float]]) -> None:
    """UserError unless both videos last a second or more, and about equally long."""
    for path, length in seconds:
        if length < video.SHORTEST - 0.5 / video.FPS:
            raise UserError(f"{path}: lasts {length:.2f} s; give at least {video.SHORTEST:.0f} s")
    (shorter, least), (longer, most) = sorted(seconds, key=lambda item: item[1])
    if most - least > SLACK:
        raise UserError(
            f"{longer}: lasts {most:.2f} s but {shorter} {least:.2f} s; cut out the part that "
            f"belongs to the other: ffmpeg -ss START -t {least:.2f} -i {longer} cut.mp4"
        )


def _shape_notes(pred: Path, truth: Path) -> list[str]:
    """What is done about another size or rate; UserError when the shapes differ."""
    (height, width), wanted = (next(video.read_frames(path)).shape[:2] for path in (pred, truth))
    if abs(width / height * wanted[0] / wanted[1] - 1) > UNLIKE:
        raise UserError(
            f"{pred}: is {width} × {height} but {truth} {wanted[1]} × {wanted[0]}, another shape; "
            "crop one as the other was"
        )
    notes = []
    if (height, width) != wanted:
        notes.append(f"{pred}: resized from {width} × {height} to {wanted[1]} × {wanted[0]}.")
    for path in (pred, truth):
        fps = video.probe(path).fps
        if abs(fps - video.FPS) > 0.01:
            notes.append(f"{path}: has {fps:.2f} frames a second, read at {video.FPS}.")
    return notes


def _trim_notes(counts: list[tuple[Path, int]]) -> list[str]:
    (_, least), (longer, most) = sorted(counts, key=lambda item: item[1])
    left = most - least
    return [f"{longer}: its last {left} of {most} frames are left out."] if left else []


def _crowd_notes(truth: Path, seen: Landmarks) -> list[str]:
    if seen.others <= CROWD:
        return []
    return [f"{truth}: a second face is in {seen.others:.0%} of the frames; the larger is taken."]


def _check_faces(path: Path, seen: Landmarks, least: float) -> None:
    """UserError when a face is found nowhere, or in a smaller share of the frames than `least`."""
    share = seen.found.mean()
    if share == 0 or share < least:
        where = f"in {share:.0%} of the frames" if share else "in no frame"
        raise UserError(
            f"{path}: a face was found {where}; give a video of one person speaking to the camera"
        )


def _find(frames: Iterator[np.ndarray]) -> tuple[Landmarks, tuple[int, int]]:
    """The faces of frames uint8 [h, w, 3], in their pixels, and (h, w)."""
    first = next(frames)
    height, width = shape = first.shape[:2]
    scale = max(1.0, landmarks.FINDER_SIZE / min(shape))
    larger = round(height * scale), round(width * scale)

    def enlarged() -> Iterator[np.ndarray]:
        for frame in chain([first], frames):
            yield video.resize(frame, larger) if scale > 1 else frame

    seen = landmarks.detect(enlarged())
    back = np.array([width / larger[1], height / larger[0]])
    return replace(seen, points68=seen.points68 * back, lips79=seen.lips79 * back), shape


def _square(seen: Landmarks, shape: tuple[int, int]) -> Square:
    """The head's square, on whole pixels so that nothing is resampled unless it is large."""
    height, width = shape
    cx, cy, side = framing.head_crop(seen.points68[seen.found], width, height)
    side = 2 * round(side / 2)
    corner = np.round([cx - side / 2, cy - side / 2]) + side / 2
    return Square(shape, (*corner.tolist(), side), min(LARGEST, side))


def _in_square(seen: Landmarks, square: Square) -> Landmarks:
    points = {name: square.points(getattr(seen, name)) for name in ("points68", "lips79")}
    return replace(seen, **{n: p.astype(np.float32) for n, p in points.items()})


def _cut(path: Path, square: Square, seen: Landmarks) -> Film:
    """The film of the real video, whose faces are known."""
    images = _space(len(seen.found), square.side, 3)
    for k, frame in enumerate(islice(video.read_frames(path), len(images))):
        images[k] = square.cut(frame)
    return Film(path, images, _in_square(seen, square), _sound(path))


def _read(
    path: Path, square: Square, most: int, bars: Bars, copied: bool = False
) -> tuple[Film, int]:
    """The film of another video, at most `most` frames of it, and how many frames it has.

    Args:
        copied: it is the real video, written anew by us.
    """
    images, whole = _space(most, square.side, 3), video.read_frames(path)

    def frames() -> Iterator[np.ndarray]:
        for k, frame in enumerate(islice(whole, most)):
            if copied:  # odd sizes were written with a row or column more
                frame = frame[: square.shape[0], : square.shape[1]]
            elif frame.shape[:2] != square.shape:
                frame = video.resize(frame, square.shape)
            images[k] = square.cut(frame)
            yield frame

    seen, _ = _find(bars.over(path.name, frames(), most))
    film = Film(path, images[: len(seen.found)], _in_square(seen, square), _sound(path))
    return film, len(film.images) + sum(1 for _ in whole)


def _space(count: int, side: int, *channels: int, kind: type = np.uint8) -> np.ndarray:
    """Zeros [count, side, side, …] on disk: minutes of video do not fit into memory."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, kind, "w+", shape=(count, side, side, *channels))


def _sound(path: Path) -> np.ndarray | None:
    return video.read_audio(path) if video.probe(path).sound_rate else None


def _masks(truth: Film, bars: Bars) -> np.ndarray:
    """float32 [T, s, s] in [0, 1]: the head in the real frames."""
    count, side = truth.images.shape[:2]
    masks = _space(count, side, kind=np.float32)
    images = bars.over("the real head", truth.images, count)
    for k, head in enumerate(matting.head_masks(images, truth.seen.points68)):
        masks[k] = head
    return masks


# ---- figures


@dataclass(frozen=True)
class Comparison:
    """What was measured: figures, flat 'system/figure' → number or words, and their series."""

    figures: Figures
    series: dict[str, Series]


def compare(
    pair: Pair, judge: Judge | str, labels: dict[str, np.ndarray] | None = None
) -> Comparison:
    """All figures of a generated video, and of the controls that need no training.

    The judge is shown heads on white, as it is in the evaluation of a run.

    Args:
        judge: of lip sync, or why there is none.
        labels: AUs [T, 5] of 'pred' and 'truth' out of other hands; ours if None.
    """
    films, count = pair.films, len(pair.masks)
    judge = _shown_on_white(judge, pair.masks)
    truth = _truth(pair, labels)
    series, weights = {}, lpips.available()
    with Bars() as bars:
        for name in bars.over("measuring", ("pred", "reencoded"), 2):
            series[name] = _series(films[name], truth, judge, weights)
    series["truth"] = _own_series(series["pred"], films["truth"], truth, judge)
    if labels:
        series["pred"]["au"] = labels["pred"]
        series["reencoded"]["au"] = np.array(f"{NO_FIGURE}: no table of the re-encoded video")
    found: Figures = {
        "speaker": f"{films['pred'].path.name} against {films['truth'].path.name}",
        "frames": count,
        "size": films["truth"].images.shape[1],
        "detector": "mediapipe",
    }
    for name, measured in series.items():
        found |= {f"{name}/{key}": value for key, value in measure.figures(measured).items()}
    shown = action_units.au_accuracy(truth.marks.au, truth.marks.au)
    found["au/absent"] = ", ".join(shown.absent) or "none"
    found["au/constant"] = ", ".join(shown.constant) or "none"
    found["au/labels"] = "openface" if labels else "built in"
    found |= _proof(judge, films["truth"], truth)
    found |= {f"note/{k}": text for k, text in enumerate(_notes(pair, weights))}
    return Comparison(plain(found), series)


def _notes(pair: Pair, weights: lpips.Weights | str) -> list[str]:
    notes = list(pair.notes)
    every = lpips_every(len(pair.masks))
    if every > 1 and not isinstance(weights, str):
        notes.append(f"LPIPS is taken of one frame in {every}.")
    if pair.films["truth"].sound is None:
        notes.append(f"{pair.films['truth'].path}: has no sound to prove the judge on.")
    return notes


def _truth(pair: Pair, labels: dict[str, np.ndarray] | None) -> Truth:
    film = pair.films["truth"]
    marks = replace(film.marks, au=labels["truth"]) if labels else film.marks
    sound = np.zeros(0, np.float32) if film.sound is None else film.sound
    return Truth(film.images, pair.masks, marks, film.boxes, sound, np.arange(len(film.images)))


def _series(film: Film, truth: Truth, judge: Judge | str, weights) -> Series:
    """One film beside the truth; lips are judged in its own face boxes and with its own sound."""
    beside, judge = replace(truth, boxes=film.boxes), _hearing(judge, film)
    every = lpips_every(len(film.images))
    return measure.series_of(film.images, beside, film.marks, judge, weights, film.sound, every)


def _own_series(like: Series, film: Film, truth: Truth, judge: Judge | str) -> Series:
    """The real film beside itself: only what it does not share with itself is measured."""
    judge = _hearing(judge, film)
    if isinstance(judge, str):
        sync = np.array(judge)
    else:
        sync = judges.sync_rows(judge, film.images, film.boxes, film.sound, truth.frames)
    found = np.isfinite(truth.marks.opening).astype(float)
    return dict.fromkeys(like, np.array("identical")) | {"sync": sync, "found": found}


def _hearing(judge: Judge | str, film: Film) -> Judge | str:
    """The judge, or why it cannot judge this film."""
    if film.sound is None and not isinstance(judge, str):
        return f"{NO_FIGURE}: {film.path} has no sound"
    return judge


def lpips_every(count: int) -> int:
    """LPIPS, by far the slowest figure, is taken of every how many of `count` frames."""
    return int(np.clip(count // LPIPS_FRAMES, 1, LPIPS_APART))


def _shown_on_white(judge: Judge | str, masks: np.ndarray) -> Judge | str:
    """The judge, which then sees the heads [T, s, s] of the films alone."""
    if isinstance(judge, str):
        return judge

    def look(images: np.ndarray, boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        heads = _space(len(images), images.shape[1], 3)
        for k, (image, mask) in enumerate(zip(images, masks, strict=True)):
            heads[k] = on_white(image, np.round(255 * mask).astype(np.uint8))
        return judge.look(heads, boxes, rows)

    return replace(judge, look=look)


def _proof(judge: Judge | str, film: Film, truth: Truth) -> Figures:
    hearing = _hearing(judge, film)
    if isinstance(hearing, str) and not isinstance(judge, str):
        return {"judge/name": judge.name, "judge/proved": hearing}
    return judge_figures(judge, truth)


def openface_labels(paths: dict[str, str], pair: Pair) -> dict[str, np.ndarray]:
    """AUs [T, 5] of OpenFace's tables, {'pred': CSV, 'truth': CSV}, NaN where there are none.

    Raises:
        UserError: a table cannot be read, or is more than 1 s longer or shorter than its video.
    """
    labels = {}
    for name, path in paths.items():
        film = pair.films[name]
        rows, count = action_units.read_openface(path, fps=video.FPS), len(film.images)
        if abs(len(rows) - count) > SLACK * video.FPS:
            raise UserError(
                f"{path}: is of {len(rows) / video.FPS:.1f} s but {film.path} lasts "
                f"{count / video.FPS:.1f} s; run OpenFace's FeatureExtraction on that video"
            )
        padding = (0, max(0, count - len(rows)))
        labels[name] = np.pad(rows[:count], (padding, (0, 0)), constant_values=np.nan)
    return labels


# ---- files and the command


def write(folder: Path, pair: Pair, found: Comparison) -> None:
    """Writes sheet.png, report.html, series.npz and, last, metrics.json into a folder."""
    films = {name: film.images for name, film in pair.films.items()}
    heard = [f.sound for n in ("truth", "pred") if (f := pair.films[n]).sound is not None]
    count = len(pair.masks)
    page = report.Page(
        figures=found.figures,
        films=films,
        series=found.series,
        frames=np.arange(count),
        sound=heard[0] if heard else np.zeros(count * STEP, np.float32),
    )
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder, page)
    about = {name: str(pair.films[name].path) for name in ("pred", "truth")}
    measure.save_series(folder / SERIES, found.series, page.frames, **about)
    write_json(folder / "metrics.json", found.figures)


def two_videos_command(args) -> None:
    """`t3d evaluate --pred FILE --truth FILE`."""
    tables = {"pred": args.openface_pred, "truth": args.openface_truth}
    if any(tables.values()) and not all(tables.values()):
        raise UserError(
            "--openface-pred and --openface-truth belong together: give OpenFace's tables of both"
        )
    judge = judges.of_folder(args.judge) if args.judge else judges.best(None)
    for path in filter(None, tables.values()):
        action_units.read_openface(path)  # what is wrong with it is said now
    pair = load_pair(args.pred, args.truth)
    labels = openface_labels(tables, pair) if all(tables.values()) else None
    found = compare(pair, judge, labels)
    if args.json:
        write_json(Path(args.json), found.figures)
    report.show(found.figures)
    if args.out:
        write(Path(args.out), pair, found)
        for name in ("sheet.png", "report.html", "metrics.json", SERIES):
            print(Path(args.out) / name)
