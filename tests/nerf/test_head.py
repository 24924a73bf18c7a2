"""Rays, guides and one whole head."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d import camera as cameras
from t3d import codes
from t3d.camera import Camera
from t3d.nerf import rays as ray_functions
from t3d.nerf.field import Field
from t3d.nerf.head import Head, View, capacity_of
from t3d.nerf.rays import Guide

FIELD = Field(width=8, depth=2, features=4, encoding="fourier", octaves=2)
HEAD = Head(FIELD, size=16, samples=4, frames=3, latent=2, capacity=64)


def view(active: np.ndarray) -> View:
    batch = len(active)
    pose = cameras.head_pose(np.zeros((batch, 3), np.float32), np.tile([0, 0, 60.0], (batch, 1)))
    guide = Guide(
        near=jnp.full((batch, 64), 55.0),
        far=jnp.full((batch, 64), 65.0),
        offset=jnp.zeros((batch, 64, 3)),
        active=jnp.asarray(active),
    )
    intrinsics = jnp.tile(jnp.array([2.0, 2.0, 0.5, 0.5]), (batch, 1))
    return View(cameras.recorded(intrinsics), jnp.asarray(pose, jnp.float32), guide)


@pytest.fixture(scope="module")
def params():
    return HEAD.init(jax.random.key(0), codes.zeros((1,)), view(np.ones((1, 64), bool)))


def test_head_rays_are_the_worlds_rays_seen_from_the_head():
    camera = cameras.recorded(jnp.array([2.0, 2.0, 0.5, 0.5]))
    pose = jnp.asarray(
        cameras.head_pose(np.array([0.1, 0.4, -0.2]), np.array([1.0, 2.0, 60.0])), jnp.float32
    )
    origin, direction = ray_functions.head_rays(camera, pose, 4)
    back = cameras.transform(pose, origin + 50.0 * direction)
    expected = 50.0 * cameras.rays(camera, 4)[1]
    np.testing.assert_allclose(back, expected, atol=1e-3)


def test_active_rays_come_first_and_in_image_order():
    active = jnp.array([[False, True, False, True, True]])
    np.testing.assert_array_equal(ray_functions.select(active, 4), [[1, 3, 4, 0]])


def test_samples_lie_in_their_intervals_and_carry_the_offset():
    guide = Guide(jnp.array([2.0]), jnp.array([4.0]), jnp.array([[1.0, 0, 0]]), jnp.array([True]))
    for place in (None, jax.random.uniform(jax.random.key(0), (1, 4))):
        out = ray_functions.sample(jnp.zeros(3), jnp.array([[0.0, 0, 1.0]]), guide, 4, place)
        depth = out.points[0, :, 2]
        assert ((depth >= out.edges[0, :-1]) & (depth <= out.edges[0, 1:])).all()
        np.testing.assert_allclose(out.points[0, :, 0], 1.0)


def test_leaving_inactive_rays_out_changes_no_pixel(params):
    active = np.zeros((2, 64), bool)
    active[0, 10:20] = active[1, 30:33] = True
    codes_ = codes.zeros((2,))
    whole = HEAD.apply(params, codes_, view(active))
    few = HEAD.clone(capacity=16).apply(params, codes_, view(active))
    key = jax.random.key(0)  # jitter: the same whatever the capacity
    jittered = [
        HEAD.clone(capacity=capacity).apply(params, codes_, view(active), None, key).alpha
        for capacity in (64, 16)
    ]
    np.testing.assert_allclose(*jittered, atol=1e-6)
    assert np.abs(jittered[0] - whole.alpha).max() > 1e-5
    np.testing.assert_allclose(whole.image, few.image, atol=1e-6)
    np.testing.assert_allclose(whole.alpha, few.alpha, atol=1e-6)
    assert (np.asarray(few.alpha).reshape(2, 64)[~active] == 0).all()
    assert (np.asarray(few.alpha).reshape(2, 64)[active] > 0).all()


def test_turning_head_and_camera_together_changes_nothing(params):
    still = view(np.ones((1, 64), bool))
    turn = cameras.rigid(
        cameras.rotation_matrix(np.array([0.2, -0.5, 0.1], np.float32)), np.array([3.0, -2.0, 8.0])
    ).astype(np.float32)
    moved = View(
        Camera(still.camera.intrinsics, turn @ still.camera.camera_to_world),
        turn @ still.head_to_world,
        still.guide,
    )
    a = HEAD.apply(params, codes.zeros((1,)), still).image
    b = HEAD.apply(params, codes.zeros((1,)), moved).image
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("remat", ["none", "all"])
def test_pieces_and_recomputing_change_no_pixel_and_no_gradient(params, remat):
    active = np.random.default_rng(0).uniform(size=(2, 64)) < 0.6
    codes_, key = codes.zeros((2,)), jax.random.key(1)

    @partial(jax.jit, static_argnums=1)
    @partial(jax.grad, has_aux=True)
    def step(params, head):
        seen = head.apply(params, codes_, view(active), None, key)
        return (seen.image**2).sum() + seen.depth.sum(), seen

    want, whole = step(params, HEAD)
    small = HEAD.clone(chunk=40, remat=remat)  # of 512 points: 16 pieces
    found, pieces = step(params, small)
    np.testing.assert_allclose(pieces.image, whole.image, atol=1e-6)
    np.testing.assert_allclose(pieces.depth, whole.depth, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    every = view(np.ones((1, 64), bool))
    drawn = jax.eval_shape(small.init, jax.random.key(0), codes.zeros((1,)), every)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)


def test_capacity_holds_the_active_rays_in_few_sizes():
    def active(count):
        return np.arange(64)[None] < np.array([[count], [1]])

    assert [capacity_of(active(n)) for n in (1, 8, 9, 63, 64)] == [8, 8, 16, 64, 64]
    assert capacity_of(np.zeros((2, 64), bool)) == 8  # a program of no rays there is none


def test_each_speaker_is_drawn_with_the_mean_of_its_own_per_frame_codes(params):
    latents = np.array([[1.0, 0.0], [0.0, 0.0], [-0.5, 2.0]], np.float32)
    changed = {"params": params["params"] | {"latents": jnp.asarray(latents)}}
    rows = jnp.array([[0, 2], [2, 3], [0, 3], [1, 2]])
    means = HEAD.apply(changed, None, 4, rows, method="latent_of")
    np.testing.assert_allclose(means, [[1, 0], [-0.5, 2], [0.25, 1], [0, 0]])


def test_the_mean_of_the_per_frame_codes_counts_trained_rows_and_moves_none(params):
    latents = np.zeros((3, 2), np.float32)
    latents[1] = [0.5, -1.0]
    changed = {"params": params["params"] | {"latents": jnp.asarray(latents)}}
    mean = HEAD.apply(changed, None, 2, method="latent_of")
    np.testing.assert_array_equal(mean, [latents[1]] * 2)
    gradient = jax.grad(lambda p: HEAD.apply(p, None, 2, method="latent_of").sum())(changed)
    assert not np.any(gradient["params"]["latents"])
