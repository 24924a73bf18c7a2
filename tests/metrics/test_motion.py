"""Head angles and jitter, against heads that were turned and shaken by known amounts."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from t3d import camera as cameras
from t3d.metrics import lips, motion

FAR = 2000.0  # cm: perspective is weak there


@pytest.fixture
def head():
    """68 points about as deep as wide, cm, y up and z out of the face."""
    points = np.random.default_rng(0).normal(0, [4, 5, 2], (68, 3))
    points[36], points[45] = [-4.5, 3, 0], [4.5, 3, 0]
    return points


def _seen(head, rotvec, distance=FAR, camera_to_world=None):
    """[T, 68, 2] image positions of the head turned by rotvec [T, 3]."""
    poses = cameras.head_pose(rotvec, np.tile([1.0, 0.5, distance], (len(rotvec), 1)))
    place = np.eye(4) if camera_to_world is None else camera_to_world
    camera = cameras.Camera(np.array([distance / 20, distance / 20, 0.5, 0.5]), place)
    return cameras.project(camera, cameras.transform(poses, head))[0]


def test_angles_are_found_again(head):
    angles = np.array([[0, 0, 0], [25, 0, 0], [0, -15, 0], [0, 0, 10], [-30, 12, -8]], float)
    turned = Rotation.from_euler("YXZ", angles, degrees=True).as_rotvec()
    np.testing.assert_allclose(motion.head_pose(_seen(head, turned), head), angles, atol=0.1)


def test_a_head_seen_from_a_camera_moved_round_it_has_that_yaw_and_pitch(head):
    still = np.zeros((1, 3))
    recorded = cameras.recorded(np.array([1.0, 1.0, 0.5, 0.5]))
    for yaw, pitch in ((20.0, 0.0), (-20.0, 0.0), (0.0, 15.0)):
        view = cameras.orbit(recorded, np.array([1.0, 0.5, FAR]), yaw, pitch).camera_to_world
        found = motion.head_pose(_seen(head, still, camera_to_world=view), head)
        np.testing.assert_allclose(found, [[yaw, pitch, 0.0]], atol=0.2)


def test_angles_know_no_place_size_or_moving_mouth(head):
    seen = _seen(head, np.array([[0.1, 0.3, -0.05]]))
    talking = 640 * seen + [30, -70]
    talking[:, 48:] += np.random.default_rng(1).normal(0, 9, (20, 2))
    np.testing.assert_allclose(
        motion.head_pose(talking, 3.0 * head + 7.0), motion.head_pose(seen, head), atol=1e-9
    )


def test_noisy_landmarks_still_give_the_angles(head):
    rng = np.random.default_rng(2)
    turned = np.tile(np.radians([0, 20, 0]), (400, 1))
    noise = 0.01 * lips.eye_distance(_seen(head, turned))[0]
    found = motion.head_pose(_seen(head, turned) + rng.normal(0, noise, (400, 68, 2)), head)
    np.testing.assert_allclose(found.mean(0), [20, 0, 0], atol=0.3)
    assert found.std(0).max() < 3.0


def test_a_frame_without_a_face_has_no_angles(head):
    seen = _seen(head, np.zeros((3, 3)))
    seen[1] = np.nan
    found = motion.head_pose(seen, head)
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
    assert np.isnan(motion.head_pose(seen * np.nan, head)).all()


def test_steady_motion_is_no_jitter(head):
    seen = np.tile(head[:, :2], (6, 1, 1)) + np.arange(6)[:, None, None] * [0.3, -0.1]
    np.testing.assert_allclose(motion.jitter(seen)[1:-1], 0.0, atol=1e-9)
    angles = np.arange(6)[:, None] * np.array([1.0, -0.5, 0.2])
    np.testing.assert_allclose(motion.pose_jitter(angles)[1:-1], 0.0, atol=1e-12)


def test_one_frame_out_of_place_is_measured_in_percent_of_the_eye_distance(head):
    seen = np.tile(head[:, :2], (7, 1, 1))
    seen[3] += [0.09, 0.0]  # 1 % of the eye distance
    np.testing.assert_allclose(motion.jitter(seen), [np.nan, 0, 1, 2, 1, 0, np.nan], atol=1e-9)
    np.testing.assert_allclose(motion.jitter(50 * seen), motion.jitter(seen))
    seen[:, 48:] += np.random.default_rng(3).normal(size=(7, 20, 2))
    assert motion.jitter(seen)[2] == pytest.approx(1)


def test_one_frame_turned_out_of_place_is_measured_in_degrees():
    angles = np.zeros((5, 3))
    angles[2] = [3.0, 0.0, 4.0]
    np.testing.assert_allclose(motion.pose_jitter(angles), [np.nan, 5, 10, 5, np.nan])


def test_frames_beside_a_lost_face_have_no_jitter(head):
    seen = np.tile(head[:, :2], (8, 1, 1))
    seen[3] = np.nan
    expected = [np.nan, 0, np.nan, np.nan, np.nan, 0, 0, np.nan]
    np.testing.assert_allclose(motion.jitter(seen), expected, atol=1e-9)
    assert np.isnan(motion.jitter(seen * np.nan)).all()
    for short in (0, 1, 2):
        assert np.isnan(motion.jitter(seen[:short])).all()
