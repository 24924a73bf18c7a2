"""Silhouettes, depth and the similarity between two worlds, against constructed ones."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from t3d.metrics import views


def test_iou_of_half_overlapping_squares_is_a_third():
    a, b = np.zeros((2, 3, 8, 8))
    a[:, 2:6, 0:4], b[:, 2:6, 2:6] = 1, 0.9
    np.testing.assert_allclose(views.mask_iou(a, b), 1 / 3)
    np.testing.assert_allclose(views.mask_iou(a > 0, a), 1.0)
    assert views.mask_iou(a[0], 1 - a[0]) == 0.0
    assert np.isnan(views.mask_iou(0 * a[0], 0 * a[0]))


def test_depth_is_compared_where_both_see_and_the_mask_asks():
    truth = np.full((2, 4, 4), 60.0)
    depth = truth + 2.0
    depth[1, :2] = 57.0
    truth[:, 0] = np.inf
    depth[0, 3] = np.inf
    mask = np.ones((2, 4, 4))
    mask[:, :, 3] = 0
    depth[:, :, 3] = 1000.0
    error, seen = views.depth_error(depth, truth, mask)
    np.testing.assert_allclose(error, [2.0, (3 + 2 + 2) / 3])
    np.testing.assert_allclose(seen, [2 / 3, 1.0])


def test_depth_that_nobody_sees_has_no_error():
    blind = np.full((4, 4), np.inf)
    error, seen = views.depth_error(blind, np.ones((4, 4)), np.ones((4, 4)))
    assert np.isnan(error) and seen == 0.0
    error, seen = views.depth_error(np.ones((4, 4)), blind, np.ones((4, 4)))
    assert np.isnan(error) and np.isnan(seen)


def test_similarity_in_space_is_found_again():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(68, 3))
    turn = Rotation.from_rotvec([0.4, -1.9, 0.7]).as_matrix()
    target = 0.83 * source @ turn.T + [4.0, -2.0, 60.0]
    scale, rotation, shift = views.similarity3(source, target)
    assert scale == pytest.approx(0.83)
    np.testing.assert_allclose(rotation, turn, atol=1e-12)
    np.testing.assert_allclose(shift, [4.0, -2.0, 60.0])


def test_a_mirrored_or_flat_face_gets_a_rotation_and_no_mirror():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(20, 3))
    _, rotation, _ = views.similarity3(source, source * [-1, 1, 1])
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    flat = source * [1, 1, 0]
    turn = Rotation.from_rotvec([0.0, 0.5, 0.0]).as_matrix()
    np.testing.assert_allclose(views.similarity3(flat, flat @ turn.T)[1], turn, atol=1e-9)


def test_no_other_similarity_fits_noisy_points_better():
    rng = np.random.default_rng(2)
    source = rng.normal(size=(30, 3))
    target = 1.3 * source + 0.2 * rng.normal(size=(30, 3))
    scale, rotation, shift = views.similarity3(source, target)

    def off(scale, rotation, shift):
        return np.square(scale * source @ rotation.T + shift - target).sum()

    best = off(scale, rotation, shift)
    for _ in range(50):
        turn = Rotation.from_rotvec(0.02 * rng.normal(size=3)).as_matrix()
        step = 0.02 * rng.normal(size=4)
        assert off(scale + step[0], turn @ rotation, shift + step[1:]) > best
