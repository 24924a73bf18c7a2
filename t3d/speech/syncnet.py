"""SyncNet: do five face frames and 0.2 s of sound belong together? (the paper II-B, Eq. 2)"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

FRAMES = 5
MEL_STEPS = 16
MOTION_GAIN = 8.0


def unit(vectors: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Vectors [..., D] over max(length, eps), float32; a zero vector stays zero."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors * vectors, -1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, eps * eps))


class ConvBlock(nn.Module):
    """Convolution, group normalisation, ReLU; a residual where shape allows."""

    features: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Variances are taken about the mean, as everywhere here: E[x²] − E[x]² loses digits, and
        # the last digits of gradients are what another number of devices changes.
        y = nn.Conv(self.features, self.kernel, self.strides, dtype=self.dtype)(x)
        y = nn.GroupNorm(num_groups=None, group_size=8, use_fast_variance=False, dtype=self.dtype)(
            y
        )
        return nn.relu(y + x if y.shape == x.shape else y)


class Embedding(nn.Module):
    """Feature map [B, H, W, C] to non-negative unit vectors [B, dim]."""

    dim: int
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x.reshape(x.shape[0], -1))
        # The bias keeps every unit of the ReLU alive at the start.
        positive = nn.Dense(self.dim, dtype=self.dtype, bias_init=nn.initializers.constant(0.1))(x)
        return unit(nn.relu(positive))


class SyncNet(nn.Module):
    """A face encoder and an audio encoder into one space.

    Embeddings pass a ReLU before they are normalised, so that their cosine is in [0, 1] and its
    logarithm is legal (Wav2Lip's expert).

    Attributes:
        width: channels of the first blocks, a multiple of 8.
        dim: length of an embedding.
        dropout: share of features dropped before an embedding while training.
    """

    width: int = 32
    dim: int = 128
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        w, dtype = self.width, self.dtype
        self.face_blocks = [
            ConvBlock(w, (7, 7), (4, 4), dtype=dtype),
            ConvBlock(2 * w, dtype=dtype),
            ConvBlock(2 * w, strides=(2, 2), dtype=dtype),
            ConvBlock(2 * w, strides=(2, 2), dtype=dtype),
        ]
        self.audio_blocks = [
            ConvBlock(w, strides=(1, 2), dtype=dtype),
            ConvBlock(w, strides=(2, 2), dtype=dtype),
            ConvBlock(2 * w, strides=(2, 2), dtype=dtype),
            ConvBlock(2 * w, strides=(1, 2), dtype=dtype),
        ]
        self.face_head = Embedding(self.dim, self.dropout, dtype=dtype)
        self.audio_head = Embedding(self.dim, self.dropout, dtype=dtype)

    def face_embedding(self, faces: jax.Array, deterministic: bool = True) -> jax.Array:
        """[B, 5, 96, 96, 3] in [0, 1] -> [B, dim]; only the lower half is looked at."""
        lower = faces[:, :, faces.shape[2] // 2 :].astype(self.dtype)
        still = lower.mean(1, keepdims=True)
        # What moves is small beside the face that stays: a network that has seen one person
        # would otherwise embed the person.
        x = jnp.concatenate([still * 2 - 1, MOTION_GAIN * (lower - still)], 1)
        b, t, h, w, c = x.shape
        x = x.transpose(0, 2, 3, 1, 4).reshape(b, h, w, t * c)
        for block in self.face_blocks:
            x = block(x)
        return self.face_head(x, deterministic)

    def audio_embedding(self, mel: jax.Array, deterministic: bool = True) -> jax.Array:
        """[B, 16, 80] Wav2Lip mel -> [B, dim]."""
        x = mel[..., None].astype(self.dtype) / 4
        for block in self.audio_blocks:
            x = block(x)
        return self.audio_head(x, deterministic)

    def __call__(
        self, faces: jax.Array, mel: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds faces [B, 5, 96, 96, 3] and their sound [B, 16, 80].

        Returns:
            face_embedding, audio_embedding: [B, dim], non-negative, unit length.
        """
        return (
            self.face_embedding(faces, deterministic),
            self.audio_embedding(mel, deterministic),
        )


def cosine(a: jax.Array, b: jax.Array, eps: float = 1e-6) -> jax.Array:
    """a · b / max(|a| |b|, eps) over the last axis (inside the logarithm of Eq. 2)."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    squares = jnp.sum(a * a, -1) * jnp.sum(b * b, -1)
    return jnp.sum(a * b, -1) / jnp.sqrt(jnp.maximum(squares, eps * eps))


def safe_log(x: jax.Array, floor: float = 1e-3) -> jax.Array:
    """log(x) for x ≥ floor; below, its tangent at the floor: finite, and its gradient too."""
    return jnp.log(jnp.maximum(x, floor)) + jnp.minimum(x - floor, 0.0) / floor


def lip_sync_loss(
    face_embedding: jax.Array, audio_embedding: jax.Array, eps: float = 1e-6
) -> jax.Array:
    """L_lip, Eq. 2: the mean of −log cosine over matching pairs [B, D].

    Equal to the equation for cosines ≥ 1e-3; below, the logarithm continues as its tangent, so
    that orthogonal embeddings still have a gradient that leads back.
    """
    return -jnp.mean(safe_log(cosine(face_embedding, audio_embedding, eps)))


def sync_bce(cosines: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross-entropy of cosines in [0, 1] against labels of the same shape (Wav2Lip).

    Both classes weigh the same, however many pairs of each there are.
    """
    positive, negative = -safe_log(cosines), -safe_log(1.0 - cosines)
    matching = jnp.sum(labels * positive) / jnp.maximum(jnp.sum(labels), 1.0)
    other = jnp.sum((1 - labels) * negative) / jnp.maximum(jnp.sum(1 - labels), 1.0)
    return 0.5 * (matching + other)


def sync_contrast(
    face_embedding: jax.Array, audio_embedding: jax.Array, scale: float = 24.0
) -> jax.Array:
    """Cross-entropy of finding each face's sound among all sounds, and the reverse (InfoNCE).

    `sync_bce` alone stays at chance for hundreds of steps on a minute of one person: constant
    embeddings are its saddle. Here every other pair of the batch is a negative.

    Args:
        face_embedding: [B, D] unit vectors.
        audio_embedding: [N, D], N ≥ B; the first B match the faces in order, the rest are more
            negatives (the same clip shifted, say).
        scale: what cosines are multiplied by before the softmax.
    """
    logits = scale * cosine(face_embedding[:, None], audio_embedding[None])
    b = len(face_embedding)
    to_sound = jnp.diagonal(jax.nn.log_softmax(logits, axis=1)[:, :b])
    to_face = jnp.diagonal(jax.nn.log_softmax(logits[:, :b], axis=0))
    return -jnp.mean(to_sound) - jnp.mean(to_face)
