"""`t3d evaluate`: how well a trained head does on frames it has not seen, beside its controls.

The talker gets the sound of the split's frames, their recorded poses and the mean illumination of
training; no pixel of theirs. A frame in which no face is found scores worst and is never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import camera as cameras
from t3d import checkpoint, controls, render, report
from t3d import run as runs
from t3d.data import landmarks, video
from t3d.data.parts import write_atomically
from t3d.data.pipeline import SYNC_STEPS, WINDOW, Source, crop_faces, sync_start, window_starts
from t3d.data.prepare import Bars
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.metrics import action_units, image, lips
from t3d.metrics.sync import sync_confidence
from t3d.peers import lpips
from t3d.prior import basis, shell
from t3d.prior.morphable import EXPRESSION_STD
from t3d.run import Run, Speaker
from t3d.speech import syncnet
from t3d.speech.features import mel_window
from t3d.talker import Motion

CHUNK = 25  # images that the image metrics take at once
FINDER_SIZE = 256  # smaller images are enlarged for MediaPipe
BLOCK = 25  # frames that the bootstrap keeps together; a quarter of a split shorter than 4 s
VIEW_FRAMES = 24  # that each other camera is compared on
TURNS = tuple((float(yaw), 0.0) for yaw in (-30, -20, -10, 0, 10, 20, 30)) + ((0.0, 15.0),)
Figures = dict[str, float | str]


@dataclass(frozen=True)
class Marks:
    """What a detector sees in T images: points68 [T, 68, 2] and lips79 [T, 79, 2] pixels, au
    [T, 5] 0 or 1; NaN where it finds no face."""

    points68: np.ndarray
    lips79: np.ndarray
    au: np.ndarray

    @property
    def opening(self) -> np.ndarray:
        """[T] of the mouth, over the eye distance."""
        return lips.mouth_opening(self.points68)


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the pictures it was measured on.

    Attributes:
        figures: flat, 'system/figure' → number, or words where there is none.
        films: system → uint8 [T, s, s, 3]; 'real' is the truth.
        openings: system → [T] mouth opening as the detector sees it; 'truth' is the dataset's.
        turned: uint8 [8, s, s, 3], ours from the angles TURNS.
        sound: [T · 640] of the frames, 16 kHz.
    """

    figures: Figures
    films: dict[str, np.ndarray]
    openings: dict[str, np.ndarray]
    turned: np.ndarray
    sound: np.ndarray


# ---- the dataset of a run


def dataset_of(run: Run, speaker: Speaker, moved_to: str | None = None) -> SpeakerDataset:
    """The dataset that a run learned the speaker from; UserError when it is not there any more."""
    entries = {entry["name"]: entry for entry in checkpoint.read_run(run.workdir)["data"]}
    entry = entries[speaker.name]
    path = Path(moved_to or entry["path"])
    if not path.exists():
        raise UserError(
            f"{path}: the dataset that {run.workdir} was trained on is not there; put it back, or "
            "give its place with --data DIR"
        )
    dataset = SpeakerDataset(path)
    if dataset.meta["source_sha256"] != entry["sha256"]:
        raise UserError(
            f"{path}: is not the dataset that {run.workdir} was trained on (made of another "
            "video); give that one with --data DIR"
        )
    return dataset


# ---- pictures: ours and the controls


def elsewhere(train: np.ndarray, count: int) -> np.ndarray:
    """Training frames [count] whose sound drives the control, from the middle of training on."""
    return train[(len(train) // 2 + np.arange(count)) % len(train)]


def _draw(run: Run, speaker: Speaker, motion: Motion, poses, views=None) -> dict[str, np.ndarray]:
    """{nerf, standardised: uint8 [T, s, s, 3]} from the recorded camera or from `views`."""
    views = np.broadcast_to(np.eye(4, dtype=np.float32), poses.shape) if views is None else views
    parts = list(runs.render_frames(run, speaker, motion, poses, views))
    return {name: np.concatenate([part[name] for part in parts]) for name in render.OUTPUTS}


def _pictures(dataset: SpeakerDataset, frames: np.ndarray, size: int) -> np.ndarray:
    return np.stack([dataset.picture(f, "head", size) for f in frames])


def _mean_warp(run: Run, dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
    track, train = dataset.track, dataset.frames("train")
    some = train[:: -(-len(train) // controls.MOST_FRAMES)]
    place = partial(
        controls.rigid_points,
        basis.load(dataset.meta["prior"]),
        track["identity"],
        track["intrinsics"],
    )
    poses = track["head_to_world"]
    pictures = _pictures(dataset, some, run.config.size)
    return controls.warped_mean(pictures, place(poses[some]), place(poses[frames]))


def _nearest(
    run: Run, dataset: SpeakerDataset, frames: np.ndarray, listen: bool = True
) -> np.ndarray:
    """The training frame nearest in pose and, if `listen`, sound to each frame."""
    track, train = dataset.track, dataset.frames("train")
    pose = np.concatenate([track["rotvec"], track["translation"]], 1)

    def features(chosen: np.ndarray) -> list[np.ndarray]:
        windows = runs.mel_windows(dataset.mel, chosen, run.config.mel_steps)
        sound = [windows.reshape(len(chosen), -1)] if listen else []
        return [pose[chosen], *sound]

    chosen = train[controls.nearest(features(train), features(frames))]
    return _pictures(dataset, chosen, run.config.size)


def _plain_controls(run, dataset, frames, truth: np.ndarray, masks: np.ndarray) -> Figures:
    """SSIM over the head of what is too plain for a column: the mean frame, the nearest pose."""
    train = dataset.frames("train")
    some = train[:: -(-len(train) // controls.MOST_FRAMES)]
    mean = _pictures(dataset, some, run.config.size).mean(0).round().astype(np.uint8)
    films = {
        "mean": np.broadcast_to(mean, truth.shape),
        "nearest_pose": _nearest(run, dataset, frames, listen=False),
    }
    return {
        f"{name}/ssim_head": float(image_figures(pictures, truth, masks)["ssim_head"].mean())
        for name, pictures in films.items()
    }


# ---- detectors


def detector_of(dataset: SpeakerDataset) -> str:
    """What looks for faces in rendered frames: MediaPipe where the dataset was made by it."""
    return "mediapipe" if dataset.meta["detector"].startswith("mediapipe") else "encoder"


def find_faces(run: Run, dataset: SpeakerDataset, frames: np.ndarray, images) -> Marks:
    """Looks for the face in the images uint8 [T, s, s, 3] of frames [T]."""
    if detector_of(dataset) == "mediapipe":
        return _by_mediapipe(images)
    return _by_encoder(run, dataset, dataset.track["face_box"][frames], images)


def _by_mediapipe(images: np.ndarray) -> Marks:
    size = images.shape[1]
    side = max(size, FINDER_SIZE)
    seen = landmarks.detect(video.resize(i, side) if side > size else i for i in images)
    au, _ = action_units.from_blendshapes(
        seen.blendshapes, tuple(landmarks.BLENDSHAPES), seen.points68
    )
    return Marks(seen.points68 * size / side, seen.lips79 * size / side, au)


def _by_encoder(run: Run, dataset: SpeakerDataset, boxes: np.ndarray, images) -> Marks:
    read = jax.jit(partial(run.talker.encoder.apply, run.params["prior"]))
    seen = runs.in_batches(lambda f: read(f.astype(jnp.float32) / 255), crop_faces(images, boxes))
    corner = boxes[:, None, :2] - boxes[:, None, 2:] / 2
    points = (corner + seen["points"] * boxes[:, None, 2:]) * images.shape[1]
    names = basis.load(dataset.meta["prior"]).expression_names
    weights = np.clip(seen["expression"][:, : len(names)] * EXPRESSION_STD, 0, 1)
    au, _ = action_units.from_blendshapes(weights, names, points[:, :68])
    return Marks(points[:, :68], points[:, 68:], au)


def true_marks(dataset: SpeakerDataset, frames: np.ndarray, size: int) -> Marks:
    """The dataset's own points and labels; NaN where it found no face."""
    track = dataset.track
    known = np.where(track["found"][frames], 1.0, np.nan)
    return Marks(
        track["points68"][frames] * size * known[:, None, None],
        track["lips79"][frames] * size * known[:, None, None],
        track["au"][frames] * known[:, None],
    )


# ---- figures


def image_figures(images: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> dict:
    """SSIM and PSNR of each of T images, over the head and (SSIM) over all.

    Args:
        images, truth: uint8 [T, s, s, 3] on white; masks: [T, s, s] in [0, 1], of the true head.

    Returns:
        ssim_head, ssim, psnr_head: [T].
    """

    def some(start: int) -> tuple:
        rows = slice(start, start + CHUNK)
        a, b = images[rows] / 255.0, truth[rows] / 255.0
        edge = slice(image.RADIUS, -image.RADIUS)
        alike = image.ssim_map(a, b)[:, edge, edge].mean(-1)
        inside, mask = masks[rows, edge, edge], masks[rows]
        squared = (np.square(a - b).mean(-1) * mask).sum((1, 2)) / mask.sum((1, 2))
        head = (alike * inside).sum((1, 2)) / inside.sum((1, 2))
        with np.errstate(divide="ignore"):
            return head, alike.mean((1, 2)), -10 * np.log10(squared)

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(some, range(0, len(images), CHUNK)))
    names = ("ssim_head", "ssim", "psnr_head")
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts))}


def face_figures(marks: Marks, truth: Marks) -> tuple[Figures, np.ndarray]:
    """LMD-79, AU accuracy, mouth opening and share of faces found; and the aligned LMD [T]."""
    off = lips.lmd(marks.points68, truth.points68, marks.lips79, truth.lips79)
    au = action_units.au_accuracy(marks.au, truth.au)
    mouths = lips.against_truth(truth.opening, marks.opening)
    low, high = _interval(lips.pearson, *mouths)
    figures = _with_interval("lmd", off.aligned) | {
        "lmd_px": float(np.nanmean(off.pixels)),
        "mouth_r": lips.pearson(*mouths),
        "mouth_r_low": low,
        "mouth_r_high": high,
        "found": float(np.isfinite(marks.opening).mean()),
        "au_accuracy": au.mean,
        "au_balanced": au.balanced,
    }
    return figures, off.aligned


def _interval(figure: Callable[..., float], *series: np.ndarray) -> tuple[float, float]:
    return lips.block_bootstrap(figure, *series, block=min(BLOCK, max(1, len(series[0]) // 4)))


def _with_interval(name: str, values: np.ndarray) -> Figures:
    low, high = _interval(np.nanmean, values)
    return {name: float(np.nanmean(values)), f"{name}_low": low, f"{name}_high": high}


class Judge:
    """The SyncNet that no loss has seen, with the sound of a split's frames."""

    def __init__(self, run: Run, dataset: SpeakerDataset, frames: np.ndarray):
        net, params = run.talker.judge, run.params["sync"]["judge"]
        self._look = jax.jit(partial(net.apply, params, method="face_embedding"))
        self._hear = jax.jit(partial(net.apply, params, method="audio_embedding"))
        self._dataset, self._boxes = dataset, dataset.track["face_box"][frames]
        starts, _ = window_starts(frames)
        self._rows = np.searchsorted(frames, starts)
        sounds = [mel_window(dataset.mel, sync_start(int(s)), SYNC_STEPS) for s in starts]
        self._sound = runs.in_batches(self._hear, np.stack(sounds)) if sounds else None

    def figures(self, images: np.ndarray) -> Figures:
        """Confidence, distance and offset (frames) of images uint8 [T, s, s, 3] and the sound."""
        if self._sound is None:
            return {"sync_confidence": "not available: no five frames in a row"}
        faces = crop_faces(images, self._boxes)
        windows = self._rows[:, None] + np.arange(WINDOW)
        face = runs.in_batches(lambda r: self._look(faces[r].astype(np.float32) / 255), windows)
        sync = sync_confidence(face, self._sound)
        return {
            "sync_confidence": sync.confidence,
            "sync_distance": sync.distance,
            "sync_offset": sync.offset,
        }

    def accuracy(self) -> float | str:
        """How often it tells the right sound from another one on real validation frames."""
        fields = ("faces5", "mel16", "mel16_shifted")
        try:
            batches = list(Source([self._dataset], "validation").even_batches(fields, 32, 4))
        except ValueError as error:
            return f"not available: {error}"
        right = []
        for batch in batches:
            face = self._look(batch["faces5"])
            near, far = (
                syncnet.cosine(face, self._hear(batch[name])) for name in ("mel16", "mel16_shifted")
            )
            right.append(np.mean(near > far))
        return float(np.mean(right))


def _lpips(images: np.ndarray, truth: np.ndarray) -> float | str:
    weights = lpips.available()
    if isinstance(weights, str):
        return weights
    distance = runs.in_batches(
        lambda a, b: lpips.distance(
            weights, a.astype(np.float32) / 255, b.astype(np.float32) / 255
        ),
        images,
        truth,
    )
    return float(distance.mean())


def gain_figures(truth: Marks, ours: Marks, other: Marks, lmd: dict[str, np.ndarray]) -> Figures:
    """What the true sound is worth against another one: LMD lower by %, mouth r higher by.

    Args:
        lmd: aligned LMD [T] of 'ours' and 'other_audio'.
    """

    def lower(a: np.ndarray, b: np.ndarray) -> float:
        return float(100 * (1 - np.nanmean(a) / np.nanmean(b)))

    def above(t: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        return lips.pearson(t, a) - lips.pearson(t, b)

    distances = lmd["ours"], lmd["other_audio"]
    known, mine = lips.against_truth(truth.opening, ours.opening)
    mouths = known, mine, lips.against_truth(truth.opening, other.opening)[1]
    figures = {"gain/lmd": lower(*distances), "gain/mouth_r": above(*mouths)}
    for name, figure, series in (("lmd", lower, distances), ("mouth_r", above, mouths)):
        low, high = _interval(figure, *series)
        figures |= {f"gain/{name}_low": low, f"gain/{name}_high": high}
    return figures


# ---- other cameras of a synthetic speaker


def view_figures(
    run: Run,
    speaker: Speaker,
    motion: Motion,
    frames: np.ndarray,
    folder: Path,
) -> Figures:
    """Our head from the other cameras of a synthetic speaker, against what those filmed.

    Cameras and poses are the true ones; compared is what the true bare head covers (face and skull,
    no hair outside it), both images on white.

    Args:
        motion: of the frames [T]; folder: of `t3d synthesize`.
    """
    some = np.unique(np.linspace(0, len(frames) - 1, VIEW_FRAMES).astype(int))
    with np.load(folder / "truth.npz") as stored:
        truth = {name: stored[name] for name in stored.files}
    chosen, size = frames[some], run.config.size
    poses = cameras.head_pose(truth["rotvec"][chosen], truth["translation"][chosen])
    figures: Figures = {}
    for k, yaw in enumerate(truth["view_yaw"]):
        views = np.broadcast_to(truth["view_camera_to_world"][k], poses.shape).astype(np.float32)
        masks = _bare_heads(truth, chosen, poses, views[0], size)
        seen = replace(speaker, intrinsics=truth["intrinsics"])
        drawn = _draw(run, seen, jax.tree.map(lambda x: x[some], motion), poses, views)
        filmed = _filmed(folder / f"view_{k}.mp4", chosen, size)
        compared = image_figures(
            *(_on_white(i, masks) for i in (drawn["standardised"], filmed)), masks
        )
        figures[f"view_{k}/yaw"] = float(yaw)
        figures |= {
            f"view_{k}/{name}": float(compared[name].mean()) for name in ("ssim_head", "psnr_head")
        }
    return figures


def _bare_heads(truth, frames, poses, view, size: int) -> np.ndarray:
    """[n, size, size] 1 where the true 3DMM is seen."""
    head = shell.make_shell(basis.load(str(truth["prior"])), truth["identity"], 0.0)
    camera = cameras.Camera(truth["intrinsics"], view)
    depth = [
        shell.guide(head, truth["expression"][f], pose, camera, size)["depth"]
        for f, pose in zip(frames, poses)
    ]
    return np.isfinite(depth).astype(np.float64).reshape(-1, size, size)


def _filmed(path: Path, frames: np.ndarray, size: int) -> np.ndarray:
    wanted = set(frames.tolist())
    images = (i for k, i in enumerate(video.read_frames(path)) if k in wanted)
    return np.stack([video.resize(i, size) for i in images])


def _on_white(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks[..., None] > 0.5, images, 255).astype(np.uint8)


# ---- all of it


def evaluate(run: Run, dataset: SpeakerDataset, split: str = "test") -> Figures:
    """Figures of a run on a split of its dataset, flat: 'system/figure' → number or words."""
    return measure(run, dataset, split).figures


def measure(
    run: Run, dataset: SpeakerDataset, split: str = "test", views: Path | None = None
) -> Evaluation:
    """Renders a split's frames, and measures them and the controls.

    Args:
        split: test or validation; of a clip under 30 s that of fold 0.
        views: folder of the synthetic speaker that the dataset was made of, to compare its other
            cameras, too.

    Raises:
        UserError: the split has no frames; MediaPipe cannot be loaded where it is needed.
    """
    frames = dataset.frames(split)
    if not len(frames):
        raise UserError(f"{dataset.path}: its {split} split has no frames; use a longer clip")
    speaker = render.speaker_of(run, dataset.name)
    drive = partial(runs.motion_of, run, speaker, dataset.mel)
    motion = drive(frames)
    poses = dataset.track["head_to_world"][frames]
    size = run.config.size
    films = {"real": _pictures(dataset, frames, size)}
    with Bars() as bars:
        update = bars.bar("rendering", 2)
        drawn = _draw(run, speaker, motion, poses)
        films |= {"ours": drawn["standardised"], "nerf": drawn["nerf"]}
        update(1, 2)
        other = drive(elsewhere(dataset.frames("train"), len(frames)))
        films["other_audio"] = _draw(run, speaker, other, poses)["standardised"]
        update(2, 2)
        films["mean_warp"] = _mean_warp(run, dataset, frames)
        films["nearest"] = _nearest(run, dataset, frames)
        ordered = {name: films[name] for name in report.SYSTEMS}
        figures, marks = _figures(run, dataset, frames, ordered, bars)
        if views:
            figures |= view_figures(run, speaker, motion, frames, views)
    openings = {name: seen.opening for name, seen in marks.items()}
    sound = np.pad(dataset.audio(), (0, render.RATE))
    step = render.RATE // render.FPS
    return Evaluation(
        figures=_plain(figures | _setting(run, dataset, split, frames)),
        films=ordered,
        openings=openings,
        turned=_turned(run, speaker, motion, int(np.argmax(np.nan_to_num(openings["truth"])))),
        sound=np.concatenate([sound[f * step : (f + 1) * step] for f in frames]),
    )


def _figures(run, dataset, frames, films, bars: Bars) -> tuple[Figures, dict[str, Marks]]:
    """Figures of all films, and what the detector saw in them ('truth': the dataset's marks)."""
    size = run.config.size
    masks = np.stack([dataset.picture(f, "mask", size) for f in frames]) / 255.0
    marks = {"truth": true_marks(dataset, frames, size)}
    judge = Judge(run, dataset, frames)
    figures: Figures = {"judge/validation_accuracy": judge.accuracy()}
    figures |= _plain_controls(run, dataset, frames, films["real"], masks)
    lmd = {}
    for name in bars.over("measuring", films, len(films)):
        alike = image_figures(films[name], films["real"], masks)
        marks[name] = find_faces(run, dataset, frames, films[name])
        faces, lmd[name] = face_figures(marks[name], marks["truth"])
        own = _with_interval("ssim_head", alike["ssim_head"]) | faces
        own |= {n: float(alike[n].mean()) for n in ("ssim", "psnr_head")}
        own |= judge.figures(films[name])
        own["lpips"] = _lpips(films[name], films["real"])
        figures |= {f"{name}/{key}": value for key, value in own.items()}
    figures["real/psnr_head"] = "identical"
    return figures | gain_figures(marks["truth"], marks["ours"], marks["other_audio"], lmd), marks


def _setting(run: Run, dataset: SpeakerDataset, split: str, frames: np.ndarray) -> Figures:
    """What the figures are about."""
    shown = action_units.au_accuracy(dataset.track["au"][frames], dataset.track["au"][frames])
    return {
        "speaker": dataset.name,
        "split": split if "train" in dataset.ranges else f"{split} of fold 0",
        "frames": len(frames),
        "size": run.config.size,
        "detector": detector_of(dataset),
        "judge": "trained here, seen by no loss",
        "au/absent": ", ".join(shown.absent) or "none",
        "au/constant": ", ".join(shown.constant) or "none",
    }


def _plain(figures: Figures) -> Figures:
    """The same, sorted and fit for JSON."""

    def plain(value) -> float | int | str:
        if isinstance(value, (str, int)):
            return value
        return round(float(value), 6) if np.isfinite(value) else "not available"

    return {name: plain(value) for name, value in sorted(figures.items())}


def _turned(run: Run, speaker: Speaker, motion: Motion, moment: int) -> np.ndarray:
    """Ours at one moment from the angles TURNS, uint8 [8, s, s, 3]."""
    parts = [render.pose_track(speaker, 1, f"yaw={yaw:g},pitch={pitch:g}") for yaw, pitch in TURNS]
    poses, views = (np.concatenate(arrays) for arrays in zip(*parts))
    at = jax.tree.map(lambda x: np.repeat(x[moment : moment + 1], len(TURNS), 0), motion)
    return _draw(run, speaker, at, poses, views)["standardised"]


def write(folder: Path, run: Run, found: Evaluation) -> None:
    """Writes sheet.png, report.html and, last, metrics.json into a folder."""
    report.write(
        folder,
        found.figures,
        found.films,
        found.openings,
        found.turned,
        TURNS,
        found.sound,
        checkpoint.read_run(run.workdir),
    )
    write_json(folder / "metrics.json", found.figures)


def write_json(path: Path, figures: Figures) -> None:
    """Writes flat figures."""
    write_atomically(path, lambda p: p.write_text(json.dumps(figures, indent=1) + "\n"))


def evaluate_command(args) -> None:
    """`t3d evaluate`."""
    run = runs.open_run(args.workdir)
    speaker = render.speaker_of(run, args.speaker)
    dataset = dataset_of(run, speaker, args.data)
    found = measure(run, dataset, args.split)
    write(run.workdir, run, found)
    if args.json:
        write_json(Path(args.json), found.figures)
    report.show(found.figures)
    for name in ("sheet.png", "report.html", "metrics.json"):
        print(run.workdir / name)
