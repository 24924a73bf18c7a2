"""`t3d bench prior`: the tracker where the truth is known and on prepared clips, the encoders of
runs beside it, and how fast the rasteriser and `t3d prepare` are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from t3d import assets, measure
from t3d import camera as cameras
from t3d.data import synthetic
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.prior import morphable, raster, tracker
from t3d.run import Run

Figures = dict[str, float]
SIZE = 512  # side of the pictures in pixels
CALLS = 21  # that the rasteriser is timed over
PRIORS = ("ict", "procedural")
SWINGS = (25.0, 0.0)  # degrees of yaw
FIT = (
    "tracked",
    "reprojection",
    "mouth_r",
    "mouth_rmse",
    "psnr",
    "psnr_texture",
    "focal",
    "jitter",
)  # of `quality.fit_quality`, as far as the dataset's tracker told them


def bench_prior(datasets: list[SpeakerDataset], runs: list[Run], video: str | None) -> Figures:
    """Every figure of the room, by the name of what it was measured on.

    Args:
        datasets: prepared clips, whose figures `t3d prepare` noted.
        runs: one for each dataset, whose encoder reads its test frames; or [].
        video: to time `t3d prepare` on; or None.
    """
    figures = prepare_figures(video) if video else {}  # first: see there
    figures |= raster_figures()
    for prior in PRIORS:
        for swing in SWINGS:
            clip = synthetic.turning_clip(prior, swing, size=SIZE)
            found = track_figures(clip, track_clip(clip))
            figures |= {f"{prior}, yaw ±{swing:g}°: {key}": v for key, v in found.items()}
    for data in datasets:
        fit = data.meta["quality"]
        figures |= {f"{data.name}: {key}": fit[key] for key in FIT if key in fit}
    for data, run in zip(datasets, runs):
        found = measure.encoder_figures(run, data)
        name = f"{data.name}, encoder of {run.workdir.name}"
        figures |= {f"{name}: {key}": value for key, value in found.items()}
    return figures


def prepare_figures(video: str) -> Figures:
    """`t3d prepare` of a video at 512², timed from its start to its end.

    To be called before this process has grown or had other children: the kernel keeps the peak of
    the largest child, and counts what the child inherits before it becomes another program.

    Raises:
        UserError: it failed.
    """
    import resource  # not on Windows

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dataset"
        command = [sys.executable, "-m", "t3d.cli", "prepare", video]
        command += ["--out", str(out), "--size", str(SIZE)]
        began = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if ended.returncode:
            said = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]
            raise UserError(f"--prepare {video}: {said.removeprefix('t3d: error: ')}")
        frames = SpeakerDataset(out).num_frames
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes of ru_maxrss
    return {
        "prepare: frames": frames,
        "prepare: frames/s": frames / seconds,
        "prepare: peak GiB": peak * unit / 2**30,
    }


def raster_figures() -> Figures:
    """The rasteriser on the whole mesh of ICT-FaceKit, which fills half of 512² pixels.

    Returns:
        vertices, triangles; covered: share of the pixels; seconds: of `rasterize` (depth, triangle
        and barycentric images), and with all images of `render`; one thread, compiled before.
    """
    with np.load(assets.find("ict_facekit"), allow_pickle=False) as stored:
        points, triangles = stored["neutral"], stored["triangles"]
    pose = cameras.head_pose(np.zeros(3), np.array([0.0, 0.0, 60.0]))
    world = cameras.transform(pose, points)
    uv, depth = cameras.project(cameras.recorded(np.array([2.0, 2.0, 0.5, 0.5])), world)
    mesh = uv * SIZE, depth, triangles
    normals = morphable.vertex_normals(world, triangles)
    return {
        "rasteriser: vertices": len(points),
        "rasteriser: triangles": len(triangles),
        "rasteriser: covered": float((raster.rasterize(*mesh, SIZE, SIZE).triangle >= 0).mean()),
        "rasteriser: seconds": _median_seconds(lambda: raster.rasterize(*mesh, SIZE, SIZE)),
        "rasteriser: seconds, all images": _median_seconds(
            lambda: raster.render(*mesh, normals, normals, SIZE)
        ),
    }


def _median_seconds(call: Callable[[], object]) -> float:
    """Of several calls, after one that may compile."""
    call()
    ends = [time.perf_counter()]
    for _ in range(CALLS):
        call()
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends)))


def track_clip(clip: synthetic.TurningClip) -> dict[str, np.ndarray]:
    """The tracker's fit of a clip, constants fitted on its first four fifths."""
    count = len(clip.points68)
    marks = SimpleNamespace(
        points68=clip.points68,
        lips79=clip.lips79,
        blendshapes=clip.blendshapes,
        found=np.ones(count, bool),
    )
    return tracker.track(
        clip.model,
        marks,
        np.arange(count * 4 // 5),
        lambda index: clip.pictures[index],
        lambda index: clip.masks[index],
    )


def track_figures(clip: synthetic.TurningClip, fitted: dict[str, np.ndarray]) -> Figures:
    """A fit against the truth.

    Returns:
        rotation_degrees: median error; expression_pixels: how far the fitted expression would carry
        the true head's 51 inner landmarks from where they are, median over frames of their mean;
        focal: fitted over true; focal_observable: 1 where the tracker says so (else it is
        mostly assumed); relighting: median error of the skin, painted and lit by the fit, as a
        share of full scale (root mean square); jitter: of the head's turns, over that of per-frame
        fits.
    """
    truth = clip.truth
    pose = cameras.head_pose(truth["rotvec"], truth["translation"])
    trace = np.einsum("tij,tij->t", fitted["head_to_world"][:, :3, :3], pose[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    small = morphable.restrict(clip.model, clip.model.landmarks68[17:])
    camera = cameras.recorded(truth["intrinsics"])

    def carried(expression):
        shape = morphable.vertices(small, truth["identity"], expression)
        shape = shape + truth["displacement"][clip.model.landmarks68[17:]]
        return cameras.project(camera, cameras.transform(pose, shape))[0]

    away = np.linalg.norm(carried(fitted["expression"]) - carried(truth["expression"]), axis=-1)
    return {
        "rotation_degrees": float(np.median(angle)),
        "expression_pixels": float(np.median(away.mean(1)) * clip.pictures.shape[1]),
        "focal": float(fitted["intrinsics"][0] / truth["intrinsics"][0]),
        "focal_observable": float(fitted["focal_deviation"] < tracker.OBSERVABLE),
        "relighting": float(np.nanmedian(10 ** (-fitted["psnr"] / 20))),
        "jitter": float(fitted["jitter"][1] / fitted["jitter"][0]),
    }
