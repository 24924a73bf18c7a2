"""Volume rendering: the integral of Eq. 5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Integral:
    """What a ray collects.

    Attributes:
        feature: [..., C] Σ weights · features.
        alpha: [...] opacity, Σ weights, in [0, 1].
        depth: [...] Σ weights · depth / alpha: mean depth of what was hit (cm).
        weights: [..., S] share of each sample.
    """

    feature: jax.Array
    alpha: jax.Array
    depth: jax.Array
    weights: jax.Array


def weights(density: jax.Array, lengths: jax.Array) -> jax.Array:
    """Share [..., S] of each interval: T(t) (1 − exp(−σ δ)), exact for piecewise constant σ.

    Args:
        density: [..., S] at least 0, per cm; lengths: [..., S] at least 0, cm.
    """
    optical = density * lengths
    before = jnp.cumsum(optical, axis=-1) - optical
    return jnp.exp(-before) * -jnp.expm1(-optical)


def integrate(
    density: jax.Array, features: jax.Array, edges: jax.Array, stretch: jax.Array
) -> Integral:
    """Integrates features along rays (Eq. 5 without H_u).

    Args:
        density: [..., S] per cm; features: [..., S, C]; edges: [..., S + 1] depths in cm;
        stretch: [...] ray length per unit of depth.
    """
    share = weights(density, jnp.diff(edges, axis=-1) * stretch[..., None])
    alpha = jnp.sum(share, -1)
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    depth = jnp.sum(share * middle, -1) / jnp.maximum(alpha, 1e-6)
    feature = jnp.einsum("...s,...sc->...c", share, features)
    return Integral(feature=feature, alpha=alpha, depth=depth, weights=share)
