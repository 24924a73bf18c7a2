"""A run: a config, prepared speakers and a folder become a trained talker, and are one again.

Here data and training meet: what a stage's batches need beside the datasets' own fields is made
here, by the networks of the stages before it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import t3d
from t3d import camera as cameras
from t3d import checkpoint, convert, hosts
from t3d import config as configs
from t3d import talker as talkers
from t3d.camera import Camera
from t3d.codes import HeadCodes
from t3d.data import feature_files, framing, video
from t3d.data.parts import fingerprint, write_atomically
from t3d.data.pipeline import (
    HARD_SHIFT,
    SYNC_STEPS,
    WINDOW,
    Source,
    centred_start,
    sync_start,
    to_face,
    window_starts,
)
from t3d.data.speaker_dataset import FACE_SIZE, META, SpeakerDataset, runs_of
from t3d.data.threads import prefetched
from t3d.errors import UserError
from t3d.metrics import lips
from t3d.metrics.action_units import ACTION_UNITS
from t3d.nerf.head import REMAT, View, capacity_of
from t3d.nerf.rays import Guide, between_heights
from t3d.peers import headnerf
from t3d.prior import basis, heads, morphable, paint, shell
from t3d.prior import encoder as encoders
from t3d.prior.shell import Shell
from t3d.space import standardize
from t3d.speech import features, lipnet
from t3d.speech.features import MEL_RATE, mel_window, scale_of, standardise
from t3d.talker import Motion, Talker
from t3d.train import sharding, stages, trainer

CACHE = "cache"  # of a run: arrays that its stages' networks made, until it is finished
BATCH = 8  # frames that a pass over a clip computes at once
TEST_TIME = ("smooth",)  # settings that no training reads
FREE = (*TEST_TIME, "chunk", "remat", "init")  # that may change while a stage trains
HEARS_NOISE = ("lip", "prior", "speech")  # stages that learn from noisy sound, too
NOVEL_YAW, NOVEL_PITCH = 45.0, 20.0  # degrees: random cameras, of terms that nobody filmed
PAINTED, PAINT_SIZE = 48, 256  # frames that tell the surface's colours, most pixels of their side
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Speaker:
    """What is kept of a speaker to make it talk without its dataset.

    Attributes:
        name, prior: of the speaker and of its 3DMM.
        identity [100], albedo [100], illumination [27] (mean over training), intrinsics [4].
        identity_face: [96, 96, 3] I_id in [0, 1].
        head_to_world: [N, 4, 4] the recorded pose of the longest unbroken run of training frames.
        hair: [V] cm of hair over the 3DMM's vertices; room: cm for more of it.
        row: first row of the speaker in the table of per-frame codes.
        voice: [2, D] mean and deviation of what is heard of it (`features.voice_of`).
        feature_scale: [2, D] mean and deviation of its speech features over the training frames;
            [2, 0] where the mel is heard.
    """

    name: str
    prior: str
    identity: np.ndarray
    albedo: np.ndarray
    illumination: np.ndarray
    intrinsics: np.ndarray
    identity_face: np.ndarray
    head_to_world: np.ndarray
    hair: np.ndarray
    room: float
    row: int
    voice: np.ndarray
    feature_scale: np.ndarray = field(default_factory=lambda: np.zeros((2, 0), np.float32))

    @property
    def feature_width(self) -> int:
        """D of the features that are heard in place of the mel; 0 where there are none."""
        return self.feature_scale.shape[1]

    @cached_property
    def shell(self) -> Shell:
        """Where the speaker's rays are sampled."""
        return shell.make_shell(basis.load(self.prior), self.identity, self.hair, self.room)

    def opening(self, expression: np.ndarray) -> np.ndarray:
        """Mouth opening [T] over the eye distance that expressions [T, 79] (σ) give the 3DMM."""
        model = basis.load(self.prior)
        marks = morphable.restrict(model, model.landmarks68)
        return lips.mouth_opening(morphable.vertices(marks, self.identity, expression))

    @property
    def pivot(self) -> np.ndarray:
        """[3] the mean place of the head in the world: what an orbit turns about."""
        return self.head_to_world[:, :3, 3].mean(0)

    @property
    def still_pose(self) -> np.ndarray:
        """[4, 4] the recorded pose nearest to the mean one."""
        flat = self.head_to_world[:, :3].reshape(len(self.head_to_world), -1)
        scale = np.tile([1, 1, 1, 0.1], 3)
        return self.head_to_world[np.argmin((((flat - flat.mean(0)) * scale) ** 2).sum(1))]


@dataclass(frozen=True)
class Run:
    """A trained talker, ready to speak.

    Attributes:
        workdir; config; talker: its networks; params: by stage; speakers: it has learned.
    """

    workdir: Path
    config: ConfigDict
    talker: Talker
    params: dict[str, Any]
    speakers: list[Speaker]


# ---- opening a run


def open_run(workdir: str | Path, needed: Iterable[str] = talkers.STAGES) -> Run:
    """Reads a run; UserError when it is none, or when a stage in `needed` is not done."""
    workdir = Path(workdir)
    entries = checkpoint.read_run(workdir)
    if not entries:
        raise UserError(f"{workdir}: no run; make it with: t3d train --workdir {workdir} …")
    missing = [name for name in needed if not (workdir / "params" / name).is_dir()]
    if missing:
        raise UserError(
            f"{workdir}: stage {', '.join(missing)} is not trained yet; train it first: t3d train "
            f"without --stage trains all that is missing"
        )
    if lost := [key for key in ("config", "data", "rows") if key not in entries]:
        raise UserError(
            f"{workdir / checkpoint.RUN_FILE}: is damaged, it has no {lost[0]}; put a copy of it "
            "back, or delete it and train again"
        )
    config = configs.from_json(json.dumps(entries["config"]))
    known = dict(configs.flatten(configs.load_config("talker")))
    unknown = sorted(known.keys() - dict(configs.flatten(config)).keys())
    if unknown:
        raise UserError(
            f"{workdir}: was trained by an earlier t3d (its config has no {unknown[0]}); train it "
            "again, or open it with that version"
        )
    params = {name: checkpoint.load_params(workdir / "params" / name) for name in needed}
    speakers = _load_speakers(workdir, len(entries["data"]))
    talker = talkers.build(config, entries["rows"], config.nerf.rays**2)
    return Run(workdir, config, talker, params, speakers)


def _save_speakers(workdir: Path, speakers: list[Speaker]) -> None:
    for number, speaker in enumerate(speakers):
        path = workdir / f"speaker_{number}.npz"
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **{f.name: getattr(speaker, f.name) for f in fields(speaker)})
        temporary.replace(path)


def _load_speakers(workdir: Path, count: int) -> list[Speaker]:
    speakers = []
    for path in (workdir / f"speaker_{number}.npz" for number in range(count)):
        try:
            with np.load(path, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
            plain = {k: v.item() if v.ndim == 0 else v for k, v in values.items()}
            speakers.append(Speaker(**plain))
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: is damaged ({error}); run the same t3d train command again to rewrite it"
            ) from error
    return speakers


# ---- a talker at work


def hear(config: ConfigDict, speaker: Speaker, mel: np.ndarray, file: str | Path) -> np.ndarray:
    """What LipNet and StyleNet hear of a sound: its mel, or features in its place.

    Args:
        mel: [M, 80] of the whole sound; file: of its features, where the speaker has any.

    Returns:
        [M, D], 80 steps a second; features have the mel's mean and deviation.

    Raises:
        UserError: as `feature_files.read`; features of another width than those trained on.
    """
    if not speaker.feature_width:
        return mel
    features = feature_files.read(file, config.features.rate, len(mel))
    if features.shape[1] != speaker.feature_width:
        raise UserError(
            f"{file}: has {features.shape[1]} features a step, but {speaker.name} was learned with "
            f"{speaker.feature_width}; make it with the same model"
        )
    return standardise(features, speaker.feature_scale)


def hear_clip(run: Run, speaker: Speaker, dataset: SpeakerDataset) -> np.ndarray:
    """What LipNet and StyleNet hear, [M, D], of the clip that the speaker was learned from.

    Raises:
        UserError: the feature file that the run was trained with is gone or another.
    """
    if not speaker.feature_width:
        return dataset.mel
    entries = {entry["name"]: entry for entry in checkpoint.read_run(run.workdir)["data"]}
    file = feature_files.find(entries[speaker.name]["features"], dataset.path)
    return hear(run.config, speaker, dataset.mel, file)


def voice_of(config: ConfigDict, heard: np.ndarray, usual: np.ndarray | None = None) -> np.ndarray:
    """[2, D] what LipNet leaves out of a whole sound [M, D]: `features.voice_of`, or, where the
    config or features in the mel's place do without, that of speech in general."""
    if config.features.file or not config.lip.normalise:
        return features.any_voice(heard.shape[1])
    return features.voice_of(heard, usual)


def motion_of(
    run: Run,
    speaker: Speaker,
    heard: np.ndarray,
    frames: int | np.ndarray,
    voice: np.ndarray | None = None,
) -> Motion:
    """What a sound does to a speaker's face (II-B), smoothed in time by `speech.smooth` frames.

    Args:
        heard: [M, D] of the whole sound (`hear`); frames: the first T at 25 fps, or their numbers
            [T]; voice: [2, D] that speaks; None: as the sound has it, and a little as the speaker.

    Returns:
        Motion of [T, 79] arrays (NumPy).
    """
    frames = np.arange(frames) if np.ndim(frames) == 0 else frames
    voice = voice_of(run.config, heard, speaker.voice) if voice is None else voice
    windows = mel_windows(heard, frames, run.config.mel_steps)
    drive = driver(run.talker)
    with talkers.exact():
        motion = in_batches(
            lambda window: drive(
                run.params,
                window,
                voice[None],
                np.broadcast_to(speaker.identity, (len(window), 100)),
                speaker.identity_face[None],
            ),
            windows,
        )
    return jax.tree.map(partial(smooth, deviation=run.config.speech.smooth), motion)


@cache
def driver(talker: Talker) -> Callable:
    """`talker.drive` of (params, mel, voice, identity, identity_face), compiled once."""
    return jax.jit(partial(talkers.drive, talker))


def mel_windows(heard: np.ndarray, frames: np.ndarray, steps: int) -> np.ndarray:
    """The windows [N, steps, D] of a mel or features [M, D] about the middles of frames [N]."""
    return np.stack([mel_window(heard, centred_start(int(f), steps), steps) for f in frames])


def smooth(values: np.ndarray, deviation: float) -> np.ndarray:
    """Values [T, …] smoothed in time by a Gaussian of so many frames; the ends repeat."""
    from scipy.ndimage import gaussian_filter1d

    radius = smooth_reach(deviation)
    if not radius:
        return values
    return gaussian_filter1d(values, deviation, axis=0, mode="nearest", radius=radius)


def smooth_reach(deviation: float) -> int:
    """How many frames `smooth` looks ahead and back."""
    return round(4 * deviation)


def in_batches(function: Callable, *arrays: np.ndarray, size: int = 4 * BATCH) -> Any:
    """Maps a jitted function over the leading axis in batches of one size; NumPy trees out."""
    count = len(arrays[0])
    parts = []
    for start in range(0, count, size):
        chosen = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(jax.device_get(function(*[array[chosen] for array in arrays])))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def codes_of(talker: Talker, params: talkers.Params, images: np.ndarray) -> Arrays:
    """Rows of the codes of the Standardized Space that images uint8 [T, s, s, 3] find.

    Returns:
        {"au": int [T, n_au], "global": int [T, s/patch, s/patch]}, of those in use.
    """

    @jax.jit
    def look(params: talkers.Params, batch: jax.Array) -> Arrays:
        _, found = talkers.standardise(talker, params, batch.astype(jnp.float32) / 255)
        rows = {space: found[space].indices for space in ("au", "global") if space in found}
        return rows | ({"au": jnp.swapaxes(rows["au"], 0, 1)} if "au" in rows else {})

    needed = {stage: params[stage] for stage in ("au", "space")}
    return in_batches(partial(look, needed), images, size=BATCH)


def mouths_of(
    talker: Talker,
    params: talkers.Params,
    speaker: Speaker,
    dataset: SpeakerDataset,
    frames: np.ndarray,
) -> np.ndarray:
    """f_exp-aud [T, 79] of filmed mouths: I_id with the frames' lower faces, read by the encoder.

    What LipNet's images would say if they were the truth (oracle Lip-wav images).

    Args:
        params: of the stage prior at least; frames: [T] of the dataset, which is the speaker's.
    """
    points = _face_points(dataset)[:, :68]
    at = dataset.meta["identity_frame"]

    @jax.jit
    def read(face, mouth):
        n = len(face)
        identity = jnp.broadcast_to(speaker.identity_face, (n, 96, 96, 3))
        moved = lipnet.align(face, mouth, jnp.broadcast_to(points[at], (n, 68, 2)))
        image = lipnet.oracle_lip_image(identity, moved)
        return talkers.read_expression(talker, params, image)

    faces = np.stack([dataset.picture(f, "face") for f in frames]).astype(np.float32) / 255
    with talkers.exact():
        return in_batches(read, faces, points[frames])


def frames_of(dataset: SpeakerDataset, split: str) -> np.ndarray:
    """The frames [T] of a split; UserError where it has none."""
    frames = dataset.frames(split)
    if not len(frames):
        raise UserError(
            f"{dataset.path}: its {split} split has no frame with a face; use a longer clip"
        )
    return frames


def sound_of(dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
    """The sound [T · 640] (16 kHz) of frames [T], silent where they outlast it."""
    step = video.RATE // video.FPS
    sound = np.pad(dataset.audio(), (0, video.RATE))
    return sound[frames[:, None] * step + np.arange(step)].ravel()


def guides_of(
    config: ConfigDict,
    speaker: Speaker,
    expression: np.ndarray,
    head_to_world: np.ndarray,
    camera_to_world: np.ndarray,
    rays: int,
) -> Arrays:
    """Guides of T views (fields of prior.shell.guide, [T, R, …]).

    Args:
        expression: [T, 79] that shapes the surface; head_to_world, camera_to_world: [T, 4, 4].
        rays: per side.
    """
    if config.nerf.sampling == "uniform":
        return _uniform_guides(config, head_to_world, camera_to_world, rays)
    if config.nerf.sampling == "heights":
        return _height_guides(config, speaker, head_to_world, camera_to_world, rays)

    def one(frame: int) -> Arrays:
        camera = Camera(speaker.intrinsics, camera_to_world[frame])
        return shell.guide(speaker.shell, expression[frame], head_to_world[frame], camera, rays)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        guides = list(pool.map(one, range(len(expression))))
    return {name: np.stack([guide[name] for guide in guides]) for name in guides[0]}


def _uniform_guides(config, head_to_world, camera_to_world, rays) -> Arrays:
    """The paper's sampling: every ray between two fixed depths about the head."""
    in_camera = cameras.inverse(camera_to_world) @ head_to_world
    distance = np.repeat(in_camera[:, 2, 3:4], rays * rays, 1).astype(np.float32)
    return _everywhere(distance + config.nerf.near, distance + config.nerf.far)


SHALLOW = 0.2  # fall towards the head's frontal plane, per unit of depth


def _height_guides(config, speaker, head_to_world, camera_to_world, rays) -> Arrays:
    """HeadNeRF's sampling: every ray between two planes over and under the head's frontal one."""
    camera = Camera(np.broadcast_to(speaker.intrinsics, (len(camera_to_world), 4)), camera_to_world)
    to_head = cameras.inverse(head_to_world)
    origin, direction = cameras.rays(camera, rays)
    origin = cameras.transform(to_head, origin[:, None])[:, 0]
    direction = direction @ np.swapaxes(to_head[:, :3, :3], -1, -2)
    steep = direction[..., 2] < -SHALLOW  # a ray along the planes meets neither
    down = np.where(steep[..., None], direction, [0.0, 0.0, -1.0])
    near, far = between_heights(origin, down, -config.nerf.near, -config.nerf.far)
    return _everywhere(near, far, steep & (near > 0))


def _everywhere(near: np.ndarray, far: np.ndarray, active: np.ndarray | None = None) -> Arrays:
    """Guides of rays that are all sampled between two depths [T, R], unless `active` says which;
    nothing undoes expression."""
    return {
        "near": near.astype(np.float32),
        "far": far.astype(np.float32),
        "offset": np.zeros((*near.shape, 3), np.float32),
        "active": np.ones(near.shape, bool) if active is None else active,
        "depth": np.full(near.shape, np.inf, np.float32),
        "skin": np.zeros(near.shape, bool),
    }


def render_frames(
    run: Run,
    speaker: Speaker,
    motion: Motion,
    head_to_world: np.ndarray,
    camera_to_world: np.ndarray,
    illumination: np.ndarray | None = None,
    standardised: bool = True,
    batch: int = BATCH,
) -> Iterator[Arrays]:
    """Draws a talking head, `batch` frames at a time.

    Args:
        motion: of T frames; head_to_world, camera_to_world: [T, 4, 4]; illumination: [T, 27], the
            speaker's mean if None.
        standardised: also send the images through the Standardized Space.
        batch: frames at a time; several devices divide them, or the rays of one frame.

    Yields:
        {nerf, standardised: uint8 [n, s, s, 3], alpha, depth: float32 [n, F, F]} of the next n
        frames; depth is that of the view's camera (cm along z), of no meaning where alpha is small.
    """
    frames = len(head_to_world)
    if illumination is None:
        illumination = np.broadcast_to(speaker.illumination, (frames, 27))
    draw = _drawer(run.talker, standardised)
    mesh, rows = _render_mesh(batch), np.tile(rows_of(run, speaker), (batch, 1))
    params = jax.device_put(run.params, sharding.replicated(mesh))

    def asked(start: int) -> tuple[int, HeadCodes, View, int]:
        chosen = np.minimum(np.arange(start, start + batch), frames - 1)
        poses, views = head_to_world[chosen], camera_to_world[chosen]
        expression = motion.expression[chosen]
        guides = guides_of(run.config, speaker, expression, poses, views, run.config.nerf.rays)
        codes = HeadCodes(
            identity=np.broadcast_to(speaker.identity, (batch, 100)),
            expression_speech=motion.speech[chosen],
            expression_style=motion.style[chosen],
            albedo=np.broadcast_to(speaker.albedo, (batch, 100)),
            illumination=illumination[chosen],
        )
        view = View(
            Camera(np.broadcast_to(speaker.intrinsics, (batch, 4)), views), poses, _guide(guides)
        )
        return start, codes, view, capacity_of(guides["active"])

    # The next frames' rays are found while these are drawn.
    for start, codes, view, capacity in prefetched(map(asked, range(0, frames, batch)), 2):
        given = jax.device_put((codes, view, rows), sharding.batch_sharding(mesh))
        with sharding.on(mesh):
            drawn = draw(params, *given, capacity)
        yield {name: np.asarray(image)[: frames - start] for name, image in drawn.items()}


def rows_of(run: Run, speaker: Speaker) -> tuple[int, int]:
    """First and end of a speaker's rows in the table of per-frame codes."""
    later = [other.row for other in run.speakers if other.row > speaker.row]
    return speaker.row, min(later, default=run.talker.head.frames)


def _render_mesh(batch: int) -> Mesh:
    """This host's devices: frames side by side, and the rays of each over the devices left."""
    devices = jax.local_devices()
    data = math.gcd(batch, len(devices))
    sizes = {"population": 1, "data": data, "model": len(devices) // data}
    return sharding.make_mesh(sizes, devices)


def _guide(guides: Arrays) -> Guide:
    return Guide(guides["near"], guides["far"], guides["offset"], guides["active"])


@cache
def _drawer(talker: Talker, standardised: bool) -> Callable:
    @partial(jax.jit, static_argnums=4)
    def draw(params, codes, view, rows, capacity):
        sized = replace(talker, head=replace(talker.head, capacity=capacity))
        seen = talkers.render(sized, params, codes, view, rows=rows)
        images = {"nerf": _uint8(seen.image), "alpha": seen.alpha, "depth": seen.depth}
        if standardised:
            images["standardised"] = _uint8(talkers.standardise(sized, params, seen.image)[0])
        return images

    return draw


def _uint8(image: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


# ---- its recording


def dataset_of(run: Run, speaker: Speaker, moved_to: str | None = None) -> SpeakerDataset:
    """The dataset that a run learned the speaker from; UserError when it is not there any more."""
    entries = {entry["name"]: entry for entry in checkpoint.read_run(run.workdir)["data"]}
    entry = entries[speaker.name]
    path = Path(moved_to or entry["path"])
    if not path.exists():
        raise UserError(
            f"{path}: the dataset that {run.workdir} was trained on is not there; put it back, or "
            "give its place with --data DIR (in Python: its path)"
        )
    dataset = SpeakerDataset(path)
    if dataset.meta["fingerprint"] != entry.get("fingerprint"):
        raise UserError(
            f"{path}: is not the dataset that {run.workdir} was trained on (made of another video, "
            "or with other settings); give that one with --data DIR"
        )
    return dataset


def recorded_frames(dataset: SpeakerDataset) -> np.ndarray:
    """The frames of `Speaker.head_to_world`: the longest unbroken run of training frames."""
    return max(runs_of(dataset.frames("train")), key=len)


# ---- training


def train_command(args) -> None:
    """`t3d train`."""
    config = configs.load_config(args.config, args.overrides)
    check_config(config)
    datasets = open_datasets(args.data)
    if (Path(args.workdir) / META).exists():
        raise UserError(f"--workdir {args.workdir}: is a dataset; name a folder for the run")
    train(config, datasets, Path(args.workdir), args.stage)


def open_datasets(places: str) -> list[SpeakerDataset]:
    """The datasets of `--data DIR,DIR`; UserError where one is none."""
    paths = places.split(",")
    if not all(paths):
        raise UserError(f"--data {places}: a path between the commas is empty")
    return [SpeakerDataset(path) for path in paths]


def train(
    config: ConfigDict,
    datasets: list[SpeakerDataset],
    workdir: Path,
    only: str | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Trains all stages, or only one, on the datasets' training frames.

    Raises:
        UserError: a stage that does not exist, or one whose predecessors are not trained.
    """
    if only and only not in talkers.STAGES:
        raise UserError(f"--stage {only}: no such stage; there are {', '.join(talkers.STAGES)}")
    check_config(config)
    check_datasets(config, datasets)
    mesh = sharding.make_mesh(config.mesh)
    learner = Learner(config, datasets, workdir, workdir / CACHE, log)
    names = talkers.STAGES if only is None else [only]
    sharding.check_batches(mesh, config, names)
    for name in names:
        prepared = learner.prepare(name)
        trainer.run(prepared.stage, prepared.training, mesh, config.mesh.rules, learner.log)
        if name == "space":
            learner.tell_codes()
    if only is None and hosts.is_first():
        shutil.rmtree(workdir / CACHE, ignore_errors=True)


GROUP = 8  # of channels, in group normalisation: how many together, or how many groups
NEGATIVE = ("nerf.near", "mesh.population", "mesh.data", "mesh.model")  # may be under 0
COUNTS = re.compile(  # must be 1 or more
    r"size|mel_steps|.*\.(width|judge_width|dim|depth|bottleneck)|nerf\.(rays|samples|features)|"
    r"space\.(au_codes|global_codes|render_every)|"
    r"stages\..*\.(batch_size|steps)"
)
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "speech.inputs": talkers.AUDIO_INPUTS,
    "nerf.encoding": ("planes", "fourier"),
    "nerf.sampling": ("shell", "uniform", "heights"),
    "nerf.density": ("softplus", "relu"),
    "nerf.looks": ("feature", "colour"),
    "nerf.backdrop": ("colour", "map"),
    "nerf.spread": ("tile", "nearest"),
    "nerf.points": ("middle", "edge"),
    "nerf.remat": REMAT,
}


def check_config(config: ConfigDict) -> None:
    """UserError for values that fit their type but no network: before the first step, not later."""
    for name, value in configs.flatten(config):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and name not in NEGATIVE and not 0 <= value < math.inf:
            raise UserError(f"config.{name}={value:g}: must be 0 or more")
        if number and COUNTS.fullmatch(name) and value < 1:
            raise UserError(f"config.{name}={value:g}: must be 1 or more")
    values = dict(configs.flatten(config))
    for name, choices in CHOICES.items():
        value = values[name]
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1, 0.0)[0]
            raise UserError(
                f"config.{name}={value}: must be one of {', '.join(choices)}; did you mean {near}?"
            )
    if config.nerf.sampling != "shell" and stages.looks_from_elsewhere(config.nerf):
        raise UserError(
            "config.nerf.geometry_weight and paint_weight: the 3DMM's surface comes with "
            "nerf.sampling=shell; set --config.nerf.geometry_weight=0 --config.nerf.paint_weight=0 "
            f"with nerf.sampling={config.nerf.sampling}"
        )
    if config.nerf.rays < 2:
        raise UserError(f"config.nerf.rays={config.nerf.rays}: must be 2 or more")
    if config.nerf.chunk < 0:
        raise UserError(f"config.nerf.chunk={config.nerf.chunk}: must be 0 (all points) or more")
    if config.lip.ears < 1:
        raise UserError(f"config.lip.ears={config.lip.ears}: must be 1 or more")
    if config.lip.deaf_to_images and not config.lip.code_weight:
        raise UserError(
            "config.lip.code_weight=0: nothing would teach the ears, which are deaf to images; set "
            "--config.lip.deaf_to_images=False --config.lip.ears=1 with it"
        )
    if config.lip.ears > 1 and not (config.lip.deaf_to_images and config.lip.code_weight):
        raise UserError(
            f"config.lip.ears={config.lip.ears}: images would teach every ear all sounds; set "
            "--config.lip.ears=1, or leave lip.deaf_to_images and lip.code_weight on"
        )
    if tuple(config.au.units) != ACTION_UNITS:
        raise UserError(
            f"config.au.units={tuple(config.au.units)}: datasets hold labels of {ACTION_UNITS}, in "
            "this order; leave it"
        )
    for name in ("sync.width", "sync.judge_width", "prior.width"):
        if values[name] % GROUP:
            raise UserError(
                f"config.{name}={values[name]}: must be a multiple of {GROUP}, the channels that "
                "are normalised together"
            )
    if config.au.width % max(1, groups := min(GROUP, config.au.width // 2)):
        raise UserError(
            f"config.au.width={config.au.width}: must be a multiple of {groups}, the groups that "
            "its channels are normalised in"
        )
    if not 0 < config.features.rate < math.inf:
        raise UserError(
            f"config.features.rate={config.features.rate:g}: must be the steps a second of "
            "features.file, above 0"
        )
    if not 0 <= config.space.ema < 1:
        raise UserError(
            f"config.space.ema={config.space.ema:g}: must be 0 (codes learn by their loss) or "
            "a decay under 1, such as 0.99"
        )
    ratio, patch = config.size / config.nerf.rays, config.space.patch
    if ratio < 1 or ratio != 2 ** round(math.log2(ratio)):
        raise UserError(
            f"config.size={config.size}: must be nerf.rays={config.nerf.rays} doubled once or "
            "several times"
        )
    if patch < 2 or patch & (patch - 1) or config.size % patch:
        raise UserError(
            f"config.space.patch={patch}: must be a power of two that divides size={config.size}"
        )


def check_init(config: ConfigDict) -> None:
    """UserError where the weights to start from are of another network than the config's."""
    present = dict(configs.flatten(config))
    for name, value in headnerf.settings_of(convert.load(config.nerf.init, "headnerf")).items():
        if present[name] != value:
            raise UserError(
                f"{config.nerf.init}: its weights are of a network with {name}={value}, not "
                f"{present[name]}; use --config headnerf with --config.{name}={value}"
            )


def check_datasets(config: ConfigDict, datasets: list[SpeakerDataset]) -> None:
    """UserError for speakers that cannot be learned, or not together."""
    for dataset in datasets:
        if config.size > dataset.size:
            raise UserError(
                f"{dataset.path}: its images are {dataset.size}² but the config wants "
                f"{config.size}²; prepare it with --size {config.size} or more"
            )
        for split in ("train", "validation"):
            if not len(window_starts(dataset.frames(split))[0]):
                raise UserError(
                    f"{dataset.path}: its {split} part has no five frames in a row with a face; "
                    "use a longer clip"
                )
    places = [d.path.resolve() for d in datasets]
    if len(set(places)) < len(places):
        raise UserError("--data: names one folder twice; give each dataset once")
    names = [d.name for d in datasets]
    if len(set(names)) < len(names):
        raise UserError(
            f"--data: two datasets have one name ({', '.join(names)}); prepare one anew"
        )
    priors = [d.meta["prior"] for d in datasets]
    if len(set(priors)) > 1:
        raise UserError(
            f"--data: speakers have different 3D models ({', '.join(priors)}); prepare them with "
            "one --prior"
        )
    if config.features.file:
        _check_features(config, datasets)


def _check_features(config: ConfigDict, datasets: list[SpeakerDataset]) -> None:
    """UserError for feature files that are none, or not of these speakers, or not of one model."""
    file = config.features.file
    if len(datasets) > 1 and feature_files.NAME not in file:
        raise UserError(
            f"config.features.file={file}: is one file for {len(datasets)} speakers; write "
            f"{feature_files.NAME} in it for the dataset's name"
        )
    widths = {d.name: _features_of(config, d).shape[1] for d in datasets}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(
            f"config.features.file={file}: speakers have features of different widths ({told}); "
            "make all files with one model"
        )


def _features_of(config: ConfigDict, dataset: SpeakerDataset) -> np.ndarray:
    """The features [M, D] of a dataset's clip as they are in its file, at the mel's times."""
    path = feature_files.path_of(config.features.file, dataset.name)
    return feature_files.read(path, config.features.rate, len(dataset.mel))


def record_of(config: ConfigDict, datasets: list[SpeakerDataset]) -> dict:
    """What run.json says of a run before its first stage: config, data, rows."""
    data = [
        {
            "path": str(d.path.resolve()),
            "name": d.name,
            "sha256": d.meta["source_sha256"],
            "fingerprint": d.meta["fingerprint"],
        }
        for d in datasets
    ]
    if config.features.file:
        for own in data:
            path = feature_files.path_of(config.features.file, own["name"])
            own["features"] = feature_files.entry(path, config.features.rate)
    rows = sum(d.num_frames for d in datasets)
    return {"config": json.loads(configs.to_json(config)), "data": data, "rows": rows}


@dataclass(frozen=True)
class Prepared:
    """A stage of a run, ready to be trained.

    Attributes:
        stage; training: for `trainer.run`.
        rows, capacity: of the networks (`talker.build`); facts: of the stages.
    """

    stage: trainer.Stage
    training: trainer.Training
    rows: int
    capacity: int
    facts: stages.Facts


class Learner:
    """A run in training: feeds its stages with its datasets and what earlier networks make."""

    def __init__(
        self,
        config: ConfigDict,
        datasets: list[SpeakerDataset],
        workdir: Path,
        cache: Path,
        log: Callable[[str], None] = print,
    ):
        """Args: cache: folder of the arrays that earlier stages' networks make; runs can share it.
        log: takes a line; on the job's first host."""
        self.config, self.datasets, self.workdir, self.cache = config, datasets, workdir, cache
        self.log = log if hosts.is_first() else lambda line: None
        record = record_of(config, datasets)
        checkpoint.writable_folder(workdir)
        check_same_run(workdir, record["config"], record["data"])
        if config.nerf.init and not self.is_finished("nerf"):
            check_init(config)
        self.rows = np.cumsum([0] + [d.num_frames for d in datasets])
        kept = self._trained_speakers()
        self.speakers = [
            _speaker(config, d, int(row), old) for d, row, old in zip(datasets, self.rows, kept)
        ]
        self.heard = [self._hear(d, s) for d, s in zip(datasets, self.speakers)]
        self.features = [own.get("features") for own in record["data"]]
        hosts.meet("settings are checked")
        if hosts.is_first():
            _save_speakers(workdir, self.speakers)
            checkpoint.update_run(workdir, **record)
        hosts.meet("run.json is written")
        self.sources = {
            split: Source(datasets, split, self.heard, partial(voice_of, config))
            for split in ("train", "validation")
        }
        self.arrays: dict[str, list[np.ndarray]] = {}
        self.capacity = config.nerf.rays**2

    def _trained_speakers(self) -> list[Speaker | None]:
        """The speakers as the field was trained on them; None each before, or if they are lost."""
        none = [None] * len(self.datasets)
        if not self.is_finished("nerf"):
            return none
        try:
            return _load_speakers(self.workdir, len(self.datasets))
        except UserError:
            return none

    def prepare(self, name: str, threads: int = 2) -> Prepared:
        """Readies one stage; its arrays are made only if it is not finished.

        Args:
            threads: that read its batches ahead.
        """
        frozen = open_run(self.workdir, talkers.NEEDS[name]).params
        if not self.is_finished(name):
            with talkers.exact():
                self._make_arrays(name, frozen)
        stage = self.stage(name)
        options = dict(size=self.config.size, mel_steps=self.config.mel_steps)
        settings, seed = stage.config, self.config.seed
        arrays = {key: value for key, value in self.arrays.items() if key in stage.fields}
        noisy = self.arrays.get("noisy_mel") if name in HEARS_NOISE else None
        training = trainer.Training(
            frozen,
            lambda step, rows: self.sources["train"].batches(
                stage.fields,
                settings.batch_size,
                seed,
                name,
                step,
                arrays=arrays,
                rows=None if len(rows) == settings.batch_size else rows,
                threads=threads,
                noisy=noisy,
                **options,
            ),
            lambda rows: self.sources["validation"].even_batches(
                stage.fields,
                settings.batch_size,
                settings.validation_batches,
                arrays=arrays,
                rows=rows,
                **options,
            ),
            self.workdir,
            seed,
            made_of=self._made_of(name),
        )
        return Prepared(stage, training, int(self.rows[-1]), self.capacity, self.facts)

    def tell_codes(self) -> None:
        """Says how many codes of the trained space the validation frames find."""
        params = open_run(self.workdir, ("au", "space")).params
        images = [
            dataset.picture(f, "head", self.config.size)
            for dataset in self.datasets
            for f in dataset.frames("validation")
        ]
        if not images or not hosts.is_first():
            return
        rows, space = codes_of(self._talker(), params, np.stack(images)), self.config.space
        for name, size in (("au", space.au_codes), ("global", space.global_codes)):
            if name in rows:
                self.log(f"space: {standardize.in_words(name, rows[name], size)}")

    def stage(self, name: str) -> trainer.Stage:
        """The stage, with networks of the size known so far."""
        return stages.make_stages(self.config, self._talker(), self.facts)[name]

    def is_finished(self, name: str) -> bool:
        """Whether a stage has had all its steps; the first host of a job decides."""
        done = checkpoint.read_run(self.workdir).get("stages", {}).get(name, {})
        enough = done.get("steps", -1) >= self.config.stages[name].steps
        return hosts.as_first_says(enough and (self.workdir / "params" / name).is_dir())

    def identity(self, name: str) -> tuple:
        """What decides a stage's outcome beside the config: seed, data, the stages before it."""
        done = checkpoint.read_run(self.workdir).get("stages", {})
        needed = (done[need]["sha256"] for need in talkers.NEEDS[name])
        data = (dataset.meta["fingerprint"] for dataset in self.datasets)
        hearing = name in talkers.HEARING
        heard = map(feature_files.identity, self.features if hearing else ())
        return (self.config.seed, *data, *heard, *needed)

    def _made_of(self, name: str) -> dict[str, Any]:
        """What decides a stage's outcome beside seed, schedule and the stages before it."""
        own = {f"{name}.{k}": v for k, v in self.config[name].items() if k not in FREE}
        data = [dataset.meta["fingerprint"] for dataset in self.datasets]
        made_of = {"data": data, "size": self.config.size, "dtype": self.config.dtype, **own}
        if name in talkers.HEARING:
            heard = [feature_files.identity(features) for features in self.features]
            made_of |= {"mel_steps": self.config.mel_steps, "features": heard}
        return made_of

    @cached_property
    def facts(self) -> stages.Facts:
        shown = [d.track["au"][d.frames("train")] for d in self.datasets]
        marks = encoders.marks_basis(basis.load(self.speakers[0].prior))
        return stages.Facts(np.concatenate(shown).mean(0), marks)

    def _hear(self, dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
        file = feature_files.path_of(self.config.features.file, dataset.name)
        return hear(self.config, speaker, dataset.mel, file)

    def _windows(self, dataset: SpeakerDataset, frames: np.ndarray) -> np.ndarray:
        heard = self.heard[self.datasets.index(dataset)]
        return mel_windows(heard, frames, self.config.mel_steps)

    def _frames(self, dataset: SpeakerDataset, splits=("train", "validation")) -> np.ndarray:
        return np.concatenate([dataset.frames(split) for split in splits])

    def _spread(self, dataset: SpeakerDataset, frames: np.ndarray, values: np.ndarray):
        """Values [N, …] of some frames as an array [T, …], zero elsewhere."""
        full = np.zeros((dataset.num_frames, *values.shape[1:]), values.dtype)
        full[frames] = values
        return full

    def _make_arrays(self, name: str, frozen: dict) -> None:
        nerf, space = self.config.nerf, self.config.space
        if name == "lip" and self.config.features.file:
            self.log("lip: noisy copies and silence are the mel's: with features they are left out")
        if name in HEARS_NOISE and self.config.lip.noisy and not self.config.features.file:
            what = [self.config.seed, self.config.lip.noisy]
            self._keep(["noisy_mel"], [], what, self._noisy_mel)
        if name in ("lip", "prior"):
            self._need("identity_points_face", _identity_points)
            self._need("deaf_ear", self._deaf_ears)
        if name == "lip":
            self._need("mean_expression", _mean_expression)
            self._need("sync_proved", partial(self._sync_proved, frozen))
        if name == "prior" and self.config.prior.rendered:
            what = [self.config.seed, self.config.prior.rendered, len(self.datasets)]
            self._keep(stages.RENDERED, [], what, self._rendered)
            for field in stages.RENDERED:
                self.arrays[field] = [_Cycle(values) for values in self.arrays[field]]
        if name in ("speech", "nerf", "space"):
            made = ["lip_codes", "silent_codes"]
            self._keep(made, ["lip", "prior"], [], partial(self._lip_codes, frozen))
        filmed = space.renders and space.filmed_mouths
        if name == "nerf" or (name == "space" and filmed):
            self._keep(["oracle_codes"], ["prior"], [], partial(self._oracle_codes, frozen))
        if name == "nerf":
            self._need("row", lambda d, s: np.arange(d.num_frames, dtype=np.int32) + s.row)
            self._need("rows", _rows)
            what = [self.config.seed, nerf.rays, nerf.sampling, nerf.near, nerf.far]
            what += [_digest(s.hair, s.room) for s in self.speakers]
            names = stages.GUIDE + (stages.NOVEL if stages.looks_from_elsewhere(nerf) else ())
            self._keep(names, [], what, self._guides)
            self.capacity = max(map(capacity_of, self.arrays["guide_active"]))
        if name == "space":
            self._need("has_render", self._has_render)
            what = [space.render_every, bool(space.renders), bool(space.filmed_mouths)]
            needed = ["lip", "prior", "speech", "nerf"]
            self._keep(["render"], needed, what, partial(self._renders, frozen))

    def _need(self, name: str, make: Callable[[SpeakerDataset, Speaker], np.ndarray]) -> None:
        self.arrays[name] = [make(d, s) for d, s in zip(self.datasets, self.speakers)]

    def _keep(
        self,
        names: Sequence[str],
        networks: Sequence[str],
        settings: Sequence[Any],
        make: Callable[[SpeakerDataset, Speaker], Arrays],
    ) -> None:
        """Arrays that take time: made once by the first host, and kept on disk for all.

        Args:
            names: of the arrays, {name: [T, …]} of `make`; networks: the stages whose outcome and
            config they hang on; settings: what else of the config.
        """
        trained = checkpoint.read_run(self.workdir)["stages"]
        config = json.loads(configs.to_json(self.config))
        hangs_on = [t3d.__version__, config["dtype"], config["mel_steps"], config["size"], settings]
        hangs_on += [[config[name], trained[name]["sha256"]] for name in networks]
        files = []
        for dataset, speaker in zip(self.datasets, self.speakers):
            digest = fingerprint([*hangs_on, dataset.meta["fingerprint"], speaker.row])
            files.append({name: self.cache / f"{name}-{digest}.npy" for name in names})
            if hosts.is_first() and not all(path.exists() for path in files[-1].values()):
                checkpoint.writable_folder(self.cache)
                for name, values in make(dataset, speaker).items():
                    write_atomically(files[-1][name], partial(np.save, arr=values))
        hosts.meet(f"{names[0]} is made")
        for name in names:
            self.arrays[name] = [np.load(file[name], mmap_mode="r") for file in files]

    def _talker(self) -> Talker:
        return talkers.build(self.config, int(self.rows[-1]), self.capacity)

    def _lip_codes(self, frozen, dataset, speaker) -> Arrays:
        """f_exp-aud that LipNet's images give, of the training and validation frames."""
        frames = self._frames(dataset)
        read = jax.jit(partial(talkers.speech_codes, self._talker()))
        windows = self._windows(dataset, frames)
        voice, face = speaker.voice[None], speaker.identity_face[None]
        silence = np.full((1, *windows.shape[1:]), -4.0, np.float32)  # the mel's floor
        deaf = np.append(self._deaf_ears(dataset, speaker)[frames], -1)
        sounds = np.concatenate([windows, silence])
        codes = in_batches(lambda w, d: read(frozen, w, voice, face, d), sounds, deaf)
        return {
            "lip_codes": self._spread(dataset, frames, codes[:-1]),
            "silent_codes": np.broadcast_to(codes[-1], (dataset.num_frames, *codes.shape[1:])),
        }

    def _deaf_ears(self, dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
        """[T]: which of LipNet's ears does not learn from a training frame; −1 of other frames.

        The training frames are cut into as many parts as there are ears.
        """
        deaf = np.full(dataset.num_frames, -1, np.int32)
        if self.config.lip.ears > 1:
            parts = np.array_split(dataset.frames("train"), self.config.lip.ears)
            for ear, frames in enumerate(parts):
                deaf[frames] = ear
        return deaf

    def _noisy_mel(self, dataset: SpeakerDataset, speaker: Speaker) -> Arrays:
        rng = np.random.default_rng([self.config.seed, speaker.row])
        return {"noisy_mel": features.noisy_mels(dataset.audio(), self.config.lip.noisy, rng)}

    def _sync_proved(self, frozen, dataset, speaker) -> np.ndarray:
        """[T]: 1 where SyncNet may teach LipNet this speaker, else 0 (all alike)."""
        accuracy = coach_accuracy(self._talker(), frozen, dataset)
        wanted = self.config.lip.sync_proof
        proved = accuracy >= wanted
        self.log(
            f"lip: SyncNet tells {accuracy:.0%} of {speaker.name}'s validation windows from sound "
            f"{HARD_SHIFT[0]} to {HARD_SHIFT[1]} frames off ({wanted:.0%} wanted): its loss "
            + ("counts" if proved else "is left out")
        )
        return np.full(dataset.num_frames, proved, np.float32)

    def _oracle_codes(self, frozen, dataset, speaker) -> Arrays:
        """f_exp-aud of the filmed mouths."""
        frames = self._frames(dataset)
        codes = mouths_of(self._talker(), frozen, speaker, dataset, frames)
        return {"oracle_codes": self._spread(dataset, frames, codes)}

    def _rendered(self, dataset: SpeakerDataset, speaker: Speaker) -> Arrays:
        """Heads with random codes, about the speaker's and what was seen in training."""
        self.log("prior: drawing heads with random codes")
        count = -(-self.config.prior.rendered // len(self.datasets))
        rng = np.random.default_rng([self.config.seed, speaker.row])
        model, frames = basis.load(speaker.prior), dataset.frames("train")
        seen = {name: dataset.track[name] for name in heads.CODES}
        for name in ("expression", "illumination", "head_to_world"):
            seen[name] = seen[name][frames]
        codes = heads.draw_codes(model, seen, count, rng)
        boxes = _boxes_of_heads(model, codes, speaker.intrinsics)
        faces = heads.draw_heads(model, codes, speaker.intrinsics, boxes, FACE_SIZE, rng)
        arrays = {"face": faces, "face_box": boxes, **codes}
        return {f"rendered_{name}": values for name, values in arrays.items()}

    def _guides(self, dataset: SpeakerDataset, speaker: Speaker) -> Arrays:
        """Shells of the recorded views and of one random view of each frame."""
        self.log("nerf: finding where the rays meet the head")
        frames = self._frames(dataset)
        expression = dataset.track["expression"][frames]
        pose = dataset.track["head_to_world"][frames]
        still = np.broadcast_to(np.eye(4, dtype=np.float32), pose.shape)
        rays = self.config.nerf.rays
        seen = guides_of(self.config, speaker, expression, pose, still, rays)
        arrays = {
            f"guide_{name}": self._spread(dataset, frames, seen[name])
            for name in ("near", "far", "offset", "active")
        }
        if not stages.looks_from_elsewhere(self.config.nerf):
            return arrays
        views = _random_views(self.config.seed, speaker, pose)
        novel = guides_of(self.config, speaker, expression, pose, views, stages.novel_rays(rays))
        novel |= self._paint(dataset, speaker, expression, pose, views)
        hit = np.isfinite(novel["depth"])
        novel["depth"] = np.where(hit, novel["depth"], 0.0).astype(np.float32)
        novel["camera"] = views
        for name in (n.removeprefix("novel_") for n in stages.NOVEL):
            arrays[f"novel_{name}"] = self._spread(dataset, frames, novel[name])
        return arrays

    def _paint(self, dataset, speaker, expression, pose, views) -> Arrays:
        """Of the speaker's surface, for the rays of N random views: colour, painted [N, R, …]."""
        track, size = dataset.track, min(dataset.size, PAINT_SIZE)
        few = _turned(track["head_to_world"], dataset.frames("train"), PAINTED)
        colours = paint.paint(
            speaker.shell,
            track["expression"][few],
            track["head_to_world"][few],
            cameras.recorded(speaker.intrinsics),
            np.stack([dataset.picture(f, "image", size) for f in few]),
            np.stack([dataset.picture(f, "mask", size) for f in few]) / 255.0,
        )
        side = stages.novel_rays(self.config.nerf.rays)

        def one(frame: int) -> tuple[np.ndarray, np.ndarray]:
            camera = Camera(speaker.intrinsics, views[frame])
            return paint.drawn(speaker.shell, colours, expression[frame], pose[frame], camera, side)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            drawn = pool.map(one, range(len(views)))
            return dict(zip(("colour", "painted"), map(np.stack, zip(*drawn)), strict=True))

    def _has_render(self, dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
        """[T] bool: the frames whose render the space learns from."""
        chosen = np.zeros(dataset.num_frames, bool)
        if self.config.space.renders:
            chosen[dataset.frames("train")[:: self.config.space.render_every]] = True
        return chosen

    def _renders(self, frozen, dataset, speaker) -> Arrays:
        """The field's own renders of every few training frames, as the space will meet them.

        With the mouths that were filmed, what it learns from is what it should keep; the sound's
        differ from the real frames', and it would learn to flatten them.
        """
        frames = np.flatnonzero(self._has_render(dataset, speaker))
        if not len(frames):
            size = self.config.size
            return {"render": np.zeros((dataset.num_frames, size, size, 3), np.uint8)}
        self.log("space: rendering training frames with the field")
        style = jax.jit(partial(talkers.style_codes, self._talker()))
        windows = self._windows(dataset, frames)
        identity = np.broadcast_to(speaker.identity, (4 * BATCH, 100))
        styles = in_batches(lambda w: style(frozen, w, identity), windows)
        index = self.datasets.index(dataset)
        fuse = jax.jit(partial(talkers.fuse, self._talker(), frozen))
        speech = "oracle_codes" if self.config.space.filmed_mouths else "lip_codes"
        motion = in_batches(fuse, self.arrays[speech][index][frames], styles)
        motion = motion.replace(expression=dataset.track["expression"][frames])
        run = Run(self.workdir, self.config, self._talker(), frozen, self.speakers)
        pose = dataset.track["head_to_world"][frames]
        views = np.broadcast_to(np.eye(4, dtype=np.float32), pose.shape)
        light = dataset.track["illumination"][frames]
        parts = render_frames(run, speaker, motion, pose, views, light, standardised=False)
        images = np.concatenate([part["nerf"] for part in parts])
        return {"render": self._spread(dataset, frames, images)}


def coach_accuracy(talker: Talker, params: talkers.Params, dataset: SpeakerDataset) -> float:
    """Share of the pairs of a validation window and sound 5 to 15 frames off in which SyncNet finds
    the window nearer to its own sound."""
    starts, _ = window_starts(dataset.frames("validation"))
    look, hear = (
        jax.jit(partial(talker.coach.apply, params["sync"]["coach"], method=f"{name}_embedding"))
        for name in ("face", "audio")
    )

    def windows(of: np.ndarray) -> jax.Array:
        faces = [[dataset.picture(f + k, "face") for k in range(WINDOW)] for f in of]
        return look(np.asarray(faces, np.float32) / 255)

    faces = in_batches(windows, starts)
    mel = [mel_window(dataset.mel, sync_start(int(s)), SYNC_STEPS) for s in starts]
    cosines = faces @ in_batches(hear, np.stack(mel)).T
    apart = np.abs(starts[:, None] - starts)
    other = (apart >= HARD_SHIFT[0]) & (apart <= HARD_SHIFT[1])
    nearer = np.diagonal(cosines)[:, None] > cosines
    return float(nearer[other].mean()) if other.any() else 0.0


def check_same_run(workdir: Path, config: dict, data: list[dict]) -> None:
    """UserError when what finished stages were trained with is not what is asked for now.

    Stages still to come may change; so may what only matters at test time.
    """
    before = checkpoint.read_run(workdir)
    done = [
        name
        for name in talkers.STAGES
        if name in before.get("stages", {}) and (workdir / "params" / name).is_dir()
    ]
    if not done:
        return
    remedy = "take another --workdir, or go on with the old value"
    if [d.get("fingerprint") for d in before["data"]] != [d["fingerprint"] for d in data]:
        names = ", ".join(d["name"] for d in before["data"])
        raise UserError(
            f"{workdir}: was trained on other data ({names}, or it was prepared with other "
            f"settings); {remedy}"
        )
    for old, new in zip(before["data"], data):
        old, new = old.get("features"), new.get("features")
        if feature_files.identity(old) != feature_files.identity(new):
            raise UserError(
                f"{workdir}: was trained on {feature_files.describe(old)}, not on "
                f"{feature_files.describe(new)}; {remedy}"
            )
    for group in (*done, "size", "dtype", "mel_steps", "seed"):
        old, new = before["config"].get(group), config[group]
        old, new = (v if isinstance(v, dict) else {"": v} for v in (old, new))
        for key in sorted(old.keys() | new.keys()):
            if key not in TEST_TIME and _place(key, old.get(key)) != _place(key, new.get(key)):
                name = f"{group}.{key}".rstrip(".")
                raise UserError(
                    f"{workdir}: its finished stages had {name}={old.get(key)}, not "
                    f"{new.get(key)}; {remedy}"
                )


def _place(key: str, value: Any) -> Any:
    """A value of the config as it is compared: paths are absolute."""
    return os.path.abspath(value) if key == "init" and value else value


def _rows(dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
    """[T, 2] first and end of the speaker's rows in the table of per-frame codes."""
    own = np.array([speaker.row, speaker.row + dataset.num_frames], np.int32)
    return np.tile(own, (dataset.num_frames, 1))


class _Cycle:
    """Values [N, …] for frames of any number: after the last comes the first."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def __getitem__(self, frame: int) -> np.ndarray:
        return self._values[frame % len(self._values)]


def _boxes_of_heads(model, codes: Arrays, intrinsics: np.ndarray) -> np.ndarray:
    """Face crops [N, 3] of heads, cut as those of a clip: they say nothing about the mouth."""
    small = morphable.restrict(model, model.landmarks68)
    calm = morphable.vertices(small, codes["identity"], np.zeros_like(codes["expression"]))
    world = cameras.transform(codes["head_to_world"], calm)
    points, _ = cameras.project(cameras.recorded(intrinsics), world)
    return np.concatenate([framing.face_boxes(one[None]) for one in points])


def _face_points(dataset: SpeakerDataset) -> np.ndarray:
    """Landmarks and lip points [T, 147, 2] in fractions of the face crops."""
    points = np.concatenate([dataset.track["points68"], dataset.track["lips79"]], 1)
    return np.nan_to_num(to_face(points, dataset.track["face_box"]).astype(np.float32), nan=0.5)


def _identity_points(dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
    """Those of the identity image, for every frame."""
    points = _face_points(dataset)
    return np.broadcast_to(points[dataset.meta["identity_frame"]], points.shape)


def _mean_expression(dataset: SpeakerDataset, speaker: Speaker) -> np.ndarray:
    """That of the training frames, [79], for every frame."""
    mean = dataset.track["expression"][dataset.frames("train")].mean(0)
    return np.broadcast_to(mean, dataset.track["expression"].shape)


def _random_views(seed: int, speaker: Speaker, pose: np.ndarray) -> np.ndarray:
    """One camera [N, 4, 4] for each pose, turned about the head at random."""
    rng = np.random.default_rng(seed)
    turns = rng.uniform(-1, 1, (len(pose), 2)) * [NOVEL_YAW, NOVEL_PITCH]
    camera = cameras.recorded(speaker.intrinsics)
    views = [
        cameras.orbit(camera, head[:3, 3], yaw, pitch).camera_to_world
        for head, (yaw, pitch) in zip(pose, turns)
    ]
    return np.stack(views).astype(np.float32)


def _feature_scale(config: ConfigDict, dataset: SpeakerDataset) -> np.ndarray:
    """[2, D] of the features heard in the dataset's training frames; [2, 0] of the mel."""
    if not config.features.file:
        return np.zeros((2, 0), np.float32)
    features = _features_of(config, dataset)
    frames = np.arange(len(features)) * video.FPS // MEL_RATE
    return scale_of(features[np.isin(frames, dataset.frames("train"))])


def _voice(config: ConfigDict, dataset: SpeakerDataset) -> np.ndarray:
    """[2, D] what LipNet leaves out of the dataset's sound."""
    heard = _features_of(config, dataset) if config.features.file else dataset.mel
    return voice_of(config, heard)


def _digest(*arrays: Any) -> str:
    """A name for values, to tell others by."""
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()[:12]


def _turned(head_to_world: np.ndarray, frames: np.ndarray, count: int = 24) -> np.ndarray:
    """Of some frames `count` from the most to the least turned to a side."""
    order = frames[np.argsort(head_to_world[frames, 0, 2], kind="stable")]
    return order[np.linspace(0, len(order) - 1, count).astype(int)]


def _hair(config: ConfigDict, dataset: SpeakerDataset) -> tuple[np.ndarray, float]:
    """Hair [V] over the 3DMM's vertices, and room for more of it (cm)."""
    frames, track = dataset.frames("train"), dataset.track
    few = _turned(track["head_to_world"], frames)
    model, identity = basis.load(dataset.meta["prior"]), track["identity"]
    masks = np.stack([dataset.picture(f, "mask", 128) for f in few]) / 255.0
    if not (masks > 0.5).any():
        raise UserError(f"{dataset.path}: none of its masks shows a head; prepare it again")
    seen = track["head_to_world"][few], cameras.recorded(track["intrinsics"]), masks
    hair = np.zeros(len(model.mean), np.float32)
    if config.nerf.hair and config.nerf.sampling == "shell":
        hair = shell.fit_hair(model, identity, *seen)
    head = shell.make_shell(model, identity, hair, 0.0)
    return hair, shell.fit_room(head, track["expression"][few], *seen)


def _speaker(
    config: ConfigDict, dataset: SpeakerDataset, row: int, trained: Speaker | None = None
) -> Speaker:
    """What a run keeps of a dataset; everything is taken from its training frames.

    Args:
        trained: as a finished field knows the speaker; its hair is kept.
    """
    frames, track = dataset.frames("train"), dataset.track
    hair, room = (trained.hair, trained.room) if trained else _hair(config, dataset)
    face = dataset.picture(dataset.meta["identity_frame"], "face").astype(np.float32) / 255
    return Speaker(
        name=dataset.name,
        prior=dataset.meta["prior"],
        identity=track["identity"],
        albedo=track["albedo"],
        illumination=track["illumination"][frames].mean(0),
        intrinsics=track["intrinsics"],
        identity_face=face,
        head_to_world=track["head_to_world"][recorded_frames(dataset)],
        hair=hair,
        room=room,
        row=row,
        voice=_voice(config, dataset),
        feature_scale=_feature_scale(config, dataset),
    )
