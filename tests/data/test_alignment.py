"""The sound's offset against the lips is measured, with its sign, and not invented."""

import numpy as np
import pytest

from t3d.data import landmarks, video
from t3d.data.alignment import sound_offset
from t3d.metrics import lips

SECOND = video.RATE
STEP = video.RATE // video.FPS


def babble(frames=750, seed=0):
    """A mouth's opening [T] and a sound that is as loud as the mouth is open."""
    rng = np.random.default_rng(seed)
    opening = np.convolve(rng.uniform(0, 1, frames + 8) ** 2, np.hanning(7), "same")[4:-4]
    loud = np.interp(np.arange(frames * STEP) / STEP, np.arange(frames), opening / opening.max())
    tone = sum(np.sin(2 * np.pi * f * np.arange(len(loud)) / SECOND) for f in (400, 900, 1500))
    return opening, 0.1 * loud * tone + 1e-3 * rng.normal(size=len(loud))


@pytest.mark.parametrize("late", [-9, -3, 0, 4, 12])
def test_late_sound_is_a_negative_offset(late):
    opening, sound = babble()
    offset = sound_offset(opening, np.roll(sound, late * STEP))
    assert offset.certain and abs(offset.frames + late) <= 1


def test_gaps_in_the_face_do_not_matter():
    opening, sound = babble()
    opening[40:60] = opening[120] = np.nan
    offset = sound_offset(opening, np.roll(sound, 5 * STEP))
    assert offset.certain and abs(offset.frames + 5) <= 1


def test_sound_of_another_mouth_has_no_certain_offset():
    for seed in range(5):
        assert not sound_offset(babble(seed=seed)[0], babble(seed=seed + 50)[1]).certain


def test_stillness_silence_and_missing_faces_have_no_certain_offset():
    opening, sound = babble()
    assert not sound_offset(np.full(750, 0.1), sound).certain
    assert not sound_offset(opening, np.zeros_like(sound)).certain
    assert not sound_offset(np.full(750, np.nan), sound).certain
    assert not sound_offset(opening[:40], sound[: 40 * STEP]).certain
    assert not sound_offset(opening, sound[:100]).certain


@pytest.fixture(scope="module")
def speech(clips, assets):
    path = clips / "cnn2_25fps.mp4"
    if not path.exists():
        pytest.skip(f"{path} is missing: set T3D_CLIPS to the folder that has it")
    frames = (frame for _, frame in zip(range(300), video.read_frames(path)))
    opening = lips.mouth_opening(landmarks.detect(frames).points68)
    return opening, video.read_audio(path)[: 300 * STEP]


@pytest.mark.parametrize("late", [-7, 0, 2, 5])
def test_a_real_clip_whose_sound_is_shifted_says_by_how_much(speech, late):
    opening, sound = speech
    offset = sound_offset(opening, np.roll(sound, late * STEP))
    assert offset.certain and abs(offset.frames + late) <= 1


def test_a_real_clip_with_its_sound_reversed_is_not_certain(speech):
    assert not sound_offset(speech[0], speech[1][::-1]).certain
