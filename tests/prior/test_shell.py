"""The shell: bounds that hold what they must, on the built-in head."""

import numpy as np
import pytest

from t3d import camera as cameras
from t3d.prior import basis, morphable, raster, shell

CAMERA = cameras.recorded(np.array([2.2, 2.2, 0.5, 0.5], np.float32))
POSE = cameras.head_pose(np.array([0.05, 0.3, 0.0]), np.array([0.0, 0.0, 85.0])).astype(np.float32)
SIZE = 32


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


@pytest.fixture(scope="module")
def made(model):
    return shell.make_shell(model, np.zeros(100), scalp=2.0)


@pytest.fixture(scope="module")
def spoken(model):
    return morphable.expression_from_weights(model, {"jawOpen": 0.5, "mouthSmile_L": 0.5})


def test_the_surface_lies_between_near_and_far(made, spoken):
    guide = shell.guide(made, spoken, POSE, CAMERA, SIZE)
    hit = np.isfinite(guide["depth"])
    assert hit.sum() > 100 and guide["active"][hit].all()
    assert (guide["near"][hit] < guide["depth"][hit]).all()
    assert (guide["far"][hit] > guide["depth"][hit]).all()
    assert (guide["near"] < guide["far"]).all()
    assert all(np.isfinite(guide[name]).all() for name in ("near", "far", "offset"))


def test_offset_carries_a_point_of_the_surface_to_the_neutral_surface(model, made, spoken):
    guide = shell.guide(made, spoken, POSE, CAMERA, SIZE)
    hit = np.isfinite(guide["depth"])
    origin, direction = cameras.rays(CAMERA, SIZE)
    world = origin + guide["depth"][hit, None] * direction[hit]
    canonical = cameras.transform(cameras.inverse(POSE), world) + guide["offset"][hit]
    # independently: the same triangles, drawn expressed, blended neutral
    neutral = np.asarray(morphable.vertices(model, np.zeros(100), np.zeros(79)))
    expressed = np.asarray(morphable.vertices(model, np.zeros(100), spoken))
    triangles = np.asarray(model.triangles)
    uv, depth = cameras.project(CAMERA, cameras.transform(POSE, expressed))
    drawn = raster.rasterize(uv * SIZE, depth, triangles, SIZE, SIZE)
    expected = raster.interpolate(drawn, triangles, neutral).reshape(-1, 3)[hit]
    same = np.isclose(drawn.depth.reshape(-1)[hit], guide["depth"][hit], atol=1e-3)
    assert same.mean() > 0.95  # the neck is drawn in the oracle only
    np.testing.assert_allclose(canonical[same], expected[same], atol=0.02)


def test_a_neutral_face_needs_no_offset(made):
    guide = shell.guide(made, np.zeros(79), POSE, CAMERA, SIZE)
    np.testing.assert_allclose(guide["offset"], 0, atol=1e-6)


def test_more_room_for_hair_reaches_more_rays_and_loses_none(model, made):
    wide = shell.make_shell(model, np.zeros(100), scalp=4.0)
    few = shell.guide(made, np.zeros(79), POSE, CAMERA, SIZE)["active"]
    many = shell.guide(wide, np.zeros(79), POSE, CAMERA, SIZE)["active"]
    assert many[few].all() and many.sum() > few.sum()


def test_fitted_room_for_hair_is_the_least_that_covers_the_mask(model):
    true = shell.make_shell(model, np.zeros(100), scalp=3.0)
    mask = shell.guide(true, np.zeros(79), POSE, CAMERA, 64)["active"].reshape(1, 64, 64)
    found = shell.fit_scalp(
        model, np.zeros(100), np.zeros((1, 79)), POSE[None], CAMERA, mask.astype(np.float32)
    )
    assert found == 3.0
