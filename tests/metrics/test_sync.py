"""SyncNet confidence is syncnet_python's."""

import numpy as np
import pytest

from t3d.metrics import sync


@pytest.mark.parametrize("clip", ["a", "b"])
def test_confidence_is_syncnet_pythons(golden, clip):
    data = golden("syncnet_python_confidence")
    face, audio = data[f"in_lip_{clip}"], data[f"in_audio_{clip}"]
    max_shift = data[f"out_dists_{clip}"].shape[1] // 2
    distances = sync.shifted_distances(face, audio, max_shift)
    np.testing.assert_allclose(distances, data[f"out_dists_{clip}"], rtol=1e-5)
    found = sync.sync_confidence(face, audio, max_shift)
    assert found.offset == data[f"out_offset_{clip}"]
    np.testing.assert_allclose(found.confidence, data[f"out_confidence_{clip}"], rtol=1e-4)
    np.testing.assert_allclose(found.distance, data[f"out_min_dist_{clip}"], rtol=1e-5)


def test_late_sound_has_a_negative_offset():
    face = np.random.default_rng(0).normal(size=(80, 16))
    late = np.concatenate([np.zeros((3, 16)), face[:-3]])
    assert sync.sync_confidence(face, face).offset == 0
    assert sync.sync_confidence(face, late).offset == -3


def test_unrelated_sound_has_little_confidence():
    face, other = np.random.default_rng(0).normal(size=(2, 400, 16))
    right, wrong = sync.sync_confidence(face, face), sync.sync_confidence(face, other)
    assert right.confidence > 5 * wrong.confidence
    assert right.distance < 1e-4


def test_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        sync.sync_confidence(np.zeros((5, 4)), np.zeros((6, 4)))
