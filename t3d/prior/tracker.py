"""The tracker: landmarks and pixels of a whole clip to 3DMM coefficients and cameras (II-A).

The clip is fitted at once: identity, albedo and focal length are one per speaker and are fitted on
the training frames only; pose, expression and illumination are per frame and smooth in time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from t3d import camera as cameras
from t3d.prior import bundle, gaps, morphable, raster, shading
from t3d.prior.morphable import EXPRESSION_DIM, EXPRESSION_STD, IDENTITY_DIM, MorphableModel

FOCAL_PRIOR = 4.0  # × image side: HeadNeRF's; a frontal clip cannot tell the focal length
JAW = slice(0, 17)
OBSERVABLE = 0.22  # deviation of log focal length up to which it is believed
KAPPA_NOISE = 0.5  # deviation of 1 / focal length about 1 / FOCAL_PRIOR
NAMED_NOISE = 0.3  # σ by which a detector's blendshape weights are off
SHARED_FRAMES = 200  # that a speaker's constants are fitted on
CHUNK = 256
JOINED_STEPS = 3
FAR_OFF, LEAST_FAR = 3.0, 0.04  # residuals, times the median and in eye distances, of a lost face
RIGID = np.array([27, 28, 29, 30, 33, 36, 39, 42, 45])  # nose and eye corners


def track(
    model: MorphableModel,
    landmarks: Any,
    fit_frames: np.ndarray,
    images: Callable[[np.ndarray], np.ndarray],
    masks: Callable[[np.ndarray], np.ndarray],
    *,
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
        progress: called with (done, total).

    Returns:
        expression [T, 79], rotvec [T, 3], translation [T, 3] (cm), head_to_world [T, 4, 4],
        illumination [T, 27], identity [100], albedo [100], intrinsics [4], residual [T] (mean
        landmark distance, fractions of the outer eye distance; NaN where nothing was found),
        trusted [T] bool (found, and the landmarks are where the model says), psnr [T] (dB,
        over the visible skin), focal_deviation [] (of log focal length; the focal length is
        `FOCAL_PRIOR` where that exceeds `OBSERVABLE`), jitter [2] (median change of the head's
        turning per frame, degrees: of frames fitted each by itself, and of these).
    """
    found = np.asarray(landmarks.found, bool)
    shot = np.asarray(getattr(landmarks, "shot", np.zeros(len(found), np.int32)))
    report = progress or (lambda done, total: None)
    with jax.default_matmul_precision("highest"):
        fitted, trusted = _fit_geometry(model, landmarks, found, shot, fit_frames, report)
        if not trusted.all():
            fitted, _ = _fit_geometry(model, landmarks, trusted, shot, fit_frames, report)
    fitted |= _fit_appearance(model, fitted, fit_frames, images, masks)
    floats = {name: np.asarray(value, np.float32) for name, value in fitted.items()}
    return floats | {"trusted": np.asarray(fitted["trusted"], bool)}


def _seen(landmarks: Any, found, shot, moving: int, bridged: np.ndarray) -> bundle.Seen:
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
    if landmarks.blendshapes is not None:
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


def _fit_geometry(model, landmarks, found, shot, fit_frames, report):
    """All but colours, and which frames' landmarks fit the model as well as most do."""
    points = gaps.bridge(landmarks.points68, found, shot)
    eyes = float(np.median(np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)[found]))
    bank = bundle.make_bank(model)
    moving = bank.expression.shape[0]
    seen = _seen(landmarks, found, shot, moving, points)
    frames = _initial_frames(model, points, seen)
    named = landmarks.blendshapes is not None and len(model.expression_names) > 0
    bounded = jnp.full(moving, float(named))
    noise = bundle.Noise(
        inner=jnp.full(51, 0.012 * eyes),
        lips=jnp.full(79, 0.02 * eyes),
        jaw=jnp.full(17, 0.08 * eyes),
        gap=jnp.float32(0.012 * eyes),
        expression=jnp.full(moving, NAMED_NOISE if named else 1.0),
        shape=jnp.ones(len(bank.shape)),
        kappa=jnp.float32(KAPPA_NOISE),
        kappa_mean=jnp.float32(1 / FOCAL_PRIOR),
    )
    usable = fit_frames[found[fit_frames]]
    chosen = usable[np.linspace(0, len(usable) - 1, min(SHARED_FRAMES, len(usable))).astype(int)]
    some = jax.tree.map(lambda x: x[chosen], (frames, seen))
    start = bundle.Shared(jnp.zeros(len(bank.shape)), noise.kappa_mean)
    shared, _, learned, deviation = bundle.fit_shared(
        bank, start, *some, noise, bounded, eyes, progress=lambda done: report(int(30 * done), 100)
    )
    deviation = deviation / float(shared.kappa)
    kappa = shared.kappa if deviation < OBSERVABLE else noise.kappa_mean
    # From here on the model alone: its identity takes over what the deviations explained.
    identity = jnp.arange(len(bank.shape)) < IDENTITY_DIM
    held = learned.replace(
        shape=jnp.where(identity, 1.0, 1e-4), kappa=jnp.float32(1e-4), kappa_mean=kappa
    )
    start = bundle.Shared(jnp.where(identity, shared.shape, 0.0), kappa)
    shared, _, learned, _ = bundle.fit_shared(bank, start, *some, held, bounded, eyes)
    own, frames = _fit_frames(bank, shared, frames, seen, learned, bounded, shot, report)

    focal = 1 / float(shared.kappa)
    fitted = np.asarray(bundle.chosen_points(bank, shared, frames, seen))
    distance = np.linalg.norm(fitted[:, :51] - np.asarray(seen.inner), axis=-1).mean(-1)
    residual = distance / np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)
    usual = np.median(residual[found])
    trusted = found & (residual < max(FAR_OFF * usual, LEAST_FAR))
    scale = np.exp(np.asarray(frames.place[:, 2]))
    place = np.asarray(frames.place)
    translation = np.stack([place[:, 0] * scale, place[:, 1] * scale, focal * scale], -1)
    turn = np.asarray(frames.turn)
    expression = np.zeros((len(found), EXPRESSION_DIM), np.float32)
    expression[:, :moving] = frames.expression
    return {
        "expression": expression,
        "rotvec": Rotation.from_matrix(turn).as_rotvec(),
        "translation": translation,
        "head_to_world": cameras.rigid(turn @ cameras.FRONTAL, translation.astype(np.float32)),
        "identity": np.asarray(shared.shape[:IDENTITY_DIM]),
        "intrinsics": np.array([focal, focal, 0.5, 0.5]),
        "residual": np.where(found, residual, np.nan),
        "trusted": trusted,
        "focal_deviation": np.float32(deviation),
        "jitter": np.array([_jitter(own), _jitter(frames)]),
    }, trusted


def _fit_frames(
    bank, shared, frames, seen, noise, bounded, shot, report
) -> tuple[bundle.Frames, bundle.Frames]:
    """Poses and expressions of the whole clip: each frame's own, and joined in time."""
    count = len(shot)

    def by_chunk(function, frames):
        parts = []
        for start in range(0, count, CHUNK):
            index = np.minimum(np.arange(start, start + CHUNK), count - 1)  # one shape for all
            one = jax.tree.map(lambda x, index=index: x[index], (frames, seen))
            parts.append(function(bank, shared, *one, noise, bounded))
        return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)

    own = frames = by_chunk(bundle.fit_own, frames)
    report(60, 100)
    found = np.asarray(seen.found) > 0
    one_shot = (shot[2:] == shot[:-2]) & (shot[2:] == shot[1:-1])
    together = one_shot & found[2:] & found[1:-1] & found[:-2]
    matrix, side = by_chunk(bundle.frame_equations, frames)
    if together.sum() < 3:
        return own, frames
    stiffness = bundle.stiffness_of(np.asarray(matrix), np.asarray(bundle.bends(frames)), together)
    stiffness = jnp.asarray(one_shot[:, None] * stiffness, jnp.float32)
    for step in range(JOINED_STEPS):
        frames = bundle.moved(
            frames, bundle.joined_step(matrix, side, bundle.bends(frames), stiffness)
        )
        report(60 + 40 * (step + 1) // JOINED_STEPS, 100)
        if step + 1 < JOINED_STEPS:
            matrix, side = by_chunk(bundle.frame_equations, frames)
    return own, frames


def _jitter(frames: bundle.Frames) -> float:
    """Median change of the head's turning from one frame to the next, degrees."""
    turning = np.asarray(bundle.bends(frames))[:, :3]
    return float(np.degrees(np.median(np.linalg.norm(turning, axis=-1)))) if len(turning) else 0.0


def _skin(model: MorphableModel, count: int = 600) -> np.ndarray:
    """Evenly chosen vertices of the face's skin that nothing hides from the front.

    So no nostrils; and none more than 2 cm above the brows, where hair may be.
    """
    mean, region = np.asarray(model.mean), np.asarray(model.region)
    size, scale = 512, 512 / 40  # pixels, pixels a centimetre
    uv, depth = mean[:, :2] * [scale, -scale] + size / 2, 100 - mean[:, 2]
    front = raster.rasterize(uv, depth, np.asarray(model.triangles), size, size).depth
    column, row = np.clip(uv.astype(int), 0, size - 1).T
    shown = depth < front[row, column] + 0.15
    shown &= mean[:, 1] < mean[np.asarray(model.landmarks68)[17:27], 1].max() + 2
    face = np.flatnonzero(shown & (region == model.region_names.index("face")))
    return face[np.linspace(0, len(face) - 1, min(count, len(face))).astype(int)]


def _sample(images: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear colours [n, V, C] of images [n, S, S, C] at fractions [n, V, 2]."""
    size = images.shape[1]
    x, y = np.moveaxis(np.clip(uv * size - 0.5, 0, size - 1.001), -1, 0)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    n = np.arange(len(images))[:, None]
    top = images[n, y0, x0] * (1 - fx) + images[n, y0, x0 + 1] * fx
    bottom = images[n, y0 + 1, x0] * (1 - fx) + images[n, y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def _fit_appearance(model, fitted, fit_frames, images, masks, passes: int = 3, chunk: int = 64):
    """Albedo from 48 training frames, then illumination of every frame, by least squares."""
    skin = _skin(model)
    small = morphable.restrict(model, skin)
    neighbourhood = np.unique(model.triangles[np.isin(model.triangles, skin).any(1)])
    patch = morphable.restrict(model, neighbourhood)
    remap = np.full(len(model.mean), -1)
    remap[neighbourhood] = np.arange(len(neighbourhood))
    triangles = remap[model.triangles]
    triangles = triangles[(triangles >= 0).all(1)]

    def observe(frames):
        expressed = np.asarray(
            morphable.vertices(patch, fitted["identity"], np.asarray(fitted["expression"])[frames])
        )
        world = cameras.transform(np.asarray(fitted["head_to_world"])[frames], expressed)
        normals = np.asarray(morphable.vertex_normals(world, triangles))[:, remap[skin]]
        world = world[:, remap[skin]]
        uv, _ = cameras.project(cameras.recorded(np.asarray(fitted["intrinsics"])), world)
        view = world / np.linalg.norm(world, axis=-1, keepdims=True)
        pictures = images(frames).astype(np.float32) / 255
        inside = _sample(masks(frames)[..., None].astype(np.float32), uv)[..., 0] > 0.5
        visible = (np.sum(normals * view, -1) < -0.3) & inside
        return _sample(pictures, uv), np.asarray(shading.sh_basis(normals)), visible

    mean = np.asarray(small.albedo_mean)
    basis = np.asarray(small.albedo_basis)
    code = np.zeros(len(basis))
    chosen = fit_frames[np.linspace(0, len(fit_frames) - 1, min(48, len(fit_frames))).astype(int)]
    colours, bands, visible = observe(chosen)
    for _ in range(passes):
        albedo = np.clip(mean + np.tensordot(code, basis, 1), 0.02, 1.0)
        light = _lights(colours, bands, visible, albedo)
        lit = np.einsum("nvb,nbc->nvc", bands, light)
        target = np.mean(np.where(visible[..., None], colours - mean * lit, 0), 0).reshape(-1)
        shade = np.mean(np.where(visible[..., None], lit, 0), 0)
        design = (basis * shade).reshape(len(basis), -1)
        ridge = 1e-3 * design.shape[1] / len(basis) * np.eye(len(basis))
        code = np.linalg.solve(design @ design.T + ridge, design @ target)
    albedo = np.clip(mean + np.tensordot(code, basis, 1), 0.02, 1.0)
    frames, lights, psnr = np.arange(len(fitted["expression"])), [], []
    for start in range(0, len(frames), chunk):
        colours, bands, visible = observe(frames[start : start + chunk])
        lights.append(_lights(colours, bands, visible, albedo))
        painted = np.clip(albedo * (bands @ lights[-1]), 0, 1)
        error = np.mean((painted - colours) ** 2, -1) * visible
        seen = np.maximum(visible.sum(1), 1)
        psnr.append(-10 * np.log10(np.maximum(error.sum(1) / seen, 1e-9)))
    light = _smooth(np.concatenate(lights).reshape(len(frames), 27))
    return {"albedo": code, "illumination": light, "psnr": np.concatenate(psnr)}


def _lights(colours, bands, visible, albedo, ridge: float = 1e-3) -> np.ndarray:
    """Least-squares illumination [n, 9, 3] of each frame, held towards white frontal light."""
    start = np.zeros((9, 3))
    start[0] = 0.8
    weight = visible.astype(np.float64)
    light = np.empty((len(colours), 9, 3))
    for channel in range(3):
        design = bands * albedo[None, :, channel, None]
        target = colours[..., channel] - design @ start[:, channel]
        normal = np.einsum("nvb,nv,nvd->nbd", design, weight, design)
        side = np.einsum("nvb,nv,nv->nb", design, weight, target)
        held = ridge * (1 + weight.sum(1))[:, None, None] * np.eye(9)
        light[..., channel] = (
            start[:, channel] + np.linalg.solve(normal + held, side[..., None])[..., 0]
        )
    return light


def _smooth(values: np.ndarray, deviation: float = 3.0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, deviation, axis=0, mode="nearest")
