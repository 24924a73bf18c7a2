"""How much one code tells of another: what disentanglement lowers."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dependence(x: jax.Array, y: jax.Array) -> jax.Array:
    """The normalised Hilbert-Schmidt independence criterion of paired samples.

    0 where one says nothing of the other (or is constant), 1 where they are the same but for
    rotation, shift and scale. Gaussian kernels as wide as the mean distance. Unlike an adversary's
    loss it is bounded and needs no network (Gretton et al. 2005; the norm is of Kornblith et al.
    2019).

    Args:
        x: [B, D]; y: [B, E].

    Returns:
        a number in [0, 1].
    """
    a, b = _kernel(x), _kernel(y)
    squares = jnp.sum(a * a) * jnp.sum(b * b)
    return jnp.sum(a * b) / jnp.sqrt(jnp.maximum(squares, 1e-12))


def _kernel(x: jax.Array) -> jax.Array:
    """[B, B] centred Gaussian kernel."""
    squared = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    width = jax.lax.stop_gradient(jnp.maximum(squared.mean(), 1e-12))
    kernel = jnp.exp(-squared / width)
    return kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean()
