"""What is before a mouth is told from what a mouth does, on colours that are made by hand."""

import numpy as np
import pytest

from t3d.prior import occlusion

FRAMES, VERTICES = 60, 36
SKIN, LIPS, SLIT = (0.7, 0.5, 0.42), (0.6, 0.3, 0.3), (0.25, 0.12, 0.1)
AWAY = slice(20, 29)


@pytest.fixture
def mouth():
    """Skin, lips and the slit between them; the slit shows teeth at times, the light changes."""
    rng = np.random.default_rng(0)
    part = np.repeat([0, 1, 2], [18, 14, 4])
    colours = np.tile(np.array([SKIN, LIPS, SLIT])[part], (FRAMES, 1, 1))
    talking = rng.random(FRAMES) < 0.3
    colours[np.ix_(talking, part == 2)] = 0.8
    exposure = np.exp(0.3 * np.sin(np.arange(FRAMES) / 9))[:, None, None] * 0.8
    tint = 1 + 0.1 * np.sin(np.arange(FRAMES) / 13)[:, None, None] * [1, 0, -1]
    grain = 1 + rng.normal(0, 0.04, colours.shape)
    return np.clip(colours * exposure * tint * grain, 0, 1)


def seen(colours):
    return np.ones(colours.shape[:2], bool)


def ribs(vertices):
    """The skin of fingers: bright and dark by turns."""
    return np.array(SKIN) * (0.85 + 0.15 * np.sin(np.arange(vertices) * 2.1))[:, None]


COVERS = {"black": 0.03, "paper": 0.95, "skin": SKIN, "fingers": ribs(VERTICES)}


@pytest.mark.parametrize("cover", COVERS)
def test_what_is_before_the_mouth_is_told_in_its_frames_and_in_no_other(mouth, cover):
    mouth[AWAY] = COVERS[cover]
    found = occlusion.hidden(mouth, seen(mouth))
    np.testing.assert_array_equal(np.flatnonzero(found), np.arange(FRAMES)[AWAY])


def test_talking_in_changing_light_hides_nothing(mouth):
    assert not occlusion.hidden(mouth, seen(mouth)).any()


def test_exposure_and_tint_of_a_frame_do_not_matter(mouth):
    mouth[AWAY] = SKIN
    lit = mouth * np.random.default_rng(1).uniform(0.5, 1.0, (FRAMES, 1, 3))
    expected = occlusion.hidden(mouth, seen(mouth))
    np.testing.assert_array_equal(occlusion.hidden(lit, seen(lit)), expected)


def test_a_mouth_that_is_turned_away_or_in_no_frame_is_not_judged(mouth):
    mouth[AWAY] = SKIN
    visible = seen(mouth)
    visible[AWAY, 10:] = False
    assert not occlusion.hidden(mouth, visible).any()
    assert not occlusion.hidden(mouth, np.zeros_like(visible)).any()


def test_frames_that_are_not_seen_have_no_say_in_what_is_usual(mouth):
    cover = np.repeat([SKIN], VERTICES, 0)
    lost = np.concatenate([mouth[:20], np.tile(cover, (40, 1, 1))])
    visible = seen(lost)
    visible[22:] = False
    assert np.flatnonzero(occlusion.hidden(lost, visible)).tolist() == [20, 21]


def test_a_face_without_contrast_is_never_said_to_be_hidden():
    rng = np.random.default_rng(2)
    plain = np.clip(np.array(SKIN) * (1 + rng.normal(0, 0.04, (FRAMES, VERTICES, 3))), 0, 1)
    assert not occlusion.hidden(plain, seen(plain)).any()
