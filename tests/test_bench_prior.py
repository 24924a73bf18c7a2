"""The ruler of `t3d bench prior`."""

import json
import time

import numpy as np
import pytest

from t3d import bench, bench_prior, cli, measure
from t3d import camera as cameras
from t3d.data import synthetic
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.prior import raster


@pytest.fixture(scope="module")
def clip():
    return synthetic.turning_clip("procedural", 25.0, frames=30, size=64)


def true_fit(clip):
    truth = clip.truth
    return {
        "head_to_world": cameras.head_pose(truth["rotvec"], truth["translation"]),
        "expression": truth["expression"],
        "intrinsics": truth["intrinsics"],
        "focal_deviation": np.float32(0.1),
        "psnr": np.full(30, 40.0),
        "jitter": np.array([0.4, 0.2]),
    }


def test_the_truth_has_no_error(clip):
    found = bench_prior.track_figures(clip, true_fit(clip))
    assert found["rotation_degrees"] < 0.05 and found["expression_pixels"] < 1e-4
    assert found["focal"] == 1 and found["focal_observable"] == 1
    assert found["relighting"] == pytest.approx(0.01) and found["jitter"] == pytest.approx(0.5)


def test_a_turned_head_and_a_shut_mouth_are_errors(clip):
    wrong = true_fit(clip)
    wrong["head_to_world"] = cameras.head_pose(
        clip.truth["rotvec"] + np.float32([0, np.radians(3), 0]), clip.truth["translation"]
    )
    wrong["expression"] = np.zeros_like(clip.truth["expression"])
    found = bench_prior.track_figures(clip, wrong)
    assert found["rotation_degrees"] == pytest.approx(3, abs=0.1)
    assert found["expression_pixels"] > 0.1  # of 64


def test_the_head_swings_and_its_landmarks_lie_on_the_pictures(clip):
    assert np.degrees(np.ptp(clip.truth["rotvec"][:, 1])) > 20
    nose = (clip.truth["points68"][:, 30] * 64).astype(int)
    assert clip.masks[np.arange(30), nose[:, 1], nose[:, 0]].all()
    off = (clip.points68 - clip.truth["points68"]) * 64
    assert off.std() == pytest.approx(1.0, abs=0.05)


def test_the_rasteriser_is_timed_on_the_mesh_of_the_bar(assets, monkeypatch):
    drawn = []

    def slower(*mesh, rasterize=raster.rasterize):
        drawn.append(mesh)
        time.sleep(0.02)
        return rasterize(*mesh)

    plain = bench_prior.raster_figures()
    monkeypatch.setattr(raster, "rasterize", slower)
    found = bench_prior.raster_figures()
    uv, depth, triangles, *sizes = drawn[0]
    assert sizes == [512, 512] and 0.4 < plain["rasteriser: covered"] < 0.6
    assert plain["rasteriser: vertices"] == len(uv) == len(depth) >= 25_000
    assert plain["rasteriser: triangles"] == len(triangles) >= 52_000
    for name in ("seconds", "seconds, all images"):
        assert found[f"rasteriser: {name}"] >= 0.02
        assert 0 < plain[f"rasteriser: {name}"] < 0.5  # compiling takes seconds; the bar is 0.03


@pytest.mark.full
def test_prepare_is_timed_from_its_start_to_its_end(synthetic_speaker, monkeypatch):
    monkeypatch.setattr(bench_prior, "SIZE", 64)
    began = time.perf_counter()
    found = bench_prior.prepare_figures(str(synthetic_speaker))
    elapsed = time.perf_counter() - began
    assert found["prepare: frames"] == 50
    assert 0.5 * elapsed < 50 / found["prepare: frames/s"] < elapsed
    assert 0.1 < found["prepare: peak GiB"] < 8  # Python and its libraries alone are the former


def test_a_video_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--prepare .*none\.mp4: .* no such file[^\n]*$"):
        bench_prior.prepare_figures(str(tmp_path / "none.mp4"))


@pytest.fixture
def speaker(untrained):
    record = json.loads((untrained.workdir / "run.json").read_text())
    return SpeakerDataset(record["data"][0]["path"])


def test_the_encoder_of_each_run_is_read_on_its_dataset(assets, untrained, speaker, monkeypatch):
    monkeypatch.setattr(bench_prior, "PRIORS", ())
    without = bench_prior.bench_prior([speaker], [], None)
    found = bench_prior.bench_prior([speaker], [untrained], None)
    added = {key: found[key] for key in found.keys() - without.keys()}
    said = measure.encoder_figures(untrained, speaker, "test")
    assert added == {f"{speaker.name}, encoder of run: {key}": v for key, v in said.items()}
    assert found["speaker: reprojection"] == speaker.meta["quality"]["reprojection"]
    assert not any(key.startswith("prepare") for key in found)


def test_runs_go_with_the_datasets_and_their_head_model(untrained, speaker):
    run = str(untrained.workdir)
    one, two = bench._encoders(run, [speaker, speaker])
    assert one.workdir == two.workdir == untrained.workdir
    assert bench._encoders(None, [speaker]) == []
    with pytest.raises(UserError, match=r"one for each dataset of --data \(1 given\)"):
        bench._encoders(f"{run},{run}", [speaker])
    with pytest.raises(UserError, match=r"\(0 given\)"):
        bench._encoders(run, [])
    speaker.meta["prior"] = "ict"
    with pytest.raises(UserError, match="prepared with --prior procedural"):
        bench._encoders(run, [speaker])


def test_the_command_writes_the_figures_of_the_run(
    assets, untrained, speaker, monkeypatch, tmp_path
):
    monkeypatch.setattr(bench_prior, "PRIORS", ())
    run, out = str(untrained.workdir), tmp_path / "figures.json"
    command = ["bench", "prior", "--data", str(speaker.path), "--run", run, "--json", str(out)]
    assert cli.main(command) == 0
    figures = json.loads(out.read_text())
    said = measure.encoder_figures(untrained, speaker)
    assert figures["speaker, encoder of run: encoder/mouth_error"] == said["encoder/mouth_error"]
    assert figures["rasteriser: seconds"] > 0
