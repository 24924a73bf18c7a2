"""The Standardized Space: global encoder, both codebooks, decoder and loss (the paper, II-D)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t3d.space import codebook as cb

COLLAPSED = 0.1  # share of the codes that could be in use, under which it is a collapse
Params = Any
Aux = dict[str, Any]
# (space "au" or "global", its queries, what they found) → values that are decoded in their place.
Exchange = Callable[[str, jax.Array, cb.Quantized], jax.Array]


def space_to_depth(image: jax.Array, block: int) -> jax.Array:
    """[B, H, W, C] → [B, H/block, W/block, block²·C]."""
    b, h, w, c = image.shape
    x = image.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """[B, h, w, block²·C] → [B, h·block, w·block, C]; undoes `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // block**2)


class _Block(nn.Module):
    """A residual block of two 3×3 convolutions; a condition scales and shifts it (FiLM)."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        h = nn.GroupNorm(
            num_groups=math.gcd(8, self.width), use_fast_variance=False, dtype=self.dtype
        )(x)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype)(nn.silu(h))
        if condition is not None:
            film = nn.Dense(
                2 * self.width, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
            )(condition)
            scale, shift = jnp.split(film[:, None, None, :], 2, -1)
            h = h * (1.0 + scale) + shift
        return x + nn.Conv(
            self.width, (3, 3), kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )(nn.silu(h))


class GlobalEncoder(nn.Module):
    """A face [B, s, s, 3] in [0, 1] to global features [B, s/patch, s/patch, dim] (f̂_glo)."""

    dim: int
    width: int
    patch: int
    blocks: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = space_to_depth(2.0 * image.astype(self.dtype) - 1.0, self.patch)
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(x)
        for _ in range(self.blocks):
            x = _Block(self.width, self.dtype)(x)
        x = nn.Conv(self.dim, (1, 1), dtype=self.dtype)(x)
        return nn.LayerNorm(use_fast_variance=False, dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Standardised features of both spaces to the image F̂_t+ [B, s, s, 3] in [0, 1].

    The AU features [B, n_au, D] scale and shift every residual block; the global features
    [B, s/patch, s/patch, dim] are the blocks' input. Each doubling halves the channels.
    """

    width: int
    patch: int
    blocks: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, global_features: jax.Array, au_features: jax.Array | None) -> jax.Array:
        condition = None
        if au_features is not None:
            flat = au_features.astype(self.dtype).reshape(au_features.shape[0], -1)
            condition = nn.silu(nn.Dense(self.width, dtype=self.dtype)(flat))
        x = nn.Conv(self.width, (1, 1), dtype=self.dtype)(global_features.astype(self.dtype))
        for _ in range(self.blocks):
            x = _Block(self.width, self.dtype)(x, condition)
        for level in range(1, int(math.log2(self.patch))):
            width = max(16, self.width // 2**level)
            x = depth_to_space(nn.Conv(4 * width, (1, 1), dtype=self.dtype)(nn.silu(x)), 2)
            x = nn.Conv(width, (3, 3), dtype=self.dtype)(nn.silu(x))
        x = nn.Conv(12, (3, 3), dtype=self.dtype)(nn.silu(x))
        return nn.sigmoid(depth_to_space(x, 2).astype(jnp.float32))


class StandardizedSpace(nn.Module):
    """The local-global Standardized Space: brings a frame back to the speaker's motion space.

    Both codebooks are parameters, drawn at initialisation from the features of the batch that
    initialises the module (give it real frames). `global_usage` and `au_usage` beside them are the
    running use of each code (`codebook.track_usage`), 0 at first: no gradient reaches them,
    `restart_codes` keeps them and puts codes that nothing uses on the features of the batch.

    Attributes:
        n_au, dim: AUs and length of a feature.
        au_codes: codes of each AU (S is [n_au, au_codes, dim]).
        global_codes: codes of G.
        width: channels of encoder and decoder.
        patch: pixels of a token's side, a power of two: s = 128 and 4 give 32 × 32 tokens.
        use_au: False leaves the AU space out (Table III, "w/o AU").
        use_global: False lets the encoder's features through unquantised ("w/o Global"). Without
            them there would be no image at all.
    """

    n_au: int = 5
    dim: int = 256
    au_codes: int = 500
    global_codes: int = 1024
    width: int = 96
    patch: int = 4
    use_au: bool = True
    use_global: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: jax.Array, au_features: jax.Array, exchange: Exchange | None = None
    ) -> tuple[jax.Array, Aux]:
        """A frame through both codebooks.

        Args:
            image: [B, s, s, 3] in [0, 1].
            au_features: [B, n_au, dim] of the AU encoder.
            exchange: what is decoded in place of the codes; queries and values are
                [n_au, B, dim] of the AU space, [B, s/patch, s/patch, dim] of the global one.

        Returns:
            image [B, s, s, 3] in [0, 1], and aux: for each space in use, under "au" and "global",
            its `Quantized` (au: fields stacked over the AUs, AU first) and under "au_queries" and
            "global_queries" the queries ([n_au, B, dim], [B, s/patch, s/patch, dim]).
        """
        aux: Aux = {}
        exchange = exchange or (lambda space, queries, found: found.values)
        au_values = None
        if self.use_au:
            au_values = self._local(au_features.astype(jnp.float32), aux, exchange)
        features = GlobalEncoder(self.dim, self.width, self.patch, dtype=self.dtype)(image)
        features = features.astype(jnp.float32)
        values = self._global(features, aux, exchange) if self.use_global else features
        return Decoder(self.width, self.patch, dtype=self.dtype)(values, au_values), aux

    def _local(self, queries: jax.Array, aux: Aux, exchange: Exchange) -> jax.Array:
        """f_AU of Eq. 9: every AU has its own codes."""
        queries = jnp.swapaxes(queries, 0, 1)
        codes = self.param("au_codebook", _per_au_codes, queries, self.au_codes)
        self.param("au_usage", nn.initializers.zeros, (self.n_au, self.au_codes))
        found = jax.vmap(cb.quantize)(codes, queries)
        aux["au"] = found
        aux["au_queries"] = jax.lax.stop_gradient(queries)
        return jnp.swapaxes(exchange("au", queries, found), 0, 1)

    def _global(self, queries: jax.Array, aux: Aux, exchange: Exchange) -> jax.Array:
        """f_glo of Eq. 10."""
        codes = self.param("global_codebook", cb.codes_from_queries, queries, self.global_codes)
        self.param("global_usage", nn.initializers.zeros, (self.global_codes,))
        found = cb.quantize(codes, queries)
        aux["global"] = found
        aux["global_queries"] = jax.lax.stop_gradient(queries)
        return exchange("global", queries, found)


def _per_au_codes(rng: jax.Array, queries: jax.Array, codes: int) -> jax.Array:
    keys = jax.random.split(rng, queries.shape[0])
    return jax.vmap(lambda key, rows: cb.codes_from_queries(key, rows, codes))(keys, queries)


def restart_codes(params: Params, aux: Aux, rng: jax.Array, decay: float = 0.0) -> Params:
    """Follows the codes' use through a training step and restarts the dead ones.

    Call it after every optimiser step (it may be jitted with it).

    Args:
        params: of `StandardizedSpace`, the {"params": …} that its init returns.
        aux: what the step's forward pass returned.
        rng: chooses the queries that dead codes are put on.
        decay: over 0, codes are moving averages of their queries (`codebook.follow_queries`);
            `space_loss` then leaves their loss out.
    """
    leaves = dict(params["params"])

    def renewed(key, codes, usage, found, queries):
        usage = cb.track_usage(usage, found.counts)
        if decay:
            codes = cb.follow_queries(codes, queries, found.indices, decay)
        return cb.reset_dead_codes(key, codes, usage, cb.even_sample(queries, len(codes)))

    au_key, global_key = jax.random.split(rng)
    if "au" in aux:
        keys = jax.random.split(au_key, len(leaves["au_usage"]))
        leaves["au_codebook"], leaves["au_usage"] = jax.vmap(renewed)(
            keys, leaves["au_codebook"], leaves["au_usage"], aux["au"], aux["au_queries"]
        )
    if "global" in aux:
        leaves["global_codebook"], leaves["global_usage"] = renewed(
            global_key,
            leaves["global_codebook"],
            leaves["global_usage"],
            aux["global"],
            aux["global_queries"],
        )
    return {**params, "params": leaves}


def in_words(space: str, rows: np.ndarray, size: int) -> str:
    """How many of a codebook's codes frames find, and whether that is a collapse.

    Args:
        space: "au" or "global"; rows: of the codes that were found, [T, n_au] of the AUs, each with
        codes of its own; size: codes of a codebook.
    """
    books = rows.T if space == "au" else [rows.ravel()]
    used = np.mean([len(np.unique(book)) for book in books])
    title = {"au": "AU codebooks", "global": "global codebook"}[space]
    line = f"{title}: {used / size:.0%} of {size} codes in use"
    if used < COLLAPSED * min(size, len(books[0])):  # frames find no more codes than they ask for
        line += (
            "; a collapse: what it quantises has hardly any variety; try fewer codes "
            f"(config.space.{space}_codes) or config.space.ema=0.99"
        )
    return line


def gradient_difference(a: jax.Array, b: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean absolute difference of the images' [B, H, W, C] horizontal and vertical steps.

    `weight` [B, H, W, 1], of mean about 1, says where it counts more.
    """
    error = a - b
    across, down = jnp.abs(jnp.diff(error, axis=2)), jnp.abs(jnp.diff(error, axis=1))
    if weight is not None:
        across, down = across * weight[:, :, 1:], down * weight[:, 1:]
    return jnp.mean(across) + jnp.mean(down)


def space_loss(
    output: jax.Array,
    target: jax.Array,
    aux: Aux,
    beta_au: float = 0.25,
    beta_global: float = 0.25,
    gradient_weight: float | jax.Array = 0.0,
    weight: jax.Array | None = None,
    codebook_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_S of Eq. 11; each norm is a mean over its elements, so no size changes the balance.

    Args:
        output: [B, s, s, 3] F̂_t+.
        target: [B, s, s, 3] F_t.
        aux: what `StandardizedSpace` returned.
        beta_au: β1 of Eq. 11.
        beta_global: β2 of Eq. 11.
        gradient_weight: of `gradient_difference`, which keeps edges sharp; 0 is the paper.
        weight: [B, s, s, 1] of each pixel, of mean about 1; None is the paper: all alike.
        codebook_weight: of the terms that move the codes; 0 where they are moving averages.

    Returns:
        The loss and its terms, with perplexity and usage of both codebooks (means over the AUs).
    """
    error = jnp.abs(output - target)
    terms = {"l1": jnp.mean(error if weight is None else error * weight)}
    loss = terms["l1"]
    for name, beta in (("au", beta_au), ("global", beta_global)):
        if name in aux:
            found = aux[name]
            terms[f"{name}_codebook"] = jnp.mean(found.codebook_loss)
            terms[f"{name}_commitment"] = jnp.mean(found.commitment_loss)
            terms[f"{name}_perplexity"] = jnp.mean(found.perplexity)
            terms[f"{name}_usage"] = jnp.mean(found.usage)
            loss += codebook_weight * terms[f"{name}_codebook"]
            loss += beta * terms[f"{name}_commitment"]
    if isinstance(gradient_weight, jax.Array) or gradient_weight:
        terms["gradient"] = gradient_difference(output, target, weight)
        loss += gradient_weight * terms["gradient"]
    return loss, terms
