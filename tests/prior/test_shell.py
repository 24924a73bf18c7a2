"""The shell: bounds that hold what they must, on the built-in head."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from t3d import camera as cameras
from t3d.metrics.views import mask_iou
from t3d.prior import basis, morphable, raster, shell

CAMERA = cameras.recorded(np.array([2.2, 2.2, 0.5, 0.5], np.float32))
POSE = cameras.head_pose(np.array([0.05, 0.3, 0.0]), np.array([0.0, 0.0, 85.0])).astype(np.float32)
SIZE = 32


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


@pytest.fixture(scope="module")
def made(model):
    return shell.make_shell(model, np.zeros(100), hair=1.0, room=1.0)


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


def test_offset_carries_a_point_of_the_surface_to_the_neutral_surface(model, spoken):
    bald = shell.make_shell(model, np.zeros(100), hair=0.0, room=2.0)
    guide = shell.guide(bald, spoken, POSE, CAMERA, SIZE)
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
    wide = shell.make_shell(model, np.zeros(100), hair=1.0, room=3.0)
    few = shell.guide(made, np.zeros(79), POSE, CAMERA, SIZE)["active"]
    many = shell.guide(wide, np.zeros(79), POSE, CAMERA, SIZE)["active"]
    assert many[few].all() and many.sum() > few.sum()


def test_hair_stands_off_the_scalp_and_not_off_the_face(model, made):
    bald = shell.make_shell(model, np.zeros(100), hair=0.0, room=1.0)
    bare, hairy = (shell.guide(one, np.zeros(79), POSE, CAMERA, 64) for one in (bald, made))
    there = np.isfinite(bare["depth"])
    assert bare["skin"][there].all() and not hairy["skin"][~np.isfinite(hairy["depth"])].any()
    nearer = bare["depth"][there] - hairy["depth"][there]
    assert nearer[hairy["skin"][there]].max() < shell.BARE / 0.5
    assert nearer[~hairy["skin"][there]].mean() > 0.6
    assert np.isfinite(hairy["depth"]).sum() > there.sum()


def test_hair_goes_with_another_identity(model):
    """Another head has other vertices under its jaw: not the same ones are drawn."""
    hair = np.linspace(0, 3, len(model.mean)).astype(np.float32)
    one, other = (
        shell.make_shell(model, identity, hair, 1.0)
        for identity in (np.zeros(100), 2 * np.random.default_rng(0).normal(size=100))
    )
    assert not np.array_equal(one.drawn, other.drawn)
    np.testing.assert_array_equal(other.hair, hair[other.drawn])


@pytest.fixture(scope="module")
def outlines(model):
    """Poses, and masks of a head whose hair is 3 cm on one side and 1 cm on the other."""
    head = shell.make_shell(model, np.zeros(100), 0.0, 0.0)
    thick = (2.0 + np.tanh(head.neutral[:, 0] / 3)) * head.scalp
    head = replace(head, hair=thick.astype(np.float32))
    turns = np.radians([[8, -30, 0], [0, -15, 3], [5, 0, 0], [0, 15, -3], [-8, 30, 0]])
    poses = cameras.head_pose(turns, np.tile([1.0, 0.0, 85.0], (5, 1))).astype(np.float32)
    masks = [np.isfinite(shell.surface(head, head.neutral, p, CAMERA, 128)[0]) for p in poses]
    return head, poses, np.stack(masks).astype(np.float32)


def test_hair_is_found_by_the_outlines_of_the_masks(model, outlines):
    true, poses, masks = outlines
    hair = shell.fit_hair(model, np.zeros(100), poses, CAMERA, masks)
    assert hair.shape == (len(model.mean),)
    hair = hair[true.drawn]
    grown, up = true.scalp > 0.9, true.neutral[:, 1] > 5
    left, right = (grown & up & (s * true.neutral[:, 0] > 4) for s in (1, -1))
    assert hair[left].mean() > hair[right].mean() + 1.0 > 1.5  # thinner where nothing shows it
    assert not hair[true.scalp < 0.01].any()
    # a camera that made none of the masks
    aside = cameras.head_pose(np.radians([0, 60, 0]), np.array([1.0, 0, 85])).astype(np.float32)
    found, known, bald = (
        np.isfinite(shell.surface(replace(true, hair=h), true.neutral, aside, CAMERA, 128)[0])
        for h in (hair, true.hair, 0 * hair)
    )
    assert mask_iou(found, known) > 0.92 > mask_iou(bald, known) + 0.15


def test_hair_is_as_thick_as_outlines_say_and_unseen_hair_as_usual(model, outlines):
    """What is hardly scalp is no reason to thin what an outline shows beside it."""
    true, poses, masks = outlines
    hair = shell.fit_hair(model, np.zeros(100), poses, CAMERA, masks)[true.drawn]
    grown = true.scalp > 0.5
    for sign in (1, -1):
        side = grown & (sign * true.away[:, 0] > 0.8)
        assert hair[side].mean() == pytest.approx(true.hair[side].mean(), abs=0.5)
    back = grown & (true.away[:, 2] < -0.8)
    assert 1.3 < hair[back].mean() < 2.5


def test_a_bald_head_is_found_to_have_no_hair(model):
    bald = shell.make_shell(model, np.zeros(100), 0.0, 0.0)
    turns = np.radians([[t / 4, t, 0] for t in (-20, -10, 0, 10, 20)])
    poses = cameras.head_pose(turns, np.tile([1.0, 0.0, 85.0], (5, 1))).astype(np.float32)
    masks = [np.isfinite(shell.surface(bald, bald.neutral, p, CAMERA, 128)[0]) for p in poses]
    hair = shell.fit_hair(model, np.zeros(100), poses, CAMERA, np.float32(masks))
    assert np.mean(hair[bald.drawn] < shell.BARE) > 0.98 and hair.max() < 1.0


def test_what_is_asked_of_a_ray_lies_between_its_ends(model):
    """Of views from the side and from below, with much hair: through the neck nothing is seen."""
    head = shell.make_shell(model, np.zeros(100), hair=3.0, room=2.0)
    for yaw, pitch in ((45, 20), (-45, -20), (0, -20), (0, 25)):
        view = cameras.orbit(CAMERA, POSE[:3, 3], yaw, pitch)
        guide = shell.guide(head, np.zeros(79), POSE, view, 64)
        hit = np.isfinite(guide["depth"])
        assert guide["active"][hit].all()
        assert (guide["near"] < guide["depth"])[hit].all()
        assert (guide["depth"] < guide["far"])[hit].all()
        length = guide["far"] - guide["near"]
        assert length[hit].max() < 16


def test_room_for_hair_is_the_least_that_covers_the_masks(model, outlines):
    true, poses, masks = outlines
    tuft = masks.copy()  # in one frame only: no hair of the head's
    tuft[2] = ndimage.binary_dilation(masks[2], iterations=8)
    calm, wild = (shell.fit_room(true, np.zeros((5, 79)), poses, CAMERA, m) for m in (masks, tuft))
    assert calm == shell.ROOM[0] < wild


def test_a_mask_that_leaves_the_picture_says_nothing_there(model, outlines):
    true, poses, _ = outlines
    full = np.ones((5, 128, 128), np.float32)
    hair = shell.fit_hair(model, np.zeros(100), poses, CAMERA, full)
    assert np.abs(hair).max() < 1e-3
