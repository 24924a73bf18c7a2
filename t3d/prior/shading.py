"""Second-order spherical-harmonics light on a surface without gloss."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

_ROOT_PI = math.sqrt(math.pi)
# Factors of the nine bands as AD-NeRF's and HeadNeRF's trackers use them (band, then cosine lobe).
SH_FACTORS = np.array(
    [
        _ROOT_PI / 2,
        *([_ROOT_PI] * 3),
        math.sqrt(7.5 * math.pi) / 2,
        math.sqrt(7.5 * math.pi) / 2,
        math.sqrt(2.5 * math.pi) / 4,
        math.sqrt(7.5 * math.pi) / 2,
        math.sqrt(7.5 * math.pi) / 4,
    ],
    np.float32,
)


def sh_basis(normals: Array) -> Array:
    """The nine bands [..., 9] at unit normals [..., 3] in the world (OpenCV axes).

    Order and factors are AD-NeRF's and HeadNeRF's, whose axes have y up and z towards the camera.
    """
    xp = jnp if isinstance(normals, jax.Array) else np
    x, y, z = normals[..., 0], -normals[..., 1], -normals[..., 2]
    bands = [xp.ones_like(x), -y, z, -x, x * y, -y * z, 3 * z * z - 1, -x * z, x * x - y * y]
    return xp.stack(bands, -1) * SH_FACTORS


def shade(albedo: Array, normals: Array, illumination: Array) -> Array:
    """Colours [..., N, 3] = albedo times irradiance; not clipped.

    Args:
        albedo: [..., N, 3] in [0, 1].
        normals: [..., N, 3] unit, world axes.
        illumination: [..., 27], [9, 3] flattened; the constant band is inside the code
            (`ambient` gives even light).
    """
    light = illumination.reshape(*illumination.shape[:-1], 9, 3)
    basis = sh_basis(normals)
    if any(isinstance(a, jax.Array) for a in (albedo, normals, illumination)):
        return albedo * jnp.matmul(basis, light, precision="highest")
    return albedo * (basis @ light)


def ambient(level: float = 1.0) -> np.ndarray:
    """Illumination [27] of even light under which a surface shows `level` times its albedo."""
    code = np.zeros((9, 3), np.float32)
    code[0] = level / SH_FACTORS[0]
    return code.reshape(-1)
