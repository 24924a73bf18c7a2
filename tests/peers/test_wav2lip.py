"""The public lip network and its sync expert are Wav2Lip's."""

import numpy as np
import pytest

from t3d.peers import wav2lip
from t3d.speech import syncnet


@pytest.fixture(scope="module")
def generator(golden, golden_weights):
    data = golden("wav2lip_generator")
    weights = wav2lip.generator_from_state(golden_weights.from_fixture(data))
    mel = data["in_mel"][:, 0].transpose(0, 2, 1)
    return data, weights, mel, np.moveaxis(data["in_face"], 1, -1)


@pytest.fixture(scope="module")
def expert(golden, golden_weights):
    data = golden("wav2lip_syncnet_color")
    state = golden_weights.from_fixture(data)
    return data, state, wav2lip.expert_from_state(state)


def _halves(data):
    """Golden faces [B, 15, 48, 96] as five frames [B, 5, 48, 96, 3]."""
    faces = data["in_face"]
    return faces.reshape(len(faces), 5, 3, *faces.shape[2:]).transpose(0, 1, 3, 4, 2)


def _assert_close(found, want):
    """`want` is [B, C, h, w] as in PyTorch."""
    want = np.moveaxis(want, 1, -1).reshape(found.shape)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)


def test_frames_are_wav2lips(generator):
    data, weights, mel, faces = generator
    _assert_close(wav2lip.generate(weights, mel, faces), data["out_frame"])


def test_what_the_generator_hears_is_wav2lips(generator):
    data, weights, mel, _ = generator
    _assert_close(wav2lip.audio_embedding(weights, mel), data["out_audio_embedding"])


def test_maps_on_the_way_are_wav2lips(generator):
    data, weights, mel, faces = generator
    features = wav2lip.face_features(weights, faces)
    _assert_close(features[2], data["out_face_enc2"])
    _assert_close(features[6], data["out_face_enc6"])
    maps = wav2lip.decoder_maps(weights, wav2lip.audio_embedding(weights, mel), features)
    _assert_close(maps[3][..., :384], data["out_face_dec3"])
    first = wav2lip._run(weights, "face_decoder_blocks.1", wav2lip._DECODER[1][:1], maps[0])
    _assert_close(first, data["out_dec1_convt"])


def test_the_frame_depends_on_the_sound_and_on_both_faces(generator):
    _, weights, mel, faces = generator
    found = wav2lip.generate(weights, mel, faces)
    assert abs(wav2lip.generate(weights, mel[::-1], faces) - found).max() > 1e-3
    masked, other = faces[..., :3], faces[..., 3:]
    swapped = np.concatenate([other, masked], -1)
    assert abs(wav2lip.generate(weights, mel, swapped) - found).max() > 1e-3


def test_embeddings_of_the_expert_are_wav2lips(expert):
    data, _, weights = expert
    mel = data["in_mel"][:, 0].transpose(0, 2, 1)
    face = wav2lip.expert_face_embedding(weights, _halves(data))
    sound = wav2lip.expert_audio_embedding(weights, mel)
    np.testing.assert_allclose(face, data["out_face_embedding"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(sound, data["out_audio_embedding"], rtol=0, atol=1e-4)
    cosines = syncnet.cosine(face, sound)
    np.testing.assert_allclose(cosines, data["out_cosine"], rtol=0, atol=1e-4)
    labels = data["in_labels"][:, 0]
    assert labels.mean() == 0.5  # where our balanced loss is the peer's
    np.testing.assert_allclose(syncnet.sync_bce(cosines, labels), data["out_loss"], atol=1e-4)


def test_the_order_of_frames_and_of_colours_counts_for_the_expert(expert):
    data, _, weights = expert
    faces = _halves(data)
    found = wav2lip.expert_face_embedding(weights, faces)
    for other in (faces[:, ::-1], faces[..., ::-1]):
        assert abs(wav2lip.expert_face_embedding(weights, other) - found).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("face_encoder.16.conv_block.0.bias", None, "no {}"),
        ("audio_encoder.9.conv_block.1.running_var", np.ones(3), "{} is (3,), not (256,)"),
        ("face_encoder.17.conv_block.0.bias", np.ones(3), "{} belongs to another network"),
    ],
)
def test_a_missing_misshapen_or_foreign_tensor_is_named(expert, name, value, said):
    _, state, _ = expert
    broken = {k: v for k, v in state.items() if k != name}
    broken |= {} if value is None else {name: value}
    with pytest.raises(ValueError) as error:
        wav2lip.expert_from_state(broken)
    assert str(error.value) == said.format(name)
