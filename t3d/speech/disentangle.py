"""StyleNet, FuseNet and their loss (the paper II-B, Eq. 3)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from t3d.speech.lipnet import standardised


class StyleNet(nn.Module):
    """What of an expression is the speaker's manner: sound and identity -> f_exp-style.

    Attributes:
        width: hidden units.
        dropout: share of the hidden units dropped while training.
    """

    width: int = 64
    dropout: float = 0.2
    expression: int = 79
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, mel: jax.Array, identity: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Mel window [B, S, 80] and identity code [B, 100] (σ) -> [B, 79] (σ); starts at zero."""
        mel = standardised(mel).astype(self.dtype)
        x = mel
        for strides in (1, 2, 2):
            x = nn.Conv(self.width, (3,), (strides,), dtype=self.dtype)(x)
            x = nn.gelu(nn.LayerNorm(use_fast_variance=False, dtype=self.dtype)(x))
        # Manner is slow: loudness, pitch, rate, how lively. What is the same whatever the order of
        # the sounds tells it, and not the phones.
        x = jnp.concatenate([statistics(x), statistics(mel)], -1)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        person = nn.gelu(nn.Dense(self.width // 2, dtype=self.dtype)(identity))
        x = jnp.concatenate([nn.Dense(self.width, dtype=self.dtype)(x), person], -1)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(nn.gelu(x)))
        out = nn.Dense(self.expression, kernel_init=nn.initializers.zeros, dtype=self.dtype)(x)
        return out.astype(jnp.float32)


def statistics(x: jax.Array) -> jax.Array:
    """Mean and deviation over time of features [B, S, C]: [B, 2 C] (x-vectors, Snyder 2018)."""
    mean = x.mean(1)
    variance = jnp.mean(jnp.square(x - mean[:, None]), 1)
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-4)], -1)


class FuseNet(nn.Module):
    """f_exp-aud and f_exp-style -> the whole expression f_gen-exp.

    Starts as their sum; a small network learns what to add.
    """

    width: int = 64
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, expression_speech: jax.Array, expression_style: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Two codes [B, 79] (σ) -> [B, 79] (σ)."""
        x = jnp.concatenate([expression_speech, expression_style], -1).astype(self.dtype)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(x))
        change = nn.Dense(
            expression_speech.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype
        )(x)
        return expression_speech + expression_style + change.astype(jnp.float32)


def lip_distance(change: jax.Array, lip_basis: jax.Array) -> jax.Array:
    """Mean distance [...] (cm) by which differences of expressions [..., 79] (σ) move the lips'
    vertices.

    Not squared: mouths are closed more often than open, and their mean is no mouth of theirs.

    Args:
        lip_basis: [79, 79 · 3] what each expression vector does to them (cm).
    """
    moved = (change @ lip_basis).reshape(*change.shape[:-1], -1, 3)
    return jnp.mean(jnp.sqrt(jnp.sum(moved**2, -1) + 1e-8), -1)


def expression_loss(generated: jax.Array, target: jax.Array) -> jax.Array:
    """L_exp, Eq. 3: |f_gen-exp − f_gt-exp|², codes [B, 79], summed over a code, mean over B."""
    return jnp.mean(jnp.sum(jnp.square(generated - target), -1))
