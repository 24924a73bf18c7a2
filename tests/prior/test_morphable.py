import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d.prior import basis, morphable


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


def test_zero_codes_give_the_mean(model):
    points = morphable.vertices(model, np.zeros(100, np.float32), np.zeros(79, np.float32))
    np.testing.assert_array_equal(points, model.mean)
    np.testing.assert_array_equal(
        morphable.albedo(model, np.zeros(100, np.float32)), model.albedo_mean
    )


def test_vertices_are_the_sum_of_weighted_vectors_and_numpy_equals_jax(model):
    rng = np.random.default_rng(0)
    small = morphable.restrict(model, model.landmarks68)
    identity = rng.normal(size=(2, 100)).astype(np.float32)
    expression = rng.normal(size=(3, 2, 79)).astype(np.float32)
    expected = np.zeros((3, 2, 68, 3))
    for a in range(3):
        for b in range(2):
            expected[a, b] = small.mean
            for k in range(100):
                expected[a, b] += float(identity[b, k]) * small.identity_basis[k]
            for k in range(79):
                expected[a, b] += float(expression[a, b, k]) * small.expression_basis[k]
    host = morphable.vertices(small, identity, expression)
    device = morphable.vertices(jax.device_put(small), jnp.asarray(identity), expression)
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
    np.testing.assert_allclose(host, expected, atol=2e-5)
    np.testing.assert_allclose(device, expected, atol=2e-5)


def test_named_weights_give_the_full_shape_at_one(model):
    code = morphable.expression_from_weights(model, {"jawOpen": 1.0, "mouthSmile_L": 0.5})
    jaw, smile = (model.expression_names.index(n) for n in ("jawOpen", "mouthSmile_L"))
    assert np.count_nonzero(code) == 2
    assert code[jaw] * morphable.EXPRESSION_STD == 1.0
    assert code[smile] * morphable.EXPRESSION_STD == 0.5
    series = morphable.expression_from_weights(model, {"jawOpen": np.linspace(0, 1, 4)})
    assert series.shape == (4, 79)
    with pytest.raises(KeyError):
        morphable.expression_from_weights(model, {"jawopen": 1.0})


def test_restricted_model_moves_its_vertices_as_the_whole_does(model):
    rng = np.random.default_rng(1)
    indices = np.concatenate([model.landmarks68, model.lips79])
    small = morphable.restrict(model, indices)
    identity, expression = (rng.normal(size=n).astype(np.float32) for n in (100, 79))
    whole = morphable.vertices(model, identity, expression)
    part = morphable.vertices(small, identity, expression)
    np.testing.assert_allclose(part, whole[indices], atol=1e-5)
    np.testing.assert_allclose(part[small.landmarks68], whole[model.landmarks68], atol=1e-5)
    np.testing.assert_allclose(part[small.lips79], whole[model.lips79], atol=1e-5)
    assert small.triangles.shape == (0, 3)


def test_restricted_model_marks_points_that_it_lacks(model):
    small = morphable.restrict(model, model.landmarks68[:17])
    assert (small.landmarks68[:17] == np.arange(17)).all()
    assert (small.landmarks68[48:60] == -1).all()


def _sphere(rings: int = 24, steps: int = 48):
    polar, turn = np.meshgrid(
        np.linspace(0.02, np.pi - 0.02, rings), 2 * np.pi * np.arange(steps) / steps, indexing="ij"
    )
    points = np.stack(
        [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1
    ).reshape(-1, 3)
    ring, step = np.meshgrid(np.arange(rings - 1), np.arange(steps), indexing="ij")
    a, b = (ring * steps + step).ravel(), (ring * steps + (step + 1) % steps).ravel()
    triangles = np.concatenate(
        [np.stack([a, a + steps, b + steps], -1), np.stack([a, b + steps, b], -1)]
    )
    return points.astype(np.float32), triangles.astype(np.int32)


def test_normals_of_a_sphere_point_outwards_in_numpy_and_jax():
    points, triangles = _sphere()
    batch = np.stack([points, points * 3])
    host = morphable.vertex_normals(batch, triangles)
    device = morphable.vertex_normals(jnp.asarray(batch), jnp.asarray(triangles))
    inner = slice(48, -48)
    assert np.sum(host[0, inner] * points[inner], -1).min() > 0.995
    np.testing.assert_allclose(host[1], host[0], atol=1e-5)
    np.testing.assert_allclose(device, host, atol=1e-5)


def test_normal_of_a_vertex_without_triangles_is_zero_with_finite_gradients():
    points = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)), jnp.float32)
    triangles = jnp.array([[0, 1, 2]])
    normals = morphable.vertex_normals(points, triangles)
    assert (normals[3:] == 0).all()
    gradient = jax.grad(lambda p: morphable.vertex_normals(p, triangles)[:, 2].sum())(points)
    assert jnp.isfinite(gradient).all()
