import json
import shutil

import numpy as np
import pytest

import t3d.data.prepare as prepare_module
from t3d import camera as cameras
from t3d import cli
from t3d.data import framing, landmarks, video
from t3d.data.parts import Parts, fingerprint
from t3d.data.pipeline import Source, window_starts
from t3d.data.prepare import Bars, open_clip, openface_labels, prepare
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.data.synthetic import turning_clip
from t3d.errors import UserError
from t3d.metrics.action_units import ACTION_UNITS
from t3d.prior import gaps

SIZE = 64


@pytest.fixture(scope="module")
def speaker(synthetic_speaker):
    return synthetic_speaker


@pytest.fixture(scope="module")
def prepared(prepared_speaker):
    return prepared_speaker


@pytest.fixture(scope="module")
def truth(speaker):
    with np.load(speaker / "truth.npz") as arrays:
        return dict(arrays)


def face68(height=100.0, x=200.0, y=150.0, frames=60):
    """A crude face: brows at y, chin at y + height, jaw as wide as it is high."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.3, 0.3, (68, 2)) * height + [0, height / 2]
    points[:17] = np.stack([np.linspace(-0.5, 0.5, 17), np.full(17, 0.5)], -1) * height
    points[17:27] = np.stack([np.linspace(-0.4, 0.4, 10), np.zeros(10)], -1) * height
    points[8] = [0, height]
    for index, side in zip((36, 39, 42, 45), (-0.35, -0.15, 0.15, 0.35)):
        points[index] = [side * height, 0.2 * height]
    return np.tile(points + [x, y], (frames, 1, 1))


def test_head_crop_is_inside_the_video_and_holds_hair_and_chin():
    points = face68(height=100, x=500, y=300)
    points[30:, :, 0] += 60
    cx, cy, side = framing.head_crop(points, 1280, 720)
    left, top = cx - side / 2, cy - side / 2
    assert 0 <= left and left + side <= 1280 and 0 <= top and top + side <= 720
    assert top <= 300 - 75 and top + side >= 400
    assert left <= 500 - 80 and left + side >= 560 + 80
    assert side < 300


def test_head_crop_of_a_face_near_the_border_is_moved_inside():
    cx, cy, side = framing.head_crop(face68(height=100, x=60, y=60), 640, 480)
    assert cx == pytest.approx(side / 2) and cy - side / 2 >= 0


def test_head_crop_is_no_larger_than_the_video():
    cx, cy, side = framing.head_crop(face68(height=400, x=300, y=150), 640, 480)
    assert side == 640 and (cx, cy) == (320, 240)


def test_face_box_covers_brows_to_chin_and_does_not_follow_the_mouth():
    still = face68() / 500
    speaking = still.copy()
    speaking[::2, 4:13, 1] += 0.03
    speaking[::2, 48:68] += 0.02
    boxes = framing.face_boxes(speaking)
    assert np.ptp(boxes, axis=0).max() < 1e-6
    cx, cy, side = boxes[0]
    assert cy - side / 2 < still[0, 17:27, 1].min() and cy + side / 2 > speaking[..., 8, 1].max()
    assert side == pytest.approx(1.25 * (0.2 + 0.015), abs=0.02)


def test_face_box_follows_the_head():
    moving = face68() / 500
    shift = np.linspace(0, 0.3, len(moving))[:, None]
    boxes = framing.face_boxes(moving + shift[:, None])
    np.testing.assert_allclose(
        (boxes - framing.face_boxes(moving))[10:-10, :2],
        np.repeat(shift, 2, 1)[10:-10],
        atol=1e-5,
    )


def test_gaps_in_the_landmarks_are_bridged_in_a_straight_line():
    values = np.arange(10.0)[:, None, None] * np.ones((1, 2, 2))
    found = np.ones(10, bool)
    found[[0, 4, 5, 9]] = False
    bridged = gaps.bridge(np.where(found[:, None, None], values, np.nan), found)
    expected = values.copy()
    expected[0], expected[9] = values[1], values[8]
    np.testing.assert_allclose(bridged, expected)


def test_calm_frames_are_frontal_and_closed():
    rng = np.random.default_rng(1)
    rotvec, mouth = rng.normal(size=(100, 3)) * 0.2, rng.uniform(0.05, 0.2, 100)
    rotvec[[20, 40]], mouth[[20, 40]] = 0, 0
    calm = framing.calm_frames(face68(frames=100), rotvec, mouth, np.arange(50))
    assert {20, 40} <= set(calm) and max(calm) < 50


def test_sharper_image_scores_higher():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    blurred = video.resize(video.resize(sharp, 16), 64)
    assert framing.sharpness(sharp) > 5 * framing.sharpness(blurred)


def test_part_is_made_once_and_again_when_its_settings_change_or_its_file_breaks(tmp_path):
    parts, made = Parts(tmp_path), []

    def make():
        made.append(1)
        return {"x": np.arange(3)}

    for settings in ({"size": 1}, {"size": 1}, {"size": 2}):
        np.testing.assert_array_equal(parts.get("part", settings, make)["x"], np.arange(3))
    assert len(made) == 2
    parts.path("part", {"size": 1}).write_bytes(b"half of it")
    parts.get("part", {"size": 1}, make)
    assert len(made) == 3


def test_part_that_fails_leaves_no_file(tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path).get("part", {}, fail)
    assert not list(tmp_path.iterdir())


def stream(folder, blobs, made=None):
    """A part of frames and masks; `made` counts how often it is made."""

    def make(add):
        for one, two in blobs:
            add(one, two)
        if made is not None:
            made.append(1)

    return Parts(folder).stream("both", {"size": 1}, ("frames", "masks"), make)


def test_streamed_bytes_come_back_without_being_made_again(tmp_path):
    blobs, made = [(b"one", b""), (b"", b"2"), (b"three", b"22")], []
    for _ in range(2):
        files = stream(tmp_path, blobs, made)
        assert [files["frames"][k] for k in (2, 0, 1)] == [b"three", b"one", b""]
        assert [files["masks"][k] for k in range(3)] == [b"", b"2", b"22"]
        assert len(files["masks"]) == 3
    assert len(made) == 1


def test_stream_that_stops_or_breaks_is_made_again(tmp_path):
    def blobs():
        yield b"half", b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path, blobs())
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    files = stream(tmp_path, [(b"whole", b"whole")])
    assert files["frames"][0] == b"whole"
    next(tmp_path.glob("masks*.bin")).write_bytes(b"who")
    files = stream(tmp_path, [(b"again", b"again")])
    assert files["frames"][0] == files["masks"][0] == b"again"


def test_prepared_codes_and_poses_fit_the_synthetic_truth(prepared, truth):
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["quality"]["tracked"] == 1.0
    assert meta["quality"]["reprojection"] < 0.03
    assert meta["quality"]["mouth_r"] > 0.95
    track = SpeakerDataset(prepared).track
    expected = cameras.head_pose(truth["rotvec"], truth["translation"])
    turn = np.einsum("tij,tkj->tik", track["head_to_world"][:, :3, :3], expected[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.median(angle) < 6
    yaw = [np.arctan2(m[:, 0, 2], m[:, 2, 2]) for m in (track["head_to_world"], expected)]
    assert np.corrcoef(*np.unwrap(yaw))[0, 1] > 0.95


def test_prepared_dataset_holds_what_it_promises(prepared, truth):
    dataset = SpeakerDataset(prepared)
    assert dataset.num_frames == 50 and dataset.meta["folds"] == 5
    assert len(dataset.audio()) == 50 * 640
    assert dataset.mel.shape == (161, 80)
    for name, array in dataset.track.items():
        assert np.isfinite(array).all(), name
    np.testing.assert_allclose(dataset.track["points68"] * SIZE, truth["points68"], atol=1e-3)
    np.testing.assert_array_equal(dataset.track["au"], truth["au"])
    train = dataset.frames("train")
    assert dataset.meta["identity_frame"] in train
    info = video.probe(prepared / "overview.mp4")
    assert (info.width, info.height) == (1024, 256)
    assert sum(1 for _ in video.read_frames(prepared / "overview.mp4")) == 50
    assert not (prepared / "parts").exists()


def test_prepared_images_are_the_video_and_its_masks(prepared, speaker):
    dataset = SpeakerDataset(prepared)
    with np.load(speaker / "mask.npz") as arrays:
        masks = arrays["mask"]
    for frame, image in enumerate(video.read_frames(speaker / "video.mp4")):
        if frame in (0, 17, 49):
            stored = dataset.picture(frame, "image").astype(float)
            assert np.abs(stored - image).mean() < 4
            np.testing.assert_array_equal(dataset.picture(frame, "mask"), masks[frame] * 255)
            head = dataset.picture(frame, "head")
            assert (head[~masks[frame]] == 255).all()


def test_prepared_sound_is_aligned_with_the_source(prepared, speaker):
    ours = SpeakerDataset(prepared).audio()
    theirs = video.read_audio(speaker / "video.mp4")[: len(ours)]
    assert np.abs(ours[: len(theirs)] - theirs).max() < 1e-3


def test_prepared_dataset_feeds_batches(prepared):
    batch = next(Source([SpeakerDataset(prepared)], "train").batches(("faces5", "au"), 2, 0, "x"))
    assert batch["faces5"].shape == (2, 5, 96, 96, 3) and batch["au"].shape == (2, 5)


def test_second_run_does_nothing_and_other_settings_are_refused(prepared, speaker):
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*")}
    prepare(speaker, prepared, size=SIZE)
    assert {p: p.stat().st_mtime_ns for p in prepared.rglob("*")} == before
    with pytest.raises(UserError, match="other settings; use --force"):
        prepare(speaker, prepared, size=2 * SIZE)


def test_stopped_run_goes_on_after_its_finished_parts(speaker, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.overview, "film", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(speaker, out, size=SIZE)
    assert not (out / "meta.json").exists() and not (out / "overview.mp4").exists()
    assert (out / "parts" / "tfds").exists() and not (out / "tfds").exists()
    with pytest.raises(UserError, match="not finished"):
        SpeakerDataset(out)
    monkeypatch.setattr(prepare_module.tracker, "track", stop)
    monkeypatch.setattr(prepare_module, "observe", stop)
    monkeypatch.setattr(prepare_module, "write_examples", stop)
    prepare(speaker, out, size=SIZE)
    assert SpeakerDataset(out).num_frames == 50


def write_openface(path, labels, lost=(), left_out=()):
    """A table as OpenFace's FeatureExtraction writes it, blanks and all, with a passer-by."""
    intensities = ("01", "04", "10", "14", "20", "25", "26", "45")
    columns = ["frame", "face_id", "timestamp", "confidence", "success", "pose_Rx"]
    columns += [f"AU{unit}_r" for unit in intensities] + [f"AU{unit}_c" for unit in intensities]
    lines = [", ".join(columns)]

    def add(frame, face, success, shown):
        named = {f"{unit:02d}": value for unit, value in zip(ACTION_UNITS, shown)}
        values = [str(frame + 1), str(face), f"{frame / 25:.3f}", f"{0.98 * success:.2f}"]
        values += [str(success), "-0.041", *["0.52"] * len(intensities)]
        values += [f"{named.get(unit, 0):.2f}" for unit in intensities]
        lines.append(", ".join(values))

    for frame in (f for f in range(len(labels)) if f not in left_out):
        add(frame, 0, int(frame not in lost), labels[frame])
        if frame < len(labels) // 4:
            add(frame, 1, 1, 1 - labels[frame])
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def spy_on_the_tracker(monkeypatch):
    """The list of the frames that each later call may fit the constants on."""
    track, calls = prepare_module.tracker.track, []

    def spied(model, landmarks, fit_frames, *args, **options):
        calls.append(fit_frames)
        return track(model, landmarks, fit_frames, *args, **options)

    monkeypatch.setattr(prepare_module.tracker, "track", spied)
    return calls


def test_options_of_the_splits_change_the_fingerprint_only_when_given(prepared, speaker):
    meta = json.loads((prepared / "meta.json").read_text())
    settings = {"source": meta["source_sha256"], "prior": "procedural", "size": SIZE}
    assert meta["fingerprint"] == fingerprint(settings | {"t3d": meta["versions"]["t3d"]})
    assert meta["fold"] == 0 and meta["au_labels"] == "built in"
    assert prepare(speaker, prepared, size=SIZE, fold=0) == meta
    for options in ({"fold": 1}, {"hold_out_yaw": 5.0}):
        with pytest.raises(UserError, match="other settings; use --force"):
            prepare(speaker, prepared, size=SIZE, **options)


def test_all_that_is_fitted_for_a_fold_is_fitted_on_its_training_frames(
    speaker, tmp_path, monkeypatch
):
    calls = spy_on_the_tracker(monkeypatch)
    meta = prepare(speaker, tmp_path / "out", size=SIZE, fold=2)
    dataset = SpeakerDataset(tmp_path / "out")
    np.testing.assert_array_equal(dataset.frames("test"), np.arange(20, 30))
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0], dataset.frames("train"))
    assert calls[0].max() >= 40 and np.abs(calls[0][:, None] - np.arange(20, 40)).min() > 5
    assert meta["fold"] == 2 and meta["fitted_on"] == "train split of fold 2"
    assert meta["identity_frame"] in calls[0]


@pytest.mark.full
def test_held_out_turns_are_the_test_and_openface_gives_the_labels(
    speaker, truth, tmp_path, monkeypatch
):
    out, calls = tmp_path / "out", spy_on_the_tracker(monkeypatch)
    out.mkdir()
    yaw = prepare_module.yaw_of(truth["rotvec"])
    degrees = float(np.percentile(np.abs(yaw - np.median(yaw)), 75))
    table = write_openface(tmp_path / "face.csv", truth["au"], lost=(3, 4), left_out=(49,))
    options = dict(size=SIZE, hold_out_yaw=degrees, openface=table)
    with pytest.raises(UserError, match=r"and 25 and 100 are the least; raise --hold-out-yaw"):
        prepare(speaker, out, **options)
    monkeypatch.setattr(prepare_module, "FEWEST_TURNED", 3)
    monkeypatch.setattr(prepare_module, "FEWEST_OTHERS", 20)
    with pytest.raises(UserError, match="0 frames are turned") as error:
        prepare(speaker, out, **options | {"hold_out_yaw": 80})
    largest = float(str(error.value).split("take --hold-out-yaw ")[1].split()[0])
    meta = prepare(speaker, out, **options)
    assert meta["held_out_yaw"] == degrees and meta["au_labels"] == "openface"
    dataset = SpeakerDataset(out)
    turn = prepare_module.yaw_of(dataset.track["rotvec"])
    turn = np.abs(turn - np.median(turn))
    parts = [dataset.frames(split) for split in ("train", "validation", "test")]
    assert all(len(part) for part in parts)
    assert turn[parts[2]].min() > degrees - 1 and np.sort(turn)[-3] > largest - 1
    learned = np.concatenate(parts[:2])
    assert turn[learned].max() < degrees + 1
    assert np.abs(learned[:, None] - parts[2][None]).min() > 5
    assert len(window_starts(parts[0])[0]) and meta["identity_frame"] in parts[0]
    np.testing.assert_array_equal(calls[0], np.arange(50))
    assert len(calls) == 2 and set(parts[0]) <= set(calls[1]) <= set(parts[0]) | {3, 4, 49}
    known = np.setdiff1d(np.arange(50), (3, 4, 49))
    np.testing.assert_array_equal(dataset.track["au"][known], truth["au"][known])
    assert np.isnan(dataset.track["au"][[3, 4, 49]]).all()
    assert not np.isin([3, 4, 49], learned).any()
    assert any("OpenFace tracked no face in 6.0%" in text for text in meta["warnings"])


def test_openface_tables_of_another_video_or_without_a_face_are_refused(speaker, truth, tmp_path):
    clip, labels = open_clip(speaker), truth["au"]
    short = write_openface(tmp_path / "short.csv", labels[:20])
    with pytest.raises(UserError, match=r"short.csv: labels 0.8 s, but .*video.mp4 has 2.0 s"):
        openface_labels(short, clip)
    lost = write_openface(tmp_path / "lost.csv", labels, lost=range(40))
    with pytest.raises(UserError, match=r"lost.csv: OpenFace tracked a face in 20%"):
        openface_labels(lost, clip)
    with pytest.raises(UserError, match=r"none.csv"):
        openface_labels(tmp_path / "none.csv", clip)


def test_splits_that_cannot_be_made_are_refused_before_any_work(speaker, tmp_path, monkeypatch):
    for options, words in (
        ({"fold": 5}, "--fold 5: no such fold"),
        ({"fold": -1}, "--fold -1: no such fold"),
        ({"fold": 1, "hold_out_yaw": 10}, "give one of them"),
        ({"hold_out_yaw": 0}, "between 0 and 90"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(speaker, tmp_path / "out", size=SIZE, **options)
    monkeypatch.setattr(prepare_module, "LONG_ENOUGH", 1)
    with pytest.raises(UserError, match="video.mp4: has 2 s, and only clips under 1 s"):
        prepare(speaker, tmp_path / "out", size=SIZE, fold=1)
    assert not list(tmp_path.iterdir())


def test_truth_stands_for_the_detectors_only_when_the_folder_is_given(speaker):
    folder, file = open_clip(speaker), open_clip(speaker / "video.mp4")
    assert folder.truth == speaker / "truth.npz" and file.truth is None
    assert folder.path == file.path and folder.sha256 != file.sha256


def test_folder_with_other_files_is_left_alone(speaker, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            prepare(speaker, tmp_path, size=SIZE, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("theirs", ["parts/wheel.stl", "meta.json"])
def test_forcing_replaces_no_folder_of_others(speaker, tmp_path, theirs):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("{}")
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            prepare(speaker, tmp_path, size=SIZE, force=force)
    assert (tmp_path / theirs).read_text() == "{}"


def test_a_replaced_dataset_stays_until_the_new_one_can_be_written(
    prepared, speaker, tmp_path, monkeypatch
):
    shutil.copytree(prepared, tmp_path / "there")
    out = tmp_path / "out"
    out.symlink_to("there")
    (out / "hubert.npy").write_text("features")
    before = {p: p.read_bytes() for p in prepared.rglob("*") if p.is_file()}
    with np.load(prepared / "track.npz") as track:  # in place of a fit that takes long
        seen = ("shot", "points68", "lips79", "blendshapes", "found", "face_box", "au")
        known = {k: track[k] for k in track if k not in (*seen, "au_intensity")}
    fit = prepare_module._Preparation
    monkeypatch.setattr(fit, "_fit", lambda *_: dict(known))
    for module, name in (
        (fit, "_fit"),
        (prepare_module, "write_examples"),
        (prepare_module.overview, "film"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(speaker, out, size=SIZE // 2, force=True)
        for path, content in before.items():
            assert (out / path.relative_to(prepared)).read_bytes() == content
    assert SpeakerDataset(out).size == SIZE and (out / "parts").exists()
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module.basis, "load", _no_use)
        with pytest.raises(UserError):
            prepare(speaker, out, size=SIZE // 2, force=True)
    assert SpeakerDataset(out).size == SIZE
    monkeypatch.setattr(prepare_module, "observe", _interrupt)  # goes on where it stopped
    prepare(speaker, out, size=SIZE // 2, force=True)
    assert SpeakerDataset(out).size == SIZE // 2 and not (out / "parts").exists()
    assert (out / "hubert.npy").read_text() == "features"


def test_forcing_starts_an_unfinished_one_anew_whatever_a_file_manager_left_in_it(
    speaker, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module._Preparation, "_splits", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(speaker, tmp_path, size=SIZE)
    (tmp_path / "parts" / ".DS_Store").touch()
    assert list((tmp_path / "parts").glob("landmarks-*.npz"))
    monkeypatch.setattr(prepare_module, "observe", _no_use)
    with pytest.raises(UserError):
        prepare(speaker, tmp_path, size=SIZE, force=True)
    assert not list(tmp_path.rglob("*.npz"))


def _interrupt(*args, **options):
    raise KeyboardInterrupt


def _no_use(*args, **options):
    raise UserError("of no use")


def test_settings_taken_back_in_mid_work_leave_no_files_of_others(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.folder.mkdir()
    made = []
    for size in (64, 32, 32, 64):

        def make(size=size):
            made.append(size)
            (parts.folder / "tfds").write_text(str(size))

        preparation = prepare_module._Preparation(
            None, tmp_path, None, {"size": size}, None, parts, None
        )
        preparation._once("tfds", "tfds", make)
        assert (parts.folder / "tfds").read_text() == str(size)
    assert made == [64, 32, 64]


def test_what_is_missing_is_said_before_the_work(speaker, tmp_path, monkeypatch):
    assets_of = prepare_module.assets.find

    def find(name):
        if name == "deeplab_v3":
            raise UserError("deeplab_v3 is not on this machine")
        return assets_of(name)

    monkeypatch.setattr(prepare_module.assets, "find", find)
    monkeypatch.setattr(prepare_module, "observe", _interrupt)
    with pytest.raises(UserError, match="deeplab_v3"):
        prepare(speaker / "video.mp4", tmp_path / "out", prior="procedural")
    assert not (tmp_path / "out").exists()


def test_finished_parts_survive_a_refusal_and_other_folders_a_failure(
    speaker, tmp_path, monkeypatch
):
    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module._Preparation, "_splits", _no_use)
        with pytest.raises(UserError, match="of no use"):
            prepare(speaker, out, size=SIZE)
    assert list((out / "parts").glob("landmarks-*.npz"))
    shutil.rmtree(tmp_path / "new")

    def fail(*args):
        (tmp_path / "new" / "other").mkdir()
        raise UserError("of no use")

    monkeypatch.setattr(prepare_module, "observe", fail)
    with pytest.raises(UserError, match="of no use"):
        prepare(speaker, out, size=SIZE)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["other"]


def test_video_without_a_face_leaves_nothing(tmp_path, assets):
    source = tmp_path / "wall.mp4"
    noise = np.random.default_rng(0)
    frames = (noise.integers(90, 110, (64, 64, 3), dtype=np.uint8) for _ in range(30))
    video.write_video(source, frames, noise.uniform(-0.1, 0.1, 19200))
    with pytest.raises(UserError, match=r"wall.mp4: a face was found in no frame"):
        prepare(source, tmp_path / "new" / "out", prior="procedural")
    assert [p.name for p in tmp_path.iterdir()] == ["wall.mp4"]


@pytest.mark.parametrize("name", ["clip [dQw4w9WgXcQ].mp4", "a[/b].mp4"])
def test_bars_show_the_names_of_files_as_they_are(name, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    monkeypatch.setenv("COLUMNS", "140")
    with Bars() as bars:
        assert list(bars.over(name, range(3), 3)) == [0, 1, 2]
    assert name in capsys.readouterr().err


def test_frames_that_are_cut_away_from_the_speaker_are_never_learned_from(clips, assets, tmp_path):
    speaker, other = (clips / n for n in ("cnn2_25fps.mp4", "WDA_KatieHill_000.mp4"))
    if not (speaker.exists() and other.exists()):
        pytest.skip(f"{speaker} or {other} is missing: set T3D_CLIPS to the folder that has them")
    frames = [f for _, f in zip(range(80), video.read_frames(speaker))]
    frames[66:74] = [f for _, f in zip(range(8), video.read_frames(other))]
    frames[50] = np.full_like(frames[0], 127)
    video.write_video(tmp_path / "clip.mp4", frames, video.read_audio(speaker)[: 80 * 640])
    meta = prepare(tmp_path / "clip.mp4", tmp_path / "out", prior="procedural", size=SIZE)
    dataset = SpeakerDataset(tmp_path / "out")
    away = np.array([50, *range(66, 74)])
    assert not dataset.track["found"][away].any()
    np.testing.assert_array_equal(dataset.track["shot"], np.repeat([0, 1, 2], [66, 8, 6]))
    assert np.isin(
        away, np.concatenate([np.arange(*pair) for pair in dataset.ranges.values()])
    ).all()
    learned = np.concatenate([dataset.frames("train"), dataset.frames("validation")])
    assert len(learned) > 20 and not np.isin(learned, away).any()
    assert meta["identity_frame"] not in away
    assert any("10.0% of the frames show a face elsewhere" in text for text in meta["warnings"])
    assert meta["quality"]["cuts"] == 2 and meta["quality"]["speaker"] == 71 / 80


def with_covered_mouth(frame, points68, colour):
    """The picture with a patch as large as a hand's palm before the mouth."""
    eyes = np.linalg.norm(points68[36] - points68[45])
    (left, top), (right, bottom) = points68[48:68].mean(0) + eyes * np.array(
        [[-0.55, -0.42], [0.55, 0.42]]
    )
    covered = frame.copy()
    patch = covered[int(top) : int(bottom), int(left) : int(right)]
    across = np.linspace(0, 4 * np.pi, len(patch))[:, None, None]
    patch[:] = colour * (0.65 + 0.4 * np.sqrt(np.abs(np.sin(across))))  # four fingers
    return covered


def departure(codes, first, end):
    """How far codes [T, n] lie off the straight line between the frames around a run, at most."""
    line = np.linspace(codes[first - 1], codes[end], end - first + 2)
    return np.abs(codes[first - 1 : end + 1] - line).max()


@pytest.mark.full
def test_a_covered_mouth_is_marked_told_and_bridged_though_a_detector_sees_one(
    clips, assets, tmp_path, capsys
):
    speaker = clips / "WDA_KatieHill_000.mp4"
    if not speaker.exists():
        pytest.skip(f"{speaker} is missing: set T3D_CLIPS to the folder that has it")
    frames = [f for _, f in zip(range(75), video.read_frames(speaker))]
    points = landmarks.detect(frames).points68
    runs = {"black": (8, 18), "skin": (50, 62)}
    skin = np.median(frames[50][points[50, 29:31, 1].astype(int), int(points[50, 30, 0])], 0)
    for kind, colour in (("black", 10), ("skin", skin)):
        for k in range(*runs[kind]):
            frames[k] = with_covered_mouth(frames[k], points[k], colour)
    assert landmarks.detect(frames).found.all(), "it invents a mouth"
    video.write_video(tmp_path / "clip.mp4", frames, video.read_audio(speaker)[: 75 * 640])
    out = tmp_path / "out"
    assert (
        cli.main(["prepare", str(tmp_path / "clip.mp4"), "--out", str(out), "--size", "128"]) == 0
    )
    assert "warning: the face is covered or turned away in 29.3% of the" in capsys.readouterr().out
    dataset = SpeakerDataset(out)
    hidden = np.concatenate([np.arange(*run) for run in runs.values()])
    np.testing.assert_array_equal(np.flatnonzero(~dataset.track["found"]), hidden)
    codes = dataset.track["expression"]
    usual = np.median([departure(codes, k, k + 10) for k in range(20, 40)])
    for run in runs.values():
        assert departure(codes, *run) < 0.7 * usual
    for split in ("train", "validation", "test"):
        assert not np.isin(dataset.frames(split), hidden).any()


@pytest.mark.full
def test_a_head_that_turns_its_back_is_marked_and_bridged(assets, tmp_path):
    calm, away = (turning_clip("procedural", swing, frames=125, size=160) for swing in (8, 160))
    gone = np.s_[:50]  # the second turns from 0 to 160° and back meanwhile
    pictures, yaw = calm.pictures, np.degrees(calm.truth["rotvec"][:, 1])
    pictures[gone], yaw[gone] = away.pictures[gone], np.degrees(away.truth["rotvec"][gone, 1])
    noise = np.random.default_rng(0).normal(0, 0.05, 125 * 640)
    video.write_video(tmp_path / "clip.mp4", pictures, noise)
    meta = prepare(tmp_path / "clip.mp4", tmp_path / "out", prior="procedural", size=96)
    track = SpeakerDataset(tmp_path / "out").track
    away = np.abs(yaw) > 70
    assert away.sum() > 30 and not track["found"][away].any()
    assert track["found"][np.abs(yaw) < 30].mean() > 0.9
    assert any("no face was found" in text for text in meta["warnings"])
    bridged, shown = (track["expression"][rows] for rows in (away, track["found"]))
    beyond = np.maximum(bridged - shown.max(0), shown.min(0) - bridged)
    assert beyond.max() < 1.0, "σ outside of what was seen"


def test_real_clip_is_tracked_and_masked(clips, assets, tmp_path):
    clip = sorted(clips.glob("*.mp4"))[0]
    frames = [f for _, f in zip(range(40), video.read_frames(clip))]
    video.write_video(tmp_path / "cut.mp4", frames, video.read_audio(clip)[: 40 * 640])
    meta = prepare(tmp_path / "cut.mp4", tmp_path / "out", prior="ict", size=SIZE)
    assert meta["quality"]["tracked"] == 1.0
    assert meta["quality"]["reprojection"] < 0.04
    assert meta["quality"]["mouth_r"] > 0.9
    dataset = SpeakerDataset(tmp_path / "out")
    box = dataset.track["face_box"][20] * SIZE
    mask = dataset.picture(20, "mask") / 255
    middle = mask[int(box[1]), int(box[0] - box[2] / 4) : int(box[0] + box[2] / 4)]
    assert middle.min() > 0.9 and 0.05 < mask.mean() < 0.7
    assert mask[:2, :2].max() < 0.5 and mask[-1].mean() < 0.2
    shutil.rmtree(tmp_path / "out")
