"""LipNet: an identity image and sound -> Lip-wav, the face that says it (the paper II-B).

Lip-wav images are focused on the lips: they keep the identity image I_id's head pose and upper
half. Recorded faces become comparable with them by `align`, which moves a face into I_id's pose.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.speech.features import MEL_DEVIATION, MEL_MEAN

FACE = 96
# The first row that is drawn (a multiple of 4) and where the drawn half has taken over from I_id.
TOP, SEAM = 44, 54
FOCUS = 10.0  # mel steps
# Outer and inner eye corners, nose bridge and nostrils of the 68 landmarks: what speech hardly
# moves.
RIGID68 = np.array([36, 39, 42, 45, 27, 28, 29, 30, 31, 35])


def seam_mask() -> jax.Array:
    """[96, 1, 1]: 0 where I_id stays, 1 where the drawn half is, a smooth step between."""
    ramp = jnp.clip((jnp.arange(FACE) + 0.5 - TOP) / (SEAM - TOP), 0.0, 1.0)
    return (ramp * ramp * (3 - 2 * ramp))[:, None, None]


def oracle_lip_image(identity_face: jax.Array, face: jax.Array) -> jax.Array:
    """I_id with the lower half of the real face, both [B, 96, 96, 3], blended at a soft seam."""
    mask = seam_mask()
    return identity_face * (1 - mask) + face * mask


def similarity(source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least-squares similarity between point sets [B, N, 2] (Umeyama, in the plane).

    Returns:
        matrix [B, 2, 2] and offset [B, 2] with target ≈ source @ matrixᵀ + offset.
    """
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    a, b = source - source_mean[:, None], target - target_mean[:, None]
    spread = jnp.sum(a * a, (-1, -2))
    c = jnp.sum(a * b, (-1, -2)) / spread
    s = jnp.sum(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], -1) / spread
    matrix = jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)
    return matrix, target_mean - jnp.einsum("bij,bj->bi", matrix, source_mean)


def align(face: jax.Array, points68: jax.Array, identity_points68: jax.Array) -> jax.Array:
    """Moves faces into the pose of I_id by the similarity of their rigid landmarks.

    Args:
        face: [B, H, W, 3].
        points68: [B, 68, 2] landmarks of `face`, fractions of the crop.
        identity_points68: [B, 68, 2] landmarks of I_id, fractions of its crop.

    Returns:
        [B, H, W, 3], bilinear; outside the crop its edge is repeated.
    """
    h, w = face.shape[1:3]
    matrix, offset = similarity(identity_points68[:, RIGID68], points68[:, RIGID68])
    v, u = jnp.meshgrid((jnp.arange(h) + 0.5) / h, (jnp.arange(w) + 0.5) / w, indexing="ij")
    grid = jnp.stack([u, v], -1).reshape(1, h * w, 2)
    at = grid @ matrix.swapaxes(-1, -2) + offset[:, None]

    def sample(image: jax.Array, uv: jax.Array) -> jax.Array:
        rows_columns = [uv[:, 1] * h - 0.5, uv[:, 0] * w - 0.5]
        channel = lambda plane: jax.scipy.ndimage.map_coordinates(  # noqa: E731
            plane, rows_columns, order=1, mode="nearest"
        )
        return jax.vmap(channel, -1, -1)(image).reshape(h, w, -1)

    return jax.vmap(sample)(face, at)


def pixel_shuffle(x: jax.Array, block: int) -> jax.Array:
    """[B, H, W, block² · C] -> [B, block · H, block · W, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c // block**2)


class SpeechEncoder(nn.Module):
    """Mel window [B, S, 80] -> a narrow code [B, bottleneck]."""

    width: int
    bottleneck: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, mel: jax.Array, deterministic: bool) -> jax.Array:
        x = (standardised(mel) * focus(mel.shape[1])[:, None]).astype(self.dtype)
        for strides in (1, 2):
            x = nn.Conv(4 * self.width, (3,), (strides,), dtype=self.dtype)(x)
            x = nn.gelu(nn.LayerNorm(use_fast_variance=False, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        return nn.Dense(self.bottleneck, dtype=self.dtype)(x.reshape(x.shape[0], -1))


class FaceDecoder(nn.Module):
    """The code of a sound and I_id -> Lip-wav: I_id's features, changed where the sound says."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, sound: jax.Array, identity_face: jax.Array) -> jax.Array:
        w, dtype = self.width, self.dtype
        masked = identity_face * (1 - seam_mask())
        both = jnp.concatenate([masked, identity_face], -1).astype(dtype) * 2 - 1
        fine = nn.gelu(nn.Conv(w, (4, 4), (2, 2), dtype=dtype)(both))
        coarse = nn.gelu(nn.Conv(2 * w, (4, 4), (2, 2), dtype=dtype)(fine))
        coarse, fine = coarse[:, TOP // 4 :], fine[:, TOP // 2 :]

        h, k = coarse.shape[1:3]
        modes = nn.Dense(h * k * 8, dtype=dtype)(sound).reshape(-1, h, k, 8)
        # One speaker's I_id is looked at once, whatever the number of frames.
        coarse, fine = (jnp.broadcast_to(y, (len(modes), *y.shape[1:])) for y in (coarse, fine))
        x = jnp.concatenate([coarse, modes], -1)
        x = nn.gelu(nn.Conv(2 * w, (3, 3), dtype=dtype)(x))
        x = x * (1 + nn.Dense(2 * w, dtype=dtype)(sound)[:, None, None])
        x = nn.gelu(nn.Conv(4 * w, (3, 3), dtype=dtype)(x))
        x = jnp.concatenate([pixel_shuffle(x, 2), fine], -1)
        x = nn.gelu(nn.Conv(w, (3, 3), dtype=dtype)(x))
        x = nn.Conv(12, (3, 3), kernel_init=nn.initializers.normal(1e-3), dtype=dtype)(x)
        change = pixel_shuffle(x, 2).astype(jnp.float32)

        start = jnp.clip(identity_face[:, TOP:], 0.02, 0.98)
        drawn = nn.sigmoid(jnp.log(start) - jnp.log1p(-start) + change)
        mask = seam_mask()[TOP:]
        lower = identity_face[:, TOP:] * (1 - mask) + drawn * mask
        upper = identity_face[:, :TOP]
        upper = jnp.broadcast_to(upper, (len(lower), *upper.shape[1:]))
        return jnp.concatenate([upper, lower], 1)


class LipNet(nn.Module):
    """Audio encoder, identity encoder and a decoder of the lower half with skip connections.

    The decoder starts from I_id itself and learns what the sound changes. The code of the sound
    is narrow and dropout is strong: a minute of one voice is little. With several ears (cross-
    fitting: Stone 1974, Breiman 1996) each learns from all parts of the speakers' clips but one;
    what is drawn and moved of that part in training is of the ear that has not heard it, so that it
    is as bold as a new sound allows, and a new sound is heard by all of them.

    Attributes:
        width: channels of the identity encoder's first map, a multiple of 8.
        bottleneck: numbers that the sound may say about the mouth.
        dropout: share of the sound's features dropped while training.
        ears: audio encoders E.
        expression: width of an expression code.
    """

    width: int = 32
    bottleneck: int = 16
    dropout: float = 0.4
    ears: int = 1
    expression: int = 79
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        # One by one: convolutions with several sets of weights are slow on CPUs.
        self.ear = [
            SpeechEncoder(self.width, self.bottleneck, self.dropout, self.dtype)
            for _ in range(self.ears)
        ]
        self.decoder = FaceDecoder(self.width, self.dtype)
        small = nn.initializers.normal(1e-2)
        self.heard, self.movement = (
            nn.Dense(self.expression, kernel_init=small, dtype=self.dtype) for _ in range(2)
        )

    def hear_each(self, mel: jax.Array, deterministic: bool = True) -> jax.Array:
        """What each ear makes of mel windows [B, S, 80] about frames: [E, B, bottleneck]."""
        return jnp.stack([ear(mel, deterministic) for ear in self.ear])

    def hear(
        self, mel: jax.Array, deterministic: bool = True, deaf: jax.Array | None = None
    ) -> jax.Array:
        """Mel windows [B, S, 80] around each frame's middle -> sound codes [B, bottleneck].

        Args:
            deaf: [B] the number of the ear that has not learned from a frame, which is the one that
                hears it; below zero, or None: all do, and the code is their mean.
        """
        codes = self.hear_each(mel, deterministic)
        if deaf is None:
            return codes.mean(0)
        return jnp.einsum("be,ebd->bd", listeners(deaf, self.ears), codes)

    def draw(self, sound: jax.Array, identity_face: jax.Array) -> jax.Array:
        """Sound codes [B, bottleneck] and I_id [B or 1, 96, 96, 3] in [0, 1] -> Lip-wav images
        [B, 96, 96, 3]; their upper half is I_id's."""
        return self.decoder(sound, identity_face)

    def move(self, sound: jax.Array) -> jax.Array:
        """Sound codes -> [B, 79] (σ): by what the expression differs from the speaker's mean.

        Linear: what the images are drawn from must say how the lips move.
        """
        return self.movement(sound).astype(jnp.float32)

    def teach(self, sounds: jax.Array) -> jax.Array:
        """What each ear's sound codes [E, B, bottleneck] say of the movement: [E, B, 79], as `move`
        but learned where they have heard what was said."""
        return self.heard(sounds).astype(jnp.float32)

    def __call__(
        self, mel: jax.Array, identity_face: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """The images and the movement of a sound: `draw` and `move` of what is heard."""
        sound = self.hear(mel, deterministic)
        if self.is_initializing():
            self.teach(sound[None])
        return self.draw(sound, identity_face), self.move(sound)


def listeners(deaf: jax.Array, ears: int) -> jax.Array:
    """[B, E] weights of the ears that hear frames: all of that which is `deaf` [B] to it, or equal
    ones where that is below zero."""
    one = jax.nn.one_hot(deaf, ears)
    return jnp.where((deaf < 0)[:, None], 1 / ears, one)


def standardised(mel: jax.Array) -> jax.Array:
    """Mel windows in deviations of speech from its mean, both over all bands."""
    return (mel - MEL_MEAN) / MEL_DEVIATION


def without_voice(mel: jax.Array, voice: jax.Array) -> jax.Array:
    """Mel windows [B, S, D] of voices [B, 2, D] (`features.voice_of`) as one in general has them.

    The scale stays that of the mel.
    """
    return (mel - voice[:, :1]) / voice[:, 1:] * MEL_DEVIATION + MEL_MEAN


def focus(steps: int) -> jax.Array:
    """[steps] weights of a mel window: a Gaussian about its middle, the moment that is drawn."""
    away = jnp.arange(steps) - (steps - 1) / 2
    return jnp.exp(-0.5 * (away / FOCUS) ** 2)


def mouth_weight(points68: jax.Array, gain: float) -> jax.Array:
    """Weights [B, 96, 96, 1] of a pixel loss: 1 + gain in the middle of the mouth, 1 far off.

    Args:
        points68: [B, 68, 2] landmarks in fractions of the crop; the bump is a Gaussian with half
            the mouth's width as its deviation across and 0.7 of that down.
        gain: what the mouth weighs more.
    """
    centre = points68[:, 48:68].mean(1)
    half = 0.5 * jnp.linalg.norm(points68[:, 54] - points68[:, 48], axis=-1)
    at = (jnp.arange(FACE) + 0.5) / FACE
    across = (at - centre[:, :1]) / half[:, None]
    down = (at - centre[:, 1:]) / (0.7 * half[:, None])
    bump = jnp.exp(-0.5 * (across[:, None, :] ** 2 + down[:, :, None] ** 2))
    return 1 + gain * bump[..., None]


def lip_loss(lip_wav: jax.Array, face: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean |lip_wav − face| over the drawn half.

    Args:
        lip_wav, face: [B, 96, 96, 3]; `face` in I_id's pose (`align`).
        weight: [B or 1, 96, 96, 1], `mouth_weight`.
    """
    error = jnp.abs(lip_wav - face)[:, TOP:]
    weight = jnp.broadcast_to((weight * seam_mask())[:, TOP:], error.shape)
    return jnp.sum(error * weight) / jnp.sum(weight)


def silence(key: jax.Array, like: jax.Array) -> jax.Array:
    """Mel windows [B, S, 80] shaped `like` others in which nobody speaks: a room's faint noise."""
    level = jax.random.uniform(key, (len(like), 1, 1), minval=-4.0, maxval=-3.2)
    noise = 0.2 * jax.random.normal(jax.random.fold_in(key, 1), like.shape)
    return jnp.clip(level + noise, -4.0, 4.0)


def augment_mel(key: jax.Array, mel: jax.Array) -> jax.Array:
    """Mel windows [B, S, 80] as another room and microphone would give them (SpecAugment).

    Per window: a gain of up to ±6 dB, a spectral tilt, noise, one masked band and a few masked
    steps. The scale is Wav2Lip's: 12.5 dB a unit, within [-4, 4].
    """
    keys = jax.random.split(key, 5)
    b, steps, bands = mel.shape
    uniform = lambda k: jax.random.uniform(k, (b, 1, 1), minval=-1.0)  # noqa: E731
    band, step = jnp.arange(bands)[None, None], jnp.arange(steps)[None, :, None]
    tilt = uniform(keys[1]) * 0.4 * (band / bands - 0.5)
    noisy = mel + 0.48 * uniform(keys[0]) + tilt + 0.15 * jax.random.normal(keys[2], mel.shape)
    masked_band = jnp.abs(band - (uniform(keys[3]) + 1) / 2 * bands) < 3
    masked_step = jnp.abs(step - (uniform(keys[4]) + 1) / 2 * steps) < 1
    mean = jnp.mean(mel, (1, 2), keepdims=True)
    heard = jnp.where(masked_band | masked_step, mean, noisy)
    # A mel never leaves [-4, 4]; other features may, and keep what they have beyond.
    return jnp.clip(heard, jnp.minimum(mel, -4.0), jnp.maximum(mel, 4.0))
