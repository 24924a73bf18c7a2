"""Paint: the surface's colours are the frames', and what none shows is continued by its like."""

from dataclasses import replace

import numpy as np
import pytest

from t3d import camera as cameras
from t3d.prior import basis, paint, raster, shell

CAMERA = cameras.recorded(np.array([2.2, 2.2, 0.5, 0.5], np.float32))
TURNS = np.radians([-12.0, 0.0, 12.0])
SIZE = 128
SKIN, HAIR = np.array([0.8, 0.55, 0.45]), np.array([0.2, 0.15, 0.1])


def pose(yaw: float) -> np.ndarray:
    return cameras.head_pose(np.array([0, yaw, 0]), np.array([0.0, 0.0, 85.0])).astype(np.float32)


@pytest.fixture(scope="module")
def head():
    return shell.make_shell(basis.load("procedural"), np.zeros(100), hair=1.5, room=1.0)


@pytest.fixture(scope="module")
def true(head):
    """A head with a red right cheek, so to speak: its skin reddens to one side."""
    colours = np.where((head.hair >= shell.BARE)[:, None], HAIR, SKIN)
    colours[:, 0] += np.where(head.hair < shell.BARE, 0.02 * head.neutral[:, 0], 0)
    return np.clip(colours, 0, 1)


def filmed(head, colours, yaw):
    """The head on green, and its mask."""
    seen = shell.draw(head, head.neutral + head.hairy, pose(yaw), CAMERA, SIZE)
    mask = (seen.triangle >= 0).astype(float)
    image = raster.interpolate(seen, head.triangles, colours)
    image = np.where(mask[..., None] > 0, image, [0, 1, 0])
    return (255 * image).round().astype(np.uint8), mask


def painted(head, pictures, turns=TURNS):
    poses = np.stack([pose(yaw) for yaw in turns])
    return paint.paint(
        head, np.zeros((len(turns), 79)), poses, CAMERA, *map(np.stack, zip(*pictures))
    )


@pytest.fixture(scope="module")
def found(head, true):
    return painted(head, [filmed(head, true, yaw) for yaw in TURNS])


def looks(head, yaw):
    grey = np.full_like(head.neutral, 0.5)
    return paint._look(head, np.zeros(79), pose(yaw), CAMERA, *filmed(head, grey, yaw))[1]


def test_what_frames_show_has_their_colours(head, true, found):
    shown = np.max([looks(head, yaw) for yaw in TURNS], 0) > paint.SHOWN
    assert 0.1 < shown.mean() < 0.6
    off = np.abs(found - true)[shown].max(-1)
    assert np.median(off) < 0.01 and (off < 0.1).mean() > 0.97  # the hairline blends


def test_what_no_frame_shows_is_like_its_kind_and_never_the_background(head, true, found):
    hidden = np.max([looks(head, yaw) for yaw in TURNS], 0) < paint.GLANCED
    hairy = head.hair >= shell.BARE
    back = hidden & hairy & (head.neutral[:, 2] < -3)
    assert back.sum() > 100
    assert np.abs(found[back] - HAIR).max() < 0.08
    assert (found[:, 1] < 0.65).all()  # no green


def test_hair_and_skin_do_not_blend_where_no_frame_looks(head):
    """A head with one side shaven: the back, which is not seen, is half hair and half skin."""
    shaven = head.neutral[:, 0] < 0
    half = replace(head, hair=np.where(shaven, 0.0, head.hair).astype(np.float32))
    hairy = half.hair >= shell.BARE
    colours = np.where(hairy[:, None], HAIR, SKIN)
    found = painted(half, [filmed(half, colours, yaw) for yaw in TURNS])
    back = (head.neutral[:, 2] < -3) & (head.scalp > 0.5) & (np.abs(head.neutral[:, 0]) > 1.5)
    assert (back & hairy).sum() > 50 and (back & shaven).sum() > 50
    off = np.abs(found - colours).max(-1)
    assert off[back & hairy].mean() < 0.12 and off[back & shaven].mean() < 0.12, [
        off[back & kind].mean() for kind in (hairy, shaven)
    ]


def test_mouths_and_eyes_are_neither_told_nor_painted(head, true):
    outer = paint._outer(head)
    white = np.where(outer[:, None], true, 1.0)  # teeth and eyes, and nothing else
    assert (~outer).sum() > 100
    picture = filmed(head, white, 0.0)
    assert paint._look(head, np.zeros(79), pose(0.0), CAMERA, *picture)[1][~outer].max() == 0
    told = painted(head, [filmed(head, white, yaw) for yaw in TURNS])
    assert told[outer].max() < 0.95
    drawn, rays = paint.drawn(head, white, np.zeros(79), pose(0.0), CAMERA, SIZE)
    assert (drawn[rays] < 250).all() and (drawn[~rays] == 255).all(-1).sum() > 20


def test_a_side_that_no_frame_shows_mirrors_the_other(head):
    """Filmed from one side only, a head with a dark band over both ears has it over both."""
    band = np.abs(np.abs(head.neutral[:, 0]) - 5) < 1
    colours = np.where(band[:, None], 0.1, 0.9) + np.zeros((len(band), 3))
    aside = [np.radians(50.0), np.radians(60.0)]
    found = painted(head, [filmed(head, colours, yaw) for yaw in aside], aside)
    shown = np.max([looks(head, yaw) for yaw in aside], 0)
    far = shown < paint.GLANCED
    side = np.sign(head.neutral[shown > 0.9, 0].mean())
    other = far & (head.neutral[:, 0] * side < -3) & (head.neutral[:, 2] > 2)
    assert (other & band).sum() > 10 and (other & ~band).sum() > 10
    dark, light = found[other & band].mean(), found[other & ~band].mean()
    assert light - dark > 0.15, (dark, light)


def test_rays_meet_the_surfaces_colours(head, true):
    drawn, rays = paint.drawn(head, true, np.zeros(79), pose(0.3), CAMERA, SIZE)
    image, mask = filmed(head, true, 0.3)
    assert drawn.dtype == np.uint8 and not rays[mask.reshape(-1) == 0].any()
    assert rays.sum() > 0.9 * mask.sum()
    np.testing.assert_array_equal(drawn[rays], image.reshape(-1, 3)[rays])


def test_frames_that_show_nothing_leave_one_grey(head):
    nothing = [(np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE)))] * 3
    np.testing.assert_allclose(painted(head, nothing), 0.5, atol=1e-4)
