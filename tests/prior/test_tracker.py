"""The tracker on a clip whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from t3d import camera as cameras
from t3d.prior import basis, morphable, shading, tracker

FRAMES, SIZE = 60, 64


@pytest.fixture(scope="module")
def clip():
    """Landmarks and pictures of the built-in head: talking, turning, lit from the side."""
    rng = np.random.default_rng(0)
    model = basis.load("procedural")
    t = np.arange(FRAMES) / 25
    weights = {
        "jawOpen": 0.15 + 0.15 * np.sin(9 * t),
        "mouthSmile_L": 0.3 * np.ones(FRAMES),
        "browInnerUp_L": 0.3 * (1 + np.sin(2 * t)) / 2,
    }
    expression = morphable.expression_from_weights(model, weights)
    rotvec = np.stack([0.05 * np.sin(t), 0.3 * np.sin(2 * t), 0.05 * np.cos(t)], -1)
    translation = np.stack([2 * np.sin(t), 0 * t, 90 + 3 * np.cos(t)], -1)
    pose = cameras.head_pose(rotvec, translation)
    identity = 0.3 * rng.normal(size=100)
    light = np.zeros((9, 3))
    light[0], light[2] = 0.7, [-0.12, -0.1, -0.08]
    camera = cameras.recorded(np.array([3.5, 3.5, 0.5, 0.5]))
    world = cameras.transform(pose, np.asarray(morphable.vertices(model, identity, expression)))
    points = cameras.project(camera, world[:, np.asarray(model.landmarks68)])[0]
    points = points + rng.normal(size=points.shape) * 0.5 / 256
    pictures = _pictures(model, world, camera, light)
    prior = np.zeros((FRAMES, 53))
    names = list(model.expression_names)
    for name, value in weights.items():
        prior[:, names.index(name)] = value
    return SimpleNamespace(
        model=model,
        landmarks=SimpleNamespace(points68=points, found=np.ones(FRAMES, bool), blendshapes=prior),
        rotation=pose[:, :3, :3],
        pictures=pictures,
        expression=expression,
    )


def _pictures(model, world, camera, light):
    from t3d.prior import raster

    triangles = np.asarray(model.triangles)
    pictures = np.zeros((FRAMES, SIZE, SIZE, 3))
    for i, vertices in enumerate(world.astype(np.float32)):
        uv, depth = cameras.project(camera, vertices)
        drawn = raster.rasterize(uv * SIZE, depth, triangles, SIZE, SIZE)
        normals = np.asarray(morphable.vertex_normals(vertices, triangles))
        colours = shading.shade(np.asarray(model.albedo_mean), normals, light.reshape(27))
        pictures[i] = raster.interpolate(drawn, triangles, np.asarray(colours))
    return np.clip(pictures, 0, 1)


@pytest.fixture(scope="module")
def fitted(clip):
    return tracker.track(
        clip.model,
        clip.landmarks,
        np.arange(40),
        lambda i: (clip.pictures[i] * 255).astype(np.uint8),
        lambda i: np.ones((len(i), SIZE, SIZE)),
        steps=600,
    )


def openings(points):
    gap = np.linalg.norm(points[:, 62] - points[:, 66], axis=-1)
    return gap / np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)


def reproject(clip, fitted):
    small = morphable.restrict(clip.model, clip.model.landmarks68)
    shape = np.asarray(morphable.vertices(small, fitted["identity"], fitted["expression"]))
    world = cameras.transform(fitted["head_to_world"], shape)
    return cameras.project(cameras.recorded(fitted["intrinsics"]), world)[0]


def test_landmarks_are_met_and_the_mouth_follows(clip, fitted):
    assert np.median(fitted["residual"]) < 0.03
    truth, found = openings(clip.landmarks.points68), openings(reproject(clip, fitted))
    assert np.corrcoef(truth, found)[0, 1] > 0.95


def degrees_between(a, b):
    trace = np.trace(np.swapaxes(a, -1, -2) @ b, axis1=-2, axis2=-1)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def test_rotation_is_followed_to_a_degree_and_known_to_three(clip, fitted):
    found = fitted["head_to_world"][:, :3, :3]
    assert np.median(degrees_between(found, clip.rotation)) < 3.0  # identity hides the rest
    turned = [r @ np.swapaxes(r[:1], 1, 2) for r in (found, clip.rotation)]
    assert np.median(degrees_between(*turned)) < 1.0


def test_fitted_light_and_albedo_paint_the_picture_again(clip, fitted):
    world = cameras.transform(
        fitted["head_to_world"],
        np.asarray(morphable.vertices(clip.model, fitted["identity"], fitted["expression"])),
    )
    skin = np.asarray(clip.model.region) == clip.model.region_names.index("face")
    albedo = np.asarray(morphable.albedo(clip.model, fitted["albedo"]))
    errors = []
    for frame in range(0, FRAMES, 10):
        vertices = world[frame].astype(np.float32)
        normals = np.asarray(morphable.vertex_normals(vertices, np.asarray(clip.model.triangles)))
        uv, _ = cameras.project(cameras.recorded(fitted["intrinsics"]), vertices)
        seen = tracker._sample(clip.pictures[frame][None], uv[None])[0]
        painted = shading.shade(albedo, normals, fitted["illumination"][frame])
        use = skin & (normals[:, 2] < -0.6)
        errors.append(np.abs(np.clip(painted, 0, 1) - seen)[use].mean())
    assert np.mean(errors) < 0.06


def test_a_lost_frame_is_bridged_not_invented(clip):
    marks = SimpleNamespace(**vars(clip.landmarks))
    marks.found = marks.found.copy()
    marks.points68 = marks.points68.copy()
    marks.found[20:23] = False
    marks.points68[20:23] = np.nan
    fitted = tracker.track(
        clip.model,
        marks,
        np.arange(40),
        lambda i: (clip.pictures[i] * 255).astype(np.uint8),
        lambda i: np.ones((len(i), SIZE, SIZE)),
        steps=100,
    )
    assert np.isnan(fitted["residual"][20:23]).all()
    assert all(np.isfinite(v).all() for k, v in fitted.items() if k != "residual")
    step = np.linalg.norm(np.diff(fitted["translation"], axis=0), axis=-1)
    assert step[19:23].max() < 3 * np.median(step) + 0.5
