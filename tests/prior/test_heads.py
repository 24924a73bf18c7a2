"""Rendered heads: what is drawn is what the codes say."""

import numpy as np
import pytest

from t3d import camera as cameras
from t3d.camera import head_pose
from t3d.metrics import lips
from t3d.prior import basis, heads, morphable, shading

INTRINSICS = np.float32([4.0, 4.0, 0.5, 0.5])
COUNT = 64


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(1)
    return {
        "identity": rng.normal(0, 0.5, 100).astype(np.float32),
        "albedo": rng.normal(0, 0.5, 100).astype(np.float32),
        "expression": rng.normal(0, 0.3, (20, 79)).astype(np.float32),
        "illumination": np.tile(shading.ambient(0.9), (20, 1)),
        "head_to_world": head_pose(np.zeros((20, 3)), np.tile([0.0, 0.0, 120.0], (20, 1))),
    }


def plain(count: int = 1, **codes):
    """Codes of the mean head, frontal, in even light."""
    zero = {"identity": 100, "expression": 79, "albedo": 100}
    values = {name: np.zeros((count, width), np.float32) for name, width in zero.items()}
    pose = head_pose(np.zeros((count, 3)), np.tile([0.0, 0.0, 120.0], (count, 1)))
    light = np.tile(shading.ambient(1.0), (count, 1))
    return values | {"illumination": light, "head_to_world": np.float32(pose)} | codes


def boxes(count: int = 1):
    return np.tile(np.float32([0.5, 0.5, 0.6]), (count, 1))


def draw(model, codes, seed=0):
    count = len(codes["identity"])
    rng = np.random.default_rng(seed)
    return heads.draw_heads(model, codes, INTRINSICS, boxes(count), 96, rng)


def test_codes_are_the_same_again_and_go_beyond_the_clip(model, seen):
    codes, again = (
        heads.draw_codes(model, seen, COUNT, np.random.default_rng(0)) for _ in range(2)
    )
    assert {name: value.shape[0] for name, value in codes.items()} == dict.fromkeys(
        heads.CODES, COUNT
    )
    for name, value in codes.items():
        np.testing.assert_array_equal(value, again[name])
        assert np.isfinite(value).all()

    def openings(codes):
        small = morphable.restrict(model, model.landmarks68)
        return lips.mouth_opening(morphable.vertices(small, codes["identity"], codes["expression"]))

    clip = openings({"identity": seen["identity"], "expression": seen["expression"]})
    assert openings(codes).max() > 1.5 * clip.max()
    assert codes["head_to_world"][:, :3, 3].std(0).max() > 1  # the clip's stays where it is
    near = np.abs(codes["identity"] - seen["identity"]).mean(1) < 0.4
    assert 0.2 < near.mean() < 0.8  # the others are anyone's


def test_even_light_shows_the_skin_and_half_of_it_shows_half(model):
    codes = plain(2)
    codes["illumination"][1] *= 0.5
    bright, dark = draw(model, codes)[:, 46:52, 40:56].astype(float)  # the nose
    skin = model.albedo_mean[model.landmarks68[30]] * 255
    np.testing.assert_allclose(bright.mean((0, 1)), skin, atol=4)
    np.testing.assert_allclose(dark.mean((0, 1)), skin / 2, atol=4)


def test_a_head_is_drawn_where_its_landmarks_are_projected(model):
    codes = plain(3)
    codes["head_to_world"][1, :3, 3] += [4, 3, 0]
    codes["head_to_world"][2, :3, 3] = [0, 0, 150]
    world = cameras.transform(
        codes["head_to_world"],
        np.broadcast_to(model.mean, (3, *model.mean.shape)),
    )
    uv, _ = cameras.project(cameras.recorded(INTRINSICS), world)
    uv = (uv - 0.5) / 0.6 + 0.5
    white = np.ones(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "_background", lambda size, rng: white)
        faces = draw(model, codes)
    for face, points in zip(faces, uv):
        columns = np.flatnonzero((face < 250).any((0, 2)))
        for edge, extreme in ((columns[0], points.min(0)[0]), (columns[-1] + 1, points.max(0)[0])):
            assert abs(edge / 96 - np.clip(extreme, 0, 1)) < 0.03


def test_an_open_mouth_is_dark_inside(model):
    codes = plain(2)
    codes["expression"][1] = morphable.expression_from_weights(model, {"jawOpen": 0.8})
    closed, opened = draw(model, codes)[:, 55:85, 30:66].astype(float).mean(-1)
    assert (opened < 60).sum() > (closed < 60).sum() + 20


def test_about_half_of_the_backgrounds_are_white_and_the_others_differ(model):
    corners = draw(model, plain(COUNT))[:, :2, :2].reshape(COUNT, -1)
    white = (corners == 255).all(1)
    assert 0.3 < white.mean() < 0.7
    assert len(np.unique(corners[~white], axis=0)) == (~white).sum()
