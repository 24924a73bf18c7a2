"""Dense layers over an image's many points or pixels, with a gradient that XLA compiles well."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0) of any shape; its gradient asks for its result alone, which the next layer keeps.

    JAX's own keeps a mask beside it. Derivatives are reverse-mode.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, …, C] @ [C, D] to [B, …, D].

    JAX's own gradient of the kernel is one sum over all axes but the last, for which XLA on CPUs
    lays an operand out anew (a field's training step took 1.6 times as long); on CPUs each image
    has its sum here, and then they are added up. Derivatives are reverse-mode.
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return matmul(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_kernel = jax.lax.platform_dependent(x, g, cpu=_by_image, default=_at_once)
    return g @ kernel.T, of_kernel.astype(kernel.dtype)


def _by_image(x: jax.Array, g: jax.Array) -> jax.Array:
    rows, flow = (y.reshape(y.shape[0], -1, y.shape[-1]) for y in (x, g))
    of_images = jnp.einsum("bnc,bnd->bcd", rows, flow, preferred_element_type=jnp.float32)
    return of_images.sum(0)


def _at_once(x: jax.Array, g: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, g, ((axes, axes), ((), ())), preferred_element_type=jnp.float32)


matmul.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel: jax.Array, dimensions: tuple, precision=None) -> jax.Array:
    """matmul in the form that nn.Dense calls; precision is the context's (talker.exact)."""
    return matmul(x, kernel)


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
