"""What a talking head has to beat: pictures that need no model, from the training frames alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from t3d import camera as cameras
from t3d.data import video
from t3d.metrics import lips
from t3d.prior import morphable
from t3d.prior.morphable import MorphableModel

MOST_FRAMES = 200  # that a mean frame is made of


def rigid_points(
    model: MorphableModel, identity: np.ndarray, intrinsics: np.ndarray, head_to_world: np.ndarray
) -> np.ndarray:
    """Where eye corners and nose bridge of a calm face lie, by its pose alone.

    Args:
        identity: [100]; intrinsics: [4]; head_to_world: [T, 4, 4].

    Returns:
        [T, 8, 2] fractions of the image side.
    """
    small = morphable.restrict(model, model.landmarks68[list(lips.RIGID)])
    calm = np.asarray(morphable.vertices(small, identity, np.zeros(79, np.float32)))
    return cameras.project(cameras.recorded(intrinsics), cameras.transform(head_to_world, calm))[0]


def warped(image: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """An image moved by the similarity that lays some of its points onto others; white outside.

    Args:
        image: uint8 [s, s, 3]; source, target: [N, 2] fractions of the side.
    """
    size = len(image)
    matrix, shift = lips.similarity(target * size, source * size)  # where each new pixel is from
    affine = np.concatenate([matrix, shift[:, None]], 1).reshape(-1).tolist()
    moved = Image.fromarray(image).transform(
        (size, size),
        Image.Transform.AFFINE,
        affine,
        Image.Resampling.BICUBIC,
        fillcolor=(255, 255, 255),
    )
    return np.asarray(moved)


def warped_mean(images: Sequence[np.ndarray], source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The mean of training images, laid upon each other by their poses and moved to other poses.

    Args:
        images: N of uint8 [s, s, 3]; source: [N, P, 2] their rigid points; target: [T, P, 2].

    Returns:
        uint8 [T, s, s, 3].
    """
    middle = source[np.argmin(np.square(source - source.mean(0)).sum((1, 2)))]
    total = sum(warped(i, p, middle).astype(np.float64) for i, p in zip(images, source))
    mean = np.round(total / len(images)).astype(np.uint8)
    return np.stack([warped(mean, middle, points) for points in target])


def nearest(known: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> np.ndarray:
    """The known element nearest to each wanted one, by groups of features of equal weight.

    Args:
        known: for each group [N, D] features; wanted: the same groups, [T, D]. Each feature counts
            in standard deviations over the known ones.

    Returns:
        [T] indices into the known.
    """
    total = 0.0
    for theirs, ours in zip(known, wanted, strict=True):
        middle, spread = theirs.mean(0), np.maximum(theirs.std(0), 1e-6)
        a, b = (theirs - middle) / spread, (ours - middle) / spread
        squared = (b * b).sum(1)[:, None] - 2 * b @ a.T + (a * a).sum(1)
        total = total + squared / a.shape[1]
    return np.argmin(total, 1)


def ridge(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge regression: what is linear in standardised features.

    Args:
        known: [N, D] features; values: [N, V] theirs; wanted: [T, D].
        penalty: of the weights' squares, beside the squared errors' sum.

    Returns:
        [T, V].
    """
    middle, spread = known.mean(0), known.std(0) + 1e-3
    a, mean = (known - middle) / spread, values.mean(0)
    kernel = a @ a.T + penalty * np.eye(len(a))
    return (wanted - middle) / spread @ (a.T @ np.linalg.solve(kernel, values - mean)) + mean


def reencoded(images: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, s, s, 3] through our own H.264 and back: the same shape.

    What no video that is written to a file does better than: the upper bound of every figure.
    """
    size = images.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        written = video.write_video(Path(folder) / "film.mp4", images)
        return np.stack(list(video.read_frames(written)))[:, :size, :size]
