import json

import numpy as np
import pytest

from t3d.data import pipeline, speaker_dataset
from t3d.data.pipeline import Source
from t3d.data.speaker_dataset import (
    SpeakerDataset,
    encode_image,
    fold_frames,
    runs_of,
    split_ranges,
    turned_frames,
    turned_splits,
)
from t3d.errors import UserError

FRAMES, SIZE = 100, 32
PER_FRAME = {
    "expression": (79,),
    "illumination": (27,),
    "rotvec": (3,),
    "translation": (3,),
    "head_to_world": (4, 4),
    "points68": (68, 2),
    "lips79": (79, 2),
    "blendshapes": (53,),
    "au": (5,),
}


def make_track(rng):
    track = {n: rng.normal(size=(FRAMES, *s)).astype(np.float32) for n, s in PER_FRAME.items()}
    track |= {n: rng.normal(size=k).astype(np.float32) for n, k in (("identity", 100),)}
    track |= {"albedo": np.ones(100, np.float32), "intrinsics": np.ones(4, np.float32)}
    track["found"] = np.ones(FRAMES, bool)
    track["found"][70] = False
    track["face_box"] = np.tile(np.float32([0.5, 0.6, 0.4]), (FRAMES, 1))
    return track


def make_dataset(path, ranges, **said):
    """A dataset of 4 s whose frame k is grey of level 2 k and whose mel step k is k."""
    track = make_track(np.random.default_rng(0))
    speaker_dataset.write_examples(
        path / "tfds",
        SIZE,
        tuple(ranges),
        lambda split: (make_example(f, track) for f in range(*ranges[split])),
    )
    np.savez(path / "track.npz", **track)
    mel = np.repeat(np.arange(FRAMES * 80 // 25 + 1, dtype=np.float32)[:, None], 80, 1)
    np.save(path / "mel.npy", mel)
    meta = dict(name="test", fps=25, size=SIZE, num_frames=FRAMES, splits=ranges, identity_frame=50)
    (path / "meta.json").write_text(json.dumps(meta | said))
    return path


def make_example(frame, track):
    image = np.full((SIZE, SIZE, 3), 2 * frame, np.uint8)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    constant = ("identity", "albedo", "intrinsics")
    arrays = {
        n: track[n] if n in constant else track[n][frame] for n in speaker_dataset.EXAMPLE_ARRAYS
    }
    return {
        "frame": frame,
        "speaker": "test",
        "found": bool(track["found"][frame]),
        "image": encode_image(image, "jpeg"),
        "mask": encode_image(mask, "png"),
        "face": encode_image(np.full((96, 96, 3), 2 * frame, np.uint8), "jpeg"),
        **arrays,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One in blocks, made before datasets said which fold they are for."""
    return make_dataset(tmp_path_factory.mktemp("speaker"), split_ranges(FRAMES))


@pytest.fixture(scope="module")
def third_fold(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("fold"), split_ranges(FRAMES), fold=3)


TURNED = {
    "train": [[0, 12], [17, 40], [66, 73]],
    "validation": [[78, 90]],
    "test": [[45, 60], [95, 98]],
}


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """One whose test are two stretches of turned frames."""
    said = dict(frames=TURNED, held_out_yaw=12.0)
    return make_dataset(tmp_path_factory.mktemp("turned"), {"clip": (0, FRAMES)}, **said)


@pytest.fixture(scope="module")
def source(folder):
    return Source([SpeakerDataset(folder)], "train")


def one(source, fields, **options):
    return next(source.batches(fields, 8, 0, "stage", **options))


@pytest.mark.parametrize("frames", [750, 1775, 30000])
def test_long_clip_splits_70_15_15_with_gaps_of_a_second(frames):
    ranges = split_ranges(frames)
    lengths = np.array([end - first for first, end in ranges.values()])
    assert ranges["train"][0] == 0 and ranges["test"][1] == frames
    assert ranges["validation"][0] - ranges["train"][1] == 25
    assert ranges["test"][0] - ranges["validation"][1] == 25
    np.testing.assert_allclose(lengths / lengths.sum(), [0.7, 0.15, 0.15], atol=0.002)


@pytest.mark.parametrize("frames", [25, 200, 749])
def test_folds_of_a_short_clip_test_every_frame_once_and_keep_their_distance(frames):
    ranges = split_ranges(frames)
    tested = np.concatenate([fold_frames(ranges, "test", fold) for fold in range(5)])
    np.testing.assert_array_equal(np.sort(tested), np.arange(frames))
    gap = min(25, frames // 5 // 2)
    for fold in range(5):
        parts = [fold_frames(ranges, s, fold) for s in ("train", "validation", "test")]
        for k, part in enumerate(parts):
            assert len(part) and np.all(np.diff(part) > 0)
            for other in parts[k + 1 :]:
                assert np.abs(part[:, None] - other[None]).min() > gap


def test_batch_of_a_step_depends_on_seed_name_and_step_only(source):
    fields = ("frame", "mel16_shifted")
    whole = source.batches(fields, 4, 7, "lip")
    steps = [next(whole) for _ in range(40)]
    resumed = source.batches(fields, 4, 7, "lip", start_step=30, threads=1)
    for expected in steps[30:34]:
        got = next(resumed)
        for name in fields:
            np.testing.assert_array_equal(got[name], expected[name])
    other = next(source.batches(fields, 4, 7, "nerf"))["frame"]
    assert not np.array_equal(other, steps[0]["frame"])


@pytest.mark.parametrize("parts", [([0, 1], [2, 3]), ([0], [1], [2], [3]), ([0, 3], [1, 2])])
def test_hosts_read_their_rows_of_the_batch_and_nothing_is_lost_or_read_twice(source, parts):
    fields = ("frame", "mel16_shifted")  # the second draws at random
    whole = source.batches(fields, 4, 7, "lip", start_step=5)
    hosts = [source.batches(fields, 4, 7, "lip", start_step=5, rows=rows) for rows in parts]
    for _ in range(10):
        expected, shares = next(whole), [next(host) for host in hosts]
        for rows, share in zip(parts, shares):
            for name in fields:
                np.testing.assert_array_equal(share[name], expected[name][rows])
    even = list(source.even_batches(("frame",), 4, 2))
    for rows in parts:
        for share, all_rows in zip(source.even_batches(("frame",), 4, 2, rows=rows), even):
            np.testing.assert_array_equal(share["frame"], all_rows["frame"][rows])


def test_an_epoch_shows_every_tracked_training_frame_once(source):
    frames = [f for _, f in source.frames]
    assert 70 not in frames and len(frames) > 30
    batches = source.batches(("frame",), 1, 0, "epoch")
    seen = [int(next(batches)["frame"][0]) for _ in frames]
    assert sorted(seen) == frames


def test_dataset_of_a_fold_has_the_splits_of_that_fold(folder, third_fold):
    dataset, ranges = SpeakerDataset(third_fold), split_ranges(FRAMES)
    for split in ("train", "validation"):
        expected = fold_frames(ranges, split, 3)
        np.testing.assert_array_equal(dataset.frames(split), expected[expected != 70])
        assert {f for _, f in Source([dataset], split).frames} == set(dataset.frames(split))
    assert dataset.split_title("test") == "test of fold 3"
    assert SpeakerDataset(folder).split_title("test") == "test of fold 0"
    np.testing.assert_array_equal(SpeakerDataset(folder).frames("test"), np.arange(20))


def test_frames_without_a_face_are_not_tested_on_but_counted(third_fold):
    dataset = SpeakerDataset(third_fold)
    np.testing.assert_array_equal(
        dataset.frames("test"), np.setdiff1d(np.arange(60, 80), 70), "70 is bridged: no truth"
    )
    assert dataset.faceless("test") == 1 and dataset.faceless("train") == 0


def test_frames_with_unknown_action_units_are_tested_but_not_learned_from(folder):
    dataset = SpeakerDataset(folder)
    dataset.track["au"] = dataset.track["au"].copy()
    dataset.track["au"][[5, 60], 2] = np.nan
    assert 5 in dataset.frames("test") and 60 not in dataset.frames("train")
    assert 61 in dataset.frames("train")


def test_every_frame_of_splits_in_pieces_is_found(turned):
    dataset = SpeakerDataset(turned)
    for split, runs in TURNED.items():
        expected = [f for first, end in runs for f in range(first, end)]
        expected = [f for f in expected if split == "test" or f != 70]
        np.testing.assert_array_equal(dataset.frames(split), expected)
        for frame in expected:
            assert dataset.example(frame)["frame"] == frame
            assert abs(int(dataset.picture(frame, "image")[0, 0, 0]) - 2 * frame) <= 2
    assert dataset.split_title("test") == "test (yaw beyond 12° of the median)"
    assert dataset.split_title("train") == "train (yaw within 12° of the median)"


def test_windows_of_splits_in_pieces_cross_no_gap(turned):
    source = Source([SpeakerDataset(turned)], "train")
    frames = [f for _, f in source.frames]
    expected = [f for f in range(FRAMES) if all(f + k in frames for k in range(5))]
    np.testing.assert_array_equal(source._windows[0][0], expected)
    assert len(expected) == 8 + 19
    batch = one(source, ("faces5", "window", "frame"))
    shown = batch["window"][:, None] + np.arange(5)
    assert np.isin(shown, frames).all()
    levels = np.round(batch["faces5"].mean((2, 3, 4)) * 255 / 2)
    np.testing.assert_array_equal(levels, shown)


@pytest.mark.parametrize("length", [200, 3000])
def test_turned_frames_are_the_test_and_nothing_near_them_is_learned(length):
    rng = np.random.default_rng(length)
    yaw = 7 + 20 * np.sin(np.arange(length) / 25) + rng.normal(size=length)
    yaw[50:60] = np.nan
    test, others = turned_frames(yaw, 18)
    known = [t for t in range(length) if np.isfinite(yaw[t])]
    middle = np.median(yaw[known])
    assert list(test) == [t for t in known if abs(yaw[t] - middle) > 18]
    near = {t + k for t in test for k in range(-5, 6)}
    assert list(others) == [t for t in known if t not in near]
    splits = turned_splits(test, others)
    train, validation = splits["train"], splits["validation"]
    np.testing.assert_array_equal(splits["test"], test)
    assert set(train) | set(validation) <= set(others)
    assert np.abs(train[:, None] - validation[None]).min() > 5
    assert len(validation) / len(others) == pytest.approx(0.15, abs=0.01)
    assert len(others) - len(train) - len(validation) <= 10 * len(runs_of(validation))
    assert sum(len(run) for run in runs_of(validation) if len(run) >= 5) > 0.9 * len(validation)


def test_no_turned_frame_leaves_all_to_learn_from():
    test, others = turned_frames(np.zeros(200), 10)
    assert len(test) == 0
    np.testing.assert_array_equal(others, np.arange(200))


def test_runs_are_consecutive_and_whole():
    runs = runs_of(np.array([3, 4, 5, 9, 11, 12]))
    assert [list(run) for run in runs] == [[3, 4, 5], [9], [11, 12]]
    assert runs_of(np.zeros(0, int)) == []


def test_image_is_the_frame_on_white(source):
    batch = one(source, ("image", "mask", "frame"), size=16)
    assert batch["image"].shape == (8, 16, 16, 3) and batch["image"].dtype == np.float32
    assert batch["mask"].shape == (8, 16, 16, 1)
    inside = np.broadcast_to(batch["frame"][:, None, None] * 2 / 255, (8, 16, 5))
    np.testing.assert_allclose(batch["image"][:, :, :5].mean(-1), inside, atol=0.02)
    np.testing.assert_allclose(batch["image"][:, :, -5:], 1.0)
    np.testing.assert_allclose(batch["mask"][:, :, :5], 1.0)


def test_window_holds_five_frames_of_the_split_and_their_sound(source):
    batch = one(source, ("faces5", "mel16", "mel5", "window", "frame"), mel_steps=9)
    levels = np.round(batch["faces5"].mean((2, 3, 4)) * 255 / 2)
    expected = batch["window"][:, None] + np.arange(5)
    np.testing.assert_array_equal(levels, expected)
    assert np.isin(expected, [f for _, f in source.frames]).all()
    np.testing.assert_array_equal(batch["mel16"][:, 0, 0], batch["window"] * 80 // 25)
    middle = (expected + 0.5) * 80 / 25
    assert np.abs(batch["mel5"][:, :, 4, 0] - middle).max() <= 0.5


def test_mel_is_centred_on_the_middle_of_the_frame(source):
    batch = one(source, ("mel", "frame"), mel_steps=16)
    centre = batch["mel"][..., 0].mean(1)
    inner = (batch["frame"] > 5) & (batch["frame"] < 95)
    np.testing.assert_allclose(centre[inner], (batch["frame"][inner] + 0.5) * 3.2, atol=0.5 + 1e-4)


def test_shifted_sound_is_of_another_moment_of_the_split(source):
    batches = source.batches(("mel16_shifted", "window"), 16, 3, "sync")
    legal = {int(3.2 * f) for f in source._windows[0][0]}
    near = 0
    for _ in range(10):
        batch = next(batches)
        starts = batch["mel16_shifted"][:, 0, 0]
        distance = np.abs(starts / 3.2 - batch["window"])
        assert distance.min() > 4 and set(starts.astype(int)) <= legal
        near += np.sum(distance < 16)
    assert near > 40


def test_points_in_the_face_crop_are_where_the_crop_puts_them(source):
    track = source.datasets[0].track
    batch = one(source, ("points_face", "frame"))
    points = np.concatenate([track["points68"], track["lips79"]], 1)[batch["frame"]]
    np.testing.assert_allclose(
        batch["points_face"] * 0.4 + [0.3, 0.4], points, rtol=1e-4, atol=1e-5
    )


def test_arrays_of_the_caller_travel_with_their_frames(folder):
    datasets = [SpeakerDataset(folder), SpeakerDataset(folder)]
    arrays = [np.arange(FRAMES), 1000 + np.arange(FRAMES)]
    source = Source(datasets, "train")
    batch = one(source, ("extra", "speaker", "frame"), arrays={"extra": arrays})
    np.testing.assert_array_equal(batch["extra"], 1000 * batch["speaker"] + batch["frame"])
    assert set(batch["speaker"]) == {0, 1}


def test_every_field_can_be_read_alone(source):
    for name in pipeline.FIELDS:
        batch = next(source.even_batches((name,), 2, 1))
        assert batch[name].shape[0] == 2
        assert batch[name].dtype in (np.float32, np.int32)


def test_even_batches_are_the_same_every_time_and_cover_the_split(source):
    first, second = (list(source.even_batches(("frame",), 4, 3)) for _ in range(2))
    frames = np.concatenate([b["frame"] for b in first])
    np.testing.assert_array_equal(frames, np.concatenate([b["frame"] for b in second]))
    assert len(first) == 3 and len(set(frames)) == 12
    assert frames[0] == source.frames[0][1] and frames[-1] == source.frames[-1][1]


def test_unknown_field_names_the_known_ones(source):
    with pytest.raises(KeyError, match="no field mle"):
        one(source, ("mle",))


def test_face_crop_of_a_dataset_frame_is_the_stored_kind():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, 16:48, 16:48] = 200
    crop = pipeline.crop_faces(image, np.float32([[0.5, 0.5, 0.5]]))
    assert crop.shape == (1, 96, 96, 3)
    np.testing.assert_array_equal(crop[0, 8:-8, 8:-8], 200)


def test_missing_unfinished_and_damaged_datasets_say_what_to_do(tmp_path, folder):
    with pytest.raises(UserError, match="no such dataset; make it with: t3d prepare"):
        SpeakerDataset(tmp_path / "none")
    (tmp_path / "half" / "parts").mkdir(parents=True)
    with pytest.raises(UserError, match="not finished"):
        SpeakerDataset(tmp_path / "half")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "meta.json").write_bytes((folder / "meta.json").read_bytes())
    (damaged / "track.npz").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match="damaged dataset"):
        SpeakerDataset(damaged)
    (damaged / "track.npz").write_bytes((folder / "track.npz").read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged dataset"):
        SpeakerDataset(damaged)
    for meta in ("{}", "[]", "nonsense"):
        (damaged / "meta.json").write_text(meta)
        with pytest.raises(UserError, match="meta.json: damaged.*--force"):
            SpeakerDataset(damaged)


def test_a_block_is_tested_apart_from_what_trains_and_validates(folder):
    frames = {k: speaker_dataset.block_frames(600, k, 6, 25) for k in range(6)}
    np.testing.assert_array_equal(
        np.concatenate([frames[k]["test"] for k in range(6)]), np.arange(600)
    )
    for own in frames.values():
        assert len(own["validation"]) == 33 and own["validation"].min() >= 0
        assert own["validation"].max() < 600
        for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
            assert np.abs(own[one][:, None] - own[other]).min() >= 25
    with pytest.raises(ValueError, match="0 to 5"):
        speaker_dataset.block_frames(600, 6, 6, 25)


def test_half_of_the_sounds_that_are_learned_from_are_noisy_copies(folder):
    source = Source([SpeakerDataset(folder)], "train")
    mel = SpeakerDataset(folder).mel
    noisy = [np.stack([mel + 1000, mel + 2000])]
    ask = dict(fields=("mel", "mel5", "frame"), batch_size=64, seed=0, name="lip")
    batch = next(source.batches(**ask, noisy=noisy))
    copy = np.round(batch["mel"][:, 0, 0], -3)
    assert set(copy) == {0, 1000, 2000} and 16 < (copy == 0).sum() < 48
    np.testing.assert_array_equal(np.round(batch["mel5"][:, 0, 0, 0], -3), copy)
    clean = next(source.batches(**ask))
    assert clean["mel"].max() < 1000


def test_a_short_clip_is_met_as_often_as_a_long_one(folder):
    elements = pipeline._balanced([(0, 1), (0, 2), (0, 3), (1, 7), (1, 8)])
    assert elements == [(0, 1), (0, 2), (0, 3), (1, 7), (1, 8), (1, 7)]


def test_a_disk_that_takes_no_more_examples_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError(
            'Failed to finalize writing of split "train": write() failed: No space left on device'
        )

    monkeypatch.setattr(speaker_dataset.Speaker, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"tfds: cannot be written \(No space left on device\)"):
        speaker_dataset.write_examples(tmp_path / "tfds", 64, ("train",), lambda split: iter(()))
    assert not list(tmp_path.iterdir())
