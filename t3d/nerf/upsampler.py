"""H_u of Eq. 5: the feature map to the image, after HeadNeRF's neural renderer."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.nerf.dense import Dense


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """[B, H, W, 4C] -> [B, 2H, 2W, C]; channel 4c + 2i + j goes to row i, column j."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def _along(x: jax.Array, axis: int, first: list[list[float]]) -> jax.Array:
    """[1, 2, 1] / 4 along an axis, whose first results, and by mirroring its last, are given.

    Args:
        first: result i is Σ_j first[i][j] · x[j].
    """
    n, near = x.shape[axis], len(first)

    def cut(begin: int, end: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, begin, end, axis=axis)

    def at(i: int) -> jax.Array:
        return cut(i, i + 1)

    middle = cut(near - 1, n - near - 1) + 2 * cut(near, n - near) + cut(near + 1, n - near + 1)
    before = [sum(w * at(j) for j, w in enumerate(row)) for row in first]
    after = [sum(w * at(n - 1 - j) for j, w in enumerate(row)) for row in first[::-1]]
    return jnp.concatenate([*before, 0.25 * middle, *after], axis)


_MIRRORED = [[0.5, 0.5]]
_TRANSPOSED = [[0.5, 0.25], [0.5, 0.5, 0.25]]  # what flows back to the first two


@jax.custom_vjp
def blur(x: jax.Array) -> jax.Array:
    """[1, 2, 1] / 4 in both directions, borders mirrored (reflect-101); [B, H, W, C], H, W ≥ 4.

    Its gradient is written out: that of padding and slicing takes several times as long on CPUs.
    """
    return _along(_along(x, 1, _MIRRORED), 2, _MIRRORED)


def _blur_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return blur(x), None


def _blur_backward(_: None, g: jax.Array) -> tuple[jax.Array]:
    return (_along(_along(g, 2, _TRANSPOSED), 1, _TRANSPOSED),)


blur.defvjp(_blur_forward, _blur_backward)


def double(x: jax.Array) -> jax.Array:
    """Bilinear ×2 (corners not aligned), then blur; [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return blur(jax.image.resize(x, (b, 2 * h, 2 * w, c), "bilinear"))


class Upsampler(nn.Module):
    """H_u: log2(size / rays) blocks of 1×1 convolutions (dots) and pixel shuffles.

    Attributes:
        size: side of the image.
        spread: how a block's input is added to what it shuffles: 'tile', the channels one after
            the other four times (HeadNeRF, which mixes them), or 'nearest', each to its own place.
    """

    size: int
    dtype: jnp.dtype = jnp.float32
    spread: str = "tile"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Feature map [B, F, F, C] to an image [B, size, size, 3] in [0, 1]."""
        blocks = int(math.log2(self.size // features.shape[1]))
        x = features.astype(self.dtype)
        rgb = Dense(3, dtype=self.dtype, name="rgb_in")(x)
        for i in range(blocks):
            x = self._block(x, i)
            rgb = double(rgb) + Dense(3, dtype=self.dtype, name=f"rgb_{i}")(x)
        return nn.sigmoid(rgb.astype(jnp.float32))

    def _block(self, x: jax.Array, i: int) -> jax.Array:
        channels = x.shape[-1]

        def dense(width: int, name: str) -> nn.Module:
            return Dense(width, dtype=self.dtype, name=f"{name}_{i}")

        wide = nn.leaky_relu(dense(2 * channels, "widen")(x), 0.2)
        wide = nn.leaky_relu(dense(4 * channels, "shuffle")(wide), 0.2)
        kept = jnp.tile(x, 4) if self.spread == "tile" else jnp.repeat(x, 4, -1)
        x = dense(max(channels // 2, 32), "narrow")(pixel_shuffle(wide + kept))
        return nn.leaky_relu(blur(x), 0.2)  # both are linear: fewer channels are blurred
