"""StyleNet, FuseNet and their loss (the paper II-B, Eq. 3)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


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
        x = mel.astype(self.dtype) / 4
        for strides in (1, 2, 2):
            x = nn.Conv(self.width, (3,), (strides,), dtype=self.dtype)(x)
            x = nn.gelu(nn.LayerNorm(use_fast_variance=False, dtype=self.dtype)(x))
        # Manner is slow (loudness, rate): the mean over the window keeps it, not the phone.
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x.mean(1))
        person = nn.gelu(nn.Dense(self.width // 2, dtype=self.dtype)(identity))
        x = jnp.concatenate([x, person], -1)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(x))
        out = nn.Dense(self.expression, kernel_init=nn.initializers.zeros, dtype=self.dtype)(x)
        return out.astype(jnp.float32)


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


def expression_loss(generated: jax.Array, target: jax.Array) -> jax.Array:
    """L_exp, Eq. 3: |f_gen-exp − f_gt-exp|², codes [B, 79], summed over a code, mean over B."""
    return jnp.mean(jnp.sum(jnp.square(generated - target), -1))
