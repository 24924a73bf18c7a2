"""The camera convention, against OpenCV's definitions written out and SciPy's rotations."""

import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from t3d import camera as cameras


def test_rotations_equal_scipys_also_near_zero():
    rng = np.random.default_rng(0)
    for scale in (1e-9, 1e-4, 1e-2, 1.0, 3.0):
        vectors = rng.normal(size=(5, 3)) * scale
        expected = Rotation.from_rotvec(vectors).as_matrix()
        np.testing.assert_allclose(cameras.rotation_matrix(vectors), expected, atol=1e-6)


def test_a_ray_through_a_pixel_projects_back_to_its_centre():
    camera = cameras.orbit(
        cameras.recorded(np.array([2.0, 2.1, 0.45, 0.55], np.float32)), [0, 0, 70.0], 25.0, -10.0
    )
    origin, direction = cameras.rays(camera, 4)
    for depth in (10.0, 80.0):
        uv, found = cameras.project(camera, origin + depth * direction)
        np.testing.assert_allclose(found, depth, rtol=1e-5)
        rows, columns = np.divmod(np.arange(16), 4)
        np.testing.assert_allclose(uv[:, 0], (columns + 0.5) / 4, atol=1e-5)
        np.testing.assert_allclose(uv[:, 1], (rows + 0.5) / 4, atol=1e-5)


def test_a_frontal_head_looks_at_the_camera_with_its_top_up():
    pose = cameras.head_pose(np.zeros(3), np.array([0.0, 0.0, 60.0]))
    nose, top, left = cameras.transform(pose, np.array([[0, 0, 9.0], [0, 12.0, 0], [7.0, 0, 0]]))
    assert nose[2] == 51 and top[1] == -12 and left[0] == 7


def test_orbit_keeps_the_pivot_and_the_distance_and_moves_right_and_up():
    camera = cameras.recorded(np.array([2.0, 2.0, 0.5, 0.5], np.float32))
    pivot = np.array([1.0, -2.0, 65.0], np.float32)
    for yaw, pitch in ((30, 0), (0, 20), (-40, 15)):
        moved = cameras.orbit(camera, pivot, yaw, pitch)
        before = cameras.project(camera, pivot[None])
        after = cameras.project(moved, pivot[None])
        np.testing.assert_allclose(before[0], after[0], atol=1e-5)
        np.testing.assert_allclose(before[1], after[1], rtol=1e-5)
        place = moved.camera_to_world[:3, 3]
        assert np.sign(round(place[0], 3)) == np.sign(yaw)
        assert -np.sign(round(place[1], 3)) == np.sign(pitch)


def test_inverse_undoes_a_motion_and_jax_agrees_with_numpy():
    pose = cameras.head_pose(
        np.array([0.3, -0.2, 0.9], np.float32), np.array([1, 2, 3], np.float32)
    )
    np.testing.assert_allclose(cameras.inverse(pose) @ pose, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(cameras.inverse(jnp.asarray(pose)), cameras.inverse(pose), atol=1e-6)
