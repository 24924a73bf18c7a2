"""The networks hear what the peers' networks heard."""

import numpy as np
import pytest
from scipy import interpolate

from t3d.speech import features


@pytest.mark.parametrize("sound", ["chirp", "speech"])
def test_mel_is_wav2lips(golden, sound):
    numbers = golden("wav2lip_mel")
    ours = features.mel(numbers[f"in_{sound}_int16"] / 32768)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, numbers[f"out_{sound}_mel"].T, atol=1e-4)


def test_mel_filters_are_librosas():
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    np.testing.assert_allclose(features._mel_filters(), expected, atol=1e-7)


def test_mfcc_is_syncnet_pythons(golden):
    numbers = golden("speech_mfcc")
    ours = features.mfcc(numbers["in_speech_int16"] / 32768)
    np.testing.assert_allclose(ours, numbers["out_mfcc"], atol=1e-4)


def test_mel_has_80_steps_a_second_and_a_click_falls_into_its_step():
    sound = np.zeros(32000)
    sound[16000] = 1.0
    mel = features.mel(sound)
    assert mel.shape == (161, 80)
    assert np.argmax(mel.mean(1)) == 80


def test_mfcc_has_100_steps_a_second():
    assert features.mfcc(np.zeros(16000)).shape == (99, 13)


@pytest.mark.parametrize("samples", [1, 100, 401])
def test_very_short_sound_is_finite(samples):
    sound = np.ones(samples) * 0.1
    assert np.isfinite(features.mel(sound)).all() and len(features.mel(sound)) == 1 + samples // 200
    assert np.isfinite(features.mfcc(sound)).all()


def test_windows_are_slices_inside_and_repeat_the_ends_outside():
    mel = np.arange(20.0).reshape(10, 2)
    np.testing.assert_array_equal(features.mel_window(mel, 3, 4), mel[3:7])
    np.testing.assert_array_equal(features.mel_window(mel, -2, 3), mel[[0, 0, 0]])
    np.testing.assert_array_equal(features.mel_window(mel, 8, 4), mel[[8, 9, 9, 9]])


def test_noise_is_as_loud_and_as_coloured_as_asked():
    rng = np.random.default_rng(0)
    for fall in (0.0, 0.5, 1.0):
        noise = features.coloured_noise(1 << 16, fall, rng)
        assert noise.std() == pytest.approx(1)
        power = np.abs(np.fft.rfft(noise)) ** 2
        low, high = (power[b : 2 * b].mean() for b in (1000, 8000))
        assert low / high == pytest.approx(8 ** (2 * fall), rel=0.2)


def test_noisy_copies_are_the_sound_where_it_is_loud_and_noise_where_it_is_not():
    rng = np.random.default_rng(0)
    sound = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000) * (np.arange(16000) < 8000) * 0.3
    clean, copies = features.mel(sound), features.noisy_mels(sound, 5, rng)
    assert copies.shape == (5, *clean.shape)
    assert np.abs(copies[:, 20].max(-1) - clean[20].max()).max() < 0.6  # a gain of 4 dB is 0.32
    assert (copies[:, 60].mean(-1) > clean[60].mean() + 0.3).all()
    assert np.abs(copies[0] - copies[1]).max() > 0.1


@pytest.mark.parametrize("rate", [25, 49.9, 50, 80, 100, 130])
def test_features_that_grow_evenly_in_time_stay_so_at_the_mels_steps(rate):
    slope, start = np.array([3.0, -1.0, 0.5]), np.array([0.0, 2.0, -1.0])
    made = start + np.arange(round(4 * rate))[:, None] / rate * slope
    found = features.resample(made, rate, 300)
    assert found.shape == (300, 3) and found.dtype == np.float32
    np.testing.assert_allclose(
        found, start + np.arange(300)[:, None] / 80 * slope, rtol=1e-5, atol=1e-5
    )


def test_resampling_is_scipys_linear_one_and_repeats_the_last_step():
    rng = np.random.default_rng(0)
    made = rng.normal(size=(70, 5))
    found = features.resample(made, 50, 161)
    linear = interpolate.interp1d(np.arange(70) / 50, made, axis=0)
    times = np.arange(161) / 80
    inside = times <= 69 / 50
    np.testing.assert_allclose(found[inside], linear(times[inside]), atol=1e-6)
    np.testing.assert_allclose(found[~inside], np.broadcast_to(made[-1], (50, 5)), atol=1e-6)
    np.testing.assert_allclose(features.resample(made[:1], 50, 3), made[[0, 0, 0]], atol=1e-6)


def test_features_at_the_mels_rate_are_left_as_they_are():
    made = np.random.default_rng(0).normal(size=(161, 80)).astype(np.float32)
    np.testing.assert_array_equal(features.resample(made, 80, 161), made)


def test_standardised_features_have_the_mels_mean_and_deviation_and_constants_stay_finite():
    rng = np.random.default_rng(0)
    made = rng.normal([5, -300, 0, 1e-3], [2, 40, 1e-5, 0], size=(400, 4))
    scaled = features.standardise(made, features.scale_of(made))
    np.testing.assert_allclose(scaled.mean(0), -1.7, atol=1e-3)
    np.testing.assert_allclose(scaled.std(0), [0.96, 0.96, 0.96, 0], atol=1e-3)
    later = features.standardise(made + 0.01, features.scale_of(made))
    np.testing.assert_allclose(later[:, 3], -1.7 + 0.96 * 0.01, rtol=1e-3)


def test_a_voice_is_what_its_bands_are_while_it_speaks():
    rng = np.random.default_rng(0)
    mean, deviation = np.linspace(-2, 0, 80), np.linspace(0.3, 0.9, 80)
    spoken = mean + deviation * rng.normal(size=(4000, 80))
    with_pauses = np.concatenate([np.full((900, 80), -3.5), spoken])
    found = features.voice_of(with_pauses)
    assert found.shape == (2, 80) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], mean, atol=0.1)
    np.testing.assert_allclose(found[1], deviation, atol=0.1)


def test_what_is_known_of_a_voice_counts_for_a_second_and_is_all_that_a_silence_has():
    usual = np.stack([np.full(80, -1.0), np.full(80, 0.5)])
    quiet = np.full((800, 80), -3.9)
    np.testing.assert_allclose(features.voice_of(quiet, usual), usual, atol=1e-6)
    np.testing.assert_allclose(features.voice_of(quiet), features.any_voice(80), atol=1e-6)
    second = np.tile([[-3.0], [0.0]], (features.USUAL_STEPS, 80))  # half of it is loud
    loud = second.mean(1) > -1.5
    assert loud.sum() == features.USUAL_STEPS
    found = features.voice_of(second, usual)
    np.testing.assert_allclose(found[0], -0.5, atol=1e-6)
    square = (0.0 + 1.0 + 0.25) / 2
    np.testing.assert_allclose(found[1], np.sqrt(square - 0.25), atol=1e-5)
