"""Every figure against its plain definition, its interval against resampling by hand."""

import dataclasses

import numpy as np
import pytest

from t3d import measure
from t3d.errors import UserError
from t3d.measure import AU_FIGURES, FIGURES, Marks, Truth
from t3d.metrics import action_units, lips, sync, uncertainty

LENGTH = 80


def series(seed, length=LENGTH, clip=7):
    """Numbers of a film that is as good as chance, beside one truth."""
    rng, true = np.random.default_rng(seed), np.random.default_rng(99)
    plain = ("ssim", "ssim_head", "lpips", "lmd", "lmd_px", "jitter", "pose_jitter", "sharpness")
    opening = true.normal(size=length).cumsum()
    found = {name: rng.uniform(0.2, 1, length) for name in plain}
    found |= {f"true_{name}": true.uniform(0.2, 1, length) for name in plain[-3:]}
    found |= {"psnr": rng.uniform(20, 40, length), "psnr_head": np.full(length, np.inf)}
    found |= {"true_opening": opening, "opening": opening + rng.normal(size=length)}
    found |= {"found": np.ones(length), "clip": np.full(length, clip)}
    found["au"] = (rng.random((length, 5)) > 0.5).astype(float)
    found["true_au"] = (true.random((length, 5)) > [0.5, 0.4, 2, -1, 0.7]).astype(float)
    found["sync"] = rng.uniform(1, 2, (length, 31))
    found["sync"][-4:] = np.nan
    return found


def rows_of(one, rows):
    return {name: value[rows] for name, value in one.items()}


# ---- figures


def test_figures_are_the_metrics_own():
    one = series(0)
    one["opening"][[3, 9]] = one["au"][[3, 9]] = np.nan
    one["lmd"][5] = one["true_opening"][5] = one["true_au"][5] = np.nan
    figures = measure.figures(one)
    assert set(FIGURES | AU_FIGURES) <= set(figures)
    for name in ("ssim", "ssim_head", "psnr", "lpips", "lmd_px"):
        assert figures[name] == pytest.approx(one[name].mean())
    assert figures["lmd"] == pytest.approx(np.nanmean(one["lmd"]))
    assert figures["sharpness"] == pytest.approx(
        one["sharpness"].mean() / one["true_sharpness"].mean()
    )
    mouths = lips.against_truth(one["true_opening"], one["opening"])
    assert figures["mouth_r"] == pytest.approx(np.corrcoef(*mouths)[0, 1])
    au = action_units.au_accuracy(one["au"], one["true_au"])
    assert (au.absent, au.constant) == (("AU20",), ("AU25",))
    assert figures["au_accuracy"] == pytest.approx(au.mean)
    assert figures["au_balanced"] == pytest.approx(au.balanced)
    for unit in ("AU10", "AU14", "AU26"):
        assert figures[f"{unit.lower()}_accuracy"] == pytest.approx(au.accuracy[unit])
        assert figures[f"{unit.lower()}_balanced"] == pytest.approx(au.balanced_accuracy[unit])
    assert str(figures["au20_accuracy"]).startswith("not available: absent")


def test_sync_figures_are_those_of_the_embeddings():
    rng = np.random.default_rng(0)
    sound = rng.normal(size=(LENGTH - 4, 8))
    face = np.roll(sound, 3, 0) + 0.1 * rng.normal(size=sound.shape)
    one = series(0)
    one["sync"][:-4] = sync.shifted_distances(face, sound)
    figures, expected = measure.figures(one), sync.sync_confidence(face, sound)
    assert figures["sync_confidence"] == pytest.approx(expected.confidence)
    assert figures["sync_distance"] == pytest.approx(expected.distance)
    assert figures["sync_offset"] == expected.offset == 3


def test_every_interval_is_that_of_figures_of_resampled_frames():
    """The short way (how often a frame is drawn) against the long one (the drawn frames)."""
    one = series(1)
    one["jitter"][[0, -1]] = np.nan
    rows = uncertainty.rows(LENGTH, uncertainty.block_of(LENGTH))
    counts, few = measure._counts(LENGTH, uncertainty.block_of(LENGTH)), rows[::25]
    for name, figure in FIGURES.items():
        values = [one[key] for key in figure.keys]
        long = [figure.of(np.ones((1, LENGTH)), *(v[drawn] for v in values))[0] for drawn in few]
        np.testing.assert_allclose(figure.of(counts[::25], *values), long, atol=1e-9, err_msg=name)
    drawn = one["ssim"][rows].mean(1)
    figures = measure.figures(one)
    assert (figures["ssim_low"], figures["ssim_high"]) == pytest.approx(uncertainty.bounds(drawn))


def test_a_film_held_against_itself_has_the_ideal_figures():
    one = series(2) | {"lpips": np.zeros(LENGTH), "lmd": np.zeros(LENGTH)}
    for name in ("opening", "au", "jitter", "pose_jitter", "sharpness"):
        one[name] = one[f"true_{name}"]
    one["psnr_head"][3] = np.nan  # a frame whose mask is empty
    figures = measure.figures(one)
    ideal = {"lpips": 0, "lmd": 0, "mouth_r": 1, "au_accuracy": 1, "au_balanced": 1, "jitter": 1}
    ideal |= {"sharpness": 1, "found": 1}
    for name, value in ideal.items():
        assert figures[name] == pytest.approx(value), name
        assert figures[f"{name}_low"] == pytest.approx(value), name
    assert figures["psnr_head"] == "identical" and "psnr_head_low" not in figures


def test_words_stand_where_there_is_no_figure():
    one = series(3) | {
        "lpips": np.array("not available: no weights"),
        "lmd": np.full(LENGTH, np.nan),
    }
    figures = measure.figures(one)
    assert figures["lpips"] == "not available: no weights"
    assert figures["lmd"] == "not available: no frame to measure it on"
    assert not {"lpips_low", "lmd_low"} & set(figures)


def test_one_frame_that_is_identical_does_not_make_psnr_infinite():
    one = series(4)
    one["psnr"][10] = np.inf
    expected = (one["psnr"][np.isfinite(one["psnr"])].sum() + measure.HIGHEST_PSNR) / LENGTH
    assert measure.figures(one)["psnr"] == pytest.approx(expected)


# ---- comparing and merging


def test_comparison_is_paired_and_says_when_it_separates():
    a = series(5)
    hard = np.repeat(np.random.default_rng(0).normal(size=8), 10)  # for both systems alike
    a["ssim_head"] = 0.8 + 0.1 * hard
    b = a | {"ssim_head": a["ssim_head"] - 0.02 + 1e-3 * np.sin(np.arange(LENGTH))}
    found = measure.compare(a, b)
    assert found["ssim_head"].separates
    assert found["ssim_head"].difference == pytest.approx(0.02, abs=1e-3)
    assert found["ssim_head"].low < found["ssim_head"].difference < found["ssim_head"].high
    rows = uncertainty.rows(LENGTH, uncertainty.block_of(LENGTH))
    drawn = (a["ssim_head"] - b["ssim_head"])[rows].mean(1)
    interval = found["ssim_head"].low, found["ssim_head"].high
    assert interval == pytest.approx(uncertainty.bounds(drawn))
    alone = measure.figures(a)
    assert alone["ssim_head_high"] - alone["ssim_head_low"] > 0.04  # unpaired, it would drown
    assert not found["lmd"].separates and found["lmd"].difference == 0
    assert "psnr_head" not in found
    with pytest.raises(ValueError, match="equal length"):
        measure.compare(a, series(5, 40))


def test_a_difference_inside_the_noise_is_called_so():
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b = (series(1, 160) | {"lmd": np.repeat(rng.normal(size=16), 10)} for _ in range(2))
        wrong += measure.compare(a, b)["lmd"].separates
    assert wrong <= 10


def test_parts_of_a_clip_measured_on_several_hosts_are_the_whole_clip():
    whole = series(6)
    parts = [rows_of(whole, slice(0, 30)), rows_of(whole, slice(30, LENGTH))]
    assert measure.figures(measure.merge(parts)) == measure.figures(whole)


def test_pooled_speakers_do_not_correlate_by_their_means():
    """Two mouths that follow nothing, one of them always wider open than the other."""
    rng = np.random.default_rng(0)
    parts = []
    for clip, level in ((1, 0.0), (2, 50.0)):
        one = series(clip, clip=clip)
        one["true_opening"] = level + rng.normal(size=LENGTH)
        one["opening"] = level + rng.normal(size=LENGTH)
        parts.append(one)
    pooled = measure.merge(parts)
    assert np.corrcoef(pooled["true_opening"], pooled["opening"])[0, 1] > 0.99
    assert abs(measure.figures(pooled)["mouth_r"]) < 0.3
    assert measure.figures(pooled)["ssim"] == pytest.approx(
        np.mean([measure.figures(p)["ssim"] for p in parts])
    )


def test_what_one_part_lacks_is_words_in_the_whole():
    parts = [series(0), series(1) | {"lpips": np.array("not available: x")}]
    assert measure.figures(measure.merge(parts))["lpips"] == "not available: x"


# ---- files


def test_series_come_back_from_their_file(tmp_path):
    systems = {"ours": series(0) | {"lpips": np.array("not available: x")}, "real": series(1)}
    frames = np.arange(100, 100 + LENGTH)
    path = tmp_path / "series.npz"
    measure.save_series(path, systems, frames, dataset="abc", size=64)
    again, numbers, what = measure.load_series(path)
    np.testing.assert_array_equal(numbers, frames)
    assert what == {"dataset": "abc", "size": 64} and list(again) == ["ours", "real"]
    assert measure.figures(again["ours"]) == measure.figures(systems["ours"])


def test_a_missing_or_damaged_series_is_named(tmp_path):
    with pytest.raises(UserError, match="series.npz.*evaluate it first"):
        measure.load_series(tmp_path / "series.npz")
    (tmp_path / "series.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="series.npz: damaged"):
        measure.load_series(tmp_path / "series.npz")


# ---- series of a film


@pytest.fixture(scope="module")
def truth():
    """A square that moves, with a face of landmarks in it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 64, 64, 3)).astype(np.uint8)
    face = measure._generic_head()[:, :2] * [2.0, -2.0] + 32
    points = face + rng.normal(0, 0.2, (12, 68, 2))
    marks = Marks(
        points,
        points[:, 48:60].mean(1, keepdims=True) + rng.normal(size=(12, 79, 2)),
        (rng.random((12, 5)) > 0.5).astype(float),
    )
    boxes = np.tile([0.5, 0.5, 0.9], (12, 1))
    sound = rng.normal(0, 0.1, 16000).astype(np.float32)
    return Truth(images, np.ones((12, 64, 64)), marks, boxes, sound, np.arange(4, 16))


def test_a_film_that_is_the_truth_differs_in_nothing(truth):
    one = measure.series_of(truth.images, truth, truth.marks, "no judge", "no weights")
    np.testing.assert_allclose(one["ssim"], 1)
    assert np.isposinf(one["psnr_head"]).all() and one["found"].all()
    np.testing.assert_allclose(one["lmd"], 0, atol=1e-9)
    for name in ("opening", "au", "jitter", "pose_jitter", "sharpness"):
        np.testing.assert_array_equal(one[name], one[f"true_{name}"])
    assert str(one["sync"]) == "no judge" and str(one["lpips"]) == "no weights"
    assert np.isnan(one["jitter"][[0, -1]]).all() and (one["pose_jitter"][1:-1] > 0).all()


def test_a_jump_in_time_is_not_a_tremble(truth):
    jump = truth.frames + 50 * (np.arange(12) > 5)
    one = measure.series_of(
        truth.images, dataclasses.replace(truth, frames=jump), truth.marks, "no judge", "none"
    )
    assert np.isnan(one["jitter"]).nonzero()[0].tolist() == [0, 5, 6, 11]


def test_a_face_that_is_not_found_counts_as_worst(truth):
    lost = Marks(
        *(
            np.where(np.arange(12).reshape(-1, *[1] * (a.ndim - 1)) == 4, np.nan, a)
            for a in (truth.marks.points68, truth.marks.lips79, truth.marks.au)
        )
    )
    figures = measure.figures(measure.series_of(truth.images, truth, lost, "no judge", "none"))
    assert figures["found"] == pytest.approx(11 / 12)
    assert figures["lmd"] == pytest.approx(lips.MISSING / 12)
    assert figures["mouth_r"] < 0.95


def test_a_film_without_sound_is_judged_by_no_one(truth, untrained):
    from t3d import judges

    judge = judges.of_run(untrained)
    silent = measure.series_of(
        truth.images, truth, truth.marks, judge, "none", np.zeros(0, np.float32)
    )
    assert str(silent["sync"]) == "not available: there is no sound"
    heard = measure.series_of(truth.images, truth, truth.marks, judge, "none")
    assert heard["sync"].shape == (12, 31)
    np.testing.assert_array_equal(np.isfinite(heard["sync"]).all(1), np.arange(12) < 8)
