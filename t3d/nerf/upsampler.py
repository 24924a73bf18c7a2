"""H_u of Eq. 5: the feature map to the image, after HeadNeRF's neural renderer."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.nerf.dense import Dense, matmul


def _by_corner(x: jax.Array) -> jax.Array:
    """[..., 4C] -> [..., 4, C]: what a pixel shuffle sends to each corner of the new pixels.

    Channel 4c + 2i + j is channel c at row i, column j (PyTorch's order).
    """
    return x.reshape(*x.shape[:-1], -1, 4).swapaxes(-1, -2)


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


class Corners(nn.Module):
    """A dense layer before a pixel shuffle, whose results come corner by corner.

    So that the layers after it read channels that lie together, and pixels move only when they have
    become few: kernel and bias, in PyTorch's order, are reordered in place of what they make.

    Attributes:
        channels: of each corner.
    """

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., 4, channels]."""
        width = 4 * self.channels
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        kernel = _by_corner(kernel).reshape(-1, width).astype(self.dtype)
        y = matmul(x, kernel).reshape(*x.shape[:-1], 4, self.channels)
        return y + _by_corner(bias).astype(self.dtype)


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
        batch, height, width, channels = x.shape
        narrow = max(channels // 2, 32)
        wide = Dense(2 * channels, dtype=self.dtype, name=f"widen_{i}")(x)
        corners = Corners(channels, self.dtype, name=f"shuffle_{i}")
        wide = nn.leaky_relu(corners(nn.leaky_relu(wide, 0.2)), 0.2)
        if self.spread == "tile":
            kept = _by_corner(jnp.tile(x, 4))
        else:
            kept = x[..., None, :]
        x = Dense(narrow, dtype=self.dtype, name=f"narrow_{i}")(wide + kept)
        x = x.reshape(batch, height, width, 2, 2, narrow).swapaxes(2, 3)
        x = x.reshape(batch, 2 * height, 2 * width, narrow)
        return nn.leaky_relu(blur(x), 0.2)  # both are linear: fewer channels are blurred
