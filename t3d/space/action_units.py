"""The AU encoder of the local semantic space, and its losses (the paper, Eq. 7 and 8)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# An AU seen more rarely than this is weighted as if it were seen this often.
RAREST = 0.01
# An AU that is on, or off, more rarely than this counts as it, where both sides weigh alike.
RARE = 0.05
# A pixel is of the head where its darkest channel is under this, a row where this share is.
PAPER, LINE = 0.75, 0.03
# Share of the head's height, from the chin upwards, that the AUs of speech lie in.
LOWER = 0.62
# The ε of Eq. 8: the smoothing of the works that the paper takes the loss from (JAA-Net).
DICE_EPSILON = 1.0


def lower_face(images: jax.Array) -> jax.Array:
    """The lower parts of heads on white [B, s, s, 3], as large as the images.

    A square over the lower `LOWER` of what is not white, in the middle of it: where the AUs of
    speech are, whatever the size and the place of the head. What lies outside the image is white.
    """
    side = images.shape[1]

    def one(image: jax.Array) -> jax.Array:
        inked = jax.lax.stop_gradient(image.min(-1) < PAPER).astype(jnp.float32)
        rows, columns = inked.sum(1), inked.sum(0)
        top = jnp.argmax(rows > LINE * side)
        bottom = side - jnp.argmax(rows[::-1] > LINE * side)
        middle = jnp.sum(columns * (jnp.arange(side) + 0.5)) / jnp.maximum(columns.sum(), 1.0)
        cut = LOWER * (bottom - top)
        middle = jnp.where(columns.sum() > 0, middle, 0.5 * side)
        corner = jnp.stack([bottom - cut, middle - 0.5 * cut])
        zoom = side / cut
        ink = jax.image.scale_and_translate(
            1.0 - image, image.shape, (0, 1), jnp.stack([zoom, zoom]), -corner * zoom, "linear",
            antialias=False,
        )  # fmt: skip
        return 1.0 - ink

    return jax.vmap(one)(images)


class AUEncoder(nn.Module):
    """Four convolutional and four fully connected layers: a face to AU features and logits.

    The second fully connected layer gives each AU its feature; the last two judge each AU from its
    own feature alone, so that a feature carries what its AU shows.

    Attributes:
        n_au: how many AUs.
        dim: length of an AU's feature (the codebook's D).
        width: channels of the first convolution.
        hidden: width of the first and third fully connected layers.
        crop: whether it looks at the lower part of the face alone (`lower_face`).
        dtype: of the computation; parameters and logits are float32.
    """

    n_au: int = 5
    dim: int = 256
    width: int = 16
    hidden: int = 128
    crop: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, face: jax.Array) -> tuple[jax.Array, jax.Array]:
        """face [B, s, s, 3] in [0, 1] → features [B, n_au, dim], logits [B, n_au]."""
        face = lower_face(face) if self.crop else face
        x = 2.0 * face.astype(self.dtype) - 1.0
        for factor in (1, 2, 4, 4):
            x = nn.Conv(factor * self.width, (3, 3), strides=(2, 2), dtype=self.dtype)(x)
            norm = nn.GroupNorm(self._groups(), use_fast_variance=False, dtype=self.dtype)
            x = nn.silu(norm(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.silu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        x = nn.Dense(self.n_au * self.dim, dtype=self.dtype)(x)
        features = nn.LayerNorm(use_fast_variance=False, dtype=self.dtype)(
            x.reshape(-1, self.n_au, self.dim)
        )
        x = nn.silu(self._per_au("judge", features, self.hidden))
        logits = self._per_au("decide", x, 1)[..., 0]
        return features, logits.astype(jnp.float32)

    def _groups(self) -> int:
        return min(8, self.width // 2)

    def _per_au(self, name: str, x: jax.Array, out: int) -> jax.Array:
        """A fully connected layer of which every AU has its own: [B, n_au, C] → [B, n_au, out]."""
        init = nn.initializers.lecun_normal(batch_axis=(0,))
        kernel = self.param(f"{name}_kernel", init, (self.n_au, x.shape[-1], out))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.n_au, out))
        return jnp.einsum("bnc,nco->bno", x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def au_weights(prevalence: jax.Array) -> jax.Array:
    """The weights w_i of Eq. 7: inversely as often as each AU occurs, summing to n_AU.

    Args:
        prevalence: [n_AU] r_i, the share of training frames in which the AU is on, 0 to 1.

    Returns:
        [n_AU]. An AU rarer than 1 % counts as 1 %; one that never occurs takes the smallest weight
        (as if always on): there is nothing to miss in it, and 1/0 would silence all the others.
    """
    prevalence = jnp.asarray(prevalence, jnp.float32)
    seen = jnp.where(prevalence > 0, jnp.clip(prevalence, RAREST, 1.0), 1.0)
    return seen.shape[-1] / seen / jnp.sum(1.0 / seen, -1, keepdims=True)


def side_weights(prevalence: jax.Array) -> jax.Array:
    """What frames with an AU off and with it on count, [2, n_AU]: as much as all frames together.

    Args:
        prevalence: [n_AU], 0 to 1; nearer to an end than `RARE` it counts as that near.
    """
    seen = jnp.clip(jnp.asarray(prevalence, jnp.float32), RARE, 1.0 - RARE)
    return 0.5 / jnp.stack([1.0 - seen, seen])


def au_bce(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, sides: jax.Array | None = None
) -> jax.Array:
    """L_bce of Eq. 7, averaged over the batch.

    Args:
        logits: [B, n_AU]; x̂ = sigmoid(logits).
        labels: [B, n_AU] x in [0, 1].
        weights: [n_AU] (`au_weights`).
        sides: [2, n_AU] of frames with the AU off and on (`side_weights`); None is the paper.
    """
    off, on = jnp.ones((2, 1)) if sides is None else sides
    likelihood = on * labels * nn.log_sigmoid(logits)
    likelihood += off * (1.0 - labels) * nn.log_sigmoid(-logits)
    return -jnp.mean(weights * likelihood)


def au_dice(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, epsilon: float = DICE_EPSILON
) -> jax.Array:
    """L_dice of Eq. 8 as printed, per frame and AU, averaged over the batch.

    The printed sum runs from i = 0 to n_AU; there are n_AU terms, so it is read as from 1.

    Args:
        logits: [B, n_AU]; x̂ = sigmoid(logits).
        labels: [B, n_AU] x in [0, 1].
        weights: [n_AU] (`au_weights`).
        epsilon: ε > 0; the paper gives no value.
    """
    guess = jax.nn.sigmoid(logits)
    overlap = (2.0 * labels * guess + epsilon) / (labels**2 + guess**2 + epsilon)
    return jnp.mean(weights * (1.0 - overlap))


def au_loss(logits: jax.Array, labels: jax.Array, prevalence: jax.Array, even: bool) -> jax.Array:
    """L_AU = L_bce + L_dice (the paper, below Eq. 8).

    Args:
        logits, labels: [B, n_AU]; prevalence: [n_AU] of the AUs among the training frames.
        even: all AUs weigh alike, and of each AU both sides. The paper's w_i make an AU that is on
            in one frame of a hundred weigh fifty times as much as one that is on in every second.
    """
    if even:
        weights, sides = jnp.ones(labels.shape[-1]), side_weights(prevalence)
    else:
        weights, sides = au_weights(prevalence), None
    return au_bce(logits, labels, weights, sides) + au_dice(logits, labels, weights)
