import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t3d.speech import syncnet

WINDOW = (syncnet.MEL_STEPS, 80)


def embeddings(angles_deg):
    """Two-dimensional pairs at known angles, of any lengths."""
    angles = np.radians(np.array(angles_deg, np.float32))
    face = np.tile([[2.0, 0.0]], (len(angles), 1)).astype(np.float32)
    return face, 0.5 * np.stack([np.cos(angles), np.sin(angles)], -1)


def test_eq2_equals_its_closed_form_at_known_angles():
    face, audio = embeddings([0, 30, 60, 80])
    expected = -np.log(np.cos(np.radians([0, 30, 60, 80]))).mean()
    np.testing.assert_allclose(syncnet.lip_sync_loss(face, audio), expected, rtol=1e-5, atol=1e-6)


def test_eq2_equals_a_loop_over_pairs_written_from_the_paper():
    rng = np.random.default_rng(0)
    face, audio = rng.random((2, 7, 5)).astype(np.float32)
    eps = 1e-6
    terms = [
        -np.log(f @ a / max(np.linalg.norm(f) * np.linalg.norm(a), eps))
        for f, a in zip(face.astype(np.float64), audio.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(
        syncnet.lip_sync_loss(face, audio), sum(terms) / len(terms), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("face", "audio"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([1e-20, 0.0], [1.0, 0.0]),
        ([1e8, 0.0], [1e8, 0.0]),
    ],
)
def test_eq2_and_its_gradients_are_finite_at_zero_and_orthogonal_vectors(face, audio):
    value, gradients = jax.value_and_grad(syncnet.lip_sync_loss, argnums=(0, 1))(
        jnp.array([face]), jnp.array([audio])
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_eq2_gradient_pulls_orthogonal_embeddings_together():
    face, audio = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    gradient = jax.grad(syncnet.lip_sync_loss)(face, audio)
    assert syncnet.cosine(face - 1e-4 * gradient, audio)[0] > 0.0


def test_bce_equals_its_closed_form_and_weighs_both_classes_the_same():
    cosines = jnp.array([0.9, 0.2, 0.3, 0.4])
    labels = jnp.array([1.0, 0.0, 0.0, 0.0])
    expected = 0.5 * (-np.log(0.9) - np.mean(np.log([0.8, 0.7, 0.6])))
    np.testing.assert_allclose(syncnet.sync_bce(cosines, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("cosines", [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
def test_bce_is_finite_where_a_logarithm_would_not_be(cosines):
    value, gradient = jax.value_and_grad(syncnet.sync_bce)(
        jnp.array(cosines), jnp.array([1.0, 0.0])
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_contrast_equals_a_softmax_written_out_with_more_sounds_than_faces():
    rng = np.random.default_rng(2)
    face, sound = rng.random((3, 4)).astype(np.float32), rng.random((5, 4)).astype(np.float32)
    expected = 0.0
    similar = np.array(
        [[f @ a / np.linalg.norm(f) / np.linalg.norm(a) for a in sound] for f in face]
    )
    for i in range(3):
        expected -= np.log(np.exp(7 * similar[i, i]) / np.exp(7 * similar[i]).sum()) / 3
        expected -= np.log(np.exp(7 * similar[i, i]) / np.exp(7 * similar[:, i]).sum()) / 3
    np.testing.assert_allclose(syncnet.sync_contrast(face, sound, scale=7.0), expected, rtol=1e-4)


def test_contrast_of_constant_embeddings_is_chance_and_its_gradient_finite():
    face, sound = jnp.ones((4, 3)), jnp.ones((8, 3))
    value, gradient = jax.value_and_grad(syncnet.sync_contrast)(face, sound)
    np.testing.assert_allclose(value, np.log(8) + np.log(4), rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(1)
    faces = rng.random((4, 5, 96, 96, 3)).astype(np.float32)
    mel = rng.normal(size=(4, *WINDOW)).astype(np.float32)
    model = syncnet.SyncNet(width=8, dim=16, dropout=0.0)
    return model, jax.jit(model.init)(jax.random.key(0), faces, mel), faces, mel


def test_embeddings_have_unit_length_and_cosines_in_0_1(tiny):
    model, params, faces, mel = tiny
    face, audio = jax.jit(model.apply)(params, faces, mel)
    np.testing.assert_allclose(np.linalg.norm(face, axis=-1), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(audio, axis=-1), 1, rtol=1e-4)
    every_pair = syncnet.cosine(face[:, None], audio[None])
    assert (every_pair >= 0).all()
    assert (every_pair <= 1 + 1e-5).all()


def test_only_the_lower_half_of_a_face_is_looked_at(tiny):
    model, params, faces, mel = tiny
    other = faces.copy()
    other[:, :, :48] = 0.0
    np.testing.assert_array_equal(
        jax.jit(model.apply)(params, faces, mel)[0], jax.jit(model.apply)(params, other, mel)[0]
    )


def test_it_learns_which_of_four_fixed_pairs_belong_together(tiny):
    model, params, faces, mel = tiny

    def loss(p):
        face, audio = model.apply(p, faces, mel)
        return syncnet.sync_contrast(face, audio)

    optimiser = optax.adam(3e-3)
    state = optimiser.init(params)

    @jax.jit
    def step(p, s):
        value, gradient = jax.value_and_grad(loss)(p)
        updates, s = optimiser.update(gradient, s)
        return optax.apply_updates(p, updates), s, value, optax.tree.norm(gradient)

    losses = []
    for _ in range(60):
        params, state, value, norm = step(params, state)
        assert np.isfinite(norm)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]
