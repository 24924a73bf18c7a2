"""LMD-79, mouth opening and its correlation."""

import numpy as np
import pytest

from t3d.metrics import lips


@pytest.fixture
def face():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 20, (6, 68, 2)) + 100
    points[:, 36], points[:, 45] = (60.0, 80.0), (140.0, 80.0)
    return points, rng.normal(0, 10, (6, 79, 2)) + [100, 130]


def _turned(points, degrees, scale, shift):
    a = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return points @ matrix.T + shift


def test_mouth_opening_is_the_gap_over_the_eye_distance(face):
    points = face[0].copy()
    points[:, 62], points[:, 66] = (100.0, 120.0), (100.0, 128.0)
    np.testing.assert_allclose(lips.mouth_opening(points), 0.1)


def test_mouth_opening_does_not_depend_on_size_or_turn(face):
    turned = _turned(face[0], 25, 1.7, (3, -8))
    np.testing.assert_allclose(lips.mouth_opening(turned), lips.mouth_opening(face[0]))


def test_similarity_is_found_again(face):
    source = face[0][:, lips.RIGID]
    target = _turned(source, -14, 0.8, (11, 5))
    matrix, shift = lips.similarity(source, target)
    np.testing.assert_allclose(source @ np.swapaxes(matrix, -1, -2) + shift[:, None], target)


def test_a_moved_head_has_no_aligned_distance_and_a_raw_one(face):
    points, mouth = face
    moved = [_turned(p, 10, 1.1, (5, 2)) for p in face]
    distance = lips.lmd(*(moved[0], points, moved[1], mouth))
    np.testing.assert_allclose(distance.aligned, 0.0, atol=1e-9)
    assert (distance.pixels > 1).all()


def test_a_lip_shift_is_measured_in_percent_of_the_eye_distance(face):
    points, mouth = face
    distance = lips.lmd(points, points, mouth + [3.0, 4.0], mouth)
    np.testing.assert_allclose(distance.pixels, 5.0)
    np.testing.assert_allclose(distance.aligned, 100 * 5 / 80)


def test_a_frame_without_a_face_scores_worst_and_is_kept(face):
    points, mouth = face
    lost, lost_mouth = points.copy(), mouth + 1.0
    lost[2], lost_mouth[2] = np.nan, np.nan
    distance = lips.lmd(lost, points, lost_mouth, mouth)
    assert distance.aligned[2] == 100.0 == distance.aligned.max()
    assert distance.pixels[2] == 80.0
    wild = lost_mouth.copy()
    wild[0] += 500.0
    distance = lips.lmd(lost, points, wild, mouth)
    assert distance.aligned[2] == distance.aligned[0] > 100.0


def test_all_frames_lost_is_the_penalty(face):
    points, mouth = face
    distance = lips.lmd(points * np.nan, points, mouth * np.nan, mouth)
    np.testing.assert_allclose(distance.aligned, 100.0)


def test_a_true_frame_without_a_face_judges_nothing(face):
    points, mouth = face
    blind = points.copy()
    blind[1] = np.nan
    distance = lips.lmd(points, blind, mouth, mouth)
    assert np.isnan(distance.aligned[1]) and np.isfinite(np.delete(distance.aligned, 1)).all()


def test_pearson_is_numpys_and_zero_for_a_still_mouth():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    np.testing.assert_allclose(lips.pearson(a, b), np.corrcoef(a, b)[0, 1])
    assert lips.pearson(a, np.full(50, 0.3)) == 0.0


def test_lost_frames_count_against_the_rendered_mouth():
    truth = np.sin(np.arange(100) / 5.0)
    measured = truth.copy()
    measured[::4] = np.nan
    blind = truth.copy()
    blind[1] = np.nan
    filled = lips.pearson(*lips.against_truth(truth, measured))
    assert filled < 0.6
    known, kept = lips.against_truth(blind, truth)
    assert len(known) == 99 and lips.pearson(known, kept) == pytest.approx(1.0)
    assert lips.pearson(*lips.against_truth(truth, np.full(100, np.nan))) == pytest.approx(-1.0)
