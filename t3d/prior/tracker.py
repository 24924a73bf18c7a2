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
import optax

from t3d import camera as cameras
from t3d.prior import morphable, shading
from t3d.prior.morphable import EXPRESSION_STD, MorphableModel

FOCAL_PRIOR = 4.0  # × image side: HeadNeRF's; a frontal clip cannot tell the focal length
JAW = slice(0, 17)
RIGID = np.array([27, 28, 29, 30, 33, 36, 39, 42, 45])  # nose and eye corners
INNER_LIP_PAIRS = np.array([[61, 67], [62, 66], [63, 65]])
EYELID_PAIRS = np.array([[37, 41], [38, 40], [43, 47], [44, 46]])
WEIGHTS = dict(jaw=0.2, gap=8.0, identity=2e-4, blendshape=2e-4, smooth=2.0, focal=0.02, sign=2e-3)


def track(
    model: MorphableModel,
    landmarks: Any,
    fit_frames: np.ndarray,
    images: Callable[[np.ndarray], np.ndarray],
    masks: Callable[[np.ndarray], np.ndarray],
    *,
    steps: int = 1200,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Fits the model to a clip.

    Args:
        model: the 3DMM.
        landmarks: has points68 [T, 68, 2] as fractions of the image side, found [T] and
            blendshapes [T, 53] in the model's order (or None). Frames that were not found are
            bridged by the smoothness term.
        fit_frames: the frames that identity, albedo and focal length may be fitted on.
        images: frame indices [n] -> uint8 [n, S, S, 3].
        masks: frame indices [n] -> [n, S, S], over 0 on the head.
        steps: of Adam.
        progress: called with (done, total).

    Returns:
        expression [T, 79], rotvec [T, 3], translation [T, 3] (cm), head_to_world [T, 4, 4],
        illumination [T, 27], identity [100], albedo [100], intrinsics [4], residual [T] (mean
        landmark distance, fractions of the outer eye distance; NaN where nothing was found).
    """
    found = np.asarray(landmarks.found, bool)
    points = _bridge(np.asarray(landmarks.points68, np.float32), found)
    prior = _expression_prior(landmarks.blendshapes, found)
    small = morphable.restrict(model, model.landmarks68)
    fitted = _fit_geometry(small, points, found, prior, fit_frames, steps, progress)
    fitted |= _fit_appearance(model, fitted, fit_frames, images, masks)
    return {name: np.asarray(value, np.float32) for name, value in fitted.items()}


def _bridge(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Fills frames without a detection by interpolation between their neighbours."""
    flat = values.reshape(len(values), -1)
    index = np.arange(len(values))
    filled = [np.interp(index, index[found], column[found]) for column in flat.T]
    return np.stack(filled, -1).reshape(values.shape).astype(np.float32)


def _expression_prior(blendshapes: np.ndarray | None, found: np.ndarray) -> np.ndarray:
    """Detected blendshape weights [T, 53] as coefficients [T, 79] (zero where there are none)."""
    prior = np.zeros((len(found), 79), np.float32)
    if blendshapes is not None:
        weights = _bridge(np.asarray(blendshapes, np.float32), found)
        prior[:, : weights.shape[1]] = weights / EXPRESSION_STD
    return prior


def _initial_pose(model: MorphableModel, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weak-perspective pose per frame from the rigid landmarks: rotvec and translation [T, 3]."""
    from scipy.spatial.transform import Rotation

    rigid = np.asarray(model.mean)[RIGID] @ cameras.FRONTAL
    centre = rigid.mean(0)
    observed = points[:, RIGID]
    middle = observed.mean(1)
    affine = np.einsum("nk,tnd->tdk", np.linalg.pinv(rigid - centre).T, observed - middle[:, None])
    scale = np.linalg.norm(affine, axis=2).mean(1)
    rows = affine / scale[:, None, None]
    u, _, vt = np.linalg.svd(np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], 1))
    rotation = u @ vt
    rotvec = Rotation.from_matrix(rotation).as_rotvec()
    depth = FOCAL_PRIOR / scale
    centre_world = np.concatenate(
        [(middle - 0.5) * depth[:, None] / FOCAL_PRIOR, depth[:, None]], 1
    )
    return rotvec, centre_world - rotation @ centre


def _fit_geometry(model, points, found, prior, fit_frames, steps, progress):
    rotvec, translation = _initial_pose(model, points)
    frames = len(points)
    eye = np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)
    eye_distance = float(np.median(eye))
    weight = np.ones(68, np.float32)
    weight[JAW] = WEIGHTS["jaw"]
    fits = np.zeros(frames, bool)
    fits[fit_frames] = True
    bounded = np.any(np.asarray(model.expression_basis), axis=(1, 2))

    params = {
        "identity": np.zeros(100),
        "log_focal": np.zeros(()),
        "rotvec": rotvec * 10,  # scaled so that one step size suits every parameter
        "translation": translation / np.array([1.0, 1.0, 10.0]),
        "expression": prior,
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def pose(params, shared):
        scale = jnp.exp(shared["log_focal"])[:, None]
        translation = params["translation"] * jnp.array([1.0, 1.0, 10.0])
        translation = translation * jnp.concatenate([jnp.ones_like(scale)] * 2 + [scale], -1)
        return cameras.head_pose(params["rotvec"] / 10, translation)

    def predict(params):
        # Frames outside the training split read the shared parameters but do not move them.
        shared = {
            name: jnp.where(
                fits.reshape(-1, *[1] * params[name].ndim),
                params[name],
                jax.lax.stop_gradient(params[name]),
            )
            for name in ("identity", "log_focal")
        }
        shape = (
            model.mean
            + jnp.einsum("tk,kvd->tvd", shared["identity"], jnp.asarray(model.identity_basis))
            + jnp.einsum("tk,kvd->tvd", params["expression"], jnp.asarray(model.expression_basis))
        )
        world = cameras.transform(pose(params, shared), shape)
        focal = FOCAL_PRIOR * jnp.exp(shared["log_focal"])[:, None, None]
        return focal * world[..., :2] / world[..., 2:] + 0.5

    def gaps(uv, pairs):
        return (uv[:, pairs[:, 0]] - uv[:, pairs[:, 1]]) / eye_distance

    def loss(params):
        uv = predict(params)
        error = (uv - points) / eye_distance
        squared = jnp.sum(error**2, -1)
        robust = 2 * 0.01 * (jnp.sqrt(1 + squared / 0.01) - 1)  # linear beyond 0.1 eye distances
        pairs = np.concatenate([INNER_LIP_PAIRS, EYELID_PAIRS])
        gap = jnp.sum((gaps(uv, pairs) - gaps(points, pairs)) ** 2, -1)
        data = jnp.mean(robust * weight, -1) + WEIGHTS["gap"] * jnp.mean(gap, -1)
        second = [jnp.diff(params[n], 2, axis=0) for n in ("rotvec", "translation")]
        expression = params["expression"]
        return (
            jnp.mean(data * found)
            + WEIGHTS["identity"] * jnp.mean(params["identity"] ** 2)
            + WEIGHTS["blendshape"] * jnp.mean((expression - prior) ** 2)
            + WEIGHTS["sign"] * jnp.mean(jnp.minimum(expression, 0.0) ** 2 * bounded)
            + WEIGHTS["smooth"] * 1e-2 * sum(jnp.mean(d**2) for d in second)
            + WEIGHTS["smooth"] * 1e-4 * jnp.mean(jnp.diff(expression, 2, axis=0) ** 2)
            + WEIGHTS["focal"] * params["log_focal"] ** 2
        )

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps, alpha=0.02))

    @jax.jit
    def run(params, state):
        def one(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (params, state), length=steps // 10)[0]

    state = optimizer.init(params)
    for part in range(10):
        params, state = jax.block_until_ready(run(params, state))
        if progress:
            progress(part + 1, 10)
    residual = jnp.linalg.norm(predict(params) - points, axis=-1).mean(-1) / eye
    focal = FOCAL_PRIOR * float(jnp.exp(params["log_focal"]))
    matrices = pose(params, {"log_focal": jnp.broadcast_to(params["log_focal"], (frames,))})
    return {
        "expression": params["expression"],
        "rotvec": params["rotvec"] / 10,
        "translation": matrices[:, :3, 3],
        "head_to_world": matrices,
        "identity": params["identity"],
        "intrinsics": np.array([focal, focal, 0.5, 0.5]),
        "residual": np.where(found, residual, np.nan),
    }


def _skin(model: MorphableModel, count: int = 600) -> np.ndarray:
    """Evenly chosen vertices of the face's skin, away from the mouth's inside."""
    face = np.flatnonzero(np.asarray(model.region) == model.region_names.index("face"))
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
    frames = np.arange(len(fitted["expression"]))
    light = np.concatenate(
        [
            _lights(*observe(frames[start : start + chunk]), albedo)
            for start in range(0, len(frames), chunk)
        ]
    )
    return {"albedo": code, "illumination": _smooth(light.reshape(len(light), 27))}


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
