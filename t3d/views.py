"""The head from elsewhere: how good views are that nobody filmed, or that another camera did.

A synthetic speaker's other cameras are known exactly. A real speaker's views are held against its
tracked 3DMM, a second tracking, and frames turned further than any the head was trained on.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from t3d import camera as cameras
from t3d import render
from t3d import run as runs
from t3d.camera import Camera
from t3d.data import landmarks, video
from t3d.data.landmarks import Landmarks
from t3d.data.speaker_dataset import SpeakerDataset, on_white
from t3d.errors import UserError
from t3d.metrics import image, lips, uncertainty
from t3d.metrics.views import depth_error, mask_iou, similarity3
from t3d.prior import basis, morphable, shell, tracker
from t3d.prior.morphable import MorphableModel
from t3d.run import Run, Speaker
from t3d.talker import Motion

MOST_FRAMES = 24  # that a view is looked at in
YAWS = (0.0, 10.0, -10.0, 20.0, -20.0, 30.0, -30.0, 45.0, -45.0)  # degrees: of a real speaker
BIN = 3.0  # degrees of yaw of the turned frames that were held out
FEWEST_FACES = 8  # that a shape is fitted to
SAME = 10.0  # of 255: most by which a picture of a film and of its dataset differ, on average
FRONT = "front"
REMEDY = "give the folder of a speaker that this t3d synthesize made"
Figures = dict[str, float | str]
Arrays = dict[str, np.ndarray]


class Gauge(NamedTuple):
    """The similarity from a true head's frame to ours: ours = scale · rotation @ true + shift."""

    scale: float
    rotation: np.ndarray
    shift: np.ndarray


class Drawn(NamedTuple):
    """Our head in n frames: images uint8 [n, s, s, 3] on white; alpha and depth (cm) [n, F, F]."""

    images: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray


class Filmed(NamedTuple):
    """What a true camera saw of the head, with its hair, in n frames.

    Attributes:
        images: uint8 [n, s, s, 3] on white; masks: [n, s, s] in [0, 1].
        depth: [n, F, F] cm along the camera's z; seen: [n, F, F] bool; both where our rays are.
    """

    images: np.ndarray
    masks: np.ndarray
    depth: np.ndarray
    seen: np.ndarray


# ---- both


def label(yaw: float, pitch: float = 0.0) -> str:
    """What the figures of a view are named after: 'yaw+30', 'pitch-15', 'yaw+0'."""
    turned = (f"{name}{a:+.0f}" for name, a in (("yaw", yaw), ("pitch", pitch)) if round(a))
    return "".join(turned) or "yaw+0"


def spread(count: int, most: int = MOST_FRAMES) -> np.ndarray:
    """At most `most` of the numbers 0 … count − 1, evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def turn(head_to_world: np.ndarray, camera_to_world: np.ndarray) -> np.ndarray:
    """Degrees [...] by which cameras look at heads from the side, of motions [..., 4, 4].

    Positive where the camera stands to the image's right of the face, as `camera.orbit` moves it.
    """
    back = cameras.inverse(head_to_world)[..., :3, :3] @ -camera_to_world[..., :3, 2, None]
    return np.degrees(np.arctan2(back[..., 0, 0], back[..., 2, 0]))


def _pick(motion: Motion, rows: np.ndarray) -> Motion:
    return jax.tree.map(lambda x: x[rows], motion)


def _draw(run: Run, speaker: Speaker, motion: Motion, poses, views) -> Drawn:
    parts = list(runs.render_frames(run, speaker, motion, poses, views))
    names = ("standardised", "alpha", "depth")
    return Drawn(*(np.concatenate([part[name] for part in parts]) for name in names))


def _hit(drawn: Drawn) -> np.ndarray:
    """Our depth [n, F, F], infinite where there is no head."""
    return np.where(drawn.alpha > 0.5, drawn.depth, np.inf)


def _summary(series: Arrays) -> Figures:
    """Mean and 95 % interval of each series [n], over the frames that have a value."""
    figures: Figures = {}
    for name, values in series.items():
        known = values[np.isfinite(values)]
        if known.size:
            low, high = uncertainty.interval(np.mean, known)
            figures |= {name: float(known.mean()), f"{name}_low": low, f"{name}_high": high}
        else:
            figures[name] = "not available: nothing of the head is seen"
    return figures


def _under(prefix: str, figures: Figures) -> Figures:
    return {f"views/{prefix}/{name}": value for name, value in figures.items()}


# ---- synthetic speakers: other cameras


def synthetic(
    run: Run, speaker: Speaker, dataset: SpeakerDataset, frames: np.ndarray, folder: Path
) -> Figures:
    """Our head from every camera that filmed a synthetic speaker, against what it filmed.

    The true world becomes ours by one similarity, that of the landmarks at rest (`gauge_of`): a
    head of the wrong shape is seen to be wrong. Ours hears the sound and has the mean light of
    training; no pixel or pose of these frames. The recorded picture, put in place of ours, says
    what a view is worth that was not made at all.

    Args:
        frames: [T] of a split, in order; at most 24 of those whose depth is stored are compared.
        folder: of `t3d synthesize`; the dataset was made of it, or of its video.mp4.

    Returns:
        'views/LABEL/NAME' of each camera, with intervals: psnr (dB) and ssim over the true head,
        iou of the masks, depth_cm (true centimetres, where both see the head); tracked_psnr and so
        on of the same view by the tracker's pose of the recorded picture, the camera turned as the
        true one is about the point of our head that is the true one's pivot by that similarity
        (`about`; depths as long as the distances say);
        reenacted_psnr and so on of that view with f_exp-aud of the filmed mouths and the shell of
        the tracked expressions in place of the sound's (self-reenactment: what the field does with
        the right mouth; f_exp-style is the sound's, and nothing is smoothed in time), unless the
        config's audio input has no f_exp-aud; front_psnr, front_ssim and front_iou of the recorded
        picture. Also views/frames, views/scale (ours over the true size) and views/fit_mm (how far
        our landmarks are off the true ones, RMS); views/truth, words, where the dataset itself was
        made with the truth.

    Raises:
        UserError: as `check_folder` does.
    """
    check_folder(speaker, dataset, frames, folder)
    truth, chosen = _truth(folder), _compared(folder, frames)
    see = partial(_filmed, folder, dataset.meta["crop"], run.config, chosen)
    front = see(FRONT)
    motion = runs.motion_of(run, speaker, runs.hear_clip(run, speaker, dataset), frames)
    motion = _pick(motion, np.searchsorted(frames, chosen))
    ways = {"tracked": motion}
    if run.config.speech.inputs != "entire":
        ways["reenacted"] = _reenacted(run, speaker, dataset, motion, chosen)
    gauge, off = gauge_of(truth["head_points"], rest_points(speaker))
    filmed_poses = cameras.head_pose(truth["rotvec"][chosen], truth["translation"][chosen])
    poses = np.broadcast_to(speaker.still_pose, filmed_poses.shape).astype(np.float32)
    lens = cropped(truth["intrinsics"], dataset.meta["crop"], _side(folder))
    tracked = dataset.track["head_to_world"][chosen]
    farther = float(np.median(tracked[:, 2, 3] / filmed_poses[:, 2, 3]))
    pivot = in_tracked(pivot_of(truth["view_camera_to_world"]), gauge, filmed_poses, tracked)
    figures: Figures = {"views/frames": len(chosen), "views/scale": gauge.scale}
    figures["views/fit_mm"] = 10 * off
    if dataset.meta["synthetic"]:
        figures["views/truth"] = (
            "landmarks and masks of this dataset are the speaker's truth; for a test that is not "
            f"circular prepare {_film(folder, FRONT)}"
        )
    for name, camera, title in _cameras(truth):
        views = (poses @ camera_to_head(gauge, filmed_poses, camera)).astype(np.float32)
        drawn = _draw(run, replace(speaker, intrinsics=lens), motion, poses, views)
        filmed = front if name == FRONT else see(name)
        series = against(drawn, filmed, gauge.scale)
        views = np.broadcast_to(about(camera, pivot), (len(chosen), 4, 4))
        for way, moved in ways.items():
            again = against(_draw(run, speaker, moved, tracked, views), filmed, farther)
            series |= {f"{way}_{key}": values for key, values in again.items()}
        if name != FRONT:
            series |= recorded_against(front, filmed)
        figures |= _under(title, _summary(series))
    return figures


def _reenacted(run: Run, speaker: Speaker, dataset, motion: Motion, frames) -> Motion:
    """A motion [T, …] with the mouths that were filmed in these frames [T].

    Tracked expressions tell where the head is, as when the field was trained.
    """
    speech = runs.mouths_of(run.talker, run.params, speaker, dataset, frames)
    return motion.replace(speech=speech, expression=dataset.track["expression"][frames])


def check_folder(
    run_speaker: Speaker, dataset: SpeakerDataset, frames: np.ndarray, folder: Path
) -> None:
    """All that can be known before anything is drawn of whether `synthetic` will do.

    Args:
        run_speaker: as the run knows it; frames: [T] of a split of the dataset.

    Raises:
        UserError: the folder is not of `t3d synthesize`, lacks something, is damaged or another
            speaker's, or stores the depth of none of the frames.
    """
    truth, chosen = _truth(folder), _compared(folder, frames)
    if truth["head_points"].shape != rest_points(run_speaker).shape:
        raise UserError(f"{folder / 'truth.npz'}: its head_points are not 68 landmarks; {REMEDY}")
    for name, _, _ in _cameras(truth):
        if not np.isin(chosen, _stored(folder, name)["frames"]).all():
            raise UserError(f"{folder / name}.npz: lacks frames of {FRONT}.npz; {REMEDY}")
        if round(video.probe(film := _film(folder, name)).duration * video.FPS) <= chosen[-1]:
            raise UserError(f"{film}: ends before frame {chosen[-1]}; {REMEDY}")
    _check_same_speaker(folder, dataset, chosen[0])


def gauge_of(true_points: np.ndarray, our_points: np.ndarray) -> tuple[Gauge, float]:
    """The similarity between two heads of one person, by their landmarks at rest [N, 3] each.

    Returns:
        The gauge and the RMS distance that is left, in the true head's unit.
    """
    gauge = Gauge(*similarity3(true_points, our_points))
    moved = gauge.scale * true_points @ gauge.rotation.T + gauge.shift
    off = np.sqrt(np.square(moved - our_points).sum(-1).mean())
    return gauge, float(off / gauge.scale)


def rest_points(speaker: Speaker) -> np.ndarray:
    """The 68 landmarks [68, 3] (cm, head frame) of a speaker's tracked shape, face at rest."""
    model = basis.load(speaker.prior)
    small = morphable.restrict(model, model.landmarks68)
    return np.asarray(morphable.vertices(small, speaker.identity, np.zeros(79, np.float32)))


def camera_to_head(gauge: Gauge, head_to_world: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """A true camera in our head's frame [n, 4, 4].

    Args:
        head_to_world: [n, 4, 4] true poses; camera: [4, 4] true camera_to_world. Pictures of our
        head by the result have the true ones' perspective; its depths are `gauge.scale` as long.
    """
    local = cameras.inverse(head_to_world) @ camera
    place = gauge.scale * local[:, :3, 3] @ gauge.rotation.T + gauge.shift
    return cameras.rigid(gauge.rotation @ local[:, :3, :3], place)


def pivot_of(moved: np.ndarray) -> np.ndarray:
    """The point [3] that the recorded camera, at the origin, was turned about to be at each of
    these [K, 4, 4]; where all turned about one axis the point of it that is nearest to the origin.
    """
    still = (np.eye(3) - moved[:, :3, :3]).reshape(-1, 3)
    return np.linalg.lstsq(still, moved[:, :3, 3].reshape(-1), rcond=1e-4)[0]


def in_tracked(
    point: np.ndarray, gauge: Gauge, head_to_world: np.ndarray, tracked: np.ndarray
) -> np.ndarray:
    """Where a point [3] of the true world lies in the tracked one: carried along with the heads
    [n, 4, 4] by the gauge, which says what point of ours is which of theirs; median over frames.
    """
    local = cameras.transform(cameras.inverse(head_to_world), point[None])[:, 0]
    ours = gauge.scale * local @ gauge.rotation.T + gauge.shift
    return np.median(cameras.transform(tracked, ours[:, None])[:, 0], 0)


def about(camera: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    """The recorded camera turned as a true one [4, 4] is, but about a pivot [3]: [4, 4].

    Both worlds' axes are those of the recorded picture's middle: where a crop lies beside the
    film's middle, ours are tilted by the angle between the two.
    """
    turned = camera[:3, :3]
    return cameras.rigid(turned, pivot - turned @ pivot).astype(np.float32)


def cropped(intrinsics: np.ndarray, crop, side: int) -> np.ndarray:
    """Intrinsics [4] (fractions) of a part `crop` = (cx, cy, length) pixels of a side² picture."""
    cx, cy, length = crop
    corner = np.array([cx - length / 2, cy - length / 2])
    focal, centre = np.asarray(intrinsics[:2]), np.asarray(intrinsics[2:])
    return np.concatenate([focal * side, centre * side - corner]).astype(np.float32) / length


def against(drawn: Drawn, filmed: Filmed, scale: float) -> Arrays:
    """psnr, ssim, iou, depth_cm [n] of our view against the filmed one; scale: ours over true."""
    alike = image.image_series(drawn.images, filmed.images, filmed.masks)
    return {
        "psnr": alike["psnr_head"],
        "ssim": alike["ssim_head"],
        "iou": mask_iou(drawn.alpha, filmed.seen),
        "depth_cm": depth_error(_hit(drawn) / scale, filmed.depth, filmed.seen)[0],
    }


def recorded_against(front: Filmed, filmed: Filmed) -> Arrays:
    """front_psnr, front_ssim and front_iou [n] of the recorded picture as if it were the view."""
    alike = image.image_series(front.images, filmed.images, filmed.masks)
    return {
        "front_psnr": alike["psnr_head"],
        "front_ssim": alike["ssim_head"],
        "front_iou": mask_iou(front.seen, filmed.seen),
    }


def _truth(folder: Path) -> Arrays:
    views = ("view_yaw", "view_pitch", "view_camera_to_world")
    return _load(
        folder / "truth.npz", ("head_points", "rotvec", "translation", "intrinsics", *views)
    )


def _stored(folder: Path, name: str) -> Arrays:
    return _load(folder / f"{name}.npz", ("frames", "depth", "mask"))


def _load(path: Path, needed: tuple[str, ...]) -> Arrays:
    if not path.exists():
        raise UserError(f"{path}: not there; {REMEDY}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if missing := [name for name in needed if name not in stored.files]:
                raise UserError(f"{path}: holds no {', '.join(missing)}; {REMEDY}")
            return {name: stored[name] for name in needed}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); {REMEDY}") from error


def _compared(folder: Path, frames: np.ndarray) -> np.ndarray:
    """At most 24 of the frames, of those whose depth is stored; UserError when it is of none."""
    known = frames[np.isin(frames, _stored(folder, FRONT)["frames"])]
    if not len(known):
        raise UserError(f"{folder}: none of its depth maps lies in this split; use a longer clip")
    return known[spread(len(known))]


def _film(folder: Path, name: str) -> Path:
    return folder / ("video.mp4" if name == FRONT else f"{name}.mp4")


def _side(folder: Path) -> int:
    return _stored(folder, FRONT)["mask"].shape[-1]


def _cameras(truth: Arrays) -> Iterator[tuple[str, np.ndarray, str]]:
    """(name of its files, camera_to_world [4, 4], label) of the recorded and all other cameras."""
    yield FRONT, np.eye(4, dtype=np.float32), label(0)
    for k, angles in enumerate(zip(truth["view_yaw"], truth["view_pitch"])):
        yield f"view_{k}", truth["view_camera_to_world"][k], label(*map(float, angles))


def _filmed(folder: Path, crop, config, frames: np.ndarray, name: str) -> Filmed:
    """What a camera saw in `frames`, cut as the dataset cuts the recorded one."""
    stored, size = _stored(folder, name), config.size
    rows = np.searchsorted(stored["frames"], frames)
    heads = stored["mask"][rows]
    masks = np.stack([video.crop(head * np.uint8(255), crop, size, 0) for head in heads])
    images = [video.crop(i, crop, size) for i in _frames_of(_film(folder, name), frames)]
    at = partial(_sampled, crop=crop, size=config.nerf.rays)
    return Filmed(
        np.stack([on_white(i, m) for i, m in zip(images, masks, strict=True)]),
        masks / 255.0,
        at(stored["depth"][rows]).astype(np.float32),
        at(heads),
    )


def _frames_of(film: Path, frames: np.ndarray) -> Iterator[np.ndarray]:
    wanted = set(frames.tolist())
    for number, picture in enumerate(video.read_frames(film)):
        if number in wanted:
            yield picture
        if number >= frames[-1]:
            return


def _sampled(maps: np.ndarray, crop, size: int) -> np.ndarray:
    """Maps [n, S, S] at the pixel middles [n, size, size] of their part `crop`, the nearest value;
    outside the picture that of its edge."""
    cx, cy, length = crop
    middles = (np.arange(size) + 0.5) / size * length - length / 2
    columns, rows = (
        np.clip(np.floor(c + middles), 0, maps.shape[-1] - 1).astype(int) for c in (cx, cy)
    )
    return maps[:, rows[:, None], columns]


def _check_same_speaker(folder: Path, dataset: SpeakerDataset, frame: int) -> None:
    """UserError unless the recorded film holds the dataset's pictures."""
    [filmed] = _frames_of(_film(folder, FRONT), np.array([frame]))
    filmed = video.crop(filmed, dataset.meta["crop"], dataset.size)
    off = np.abs(dataset.picture(frame, "image").astype(float) - filmed).mean(-1)
    if not off[dataset.picture(frame, "mask") == 255].mean() < SAME:
        raise UserError(
            f"{folder}: is not the speaker that {dataset.path} was made of; give that one's folder"
        )


# ---- real speakers


def real(
    run: Run, speaker: Speaker, dataset: SpeakerDataset, motion: Motion, frames: np.ndarray
) -> Figures:
    """What can be said of a real speaker's views, whom no other camera filmed.

    The head holds still, at most 24 moments of the motion are drawn from every side, and compared
    with the tracked 3DMM; then MediaPipe looks for the face and the tracker fits shape and pose
    anew, as if the pictures were all there is of that person.

    Args:
        motion: of the frames [T] of a split.

    Returns:
        'views/yaw+20/NAME' and so on: iou of our silhouette with the 3DMM's, whose hair the masks'
        outlines told, covered (share of it that is covered), depth_cm over the hairless face, off
        the 3DMM's, each with an interval; found (share of faces found), yaw_error (degrees, the
        recovered less the asked yaw), identity_mm (RMS distance of the recovered shape from the
        run's, over the face), mouth_r (the mouth opening against that at yaw 0, with its interval).
        Landmarks of the 3DMM itself come back within 1° and 1.5 mm at any yaw: the rest is ours
        and MediaPipe's. Where turned frames were held out, also those of `held_out`, whatever the
        split.
    """
    some = spread(len(frames))
    at, model, rays = _pick(motion, some), basis.load(speaker.prior), run.config.nerf.rays
    calm, figures = None, {"views/frames": len(some)}
    for yaw in YAWS:
        poses, views = render.pose_track(speaker, len(some), f"yaw={yaw:g},pitch=0")
        drawn = _draw(run, speaker, at, poses, views)
        series = against_mesh(drawn, *_mesh(speaker, at.expression, poses, views, rays))
        seen = _detect(drawn.images)
        calm = seen if calm is None else calm
        again = round_trip(model, seen, drawn, turn(poses, views), speaker.identity)
        figures |= _under(label(yaw), _summary(series) | again | _mouth(calm, seen))
    if "held_out_yaw" in dataset.meta:
        figures |= held_out(run, speaker, dataset)
    return figures


def against_mesh(drawn: Drawn, mesh: np.ndarray, face: np.ndarray) -> Arrays:
    """iou, covered and depth_cm [n] of our view against the 3DMM with its hair.

    Args:
        mesh: [n, F, F] its depth, infinite beside it; face: [n, F, F] bool, its hairless part.
    """
    ours, there = _hit(drawn), np.isfinite(mesh)
    return {
        "iou": mask_iou(np.isfinite(ours), there),
        "covered": depth_error(ours, mesh, there)[1],
        "depth_cm": depth_error(ours, mesh, face)[0],
    }


def _mesh(speaker: Speaker, expression, poses, views, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth and skin [n, size, size] of the tracked 3DMM in motion, with its hair."""
    head = speaker.shell
    seen = [
        shell.surface(head, shell.expressed(head, e), pose, Camera(speaker.intrinsics, view), size)
        for e, pose, view in zip(expression, poses, views, strict=True)
    ]
    depths, skins = zip(*seen)
    return np.stack(depths), np.stack(skins)


def _detect(images: np.ndarray) -> Landmarks:
    """The face in each image uint8 [n, s, s, 3] on its own; its points as fractions of the side."""
    side = max(images.shape[1], landmarks.FINDER_SIZE)
    large = (i if side == len(i) else video.resize(i, side) for i in images)
    seen = landmarks.detect(large, video=False)
    return Landmarks(
        seen.found, seen.points68 / side, seen.lips79 / side, seen.blendshapes, seen.others
    )


def round_trip(
    model: MorphableModel, seen: Landmarks, drawn: Drawn, asked: np.ndarray, identity: np.ndarray
) -> Figures:
    """Tracks drawn frames as if they were filmed: found, yaw_error (degrees), identity_mm.

    Args:
        seen: the faces in the images, points as fractions of their side; asked: [n] yaws (degrees)
        they were drawn at; identity: [100] they were drawn with.
    """
    found = np.asarray(seen.found, bool)
    figures: Figures = {"found": float(found.mean())}
    if found.sum() < FEWEST_FACES:
        words = f"not available: a face was found in {found.sum()} of {len(found)} frames"
        return figures | {"yaw_error": words, "identity_mm": words}
    tracked = tracker.track(
        model,
        seen,
        np.flatnonzero(found),
        lambda rows: drawn.images[rows],
        lambda rows: drawn.alpha[rows],
        doubt=tracker.MEDIAPIPE_DOUBT,
    )
    yaws = turn(tracked["head_to_world"], np.eye(4, dtype=np.float32))
    figures["yaw_error"] = float((yaws - asked)[found].mean())
    figures["identity_mm"] = identity_distance(model, tracked["identity"], identity)
    return figures


def identity_distance(model: MorphableModel, found: np.ndarray, known: np.ndarray) -> float:
    """RMS distance (mm) between two shapes' faces at rest, size and place apart.

    Args:
        found, known: [100] identity codes; the distance is at the second one's size.
    """
    face = np.flatnonzero(model.region == model.region_names.index("face"))
    small = morphable.restrict(model, face)
    theirs, ours = (
        np.asarray(morphable.vertices(small, code, np.zeros(79, np.float32)), np.float64)
        for code in (found, known)
    )
    gauge, off = gauge_of(theirs, ours)
    return 10 * off * gauge.scale


def _mouth(calm: Landmarks, seen: Landmarks) -> Figures:
    """mouth_r: how the mouth opening goes with that of other pictures of the same moments."""
    openings = lips.against_truth(*(lips.mouth_opening(s.points68) for s in (calm, seen)))
    if not openings[0].size:
        return {"mouth_r": "not available: no face was found at yaw 0"}
    low, high = uncertainty.interval(lips.pearson, *openings)
    return {"mouth_r": lips.pearson(*openings), "mouth_r_low": low, "mouth_r_high": high}


# ---- real speakers: frames turned further than any trained on


def held_out(run: Run, speaker: Speaker, dataset: SpeakerDataset) -> Figures:
    """Our head in the recorded poses of the test frames, which were held out for their yaw.

    Returns:
        'views/held_out_12_15/NAME' for each BIN of degrees off the clip's median yaw, and, of
        validation frames, 'views/held_out_0_12/NAME': ssim and psnr (dB) over the head with
        intervals, and the number of frames (at most 24 are drawn). A test frame that the dataset's
        fit turns less than the limit, by which an earlier fit chose it, counts in the first bin.
    """
    limit = float(dataset.meta["held_out_yaw"])
    usual, frames = dataset.frames("validation"), dataset.frames("test")
    heard = runs.hear_clip(run, speaker, dataset)
    calm, motion = (runs.motion_of(run, speaker, heard, f) for f in (usual, frames))
    figures = _under(f"held_out_0_{limit:g}", _recorded(run, speaker, dataset, calm, usual))
    yaws = turn(dataset.track["head_to_world"], np.eye(4, dtype=np.float32))
    off = np.abs(yaws - np.median(yaws[dataset.track["found"]]))[frames]
    number = np.floor((off - limit) / BIN).clip(0).astype(int)
    for k in np.unique(number):
        rows = np.flatnonzero(number == k)
        title = f"held_out_{limit + BIN * k:g}_{limit + BIN * (k + 1):g}"
        part = _recorded(run, speaker, dataset, _pick(motion, rows), frames[rows])
        figures |= _under(title, part)
    return figures


def _recorded(run, speaker, dataset, motion: Motion, frames: np.ndarray) -> Figures:
    some = spread(len(frames))
    chosen, size = frames[some], run.config.size
    poses = dataset.track["head_to_world"][chosen]
    views = np.broadcast_to(np.eye(4, dtype=np.float32), poses.shape)
    drawn = _draw(run, speaker, _pick(motion, some), poses, views)
    truth, masks = (
        np.stack([dataset.picture(f, kind, size) for f in chosen]) for kind in ("head", "mask")
    )
    alike = image.image_series(drawn.images, truth, masks / 255.0)
    series = {"ssim": alike["ssim_head"], "psnr": alike["psnr_head"]}
    return _summary(series) | {"frames": len(chosen)}
