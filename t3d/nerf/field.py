"""F_θ, the conditional implicit function of Eq. 4: a point and the codes to (z, σ)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.codes import HeadCodes

EXTENT = 18.0  # cm: the head with its hair lies within ± this
CODE_SCALE = 0.25  # brings coefficients in σ (up to about ± 4) to unit size


def fourier_features(points: jax.Array, octaves: int) -> jax.Array:
    """[..., 3] -> [..., 3 + 6 · octaves]: the point, then sin and cos of 2^k times it (NeRF)."""
    scaled = points[..., None, :] * 2.0 ** jnp.arange(octaves)[:, None]
    waves = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], -1)
    return jnp.concatenate([points, waves.reshape(*points.shape[:-1], -1)], -1)


def sample_plane(plane: jax.Array, position: jax.Array) -> jax.Array:
    """Bilinear lookup of plane [R, R, C] at position [N, 2] in [−1, 1] (clamped): [N, C]."""
    resolution = plane.shape[0]
    scaled = (jnp.clip(position, -1.0, 1.0) * 0.5 + 0.5) * (resolution - 1)
    corner = jnp.clip(jnp.floor(scaled), 0, resolution - 2)
    fraction = scaled - corner
    index = corner.astype(jnp.int32)
    flat = plane.reshape(-1, plane.shape[-1])
    base = index[:, 1] * resolution + index[:, 0]
    fx, fy = fraction[:, :1], fraction[:, 1:]
    top = flat[base] * (1 - fx) + flat[base + 1] * fx
    bottom = flat[base + resolution] * (1 - fx) + flat[base + resolution + 1] * fx
    return top * (1 - fy) + bottom * fy


class TriPlanes(nn.Module):
    """Learned planes xy, xz, yz in the head's frame, at several resolutions (EG3D's encoding).

    Attributes:
        resolutions: cells per side of each level; channels: per plane and level.
    """

    resolutions: tuple[int, ...] = (32, 128)
    channels: int = 8

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        """Points [..., 3] in [−1, 1] -> [..., levels · channels]; the planes' values add up."""
        flat = points.reshape(-1, 3)
        levels = []
        for resolution in self.resolutions:
            planes = self.param(
                f"planes_{resolution}",
                nn.initializers.normal(0.1),
                (3, resolution, resolution, self.channels),
            )
            pairs = (flat[:, :2], flat[:, ::2], flat[:, 1:])
            levels.append(sum(sample_plane(p, q) for p, q in zip(planes, pairs)))
        return jnp.concatenate(levels, -1).reshape(*points.shape[:-1], -1)


class Field(nn.Module):
    """F_θ: points and codes to a feature z and a density σ (Eq. 4), sized like HeadNeRF's.

    Codes enter a layer once per image, not once per point.

    Attributes:
        width, depth: of the MLP; the input is concatenated again after layer `skip`.
        features: channels of z.
        encoding: 'fourier' (the paper's) or 'planes'.
        octaves: of the Fourier features; resolutions, channels: of the planes.
    """

    width: int = 128
    depth: int = 4
    skip: int = 4
    features: int = 64
    encoding: str = "planes"
    octaves: int = 10
    resolutions: tuple[int, ...] = (32, 128)
    channels: int = 8
    dtype: jnp.dtype = jnp.float32

    def _encode(self, points: jax.Array) -> jax.Array:
        unit = points / EXTENT
        if self.encoding == "fourier":
            return fourier_features(unit, self.octaves)
        planes = TriPlanes(self.resolutions, self.channels, name="planes")(unit)
        return jnp.concatenate([planes, unit], -1)

    @nn.compact
    def __call__(
        self, points: jax.Array, codes: HeadCodes, latent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Evaluates the field.

        Args:
            points: [B, N, 3] cm in the head's frame; codes: [B, …]; latent: [B, L] what is not
                speech (L may be 0).

        Returns:
            features z [B, N, features] and density σ [B, N] (per cm, at least 0).
        """
        encoded = self._encode(points).astype(self.dtype)
        shape = jnp.concatenate([CODE_SCALE * codes.shape_codes(), latent], -1)
        looks = jnp.concatenate([codes.appearance_codes(), latent], -1)

        def dense(name: str, width: int, bias: bool = True) -> nn.Dense:
            return nn.Dense(width, use_bias=bias, dtype=self.dtype, name=name)

        def once(name: str, code: jax.Array, width: int) -> jax.Array:
            return dense(name, width, bias=False)(code)[:, None]

        hidden = nn.relu(dense("layer_0", self.width)(encoded) + once("codes_0", shape, self.width))
        for i in range(1, self.depth):
            if i == self.skip + 1:
                again = dense(f"input_{i}", self.width, bias=False)(encoded)
                again = again + once(f"codes_{i}", shape, self.width)
            else:
                again = 0.0
            hidden = nn.relu(dense(f"layer_{i}", self.width)(hidden) + again)
        density = nn.softplus(dense("density", 1)(hidden)[..., 0].astype(jnp.float32))
        colour = dense("feature", self.width)(hidden) + once("looks", looks, self.width)
        colour = nn.relu(dense("colour", max(self.width // 2, self.features))(nn.relu(colour)))
        return dense("out", self.features)(colour).astype(jnp.float32), density
