"""`t3d evaluate`: how well a trained head does on frames it has not seen, beside its controls.

The talker gets the sound of the split's frames, their recorded poses and the mean illumination of
training; no pixel of theirs. A rendered frame in which no face is found scores worst and is never
dropped; a real one has no truth to be held against, and is left out and counted.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from t3d import checkpoint, controls, judges, render, report, worst
from t3d import measure as measures
from t3d import run as runs
from t3d import views as turned
from t3d.data.landmarks import BLENDSHAPES
from t3d.data.parts import write_atomically
from t3d.data.prepare import Bars
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.judges import Judge
from t3d.measure import Figures, Marks, Series, Truth
from t3d.metrics import action_units, image, uncertainty
from t3d.peers import lpips
from t3d.prior import basis
from t3d.run import Run, Speaker
from t3d.talker import Motion

SERIES = "series.npz"  # beside metrics.json
TURNS = tuple((float(yaw), 0.0) for yaw in (-30, -20, -10, 0, 10, 20, 30)) + ((0.0, 15.0),)
# What two evaluations must agree in before they are compared.
ALIKE = ("dataset", "split", "size", "detector")


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the pictures it was measured on.

    Attributes:
        figures: flat, 'system/figure' → number, or words where there is none.
        films: system → uint8 [T, s, s, 3]; 'real' is the truth.
        series: system → what was measured by frame (measure.series_of).
        frames: [T] numbers of the split's frames.
        turned: uint8 [8, s, s, 3], ours from the angles TURNS.
        sound: [T · 640] of the frames, 16 kHz.
        beyond: [T] degrees that the head is turned further than in training.
        codes: how often ours uses each code, {"au": [n_au, K], "global": [K]} of those in use.
        about: what the series are about, for a comparison (ALIKE, and the judge).
    """

    figures: Figures
    films: dict[str, np.ndarray]
    series: dict[str, Series]
    frames: np.ndarray
    turned: np.ndarray
    sound: np.ndarray
    beyond: np.ndarray
    codes: dict[str, np.ndarray]
    about: dict[str, str | int]


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
    """The training frame nearest in pose and, if `listen`, mel (whatever the run hears)."""
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
        f"{name}/ssim_head": float(np.mean(image.ssim_over(pictures / 255, truth / 255, masks)))
        for name, pictures in films.items()
    }


# ---- detectors


def detector_of(dataset: SpeakerDataset) -> str:
    """What looks for faces in rendered frames: 'mediapipe' where the dataset was made by it and it
    works here, else the run's own 'encoder'."""
    made_by_it = dataset.meta["detector"].startswith("mediapipe")
    return "mediapipe" if made_by_it and not measures.mediapipe_missing() else "encoder"


def check_detector(dataset: SpeakerDataset, for_views: bool = False) -> None:
    """UserError, before any work, if faces in rendered frames cannot be looked for.

    Args:
        for_views: also in turned views, for which nothing takes MediaPipe's place.
    """
    if for_views and (missing := measures.mediapipe_missing()):
        raise UserError(f"--views looks for faces with MediaPipe: {missing}")
    if detector_of(dataset) == "encoder":
        measures.expression_names(dataset.meta["prior"])


def detector_note(dataset: SpeakerDataset) -> str:
    """Why the encoder stands in for the detector that made the dataset; '' where it does not."""
    if detector_of(dataset) == "mediapipe" or not dataset.meta["detector"].startswith("mediapipe"):
        return ""
    return (
        "faces in the frames are found by the run's own encoder, those of the truth by MediaPipe: "
        f"{measures.mediapipe_missing()}"
    )


def find_faces(run: Run, dataset: SpeakerDataset, frames: np.ndarray, images) -> Marks:
    """Looks for the face in the images uint8 [T, s, s, 3] of frames [T]."""
    if detector_of(dataset) == "mediapipe":
        return measures.by_mediapipe(images)
    boxes = dataset.track["face_box"][frames]
    return measures.by_encoder(run, dataset.meta["prior"], boxes, images)


def truth_of(dataset: SpeakerDataset, frames: np.ndarray, size: int) -> Truth:
    """The real frames, with the dataset's own points and labels."""
    track = dataset.track
    # By the rule that rendered frames are labelled by, whatever labels the dataset teaches.
    au, _ = action_units.from_blendshapes(
        track["blendshapes"][frames], tuple(BLENDSHAPES), track["points68"][frames]
    )
    return Truth(
        images=_pictures(dataset, frames, size),
        masks=np.stack([dataset.picture(f, "mask", size) for f in frames]) / 255.0,
        marks=Marks(track["points68"][frames] * size, track["lips79"][frames] * size, au),
        boxes=track["face_box"][frames],
        sound=dataset.audio(),
        frames=frames,
    )


# ---- figures


def gain_figures(ours: Series, other: Series) -> Figures:
    """What the true sound is worth against another one: LMD lower by %, mouth r higher by.

    Args:
        ours, other: the head driven by the true sound and by another one.
    """

    def lower(a: np.ndarray, b: np.ndarray) -> float:
        return float(100 * (1 - np.nanmean(a) / np.nanmean(b)))

    found = measures.compare(ours, other)
    distances = ours["lmd"], other["lmd"]
    low, high = uncertainty.interval(lower, *distances)
    return {
        "gain/lmd": lower(*distances),
        "gain/lmd_low": low,
        "gain/lmd_high": high,
        "gain/mouth_r": found["mouth_r"].difference,
        "gain/mouth_r_low": found["mouth_r"].low,
        "gain/mouth_r_high": found["mouth_r"].high,
    }


def paired_figures(place: str, ours: Series, other: Series) -> Figures:
    """By how much ours is above another film of the same frames.

    Args:
        place: what the figures are named after; ours, other: series by frame, equally long.

    Returns:
        'place/figure', '…_low', '…_high' and '…_separates' ('yes' or 'inside the noise').
    """
    figures: Figures = {}
    for name, paired in measures.compare(ours, other).items():
        key = f"{place}/{name}"
        figures |= {key: paired.difference, f"{key}_low": paired.low, f"{key}_high": paired.high}
        figures[f"{key}_separates"] = "yes" if paired.separates else "inside the noise"
    return figures


def judge_figures(judge: Judge | str, truth: Truth) -> Figures:
    """Who judges lip sync, and whether it can: on the real frames and their own sound."""
    if isinstance(judge, str):
        return {"judge/name": judge}
    proof = judges.proof(judge, truth.images, truth.boxes, truth.sound, truth.frames)
    return {
        "judge/name": judge.name,
        "judge/windows": proof.windows,
        "judge/seconds": proof.seconds,
        "judge/offset": proof.offset,
        "judge/proved": "yes" if proof.proved else "no",
    }


def code_counts(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    """How often images uint8 [T, s, s, 3] use each code of the Standardized Space.

    Returns:
        {"au": int [n_au, K], "global": int [K]}, those that the run has.
    """
    used, space = runs.codes_of(run.talker, run.params, images), run.config.space
    counts = {}
    if "au" in used:
        counts["au"] = np.stack(
            [np.bincount(rows, minlength=space.au_codes) for rows in used["au"].T]
        )
    if "global" in used:
        counts["global"] = np.bincount(used["global"].ravel(), minlength=space.global_codes)
    return counts


# ---- all of it


def evaluate(run: Run, dataset: SpeakerDataset, split: str = "test") -> Figures:
    """Figures of a run on a split of its dataset, flat: 'system/figure' → number or words."""
    return measure(run, dataset, split).figures


def measure(
    run: Run, dataset: SpeakerDataset, split: str = "test", views: str | Path | None = None
) -> Evaluation:
    """Renders a split's frames, and measures them and the controls.

    Args:
        split: test or validation; of a clip under 30 s that of the dataset's fold.
        views: '' to measure turned views, too; the folder of the synthetic speaker that the
            dataset was made of, to hold them against its other cameras.

    Raises:
        UserError: the split has no frames; faces cannot be found as it is asked for.
    """
    frames = runs.frames_of(dataset, split)
    check_detector(dataset, for_views=views == "")
    speaker = render.speaker_of(run, dataset.name)
    motion = runs.motion_of(run, speaker, runs.hear_clip(run, speaker, dataset), frames)
    truth = truth_of(dataset, frames, run.config.size)
    judge, about = judges.best(run), about_of(run, dataset, split)
    if views:
        turned.check_folder(speaker, dataset, frames, Path(views))
    with Bars() as bars:
        films = _films(run, speaker, dataset, motion, truth, bars)
        series = _series(run, dataset, films, truth, judge, bars)
        figures = _view_figures(run, speaker, dataset, motion, frames, views)
    for name, measured in series.items():
        figures |= {f"{name}/{key}": value for key, value in measures.figures(measured).items()}
    figures |= gain_figures(series["ours"], series["other_audio"])
    figures |= paired_figures("over_nerf", series["ours"], series["nerf"])
    figures |= _plain_controls(run, dataset, frames, truth.images, truth.masks)
    figures |= judge_figures(judge, truth) | _setting(dataset, split, truth, about)
    poses = dataset.track["head_to_world"]
    wide = int(np.argmax(np.nan_to_num(truth.marks.opening)))
    return Evaluation(
        figures=plain(figures),
        films=films,
        series=series,
        frames=frames,
        turned=_turned(run, speaker, motion, wide),
        sound=runs.sound_of(dataset, frames),
        beyond=worst.beyond(poses[dataset.frames("train")], poses[frames]),
        codes=code_counts(run, films["nerf"]),
        about=about,
    )


def _films(run, speaker, dataset, motion: Motion, truth: Truth, bars: Bars) -> dict:
    """{system: uint8 [T, s, s, 3]}, ours first and the real frames last."""
    frames, update = truth.frames, bars.bar("rendering", 2)
    poses = dataset.track["head_to_world"][frames]
    drawn = _draw(run, speaker, motion, poses)
    update(1, 2)
    others = elsewhere(dataset.frames("train"), len(frames))
    other = runs.motion_of(run, speaker, runs.hear_clip(run, speaker, dataset), others)
    other_audio = _draw(run, speaker, other, poses)["standardised"]
    update(2, 2)
    return {
        "ours": drawn["standardised"],
        "nerf": drawn["nerf"],
        "other_audio": other_audio,
        "mean_warp": _mean_warp(run, dataset, frames),
        "nearest": _nearest(run, dataset, frames),
        "reencoded": controls.reencoded(truth.images),
        "real": truth.images,
    }


def _series(run, dataset, films: dict, truth: Truth, judge, bars: Bars) -> dict[str, Series]:
    weights = lpips.available()
    series = {}
    for name in bars.over("measuring", films, len(films)):
        marks = find_faces(run, dataset, truth.frames, films[name])
        series[name] = measures.series_of(films[name], truth, marks, judge, weights)
    return series


def _view_figures(run, speaker, dataset, motion: Motion, frames, folder) -> Figures:
    if folder is None:
        return {}
    if str(folder):
        return turned.synthetic(run, speaker, dataset, frames, Path(folder))
    return turned.real(run, speaker, dataset, motion, frames)


def about_of(run: Run, dataset: SpeakerDataset, split: str) -> dict[str, str | int]:
    """What an evaluation's series are about: what must agree before two are compared."""
    judge = judges.best(run)
    leaves = jax.tree.leaves(run.params["sync"]["judge"])
    own = zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    trained = not isinstance(judge, str) and judge.name == judges.of_run(run).name
    return {
        "speaker": dataset.name,
        "dataset": dataset.meta["fingerprint"],
        "split": dataset.split_title(split),
        "size": run.config.size,
        "detector": detector_of(dataset),
        "judge": own if trained else "public",
    }


def _setting(dataset: SpeakerDataset, split: str, truth: Truth, about: dict) -> Figures:
    """What the figures are about."""
    shown = action_units.au_accuracy(truth.marks.au, truth.marks.au)
    note = detector_note(dataset)
    return ({"note/detector": note} if note else {}) | {
        "speaker": dataset.name,
        "split": about["split"],
        "frames": len(truth.frames),
        "frames_left_out": dataset.faceless(split),
        "size": about["size"],
        "detector": about["detector"],
        "au/absent": ", ".join(shown.absent) or "none",
        "au/constant": ", ".join(shown.constant) or "none",
    }


def plain(figures: Figures) -> Figures:
    """The same, sorted and fit for JSON."""

    def value(of) -> float | int | str:
        if isinstance(of, (str, int)):
            return of
        return round(float(of), 6) if np.isfinite(of) else measures.NO_FIGURE

    return {name: value(of) for name, of in sorted(figures.items())}


def _turned(run: Run, speaker: Speaker, motion: Motion, moment: int) -> np.ndarray:
    """Ours at one moment from the angles TURNS, uint8 [8, s, s, 3]."""
    parts = [render.pose_track(speaker, 1, f"yaw={yaw:g},pitch={pitch:g}") for yaw, pitch in TURNS]
    poses, views = (np.concatenate(arrays) for arrays in zip(*parts))
    at = jax.tree.map(lambda x: np.repeat(x[moment : moment + 1], len(TURNS), 0), motion)
    return _draw(run, speaker, at, poses, views)["standardised"]


# ---- against another run


def against(found: Evaluation, other: Path) -> Figures:
    """By how much ours is above that of another evaluated run, on the same frames.

    Args:
        other: folder of the other run.

    Returns:
        'against/figure', '…_low', '…_high' and '…_separates' ('yes' or 'inside the noise').

    Raises:
        UserError: the other run is not evaluated, or not on these frames.
    """
    check_alike(found.about, found.frames, other)
    series, _, about = measures.load_series(other / SERIES)
    figures: Figures = {"against": str(other)}
    figures |= paired_figures("against", found.series["ours"], series["ours"])
    if about["judge"] != found.about["judge"]:
        judged = [name for name in figures if name.startswith("against/sync_")]
        figures |= dict.fromkeys(judged, f"{measures.NO_FIGURE}: the two have different judges")
    return plain(figures)


def check_alike(about: dict, frames: np.ndarray, other: Path) -> None:
    """UserError unless another run's folder holds figures of the same frames, made alike.

    Args:
        about: of `about_of`; frames: [T].
    """
    _, theirs, told = measures.load_series(other / SERIES)
    for key in ALIKE:
        if told.get(key) != about[key]:
            raise UserError(
                f"{other}: was measured with another {key} ({told.get(key)}, here {about[key]}); "
                "evaluate both runs alike"
            )
    if not np.array_equal(theirs, frames):
        raise UserError(f"{other}: was measured on other frames; run t3d evaluate on it again")


# ---- files and the command


def write(folder: Path, run: Run, found: Evaluation) -> None:
    """Writes sheet.png, report.html, series.npz and, last, metrics.json into a folder."""
    page = report.Page(
        figures=found.figures,
        films=found.films,
        series=found.series,
        frames=found.frames,
        turned=found.turned,
        turns=TURNS,
        sound=found.sound,
        codes=found.codes,
        beyond=found.beyond,
        record=checkpoint.read_run(run.workdir),
    )
    report.write(folder, page)
    measures.save_series(folder / SERIES, found.series, found.frames, **found.about)
    write_json(folder / "metrics.json", found.figures)


def write_json(path: Path, figures: Figures) -> None:
    """Writes flat figures."""
    write_atomically(path, lambda p: p.write_text(json.dumps(figures, indent=1) + "\n"))


def evaluate_command(args) -> None:
    """`t3d evaluate`."""
    if args.pred:
        from t3d.two_videos import two_videos_command

        return two_videos_command(args)
    if args.speech:
        from t3d.disentanglement import speech_command

        return speech_command(args)
    if args.space:
        from t3d.standardisation import space_command

        return space_command(args)
    run = runs.open_run(args.workdir)
    speaker = render.speaker_of(run, args.speaker)
    dataset = runs.dataset_of(run, speaker, args.data)
    if args.against:  # an error now, not after the rendering
        about = about_of(run, dataset, args.split)
        check_alike(about, dataset.frames(args.split), Path(args.against))
    if note := detector_note(dataset):
        print(note)
    found = measure(run, dataset, args.split, args.views)
    if args.against:
        differences = against(found, Path(args.against))
        found = replace(found, figures=plain(found.figures | differences))
    write(run.workdir, run, found)
    if args.json:
        write_json(Path(args.json), found.figures)
    report.show(found.figures)
    if args.against:
        report.show_against(found.figures)
    for name in ("sheet.png", "report.html", "metrics.json", SERIES):
        print(run.workdir / name)
