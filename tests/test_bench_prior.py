"""The ruler of `t3d bench prior`."""

import numpy as np
import pytest

from t3d import bench_prior
from t3d import camera as cameras
from t3d.data import synthetic


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
