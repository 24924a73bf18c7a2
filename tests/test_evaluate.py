import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from t3d import camera as cameras
from t3d import cli, controls, evaluate, report
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.metrics import image, lips
from t3d.prior import basis

SYSTEMS = ("ours", "nerf", "other_audio", "mean_warp", "nearest", "real")


@pytest.fixture(scope="module")
def dataset(untrained):
    return SpeakerDataset(
        json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    )


@pytest.fixture(scope="module")
def found(untrained, dataset, synthetic_speaker):
    return evaluate.measure(untrained, dataset, views=synthetic_speaker)


# ---- figures


def test_image_figures_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 24, 24, 3)).astype(np.uint8)
    masks = (rng.random((3, 24, 24)) > 0.4).astype(float)
    figures = evaluate.image_figures(a, b, masks)
    np.testing.assert_allclose(figures["ssim"], image.ssim(a / 255, b / 255), atol=1e-9)
    np.testing.assert_allclose(
        figures["ssim_head"], image.ssim_over(a / 255, b / 255, masks), atol=1e-9
    )
    error = ((a / 255.0 - b / 255.0) ** 2).mean(-1)
    expected = [-10 * np.log10(e[m > 0].mean()) for e, m in zip(error, masks)]
    np.testing.assert_allclose(figures["psnr_head"], expected, atol=1e-9)
    whole = evaluate.image_figures(a, b, np.ones_like(masks))["psnr_head"]
    np.testing.assert_allclose(whole, image.psnr(a / 255, b / 255), atol=1e-9)


def marks(opening, rng=None):
    """Marks of faces whose mouths are open by `opening` (pixels); all other points lie still."""
    points = np.random.default_rng(1).uniform(10, 50, (68, 2))
    points[36], points[45] = [10, 20], [50, 20]
    points = np.tile(points, (len(opening), 1, 1))
    points[:, 62], points[:, 66] = [30, 40], [30, 40]
    points[:, 66, 1] += opening
    mouth = np.tile(np.random.default_rng(2).uniform(20, 40, (79, 2)), (len(opening), 1, 1))
    mouth[:, :40, 1] += opening[:, None]
    au = (np.arange(len(opening) * 5).reshape(-1, 5) % 3 == 0).astype(float)
    return evaluate.Marks(points, mouth, au)


def test_a_perfect_face_scores_perfectly_and_unfound_faces_count_as_worst():
    opening = 4 + 3 * np.sin(np.arange(60) / 4)
    truth = marks(opening)
    figures, lmd = evaluate.face_figures(truth, truth)
    assert figures["lmd"] == pytest.approx(0, abs=1e-9) and figures["lmd_px"] == 0
    assert figures["mouth_r"] == pytest.approx(1) and figures["found"] == 1
    assert figures["au_accuracy"] == 1 and lmd.shape == (60,)
    lost = marks(opening)
    for array in (lost.points68, lost.lips79, lost.au):
        array[::2] = np.nan
    worse, _ = evaluate.face_figures(lost, truth)
    assert worse["found"] == 0.5 and worse["lmd"] == pytest.approx(lips.MISSING / 2)
    assert worse["mouth_r"] < 0.3 and worse["au_accuracy"] == pytest.approx(0.5)


def test_gains_are_those_of_true_sound_over_other_sound():
    opening = 4 + 3 * np.sin(np.arange(100) / 4)
    truth, still = marks(opening), marks(4 + 3 * np.cos(np.arange(100) / 7))
    lmd = {"ours": np.full(100, 2.0), "other_audio": np.full(100, 4.0)}
    gains = evaluate.gain_figures(truth, truth, still, lmd)
    assert gains["gain/lmd"] == pytest.approx(50)
    expected = 1 - np.corrcoef(opening, still.opening)[0, 1]
    assert gains["gain/mouth_r"] == pytest.approx(expected, abs=1e-6)
    assert gains["gain/mouth_r_low"] < gains["gain/mouth_r"] < gains["gain/mouth_r_high"]


# ---- controls


def test_warp_carries_a_picture_with_its_points():
    grey = np.full((64, 64, 3), 255, np.uint8)
    grey[20:24, 30:34] = 0
    source = np.array([[0.5, 0.34], [0.2, 0.2], [0.8, 0.3]])
    moved = controls.warped(grey, source, source + [0.125, -0.0625])
    np.testing.assert_array_equal(moved[16:20, 38:42], 0)
    assert (moved == 0).all(-1).sum() == 16
    turned = controls.warped(grey, source, 1 - source)  # half a turn
    np.testing.assert_allclose(turned, grey[::-1, ::-1], atol=1)


def test_mean_frame_of_moved_copies_is_the_picture_itself():
    rng = np.random.default_rng(0)
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[24:40, 24:40] = rng.integers(0, 255, (16, 16, 3))
    points = rng.uniform(0.3, 0.7, (8, 2))
    shifts = np.array([[0, 0], [2, 0], [0, -3], [-4, 4]]) / 64
    copies = [controls.warped(picture, points, points + shift) for shift in shifts]
    source = points + shifts[:, None]
    mean = controls.warped_mean(copies, source, points[None] + 5 / 64)
    expected = controls.warped(picture, points, points + 5 / 64)
    assert np.abs(mean[0].astype(int) - expected).max() <= 1


def test_rigid_points_of_a_pose_are_the_landmarks_of_the_calm_face(dataset):
    track = dataset.track
    model = basis.load("procedural")
    at = controls.rigid_points(
        model, track["identity"], track["intrinsics"], track["head_to_world"]
    )
    seen = track["points68"][:, list(lips.RIGID)]
    assert (
        np.linalg.norm(at - seen, axis=-1).mean()
        < 0.1 * lips.eye_distance(track["points68"]).mean()
    )


def test_nearest_finds_itself_and_weighs_groups_alike():
    rng = np.random.default_rng(0)
    pose, sound = rng.normal(size=(20, 3)) * [1, 100, 0.01], rng.normal(size=(20, 50))
    order = rng.permutation(20)
    np.testing.assert_array_equal(
        controls.nearest([pose, sound], [pose[order], sound[order]]), order
    )
    brute = [
        np.argmin(
            ((pose - p) ** 2 / pose.var(0)).mean(1) + ((sound - s) ** 2 / sound.var(0)).mean(1)
        )
        for p, s in zip(pose + 0.1, sound[::-1])
    ]
    np.testing.assert_array_equal(controls.nearest([pose, sound], [pose + 0.1, sound[::-1]]), brute)


def test_other_sound_is_from_training_and_as_long():
    train = np.arange(100, 160)
    assert list(evaluate.elsewhere(train, 5)) == [130, 131, 132, 133, 134]
    assert set(evaluate.elsewhere(train, 90)) == set(train)


# ---- all of it


def test_evaluation_measures_every_system_in_flat_json(found):
    figures = found.figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert all(isinstance(value, (int, float, str)) for value in figures.values())
    for system in SYSTEMS:
        for name in ("ssim_head", "psnr_head", "lmd", "mouth_r", "au_accuracy", "found", "lpips"):
            assert f"{system}/{name}" in figures
    assert figures["real/ssim_head"] == 1 and figures["detector"] == "encoder"
    assert figures["mean_warp/ssim_head"] > figures["ours/ssim_head"]  # ours is untrained
    assert str(figures["ours/lpips"]).startswith("not available: ") or figures["real/lpips"] == 0
    assert 0 <= figures["judge/validation_accuracy"] <= 1
    assert figures["split"] == "test of fold 0" and isinstance(figures["frames"], int)


def test_evaluation_compares_the_other_cameras_of_a_synthetic_speaker(found):
    assert found.figures["view_0/yaw"] == 30
    assert {"view_0/ssim_head", "view_0/psnr_head"} <= set(found.figures)


def test_bare_head_lies_in_the_true_mask_and_fills_it_but_for_the_hair(synthetic_speaker):
    with np.load(synthetic_speaker / "truth.npz") as stored:
        truth = dict(stored)
    masks = np.load(synthetic_speaker / "mask.npz")["mask"]
    frames = np.array([0, 20, 40])
    poses = cameras.head_pose(truth["rotvec"][frames], truth["translation"][frames])
    bare = evaluate._bare_heads(truth, frames, poses, np.eye(4, dtype=np.float32), 64) > 0.5
    assert (bare & masks[frames]).sum() > 0.97 * bare.sum()
    assert bare.sum() > 0.7 * masks[frames].sum()


def test_our_render_uses_no_pixel_of_the_split(untrained, dataset, found, monkeypatch):
    """Every picture of the split read as black: what we render stays the same to the bit."""
    test = set(dataset.frames("test").tolist())
    read = SpeakerDataset.picture

    def censored(self, frame, kind, size=None):
        picture = read(self, frame, kind, size)
        return np.zeros_like(picture) if int(frame) in test and kind == "head" else picture

    monkeypatch.setattr(SpeakerDataset, "picture", censored)
    blind = evaluate.measure(untrained, dataset)
    assert not blind.films["real"].any()
    for system in ("ours", "nerf", "other_audio", "mean_warp", "nearest"):
        np.testing.assert_array_equal(blind.films[system], found.films[system])


def test_a_moved_or_exchanged_dataset_is_named(untrained, dataset, tmp_path):
    speaker = untrained.speakers[0]
    assert evaluate.dataset_of(untrained, speaker).path == dataset.path
    with pytest.raises(UserError, match="elsewhere.*--data"):
        evaluate.dataset_of(untrained, speaker, str(tmp_path / "elsewhere"))
    other = tmp_path / "other"
    shutil.copytree(dataset.path, other)
    assert evaluate.dataset_of(untrained, speaker, str(other)).path == other
    meta = json.loads((other / "meta.json").read_text()) | {"source_sha256": "0" * 64}
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="other.*not the dataset"):
        evaluate.dataset_of(untrained, speaker, str(other))


def test_evaluate_command_writes_figures_sheet_and_page(
    untrained, found, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate.runs, "open_run", lambda workdir: untrained)
    monkeypatch.setattr(evaluate, "measure", lambda *_: found)
    assert cli.main(["evaluate", "--workdir", "run", "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text()) == found.figures
    for name in ("sheet.png", "report.html", "metrics.json"):
        assert (untrained.workdir / name).stat().st_size > 500
    printed = capsys.readouterr().out
    assert report.SYSTEMS["other_audio"].split(",")[0] in printed and "report.html" in printed


def test_demo_settings_fit_the_render_command():
    from t3d import demo

    known = vars(cli.parse(["render", "--workdir", "a", "--audio", "b", "--out", "c"]))
    needed = {"workdir", "audio", "camera", "out", "output", "size", "speaker"}
    assert needed <= set(known) and set(demo.FILMS.values()) <= {"front", "orbit", "recorded"}
    assert isinstance(SimpleNamespace(**known).camera, str)
