"""`t3d render`: any sound in, the trained head speaking it out, as an mp4."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import t3d
from t3d import camera as cameras
from t3d import run as runs
from t3d.composite import composite
from t3d.data import video
from t3d.data.prepare import Bars
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.prior import basis, morphable
from t3d.run import Run, Speaker
from t3d.speech.features import mel
from t3d.talker import Motion

FPS, RATE = video.FPS, video.RATE
SOLID = 45.0  # degrees up to which a camera may look from aside
ORBIT_SECONDS, ORBIT_YAW, ORBIT_PITCH = 8.0, 30.0, 6.0  # a swing there and back; degrees
BLINK_SECONDS, BLINK_GAP = 0.25, (2.0, 6.0)  # of a blink; from one blink to the next
SILENT = 1e-3  # peak, of full scale
OUTPUTS = ("standardised", "nerf")


def speaker_of(run: Run, name: str | None = None) -> Speaker:
    """The speaker of that name, the first one if None; UserError that lists the names."""
    known = {speaker.name: speaker for speaker in run.speakers}
    if name is None:
        return run.speakers[0]
    if name not in known:
        raise UserError(f"--speaker {name}: {run.workdir} has learned {', '.join(known)}")
    return known[name]


# ---- sound


def read_speech(path) -> np.ndarray:
    """The sound [N] (16 kHz) of a file; UserError where there is none; silence is a warning."""
    audio = video.read_audio(path)
    if len(audio) == 0:
        raise UserError(f"{path}: its sound is empty; give a file in which someone speaks")
    if not np.isfinite(audio).all():
        raise UserError(f"{path}: its sound holds values that are not numbers; convert it again")
    if np.abs(audio).max() < SILENT:
        print(f"{path}: warning: its sound is silent: nothing will be said", file=sys.stderr)
    return audio


def hear(run: Run, speaker: Speaker, audio: np.ndarray, file: str | None = None) -> np.ndarray:
    """What the speaker's networks hear, [M, D], of a sound [N] (16 kHz).

    Args:
        file: of the sound's features, for a run that was trained on features.

    Raises:
        UserError: such a run gets none, or another one gets some; they do not fit the sound.
    """
    if speaker.feature_width and not file:
        raise UserError(
            f"{run.workdir}: was trained on speech features ({speaker.feature_width} a step, "
            f"{run.config.features.rate:g} steps a second), not on the mel; give those of this "
            "sound with --features FILE.npy"
        )
    if file and not speaker.feature_width:
        raise UserError(f"--features {file}: {run.workdir} was trained on the mel; leave it out")
    return runs.hear(run.config, speaker, mel(audio), file)


def frames_of(audio: np.ndarray) -> int:
    """Frames at 25 fps that last as long as a sound [N], to half a frame; at least one."""
    return max(1, round(len(audio) * FPS / RATE))


# ---- where the head is, and who looks at it


def pose_track(speaker: Speaker, frames: int, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """The head's poses and the camera's places of a video.

    Args:
        frames: T.
        camera: 'front' (a still head, the recorded camera); 'orbit' (the same head, the camera
            swings by ±30° about it); 'recorded' (the head moves as it was recorded, to and fro for
            as long as need be); or degrees, 'yaw=30,pitch=-10'.

    Returns:
        head_to_world and camera_to_world, [T, 4, 4] each.
    """
    still = np.broadcast_to(speaker.still_pose, (frames, 4, 4)).astype(np.float32)
    if camera == "recorded":
        return speaker.head_to_world[to_and_fro(len(speaker.head_to_world), frames)], _eyes(frames)
    yaw, pitch = _angles(camera, frames)
    recorded = cameras.recorded(np.asarray(speaker.intrinsics))
    views = [
        cameras.orbit(recorded, speaker.pivot, float(a), float(b)).camera_to_world
        for a, b in zip(yaw, pitch)
    ]
    return still, np.stack(views).astype(np.float32)


def _eyes(frames: int) -> np.ndarray:
    return np.broadcast_to(np.eye(4, dtype=np.float32), (frames, 4, 4))


def to_and_fro(count: int, frames: int) -> np.ndarray:
    """[frames] indices 0 … count − 1 … 0 …: a track that lasts forever without a jump."""
    period = max(1, 2 * count - 2)
    index = np.arange(frames) % period
    return np.minimum(index, period - index) if count > 1 else np.zeros(frames, int)


def _angles(camera: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch [T] in degrees."""
    if camera == "orbit":
        phase = 2 * np.pi * np.arange(frames) / (ORBIT_SECONDS * FPS)
        return ORBIT_YAW * np.sin(phase), ORBIT_PITCH * np.sin(2 * phase)
    named = {"yaw": 0.0, "pitch": 0.0}
    named |= {name: float(value) for name, value in re.findall(r"(yaw|pitch)=([-.\d]+)", camera)}
    return np.full(frames, named["yaw"]), np.full(frames, named["pitch"])


# ---- eyes


def blink_weights(frames: int, seed: int) -> np.ndarray:
    """How closed the eyes are in each frame [T], 0 to 1: a quarter of a second every 2 to 6 s."""
    rng = np.random.default_rng([seed, 1])
    gaps = rng.uniform(*BLINK_GAP, 1 + int(frames / FPS / BLINK_GAP[0]))
    time, blinks = np.arange(frames) / FPS, np.cumsum(gaps)
    after = np.searchsorted(blinks, time).clip(max=len(blinks) - 1)
    off = np.minimum(*(np.abs(time - blinks[k]) for k in (after, np.maximum(after - 1, 0))))
    lid = 0.5 + 0.5 * np.cos(2 * np.pi * off / BLINK_SECONDS)
    return np.where(off < BLINK_SECONDS / 2, lid, 0.0).astype(np.float32)


def with_blinks(motion: Motion, prior: str, closed: np.ndarray) -> Motion:
    """The motion with eyes closed by `closed` [T]; only the surface follows, no audio code.

    A prior that names no expressions cannot blink: the motion stays as it is.
    """
    model = basis.load(prior)
    if not model.expression_names:
        return motion
    lids = {"eyeBlink_L": closed, "eyeBlink_R": closed}
    blink = morphable.expression_from_weights(model, lids)
    return motion.replace(expression=motion.expression + blink)


# ---- the video


def render_video(
    run: Run,
    speaker: Speaker,
    audio: np.ndarray,
    camera: str = "front",
    output: str = "standardised",
    heard: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The frames uint8 [s, s, 3] of a speaker who says a sound [N] (16 kHz), one by one.

    Args:
        camera: as `pose_track`.
        output: 'standardised' (the decoder's images) or 'nerf' (the radiance field's).
        heard: [M, D] of the sound, of a run that was trained on features (`hear`).
    """
    motion = _motion(run, speaker, audio, heard)
    poses, views = pose_track(speaker, frames_of(audio), camera)
    standardised = output == "standardised"
    for drawn in runs.render_frames(run, speaker, motion, poses, views, standardised=standardised):
        yield from drawn[output]


def composite_video(
    run: Run,
    speaker: Speaker,
    dataset: SpeakerDataset,
    audio: np.ndarray,
    output: str = "standardised",
    heard: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The same head in the place of the recorded one, frame by frame of its recording.

    Args:
        dataset: that the run learned the speaker from (`run.dataset_of`).
        audio: [N] (16 kHz); output, heard: as `render_video`.

    Yields:
        uint8 [S, S, 3], S the dataset's size.
    """
    count = frames_of(audio)
    recorded = runs.recorded_frames(dataset)
    frames = recorded[to_and_fro(len(recorded), count)]
    motion, track = _motion(run, speaker, audio, heard), dataset.track
    drawn = runs.render_frames(
        run,
        speaker,
        motion,
        *pose_track(speaker, count, "recorded"),
        illumination=track["illumination"][frames],
        standardised=output == "standardised",
    )
    heads = ((image, a) for batch in drawn for image, a in zip(batch[output], batch["alpha"]))
    for frame, (image, alpha) in zip(frames, heads, strict=True):
        yield composite(
            video.resize(image, dataset.size),
            alpha,
            dataset.picture(frame, "image"),
            dataset.picture(frame, "mask"),
            track["points68"][frame] * dataset.size,
        )


def _motion(run: Run, speaker: Speaker, audio: np.ndarray, heard: np.ndarray | None) -> Motion:
    frames = frames_of(audio)
    heard = hear(run, speaker, audio) if heard is None else heard
    motion = runs.motion_of(run, speaker, heard, frames)
    return with_blinks(motion, speaker.prior, blink_weights(frames, run.config.seed))


def resized(images: Iterable[np.ndarray], size: int | None) -> Iterator[np.ndarray]:
    """Images at another size (Lanczos); as they are if it is None."""
    for image in images:
        if size is None or size == len(image):
            yield image
        else:
            yield np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def metadata(speaker: Speaker, sound: str) -> dict[str, str]:
    """What marks a rendered video as such."""
    made = f"synthetic media: generated by t3d {t3d.__version__}"
    return {
        "comment": made,
        "description": f"{made}; a trained model of {speaker.name} driven by {sound}",
    }


def render_command(args) -> None:
    """`t3d render`."""
    turned = np.abs((np.concatenate(_angles(args.camera or "front", 1)) + 180) % 360 - 180).max()
    if turned > SOLID:
        words = f"--camera {args.camera}: heads are solid up to about {SOLID:g}°"
        print(f"t3d: warning: {words}", file=sys.stderr)
    audio = read_speech(args.audio)
    run = runs.open_run(args.workdir)
    speaker = speaker_of(run, args.speaker)
    frames = frames_of(audio)
    audio = np.pad(audio, (0, RATE))[: frames * RATE // FPS]
    heard = hear(run, speaker, audio, args.features)
    size, camera = args.size or run.config.size, args.camera or "front"
    if args.composite:
        dataset = runs.dataset_of(run, speaker, args.data)
        size, camera = args.size or dataset.size, "recorded, in its recording"
        images = composite_video(run, speaker, dataset, audio, args.output, heard)
    else:
        images = render_video(run, speaker, audio, camera, args.output, heard)
    images = resized(images, args.size)
    with Bars() as bars:
        video.write_video(
            args.out,
            bars.over("rendering", images, frames),
            audio,
            metadata=metadata(speaker, Path(args.audio).name),
        )
    print(f"{args.out}: {frames / FPS:.1f} s, {size} × {size}, camera {camera}")
