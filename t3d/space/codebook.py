"""The query function Q and its codebooks (the paper, Eq. 9 and 10)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

# Longest list of queries whose distances to all codes are held at once.
CHUNK = 16384
# A code is dead when it is used less often than this share of the even rate.
DEAD_BELOW = 0.1
# Uses (at the even rate) that the running average of a code's usage looks back on.
USES_REMEMBERED = 4.0


@struct.dataclass
class Quantized:
    """Queries replaced by their nearest codes.

    Attributes:
        values: [..., D] the codes; gradients pass straight through to the queries.
        codes: [..., D] the same codes; gradients go to the codebook.
        indices: [...] int32 row of each code.
        codebook_loss: mean ‖sg(query) − code‖² per element (moves the codebook).
        commitment_loss: mean ‖query − sg(code)‖² per element (moves the encoder).
        perplexity: exp of the entropy of the codes' use in these queries, 1 to K.
        usage: share of the K codes that these queries use, 0 to 1.
        counts: [K] float32, how many queries took each code.
    """

    values: jax.Array
    codes: jax.Array
    indices: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array
    perplexity: jax.Array
    usage: jax.Array
    counts: jax.Array


def nearest(codebook: jax.Array, queries: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Row of the codebook [K, D] nearest to each query [N, D]; int32 [N], no gradient.

    Distances are taken in float32 at full precision, `chunk` queries at a time.
    """
    codebook = jax.lax.stop_gradient(codebook).astype(jnp.float32)
    queries = jax.lax.stop_gradient(queries).astype(jnp.float32)
    half_norms = 0.5 * jnp.sum(codebook * codebook, -1)

    def of(rows: jax.Array) -> jax.Array:
        dots = jnp.matmul(rows, codebook.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(half_norms - dots, -1).astype(jnp.int32)

    if queries.shape[0] <= chunk:
        return of(queries)
    blocks = -(-queries.shape[0] // chunk)
    padded = jnp.pad(queries, ((0, blocks * chunk - queries.shape[0]), (0, 0)))
    indices = jax.lax.map(of, padded.reshape(blocks, chunk, -1))
    return indices.reshape(-1)[: queries.shape[0]]


def quantize(codebook: jax.Array, queries: jax.Array, chunk: int = CHUNK) -> Quantized:
    """The query function Q: each query's nearest code (Eq. 9, 10).

    Args:
        codebook: [K, D].
        queries: [..., D].
        chunk: how many queries are compared with all codes at once.
    """
    rows = queries.reshape(-1, queries.shape[-1])
    indices = nearest(codebook, rows, chunk)
    codes = codebook[indices].reshape(queries.shape)
    counts = jnp.zeros(codebook.shape[0], jnp.float32).at[indices].add(1.0)
    share = counts / rows.shape[0]
    stop = jax.lax.stop_gradient
    return Quantized(
        values=queries + stop(codes - queries),
        codes=codes,
        indices=indices.reshape(queries.shape[:-1]),
        codebook_loss=jnp.mean(jnp.square(stop(queries) - codes)),
        commitment_loss=jnp.mean(jnp.square(queries - stop(codes))),
        perplexity=jnp.exp(-jnp.sum(share * jnp.log(share + 1e-10))),
        usage=jnp.mean(counts > 0),
        counts=counts,
    )


def codes_from_queries(rng: jax.Array, queries: jax.Array, codes: int) -> jax.Array:
    """A first codebook [codes, D]: queries [..., D] drawn at random, a little apart.

    Each drawn query is moved by normal noise of 1 % of the queries' deviation (at least 1e-4), so
    that no two codes coincide when there are fewer queries than codes.
    """
    rows = queries.reshape(-1, queries.shape[-1]).astype(jnp.float32)
    draw, jitter = jax.random.split(rng)
    rounds = jax.random.split(draw, -(-codes // rows.shape[0]))
    order = [jax.random.permutation(key, rows.shape[0]) for key in rounds]
    chosen = rows[jnp.concatenate(order)[:codes]]
    apart = 0.01 * jnp.std(rows) + 1e-4
    return chosen + apart * jax.random.normal(jitter, chosen.shape)


def track_usage(usage: jax.Array, counts: jax.Array) -> jax.Array:
    """Running average of how often each code is used, 1 = the even rate.

    Args:
        usage: [K] the average so far; start it at 0, so that a code has to prove itself.
        counts: [K] uses in this batch.

    Returns:
        [K]. The memory is as long as a code at the even rate needs for `USES_REMEMBERED` uses, and
        at least ten batches.
    """
    even = jnp.sum(counts) / counts.shape[0]
    rate = jnp.minimum(0.1, 1.0 - jnp.exp(-even / USES_REMEMBERED))
    return usage + rate * (counts / even - usage)


def reset_dead_codes(
    rng: jax.Array, codebook: jax.Array, usage: jax.Array, queries: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Puts codes that nothing uses where the queries are.

    No two codes are put on one query: where more are dead than there are queries, the least used
    go first and the rest wait for the next batch. So a codebook with fewer queries than codes fills
    up with different training frames.

    Args:
        rng: chooses the queries.
        codebook: [K, D].
        usage: [K] average use (`track_usage`), 1 = the even rate; under `DEAD_BELOW` is dead.
        queries: [..., D] where the living encoder's output is.

    Returns:
        The codebook and the usage, in which restarted codes stand at 1.
    """
    rows = queries.reshape(-1, queries.shape[-1]).astype(codebook.dtype)
    rank = jnp.argsort(jnp.argsort(usage))
    dead = (usage < DEAD_BELOW) & (rank < rows.shape[0])
    chosen = jax.random.permutation(rng, rows.shape[0])[rank % rows.shape[0]]
    return jnp.where(dead[:, None], rows[chosen], codebook), jnp.where(dead, 1.0, usage)


def follow_queries(
    codebook: jax.Array, queries: jax.Array, indices: jax.Array, decay: float
) -> jax.Array:
    """Codes [K, D] moved towards the means of the queries that they are nearest to.

    A moving average of the means of the batches, after van den Oord et al. 2017, appendix A.1 (who
    average counts and sums, so that a batch with few queries of a code moves it less); a code that
    no query has found stays where it is. It takes the place of the codebook's loss.

    Args:
        queries: [..., D]; indices: [...] rows of their codes; decay: share of a code that is kept.
    """
    rows, index = queries.reshape(-1, queries.shape[-1]), indices.reshape(-1)
    size = len(codebook)
    count = jax.ops.segment_sum(jnp.ones(len(index)), index, size)[:, None]
    mean = jax.ops.segment_sum(rows.astype(codebook.dtype), index, size) / jnp.maximum(count, 1.0)
    return jnp.where(count > 0, decay * codebook + (1.0 - decay) * mean, codebook)


def even_sample(queries: jax.Array, limit: int) -> jax.Array:
    """At most `limit` rows [M, D] of queries [..., D], spread evenly over them."""
    rows = queries.reshape(-1, queries.shape[-1])
    total = rows.shape[0]
    if total <= limit:
        return rows
    step = total // limit
    while math.gcd(step, total) > 1:
        step += 1
    return rows[jnp.arange(limit) * step % total]
