"""Intervals hold the truth as often as they say, and say when a difference is noise."""

import numpy as np
import pytest

from t3d.metrics import lips, uncertainty


def _slow(rng, length, memory=0.8):
    """A series of mean 0 whose neighbours are alike."""
    noise = rng.normal(size=length + 50)
    for t in range(1, len(noise)):
        noise[t] += memory * noise[t - 1]
    return noise[50:]


def test_interval_of_independent_values_is_the_textbooks():
    values = np.random.default_rng(0).normal(size=400)
    low, high = uncertainty.interval(np.mean, values, block=1, n=2000)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], values.mean() + np.array([-half, half]), atol=0.01)


def test_the_mean_of_a_slow_series_lies_in_its_interval_as_often_as_said():
    rng = np.random.default_rng(1)

    def covered(block, count):
        draws = [uncertainty.interval(np.mean, _slow(rng, 500), block=block, n=200)
                 for _ in range(count)]  # fmt: skip
        return np.mean([low < 0 < high for low, high in draws])

    assert 0.85 <= covered(uncertainty.block_of(500), 200) <= 0.99
    assert covered(1, 50) < 0.7


def test_blocks_widen_the_interval_of_a_slow_series():
    slow = np.repeat(np.random.default_rng(0).normal(size=40), 25)
    wide = np.subtract(*uncertainty.interval(np.mean, slow, block=25, n=500))
    narrow = np.subtract(*uncertainty.interval(np.mean, slow, block=1, n=500))
    assert wide < 3 * narrow < 0


def test_series_are_resampled_alike():
    a = np.random.default_rng(0).normal(size=90)
    low, high = uncertainty.interval(lips.pearson, a, 2 * a + 1, n=50)
    np.testing.assert_allclose([low, high], 1.0)


def test_rows_are_blocks_of_neighbours_and_every_row_is_as_likely():
    rows = uncertainty.rows(103, 10, n=2000)
    assert rows.shape == (2000, 103)
    steps = np.diff(rows, axis=1) % 103
    inside = np.arange(1, 103) % 10 != 0
    assert (steps[:, inside] == 1).all()
    counts = np.bincount(rows.ravel(), minlength=103)
    assert abs(counts / 2000 - 1).max() < 0.15
    np.testing.assert_array_equal(rows, uncertainty.rows(103, 10, n=2000))


def test_a_block_is_a_second_or_a_quarter():
    assert [uncertainty.block_of(n) for n in (1, 3, 40, 100, 1000)] == [1, 1, 10, 25, 25]


def test_unknown_frames_and_figures_that_are_none_do_no_harm():
    values = np.random.default_rng(0).normal(3.0, 1.0, 100)
    values[::7] = np.nan
    low, high = uncertainty.interval(np.nanmean, values)
    assert 2.5 < low < 3 < high < 3.5
    assert np.isnan(uncertainty.interval(np.mean, values * np.nan)).all()
    assert uncertainty.bounds(np.full(10, np.inf)) == (np.inf, np.inf)


def test_series_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        uncertainty.interval(lambda a, b: (a - b).mean(), np.zeros(5), np.zeros(6))
