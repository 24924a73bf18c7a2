"""F_θ, the conditional implicit function of Eq. 4: a point and the codes to (z, σ)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.codes import HeadCodes
from t3d.nerf.dense import Dense, matmul, relu


def fourier_features(points: jax.Array, octaves: int, pi: bool = False) -> jax.Array:
    """[..., 3] -> [..., 3 + 6 · octaves]: the point, then sin and cos of 2^k times it (NeRF).

    Args:
        pi: 2^k π in place of 2^k.
    """
    scaled = points[..., None, :] * 2.0 ** jnp.arange(octaves)[:, None] * (jnp.pi if pi else 1.0)
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


class Product(nn.Module):
    """Two dense layers with nothing between them, applied as the one that they amount to.

    Attributes:
        inner, outer: widths of the first and of the second.
    """

    inner: int
    outer: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., outer]."""
        draw, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        first = self.param("kernel_0", draw, (x.shape[-1], self.inner))
        second = self.param("kernel_1", draw, (self.inner, self.outer))
        shift = self.param("bias_0", zeros, (self.inner,)) @ second
        shift = shift + self.param("bias_1", zeros, (self.outer,))
        return matmul(x, (first @ second).astype(self.dtype)) + shift.astype(self.dtype)


class Last(nn.Module):
    """The last dense layer, of a point or of a weighted sum of points.

    Attributes:
        width: of its results.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | float = 1.0) -> jax.Array:
        """Σ w x [..., C] and Σ w [...] -> Σ w (x W + b) [..., width]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        product = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return product.astype(jnp.float32) + jnp.asarray(weight)[..., None] * bias


class Field(nn.Module):
    """F_θ: points and codes to a feature z and a density σ (Eq. 4), sized like HeadNeRF's.

    Codes enter a layer once per image, not once per point; layers without a nonlinearity between
    them are multiplied into one; the last layer, which is linear as is Eq. 5's integral, is applied
    once per ray, to the integral of what enters it.

    Attributes:
        width, depth: of the MLP; the input is concatenated again after layer `skip`.
        features: channels of z; colour: width of the layer before it (0: half the width, at least
            `features`).
        encoding: 'fourier' (the paper's) or 'planes'.
        octaves: of the Fourier features, whose frequencies are 2^k, or 2^k π (pi).
        resolutions, channels: of the planes.
        unit: cm that are 1 to the network; code_scale: what shape codes (σ) are multiplied by.
        density: what makes σ positive, 'softplus' or 'relu'.
        looks: where codes of appearance enter: at the 'feature' layer, which a ReLU follows, or,
            as in HeadNeRF, one later, at 'colour', with no ReLU before it.
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
    colour: int = 0
    pi: bool = False
    unit: float = 18.0  # the head with its hair lies within ± this
    code_scale: float = 0.25  # coefficients in σ go up to about ± 4
    density: str = "softplus"
    looks: str = "feature"

    def _encode(self, points: jax.Array) -> jax.Array:
        unit = points / self.unit
        if self.encoding == "fourier":
            return fourier_features(unit, self.octaves, self.pi)
        planes = TriPlanes(self.resolutions, self.channels, name="planes")(unit)
        return jnp.concatenate([planes, unit], -1)

    def setup(self):
        self.out = Last(self.features, self.dtype)

    def __call__(
        self, points: jax.Array, codes: HeadCodes, latent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Features z [B, …, features] and density σ [B, …] of points, as `shade` takes them."""
        colour, density = self.shade(points, codes, latent)
        return self.out(colour), density

    @nn.compact
    def shade(
        self, points: jax.Array, codes: HeadCodes, latent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Evaluates the field up to its last layer, `out`.

        Args:
            points: [B, …, 3] cm in the head's frame; codes: [B, …]; latent: [B, L] what is not
                speech (L may be 0).

        Returns:
            what enters the last layer [B, …, C] and density σ [B, …] (per cm, at least 0).
        """
        encoded = self._encode(points).astype(self.dtype)
        shape = jnp.concatenate([self.code_scale * codes.shape_codes(), latent], -1)
        looks = jnp.concatenate([codes.appearance_codes(), latent], -1)

        def dense(name: str, width: int, bias: bool = True) -> nn.Module:
            return Dense(width, use_bias=bias, dtype=self.dtype, name=name)

        def once(name: str, code: jax.Array, width: int) -> jax.Array:
            layer = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)
            return jnp.expand_dims(layer(code), range(1, points.ndim - 1))

        hidden = relu(dense("layer_0", self.width)(encoded) + once("codes_0", shape, self.width))
        for i in range(1, self.depth):
            if i == self.skip + 1:
                again = dense(f"input_{i}", self.width, bias=False)(encoded)
                again = again + once(f"codes_{i}", shape, self.width)
            else:
                again = 0.0
            hidden = relu(dense(f"layer_{i}", self.width)(hidden) + again)
        positive = relu if self.density == "relu" else nn.softplus
        density = positive(dense("density", 1)(hidden)[..., 0].astype(jnp.float32))
        width = self.colour or max(self.width // 2, self.features)
        if self.looks == "feature":
            colour = dense("feature", self.width)(hidden) + once("looks", looks, self.width)
            colour = dense("colour", width)(relu(colour))
        else:
            colour = Product(self.width, width, self.dtype, name="feature_colour")(hidden)
            colour = colour + once("looks", looks, width)
        return relu(colour).astype(jnp.float32), density
