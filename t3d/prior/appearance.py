"""Colours of a fitted head: the speaker's skin, each frame's light, and what pixels tell of motion.

Colours are compared at vertices spread evenly over the face. What is skin there is told by its
colour alone, so that hair, brows and a hand neither paint the albedo nor count as its errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d import camera as cameras
from t3d.prior import morphable, raster, shading
from t3d.prior.morphable import MorphableModel

Arrays = dict[str, np.ndarray]
POINTS = 800
FRONTAL = -0.3  # greatest cosine of a visible vertex's normal and the way it is looked at
ABOVE_BROWS = 2.0  # cm; higher up there may be hair
SKIN = 3.0  # deviations of the logarithm of colour that skin is within
PASSES = 6
COLOUR_NOISE, INDEPENDENT = (
    0.1,
    8.0,
)  # deviation of colours alike nearby; frames without common errors
LEAST_NOISE = 0.01  # deviation of a colour
SLOPE_STEP = 1.5  # pixels, to each side
MOUTH = (3.2, 2.2)  # cm, half axes of the ellipse that is the mouth's surroundings
GAUSSIAN = 1.4826  # deviation over median distance


class Patch(NamedTuple):
    """The vertices [V] that colours are compared at; `model` has them (rows `at` [V]) and their
    neighbours, joined by `triangles` [F, 3]; mouth [V] bool: on the lips and next to them."""

    vertices: np.ndarray
    model: MorphableModel
    at: np.ndarray
    triangles: np.ndarray
    mouth: np.ndarray


class Views(NamedTuple):
    """What n frames show of a patch: colours [n, V, 3] in [0, 1], SH bands [n, V, 9] of the
    normals, visible [n, V] bool, and how colours change with the image point, slope [n, V, 3, 2]
    (per image side; None where not asked for)."""

    colours: np.ndarray
    bands: np.ndarray
    visible: np.ndarray
    slope: np.ndarray | None


class Appearance(NamedTuple):
    """Of a speaker: code [100], albedo [V, 3] that it means, texture [V, 3] (the albedo that each
    vertex shows by itself, whether of skin or of hair), noise [V] (deviation of its colours), and
    the normal distribution of the logarithms of the skin's colours, centre [3] and precision
    [3, 3]."""

    code: np.ndarray
    albedo: np.ndarray
    texture: np.ndarray
    noise: np.ndarray
    centre: np.ndarray
    precision: np.ndarray


def patch_of(model: MorphableModel, count: int = POINTS) -> Patch:
    """`count` vertices of the face as far from each other as can be, none hidden from the front."""
    shown = _front_of_face(model)
    points = np.asarray(model.mean)[shown]
    chosen, apart = [0], np.linalg.norm(points - points[0], axis=-1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(np.argmax(apart)))
        apart = np.minimum(apart, np.linalg.norm(points - points[chosen[-1]], axis=-1))
    vertices = shown[np.sort(chosen)]
    triangles = model.triangles[np.isin(model.triangles, vertices).any(1)]
    neighbours, rows = np.unique(triangles, return_inverse=True)
    small = morphable.restrict(model, neighbours)
    marks = np.asarray(model.mean)[np.asarray(model.landmarks68)]
    away = (np.asarray(model.mean)[vertices] - marks[[51, 57]].mean(0))[:, :2] / MOUTH
    mouth = np.linalg.norm(away, axis=-1) < 1
    at = np.searchsorted(neighbours, vertices)
    return Patch(vertices, small, at, rows.reshape(-1, 3), mouth)


def _front_of_face(model: MorphableModel) -> np.ndarray:
    """The face's vertices that nothing hides from the front: no nostrils, nothing high up."""
    mean, region = np.asarray(model.mean), np.asarray(model.region)
    size, scale = 512, 512 / 40  # pixels, pixels a centimetre
    uv, depth = mean[:, :2] * [scale, -scale] + size / 2, 100 - mean[:, 2]
    front = raster.rasterize(uv, depth, np.asarray(model.triangles), size, size).depth
    column, row = np.clip(uv.astype(int), 0, size - 1).T
    shown = depth < front[row, column] + 0.15
    brows = mean[np.asarray(model.landmarks68)[17:27], 1].max()
    shown &= mean[:, 1] < brows + ABOVE_BROWS
    return np.flatnonzero(shown & (region == model.region_names.index("face")))


def look(
    patch: Patch,
    fitted: Arrays,
    frames: np.ndarray,
    images: Callable[[np.ndarray], np.ndarray],
    masks: Callable[[np.ndarray], np.ndarray],
    slopes: bool = False,
) -> Views:
    """What the frames [n] show of the patch where `fitted` (as of `tracker.track`) puts it."""
    codes = np.asarray(fitted["expression"])[frames]
    shape = np.asarray(morphable.vertices(patch.model, fitted["identity"], codes))
    world = cameras.transform(np.asarray(fitted["head_to_world"])[frames], shape)
    normals = np.asarray(morphable.vertex_normals(world, patch.triangles))[:, patch.at]
    world = world[:, patch.at]
    uv, _ = cameras.project(cameras.recorded(np.asarray(fitted["intrinsics"])), world)
    way = world / np.linalg.norm(world, axis=-1, keepdims=True)
    inside = sample(masks(frames)[..., None].astype(np.float32), uv)[..., 0] > 0.5
    visible = (np.sum(normals * way, -1) < FRONTAL) & inside
    pictures = images(frames)
    slope = _slope(pictures, uv) if slopes else None
    return Views(sample(pictures, uv) / 255, np.asarray(shading.sh_basis(normals)), visible, slope)


def _slope(pictures: np.ndarray, uv: np.ndarray) -> np.ndarray:
    step = SLOPE_STEP / pictures.shape[1]
    ahead = [sample(pictures, uv + step * axis) for axis in np.eye(2)]
    behind = [sample(pictures, uv - step * axis) for axis in np.eye(2)]
    return (np.stack(ahead, -1) - np.stack(behind, -1)) / (2 * step * 255)


def sample(images: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear colours [n, V, C] of images [n, S, S, C] at fractions [n, V, 2]."""
    size = images.shape[1]
    x, y = np.moveaxis(np.clip(uv * size - 0.5, 0, size - 1.001), -1, 0)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = (x - x0)[..., None].astype(np.float32), (y - y0)[..., None].astype(np.float32)
    n = np.arange(len(images))[:, None]
    top = images[n, y0, x0] * (1 - fx) + images[n, y0, x0 + 1] * fx
    bottom = images[n, y0 + 1, x0] * (1 - fx) + images[n, y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def skin_colour(views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Centre [3] and precision [3, 3] of the normal distribution of log colours of the skin.

    Most of what is visible is skin, whatever its light: the distribution is fitted to all, then
    again and again to what lies within `SKIN` deviations of it.
    """
    seen = _logs(views.colours)[views.visible]
    near = np.ones(len(seen), bool)
    for _ in range(10):
        some = seen[near] if near.sum() > 30 else seen
        centre = some.mean(0) if len(some) else np.zeros(3)
        spread = np.cov(some.T) if len(some) > 30 else np.eye(3)
        precision = np.linalg.inv(spread + 1e-6 * np.eye(3))
        near = _squared_distance(seen - centre, precision) < SKIN**2
    return centre, precision


def skin_of(views: Views, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """[n, V] bool: visible and of the colour of skin."""
    away = _logs(views.colours) - centre
    return views.visible & (_squared_distance(away, precision) < SKIN**2)


def _logs(colours: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(colours, 0.02))


def _squared_distance(away: np.ndarray, precision: np.ndarray) -> np.ndarray:
    return np.sum(away @ precision * away, -1)


def fit(patch: Patch, views: Views) -> Appearance:
    """The speaker's colours from some frames: light and albedo by turns, by least squares."""
    mean = np.asarray(patch.model.albedo_mean)[patch.at]
    basis = np.asarray(patch.model.albedo_basis)[:, patch.at]
    flat = basis.reshape(len(basis), -1)
    colour = skin_colour(views)
    skin = skin_of(views, *colour)
    worth = min(1.0, INDEPENDENT / len(skin)) / COLOUR_NOISE**2
    albedo = np.clip(mean, 0.02, 1.0)
    for _ in range(PASSES):
        lit = views.bands @ lights(views, skin, albedo) * skin[..., None]
        power = worth * np.sum(lit**2, 0)
        pull = worth * np.sum(lit * (views.colours - mean * lit), 0)
        matrix = flat * power.reshape(-1) @ flat.T + np.eye(len(basis))
        code = np.linalg.solve(matrix, flat @ pull.reshape(-1))
        albedo = np.clip(mean + np.tensordot(code, basis, 1), 0.02, 1.0)
    texture, noise = _texture(views, views.bands @ lights(views, skin, albedo), albedo)
    return Appearance(code, albedo, texture, noise, *colour)


def _texture(views: Views, lit: np.ndarray, albedo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[V, 3] the albedo of each vertex by itself (where it is never seen, what the codes say) and
    [V] the deviation of its colours; robust, since something may be before it now and then."""
    weight = views.visible.astype(np.float64)
    for _ in range(3):
        power = np.sum(weight[..., None] * lit**2, 0)
        pull = np.sum(weight[..., None] * lit * views.colours, 0)
        texture = np.clip((pull + 0.1 * albedo) / (power + 0.1), 0.02, 1.0)
        left = np.linalg.norm(views.colours - texture * lit, axis=-1) / np.sqrt(3)
        seen = np.ma.array(left, mask=~views.visible)
        noise = np.maximum(GAUSSIAN * np.ma.median(seen, axis=0).filled(1.0), LEAST_NOISE)
        weight = views.visible * cauchy((left / noise) ** 2)
    return texture, noise


def cauchy(squared: np.ndarray) -> np.ndarray:
    """Weights of squared residuals in deviations: a half at 3 of them."""
    return 1 / (1 + squared / 9)


def surprise(speaker: Appearance, views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Expected less seen colours [n, V, 3], and one over the variance of each vertex's [n, V].

    Expected is the speaker's texture in each frame's best light. Cauchy's weights: what is far off
    its noise (a hand, a hair) counts little; what is not visible, nothing.
    """
    skin = skin_of(views, speaker.centre, speaker.precision)
    light = lights(views, skin, speaker.texture)
    left = speaker.texture * (views.bands @ light) - views.colours
    squared = np.mean(left**2, -1) / speaker.noise**2
    return left, views.visible * cauchy(squared) / speaker.noise**2


def lights(views: Views, weight: np.ndarray, albedo: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Least-squares illumination [n, 9, 3] of each frame, held towards white frontal light.

    Args:
        weight: [n, V] of the vertices; albedo: [V, 3].
    """
    start = np.zeros((9, 3))
    start[0] = 0.8
    weight = weight.astype(np.float64)
    light = np.empty((len(views.colours), 9, 3))
    for channel in range(3):
        design = views.bands * albedo[None, :, channel, None]
        target = views.colours[..., channel] - design @ start[:, channel]
        normal = np.einsum("nvb,nvd->nbd", design * weight[..., None], design, optimize=True)
        side = np.einsum("nvb,nv->nb", design, weight * target)
        held = ridge * (1 + weight.sum(1))[:, None, None] * np.eye(9)
        light[..., channel] = (
            start[:, channel] + np.linalg.solve(normal + held, side[..., None])[..., 0]
        )
    return light


def psnr(speaker: Appearance, views: Views, albedo: np.ndarray) -> np.ndarray:
    """[n] dB between the visible skin's colours and an albedo [V, 3] in each frame's best light."""
    skin = skin_of(views, speaker.centre, speaker.precision)
    painted = np.clip(albedo * (views.bands @ lights(views, skin, albedo)), 0, 1)
    error = np.mean((painted - views.colours) ** 2, -1) * skin
    return -10 * np.log10(np.maximum(error.sum(1) / np.maximum(skin.sum(1), 1), 1e-9))
