"""Colours at vertices: what is skin, what albedo and light they mean, how they slope."""

import numpy as np
import pytest

from t3d.prior import appearance, basis, morphable, shading


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


@pytest.fixture(scope="module")
def patch(model):
    return appearance.patch_of(model, 300)


def test_a_patch_covers_the_front_of_the_face_evenly(model, patch):
    assert len(np.unique(patch.vertices)) == 300
    assert (model.region[patch.vertices] == model.region_names.index("face")).all()
    np.testing.assert_array_equal(patch.model.mean[patch.at], model.mean[patch.vertices])
    points = model.mean[patch.vertices]
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 100 * np.eye(300)
    assert apart.min(1).min() > 0.5 * np.median(apart.min(1))


def test_colours_and_slopes_of_a_ramp_are_its_own():
    across, down = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(32) + 0.5) / 32)
    picture = np.stack([200 * across, 100 * down, 50 + 0 * down], -1)[None].astype(np.float32)
    uv = np.random.default_rng(0).uniform(0.2, 0.8, (1, 20, 2))
    expected = np.stack([200 * uv[..., 0], 100 * uv[..., 1], np.full((1, 20), 50)], -1)
    np.testing.assert_allclose(appearance.sample(picture, uv), expected, atol=1e-3)
    slope = appearance._slope(picture, uv) * 255
    np.testing.assert_allclose(slope[..., 0], np.broadcast_to([200, 0, 0], (1, 20, 3)), atol=1e-2)
    np.testing.assert_allclose(slope[..., 1], np.broadcast_to([0, 100, 0], (1, 20, 3)), atol=1e-2)


def views_of(patch, code, light, rng, hair=()):
    """Frames lit by light [n, 9, 3], of the head's own normals; `hair`: vertices that are dark."""
    normals = morphable.vertex_normals(patch.model.mean, patch.triangles)[patch.at]
    bands = np.broadcast_to(shading.sh_basis(normals), (len(light), len(patch.at), 9))
    albedo = morphable.albedo(patch.model, code)[patch.at]
    colours = albedo * (bands @ light) + 0.005 * rng.normal(size=(len(light), len(patch.at), 3))
    colours[:, list(hair)] = [0.15, 0.1, 0.08] + 0.02 * rng.normal(size=(len(hair), 3))
    return appearance.Views(colours, bands, np.ones(bands.shape[:2], bool), None)


@pytest.fixture(scope="module")
def lit(patch):
    rng = np.random.default_rng(1)
    code = np.where(np.arange(100) < 20, rng.normal(size=100), 0)
    light = np.zeros((12, 9, 3))
    light[:, 0] = rng.uniform(0.5, 0.6, (12, 1))
    light[:, 1:4] = rng.uniform(-0.06, 0.06, (12, 3, 1))
    return code, light, views_of(patch, code, light, rng, hair=range(0, 300, 10))


def test_hair_is_told_from_skin_by_its_colour(lit):
    _, _, views = lit
    skin = appearance.skin_of(views, *appearance.skin_colour(views))
    hair = np.isin(np.arange(300), np.arange(0, 300, 10))
    assert not skin[:, hair].any()
    assert skin[:, ~hair].mean() > 0.85


def test_what_was_painted_is_found_again(patch, lit):
    """Albedo up to a colour's scale, which light could be; and the light of every frame."""
    code, light, views = lit
    found = appearance.fit(patch, views)
    skin = appearance.skin_of(views, found.centre, found.precision).all(0)
    truth = morphable.albedo(patch.model, code)[patch.at]
    share = (found.albedo / truth)[skin]
    assert (share.std(0) / share.mean(0)).max() < 0.05
    assert appearance.psnr(found, views, found.albedo).min() > 32
    again = appearance.lights(views, np.broadcast_to(skin, (12, 300)), truth, ridge=1e-9)
    assert np.abs(views.bands @ (again - light)).mean() < 0.005
    assert np.median(found.noise) < 0.02


def test_a_hand_before_the_face_counts_little(patch, lit):
    _, _, views = lit
    speaker = appearance.fit(patch, views)
    covered = views._replace(colours=views.colours.copy())
    covered.colours[3, 200:260] = [0.1, 0.3, 0.2]
    _, before = appearance.surprise(speaker, views)
    left, weight = appearance.surprise(speaker, covered)
    assert np.median(weight[3, 200:260] / before[3, 200:260]) < 0.1
    assert np.abs(left[5]).mean() < 0.02


def test_a_face_that_is_never_seen_gives_finite_colours(patch, lit):
    _, _, views = lit
    unseen = views._replace(visible=np.zeros_like(views.visible))
    found = appearance.fit(patch, unseen)
    assert all(np.isfinite(part).all() for part in found)
    assert np.isfinite(appearance.surprise(found, unseen)[0]).all()
