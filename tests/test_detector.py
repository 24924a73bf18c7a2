"""Where MediaPipe is missing the run's own encoder looks for faces, and the figures say so."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from t3d import evaluate, measure
from t3d.data import quality
from t3d.data.pipeline import to_face
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.metrics import lips
from t3d.prior import basis

# t3d where Python finds no package of that name.
WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mediapipe":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from t3d import cli
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def by_mediapipe(untrained, tmp_path_factory):
    """A copy of the dataset that says MediaPipe found its faces."""
    run = json.loads((untrained.workdir / "run.json").read_text())
    copy = tmp_path_factory.mktemp("dataset") / "speaker"
    shutil.copytree(run["data"][0]["path"], copy)
    meta = json.loads((copy / "meta.json").read_text())
    meta["detector"] = "mediapipe-face-landmarker"
    (copy / "meta.json").write_text(json.dumps(meta))
    return copy


def test_evaluate_falls_back_on_the_encoder_and_says_why(untrained, by_mediapipe, tmp_path, assets):
    run = tmp_path / "run"
    shutil.copytree(untrained.workdir, run)
    command = [sys.executable, "-c", WITHOUT, "evaluate", "--workdir", run, "--data", by_mediapipe]
    env = os.environ | {"T3D_ASSETS": str(assets)}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["detector"] == "encoder"
    assert "pip install mediapipe" in figures["note/detector"]
    assert done.stdout.splitlines()[0] == figures["note/detector"]
    assert "own encoder" in (run / "report.html").read_text()


def test_the_encoder_stands_in_where_mediapipes_model_is_missing(
    by_mediapipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(measure, "mediapipe_missing", measure.mediapipe_missing.__wrapped__)
    for name in ("T3D_ASSETS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    data = SpeakerDataset(by_mediapipe)
    assert evaluate.detector_of(data) == "encoder"
    assert "face_landmarker.task is not on this machine" in evaluate.detector_note(data)


def test_figures_of_the_encoder_are_those_of_its_landmarks(untrained, by_mediapipe):
    data = SpeakerDataset(by_mediapipe)
    found = measure.encoder_figures(untrained, data, "validation")
    frames, track = data.frames("validation"), data.track
    faces = np.stack([data.picture(f, "face") for f in frames]) / np.float32(255)
    said = untrained.talker.encoder.apply(untrained.params["prior"], faces)
    true = to_face(track["points68"][frames], track["face_box"][frames])
    eyes = lips.eye_distance(true)[:, None]

    def error(points):
        return 100 * np.mean((np.linalg.norm(points - true, axis=-1) / eyes)[:, 48:68])

    np.testing.assert_allclose(
        found["points/mouth_error"], error(np.asarray(said["points"])[:, :68]), rtol=1e-3
    )
    tracked = quality.fitted_points(basis.load("procedural"), track)[frames]
    off = error(to_face(tracked, track["face_box"][frames]))
    np.testing.assert_allclose(found["tracker/mouth_error"], off, rtol=1e-3)
    assert found["points/ratio"] == found["points/mouth_error"] / found["tracker/mouth_error"]
    assert found["frames"] == len(frames) and np.isfinite(list(found.values())).all()
