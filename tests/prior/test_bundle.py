"""The equations of the bundle adjustment, against derivatives and solutions found otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d import camera as cameras
from t3d.prior import basis, bundle

T = 3


@pytest.fixture(scope="module")
def problem():
    """Frames of a turned, speaking head and landmarks near by, so noisy that none is an outlier."""
    rng = np.random.default_rng(0)
    bank = bundle.make_bank(basis.load("procedural"))
    count = bank.expression.shape[0]
    shared = bundle.Shared(jnp.asarray(0.3 * rng.normal(size=len(bank.shape))), jnp.float32(0.4))
    frames = bundle.Frames(
        jnp.asarray(cameras.rotation_matrix(0.3 * rng.normal(size=(T, 3)))),
        jnp.asarray([0.02, -0.03, 3.6] + 0.02 * rng.normal(size=(T, 3))),
        jnp.asarray(np.abs(rng.normal(size=(T, count)))),
    )
    normal = rng.normal(size=(T, 17, 2))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    points = (0.2 * rng.normal(size=(T, n, 2)) for n in (51, 79, 17))
    seen = bundle.Seen(*map(jnp.asarray, (*points, normal, np.ones(T), np.zeros((T, count)))))
    wide = (jnp.full(n, 1e3) for n in (51, 79, 17))
    rest = (jnp.full(count, 1e3), jnp.ones(len(bank.shape)), jnp.float32(1), jnp.float32(0.25))
    noise = bundle.Noise(*wide, jnp.float32(1e3), *rest)
    return jax.tree.map(jnp.float32, (bank, shared, frames, seen, noise))


def test_derivatives_are_those_of_the_residuals(problem):
    bank, shared, frames, seen, noise = problem
    with jax.default_matmul_precision("highest"):
        rows = bundle.linearise(bank, shared, frames, seen, noise, True)

        def by_frame(step):
            moved = bundle.moved(frames, jnp.broadcast_to(step, (T, len(step))))
            return bundle.linearise(bank, shared, moved, seen, noise, False).value

        def by_shared(step):
            other = bundle.Shared(shared.shape + step[:-1], shared.kappa + step[-1])
            return bundle.linearise(bank, other, frames, seen, noise, False).value

        for ours, function in ((rows.frame, by_frame), (rows.shared, by_shared)):
            true = jax.jacfwd(function)(jnp.zeros(ours.shape[-1]))
            np.testing.assert_allclose(ours, true, atol=1e-4 * np.abs(true).max())


def test_pixel_equations_are_those_of_the_colours_differences(problem):
    """On pictures whose colours are linear in the image point, Gauss-Newton's derivatives are
    exact: those of the squares that the step makes small."""
    bank, shared, frames, _, _ = problem
    rng = np.random.default_rng(4)
    count, size = 40, 6 + bank.expression.shape[0]
    rest, expression = bank.mean[:count], bank.expression[:, :count]
    ramp, known = rng.normal(size=(T, 3, 2)), rng.normal(size=(T, count, 3))
    weight = rng.uniform(size=(T, count))

    def residuals(step):
        moved = bundle.moved(frames, jnp.broadcast_to(step, (T, size)))
        uv = bundle._placed(rest, expression, shared.kappa, moved)[1]
        return (jnp.einsum("tvd,tcd->tvc", uv, ramp) - known) * jnp.sqrt(weight)[..., None]

    with jax.default_matmul_precision("highest"):
        rows = jax.jacfwd(residuals)(jnp.zeros(size)).reshape(T, -1, size)
        value = residuals(jnp.zeros(size)).reshape(T, -1)
        left = -value.reshape(T, count, 3) / np.sqrt(weight)[..., None]
        slope = np.broadcast_to(ramp[:, None], (T, count, 3, 2))
        given = jax.tree.map(jnp.float32, (left, slope, weight))
        matrix, side = bundle.pixel_equations(rest, expression, shared.kappa, frames, *given)
    true = np.einsum("trn,trm->tnm", rows, rows), -np.einsum("trn,tr->tn", rows, value)
    np.testing.assert_allclose(matrix, true[0], atol=1e-4 * np.abs(true[0]).max())
    np.testing.assert_allclose(side, true[1], atol=1e-4 * np.abs(true[1]).max())


def test_frames_that_were_not_found_have_no_residuals(problem):
    bank, shared, frames, seen, noise = problem
    lost = seen.replace(found=jnp.zeros(T))
    rows = bundle.linearise(bank, shared, frames, lost, noise, False)
    assert not rows.value.any() and not rows.frame.any()


def test_the_joined_step_is_that_of_the_whole_system_solved_at_once():
    rng = np.random.default_rng(1)
    count, size = 12, 4
    half = rng.normal(size=(count, size, size))
    matrix = half @ np.swapaxes(half, 1, 2) + 0.5 * np.eye(size)
    side, bend = rng.normal(size=(count, size)), rng.normal(size=(count - 2, size))
    stiffness = np.where(np.arange(count - 2)[:, None] == 5, 0.0, [1.0, 3.0, 0.1, 10.0])
    second = np.zeros((count - 2, count))
    for k in range(count - 2):
        second[k, k : k + 3] = [1, -2, 1]
    whole = np.zeros((count, size, count, size))
    for t in range(count):
        whole[t, :, t] = matrix[t]
    right = side.copy()
    for n in range(size):
        pull = second.T * stiffness[:, n]
        whole[:, n, :, n] += pull @ second
        right[:, n] -= pull @ bend[:, n]
    known = np.linalg.solve(whole.reshape(count * size, -1), right.reshape(-1))
    given = (jnp.float32(x) for x in (matrix, side, bend, stiffness))
    found = bundle.joined_step(*given)
    np.testing.assert_allclose(found, known.reshape(count, size), atol=1e-3)


def test_a_jaw_seen_from_the_side_is_met_at_its_silhouette():
    """The far cheek hides the jaw line: the landmark slides to what sticks out furthest."""
    bank = bundle.make_bank(basis.load("procedural"))
    shared = bundle.Shared(jnp.zeros(len(bank.shape)), jnp.float32(0.25))
    turn = cameras.rotation_matrix(np.array([[0, 0, 0], [0, 0.9, 0], [0, -0.9, 0]], np.float32))
    place = jnp.tile(jnp.float32([0, 0, 3.6]), (T, 1))
    frames = bundle.Frames(jnp.asarray(turn), place, jnp.zeros((T, bank.expression.shape[0])))
    _, uv = bundle._world(bank, shared, frames)
    for j, side in ((2, -1.0), (14, 1.0)):
        normal = jnp.tile(jnp.float32([side, 0]), (T, 17, 1))
        rows = bundle._chosen(bank, uv, normal)[:, bundle.FIXED :]
        own = bundle.FIXED + j * bank.candidates
        frontal, one, other = np.asarray(rows[:, j])
        assert frontal == own and own in (one, other) and max(one, other) > own
