"""The ruler of `t3d bench speech`."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from t3d import bench_speech, checkpoint, cli, config, controls
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.prior import basis
from t3d.prior.encoder import marks_basis
from t3d.speech import features


@pytest.fixture(scope="module")
def dataset(untrained):
    data = json.loads((untrained.workdir / "run.json").read_text())["data"]
    return SpeakerDataset(data[0]["path"])


def folds():
    """Two folds in which every system says the truth, but for noise and for the ridge."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        truth = rng.normal(size=200)
        fold = {"opening": truth, "error_mean": np.full(200, 0.2)}
        fold |= {f"opening_{name}": truth for name in (*bench_speech.SYSTEMS, "white", "pink")}
        fold |= {f"error_{name}": np.full(200, 0.1) for name in bench_speech.SYSTEMS}
        fold["opening_ridge"] = truth + rng.normal(size=200)
        fold["opening_white"] = -truth
        fold["error_ridge"] = np.full(200, 0.15)
        fold |= {"manner_own": np.full(200, 3.0), "manner_shuffled": np.full(200, 4.0)}
        made.append(fold)
    return made


def test_figures_of_known_series_are_what_they_must_be():
    found = bench_speech.fold_figures(folds())
    assert found["fused/mouth_r"] == pytest.approx(1) and found["fused/gain"] == pytest.approx(50)
    assert found["ridge/mouth_r"] == pytest.approx(0.71, abs=0.06)
    assert found["ridge/gain"] == pytest.approx(25)
    assert found["noise/white_costs"] == pytest.approx(2)
    assert found["noise/pink_costs"] == pytest.approx(0)
    above = found["fused_above_ridge/mouth_r"]
    assert above == pytest.approx(1 - found["ridge/mouth_r"])
    low, high = (found[f"fused_above_ridge/mouth_r_{end}"] for end in ("low", "high"))
    assert 0 < low < above < high
    assert found["fused_above_ridge/gain_low"] == pytest.approx(25)
    assert found["style/helps"] == found["style/helps/1"] == pytest.approx(25)


def test_of_runs_up_to_lip_there_are_figures_of_the_sounds_codes_alone(untrained, dataset):
    deaf = dataclasses.replace(untrained, params={"lip": untrained.params["lip"]})
    series = bench_speech.series_of(deaf, dataset)
    found = bench_speech.fold_figures([series])
    assert {name.split("/")[0] for name in found} == {"sound", "ridge", "sound_above_ridge"}
    assert found["sound/mouth_r"] == found["sound/mouth_r/0"]


def test_a_ridge_without_penalty_is_least_squares_and_with_much_the_mean():
    rng = np.random.default_rng(0)
    known, weights = rng.normal(size=(50, 4)), rng.normal(size=(4, 3))
    values, wanted = known @ weights + 2, rng.normal(size=(5, 4))
    said = controls.ridge(known, values, wanted, 1e-6)
    np.testing.assert_allclose(said, wanted @ weights + 2, atol=1e-2)
    held = controls.ridge(known, values, wanted, 1e9)
    np.testing.assert_allclose(held, np.broadcast_to(values.mean(0), held.shape), atol=1e-4)


def test_the_mouth_opens_by_the_codes_and_errors_are_distances_of_lip_vertices(dataset):
    mouth = bench_speech.Mouth(dataset)
    codes = np.zeros((3, 79), np.float32)
    lips = marks_basis(basis.load(dataset.meta["prior"]))[-79:, 68 * 3 :]
    widest = int(np.argmax(np.square(lips).sum(1)))
    codes[1, widest], codes[2, widest] = 1.0, 2.0
    opening = mouth.opening(codes)
    assert abs(opening[2] - opening[0]) > abs(opening[1] - opening[0]) > 0
    moved = np.linalg.norm(lips[widest].reshape(79, 3), axis=-1).mean()
    np.testing.assert_allclose(mouth.error(codes, 0 * codes), [0, moved, 2 * moved], rtol=1e-5)


def test_every_system_speaks_of_every_unseen_frame(untrained, dataset):
    series = bench_speech.series_of(untrained, dataset)
    frames = len(dataset.frames("test"))
    assert all(len(values) == frames for values in series.values())
    assert all(np.isfinite(values).all() for values in series.values())
    assert series["error_mean"].mean() > 0


def test_speed_tells_operations_and_that_a_stream_gives_the_same(untrained, dataset, monkeypatch):
    monkeypatch.setattr(bench_speech, "SECONDS", 1.0)
    found = bench_speech.speed_figures(untrained, dataset)
    assert found["stream/differs_by"] < 1e-5
    assert 0 < found["speed/gflop_a_frame"] < 0.4
    assert min(found["speed/times_real_time"], found["stream/times_real_time"]) > 0


def test_the_clip_must_be_long_and_the_runs_have_a_folder(dataset, tmp_path, capsys):
    assert cli.main(["bench", "speech", "--data", str(dataset.path)]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["bench", "speech", "--data", str(dataset.path), "--out", str(tmp_path)]) == 2
    assert "30 s" in capsys.readouterr().err


@pytest.mark.full
def test_a_fold_is_trained_measured_and_not_trained_again(clips, assets, tmp_path, capsys):
    """On a real clip with the tiny config; a second call reads what the first one measured."""
    from t3d import config as configs
    from t3d.data.prepare import prepare

    prepare(clips / "cnn2_25fps.mp4", tmp_path / "data", size=64)
    dataset, config = SpeakerDataset(tmp_path / "data"), configs.load_config("tiny", [])
    voice = features.coloured_noise(16000, 0.5, np.random.default_rng(0)).astype(np.float32)
    ask = (config, dataset, tmp_path / "runs", 0.1 * voice, [3])
    found = bench_speech.bench_speech(*ask)
    lines = []
    again = bench_speech.bench_speech(*ask, log=lines.append)
    assert not any("step" in line for line in lines)
    same = [name for name in found if not name.startswith(("speed/", "stream/"))]
    assert all(found[name] == again[name] for name in same)
    assert 0.5 < found["ridge/mouth_r"] < 0.8


def test_a_fold_is_measured_anew_for_another_voice_or_smoothing(dataset, tmp_path, monkeypatch):
    measured = []

    def figures(run, dataset, voice):
        measured.append(voice)
        return {"voice/deviation": float(np.sum(voice))}

    learner = SimpleNamespace(is_finished=lambda name: True)
    monkeypatch.setattr(bench_speech.runs, "Learner", lambda *_: learner)
    monkeypatch.setattr(bench_speech.runs, "train", lambda *_: None)
    monkeypatch.setattr(bench_speech.runs, "open_run", lambda *_: None)
    monkeypatch.setattr(bench_speech, "series_of", lambda *_: {"a": np.zeros(2)})
    monkeypatch.setattr(bench_speech, "other_figures", figures)

    def trained(number):
        entries = {name: {"sha256": f"{number}{name}"} for name in bench_speech.STAGES}
        checkpoint.update_run(tmp_path, stages=entries)

    trained(1)
    tiny = config.load_config("tiny")
    smoother = config.load_config("tiny", ["speech.smooth=2.0"])
    voices = [np.full(3, value) for value in (1.0, 2.0)]
    for made, voice in ((tiny, voices[0]), (tiny, voices[1]), (smoother, voices[1])) * 2:
        _, told = bench_speech._fold(made, dataset, tmp_path, voice, bench_speech.STAGES, print)
        assert told["voice/deviation"] == voice.sum()
    assert len(measured) == 3
    trained(2)
    bench_speech._fold(tiny, dataset, tmp_path, voices[0], bench_speech.STAGES, print)
    assert len(measured) == 4
