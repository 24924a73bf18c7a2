import numpy as np
import pytest

from t3d import worst

T = 200


@pytest.fixture
def series():
    """A film that is evenly good."""
    rng = np.random.default_rng(0)
    true = 0.1 + 0.05 * np.sin(np.arange(T) / 3)
    return {
        "true_opening": true,
        "opening": true + rng.normal(0, 0.002, T),
        "ssim_head": 0.9 + rng.normal(0, 0.005, T),
        "sharpness": 80 + rng.normal(0, 1, T),
        "true_sharpness": np.full(T, 100.0),
    }


def test_each_fault_is_found_and_named(series):
    series["opening"][20] = np.nan
    series["opening"][50] += 0.2
    series["opening"][80] -= 0.19
    series["ssim_head"][110] = 0.3
    series["sharpness"][140] = 8.0
    found = {bad.row: bad.cause for bad in worst.worst(series, count=5)}
    assert next(iter(found)) == 20 and "no face found" in found[20]
    assert found[50].startswith("mouth too open by 20.")
    assert found[80].startswith("mouth too closed by 1")
    assert found[110].startswith("image error: SSIM over the head 0.30, median 0.9")
    assert found[140].startswith("blur: sharpness 8% of the real, median 80%")


def test_all_causes_of_a_frame_are_named_the_gravest_first(series):
    series["ssim_head"][110] = 0.3
    series["sharpness"][110] = 30.0
    turned = np.zeros(T)
    turned[110] = 7.2
    cause = worst.worst(series, turned, count=1)[0].cause.split("; ")
    assert [c.split(" ")[0] for c in cause] == ["image", "blur:", "head"]
    assert cause[-1] == "head turned 7° further than in training"


def test_neighbours_of_a_bad_frame_are_left_out(series):
    series["ssim_head"][100:104] = [0.2, 0.3, 0.3, 0.3]
    rows = np.array([bad.row for bad in worst.worst(series)])
    assert len(rows) == 10 and rows[0] == 100
    assert np.diff(np.sort(rows)).min() >= worst.APART


def test_frames_whose_truth_has_no_face_are_not_called_lost(series):
    series["true_opening"][30] = series["opening"][30] = np.nan
    assert all("no face" not in bad.cause for bad in worst.worst(series))


def test_a_film_equal_to_the_truth_has_no_worst_frames(series):
    series |= {"opening": series["true_opening"], "sharpness": series["true_sharpness"]}
    assert worst.worst(series | {"ssim_head": np.ones(T)}) == []


def test_beyond_is_the_angle_to_the_nearest_view_of_training():
    def poses(degrees):
        a = np.radians(degrees)
        turn = np.tile(np.eye(4), (len(a), 1, 1))
        turn[:, 0, 0], turn[:, 0, 2], turn[:, 2, 0], turn[:, 2, 2] = (
            np.cos(a),
            np.sin(a),
            -np.sin(a),
            np.cos(a),
        )
        turn[:, :3, 3] = (0.0, 0.0, 60.0)  # cm in front of the camera
        return turn

    found = worst.beyond(poses(np.arange(-10.0, 11.0)), poses(np.array([0.0, 10.0, 14.0, -25.0])))
    np.testing.assert_allclose(found, [0, 0, 4, 15], atol=1e-4)
