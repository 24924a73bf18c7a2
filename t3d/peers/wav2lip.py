"""Wav2Lip: its generator, the public network of LipNet's kind, and its sync expert.

Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In the Wild", 2020.
Weights are flat dictionaries made of the peer's named tensors (`t3d convert`). Colours are in the
peer's order, BGR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t3d.peers.torch_file import take, take_folded
from t3d.speech.syncnet import unit

Weights = dict[str, np.ndarray]


class _Layer(NamedTuple):
    """A convolution, and the batch normalisation and ReLU that follow it.

    Attributes:
        shape: of the kernel, (out, in, h, w).
        stride: what the rows and the columns are divided by, or multiplied by if transposed.
        padding: zeros before and after the rows, and the columns.
        residual: the input is added before the ReLU.
        transposed: the input is spread out by `stride`, with zeros between, and convolved.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    residual: bool = False
    transposed: bool = False


Layers = tuple[_Layer, ...]


def _residuals(channels: int, count: int) -> Layers:
    return (_Layer((channels, channels, 3, 3), residual=True),) * count


def _stage(
    inputs: int, outputs: int, stride: tuple, residuals: int, side: int = 3, padding: int = 1
) -> Layers:
    first = _Layer((outputs, inputs, side, side), stride, (padding, padding))
    return (first, *_residuals(outputs, residuals))


def _to_point(inputs: int) -> Layers:
    """3 × 3 places become one."""
    return (
        _Layer((512, inputs, 3, 3), padding=(0, 0)),
        _Layer((512, 512, 1, 1), padding=(0, 0)),
    )


def _doubled(inputs: int, outputs: int) -> Layers:
    """Twice the rows and columns: PyTorch's stride 2, padding 1 and output padding 1."""
    first = _Layer((outputs, inputs, 3, 3), (2, 2), (1, 2), transposed=True)
    return (first, *_residuals(outputs, 2))


_SOUND = (
    *_stage(1, 32, (1, 1), 2),
    *_stage(32, 64, (3, 1), 2),
    *_stage(64, 128, (3, 3), 2),
)
_AUDIO = (*_SOUND, *_stage(128, 256, (3, 2), 1), *_to_point(256))
_FACE = (
    _stage(6, 16, (1, 1), 0, side=7, padding=3),
    _stage(16, 32, (2, 2), 2),
    _stage(32, 64, (2, 2), 3),
    _stage(64, 128, (2, 2), 2),
    _stage(128, 256, (2, 2), 2),
    _stage(256, 512, (2, 2), 1),
    _to_point(512),
)
_DECODER = (  # each block's result is joined with the face's map of its size
    (_Layer((512, 512, 1, 1), padding=(0, 0)),),
    (_Layer((512, 1024, 3, 3), padding=(2, 2), transposed=True), *_residuals(512, 1)),
    _doubled(1024, 512),
    _doubled(768, 384),
    _doubled(512, 256),
    _doubled(320, 128),
    _doubled(160, 64),
)
_OUTPUT = _stage(80, 32, (1, 1), 0)
_COLOUR = _Layer((3, 32, 1, 1), padding=(0, 0))  # without normalisation and ReLU

_EXPERT_AUDIO = (*_SOUND, *_stage(128, 256, (3, 2), 2), *_to_point(256))
_EXPERT_FACE = (
    *_stage(15, 32, (1, 1), 0, side=7, padding=3),
    *_stage(32, 64, (1, 2), 2, side=5),
    *_stage(64, 128, (2, 2), 3),
    *_stage(128, 256, (2, 2), 2),
    *_stage(256, 512, (2, 2), 2),
    *_stage(512, 512, (2, 2), 0),
    *_to_point(512),
)

_GENERATOR_LISTS = {
    "audio_encoder": _AUDIO,
    **{f"face_encoder_blocks.{i}": block for i, block in enumerate(_FACE)},
    **{f"face_decoder_blocks.{i}": block for i, block in enumerate(_DECODER)},
    "output_block": _OUTPUT,
}
_EXPERT_LISTS = {"audio_encoder": _EXPERT_AUDIO, "face_encoder": _EXPERT_FACE}


# ---- weights


def generator_from_state(state: Weights) -> Weights:
    """Makes the generator's weights of the peer's named tensors, batch normalisation folded in.

    Returns:
        {"audio_encoder.0.weight": [out, in, h, w], "audio_encoder.0.bias": [out], …}; kernels of
        transposed convolutions are turned into those that convolve the spread input.

    Raises:
        ValueError: a tensor is missing, of the wrong shape, or not the generator's.
    """
    left = dict(state)
    weights = _fold_lists(left, _GENERATOR_LISTS)
    weights["output_block.1.weight"] = take(left, "output_block.1.weight", _COLOUR.shape)
    weights["output_block.1.bias"] = take(left, "output_block.1.bias", _COLOUR.shape[:1])
    _check_nothing_left(left)
    return weights


def expert_from_state(state: Weights) -> Weights:
    """Makes the sync expert's weights of the peer's named tensors, as `generator_from_state`."""
    left = dict(state)
    weights = _fold_lists(left, _EXPERT_LISTS)
    _check_nothing_left(left)
    return weights


def _fold_lists(left: Weights, lists: dict[str, Layers]) -> Weights:
    """Takes the tensors of the lists out of `left`."""
    weights = {}
    for part, layers in lists.items():
        for i, layer in enumerate(layers):
            kernel, bias = _folded(left, f"{part}.{i}.conv_block", layer)
            weights |= {f"{part}.{i}.weight": kernel, f"{part}.{i}.bias": bias}
    return weights


def _folded(left: Weights, block: str, layer: _Layer) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [out, in, h, w] and bias [out] of a convolution and its batch normalisation."""
    kernel = _kernel(left, f"{block}.0.weight", layer)
    return take_folded(left, kernel, f"{block}.0", f"{block}.1")


def _kernel(left: Weights, name: str, layer: _Layer) -> np.ndarray:
    outputs, inputs, *sides = layer.shape
    if not layer.transposed:
        return take(left, name, layer.shape)
    return take(left, name, (inputs, outputs, *sides)).swapaxes(0, 1)[:, :, ::-1, ::-1]


def _check_nothing_left(left: Weights) -> None:
    if left:
        raise ValueError(f"{next(iter(left))} belongs to another network")


# ---- networks


@jax.jit
def generate(weights: Weights, mel: jax.Array, faces: jax.Array) -> jax.Array:
    """Draws faces that say what is heard.

    Args:
        weights: the generator's.
        mel: [B, 16, 80] windows of speech.features.mel, 0.2 s from each frame on.
        faces: [B, 96, 96, 6] in [0, 1], BGR: the face with its lower half black, and another face
            of the same person.

    Returns:
        [B, 96, 96, 3] in [0, 1], BGR.
    """
    features = face_features(weights, faces)
    x = decoder_maps(weights, audio_embedding(weights, mel), features)[-1]
    x = _run(weights, "output_block", _OUTPUT, x)
    return jax.nn.sigmoid(_convolved(weights, "output_block.1", _COLOUR, x))


@jax.jit
def audio_embedding(weights: Weights, mel: jax.Array) -> jax.Array:
    """What the generator hears in mel windows [B, 16, 80]: [B, 512], non-negative."""
    return _hear(weights, _AUDIO, mel)


def face_features(weights: Weights, faces: jax.Array) -> list[jax.Array]:
    """The generator's seven maps of faces [B, 96, 96, 6]: [B, 96, 96, 16] to [B, 1, 1, 512]."""
    maps = [faces]
    for i, block in enumerate(_FACE):
        maps.append(_run(weights, f"face_encoder_blocks.{i}", block, maps[-1]))
    return maps[1:]


def decoder_maps(
    weights: Weights, heard: jax.Array, features: Sequence[jax.Array]
) -> list[jax.Array]:
    """The generator's way back from a point to a face.

    Args:
        heard: [B, 512], `audio_embedding`.
        features: `face_features`.

    Returns:
        seven maps, from [B, 1, 1, 1024] to [B, 96, 96, 80]: what a block makes of the map before,
        then the face's map of that size.
    """
    maps = [heard[:, None, None, :]]
    for i, (block, feature) in enumerate(zip(_DECODER, reversed(features), strict=True)):
        x = _run(weights, f"face_decoder_blocks.{i}", block, maps[-1])
        maps.append(jnp.concatenate([x, feature], -1))
    return maps[1:]


@jax.jit
def expert_face_embedding(weights: Weights, faces: jax.Array) -> jax.Array:
    """Embeds the lower halves of five faces [B, 5, 48, 96, 3] in [0, 1], BGR: unit [B, 512].

    The faces are consecutive at 25 fps, cut as `generate` draws them; `weights` are the expert's.
    """
    b, t, h, w, c = faces.shape
    x = faces.transpose(0, 2, 3, 1, 4).reshape(b, h, w, t * c)
    return unit(_run(weights, "face_encoder", _EXPERT_FACE, x).reshape(b, -1))


@jax.jit
def expert_audio_embedding(weights: Weights, mel: jax.Array) -> jax.Array:
    """Embeds the mel windows [B, 16, 80] of five frames: [B, 512], non-negative unit vectors."""
    return unit(_hear(weights, _EXPERT_AUDIO, mel))


def _hear(weights: Weights, layers: Layers, mel: jax.Array) -> jax.Array:
    x = _run(weights, "audio_encoder", layers, mel.transpose(0, 2, 1)[..., None])
    return x.reshape(len(x), -1)


def _run(weights: Weights, part: str, layers: Layers, x: jax.Array) -> jax.Array:
    for i, layer in enumerate(layers):
        y = _convolved(weights, f"{part}.{i}", layer, x)
        x = jax.nn.relu(y + x if layer.residual else y)
    return x


def _convolved(weights: Weights, name: str, layer: _Layer, x: jax.Array) -> jax.Array:
    once = (1, 1)
    x = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(weights[f"{name}.weight"]),
        window_strides=once if layer.transposed else layer.stride,
        padding=[layer.padding] * 2,
        lhs_dilation=layer.stride if layer.transposed else once,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return x + weights[f"{name}.bias"]
