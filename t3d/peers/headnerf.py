"""HeadNeRF: its field and neural renderer as ours, and its checkpoints as a start for training.

Hong et al., "HeadNeRF: A Real-time NeRF-based Parametric Head Model", 2022. Its world is the head's
frame (x right, y up, z out of the face) in decimetres; weights are flat dictionaries made of the
peer's named tensors (`t3d convert headnerf`), and lead to the parameters of `nerf.head.Head`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from t3d.codes import WIDTHS
from t3d.peers.torch_file import take

Weights = dict[str, np.ndarray]
SHAPE, LOOKS = 100 + 79, 100 + 27  # identity and expression; albedo and illumination
_BINOMIAL = np.array([1, 2, 1], np.float32)


def from_state(state: Weights) -> Weights:
    """Makes the weights of the peer's named tensors; sizes are read off them.

    Kernels become [in, out]. The background, [1, C, F, F] there, becomes [F, F, C].

    Raises:
        ValueError: a tensor is missing, of a wrong shape, or one too many.
    """
    left = {k: v for k, v in state.items()}
    weights: Weights = {}

    def dense(name: str, peer: str, outputs: int, inputs: int) -> None:
        kernel = take(left, f"{peer}.weight", (outputs, inputs, 1, 1))[..., 0, 0]
        weights[f"{name}.kernel"] = np.ascontiguousarray(kernel.T)
        weights[f"{name}.bias"] = take(left, f"{peer}.bias", (outputs,))

    def size(peer: str, axis: int) -> int:
        kernel = left.get(f"{peer}.weight")
        if kernel is None or kernel.ndim != 4:
            raise ValueError(f"no {peer}.weight of a 1 × 1 convolution")
        return kernel.shape[axis]

    field = "fg_CD_predictor"
    width, inputs = (size(f"{field}.FeaExt_module_0", axis) for axis in (0, 1))
    encoded = inputs - SHAPE
    if encoded < 9 or (encoded - 3) % 6:
        raise ValueError(f"{field}.FeaExt_module_0.weight has {inputs} inputs")
    depth, again = 0, 0
    while f"{field}.FeaExt_module_{depth}.weight" in left:
        peer = f"{field}.FeaExt_module_{depth}"
        inputs = size(peer, 1)
        again += inputs == width + encoded + SHAPE
        if depth and inputs not in (width, width + encoded + SHAPE) or again > 1:
            raise ValueError(f"{peer}.weight has {inputs} inputs")
        dense(f"layer_{depth}", peer, width, inputs)
        depth += 1
    colour, features = size(f"{field}.RGB_layer_1", 0), size(f"{field}.RGB_layer_2", 0)
    dense("density", f"{field}.density_module", 1, width)
    dense("feature", f"{field}.RGB_layer_0", width, width)
    dense("colour", f"{field}.RGB_layer_1", colour, width + LOOKS)
    dense("out", f"{field}.RGB_layer_2", features, colour)

    render = "neural_render"
    background = left.get(f"{render}.bg_featmap")
    if background is None or background.ndim != 4:
        raise ValueError(f"no {render}.bg_featmap")
    rays = background.shape[-1]
    background = take(left, f"{render}.bg_featmap", (1, features, rays, rays))
    weights["background"] = np.ascontiguousarray(np.moveaxis(background[0], 0, -1))
    dense("rgb_in", f"{render}.feat_2_rgb_list.0", 3, features)
    channels, block = features, 0
    while f"{render}.feat_layers.{block}.weight" in left:
        up, narrow = f"{render}.feat_upsample_list.{block}", max(channels // 2, 32)
        dense(f"widen_{block}", f"{up}.layer_1", 2 * channels, channels)
        dense(f"shuffle_{block}", f"{up}.layer_2", 4 * channels, 2 * channels)
        _check_blur(left, f"{up}.blur_layer.f")
        dense(f"narrow_{block}", f"{render}.feat_layers.{block}", narrow, channels)
        dense(f"rgb_{block}", f"{render}.feat_2_rgb_list.{block + 1}", 3, narrow)
        channels, block = narrow, block + 1
    _check_blur(left, f"{render}.rgb_upsample.1.f")
    if left:
        raise ValueError(f"{sorted(left)[0]} is no part of the network that is known here")
    return weights


def _check_blur(left: Weights, name: str) -> None:
    if not np.array_equal(take(left, name, (3,)), _BINOMIAL):
        raise ValueError(f"{name} is not [1, 2, 1]")


def settings_of(weights: Weights) -> dict[str, Any]:
    """The config values that a run must have for the weights to fit it (name: value)."""
    layers = sum(name.startswith("layer_") and name.endswith("kernel") for name in weights)
    width = len(weights["layer_0.bias"])
    again = [i for i in range(1, layers) if len(weights[f"layer_{i}.kernel"]) > width]
    blocks = sum(name.startswith("widen_") and name.endswith("kernel") for name in weights)
    rays = weights["background"].shape[0]
    nerf = {
        "rays": rays,
        "width": width,
        "depth": layers,
        "skip": again[0] - 1 if again else layers,
        "features": weights["background"].shape[-1],
        "colour": len(weights["colour.bias"]),
        "encoding": "fourier",
        "octaves": (len(weights["layer_0.kernel"]) - SHAPE - 3) // 6,
        "density": "relu",
        "looks": "colour",
        "backdrop": "map",
        "pi": False,
        "spread": "tile",
    }
    return {"size": rays * 2**blocks} | {f"nerf.{name}": value for name, value in nerf.items()}


def put(params: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The parameters with those that are given in their place."""
    return {
        name: value
        if name not in given
        else put(value, given[name])
        if isinstance(value, dict)
        else given[name]
        for name, value in params.items()
    }


def head_params(
    weights: Weights, latent: int = 0, code_scale: float = 1.0, unit: float = 1.0
) -> dict[str, Any]:
    """The parameters of a `nerf.head.Head` that is configured like HeadNeRF (configs/headnerf.py).

    Both of our expression codes move what HeadNeRF's one moves, so that it is their sum that
    counts; a code of what is not speech moves nothing until it is trained.

    Args:
        latent: width of that per-frame code; its table is not part of the result.
        code_scale: what the field multiplies shape codes by.
        unit: how much of the length that rays are measured in is 1 to it: 10, in centimetres.
    """
    field: dict[str, Any] = {}

    def split(kernel: np.ndarray, at: int) -> tuple[np.ndarray, np.ndarray]:
        return kernel[:-at], kernel[-at:]

    def shape_codes(kernel: np.ndarray) -> dict[str, np.ndarray]:
        identity, expression = np.split(kernel / np.float32(code_scale), [WIDTHS["identity"]])
        return {"kernel": np.concatenate([identity, expression, expression, idle(kernel)])}

    def idle(kernel: np.ndarray) -> np.ndarray:
        return np.zeros((latent, kernel.shape[1]), np.float32)

    points, codes = split(weights["layer_0.kernel"], SHAPE)
    field["layer_0"] = {"kernel": points, "bias": weights["layer_0.bias"]}
    field["codes_0"] = shape_codes(codes)
    index, width = 1, len(weights["layer_0.bias"])
    while f"layer_{index}.kernel" in weights:
        kernel = weights[f"layer_{index}.kernel"]
        if len(kernel) > width:  # the input again, before what the last layer said
            again, kernel = kernel[: len(kernel) - width], kernel[len(kernel) - width :]
            points, codes = split(again, SHAPE)
            field[f"input_{index}"] = {"kernel": points}
            field[f"codes_{index}"] = shape_codes(codes)
        field[f"layer_{index}"] = {"kernel": kernel, "bias": weights[f"layer_{index}.bias"]}
        index += 1
    feature, looks = split(weights["colour.kernel"], LOOKS)
    field["feature_colour"] = {
        "kernel_0": weights["feature.kernel"],
        "bias_0": weights["feature.bias"],
        "kernel_1": feature,
        "bias_1": weights["colour.bias"],
    }
    field["looks"] = {"kernel": np.concatenate([looks, idle(looks)])}
    field["out"] = {part: weights[f"out.{part}"] for part in ("kernel", "bias")}
    field["density"] = {  # per unit; a ReLU follows
        part: weights[f"density.{part}"] / np.float32(unit) for part in ("kernel", "bias")
    }
    upsampler: dict[str, Any] = {}
    for name, value in weights.items():
        layer, _, part = name.partition(".")
        if layer.startswith(("rgb_", "widen_", "shuffle_", "narrow_")):
            upsampler.setdefault(layer, {})[part] = value
    params = {"field": field, "upsampler": upsampler, "background": weights["background"]}
    return {"params": params}
