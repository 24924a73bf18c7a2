"""The public SyncNet is syncnet_python's."""

import numpy as np
import pytest

from t3d import assets as assets_module
from t3d.errors import UserError
from t3d.peers import syncnet, torch_file


@pytest.fixture(scope="module")
def peer(golden, golden_weights):
    data = golden("syncnet_python_model")
    return data, golden_weights.from_fixture(data)


def test_lip_embeddings_are_syncnet_pythons(peer):
    data, state = peer
    frames = np.moveaxis(data["in_lip_uint8"], 1, -1)
    found = syncnet.lip_embedding(syncnet.from_state(state), frames)
    np.testing.assert_allclose(found, data["out_lip_embedding"], rtol=1e-4, atol=1e-4)


def test_audio_embeddings_are_syncnet_pythons(peer):
    data, state = peer
    mfcc = data["in_audio"][:, 0].transpose(0, 2, 1)
    found = syncnet.audio_embedding(syncnet.from_state(state), mfcc)
    np.testing.assert_allclose(found, data["out_audio_embedding"], atol=1e-4)


def test_the_order_of_frames_and_of_colours_counts(peer):
    data, state = peer
    weights = syncnet.from_state(state)
    frames = np.moveaxis(data["in_lip_uint8"], 1, -1)
    found = syncnet.lip_embedding(weights, frames)
    for other in (frames[:, ::-1], frames[..., ::-1]):
        assert abs(syncnet.lip_embedding(weights, other) - found).max() > 0.01


def test_a_missing_or_misshapen_tensor_is_named_with_the_file(peer, monkeypatch):
    _, state = peer
    for name, value in (("netcnnlip.18.weight", None), ("netfcaud.1.running_var", np.ones(3))):
        broken = {k: v for k, v in state.items() if k != name}
        broken |= {} if value is None else {name: value}
        monkeypatch.setattr(torch_file, "state_dict", lambda path, broken=broken: broken)
        with pytest.raises(UserError, match=rf"some\.model.*{name}.*syncnet_v2\.model"):
            syncnet.load("some.model")


def test_weights_lie_among_the_assets_or_a_line_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    monkeypatch.setattr(assets_module.pooch, "os_cache", lambda name: tmp_path / "cache")
    absent = syncnet.available()
    assert absent.startswith("not available: ") and "t3d assets fetch syncnet_v2" in absent
    (tmp_path / "syncnet_v2.model").write_bytes(b"no model")
    damaged = syncnet.available()
    assert "syncnet_v2.model: not a checkpoint" in damaged and "\n" not in damaged
