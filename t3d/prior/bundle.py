"""Bundle adjustment of a head: landmarks of a clip to shape, focal length, poses and expressions.

Gauss-Newton on all frames at once. What a speaker keeps (identity, smooth
deviations from the model, perspective) is found on chosen frames with the frames' own unknowns
eliminated (Schur complement); the frames' unknowns are then found for the whole clip, each by
itself or joined by smoothness in time.

An image point of the head is (X + t₀ d) / (κ X_z + d), X its place about the head's origin in the
camera's axes (cm), d = depth / focal length, t₀ the origin's image point, κ = 1 / focal length: so
κ changes the strength of the perspective and nothing else, and κ = 0 is no singularity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from t3d import camera as cameras
from t3d.prior.morphable import MorphableModel

Array = Any
INNER = slice(17, 68)  # of the 68 landmarks: those that are points of the surface
POSE, FIXED = 6, 51 + 79
INNER_LIP_PAIRS = np.array([[61, 67], [62, 66], [63, 65]]) - 17
EYELID_PAIRS = np.array([[37, 41], [38, 40], [43, 47], [44, 46]]) - 17
GAPS = np.concatenate([INNER_LIP_PAIRS, EYELID_PAIRS])
BACKWARDS = 0.15  # σ that a blendshape may go the wrong way round
INDEPENDENT = 7.0  # frames without common errors that tell as much of a speaker as a clip does
SHARED_STEPS, LEARN_AT, OWN_STEPS = 24, (6, 12, 18), 10
RAYLEIGH, HALF_NORMAL = 1.1774, 0.6745  # medians of a distance and of a distance along a line
LEAST_NOISE = 0.01  # of the eye distance: no detector's errors are smaller, steady as they are
JAW_SLIDES = 3.0  # times farther off along the jaw line than across it
LIPS_COUNT_LESS = 1.4  # their rings repeat the 20 landmarks of the mouth
JAW_COUNTS_LESS = 3.0  # detectors put it neither on the bone nor quite on the silhouette
OWN_BENDS = (0.05, 0.25)  # least share of the bends that is the head's own: pose, expression


@struct.dataclass
class Bank:
    """The model's vertices that landmarks are compared with: 51 points, 79 of the lips, the jaw.

    Attributes:
        mean [P, 3], expression [K, P, 3]: of the P = 130 + 17 C vertices.
        shape: [N, P, 3] the 100 identity vectors, then smooth deviations, each of unit deviation.
        candidates: C, vertices that each landmark of the jaw line may be: from its own forwards.
    """

    mean: Array
    shape: Array
    expression: Array
    candidates: int = struct.field(pytree_node=False)


@struct.dataclass
class Shared:
    """What a speaker keeps: shape [N] (σ), the identity first; kappa [] (1 / focal length)."""

    shape: Array
    kappa: Array


@struct.dataclass
class Frames:
    """What changes: turn [T, 3, 3] (from facing the camera), place [T, 3] = (image point of the
    head's origin from the image's middle, log of depth / focal), expression [T, K] (σ)."""

    turn: Array
    place: Array
    expression: Array


@struct.dataclass
class Seen:
    """What was detected: inner [T, 51, 2], lips [T, 79, 2], jaw [T, 17, 2] (fractions from the
    image's middle), normal [T, 17, 2] of the jaw line, found [T] 0/1, and the expression that the
    detector suggests, prior [T, K] (σ)."""

    inner: Array
    lips: Array
    jaw: Array
    normal: Array
    found: Array
    prior: Array


@struct.dataclass
class Noise:
    """Deviations: inner [51], lips [79], jaw [17], gap [] (fractions of the image side); expression
    [K] of the prior, shape [N], kappa [] about kappa_mean []."""

    inner: Array
    lips: Array
    jaw: Array
    gap: Array
    expression: Array
    shape: Array
    kappa: Array
    kappa_mean: Array


class Residuals(NamedTuple):
    """Whitened residuals [T, R] and their derivatives by frame [T, R, 6 + K] and shared [T, R, S]
    unknowns (None where not asked for)."""

    value: Array
    frame: Array
    shared: Array | None


def jaw_candidates(model: MorphableModel, count: int = 8, reach: float = 0.45) -> np.ndarray:
    """[17, count] vertices that each landmark of the jaw line slides over, its own first.

    They lie on the skin of the mean head on the way from the landmark to the middle of the face, up
    to a share `reach` of it: where the silhouette runs when that side turns away.
    """
    mean, marks = np.asarray(model.mean), np.asarray(model.landmarks68)
    skin = np.flatnonzero(np.asarray(model.region) == model.region_names.index("face"))
    points = mean[marks]
    middle = np.array([0.0, points[33, 1], 0.0])
    centre = points[:17].mean(0) * [0, 0, 1] + middle
    directions = (mean[skin] - centre) / np.linalg.norm(mean[skin] - centre, axis=-1)[:, None]
    out = np.empty((17, count), np.int32)
    for j, start in enumerate(points[:17]):
        goal = points[33] if 5 < j < 11 else np.array([0.0, start[1], points[33, 2]])
        way = start + np.linspace(0, reach, count)[:, None] * (goal - start) - centre
        way /= np.linalg.norm(way, axis=-1, keepdims=True)
        out[j] = skin[np.argmax(way @ directions.T, axis=1)]
        out[j, 0] = marks[j]
    return out


def deviations(
    points: np.ndarray, height: float = 0.1, width: float = 2.0, count: int = 30
) -> np.ndarray:
    """[3 count, P, 3] smooth fields over points [P, 3], of unit deviation together (cm).

    What a person's face and a detector's idea of its landmarks differ by from the model: a Gaussian
    process of deviation `height` and length `width` (cm), by its first `count` eigenvectors.
    """
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    power, vectors = np.linalg.eigh(np.exp(-0.5 * (apart / width) ** 2))
    modes = (height * np.sqrt(np.maximum(power, 0)) * vectors)[:, ::-1][:, :count].T
    fields = np.einsum("kp,cd->kcpd", modes, np.eye(3)).reshape(-1, 3 * len(points))
    centred = points - points.mean(0)
    rigid = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
    rigid += [np.cross(axis, centred) for axis in np.eye(3)] + [centred]
    basis = np.linalg.qr(np.stack(rigid).reshape(7, -1).T)[0]
    return (fields - fields @ basis @ basis.T).reshape(-1, len(points), 3)


def make_bank(model: MorphableModel) -> Bank:
    """The bank of a model; expression vectors that move nothing are left out (the last ones)."""
    jaw = jaw_candidates(model)
    used = np.concatenate(
        [np.asarray(model.landmarks68)[INNER], np.asarray(model.lips79), jaw.reshape(-1)]
    )
    field = deviations(np.asarray(model.mean)[used])
    moving = 1 + np.flatnonzero(np.asarray(model.expression_basis).any((1, 2))).max()
    return Bank(
        mean=jnp.asarray(model.mean[used], jnp.float32),
        shape=jnp.asarray(np.concatenate([model.identity_basis[:, used], field]), jnp.float32),
        expression=jnp.asarray(model.expression_basis[:moving, used], jnp.float32),
        candidates=jaw.shape[1],
    )


def _world(bank: Bank, shared: Shared, frames: Frames) -> tuple[Array, Array]:
    """About the head's origin in the camera's axes [T, P, 3], and the image points [T, P, 2]."""
    rest = bank.mean + jnp.einsum("k,kpd->pd", shared.shape, bank.shape)
    world, uv, _ = _placed(rest, bank.expression, shared.kappa, frames)
    return world, uv


def _placed(rest: Array, expression: Array, kappa: Array, frames: Frames):
    """The same of points at rest [P, 3] with expressions [K, P, 3]; and the denominators [T, P]."""
    moved = rest + jnp.einsum("tk,kpd->tpd", frames.expression, expression)
    world = jnp.einsum("tij,tpj->tpi", frames.turn @ cameras.FRONTAL, moved)
    depth = jnp.exp(frames.place[:, 2])[:, None]
    below = kappa * world[..., 2] + depth
    uv = (world[..., :2] + frames.place[:, None, :2] * depth[..., None]) / below[..., None]
    return world, uv, below


def chosen_points(bank: Bank, shared: Shared, frames: Frames, seen: Seen) -> Array:
    """[T, 147, 2] where the model puts the landmarks (fractions from the image's middle)."""
    _, uv = _world(bank, shared, frames)
    return jnp.take_along_axis(uv, _chosen(bank, uv, seen.normal)[..., None], 1)


def _chosen(bank: Bank, uv: Array, normal: Array) -> Array:
    """[T, 147] rows of the bank: the fixed points, and of each jaw line's candidates the outermost
    in the picture, where the silhouette is."""
    jaw = uv[:, FIXED:].reshape(len(uv), 17, bank.candidates, 2)
    outermost = jnp.argmax(jnp.einsum("tjcd,tjd->tjc", jaw, normal), -1)
    rows = FIXED + bank.candidates * jnp.arange(17) + outermost
    return jnp.concatenate([jnp.broadcast_to(jnp.arange(FIXED), (len(uv), FIXED)), rows], 1)


def _robust(whitened: Array) -> Array:
    """Square roots of the weights [...] of residuals [..., D]: Cauchy's, a third of the pull at 3
    deviations."""
    squared = jnp.sum(whitened**2, -1)
    return 1 / jnp.sqrt(1 + squared / 9)


def linearise(
    bank: Bank, shared: Shared, frames: Frames, seen: Seen, noise: Noise, with_shared: bool
) -> Residuals:
    """Residuals of the landmarks, in deviations and reweighted, with their derivatives."""
    world, uv = _world(bank, shared, frames)
    rows = _chosen(bank, uv, seen.normal)
    at = jnp.take_along_axis(world, rows[..., None], 1)
    uv = jnp.take_along_axis(uv, rows[..., None], 1)
    depth = jnp.exp(frames.place[:, 2])[:, None]
    below = shared.kappa * at[..., 2] + depth

    by_rigid, turned = _derivatives(at, uv, below, frames, shared.kappa)

    def of_basis(basis):  # [K, P, 3] -> [T, M, 2, K]
        still = jnp.einsum("tmcd,kmd->tmck", turned[:, :FIXED], basis[:, :FIXED])
        sliding = jnp.einsum("tmcd,ktmd->tmck", turned[:, FIXED:], basis[:, rows[:, FIXED:]])
        return jnp.concatenate([still, sliding], 1)

    by_frame = jnp.concatenate([by_rigid, of_basis(bank.expression)], -1)
    by_shared = None
    if with_shared:
        by_kappa = (-uv * (at[..., 2] / below)[..., None])[..., None]
        by_shared = jnp.concatenate([of_basis(bank.shape), by_kappa], -1)
    return _whitened(uv, by_frame, by_shared, seen, noise)


def _derivatives(at: Array, uv: Array, below: Array, frames: Frames, kappa: Array):
    """Of image points uv [T, M, 2] by pose [T, M, 2, 6] and by place on the head [T, M, 2, 3].

    Args:
        at: [T, M, 3] about the head's origin in the camera's axes; below: [T, M] denominators.
    """
    zero = jnp.zeros_like(below)
    by_point = jnp.stack(
        [
            jnp.stack([1 / below, zero, -kappa * uv[..., 0] / below], -1),
            jnp.stack([zero, 1 / below, -kappa * uv[..., 1] / below], -1),
        ],
        -2,
    )
    turned = by_point @ (frames.turn @ cameras.FRONTAL)[:, None]
    share = (jnp.exp(frames.place[:, 2])[:, None] / below)[..., None]
    by_place = jnp.concatenate(
        [
            share[..., None] * jnp.eye(2),
            (share * (frames.place[:, None, :2] - uv))[..., None],
        ],
        -1,
    )
    skew = jnp.cross(at[..., None, :], by_point)  # d(uv)/dω, ω turning about the head's origin
    return jnp.concatenate([skew, by_place], -1), turned


def _jaw_axes(normal: Array) -> Array:
    """[T, 17, 2, 2] across the jaw line and, less, along it."""
    along = jnp.stack([-normal[..., 1], normal[..., 0]], -1)
    return jnp.stack([normal, along / JAW_SLIDES], -2)


def _left(uv: Array, seen: Seen, noise: Noise) -> list[Array]:
    """What is left of the image points [T, 147, 2] in deviations: of the fixed points
    [T, 130, 2], the jaw line (across and along it) [T, 17, 2] and the gaps [T, 7, 2]."""
    target = jnp.concatenate([seen.inner, seen.lips], 1)
    deviation = jnp.concatenate([noise.inner, noise.lips])[:, None]
    jaw = jnp.einsum("tjad,tjd->tja", _jaw_axes(seen.normal), uv[:, FIXED:] - seen.jaw)
    first, second = GAPS.T
    gap = (uv[:, first] - uv[:, second]) - (seen.inner[:, first] - seen.inner[:, second])
    return [(uv[:, :FIXED] - target) / deviation, jaw / noise.jaw[:, None], gap / noise.gap]


def _whitened(uv, by_frame, by_shared, seen: Seen, noise: Noise) -> Residuals:
    """Image points [T, 147, 2] and derivatives as rows of residuals, reweighted."""
    left = _left(uv, seen, noise)
    weights = [_robust(group)[..., None] * seen.found[:, None, None] for group in left]
    deviation = jnp.concatenate([noise.inner, noise.lips])[:, None]
    pull = [w / d for w, d in zip(weights, (deviation, noise.jaw[:, None], noise.gap), strict=True)]
    axes = _jaw_axes(seen.normal)
    first, second = GAPS.T

    def rows(by):  # [T, 147, 2, N] -> [T, R, N]
        across = jnp.einsum("tjcn,tjac->tjan", by[:, FIXED:], axes)
        parts = [by[:, :FIXED], across, by[:, first] - by[:, second]]
        parts = [part * p[..., None] for part, p in zip(parts, pull, strict=True)]
        return jnp.concatenate([p.reshape(len(uv), -1, by.shape[-1]) for p in parts], 1)

    values = [group * weight for group, weight in zip(left, weights, strict=True)]
    return Residuals(
        jnp.concatenate([v.reshape(len(uv), -1) for v in values], 1),
        rows(by_frame),
        None if by_shared is None else rows(by_shared),
    )


def _expression_prior(frames: Frames, seen: Seen, noise: Noise, bounded: Array):
    """Gradient [T, K] and curvature [T, K] of what is believed of the expression: near the
    detector's, and no blendshape (`bounded` [K]) the wrong way round."""
    away = frames.expression - seen.prior
    negative = (frames.expression < 0) * bounded / BACKWARDS**2
    weight = 1 / noise.expression**2
    return away * weight + frames.expression * negative, weight + negative


@jax.jit
def frame_equations(bank, shared, frames, seen, noise, bounded):
    """Gauss-Newton equations of each frame: matrices [T, N, N] and right sides [T, N], N = 6 + K.

    (matrix) (step) = (right side) is the frame's own best step.
    """
    rows = linearise(bank, shared, frames, seen, noise, False)
    gradient, curvature = _expression_prior(frames, seen, noise, bounded)
    matrix = jnp.einsum("trn,trm->tnm", rows.frame, rows.frame)
    side = -jnp.einsum("trn,tr->tn", rows.frame, rows.value)
    place = jnp.arange(POSE, matrix.shape[-1])
    return matrix.at[:, place, place].add(curvature), side.at[:, POSE:].add(-gradient)


@jax.jit
def pixel_equations(rest, expression, kappa, frames, left, slope, weight):
    """Gauss-Newton equations [T, N, N], [T, N] of the colours at points of the surface.

    Args:
        rest: [V, 3] the speaker's points without expression; expression: [K, V, 3].
        left: [T, V, 3] colours expected less colours seen there; slope: [T, V, 3, 2] how the
            colours change with the image point; weight: [T, V] one over their variance.
    """
    world, uv, below = _placed(rest, expression, kappa, frames)
    by_rigid, turned = _derivatives(world, uv, below, frames, kappa)
    by_expression = jnp.einsum("tvcd,kvd->tvck", turned, expression)
    by_frame = jnp.concatenate([by_rigid, by_expression], -1)
    squared = jnp.einsum("tvia,tvib,tv->tvab", slope, slope, weight)
    pulled = jnp.einsum("tvan,tvab->tvbn", by_frame, squared)
    matrix = jnp.einsum("tvbn,tvbm->tnm", pulled, by_frame)
    side = jnp.einsum("tvan,tvia,tvi,tv->tn", by_frame, slope, left, weight)
    return matrix, side


def cost(bank, shared, frames, seen, noise, bounded) -> Array:
    """[T] what Gauss-Newton makes small: robust squares of the landmarks' residuals and priors."""
    left = _left(chosen_points(bank, shared, frames, seen), seen, noise)
    seen_cost = sum(jnp.sum(9 * jnp.log1p(jnp.sum(g**2, -1) / 9), -1) for g in left)
    away = (frames.expression - seen.prior) / noise.expression
    negative = jnp.minimum(frames.expression, 0) * bounded / BACKWARDS
    return 0.5 * (seen_cost * seen.found + jnp.sum(away**2 + negative**2, -1))


def moved(frames: Frames, step: Array) -> Frames:
    """Frames after a step [T, 6 + K]: turned by its rotation vectors, the rest added."""
    return Frames(
        cameras.rotation_matrix(step[:, :3]) @ frames.turn,
        frames.place + step[:, 3:6],
        frames.expression + step[:, 6:],
    )


# ---- what a speaker keeps


@jax.jit
def _shared_step(bank, shared, frames, seen, noise, bounded, worth, damping):
    """One damped step of everything; also the deviation of kappa."""
    rows = linearise(bank, shared, frames, seen, noise, True)
    gradient, curvature = _expression_prior(frames, seen, noise, bounded)
    matrix = jnp.einsum("trn,trm->tnm", rows.frame, rows.frame)
    place, all_places = jnp.arange(POSE, matrix.shape[-1]), jnp.arange(matrix.shape[-1])
    matrix = matrix.at[:, place, place].add(curvature)
    matrix = matrix.at[:, all_places, all_places].multiply(1 + damping)
    cross = jnp.einsum("trn,trs->tns", rows.frame, rows.shared)
    side = -jnp.einsum("trn,tr->tn", rows.frame, rows.value)
    side = side.at[:, POSE:].add(-gradient)
    prior = 1 / jnp.append(noise.shape, noise.kappa) ** 2 / worth
    at = jnp.append(shared.shape, shared.kappa - noise.kappa_mean)
    ours = jnp.einsum("trs,trq->sq", rows.shared, rows.shared)
    ours = ours + jnp.diag(prior * (1 + damping))
    our_side = -jnp.einsum("trs,tr->s", rows.shared, rows.value) - prior * at

    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, jnp.append(cross, side[..., None], -1))
    reduced = ours - jnp.einsum("tns,tnq->sq", cross, solved[..., :-1])
    step = jax.scipy.linalg.solve(
        reduced, our_side - jnp.einsum("tns,tn->s", cross, solved[..., -1]), assume_a="pos"
    )
    frame_step = solved[..., -1] - jnp.einsum("tns,s->tn", solved[..., :-1], step)
    new = Shared(shared.shape + step[:-1], shared.kappa + step[-1])
    deviation = jnp.sqrt(jnp.linalg.inv(reduced)[-1, -1] / worth)
    return new, moved(frames, frame_step), deviation


@jax.jit
def _total(bank, shared, frames, seen, noise, bounded, worth):
    away = jnp.append(shared.shape / noise.shape, (shared.kappa - noise.kappa_mean) / noise.kappa)
    prior = jnp.sum(away**2)
    return jnp.sum(cost(bank, shared, frames, seen, noise, bounded)) + 0.5 * prior / worth


@jax.jit
def _learned(bank, shared, frames, seen, noise, eyes):
    """The noise of the landmarks, from the medians over the frames of what is left of them."""
    uv = chosen_points(bank, shared, frames, seen)

    def median(left):
        return jnp.nanmedian(jnp.where(seen.found[:, None] > 0, left, jnp.nan), 0)

    inner = median(jnp.linalg.norm(uv[:, :51] - seen.inner, axis=-1)) / RAYLEIGH
    lips = median(jnp.linalg.norm(uv[:, 51:130] - seen.lips, axis=-1)) / RAYLEIGH
    jaw = median(jnp.abs(jnp.sum((uv[:, 130:] - seen.jaw) * seen.normal, -1))) / HALF_NORMAL
    return noise.replace(
        inner=jnp.maximum(inner, LEAST_NOISE * eyes),
        lips=LIPS_COUNT_LESS * jnp.maximum(lips, LEAST_NOISE * eyes),
        jaw=JAW_COUNTS_LESS * jnp.maximum(jaw, LEAST_NOISE * eyes),
    )


def fit_shared(
    bank: Bank,
    shared: Shared,
    frames: Frames,
    seen: Seen,
    noise: Noise,
    bounded: Array,
    eyes: float,
    progress=lambda done: None,
) -> tuple[Shared, Frames, Noise, float]:
    """Shape and perspective of a speaker from some frames, and how noisy the landmarks are.

    Args:
        frames: where they start.
        bounded: [K] 1 where an expression vector is a blendshape, that no face does backwards.
        eyes: median distance of the outer eye corners (fractions of the image side).

    Returns:
        what the speaker keeps, the frames, the noise, and the deviation of kappa. The frames'
        errors are alike: together they count as `INDEPENDENT` frames.
    """
    worth, damping = jnp.float32(min(1.0, INDEPENDENT / len(frames.place))), 1e-2
    now = float(_total(bank, shared, frames, seen, noise, bounded, worth))
    for step in range(SHARED_STEPS):
        new, new_frames, _ = _shared_step(
            bank, shared, frames, seen, noise, bounded, worth, damping
        )
        then = float(_total(bank, new, new_frames, seen, noise, bounded, worth))
        if then < now:
            shared, frames, now, damping = new, new_frames, then, max(damping / 5, 1e-5)
        else:
            damping *= 10
        if step in LEARN_AT:
            noise = _learned(bank, shared, frames, seen, noise, eyes)
            now = float(_total(bank, shared, frames, seen, noise, bounded, worth))
        progress((step + 1) / SHARED_STEPS)
    *_, deviation = _shared_step(bank, shared, frames, seen, noise, bounded, worth, 0.0)
    return shared, frames, noise, float(deviation)


# ---- what changes from frame to frame


@jax.jit
def fit_own(bank, shared, frames, seen, noise, bounded) -> Frames:
    """Every frame's pose and expression by itself (Levenberg-Marquardt).

    Args:
        frames: where they start, T of them; bounded: [K] as of `fit_shared`.
    """
    diagonal = jnp.arange(POSE + frames.expression.shape[1])

    def step(_, state):
        frames, now, damping = state
        matrix, side = frame_equations(bank, shared, frames, seen, noise, bounded)
        grown = 1 + damping[:, None]
        matrix = matrix.at[:, diagonal, diagonal].multiply(grown)
        matrix = matrix.at[:, diagonal, diagonal].add(1e-6)
        factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
        new = moved(frames, jax.scipy.linalg.cho_solve(factor, side[..., None])[..., 0])
        then = cost(bank, shared, new, seen, noise, bounded)
        better = then < now

        def pick(a, b):
            return jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        frames = jax.tree.map(pick, new, frames)
        damping = jnp.where(better, jnp.maximum(damping / 5, 1e-5), damping * 10)
        return frames, jnp.where(better, then, now), damping

    now = cost(bank, shared, frames, seen, noise, bounded)
    return jax.lax.fori_loop(0, OWN_STEPS, step, (frames, now, jnp.full(len(now), 1e-2)))[0]


def bends(frames: Frames) -> Array:
    """[T - 2, 6 + K] second differences in time: of turns, the change of the turn per frame."""
    relative = frames.turn[1:] @ jnp.swapaxes(frames.turn[:-1], -1, -2)
    cosine = jnp.clip((jnp.trace(relative, axis1=-2, axis2=-1) - 1) / 2, -1, 1)
    axis = jnp.stack(
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        -1,
    )
    # angle / (2 sin(angle)) of a turn between neighbouring frames, about 1/2
    small = cosine > 1 - 1e-6
    safe = jnp.where(small, 0.0, cosine)
    scale = jnp.where(small, 0.5, jnp.arccos(safe) / (2 * jnp.sqrt(1 - safe**2)))
    turning = axis * scale[:, None]
    rest = jnp.concatenate([frames.place, frames.expression], -1)
    return jnp.concatenate([jnp.diff(turning, axis=0), jnp.diff(rest, 2, axis=0)], -1)


@jax.jit
def joined_step(matrix, side, bend, stiffness, steps=150):
    """The step [T, N] that minimises the frames' quadratics and the bends left after it.

    Conjugate gradients on (matrix + Dᵀ stiffness D), D the second difference in time.

    Args:
        matrix: [T, N, N]; side: [T, N]; bend: [T - 2, N]; stiffness: [T - 2, N], 0 over a cut.
    """

    def bent(x):
        return stiffness * (x[2:] - 2 * x[1:-1] + x[:-2])

    def back(y):
        y = jnp.pad(y, ((2, 2), (0, 0)))
        return y[2:] - 2 * y[1:-1] + y[:-2]

    def apply(x):
        return jnp.einsum("tnm,tm->tn", matrix, x) + back(bent(x))

    pull = jnp.pad(stiffness, ((2, 2), (0, 0)))
    own = pull[2:] + 4 * pull[1:-1] + pull[:-2]
    diagonal = jnp.arange(side.shape[1])
    factor = jax.scipy.linalg.cho_factor(matrix.at[:, diagonal, diagonal].add(own), lower=True)

    def precondition(x):
        return jax.scipy.linalg.cho_solve(factor, x[..., None])[..., 0]

    start = side - back(stiffness * bend)
    return jax.scipy.sparse.linalg.cg(apply, start, M=precondition, maxiter=steps, tol=1e-5)[0]


def stiffness_of(matrix: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """[N] how firmly each parameter is held straight: one over the variance of its true bends.

    The bends of frames fitted each by itself are the head's own and six times the fits' variance
    (which their equations tell); at least `OWN_BENDS` of them are taken for the head's.

    Args:
        matrix: [n, N, N] of frames' equations; bend: [n, N] there, each the middle one of three
            frames in a row that were seen and belong to one shot.
    """
    variance = np.diagonal(np.linalg.inv(matrix), axis1=1, axis2=2)
    seen = np.mean(np.minimum(bend**2, 25 * np.median(bend**2, 0)), 0)
    floor = np.where(np.arange(bend.shape[1]) < POSE, *OWN_BENDS)
    true = np.maximum(seen - 6 * np.median(variance, 0), floor * seen)
    return 1 / np.maximum(true, 1e-12)
