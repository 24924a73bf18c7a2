"""Probes find what is there, as well as theory says, and nothing where there is nothing."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression, Ridge

from t3d.metrics import probes, uncertainty


def linear(rng, count, noise, weights):
    features = rng.normal(3.0, [1, 10, 0.1], (count, 3))
    return features, features @ weights + rng.normal(0, noise, count)


def test_a_regressions_r2_is_the_share_of_the_variance_that_is_linear():
    rng = np.random.default_rng(0)
    weights = np.array([1.0, 0.2, -5.0])  # variances 1, 4 and 0.25
    train, validation, test = (linear(rng, n, 1.5, weights) for n in (4000, 1000, 20000))
    probe = probes.regression(train, validation)
    found = probes.explained(test[1], probe(test[0]))
    assert found == pytest.approx(5.25 / (5.25 + 1.5**2), abs=0.01)


def test_regression_is_scikit_learns_ridge_with_more_features_than_frames(monkeypatch):
    rng = np.random.default_rng(0)
    features, numbers = rng.normal(1, 2, (30, 50)), rng.normal(size=30)
    monkeypatch.setattr(probes, "PENALTIES", [0.1])
    found = probes.regression((features, numbers), (features, numbers))
    plain = (features - features.mean(0)) / features.std(0)
    expected = Ridge(alpha=0.1 * 30).fit(plain, numbers)
    np.testing.assert_allclose(found(features), expected.predict(plain), atol=1e-8)


def test_features_that_say_nothing_are_given_no_weight():
    rng = np.random.default_rng(0)
    train, validation, test = (
        (rng.normal(size=(n, 40)), rng.normal(size=n)) for n in (60, 500, 500)
    )
    probe = probes.regression(train, validation)
    assert -0.1 < probes.explained(test[1], probe(test[0])) < 0.05
    still = np.ones((60, 4))
    probe = probes.regression((still, train[1]), (still, train[1]))
    np.testing.assert_allclose(probe(5 * still), train[1].mean())


def test_explained_is_one_of_the_truth_none_of_its_mean_and_unknown_of_a_constant():
    truth = np.array([0.0, 1, 2, 3])
    assert probes.explained(truth, truth) == 1
    assert probes.explained(truth, np.full(4, 1.5)) == 0
    assert probes.explained(truth, truth[::-1]) == -3
    assert np.isnan(probes.explained(np.ones(4), truth))


# ---- which class


def gaussians(rng, counts, distance, dims=5):
    """Two clouds of deviation 1 whose middles are `distance` apart, askew, on unequal scales."""
    classes = np.repeat([0, 1], counts)
    features = rng.normal(size=(len(classes), dims))
    features += np.outer(classes, np.full(dims, distance / np.sqrt(dims)))
    return features * np.array([100, 1, 0.01, 1, 1]), classes


def accuracy(probe, features, classes):
    right = probe(features).argmax(1) == classes
    return np.mean([right[classes == k].mean() for k in np.unique(classes)])


@pytest.mark.parametrize("counts", [(1000, 1000), (1800, 200)])
@pytest.mark.parametrize("distance", [1.0, 2.0, 6.0])
def test_a_classifier_of_gaussians_reaches_bayes_accuracy(distance, counts):
    rng = np.random.default_rng(0)
    train, validation = gaussians(rng, counts, distance), gaussians(rng, (300, 300), distance)
    test = gaussians(rng, (9000, 3000), distance)
    found = accuracy(probes.classifier(train, validation), *test)
    assert found == pytest.approx(norm.cdf(distance / 2), abs=0.02)


def test_a_classifier_is_scikit_learns_with_classes_balanced(monkeypatch):
    rng = np.random.default_rng(1)
    classes = np.repeat([0, 1, 2], (20, 50, 130))
    features = rng.normal(size=(200, 4)) + classes[:, None] * [0.5, 0, -0.2, 0]
    features = (features - features.mean(0)) / features.std(0)
    monkeypatch.setattr(probes, "PENALTIES", [0.03])
    found = probes.classifier((features, classes), (features, classes))
    theirs = LogisticRegression(C=1 / (200 * 0.03), class_weight="balanced", tol=1e-10)
    expected = theirs.fit(features, classes).predict_proba(features)
    scores = np.exp(found(features))
    np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), expected, atol=2e-3)


def test_a_code_that_is_the_label_is_told_always_and_an_independent_one_by_chance():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), (400, 300, 200, 100))

    def pair(said):
        return np.eye(4)[said] + rng.normal(0, 0.05, (len(said), 4)), classes

    told = probes.classifier(pair(classes), pair(classes))
    assert accuracy(told, *pair(classes)) == 1
    shuffled = [pair(rng.permutation(classes)) for _ in range(3)]
    assert accuracy(probes.classifier(*shuffled[:2]), *shuffled[2]) == pytest.approx(0.25, abs=0.06)


def test_balanced_accuracy_weighs_classes_alike_and_pairs_its_resamples():
    rng = np.random.default_rng(0)
    long, short = rng.random(400) < 0.9, rng.random(100) < 0.5
    values = probes.balanced([long, short])
    assert values[0] == pytest.approx((long.mean() + short.mean()) / 2)
    expected = np.hypot(0.9 * 0.1 / np.sqrt(0.09 * 400), 0.25 / np.sqrt(0.25 * 100)) / 2
    assert values[1:].std() == pytest.approx(expected, rel=0.35)
    worse = probes.balanced([long - 0.1, short - 0.1])
    np.testing.assert_allclose(values - worse, 0.1)


def test_the_plane_shows_what_tells_apart_and_what_is_widest_beside_it():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], 500)
    slow = rng.normal(size=1000)  # three features that move together
    features = rng.normal(size=(1000, 6)) + np.outer(slow, [0, 0, 0, 4, 4, 4])
    features[:, 0] += 8 * classes
    plane = probes.plane(probes.classifier((features, classes), (features, classes)), features)
    x, y = plane(features).T
    assert abs(np.corrcoef(x, classes)[0, 1]) > 0.95 and abs(np.corrcoef(y, slow)[0, 1]) > 0.95
    np.testing.assert_allclose(plane.weights.T @ plane.weights, np.eye(2), atol=1e-9)


# ---- over time


@pytest.mark.parametrize("lag", [-7, 0, 4])
def test_the_lag_of_a_shifted_series_is_its_shift(lag):
    series = np.random.default_rng(0).normal(size=200)
    assert probes.best_lag(series[20:-20], series[20 - lag : 180 - lag]) == lag
    assert np.isnan(probes.best_lag(series, np.ones(200)))


@pytest.mark.parametrize("length", [10, 40, 260])
def test_shifts_leave_no_frame_near_its_place(length):
    by = probes.shifts(length)
    assert len(by) <= 20 and len(set(by)) == len(by)
    assert np.minimum(by, length - by).min() == uncertainty.block_of(length)


def test_errors_and_deviations_are_those_written_out():
    assert probes.lower(np.array([1.0, 2]), np.array([4.0, 2])) == 50
    codes = np.array([[0.0, 3], [2, 3], [0, 7], [2, 7]])
    assert probes.deviation(codes) == pytest.approx(np.sqrt(1 + 4))
