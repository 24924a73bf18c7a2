import io
import json
import shutil
import zipfile

import numpy as np
import pytest

from t3d import camera as cameras
from t3d import run as runs
from t3d import views
from t3d.camera import Camera
from t3d.data import video
from t3d.data.landmarks import Landmarks
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.prior import basis, morphable
from t3d.views import Drawn, Filmed, Gauge

FRAMES = np.array([0, 20, 40])  # whose depth the synthetic speaker keeps
LENS = np.array([2.2, 2.2, 0.5, 0.5], np.float32)


@pytest.fixture
def dataset(untrained):
    record = json.loads((untrained.workdir / "run.json").read_text())
    return SpeakerDataset(record["data"][0]["path"])


@pytest.fixture(scope="module")
def truth(synthetic_speaker):
    with np.load(synthetic_speaker / "truth.npz") as stored:
        return dict(stored)


def some_motion(untrained, dataset, frames):
    return runs.motion_of(untrained, untrained.speakers[0], dataset.mel, frames)


def random_gauge(rng):
    rotation = cameras.rotation_matrix(rng.normal(0, 0.3, 3))
    return Gauge(1.3, rotation, rng.normal(0, 2, 3))


def moved(gauge, points):
    return np.stack([gauge.scale * gauge.rotation @ point + gauge.shift for point in points])


# ---- geometry


def test_labels_name_the_turn():
    turns = [(0, 0), (30, 0), (-15, 0), (0, 15), (30, -15)]
    named = [views.label(*turn) for turn in turns]
    assert named == ["yaw+0", "yaw+30", "yaw-15", "pitch+15", "yaw+30pitch-15"]


@pytest.mark.parametrize("yaw", [-45.0, 0.0, 20.0])
def test_turn_is_what_the_orbit_and_the_head_turned_by(yaw):
    still = cameras.head_pose(np.zeros(3), np.array([1.0, 2.0, 90.0]))
    orbited = cameras.orbit(cameras.recorded(LENS), np.array([0, 0, 90.0]), yaw, 10.0)
    assert views.turn(still, orbited.camera_to_world) == pytest.approx(yaw, abs=1e-3)
    against = cameras.head_pose(np.array([0, np.radians(yaw), 0]), still[:3, 3])
    assert views.turn(against, np.eye(4)) == pytest.approx(yaw, abs=1e-3)


def test_gauge_is_found_again_and_what_is_left_is_in_true_units():
    rng = np.random.default_rng(0)
    gauge, points = random_gauge(rng), rng.normal(0, 5, (68, 3))
    found, off = views.gauge_of(points, moved(gauge, points))
    for a, b in zip(found, gauge):
        np.testing.assert_allclose(a, b, atol=1e-9)
    assert off == pytest.approx(0, abs=1e-9)
    noise = rng.normal(0, 0.1, (20000, 3))
    many = rng.normal(0, 5, (20000, 3))
    _, off = views.gauge_of(many, moved(gauge, many + noise))
    assert off == pytest.approx(0.1 * np.sqrt(3), rel=0.02)


def test_a_camera_of_the_true_world_sees_our_head_where_it_saw_the_true_one():
    rng = np.random.default_rng(1)
    gauge, points = random_gauge(rng), rng.normal(0, 8, (30, 3))
    poses = cameras.head_pose(rng.normal(0, 0.2, (4, 3)), np.array([0, 1, 95]) + np.zeros((4, 3)))
    camera = cameras.orbit(cameras.recorded(LENS), np.array([0, 0, 95.0]), 30, -15).camera_to_world
    in_ours = views.camera_to_head(gauge, poses, camera)
    for pose, ours in zip(poses, in_ours):
        world = points @ pose[:3, :3].T + pose[:3, 3]
        at, depth = cameras.project(Camera(LENS, camera), world)
        ours_at, ours_depth = cameras.project(Camera(LENS, ours), moved(gauge, points))
        np.testing.assert_allclose(ours_at, at, atol=1e-5)
        np.testing.assert_allclose(ours_depth, gauge.scale * depth, rtol=1e-5)


def test_cropped_lens_puts_points_where_the_crop_shows_them():
    crop, point = (70.0, 60.0, 40.0), np.array([[-3.0, 2.0, 80.0]])
    whole, _ = cameras.project(cameras.recorded(LENS), point)
    part, _ = cameras.project(cameras.recorded(views.cropped(LENS, crop, 128)), point)
    np.testing.assert_allclose(part, (whole * 128 - [50, 40]) / 40, atol=1e-6)


def test_maps_are_read_at_the_middles_of_the_rays():
    maps = np.arange(2 * 12 * 12).reshape(2, 12, 12)
    np.testing.assert_array_equal(views._sampled(maps, (6, 6, 12), 12), maps)
    np.testing.assert_array_equal(views._sampled(maps, (5, 7, 6), 2), maps[:, 5:9:3, 3:7:3])
    beside = views._sampled(maps, (0, 6, 12), 12)
    np.testing.assert_array_equal(beside[:, :, :6], np.repeat(maps[:, :, :1], 6, 2))
    np.testing.assert_array_equal(beside[:, :, 6:], maps[:, :, :6])


# ---- synthetic speakers


def filmed(rng) -> Filmed:
    masks = np.zeros((2, 32, 32))
    masks[:, 8:24, 8:24] = 1
    seen = masks[:, ::2, ::2] > 0.5
    images = np.where(masks[..., None] > 0, rng.integers(0, 255, (2, 32, 32, 3)), 255)
    depth = np.where(seen, rng.uniform(80, 90, seen.shape), np.inf)
    return Filmed(images.astype(np.uint8), masks, depth, seen)


def test_the_true_view_scores_perfectly_at_any_scale_and_errors_are_in_true_centimetres():
    true = filmed(np.random.default_rng(0))
    depth = np.where(true.seen, 2 * true.depth, 0)
    same = views.against(Drawn(true.images, true.seen * 0.9, depth), true, 2.0)
    assert np.isposinf(same["psnr"]).all() and (same["iou"] == 1).all()
    np.testing.assert_allclose(same["ssim"], 1, atol=1e-6)
    np.testing.assert_allclose(same["depth_cm"], 0, atol=1e-9)
    half = true.seen & (np.arange(16) < 8)
    off = views.against(Drawn(255 - true.images, half * 0.9, depth + 3), true, 2.0)
    np.testing.assert_allclose(off["iou"], 0.5)
    np.testing.assert_allclose(off["depth_cm"], 1.5)
    assert (off["psnr"] < 10).all() and (off["ssim"] < 0.2).all()


def test_filmed_views_are_the_datasets_pictures_with_true_masks_and_depths(
    synthetic_speaker, dataset, untrained
):
    crop, config = dataset.meta["crop"], untrained.config
    front = views._filmed(synthetic_speaker, crop, config, FRAMES, views.FRONT)
    with np.load(synthetic_speaker / "front.npz") as stored:
        rows = np.searchsorted(stored["frames"], FRAMES)
        masks, depth = stored["mask"][rows], stored["depth"][rows]
    seen = [dataset.picture(f, "head", config.size) for f in FRAMES]
    assert np.abs(front.images - np.stack(seen).astype(float)).mean() < 3
    assert front.masks.mean() == pytest.approx(masks.mean(), rel=0.02)
    assert (np.isfinite(front.depth) == front.seen).mean() > 0.995
    hit = np.isfinite(depth)
    assert np.median(front.depth[front.seen]) == pytest.approx(np.median(depth[hit]), rel=0.01)


def test_true_landmarks_fall_on_the_filmed_head_through_our_cameras(
    truth, untrained, dataset, synthetic_speaker
):
    """Our landmarks, by cameras brought over from the true world, against the true ones."""
    speaker, size = untrained.speakers[0], 64
    gauge, off = views.gauge_of(truth["head_points"], views.rest_points(speaker))
    assert 0.8 < gauge.scale < 1.25 and off < 1.0
    poses = cameras.head_pose(truth["rotvec"], truth["translation"])
    lens = views.cropped(truth["intrinsics"], dataset.meta["crop"], size)
    camera = views.camera_to_head(gauge, poses, np.eye(4, dtype=np.float32))
    lenses = np.broadcast_to(lens, (len(poses), 4))
    at, _ = cameras.project(Camera(lenses, camera), views.rest_points(speaker))
    rigid = [27, 30, 36, 39, 42, 45]
    apart = np.linalg.norm(at * size - truth["points68"], axis=-1)[:, rigid]
    assert apart.mean() < 0.75  # pixels of 64


@pytest.fixture(scope="module")
def figures(untrained, synthetic_speaker):
    record = json.loads((untrained.workdir / "run.json").read_text())
    dataset = SpeakerDataset(record["data"][0]["path"])
    frames = dataset.frames("test")
    return views.synthetic(untrained, untrained.speakers[0], dataset, frames, synthetic_speaker)


def test_every_camera_of_a_synthetic_speaker_has_its_figures(figures):
    for view in ("yaw+0", "yaw+30"):
        for name in ("psnr", "ssim", "iou", "depth_cm"):
            value = figures[f"views/{view}/{name}"]
            assert isinstance(value, str) or np.isfinite(value)
    assert figures["views/yaw+30/psnr_low"] <= figures["views/yaw+30/psnr"]
    assert figures["views/frames"] >= 1 and 0.8 < figures["views/scale"] < 1.25
    assert figures["views/fit_mm"] < 10


@pytest.mark.parametrize("way", ["tracked", "reenacted"])
def test_views_about_the_tracked_pose_have_their_figures(figures, way):
    for view in ("yaw+0", "yaw+30"):
        for name in ("psnr", "ssim", "iou", "depth_cm"):
            value = figures[f"views/{view}/{way}_{name}"]
            assert isinstance(value, str) or np.isfinite(value)


def test_what_is_reenacted_has_the_filmed_mouths_and_the_style_of_the_sound(untrained):
    record = json.loads((untrained.workdir / "run.json").read_text())
    dataset, speaker = SpeakerDataset(record["data"][0]["path"]), untrained.speakers[0]
    frames = dataset.frames("test")
    heard = runs.motion_of(untrained, speaker, runs.hear_clip(untrained, speaker, dataset), frames)
    moved = views._reenacted(untrained, speaker, dataset, heard, frames)
    np.testing.assert_array_equal(moved.style, heard.style)
    alone = views._reenacted(
        untrained, speaker, dataset, views._pick(heard, np.array([1])), frames[1:2]
    )
    np.testing.assert_allclose(alone.speech[0], moved.speech[1], atol=1e-5)
    assert np.abs(moved.speech - heard.speech).max() > 1e-3


def test_a_camera_about_a_tracked_head_sees_what_the_true_one_sees():
    """A head that was tracked half as large and half as far away looks the same from all sides,
    wherever on it the two models have their origins."""
    rng = np.random.default_rng(3)
    turns = np.array([[0.1, -0.2, 0.0], [0.0, 0.1, 0.1], [-0.1, 0.2, 0.0]])
    poses = cameras.head_pose(turns, np.array([3.0, -2.0, 80.0]) + np.eye(3))
    head = rng.normal(size=(20, 3)) * 8
    gauge = random_gauge(rng)._replace(scale=0.5)
    back = cameras.rigid(gauge.rotation.T, -gauge.rotation.T @ gauge.shift)
    tracked = poses.copy()
    tracked[:, :3, 3] *= 0.5
    tracked = tracked @ back
    recorded, pivot = cameras.recorded(LENS), np.array([3.0, -2.5, 80.5])
    orbits = [cameras.orbit(recorded, pivot, *turn) for turn in ((35.0, -10.0), (0.0, 20.0))]
    moved_to = np.stack([true.camera_to_world for true in orbits]).astype(np.float64)
    np.testing.assert_allclose(views.pivot_of(moved_to), pivot, atol=1e-3)
    ours = views.in_tracked(views.pivot_of(moved_to), gauge, poses, tracked)
    np.testing.assert_allclose(ours, pivot / 2, atol=1e-3)
    for true, pose, again in zip(orbits, poses, tracked):
        expected, _ = cameras.project(true, cameras.transform(pose, head))
        view = Camera(LENS, views.about(true.camera_to_world, ours))
        found, _ = cameras.project(view, cameras.transform(again, moved(gauge, head)))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_recorded_picture_is_no_turned_view(figures):
    assert "views/yaw+0/front_psnr" not in figures
    assert 0.4 < figures["views/yaw+30/front_iou"] < 0.95
    assert figures["views/yaw+30/front_ssim"] < 0.8


def test_a_dataset_made_with_the_truth_is_said_to_be(figures, synthetic_speaker, dataset):
    assert dataset.meta["synthetic"]
    words = figures["views/truth"]
    assert "speaker's truth" in words and f"prepare {synthetic_speaker / 'video.mp4'}" in words


def test_nothing_is_said_of_the_truth_where_the_film_alone_was_prepared(
    untrained, synthetic_speaker, dataset, monkeypatch
):
    dataset.meta["synthetic"] = False
    monkeypatch.setattr(runs, "motion_of", lambda *_: {})
    monkeypatch.setattr(views, "_reenacted", lambda *_: {})
    monkeypatch.setattr(views, "_cameras", lambda truth: iter(()))
    frames = dataset.frames("test")
    found = views.synthetic(untrained, untrained.speakers[0], dataset, frames, synthetic_speaker)
    assert "views/fit_mm" in found and "views/truth" not in found


@pytest.fixture
def copied(synthetic_speaker, tmp_path):
    return shutil.copytree(synthetic_speaker, tmp_path / "other")


@pytest.fixture
def refused(untrained, dataset, monkeypatch):
    """Asserts that a folder is refused, in one line that matches, before anything is drawn."""

    def check(folder, match, frames=None):
        frames = dataset.frames("test") if frames is None else frames
        with pytest.raises(UserError, match=match) as error:
            views.synthetic(untrained, untrained.speakers[0], dataset, frames, folder)
        assert "\n" not in str(error.value)

    monkeypatch.setattr(views, "_draw", lambda *_: pytest.fail("something was drawn"))
    return check


def test_a_good_folder_passes_the_check(untrained, dataset, synthetic_speaker):
    frames = dataset.frames("test")
    views.check_folder(untrained.speakers[0], dataset, frames, synthetic_speaker)


def test_other_folders_are_refused(refused, copied, tmp_path):
    refused(tmp_path, "truth.npz: not there.*synthesize")
    refused(copied, "other: none of its depth maps", frames=np.array([1, 2, 3]))
    shutil.copy(copied / "view_0.mp4", copied / "video.mp4")
    refused(copied, "other: is not the speaker")
    np.savez(copied / "front.npz", frames=[0])
    refused(copied, "front.npz: holds no depth, mask")


NEEDED = (
    "head_points rotvec translation intrinsics view_yaw view_pitch view_camera_to_world".split()
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_truth_that_lacks_something_is_named(refused, copied, truth, name):
    np.savez(copied / "truth.npz", **{key: truth[key] for key in truth if key != name})
    refused(copied, f"truth.npz: holds no {name}; .*synthesize")


def test_a_truth_of_other_landmarks_is_named(refused, copied, truth):
    np.savez(copied / "truth.npz", **truth | {"head_points": np.zeros((5, 3))})
    refused(copied, "truth.npz: its head_points are not 68 landmarks")


@pytest.mark.parametrize("name", ["truth.npz", "front.npz", "view_0.npz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "text", "array", "empty"])
def test_damaged_files_are_named(refused, copied, name, damage):
    path = copied / name
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        member = file.getinfo("rotvec.npy" if name == "truth.npz" else "depth.npy")
    middle = member.header_offset + member.compress_size // 2
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    contents = {
        "cut": whole[:middle],
        "changed": whole[:middle] + b"\xff" * 32 + whole[middle + 32 :],
        "text": b"no arrays",
        "array": array.getvalue(),
        "empty": b"",
    }
    path.write_bytes(contents[damage])
    refused(copied, f"{name}: damaged .*synthesize")


def test_cameras_that_miss_frames_are_named(refused, copied):
    with np.load(copied / "view_0.npz") as stored:
        arrays = dict(stored)
    np.savez(copied / "view_0.npz", **{key: value[1:] for key, value in arrays.items()})
    refused(copied, "view_0.npz: lacks frames of front.npz")
    shutil.copy(copied / "front.npz", copied / "view_0.npz")
    film = copied / "view_0.mp4"
    video.write_video(film, [np.zeros((64, 64, 3), np.uint8)] * 2)
    refused(copied, "view_0.mp4: ends before frame 20;", FRAMES[:2])
    film.unlink()
    refused(copied, "view_0.mp4: no such file")


# ---- real speakers


def test_a_view_that_is_the_3dmm_agrees_with_it():
    mesh = np.full((1, 8, 8), np.inf)
    mesh[:, 2:6, 2:6] = 90
    there = np.isfinite(mesh)
    face = there & (np.arange(8) < 4)
    drawn = Drawn(np.zeros(0), there * 1.0, np.where(there, mesh, 0) - 0.5 * face)
    same = views.against_mesh(drawn, mesh, face)
    assert (same["iou"], same["covered"]) == (1, 1) and same["depth_cm"] == 0.5
    small = Drawn(np.zeros(0), face * 1.0, drawn.depth)
    part = views.against_mesh(small, mesh, face)
    assert (part["iou"], part["covered"]) == (0.5, 0.5) and part["depth_cm"] == 0.5


def test_mesh_of_a_view_is_the_shells_and_its_face_lies_ahead(untrained, dataset):
    speaker = untrained.speakers[0]
    expression = dataset.track["expression"][FRAMES]
    poses, eyes = dataset.track["head_to_world"][FRAMES], np.stack([np.eye(4)] * 3)
    depth, face = views._mesh(speaker, expression, poses, eyes.astype(np.float32), 32)
    for k in range(3):
        camera = cameras.recorded(speaker.intrinsics)
        known = views.shell.guide(speaker.shell, expression[k], poses[k], camera, 32)["depth"]
        np.testing.assert_allclose(depth[k].reshape(-1), known, rtol=1e-5)
    there = np.isfinite(depth)
    assert not (face & ~there).any() and 0.3 < face.sum() / there.sum() < 0.95
    assert depth[face].mean() < depth[there & ~face].mean()
    points = (dataset.track["points68"][FRAMES][:, 30] * 32).astype(int)
    assert all(face[k, y, x] for k, (x, y) in enumerate(points))


def test_identity_distance_is_that_of_two_faces_laid_upon_each_other():
    model = basis.load("procedural")
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 0.5, (2, 100)).astype(np.float32)
    assert views.identity_distance(model, ours, ours) == pytest.approx(0, abs=1e-3)
    apart = views.identity_distance(model, theirs, ours)
    face = model.region == model.region_names.index("face")
    a, b = (
        np.asarray(morphable.vertices(model, code, np.zeros(79, np.float32)))[face]
        for code in (theirs, ours)
    )
    assert 0.5 < apart <= 10 * np.sqrt(((a - b) ** 2).sum(-1).mean())


def test_round_trip_recovers_yaw_and_shape_from_what_is_seen_exactly():
    """The tracker's own share of the drift: its landmarks without any picture between."""
    model = basis.load("procedural")
    rng = np.random.default_rng(0)
    identity = rng.normal(0, 0.5, 100).astype(np.float32)
    weights = {"jawOpen": np.linspace(0, 0.6, 12)}
    small = morphable.restrict(model, np.concatenate([model.landmarks68, model.lips79]))
    points = morphable.vertices(small, identity, morphable.expression_from_weights(model, weights))
    poses = cameras.head_pose(np.zeros((12, 3)), np.tile([0, 0, 120.0], (12, 1)))
    lens = np.array([4, 4, 0.5, 0.5])
    turned = cameras.orbit(cameras.recorded(lens), np.array([0, 0, 120.0]), 30, 0).camera_to_world
    eyes = np.broadcast_to(turned, poses.shape)
    camera = Camera(np.broadcast_to(lens, (12, 4)), eyes)
    at, _ = cameras.project(camera, cameras.transform(poses, points))
    at = at.astype(np.float32)
    seen = Landmarks(np.ones(12, bool), at[:, :68], at[:, 68:], None, 0.0)
    drawn = Drawn(np.full((12, 32, 32, 3), 128, np.uint8), np.ones((12, 32, 32)), np.zeros(0))
    found = views.round_trip(model, seen, drawn, views.turn(poses, eyes), identity)
    assert found["found"] == 1 and abs(found["yaw_error"]) < 2
    mean_mm = views.identity_distance(model, np.zeros(100, np.float32), identity)
    assert found["identity_mm"] < min(2.0, 0.7 * mean_mm)


def test_a_head_without_a_face_is_said_to_have_none(assets, untrained, dataset):
    frames = dataset.frames("test")[:3]
    motion = some_motion(untrained, dataset, frames)
    found = views.real(untrained, untrained.speakers[0], dataset, motion, frames)
    for yaw in views.YAWS:
        of = {k: found[f"views/{views.label(yaw)}/{k}"] for k in ("iou", "covered", "found")}
        assert all(0 <= value <= 1 for value in of.values())
        words = found[f"views/{views.label(yaw)}/identity_mm"]
        assert words.startswith("not available: a face was found in ")
    assert found["views/frames"] == 3 and not any("held_out" in name for name in found)


def test_frames_held_out_for_their_yaw_are_measured_by_how_far_they_turn(
    untrained, dataset, monkeypatch
):
    """They are the test frames, even where another split is looked at from other sides."""
    track, frames = dataset.track, dataset.frames("test")
    yaw = np.degrees(np.arctan2(track["head_to_world"][:, 0, 2], -track["head_to_world"][:, 2, 2]))
    off = np.abs(yaw - np.median(yaw))[frames]
    limit = float(np.floor(off.min()))
    dataset.meta["held_out_yaw"] = limit
    monkeypatch.setattr(views, "YAWS", ())  # no other sides
    looked_at = dataset.frames("validation")
    motion = some_motion(untrained, dataset, looked_at)
    found = views.real(untrained, untrained.speakers[0], dataset, motion, looked_at)
    counts = np.bincount(((off - limit) // views.BIN).astype(int))
    for k in np.flatnonzero(counts):
        title = f"views/held_out_{limit + 3 * k:g}_{limit + 3 * k + 3:g}"
        assert found[f"{title}/frames"] == min(counts[k], views.MOST_FRAMES)
        assert found[f"{title}/ssim"] < 1 and 0 < found[f"{title}/psnr"] < 40
    assert f"views/held_out_0_{limit:g}/ssim" in found


def test_film_frames_are_the_numbered_ones(synthetic_speaker):
    film = synthetic_speaker / "video.mp4"
    every = list(video.read_frames(film))
    some = list(views._frames_of(film, FRAMES))
    np.testing.assert_array_equal(some, [every[f] for f in FRAMES])
