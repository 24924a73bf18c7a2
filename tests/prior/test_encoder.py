import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.transform import Rotation

from t3d.camera import head_pose
from t3d.prior.encoder import WEIGHTS, PriorEncoder, encoder_loss, pose_vector


def test_pose_vector_is_axis_times_sine_and_metres():
    rotvec = np.array([[0.0, 0.0, 0.0], [0.1, -0.3, 0.2]])
    translation = np.array([[0.0, 0.0, 80.0], [3.0, -2.0, 60.0]])
    turn = Rotation.from_rotvec(rotvec).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    head_to_world = np.tile(np.eye(4), (2, 1, 1))
    head_to_world[:, :3, :3], head_to_world[:, :3, 3] = turn, translation
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    expected = rotvec * np.sinc(angle / np.pi)
    found = pose_vector(jnp.asarray(head_to_world))
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-6)
    np.testing.assert_allclose(found[:, 3:], translation / 100, rtol=1e-6)
    np.testing.assert_allclose(
        head_pose(jnp.asarray(rotvec), jnp.asarray(translation)), head_to_world, atol=1e-5
    )


def test_loss_is_the_weighted_sum_of_mean_squares_of_the_given_parts():
    prediction = {"expression": jnp.zeros((2, 79)), "points": jnp.ones((2, 147, 2))}
    target = {"expression": jnp.full((2, 79), 2.0), "points": jnp.full((2, 147, 2), 0.5)}
    total, parts = encoder_loss(prediction, target)
    np.testing.assert_allclose(parts["expression"], 4.0)
    np.testing.assert_allclose(parts["points"], 0.25)
    expected = WEIGHTS["expression"] * 4.0 + WEIGHTS["points"] * 0.25
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    only, _ = encoder_loss(prediction, {"expression": target["expression"]})
    np.testing.assert_allclose(only, 4.0 * WEIGHTS["expression"], rtol=1e-6)


def test_a_target_that_is_not_predicted_is_an_error():
    with pytest.raises(KeyError):
        encoder_loss({}, {"expression": jnp.zeros((1, 79))})


def test_it_learns_the_codes_of_four_fixed_faces():
    rng = np.random.default_rng(0)
    faces = rng.random((4, 96, 96, 3)).astype(np.float32)
    shapes = {
        "expression": (4, 79),
        "identity": (4, 100),
        "albedo": (4, 100),
        "illumination": (4, 27),
        "pose": (4, 6),
    }
    target = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    target["points"] = rng.random((4, 147, 2)).astype(np.float32)
    model = PriorEncoder(width=8, dropout=0.0)
    params = jax.jit(model.init)(jax.random.key(0), faces)
    optimiser = optax.adam(1e-2)
    state = optimiser.init(params)

    def loss(p):
        return encoder_loss(model.apply(p, faces), target)[0]

    @jax.jit
    def step(p, s):
        value, gradient = jax.value_and_grad(loss)(p)
        updates, s = optimiser.update(gradient, s)
        return optax.apply_updates(p, updates), s, value, optax.tree.norm(gradient)

    prediction = jax.jit(model.apply)(params, faces)
    assert {name: value.shape for name, value in prediction.items()} == {
        **shapes,
        "points": (4, 147, 2),
    }
    losses = []
    for _ in range(80):
        params, state, value, norm = step(params, state)
        assert np.isfinite(norm)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]
