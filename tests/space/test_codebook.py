"""The query function Q: nearest codes, gradients, use and restart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.space import codebook as cb

# The gradients that CodeTalker's numbers hold are of these: see the fixture's `in_fixed`.
BETA = 0.25


@pytest.fixture(scope="module", params=["voca", "biwi"])
def peer(request, golden, golden_weights):
    data = golden("codetalker_vq")
    name = request.param
    codebook = golden_weights.from_fixture(data, f"state_{name}")["embedding.weight"]
    numbers = {k.removesuffix(f"_{name}"): v for k, v in data.items() if k.endswith(f"_{name}")}
    return jnp.asarray(codebook), numbers


def _vq_loss(codebook, queries):
    found = cb.quantize(codebook, queries)
    return found.codebook_loss + BETA * found.commitment_loss, found


def test_values_indices_loss_and_perplexity_are_codetalkers(peer):
    codebook, numbers = peer
    loss, found = _vq_loss(codebook, numbers["in_z"])
    np.testing.assert_array_equal(found.indices.reshape(-1, 1), numbers["out_indices"])
    np.testing.assert_allclose(found.values.swapaxes(1, 2), numbers["out_zq"], atol=1e-5)
    np.testing.assert_allclose(loss, numbers["out_loss"], rtol=1e-5)
    np.testing.assert_allclose(found.perplexity, numbers["out_perplexity"], rtol=1e-5)
    assert float(found.usage) == len(np.unique(numbers["out_indices"])) / len(codebook)


def test_gradients_are_codetalkers(peer):
    codebook, numbers = peer

    def objective(codebook, queries):
        loss, found = _vq_loss(codebook, queries)
        return loss + jnp.sum(found.values.swapaxes(1, 2) * numbers["in_fixed"])

    to_codes, to_queries = jax.grad(objective, argnums=(0, 1))(codebook, numbers["in_z"])
    np.testing.assert_allclose(to_queries, numbers["out_grad_z"], atol=1e-5)
    np.testing.assert_allclose(to_codes, numbers["out_grad_codebook"], atol=1e-5)
    alone = jax.grad(lambda z: _vq_loss(codebook, z)[0])(numbers["in_z"])
    np.testing.assert_allclose(alone, numbers["out_grad_z_loss_only"], atol=1e-5)


@pytest.fixture
def queries():
    return np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)


@pytest.fixture
def codes():
    return np.random.default_rng(1).normal(size=(11, 4)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 5, 21, 1000])
def test_nearest_is_brute_force_in_any_chunks(codes, queries, chunk):
    rows = queries.reshape(-1, 4)
    brute = np.array([np.argmin([np.linalg.norm(q - c) for c in codes]) for q in rows])
    np.testing.assert_array_equal(cb.nearest(codes, rows, chunk), brute)


def test_a_query_on_a_code_finds_it_without_loss(codes):
    found = cb.quantize(codes, codes[None])
    np.testing.assert_array_equal(found.indices[0], np.arange(11))
    assert float(found.codebook_loss) == 0.0 == float(found.commitment_loss)
    np.testing.assert_allclose(found.perplexity, 11.0, rtol=1e-5)
    assert float(found.usage) == 1.0


def test_gradient_passes_straight_through(codes, queries):
    weight = np.random.default_rng(2).normal(size=queries.shape).astype(np.float32)
    gradient = jax.grad(lambda q: jnp.sum(weight * cb.quantize(codes, q).values))(queries)
    np.testing.assert_allclose(gradient, weight)


def test_losses_move_only_what_they_should(codes, queries):
    to_codes = jax.grad(lambda c: cb.quantize(c, queries).commitment_loss)(codes)
    to_queries = jax.grad(lambda q: cb.quantize(codes, q).codebook_loss)(queries)
    assert not np.any(to_codes) and not np.any(to_queries)


def test_first_codes_lie_on_queries_and_differ(queries):
    rows = queries.reshape(-1, 4)
    codes = np.asarray(cb.codes_from_queries(jax.random.key(0), queries, 50))
    gaps = np.linalg.norm(codes[:, None] - rows, axis=-1).min(1)
    assert gaps.max() < 0.1
    assert len(np.unique(codes, axis=0)) == 50


def test_only_dead_codes_are_restarted_and_come_alive(codes, queries):
    usage = jnp.ones(11).at[jnp.array([2, 5])].set(0.01)
    far = jnp.asarray(codes).at[jnp.array([2, 5])].set(100.0)
    renewed, again = cb.reset_dead_codes(jax.random.key(0), far, usage, queries)
    np.testing.assert_array_equal(np.delete(renewed, [2, 5], 0), np.delete(codes, [2, 5], 0))
    assert np.abs(renewed).max() < 10.0
    np.testing.assert_array_equal(again, np.ones(11))


def test_a_codebook_with_few_queries_fills_up_with_different_ones():
    frames = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    codebook, usage = jnp.full((12, 3), 9.0), jnp.zeros(12)
    for n, queries in enumerate(frames[:2]):
        codebook, usage = cb.reset_dead_codes(jax.random.key(n), codebook, usage, queries)
        assert len(np.unique(codebook, axis=0)) == 4 * (n + 1) + 1
    seen = {tuple(row) for row in frames[:2].reshape(-1, 3)}
    assert seen <= {tuple(row) for row in np.asarray(codebook)}
    codebook, usage = cb.reset_dead_codes(jax.random.key(2), codebook, usage, frames[2])
    again, _ = cb.reset_dead_codes(jax.random.key(3), codebook, usage, frames[3])
    np.testing.assert_array_equal(again, codebook)


def test_usage_of_a_code_follows_its_rate():
    counts = jnp.array([0.0, 10.0, 20.0, 10.0])
    usage = jnp.zeros(4)
    for _ in range(200):
        usage = cb.track_usage(usage, counts)
    np.testing.assert_allclose(usage, [0.0, 1.0, 2.0, 1.0], atol=1e-4)


def test_a_rarely_asked_code_is_not_dead_after_a_few_batches():
    usage = jnp.ones(500)
    for _ in range(100):  # 8 queries for 500 codes: a code expects one in 62 batches
        usage = cb.track_usage(usage, jnp.zeros(500).at[:8].add(1.0))
    assert float(usage.min()) > cb.DEAD_BELOW


def test_codes_follow_the_mean_of_their_queries(codes, queries):
    found = cb.quantize(codes, queries)
    moved = np.asarray(cb.follow_queries(jnp.asarray(codes), queries, found.indices, 0.9))
    rows, index = queries.reshape(-1, 4), np.asarray(found.indices).reshape(-1)
    for k, code in enumerate(codes):
        mine = rows[index == k]
        expected = 0.9 * code + 0.1 * mine.mean(0) if len(mine) else code
        np.testing.assert_allclose(moved[k], expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(index)) < len(codes)  # some found no query


def test_many_queries_against_many_codes_stay_under_a_gigabyte():
    shapes = (jax.ShapeDtypeStruct((n, 256), jnp.float32) for n in (8192, 65536))
    memory = jax.jit(cb.nearest).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**30


def test_even_sample_covers_all_rows_of_a_grid():
    grid = np.arange(32 * 32, dtype=np.float32).reshape(1, 32, 32, 1)
    columns = np.asarray(cb.even_sample(grid, 64))[:, 0] % 32
    assert len(np.unique(columns)) == 32
