"""Sound that comes in pieces moves the face as the whole sound does."""

import numpy as np
import pytest

from t3d import render, stream
from t3d import run as runs
from t3d.errors import UserError
from t3d.speech import features


@pytest.fixture(scope="module")
def sound():
    rng = np.random.default_rng(0)
    return (0.1 * rng.normal(size=24_333)).astype(np.float32)


@pytest.fixture(scope="module")
def offline(untrained, sound):
    frames = render.frames_of(sound)
    speaker = untrained.speakers[0]
    return runs.motion_of(untrained, speaker, features.mel(sound), frames, speaker.voice)


@pytest.mark.parametrize("chunk", [stream.CHUNK, 1777, 100_000])
def test_chunks_of_any_length_give_the_offline_codes(untrained, sound, offline, chunk):
    heard = stream.Stream(untrained, untrained.speakers[0])
    given = [
        codes for at in range(0, len(sound), chunk) for codes in heard.push(sound[at:][:chunk])
    ]
    given += heard.finish()
    assert len(given) == len(offline.expression)
    assert np.abs(offline.expression).max() > 0.1
    for name in ("speech", "style", "expression"):
        ours = np.stack([getattr(codes, name) for codes in given])
        np.testing.assert_allclose(ours, getattr(offline, name), atol=1e-5)


def test_a_frame_waits_for_the_stated_look_ahead_and_not_for_longer(untrained, sound):
    heard = stream.Stream(untrained, untrained.speakers[0])
    needed = stream.look_ahead(untrained.config)
    came = []
    for end in range(stream.CHUNK, len(sound), stream.CHUNK):
        new = heard.push(sound[end - stream.CHUNK : end])
        came += [end / 16000] * len(new)
    waited = np.array(came) - np.arange(len(came)) / 25
    assert waited.max() <= needed + 0.04 + 0.0125 and waited.min() >= needed - 0.0125
    # What comes later than that changes nothing.
    frame, cut = 10, int((10 / 25 + needed) * 16000) + 200
    changed = sound.copy()
    changed[cut:] = 0.5
    whole = (features.mel(s) for s in (sound, changed))
    speaker = untrained.speakers[0]
    a, b = (runs.motion_of(untrained, speaker, mel, 20, speaker.voice) for mel in whole)
    np.testing.assert_array_equal(a.expression[frame], b.expression[frame])
    assert np.abs(a.expression[frame + 3] - b.expression[frame + 3]).max() > 0


def test_little_is_kept_of_long_sound(untrained):
    heard = stream.Stream(untrained, untrained.speakers[0])
    for _ in range(100):
        heard.push(np.zeros(stream.CHUNK, np.float32))
    assert len(heard._sound.kept) < 16_000 and len(heard._mel.kept) < 100
    assert len(heard._raw.kept) < 10


def test_the_shortest_sound_is_a_frame_and_none_is_none(untrained):
    heard = stream.Stream(untrained, untrained.speakers[0])
    assert stream.Stream(untrained, untrained.speakers[0]).finish() == []
    assert heard.push(np.zeros(100, np.float32)) == [] and len(heard.finish()) == 1


@pytest.mark.parametrize(
    "chunk", [np.zeros(640, np.int16), np.zeros((640, 2), np.float32), np.float32(0.5)]
)
def test_other_samples_than_it_takes_are_refused(untrained, chunk):
    heard = stream.Stream(untrained, untrained.speakers[0])
    with pytest.raises(UserError, match="give mono samples at 16 kHz, float"):
        heard.push(chunk)
    heard.push(np.zeros(640, np.float32))
    heard.finish()
    with pytest.raises(UserError, match="is finished"):
        heard.push(np.zeros(640, np.float32))
