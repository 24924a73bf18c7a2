import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d.speech import lipnet

STEPS = 8


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    smooth = lambda *s: np.repeat(np.repeat(rng.random((*s, 12, 12, 3)), 8, -3), 8, -2)  # noqa: E731
    identity = np.tile(smooth(1), (4, 1, 1, 1)).astype(np.float32)
    return {
        "mel": rng.normal(size=(4, STEPS, 80)).astype(np.float32),
        "identity": identity,
        "face": (0.5 * identity + 0.5 * smooth(4)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def tiny(batch):
    model = lipnet.LipNet(width=8, bottleneck=4, dropout=0.0)
    return model, jax.jit(model.init)(jax.random.key(0), batch["mel"], batch["identity"])


def face_points(seed=0):
    rng = np.random.default_rng(seed)
    return (0.2 + 0.6 * rng.random((1, 68, 2))).astype(np.float32)


def turned(points, degrees, scale, shift):
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (scale * points @ rotation.T + np.array(shift)).astype(np.float32)


def test_the_upper_half_is_the_identity_image_itself(tiny, batch):
    model, params = tiny
    image, _ = jax.jit(model.apply)(params, batch["mel"], batch["identity"])
    assert image.shape == (4, 96, 96, 3)
    np.testing.assert_array_equal(image[:, : lipnet.TOP], batch["identity"][:, : lipnet.TOP])
    assert (image >= 0).all()
    assert (image <= 1).all()


def test_one_identity_image_serves_all_sounds(tiny, batch):
    model, params = tiny
    sound = model.apply(params, batch["mel"], method="hear")
    one = batch["identity"][:1]
    each = jnp.broadcast_to(one, batch["identity"].shape)
    draw = lambda face: model.apply(params, sound, face, method="draw")  # noqa: E731
    np.testing.assert_allclose(draw(one), draw(each), atol=1e-6)


def test_it_starts_from_the_identity_image(tiny, batch):
    model, params = tiny
    image, _ = jax.jit(model.apply)(params, batch["mel"], batch["identity"])
    np.testing.assert_allclose(image, batch["identity"], atol=0.03)


def test_oracle_takes_the_upper_face_from_one_and_the_lower_from_the_other():
    image = lipnet.oracle_lip_image(jnp.zeros((1, 96, 96, 3)), jnp.ones((1, 96, 96, 3)))
    np.testing.assert_array_equal(image[:, : lipnet.TOP], 0.0)
    np.testing.assert_array_equal(image[:, lipnet.SEAM :], 1.0)
    assert (np.diff(image[0, :, 0, 0]) >= 0).all()


def test_similarity_recovers_a_known_one():
    source = face_points()
    target = turned(source, 20, 1.3, [0.1, -0.2])
    matrix, offset = lipnet.similarity(jnp.asarray(source), jnp.asarray(target))
    angle = np.radians(20)
    expected = 1.3 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(matrix[0], expected, atol=1e-5)
    np.testing.assert_allclose(offset[0], [0.1, -0.2], atol=1e-5)


def test_align_undoes_a_known_motion_of_the_head():
    def face(points):
        """A picture that is a smooth function of where in the head one looks."""
        x, y = points[..., 0], points[..., 1]
        return np.stack([0.5 + 0.4 * np.sin(9 * x), 0.5 + 0.4 * np.cos(7 * y), x * y], -1)

    at = (np.arange(96) + 0.5) / 96
    grid = np.stack(np.meshgrid(at, at), -1)
    centre = np.array([0.5, 0.5])
    moved = turned(grid - centre, -8, 1 / 1.1, [0, 0]) + centre
    points = face_points()
    moved_points = turned(points - centre, 8, 1.1, [0, 0]) + centre.astype(np.float32)
    still, seen = face(grid)[None].astype(np.float32), face(moved)[None].astype(np.float32)
    aligned = lipnet.align(jnp.asarray(seen), jnp.asarray(moved_points), jnp.asarray(points))
    inside = np.s_[:, 12:-12, 12:-12]
    np.testing.assert_allclose(aligned[inside], still[inside], atol=2e-3)


def test_align_to_itself_changes_nothing():
    image = np.random.default_rng(0).random((1, 96, 96, 3)).astype(np.float32)
    points = jnp.asarray(face_points())
    np.testing.assert_allclose(lipnet.align(jnp.asarray(image), points, points), image, atol=1e-3)


def test_loss_is_zero_at_the_truth_and_counts_the_mouth_more(batch):
    points = np.full((1, 68, 2), 0.5, np.float32)
    points[:, 48:68] = [0.5, 0.75]
    points[:, 48], points[:, 54] = [0.4, 0.75], [0.6, 0.75]
    weight = lipnet.mouth_weight(jnp.asarray(points), gain=8.0)
    assert weight.shape == (1, 96, 96, 1)
    np.testing.assert_allclose(weight[0, 72, 48, 0], 9.0, rtol=0.01)
    np.testing.assert_allclose(weight[0, 72, 2, 0], 1.0, rtol=0.01)
    face = jnp.asarray(batch["face"])
    assert lipnet.lip_loss(face, face, weight) == 0.0
    at_mouth = face.at[:, 70:74, 46:50].add(0.5)
    at_cheek = face.at[:, 70:74, 2:6].add(0.5)
    assert lipnet.lip_loss(at_mouth, face, weight) > 5 * lipnet.lip_loss(at_cheek, face, weight)


def test_loss_of_a_constant_error_is_that_error(batch):
    face = jnp.asarray(batch["face"])
    weight = lipnet.mouth_weight(jnp.asarray(face_points()), gain=3.0)
    np.testing.assert_allclose(lipnet.lip_loss(face + 0.2, face, weight), 0.2, rtol=1e-4)


def test_augmented_mel_stays_in_range_and_differs_by_key(batch):
    mel = jnp.asarray(np.clip(3 * batch["mel"], -4, 4))
    first = lipnet.augment_mel(jax.random.key(0), mel)
    assert first.shape == mel.shape
    assert (jnp.abs(first) <= 4).all()
    assert jnp.abs(first - lipnet.augment_mel(jax.random.key(1), mel)).max() > 0.1
    np.testing.assert_array_equal(first, lipnet.augment_mel(jax.random.key(0), mel))


def test_augmentation_leaves_features_beyond_the_mels_range_where_they_are():
    features = jnp.full((64, STEPS, 24), -6.0).at[:, :, 12:].set(5.0)
    changed = lipnet.augment_mel(jax.random.key(0), features)
    unmasked = jnp.abs(changed - features) < 2
    assert unmasked.mean() > 0.5
    shifts = (changed - features)[unmasked]
    assert abs(shifts.mean()) < 0.2 and jnp.abs(shifts).max() > 0.5


def test_what_is_heard_varies_by_dropout_in_training_only(batch):
    model = lipnet.SpeechEncoder(width=4, bottleneck=4, dropout=0.5, dtype=jnp.float32)
    params = jax.jit(model.init, static_argnums=2)(jax.random.key(0), batch["mel"], True)
    hear = jax.jit(model.apply, static_argnums=2)
    first = hear(params, batch["mel"], False, rngs={"dropout": jax.random.key(1)})
    second = hear(params, batch["mel"], False, rngs={"dropout": jax.random.key(2)})
    assert jnp.abs(first - second).max() > 0
    np.testing.assert_array_equal(
        hear(params, batch["mel"], True), hear(params, batch["mel"], True)
    )


def test_the_image_and_the_movement_are_of_one_sound_code(tiny, batch):
    model, params = tiny
    image, movement = model.apply(params, batch["mel"], batch["identity"])
    sound = model.apply(params, batch["mel"], method="hear")
    assert sound.shape == (4, 4)
    drawn = model.apply(params, sound, batch["identity"], method="draw")
    np.testing.assert_allclose(drawn, image, atol=1e-6)
    np.testing.assert_allclose(model.apply(params, sound, method="move"), movement, atol=1e-6)
    halfway = model.apply(params, 0.5 * (sound[:1] + sound[1:2]), method="move")
    np.testing.assert_allclose(halfway[0], movement[:2].mean(0), atol=1e-5)  # linear


def test_a_frame_is_heard_by_the_ear_that_is_deaf_to_it_and_a_new_sound_by_all(batch):
    model = lipnet.LipNet(width=8, bottleneck=4, dropout=0.0, ears=3)
    params = model.init(jax.random.key(0), batch["mel"], method="hear_each")  # no decoder
    each = model.apply(params, batch["mel"], method="hear_each")
    assert each.shape == (3, 4, 4) and jnp.abs(each[0] - each[1]).max() > 0.01
    deaf = jnp.array([2, 0, -1, 1])
    heard = model.apply(params, batch["mel"], True, deaf, method="hear")
    expected = [each[2, 0], each[0, 1], each[:, 2].mean(0), each[1, 3]]
    np.testing.assert_allclose(heard, jnp.stack(expected), atol=1e-6)
    everyone = model.apply(params, batch["mel"], method="hear")
    np.testing.assert_allclose(everyone, each.mean(0), atol=1e-6)


def test_the_moment_that_is_drawn_counts_most_and_its_surroundings_alike():
    weights = np.asarray(lipnet.focus(40))
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-6)
    assert weights[[19, 20]].min() == weights.max() > 0.99 and weights[0] < 0.2


def test_silence_is_faint_whatever_was_heard_and_differs_by_key(batch):
    quiet = lipnet.silence(jax.random.key(0), batch["mel"])
    assert quiet.shape == batch["mel"].shape and quiet.min() >= -4 and quiet.mean() < -3
    assert jnp.abs(quiet - lipnet.silence(jax.random.key(1), batch["mel"])).max() > 0.1


def test_it_learns_four_fixed_faces(tiny, batch):
    model, params = tiny
    weight = jnp.ones((1, 96, 96, 1))
    optimiser = optax.adam(1e-2)
    state = optimiser.init(params)

    def loss(p):
        image, _ = model.apply(p, batch["mel"], batch["identity"])
        return lipnet.lip_loss(image, batch["face"], weight)

    @jax.jit
    def step(p, s):
        value, gradient = jax.value_and_grad(loss)(p)
        updates, s = optimiser.update(gradient, s)
        return optax.apply_updates(p, updates), s, value, optax.tree.norm(gradient)

    losses = []
    for _ in range(100):
        params, state, value, norm = step(params, state)
        assert np.isfinite(norm)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
