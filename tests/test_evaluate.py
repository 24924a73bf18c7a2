import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from t3d import cli, controls, evaluate, measure, report, run, talker
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.metrics import lips
from t3d.prior import basis

SYSTEMS = ("ours", "nerf", "other_audio", "mean_warp", "nearest", "reencoded", "real")


@pytest.fixture(scope="module")
def dataset(untrained):
    return SpeakerDataset(
        json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    )


@pytest.fixture(scope="module")
def found(untrained, dataset):
    return evaluate.measure(untrained, dataset)


# ---- figures


def test_gains_are_those_of_true_sound_over_other_sound(found):
    ours, other = found.series["ours"], found.series["other_audio"]
    ours = ours | {"lmd": np.full(len(found.frames), 2.0), "opening": ours["true_opening"]}
    other = other | {"lmd": np.full(len(found.frames), 4.0)}
    gains = evaluate.gain_figures(ours, other)
    assert gains["gain/lmd"] == gains["gain/lmd_low"] == pytest.approx(50)
    expected = 1 - measure.figures(other)["mouth_r"]
    assert gains["gain/mouth_r"] == pytest.approx(expected)
    assert gains["gain/mouth_r_low"] <= gains["gain/mouth_r"] <= gains["gain/mouth_r_high"]


def test_code_counts_are_the_indices_of_the_space(untrained, found):
    images = found.films["nerf"][:3]
    counts = evaluate.code_counts(untrained, images)
    standardise = jax.jit(partial(talker.standardise, untrained.talker))
    _, used = standardise(untrained.params, images.astype(np.float32) / 255)
    space = untrained.config.space
    assert counts["au"].shape == (5, space.au_codes)
    np.testing.assert_array_equal(counts["au"], np.asarray(used["au"].counts))
    np.testing.assert_array_equal(counts["global"], np.asarray(used["global"].counts))
    assert counts["global"].sum() == 3 * (untrained.config.size // space.patch) ** 2


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


def test_reencoded_frames_are_the_frames_but_for_what_the_codec_loses():
    ramp = np.add.outer(np.arange(33), np.arange(33)) * 3
    frames = np.stack([np.repeat(ramp[..., None] + k, 3, 2) for k in range(6)]).astype(np.uint8)
    again = controls.reencoded(frames)
    assert again.shape == frames.shape and again.dtype == np.uint8
    error = np.abs(again.astype(int) - frames)
    assert 0 < error.mean() < 2


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
            if not isinstance(figures[f"{system}/{name}"], str):
                assert f"{system}/{name}_low" in figures
    assert figures["real/ssim_head"] == 1 and figures["detector"] == "encoder"
    assert figures["real/psnr_head"] == "identical" and figures["real/sharpness"] == 1
    assert figures["mean_warp/ssim_head"] > figures["ours/ssim_head"]  # ours is untrained
    assert 0.9 < figures["reencoded/ssim_head"] < 1
    assert figures["reencoded/ssim_head"] > figures["nearest/ssim_head"]
    assert str(figures["ours/lpips"]).startswith("not available: ") or figures["real/lpips"] == 0
    assert 0 <= figures["judge/windows"] <= 1 and figures["judge/proved"] in ("yes", "no")
    assert figures["split"] == "test of fold 0" and isinstance(figures["frames"], int)
    assert figures["frames"] == len(found.frames) == 10 and figures["frames_left_out"] == 0
    assert set(found.series) == set(found.films) == set(SYSTEMS)
    assert all(len(s["found"]) == len(found.frames) for s in found.series.values())


def test_evaluation_looks_from_the_other_cameras_of_a_synthetic_speaker(
    untrained, dataset, synthetic_speaker, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        evaluate.turned, "synthetic", lambda *a: asked.append(a) or {"views/a": 1.0}
    )
    monkeypatch.setattr(evaluate.turned, "real", lambda *a: asked.append(a) or {"views/b": 2.0})
    frames, speaker = dataset.frames("test"), untrained.speakers[0]
    look = partial(evaluate._view_figures, untrained, speaker, dataset, None, frames)
    assert (look(None), look(synthetic_speaker), look("")) == (
        {},
        {"views/a": 1.0},
        {"views/b": 2.0},
    )
    assert asked[0] == (untrained, speaker, dataset, frames, synthetic_speaker)
    assert asked[1] == (untrained, speaker, dataset, None, frames)


def test_real_frames_without_a_face_count_in_no_figure(untrained, dataset, found):
    lost = SpeakerDataset(dataset.path)
    lost.track["found"] = lost.track["found"].copy()
    lost.track["found"][found.frames[3:5]] = False
    rest = evaluate.measure(untrained, lost)
    np.testing.assert_array_equal(rest.frames, np.delete(found.frames, [3, 4]))
    assert rest.figures["frames_left_out"] == 2
    for name in ("ssim_head", "lmd", "true_opening"):
        expected = np.delete(found.series["ours"][name], [3, 4])
        np.testing.assert_allclose(rest.series["ours"][name], expected, rtol=1e-4)


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
    assert run.dataset_of(untrained, speaker).path == dataset.path
    with pytest.raises(UserError, match="elsewhere.*--data"):
        run.dataset_of(untrained, speaker, str(tmp_path / "elsewhere"))
    other = tmp_path / "other"
    shutil.copytree(dataset.path, other)
    assert run.dataset_of(untrained, speaker, str(other)).path == other
    meta = json.loads((other / "meta.json").read_text()) | {"fingerprint": "0" * 12}
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="other.*not the dataset"):
        run.dataset_of(untrained, speaker, str(other))


def test_evaluate_command_writes_figures_sheet_and_page(
    untrained, found, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate.runs, "open_run", lambda workdir: untrained)
    monkeypatch.setattr(evaluate, "measure", lambda *_: found)
    assert cli.main(["evaluate", "--workdir", "run", "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text()) == found.figures
    for name in ("sheet.png", "report.html", "metrics.json", evaluate.SERIES):
        assert (untrained.workdir / name).stat().st_size > 500
    printed = capsys.readouterr().out
    assert report.SYSTEMS["other_audio"].split(",")[0] in printed and "report.html" in printed


def test_a_run_against_another_is_paired_on_the_same_frames(untrained, found, tmp_path):
    """The same film, each frame a little better: far less than the frames differ."""
    worse = {k: v - 0.01 if k == "ssim_head" else v for k, v in found.series["ours"].items()}
    systems = found.series | {"ours": worse}
    measure.save_series(tmp_path / evaluate.SERIES, systems, found.frames, **found.about)
    figures = evaluate.against(found, tmp_path)
    assert figures["against/ssim_head"] == pytest.approx(0.01)
    assert figures["against/ssim_head_separates"] == "yes"
    assert figures["against/ssim_separates"] == "inside the noise" and figures["against/ssim"] == 0
    assert figures["against/sync_distance"] == 0
    other_judge = found.about | {"judge": 1}
    measure.save_series(tmp_path / evaluate.SERIES, systems, found.frames, **other_judge)
    assert "different judges" in evaluate.against(found, tmp_path)["against/sync_distance"]


def test_the_whole_system_is_paired_with_the_field_alone(found):
    figures = found.figures
    for name in ("ssim_head", "lmd"):
        above = figures[f"ours/{name}"] - figures[f"nerf/{name}"]
        assert figures[f"over_nerf/{name}"] == pytest.approx(above, abs=1e-5)
        low, high = (figures[f"over_nerf/{name}_{end}"] for end in ("low", "high"))
        outside = low > 0 or high < 0
        assert figures[f"over_nerf/{name}_separates"] == ("yes" if outside else "inside the noise")


@pytest.mark.parametrize(
    "shift, about, said",
    [(0, {"dataset": "b"}, "another dataset"), (0, {"size": 9}, "another size"), (3, {}, "frames")],
)
def test_a_run_measured_on_something_else_is_refused(found, tmp_path, shift, about, said):
    path = tmp_path / evaluate.SERIES
    measure.save_series(path, found.series, found.frames + shift, **(found.about | about))
    with pytest.raises(UserError, match=f"{tmp_path.name}.*{said}"):
        evaluate.against(found, tmp_path)


def test_a_run_that_was_never_evaluated_is_said_before_anything_is_rendered(
    untrained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate.runs, "open_run", lambda workdir: untrained)
    monkeypatch.setattr(evaluate, "measure", lambda *_: pytest.fail("rendered"))
    assert cli.main(["evaluate", "--workdir", "run", "--against", str(tmp_path)]) == 2
    assert "evaluate it first" in capsys.readouterr().err


def test_demo_tells_the_render_command_all_that_it_asks_for(monkeypatch, tmp_path):
    from t3d import demo

    command = ["render", "--workdir", "a", "--audio", "b", "--out", "c.mp4"]
    known, told = vars(cli.parse(command)), {}
    monkeypatch.setattr(demo.render, "render_command", lambda args: told.update(vars(args)))
    demo._render(tmp_path, tmp_path / "a.wav", "orbit", tmp_path / "a.mp4")
    added = {"command", "run", "debug", "overrides", "outputs", "files"}
    assert told.keys() == known.keys() - added
    assert set(demo.FILMS.values()) <= {"front", "orbit", "recorded"}
