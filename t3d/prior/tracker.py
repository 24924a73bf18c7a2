"""The tracker: landmarks and pixels of a whole clip to 3DMM coefficients and cameras (II-A).

The clip is fitted at once: identity, albedo and focal length are one per speaker and are fitted on
the training frames only; pose, expression and illumination are per frame and smooth in time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from t3d import camera as cameras
from t3d.prior import appearance, bundle, gaps, occlusion
from t3d.prior.morphable import EXPRESSION_DIM, EXPRESSION_STD, IDENTITY_DIM, MorphableModel

FOCAL_PRIOR = 4.0  # × image side: HeadNeRF's; a frontal clip cannot tell the focal length
KAPPA_PRIOR = 0.15  # deviation of 1 / focal length about 1 / FOCAL_PRIOR: heads 0.6 to 3 m away
KAPPA_TOLD = 0.5  # the same while the landmarks are asked
MEDIAPIPE_DOUBT = 2.65  # what four rendered heads seen by MediaPipe were off, over what it said
OBSERVABLE = 0.35  # deviation of log focal length up to which it is said to be found
JAW = slice(0, 17)
NAMED_NOISE = 0.3  # σ by which a detector's blendshape weights are off
SHARED_FRAMES = 200  # that a speaker's constants are fitted on
CHUNK = 256
JOINED_STEPS = 3
WINDOW, OVERLAP = 2000, 50  # frames
TELLING = 2000  # frames that tell how much a head moves by itself
FEW = 0.01  # share of lost frames that a speaker's constants bear
COLOUR_FRAMES, PSNR_FRAMES, COLOUR_CHUNK = 48, 120, 64
PIXEL_ROUNDS = 2  # the colours are told better where the first round has put the frames
PIXELS_WORTH = 0.2  # share of the vertices' colours that err by themselves
LIGHT_CHANGES = 3.0  # frames
FAR_OFF, LEAST_FAR = 3.0, 0.04  # residuals, times the median and in eye distances, of a lost face
RIGID = np.array([27, 28, 29, 30, 33, 36, 39, 42, 45])  # nose and eye corners


def track(
    model: MorphableModel,
    landmarks: Any,
    fit_frames: np.ndarray,
    images: Callable[[np.ndarray], np.ndarray],
    masks: Callable[[np.ndarray], np.ndarray],
    *,
    doubt: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Fits the model to a clip.

    Args:
        model: the 3DMM.
        landmarks: has points68 [T, 68, 2] and lips79 [T, 79, 2] as fractions of the image side,
            found [T], blendshapes [T, 53] in the model's order (or None) and, where the clip has
            cuts, shot [T] (the number of each frame's shot). Frames that were not found are
            bridged: nothing that was detected in them is used.
        fit_frames: the frames that identity, albedo and focal length may be fitted on.
        images: frame indices [n] -> uint8 [n, S, S, 3].
        masks: frame indices [n] -> [n, S, S], over 0 on the head.
        doubt: how many times further off the perspective is than the landmarks' scatter says,
            for a detector whose errors are alike in all frames.
        progress: called with (done, total).

    Returns:
        expression [T, 79], rotvec [T, 3], translation [T, 3] (cm), head_to_world [T, 4, 4],
        illumination [T, 27], identity [100], albedo [100], intrinsics [4], residual [T] (mean
        landmark distance, fractions of the outer eye distance; NaN where nothing was found),
        trusted [T] bool (found, the landmarks are where the model says, and nothing is before the
        mouth), psnr [T] (dB,
        between the visible skin and the codes' albedo in each frame's best light, of some frames,
        else NaN), psnr_texture [T] (the same of each vertex's own colour), focal_deviation [] (of
        log focal length, which is drawn towards `FOCAL_PRIOR` where the head turns little), jitter
        [2] (median change of the head's turning per frame, degrees: of frames fitted each by
        itself, and of these).
    """
    found = np.asarray(landmarks.found, bool)
    shot = np.asarray(getattr(landmarks, "shot", np.zeros(len(found), np.int32)))
    report = progress or (lambda done, total: None)
    with jax.default_matmul_precision("highest"):
        clip = _fit_landmarks(model, landmarks, found, shot, fit_frames, doubt, report)
        lost = found & ~clip.trusted
        if lost[fit_frames].mean() > FEW:
            known = clip.trusted
            clip = _fit_landmarks(model, landmarks, known, shot, fit_frames, doubt, report)
        elif lost.any():
            clip = _without(clip, model, landmarks, shot)
        patch, pictures = appearance.patch_of(model), (images, masks)
        for done in range(PIXEL_ROUNDS):

            def part(share: float, done=done) -> None:
                report(int(70 + 25 * (done + share) / PIXEL_ROUNDS), 100)

            colours = _colours(patch, clip, fit_frames, pictures)
            look = partial(_look, patch, colours, pictures)
            frames, light, *mouth = _join(clip, clip.frames, shot, look, part)
            covered = occlusion.hidden(*mouth)
            if done == 0 and covered.any():
                trusted = clip.trusted & ~covered
                clip = _without(clip._replace(trusted=trusted), model, landmarks, shot)
                frames, light, *_ = _join(clip, clip.frames, shot, look, part)
            clip = clip._replace(frames=frames)
    fitted = _parameters(clip)
    light = gaps.bridge(light.reshape(-1, 27), clip.trusted, shot)
    fitted |= {"albedo": colours.code, "illumination": _steady(light, shot)}
    fitted |= _psnr(patch, colours, fitted, clip.trusted, pictures)
    report(100, 100)
    return {
        **{name: np.asarray(value, np.float32) for name, value in fitted.items()},
        "residual": np.where(found, _residual(clip), np.nan).astype(np.float32),
        "trusted": clip.trusted,
        "focal_deviation": np.float32(clip.deviation),
        "jitter": np.float32([_jitter(clip.own), _jitter(clip.frames)]),
    }


class _Clip(NamedTuple):
    """What the landmarks tell of a clip: the speaker's constants (and the deviation of the log of
    the focal length), what was seen and how noisy it is, each frame's own fit, the frames joined in
    time and how stiff they are, and which frames' landmarks are believed."""

    bank: bundle.Bank
    shared: bundle.Shared
    deviation: float
    seen: bundle.Seen
    noise: bundle.Noise
    bounded: jax.Array
    own: bundle.Frames
    frames: bundle.Frames
    stiffness: np.ndarray | None
    trusted: np.ndarray


def _named(model: MorphableModel, landmarks: Any) -> bool:
    """Whether the detector's blendshapes are expressions of the model."""
    return landmarks.blendshapes is not None and len(model.expression_names) > 0


def _seen(model, landmarks: Any, found, shot, moving: int, bridged: np.ndarray) -> bundle.Seen:
    """The detections as the fit wants them."""
    lips = gaps.bridge(landmarks.lips79, found, shot) - 0.5
    points = bridged - 0.5
    jaw = points[:, JAW]
    along = np.gradient(jaw, axis=1)
    normal = np.stack([-along[..., 1], along[..., 0]], -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    outwards = jaw - points[:, 17:].mean(1, keepdims=True)
    normal *= np.sign(np.sum(normal * outwards, -1, keepdims=True))
    prior = np.zeros((len(found), moving), np.float32)
    if _named(model, landmarks):
        weights = gaps.bridge(landmarks.blendshapes, found, shot)
        prior[:, : weights.shape[1]] = weights / EXPRESSION_STD
    parts = (points[:, 17:], lips, jaw, normal, found, prior)
    return bundle.Seen(*(jnp.asarray(part, jnp.float32) for part in parts))


def orthographic_poses(model: MorphableModel, points68: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scaled orthographic poses of the model's mean, from landmarks that no expression moves.

    Args:
        points68: [T, 68, 2] in any unit.

    Returns:
        turn [T, 3, 3] away from facing the camera, scale [T] (units per cm), and the image point of
        the head's origin [T, 2].
    """
    rigid = np.asarray(model.mean)[np.asarray(model.landmarks68)[RIGID]] @ cameras.FRONTAL
    centre = rigid.mean(0)
    middle = points68[:, RIGID].mean(1, keepdims=True)
    affine = np.einsum("nk,tnd->tdk", np.linalg.pinv(rigid - centre).T, points68[:, RIGID] - middle)
    scale = np.linalg.norm(affine, axis=2).mean(1)
    rows = affine / scale[:, None, None]
    u, _, vt = np.linalg.svd(np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], 1))
    turn = u @ vt
    return turn, scale, middle[:, 0] - scale[:, None] * (turn @ centre)[:, :2]


def _initial_frames(model: MorphableModel, points: np.ndarray, seen: bundle.Seen) -> bundle.Frames:
    """Orthographic poses, and the detector's expressions."""
    turn, scale, origin = orthographic_poses(model, points - 0.5)
    place = np.concatenate([origin, -np.log(scale)[:, None]], 1)
    parts = (turn, place, np.maximum(seen.prior, 0))
    return bundle.Frames(*(jnp.asarray(part, jnp.float32) for part in parts))


def _fit_landmarks(model, landmarks, found, shot, fit_frames, doubt, report) -> _Clip:
    """All but colours, and which frames' landmarks fit the model as well as most do."""
    points = gaps.bridge(landmarks.points68, found, shot)
    eyes = float(np.median(np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)[found]))
    bank = bundle.make_bank(model)
    moving = bank.expression.shape[0]
    seen = _seen(model, landmarks, found, shot, moving, points)
    frames = _initial_frames(model, points, seen)
    named = _named(model, landmarks)
    bounded = jnp.full(moving, float(named))
    noise = bundle.Noise(
        inner=jnp.full(51, 0.012 * eyes),
        lips=jnp.full(79, 0.02 * eyes),
        jaw=jnp.full(17, 0.08 * eyes),
        gap=jnp.float32(0.008 * eyes),
        expression=jnp.full(moving, NAMED_NOISE if named else 1.0),
        shape=jnp.ones(len(bank.shape)),
        kappa=jnp.float32(KAPPA_TOLD),
        kappa_mean=jnp.float32(1 / FOCAL_PRIOR),
    )
    usable = fit_frames[found[fit_frames]]
    chosen = _spread(usable, SHARED_FRAMES)
    some = jax.tree.map(lambda x: x[chosen], (frames, seen))
    start = bundle.Shared(jnp.zeros(len(bank.shape)), noise.kappa_mean)
    shared, _, learned, deviation = bundle.fit_shared(
        bank, start, *some, noise, bounded, eyes, progress=lambda done: report(int(30 * done), 100)
    )
    kappa, deviation = _perspective(float(shared.kappa), doubt * deviation)
    # From here on the model alone: its identity takes over what the deviations explained.
    identity = jnp.arange(len(bank.shape)) < IDENTITY_DIM
    held = learned.replace(
        shape=jnp.where(identity, 1.0, 1e-4),
        kappa=jnp.float32(1e-4),
        kappa_mean=jnp.float32(kappa),
    )
    start = bundle.Shared(jnp.where(identity, shared.shape, 0.0), held.kappa_mean)
    shared, _, learned, _ = bundle.fit_shared(bank, start, *some, held, bounded, eyes)
    report(40, 100)
    clip = _Clip(bank, shared, deviation, seen, learned, bounded, frames, frames, None, found)
    own = _by_chunk(bundle.fit_own, clip, frames)
    report(60, 100)
    clip = clip._replace(own=own, stiffness=_stiffness(clip, own, shot))
    clip = clip._replace(frames=_join(clip, own, shot)[0])
    residual = _residual(clip)
    trusted = found & (residual < max(FAR_OFF * np.median(residual[found]), LEAST_FAR))
    report(70, 100)
    return clip._replace(trusted=trusted)


def _perspective(told: float, deviation: float) -> tuple[float, float]:
    """1 / focal length, by the landmarks and the prior, and the deviation of its logarithm.

    Args:
        told: by the landmarks; deviation: of that.
    """
    share = 1.0
    if np.isfinite(deviation) and told > 0:  # heads are not seen from behind the camera
        share = deviation**2 / (deviation**2 + KAPPA_PRIOR**2)
    kappa = share / FOCAL_PRIOR + (1 - share) * told
    return kappa, share**0.5 * KAPPA_PRIOR / kappa


def _without(clip: _Clip, model, landmarks, shot) -> _Clip:
    """The same, but the frames that are not trusted are bridged."""
    points = gaps.bridge(landmarks.points68, clip.trusted, shot)
    seen = _seen(model, landmarks, clip.trusted, shot, len(clip.bounded), points)
    bridged = _initial_frames(model, points, seen)

    def pick(own, other):
        return jnp.where(clip.trusted.reshape(-1, *[1] * (own.ndim - 1)), own, other)

    own = jax.tree.map(pick, clip.own, bridged)
    clip = clip._replace(seen=seen, own=own)
    clip = clip._replace(stiffness=_stiffness(clip, own, shot))
    return clip._replace(frames=_join(clip, own, shot)[0])


def _by_chunk(function, clip: _Clip, frames: bundle.Frames, index: np.ndarray | None = None):
    """function(bank, shared, frames, seen, noise, bounded) of some frames, `CHUNK` at a time.

    Args:
        frames: those of `index` [n] (None: all).
    """
    index = np.arange(len(clip.trusted)) if index is None else index
    count, parts = len(index), []
    for start in range(0, count, CHUNK):
        rows = np.minimum(np.arange(start, start + CHUNK), count - 1)  # one shape for all
        some = jax.tree.map(lambda x, rows=rows: x[rows], frames)
        seen = jax.tree.map(lambda x, rows=rows: x[index[rows]], clip.seen)
        parts.append(function(clip.bank, clip.shared, some, seen, clip.noise, clip.bounded))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)


def _stiffness(clip: _Clip, own: bundle.Frames, shot: np.ndarray) -> np.ndarray | None:
    """[T - 2, N] how firmly frames hold together, 0 over cuts; None where too few can tell."""
    found = np.asarray(clip.seen.found) > 0
    one_shot = (shot[2:] == shot[:-2]) & (shot[2:] == shot[1:-1])
    together = one_shot & found[2:] & found[1:-1] & found[:-2]
    if together.sum() < 3:
        return None
    some = _spread(np.flatnonzero(together), TELLING)
    middle = jax.tree.map(lambda x: x[some + 1], own)
    matrix, _ = _by_chunk(bundle.frame_equations, clip, middle, some + 1)
    bends = np.asarray(bundle.bends(own))[some]
    return one_shot[:, None] * np.float32(bundle.stiffness_of(np.asarray(matrix), bends))


def _join(clip: _Clip, frames: bundle.Frames, shot: np.ndarray, look=None, report=None) -> list:
    """Frames that agree with the landmarks, with one another and, where looked at, with pixels.

    Long clips are joined `WINDOW` frames at a time, with `OVERLAP` more at both ends.

    Args:
        look: (clip, frames [n]) -> what is seen in them, arrays [n, …], and equations of pixels.

    Returns:
        the frames; and, where looked at, what is seen [T, …].
    """
    count, joined, looks = len(shot), [], []
    for start in range(0, count, WINDOW):
        index = np.arange(max(start - OVERLAP, 0), min(start + WINDOW + OVERLAP, count))
        kept = slice(start - index[0], start - index[0] + WINDOW)
        some, pixels = jax.tree.map(lambda x, index=index: x[index], frames), None
        if look:
            *seen, pixels = look(clip, index)
            looks.append([part[kept] for part in seen])
            report(min(start + WINDOW, count) / count)
        part = _join_window(clip, some, index, pixels)
        joined.append(jax.tree.map(lambda x, kept=kept: x[kept], part))
    frames = jax.tree.map(lambda *x: jnp.concatenate(x), *joined)
    return [frames, *map(np.concatenate, zip(*looks, strict=True))]


def _join_window(clip: _Clip, frames: bundle.Frames, index, pixels) -> bundle.Frames:
    """The frames [n] of a run of numbers `index`; pixels: equations of theirs, or None."""
    if clip.stiffness is None or len(index) < 3:
        return frames
    stiffness = jnp.asarray(clip.stiffness[index[:-2]])
    gone = jnp.zeros((len(index), stiffness.shape[1]))
    for _ in range(JOINED_STEPS):
        matrix, side = _by_chunk(bundle.frame_equations, clip, frames, index)
        if pixels is not None:
            side = side + pixels[1] - jnp.einsum("tnm,tm->tn", pixels[0], gone)
            matrix = matrix + pixels[0]
        step = bundle.joined_step(matrix, side, bundle.bends(frames), stiffness)
        frames, gone = bundle.moved(frames, step), gone + step
    return frames


def _residual(clip: _Clip) -> np.ndarray:
    """[T] mean distance of the 51 landmarks inside the jaw line, over the eye distance."""
    fitted = bundle.chosen_points(clip.bank, clip.shared, clip.frames, clip.seen)[:, :51]
    inner = np.asarray(clip.seen.inner)
    eyes = np.linalg.norm(inner[:, 36 - 17] - inner[:, 45 - 17], axis=-1)
    return np.linalg.norm(np.asarray(fitted) - inner, axis=-1).mean(-1) / eyes


def _parameters(clip: _Clip) -> dict[str, np.ndarray]:
    """Codes, poses and camera of the frames."""
    focal = 1 / float(clip.shared.kappa)
    place = np.asarray(clip.frames.place)
    scale = np.exp(place[:, 2])
    translation = np.stack([place[:, 0] * scale, place[:, 1] * scale, focal * scale], -1)
    turn = np.asarray(clip.frames.turn)
    moving = clip.frames.expression.shape[1]
    expression = np.zeros((len(place), EXPRESSION_DIM), np.float32)
    expression[:, :moving] = clip.frames.expression
    return {
        "expression": expression,
        "rotvec": Rotation.from_matrix(turn).as_rotvec(),
        "translation": translation,
        "head_to_world": cameras.rigid(turn @ cameras.FRONTAL, translation.astype(np.float32)),
        "identity": np.asarray(clip.shared.shape[:IDENTITY_DIM]),
        "intrinsics": np.array([focal, focal, 0.5, 0.5]),
    }


def _colours(patch, clip: _Clip, fit_frames, pictures) -> appearance.Appearance:
    """The speaker's colours, from some of the frames that they may be fitted on."""
    usable = fit_frames[clip.trusted[fit_frames]]
    some = _spread(usable if len(usable) else fit_frames, COLOUR_FRAMES)
    return appearance.fit(patch, appearance.look(patch, _parameters(clip), some, *pictures))


def _spread(frames: np.ndarray, count: int) -> np.ndarray:
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int)]


def _look(patch, colours, pictures, clip: _Clip, frames: np.ndarray):
    """The frames' light [n, 9, 3], colours [n, M, 3] and visible [n, M] of what is about the mouth
    (nothing in frames that are not trusted), and equations [n, N, N], [n, N] of their pixels."""
    fitted, count = _parameters(clip), len(frames)
    rest = patch.model.mean + np.tensordot(fitted["identity"], patch.model.identity_basis, 1)
    surface = rest[patch.at], patch.model.expression_basis[: len(clip.bounded), patch.at]
    surface = [jnp.asarray(part, jnp.float32) for part in surface]
    seen, equations = [], []
    for start in range(0, count, COLOUR_CHUNK):
        # one shape for all
        index = frames[np.minimum(np.arange(start, start + COLOUR_CHUNK), count - 1)]
        views = appearance.look(patch, fitted, index, *pictures, slopes=True)
        skin = appearance.skin_of(views, colours.centre, colours.precision)
        light = appearance.lights(views, skin, colours.albedo)
        shown = (views.visible & clip.trusted[index, None])[:, patch.mouth]
        seen.append((light, views.colours[:, patch.mouth], shown))
        left, weight = appearance.surprise(colours, views)
        weight = PIXELS_WORTH * weight * clip.trusted[index, None]
        told = [jnp.asarray(part, jnp.float32) for part in (left, views.slope, weight)]
        some = jax.tree.map(lambda x, index=index: x[index], clip.frames)
        equations.append(bundle.pixel_equations(*surface, clip.shared.kappa, some, *told))
    pixels = jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *equations)
    return *(np.concatenate(part)[:count] for part in zip(*seen, strict=True)), pixels


def _psnr(patch, colours, fitted, trusted, pictures) -> dict[str, np.ndarray]:
    """Of `PSNR_FRAMES` frames [T] (NaN of the others), of the codes and of the texture."""
    some = _spread(np.flatnonzero(trusted), PSNR_FRAMES)
    out = {name: np.full(len(trusted), np.nan) for name in ("psnr", "psnr_texture")}
    for index in np.array_split(some, max(1, len(some) // COLOUR_CHUNK)):
        views = appearance.look(patch, fitted, index, *pictures)
        out["psnr"][index] = appearance.psnr(colours, views, colours.albedo)
        out["psnr_texture"][index] = appearance.psnr(colours, views, colours.texture)
    return out


def _steady(light: np.ndarray, shot: np.ndarray) -> np.ndarray:
    """Light [T, 27] smoothed in time, but not over cuts."""
    light = light.copy()
    for one in np.unique(shot):
        here = shot == one
        light[here] = gaussian_filter1d(light[here], LIGHT_CHANGES, axis=0, mode="nearest")
    return light


def _jitter(frames: bundle.Frames) -> float:
    """Median change of the head's turning from one frame to the next, degrees."""
    turning = np.asarray(bundle.bends(frames))[:, :3]
    return float(np.degrees(np.median(np.linalg.norm(turning, axis=-1)))) if len(turning) else 0.0
