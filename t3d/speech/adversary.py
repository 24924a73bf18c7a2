"""What a code must not tell: an adversary guesses it, and the code learns to give nothing away."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class Adversary(nn.Module):
    """A small regressor behind a reversed gradient (Ganin and Lempitsky 2015).

    Trained on one loss: its own weights lower it, what made the code raises it.

    Attributes:
        outputs: numbers that are guessed.
        width: hidden units.
    """

    outputs: int
    width: int = 32

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        """Codes [B, D] -> guesses [B, outputs]."""
        x = nn.gelu(nn.Dense(self.width)(reversed_gradient(code.astype(jnp.float32))))
        return nn.Dense(self.outputs)(x)


@jax.custom_vjp
def reversed_gradient(x: jax.Array) -> jax.Array:
    """x itself; its gradient comes back with the other sign."""
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))
