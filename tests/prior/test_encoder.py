import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.transform import Rotation

from t3d.camera import project, recorded, transform
from t3d.prior import basis, encoder, morphable
from t3d.prior.encoder import WEIGHTS, PriorEncoder, encoder_loss

TURNS = np.array([[0.0, 0.0, 0.0], [0.1, -0.3, 0.2], [-0.4, 0.5, -0.1]], np.float32)
PLACES = np.array([[0.0, 0.0, 80.0], [3.0, -2.0, 60.0], [-4.0, 1.0, 100.0]], np.float32)
INTRINSICS = np.tile(np.float32([4.0, 4.2, 0.5, 0.48]), (3, 1))
BOXES = np.float32([[0.5, 0.5, 0.6], [0.7, 0.4, 0.7], [0.35, 0.55, 0.5]])


@pytest.fixture(scope="module")
def heads():
    turn = Rotation.from_rotvec(TURNS).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    head_to_world = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    head_to_world[:, :3, :3], head_to_world[:, :3, 3] = turn, PLACES
    return head_to_world


def test_pose_vector_is_axis_times_sine_and_what_the_crop_shows_of_the_origin(heads):
    found = encoder.pose_vector(jnp.asarray(heads), INTRINSICS, BOXES)
    angle = np.linalg.norm(TURNS, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[:, :3], TURNS * np.sinc(angle / np.pi), atol=1e-6)
    ends = np.float32([[0, 0, 0], [10, 0, 0]]) + PLACES[:, None]  # of ten centimetres, level
    seen, _ = project(recorded(INTRINSICS), ends)
    in_crop = (seen - (BOXES[:, None, :2] - BOXES[:, None, 2:] / 2)) / BOXES[:, None, 2:]
    np.testing.assert_allclose(found[:, 3:5], in_crop[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 5], in_crop[:, 1, 0] - in_crop[:, 0, 0], atol=1e-5)


def test_pose_matrix_undoes_the_pose_vector_and_has_gradients_at_a_frontal_head(heads):
    pose = encoder.pose_vector(jnp.asarray(heads), INTRINSICS, BOXES)
    np.testing.assert_allclose(
        encoder.pose_matrix(pose, INTRINSICS, BOXES), heads, rtol=1e-4, atol=1e-4
    )
    slope = jax.grad(lambda p: encoder.pose_matrix(p, INTRINSICS, BOXES).sum())
    assert np.isfinite(slope(pose)).all() and np.isfinite(slope(jnp.full((3, 6), 2.0))).all()


def test_true_codes_have_their_landmarks_where_the_model_projects_them(heads):
    model, rng = basis.load("procedural"), np.random.default_rng(0)
    codes = {"identity": rng.normal(size=(3, 100)), "expression": rng.normal(size=(3, 79))}
    codes = {name: value.astype(np.float32) for name, value in codes.items()}
    world = transform(heads, morphable.vertices(model, **codes))
    expected, _ = project(recorded(INTRINSICS), world)
    expected = expected[:, np.concatenate([model.landmarks68, model.lips79])]
    pose = encoder.pose_vector(jnp.asarray(heads), INTRINSICS, BOXES)
    found = encoder.seen_marks(
        encoder.marks_basis(model), codes | {"pose": pose}, INTRINSICS, BOXES
    )
    np.testing.assert_allclose(encoder.in_image(found, BOXES), expected, atol=2e-5)


def test_a_rolled_head_is_seen_where_the_rolled_picture_shows_it(heads):
    points = np.random.default_rng(0).normal(0, 5, (3, 8, 3)).astype(np.float32)
    angle = jnp.array([0.3, -0.2, 0.1])
    camera = recorded(jnp.asarray(INTRINSICS).at[:, 1].set(4.0))  # square pixels
    before, _ = project(camera, transform(heads, points))
    after, _ = project(camera, transform(encoder.roll_heads(heads, angle), points))
    np.testing.assert_allclose(
        encoder.roll_points(before, angle, INTRINSICS), after, rtol=1e-4, atol=1e-5
    )


def test_a_new_crop_shows_a_spot_where_its_point_has_gone():
    spot = np.float32([[[0.4, 0.55]], [[0.5, 0.45]], [[0.6, 0.6]]])  # of the old crop
    at = (np.arange(96) + 0.5) / 96
    across, down = at - spot[..., :1], at - spot[..., 1:]
    dark = np.exp(-(across[:, 0, None, :] ** 2 + down[:, 0, :, None] ** 2) / 5e-3)
    faces = np.repeat(1 - dark[..., None], 3, -1).astype(np.float32)
    angle, other = jnp.array([0.2, -0.3, 0.1]), BOXES * np.float32([1.02, 0.97, 1.1])
    seen = {"face_box": BOXES, "intrinsics": INTRINSICS}
    made = 1 - np.asarray(encoder.recrop(faces, seen, other, angle))[..., 0]
    weight = made / made.sum((1, 2), keepdims=True)
    found = np.stack([(weight.sum(1) * at).sum(-1), (weight.sum(2) * at).sum(-1)], -1)
    moved = encoder.roll_points(encoder.in_image(spot, BOXES), angle, INTRINSICS)
    np.testing.assert_allclose(found, encoder.in_crop(moved, other)[:, 0], atol=2e-3)


def test_the_same_crop_again_is_the_same_picture():
    faces = np.random.default_rng(0).random((3, 96, 96, 3)).astype(np.float32)
    seen = {"face_box": BOXES, "intrinsics": INTRINSICS}
    again = encoder.recrop(faces, seen, BOXES, jnp.zeros(3))
    np.testing.assert_allclose(again, faces, atol=1e-3)


def test_loss_is_the_weighted_sum_of_mean_squares_of_the_given_parts():
    prediction = {"expression": jnp.zeros((2, 79)), "points": jnp.ones((2, 147, 2))}
    target = {"expression": jnp.full((2, 79), 2.0), "points": jnp.full((2, 147, 2), 0.5)}
    total, parts = encoder_loss(prediction, target)
    np.testing.assert_allclose(parts["expression"], 4.0)
    np.testing.assert_allclose(parts["points"], 0.25)
    expected = WEIGHTS["expression"] * 4.0 + WEIGHTS["points"] * 0.25
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    open_lips = prediction["points"].at[:, 66, 1].add(0.3)  # one of three gaps, of two numbers each
    _, parts = encoder_loss(prediction | {"points": open_lips}, target)
    apart = np.mean(np.square(np.asarray(open_lips) - 0.5)) + 0.3**2 / 6
    np.testing.assert_allclose(parts["points"], apart, rtol=1e-5)
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
