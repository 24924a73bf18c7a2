"""A judge tells right from wrong sound, and by how much a sound is shifted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from t3d import judges
from t3d.data.pipeline import Source
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.judges import Judge
from t3d.metrics.sync import sync_confidence
from t3d.peers import syncnet, wav2lip

FRAMES = 120
SAMPLES = 640  # of a frame


def _unfold(levels: np.ndarray) -> np.ndarray:
    """Five levels in a row [W, 5] as an embedding that knows where in the five they stand."""
    return np.concatenate([levels, levels**2], 1)


@pytest.fixture(scope="module")
def film():
    """A grey picture as bright as its own 40 ms of sound are loud: images, boxes, sound."""
    level = np.random.default_rng(0).uniform(0.1, 0.9, FRAMES)
    images = np.broadcast_to(np.uint8(level * 255)[:, None, None, None], (FRAMES, 8, 8, 3))
    sound = np.repeat(np.uint8(level * 255) / np.float32(255), SAMPLES)
    return images, np.tile([0.5, 0.5, 1.0], (FRAMES, 1)), sound


@pytest.fixture(scope="module")
def seeing() -> Judge:
    """A judge that reads brightness and loudness: right by construction."""

    def look(images, boxes, rows):
        return _unfold(images[:, 0, 0, 0][rows[:, None] + np.arange(5)] / 255)

    def hear(sound, starts):
        loud = sound[: len(sound) // SAMPLES * SAMPLES].reshape(-1, SAMPLES).mean(1)
        return _unfold(loud[starts[:, None] + np.arange(5)])

    return Judge("seeing", look, hear)


@pytest.fixture(scope="module")
def blind(seeing) -> Judge:
    """A judge to whom every face is another noise."""
    return replace(
        seeing, look=lambda i, b, rows: np.random.default_rng(1).uniform(size=(len(rows), 10))
    )


def _offset(rows: np.ndarray) -> int:
    return 15 - int(np.nanmean(rows, 0).argmin())


@pytest.mark.parametrize("late", [0, 2, 3, -4])
def test_sound_that_is_late_by_k_frames_has_offset_minus_k(film, seeing, late):
    images, boxes, sound = film
    moved = np.roll(sound, late * SAMPLES)
    rows = judges.sync_rows(seeing, images, boxes, moved, np.arange(FRAMES))
    assert _offset(rows) == -late
    found = judges.proof(seeing, images, boxes, moved, np.arange(FRAMES))
    assert found.offset == -late and found.proved == (late == 0)


def test_rows_are_syncnet_pythons_distances_at_each_windows_first_frame(film, seeing):
    images, boxes, sound = film
    frames = np.arange(20, 60)  # of the sound; rows count from 0
    rows = judges.sync_rows(seeing, images[20:60], boxes[20:60], sound, frames)
    assert rows.shape == (40, 31)
    np.testing.assert_array_equal(np.isfinite(rows).all(1), np.arange(40) < 36)
    np.testing.assert_allclose(rows[:36, 15], 0, atol=1e-4)
    face = seeing.look(images[20:60], boxes[20:60], np.arange(36))
    wanted = sync_confidence(face, seeing.hear(sound, np.arange(20, 56)))
    mean = np.nanmean(rows, 0)
    assert np.median(mean) - mean.min() == pytest.approx(wanted.confidence)
    assert mean.min() == pytest.approx(wanted.distance)


def test_no_window_reaches_across_a_hole(film, seeing):
    images, boxes, sound = film
    frames = np.array([3, 4, 5, 6, 7, 8, 20, 21, 22, 30, 31, 32, 33, 34])
    rows, starts = judges.windows(frames)
    assert rows.tolist() == [0, 1, 9] and starts.tolist() == [3, 4, 30]
    distances = judges.sync_rows(seeing, images[frames], boxes[frames], sound, frames)
    assert np.flatnonzero(np.isfinite(distances[:, 15])).tolist() == [0, 1, 9]
    np.testing.assert_allclose(distances[rows, 15], 0, atol=1e-4)
    assert np.isnan(judges.sync_rows(seeing, images[:4], boxes[:4], sound, frames[:4])).all()


def test_only_a_judge_that_can_tell_is_proved(film, seeing, blind):
    images, boxes, sound = film
    everything = images, boxes, sound, np.arange(FRAMES)
    right = judges.proof(seeing, *everything)
    assert right.proved and right.windows == right.seconds == 1
    guess = judges.proof(blind, *everything)
    assert not guess.proved and 0.35 < guess.windows < 0.65
    constant = replace(seeing, look=lambda i, b, rows: np.ones((len(rows), 10)))
    assert not judges.proof(constant, *everything).proved


def test_a_judge_that_is_right_by_a_little_is_surer_of_seconds(film, seeing):
    noise = np.random.default_rng(2)

    def look(images, boxes, rows):
        face = seeing.look(images, boxes, rows)
        return face + noise.normal(0, 1.0, face.shape)

    images, boxes, sound = film
    found = judges.proof(replace(seeing, look=look), images, boxes, sound, np.arange(FRAMES))
    assert 0.5 < found.windows < 0.9 and found.seconds > found.windows + 0.1


def test_what_cannot_be_compared_proves_nothing(film, seeing):
    images, boxes, sound = film
    for count in (4, 8):  # no window; no sound five frames off
        frames = np.arange(count)
        found = judges.proof(
            seeing, images[:count], boxes[:count], sound[: count * SAMPLES], frames
        )
        assert np.isnan(found.windows) and np.isnan(found.seconds) and not found.proved


def test_a_runs_judge_sees_and_hears_what_its_training_did(untrained):
    """The batches of stage `sync`, and `look` and `hear`, give one embedding."""
    run = untrained
    record = json.loads((run.workdir / "run.json").read_text())
    dataset = SpeakerDataset(record["data"][0]["path"])
    frames = dataset.frames("train")
    rows, starts = judges.windows(frames)
    images = np.stack([dataset.picture(f, "head") for f in frames])
    judge = judges.of_run(run)
    batch = next(iter(Source([dataset], "train").even_batches(("faces5", "mel16", "window"), 4, 1)))
    at = np.searchsorted(starts, batch["window"])
    net, params = run.talker.judge, run.params["sync"]["judge"]
    face = judge.look(images, dataset.track["face_box"][frames], rows)
    wanted = net.apply(params, batch["faces5"], method="face_embedding")
    apart = np.linalg.norm(face - wanted[:, None], axis=-1)  # [4, W]; JPEG twice is not once
    np.testing.assert_array_equal(apart.argmin(1), at)
    nearest, next_one = np.sort(apart, 1)[:, :2].T
    assert (nearest < 0.5 * next_one).all()
    heard = judge.hear(dataset.audio(), starts)[at]
    wanted = net.apply(params, batch["mel16"], method="audio_embedding")
    np.testing.assert_allclose(heard, wanted, atol=1e-3)
    assert "seen by no loss" in judge.name and str(run.workdir) in judge.name


@pytest.fixture
def public_weights(golden, golden_weights, monkeypatch):
    weights = syncnet.from_state(golden_weights.from_fixture(golden("syncnet_python_model")))
    monkeypatch.setattr(syncnet, "available", lambda: weights)
    return weights


def test_the_public_judge_gets_bgr_crops_and_the_sound_of_five_frames(
    public_weights, golden, monkeypatch
):
    """An image that is the crop itself, and the MFCC from four steps a frame on."""
    crop = np.moveaxis(golden("syncnet_python_model")["in_lip_uint8"][0], 0, -1)  # BGR
    monkeypatch.setattr(judges, "PUBLIC_SIDE", 1.0)
    monkeypatch.setattr(judges, "PUBLIC_LOWER", 0.0)
    judge = judges.public()
    face = judge.look(crop[..., ::-1], np.tile([0.5, 0.5, 1.0], (5, 1)), np.array([0]))
    wanted = golden("syncnet_python_model")["out_lip_embedding"]
    np.testing.assert_allclose(face, wanted, rtol=1e-4, atol=1e-4)

    mfcc = golden("speech_mfcc")
    sound = mfcc["in_speech_int16"] / np.float32(32768)
    heard = judge.hear(sound, np.array([0, 30]))
    steps = np.stack([mfcc["out_mfcc"][:20], mfcc["out_mfcc"][120:140]]).astype(np.float32)
    wanted = syncnet.audio_embedding(public_weights, steps)
    np.testing.assert_allclose(heard, wanted, rtol=1e-3, atol=1e-3)


def test_the_expert_gets_lower_halves_in_bgr_and_the_mel_of_five_frames(golden, golden_weights):
    """Images that are the face crops themselves, whose upper halves are nobody's business."""
    data, rng = golden("wav2lip_syncnet_color"), np.random.default_rng(0)
    weights = wav2lip.expert_from_state(golden_weights.from_fixture(data))
    judge = judges.of_expert(weights)
    halves = data["in_face"].reshape(-1, 3, 48, 96)[:, ::-1].transpose(0, 2, 3, 1)  # RGB
    images = rng.integers(0, 256, (len(halves), 96, 96, 3)).astype(np.uint8)
    images[:, 48:] = np.round(255 * halves)
    boxes, rows = np.tile([0.5, 0.5, 1.0], (len(images), 1)), 5 * np.arange(4)
    wanted = data["out_face_embedding"]
    np.testing.assert_allclose(judge.look(images, boxes, rows), wanted, atol=1e-4)
    assert abs(judge.look(images[..., ::-1], boxes, rows) - wanted).max() > 1e-2

    sound = golden("wav2lip_mel")
    heard = judge.hear(sound["in_speech_int16"] / np.float32(32768), np.array([0, 31]))
    mel = sound["out_speech_mel"].T
    windows = np.stack([mel[:16], mel[99:115]])  # 31 · 80 / 25 = 99.2
    wanted = wav2lip.expert_audio_embedding(weights, windows)
    np.testing.assert_allclose(heard, wanted, atol=1e-4)


def test_the_public_crop_is_wider_and_lower_than_the_face_box():
    image = np.zeros((1, 400, 400, 3), np.uint8)
    image[:, :208] = (255, 0, 0)  # red above the middle of the crop
    face = judges._public_crops(image, np.array([[0.5, 0.5, 0.25]]))[0]
    assert face.shape == (224, 224, 3)
    assert (face[:110, :, 2] > 200).all() and (face[:110, :, :2] < 50).all()
    assert (face[114:] < 50).all()


def test_the_best_judge_is_the_public_one_then_the_runs_then_words(
    untrained, golden, golden_weights, monkeypatch
):
    monkeypatch.setattr(syncnet, "available", lambda: "not available: nothing here")
    assert judges.best(untrained).name == judges.of_run(untrained).name
    words = judges.best(None)
    assert words.startswith("not available: nothing here") and "--judge DIR" in words
    weights = syncnet.from_state(golden_weights.from_fixture(golden("syncnet_python_model")))
    monkeypatch.setattr(syncnet, "available", lambda: weights)
    assert "public" in judges.best(untrained).name and "public" in judges.best(None).name


def test_sound_is_heard_where_it_is_when_frames_are_missing():
    # Frames 20..59 and 140..199 of a clip whose sound is 3 frames late everywhere.
    pattern = np.random.default_rng(4).normal(size=(240, 8))
    judge = judges.Judge(
        "by hand",
        lambda images, boxes, rows: pattern[images[rows, 0, 0, 0]],
        lambda sound, starts: pattern[np.clip(np.asarray(starts) - 3, 0, None)],
    )
    frames = np.r_[20:60, 140:200]
    images = np.broadcast_to(frames.astype(np.uint8)[:, None, None, None], (100, 2, 2, 3))
    boxes, sound = np.full((100, 3), 0.5), np.zeros(240 * 640, np.float32)
    rows = judges.sync_rows(judge, images, boxes, sound, frames)
    known = np.isfinite(rows).all(1)
    assert known.sum() == 36 + 56
    np.testing.assert_allclose(rows[known][:, 15 + 3], 0, atol=1e-6)
    assert (rows[known].argmin(1) == 18).all()
    assert judges.proof(judge, images, boxes, sound, frames).offset == -3


def test_the_offset_of_shifted_sound_is_minus_the_shift(film, seeing):
    found = judges.found_offsets(seeing, *film, np.arange(FRAMES), range(-10, 11))
    np.testing.assert_array_equal(found, -np.arange(-10, 11))
