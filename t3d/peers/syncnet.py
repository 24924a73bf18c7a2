"""syncnet_python's SyncNet, the network behind the SyncNet confidence of Table I.

Five face frames and 0.2 s of sound become 1024 numbers each, compared by Euclidean distance (Chung
& Zisserman, "Out of time", 2016). The weights come from its public file, syncnet_v2.model.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import assets
from t3d.errors import UserError
from t3d.peers import torch_file
from t3d.peers.torch_file import take, take_folded

Weights = dict[str, np.ndarray]

SIZE = 224  # side of its face crops
MFCC_STEPS = 20  # beside five frames
# Convolutions: number in the peer's list, stride, padding, what pools after it (stride, padding;
# always 3 × 3). The first of the lips spans all five frames, which makes them channels.
_LIP = (
    (0, 2, 0, ((2, 2), 0)),
    (4, 2, 1, ((2, 2), 1)),
    (8, 1, 1, None),
    (11, 1, 1, None),
    (14, 1, 1, ((2, 2), 0)),
    (18, 1, 0, None),
)
_AUDIO = (
    (0, 1, 1, None),
    (4, 1, 1, ((1, 2), 0)),
    (8, 1, 1, None),
    (11, 1, 1, None),
    (14, 1, 1, ((2, 2), 0)),
    (18, 1, 0, None),
)
_LIP_SHAPES = (
    (96, 3, 5, 7, 7),
    (256, 96, 1, 5, 5),
    (256, 256, 1, 3, 3),
    (256, 256, 1, 3, 3),
    (256, 256, 1, 3, 3),
    (512, 256, 1, 6, 6),
)
_AUDIO_SHAPES = (
    (64, 1, 3, 3),
    (192, 64, 3, 3),
    (384, 192, 3, 3),
    (256, 384, 3, 3),
    (256, 256, 3, 3),
    (512, 256, 5, 4),
)


def load(path: str | Path) -> Weights:
    """The weights of a file that PyTorch wrote.

    Returns:
        {"lip0.weight": [out, in, h, w], "lip0.bias": [out], …}, batch normalisation folded in.

    Raises:
        UserError: the file cannot be read, or a tensor is missing or of the wrong shape.
    """
    try:
        return from_state(torch_file.state_dict(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; give syncnet_python's syncnet_v2.model") from error


def from_state(state: Weights) -> Weights:
    """Makes weights of the peer's named tensors, batch normalisation folded in.

    Raises:
        ValueError: a tensor is missing or of the wrong shape.
    """
    left, weights = dict(state), {}
    for ours, layers, shapes in (("lip", _LIP, _LIP_SHAPES), ("audio", _AUDIO, _AUDIO_SHAPES)):
        theirs = ours.replace("audio", "aud")
        for i, ((number, *_), shape) in enumerate(zip(layers, shapes, strict=True)):
            kernel, bias = _folded(left, f"netcnn{theirs}", number, shape)
            # [out, colour, time, h, w] → [out, colour · time, h, w]
            weights[f"{ours}{i}.weight"] = kernel.reshape(len(kernel), -1, *shape[-2:])
            weights[f"{ours}{i}.bias"] = bias
        hidden, bias = _folded(left, f"netfc{theirs}", 0, (512, 512))
        weights |= {f"{ours}_hidden.weight": hidden, f"{ours}_hidden.bias": bias}
        weights[f"{ours}_out.weight"] = take(left, f"netfc{theirs}.3.weight", (1024, 512))
        weights[f"{ours}_out.bias"] = take(left, f"netfc{theirs}.3.bias", (1024,))
    return weights


def available() -> Weights | str:
    """The weights among the assets, or a line that says why there are none."""
    try:
        return load(assets.find("syncnet_v2"))
    except UserError as error:
        return f"not available: {error}"


@jax.jit
def lip_embedding(weights: Weights, frames: jax.Array) -> jax.Array:
    """Embeds face frames [W, 5, 224, 224, 3], BGR in 0 … 255, consecutive at 25 fps: [W, 1024]."""
    frames = frames.astype(jnp.float32).transpose(0, 2, 3, 4, 1)
    return _embedding(weights, "lip", _LIP, frames.reshape(*frames.shape[:3], -1))


@jax.jit
def audio_embedding(weights: Weights, mfcc: jax.Array) -> jax.Array:
    """Embeds sound [W, 20, 13] (speech.features.mfcc, 100 steps a second): [W, 1024]."""
    return _embedding(weights, "audio", _AUDIO, mfcc.transpose(0, 2, 1)[..., None])


def _embedding(weights: Weights, branch: str, layers: tuple, x: jax.Array) -> jax.Array:
    for i, (_, stride, padding, pool) in enumerate(layers):
        x = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(weights[f"{branch}{i}.weight"]),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x + weights[f"{branch}{i}.bias"])
        x = x if pool is None else _max_pool(x, *pool)
    x = x.reshape(len(x), -1)
    return _linear(weights, f"{branch}_out", jax.nn.relu(_linear(weights, f"{branch}_hidden", x)))


def _max_pool(x: jax.Array, stride: tuple[int, int], padding: int) -> jax.Array:
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, *stride, 1), edges)


def _linear(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    matrix = jnp.asarray(weights[f"{name}.weight"])
    return jnp.dot(x, matrix.T, precision=jax.lax.Precision.HIGHEST) + weights[f"{name}.bias"]


def _folded(left: Weights, part: str, number: int, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [out, …] and bias [out] of a layer and the batch normalisation that follows it."""
    kernel = take(left, f"{part}.{number}.weight", shape)
    return take_folded(left, kernel, f"{part}.{number}", f"{part}.{number + 1}")
