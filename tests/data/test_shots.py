"""Cuts are told from fast heads, flashes and missing pictures; whose face it is, by place."""

import numpy as np
import pytest

from t3d.data import shots

FRAMES = 60


def scene(seed: int) -> np.ndarray:
    """A picture uint8 [96, 128, 3] of soft blobs, darker than white by a third."""
    rng = np.random.default_rng(seed)
    rough = rng.uniform(20, 170, (6, 8, 3))
    return np.kron(rough, np.ones((16, 16, 1))).astype(np.uint8)


def with_head(picture: np.ndarray, x: int) -> np.ndarray:
    out = picture.copy()
    out[30:80, x : x + 36] = (210, 160, 140)
    return out


def face(x, y=50.0, tall=40.0) -> np.ndarray:
    """68 landmarks: eyes about (x, y), `tall` from the brows to the chin."""
    points = np.zeros((68, 2)) + [x, y]
    points[17:27, 1] = y - 0.2 * tall
    points[8, 1] = y + 0.8 * tall
    return points


def find(pictures, points=None, found=None):
    thumbs = np.stack([shots.thumbnail(p) for p in pictures])
    points = np.tile(face(60.0), (len(thumbs), 1, 1)) if points is None else points
    found = np.ones(len(thumbs), bool) if found is None else found
    return shots.find(thumbs, np.where(found[:, None, None], points, np.nan), found)


def test_a_cut_begins_a_shot_and_a_cut_back_a_third_of_the_first_scene():
    one, two = scene(0), scene(1)
    result = find([one] * 20 + [two] * 20 + [one] * 20)
    assert result.shot.dtype == np.int32
    np.testing.assert_array_equal(result.shot, np.repeat([0, 1, 2], 20))
    np.testing.assert_array_equal(result.scene, np.repeat([0, 1, 0], 20))
    assert not result.odd.any()


def test_a_head_that_shakes_fast_is_no_cut():
    place = 46 + 40 * np.sin(1.9 * np.arange(FRAMES))
    points = np.stack([face(x + 18) for x in place])
    assert np.abs(np.diff(place)).max() > 50
    assert find([with_head(scene(0), int(x)) for x in place], points).shot.max() == 0


def test_a_moving_camera_is_no_cut():
    wide = np.concatenate([scene(k) for k in range(4)], 1)
    assert find([wide[:, 6 * k : 6 * k + 128] for k in range(FRAMES)]).shot.max() == 0


@pytest.mark.parametrize("light", [0.25, 1.5])
def test_a_change_of_light_is_no_cut(light):
    bright = np.clip(scene(0) * light, 0, 255).astype(np.uint8)
    pictures = [scene(0)] * 30 + [bright] * 2 + [scene(0)] * 28
    assert find(pictures).shot.max() == 0


@pytest.mark.parametrize("length", [1, 3, 20])
def test_pictures_that_are_missing_for_a_while_are_odd_and_no_shot(length):
    pictures, found = [scene(0)] * FRAMES, np.ones(FRAMES, bool)
    pictures[30 : 30 + length] = [np.full_like(scene(0), 128)] * length
    found[30 : 30 + length] = False
    result = find(pictures, found=found)
    assert result.shot.max() == 0
    np.testing.assert_array_equal(result.odd, ~found)


def test_pictures_without_a_face_for_more_than_a_second_are_a_shot():
    found = np.ones(3 * FRAMES, bool)
    found[60:100] = False
    result = find([scene(0)] * 60 + [scene(1)] * 40 + [scene(0)] * 80, found=found)
    assert result.shot.max() == 2 and not result.odd.any()


def test_a_jump_cut_within_a_scene_is_a_cut():
    place = np.repeat([30, 70], 30)
    points = np.stack([face(x + 18) for x in place])
    result = find([with_head(scene(0), x) for x in place], points)
    np.testing.assert_array_equal(result.shot, np.repeat([0, 1], 30))
    assert result.scene.max() == 0


def chosen(points, found=None, pictures=None) -> np.ndarray:
    found = np.ones(len(points), bool) if found is None else found
    result = find(pictures or [scene(0)] * len(points), points, found)
    return shots.speaker_frames(result, points, found)


def test_the_scene_with_most_frames_of_a_face_is_the_speakers():
    pictures = [scene(0)] * 20 + [scene(1)] * 35 + [scene(0)] * 10
    kept = chosen(np.tile(face(60.0), (65, 1, 1)), pictures=pictures)
    np.testing.assert_array_equal(kept, np.repeat([False, True, False], [20, 35, 10]))


@pytest.mark.parametrize("other", [face(160.0), face(60.0, tall=20.0)])
def test_a_face_elsewhere_or_of_another_size_is_not_the_speakers(other):
    points = np.concatenate([np.tile(face(60.0), (40, 1, 1)), np.tile(other, (15, 1, 1))])
    points += np.random.default_rng(0).normal(size=points.shape) * 0.2
    found = np.ones(55, bool)
    found[38:40] = False
    np.testing.assert_array_equal(chosen(points, found), np.arange(55) < 38)


def test_a_head_that_leans_away_and_back_is_kept():
    place = 60 + 80 * np.exp(-(((np.arange(80) - 40) / 8) ** 2))
    assert chosen(np.stack([face(x) for x in place])).all()
