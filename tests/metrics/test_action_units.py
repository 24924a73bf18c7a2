"""AU labels, their accuracy, and OpenFace's tables."""

import numpy as np
import pytest

from t3d.errors import UserError
from t3d.metrics import action_units as au

NAMES = ("jawOpen", "mouthDimple_L", "mouthDimple_R", "mouthShrugUpper", "mouthStretch_L",
         "mouthStretch_R")  # fmt: skip


def _points(gap, frames):
    points = np.zeros((frames, 68, 2))
    points[:, 45, 0] = 100.0
    points[:, 66, 1] = 100.0 * gap
    return points


@pytest.mark.parametrize(
    ("shapes", "unit"),
    [
        (("mouthShrugUpper",), 10),
        (("mouthDimple_L", "mouthDimple_R"), 14),
        (("mouthStretch_L", "mouthStretch_R"), 20),
        (("jawOpen",), 26),
    ],
)
def test_a_shape_switches_on_its_au_alone(shapes, unit):
    weights = np.zeros((2, len(NAMES)))
    weights[1, [NAMES.index(s) for s in shapes]] = 0.5
    labels, intensity = au.from_blendshapes(weights, NAMES, _points(0.0, 2))
    expected = np.zeros((2, 5))
    expected[1, au.ACTION_UNITS.index(unit)] = 1.0
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(intensity, 0.5 * expected)


def test_parted_lips_are_au25():
    labels, intensity = au.from_blendshapes(np.zeros((3, 6)), NAMES, _points(0.08, 3))
    np.testing.assert_array_equal(labels, np.tile([0, 0, 0, 1, 0], (3, 1)))
    np.testing.assert_allclose(intensity[:, 3], 0.08, rtol=1e-6)


def test_a_table_that_ends_in_mid_row_is_one_line(tmp_path):
    head = "frame, face_id, success, " + ", ".join(f"AU{u}_c" for u in (10, 14, 20, 25, 26))
    (tmp_path / "cut.csv").write_text(f"{head}\n1, 0, 1, 1, 0, 0, 1, 0\n2\n")
    with pytest.raises(UserError, match="cut.csv: a damaged OpenFace table"):
        au.read_openface(tmp_path / "cut.csv")


def test_a_frame_without_a_face_has_no_labels():
    labels, _ = au.from_blendshapes(np.full((1, 6), np.nan), NAMES, _points(0.1, 1) * np.nan)
    assert np.isnan(labels).all()


def test_accuracy_by_hand():
    true = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 0]])
    guess = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [0, 0]])
    score = au.au_accuracy(guess, true, units=(10, 25))
    assert score.accuracy == pytest.approx({"AU10": 0.8, "AU25": 0.8})
    assert score.balanced_accuracy == pytest.approx(
        {"AU10": (1 / 2 + 1) / 2, "AU25": (1 + 2 / 3) / 2}
    )
    assert score.mean == pytest.approx(0.8) and score.absent == () == score.constant


def test_absent_and_constant_aus_are_named_and_not_counted():
    true = np.zeros((100, 3))
    true[:, 1] = 1.0
    true[::2, 2] = 1.0
    guess = true.copy()
    guess[:25, 2] = 0.0
    score = au.au_accuracy(guess, true, units=(10, 14, 20))
    assert score.absent == ("AU10",) and score.constant == ("AU14",)
    assert score.mean == pytest.approx(score.accuracy["AU20"]) and score.mean < 1.0
    assert np.isnan(score.balanced_accuracy["AU10"])


def test_always_off_is_no_better_than_half_in_balanced_accuracy():
    true = np.zeros((100, 1))
    true[:20] = 1.0
    score = au.au_accuracy(np.zeros((100, 1)), true, units=(26,))
    assert score.mean == pytest.approx(0.8) and score.balanced == pytest.approx(0.5)


def test_a_lost_face_is_wrong_and_an_unknown_truth_is_left_out():
    true = np.array([[1.0], [0.0], [np.nan], [1.0]])
    guess = np.array([[1.0], [np.nan], [1.0], [1.0]])
    assert au.au_accuracy(guess, true, units=(25,)).accuracy["AU25"] == pytest.approx(2 / 3)


HEAD = "frame, face_id, timestamp, confidence, success, AU10_c, AU14_c, AU20_c, AU25_c, AU26_c"


def test_openface_table_with_blanks_gaps_and_failures_is_read(tmp_path):
    path = tmp_path / "of.csv"
    path.write_text(
        f"\ufeff{HEAD}\n1, 0, 0.0, 0.9, 1, 1.00, 0, 0, 1, 0\n3, 0, 0.08, 0.1, 0, 1, 1, 1, 1, 1\n"
        "4, 0, 0.12, 0.9, 1, 0, 0, 1, 0, 1\n4, 1, 0.12, 0.9, 1, 1, 1, 1, 1, 1\n",
        encoding="utf-8",
    )
    labels = au.read_openface(path)
    np.testing.assert_array_equal(labels[0], [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(labels[3], [0, 0, 1, 0, 1])
    assert labels.shape == (4, 5) and np.isnan(labels[1:3]).all()


def test_openface_intensities_serve_where_presence_is_missing(tmp_path):
    path = tmp_path / "of.csv"
    path.write_text("frame;AU10_r;AU14_r;AU20_r;AU25_r;AU26_r\n1;0,4;1,2;3,0;0;0,99\n")
    np.testing.assert_array_equal(au.read_openface(path), [[0, 1, 1, 0, 0]])


REAL = (  # of OpenFace 2.2: blanks before every name and value
    "frame, face_id, timestamp, confidence, success, gaze_0_x, pose_Rx, AU01_r, AU10_r, AU45_r,"
    " AU10_c, AU14_c, AU20_c, AU25_c, AU26_c, AU45_c"
)


def _filmed(path, fps, count, skip=()):
    """A table of a video at `fps` in which AU25 is on in every other tenth of a second."""
    rows = [
        f"{i + 1}, 0, {i / fps:.3f}, 0.98, 1, 0.1, -0.2, 0.00, 1.35, 0.00,"
        f" 0.00, 0.00, 0.00, {float(int(i / fps * 10 + 1e-6) % 2):.2f}, 0.00, 1.00"
        for i in range(count)
        if i not in skip
    ]
    path.write_text("\n".join([REAL, *rows]) + "\n")
    return path


@pytest.mark.parametrize("fps", [25, 30, 30000 / 1001, 50, 60])
def test_labels_are_those_of_the_moments_whatever_the_videos_rate(tmp_path, fps):
    labels = au.read_openface(_filmed(tmp_path / "of.csv", fps, round(4 * fps)))
    assert labels.shape == (100, 5)
    times = np.arange(100) / 25
    sure = np.abs((times * 10 + 0.5) % 1 - 0.5) > 10 * (0.5 / fps + 0.002)
    assert sure.sum() > 20
    np.testing.assert_array_equal(labels[sure, 3], (times[sure] * 10).astype(int) % 2)
    assert np.isfinite(labels).all() and set(labels[:, 3]) == {0.0, 1.0}


def test_a_video_at_the_labels_rate_is_read_row_by_row(tmp_path):
    labels = au.read_openface(_filmed(tmp_path / "of.csv", 25, 75), fps=25)
    expected = (np.arange(75) / 2.5 + 1e-6).astype(int) % 2
    np.testing.assert_array_equal(labels[:, 3], expected)
    twice = au.read_openface(_filmed(tmp_path / "of.csv", 25, 75), fps=50)
    assert len(twice) == 150
    np.testing.assert_array_equal(twice[::2], labels)
    halved = au.read_openface(_filmed(tmp_path / "of.csv", 12.5, 38))
    np.testing.assert_array_equal(halved[:75:2, 3], expected[::2])


def test_frames_dropped_from_a_faster_video_are_unknown_and_move_nothing(tmp_path):
    whole = au.read_openface(_filmed(tmp_path / "whole.csv", 30, 120))
    holes = au.read_openface(_filmed(tmp_path / "holes.csv", 30, 120, skip=range(60, 90)))
    lost = np.isnan(holes).all(1)
    assert lost.nonzero()[0].min() in (50, 51) and 23 <= lost.sum() <= 25
    np.testing.assert_array_equal(holes[~lost], whole[~lost])


def test_time_stamps_that_stand_still_are_no_time_stamps(tmp_path):
    path = tmp_path / "of.csv"
    rows = [f"{i},0,0.000,0.9,1,{i % 2},0,0,0,0" for i in range(1, 6)]
    path.write_text("\n".join([HEAD, *rows]))
    np.testing.assert_array_equal(au.read_openface(path)[:, 0], [1, 0, 1, 0, 1])


def test_the_face_seen_most_is_taken_and_confidence_serves_without_success(tmp_path):
    path = tmp_path / "of.csv"
    head = HEAD.replace(" success,", "")
    rows = ["1,7,0.0,0.9,1,1,1,1,1", "1,2,0.0,0.9,0,0,0,0,1", "2,2,0.04,0.2,0,0,0,0,0"]
    rows += ["3,2,0.08,0.9,0,1,0,0,0"]
    path.write_text("\n".join([head, *rows]))
    labels = au.read_openface(path)
    np.testing.assert_array_equal(labels[[0, 2]], [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    assert np.isnan(labels[1]).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "frame,AU10_c\n",
        "frame,AU10_c\n1,0\n",
        f"{HEAD}\n1,0\n",
        f"{HEAD}\nx,0,0,0,1,1\n",
        f"{HEAD}\n1,0,0.0,0.9,1,1,0,0,1,0\n2,0,0.04,0.9,1,1\n",
        f"{HEAD}\n1,0,nan,0.9,1,1,0,0,1,0\n2,0,nan,0.9,1,1,0,0,1,0\n",
    ],
)
def test_a_table_that_is_none_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.csv"):
        au.read_openface(path)


def test_a_missing_or_binary_table_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="none.csv"):
        au.read_openface(tmp_path / "none.csv")
    (tmp_path / "video.csv").write_bytes(b"\x00\xff\xfe\x80" * 20)
    with pytest.raises(UserError, match="video.csv"):
        au.read_openface(tmp_path / "video.csv")
