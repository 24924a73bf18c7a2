"""The tracker on a clip whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from t3d import camera as cameras
from t3d.prior import appearance, basis, morphable, shading, tracker

FRAMES, SIZE = 60, 64
MAY_BE_NAN = ("residual", "psnr", "psnr_texture")


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
    rotvec = np.stack([0.05 * np.sin(t), 0.45 * np.sin(2 * t), 0.05 * np.cos(t)], -1)
    translation = np.stack([2 * np.sin(t), 0 * t, 65 + 3 * np.cos(t)], -1)
    pose = cameras.head_pose(rotvec, translation)
    identity = 0.3 * rng.normal(size=100)
    light = np.zeros((9, 3))
    light[0], light[2] = 0.7, [-0.12, -0.1, -0.08]
    camera = cameras.recorded(np.array([2.5, 2.5, 0.5, 0.5]))
    world = cameras.transform(pose, np.asarray(morphable.vertices(model, identity, expression)))
    marked = np.concatenate([model.landmarks68, model.lips79])
    points = cameras.project(camera, world[:, marked])[0]
    points = points + rng.normal(size=points.shape) * 0.5 / 256
    pictures = _pictures(model, world, camera, light)
    prior = np.zeros((FRAMES, 53))
    names = list(model.expression_names)
    for name, value in weights.items():
        prior[:, names.index(name)] = value
    return SimpleNamespace(
        model=model,
        landmarks=SimpleNamespace(
            points68=points[:, :68],
            lips79=points[:, 68:],
            found=np.ones(FRAMES, bool),
            blendshapes=prior,
        ),
        rotation=pose[:, :3, :3],
        depth=translation[:, 2],
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


def track(clip, marks):
    return tracker.track(
        clip.model,
        marks,
        np.arange(40),
        lambda i: (clip.pictures[i] * 255).astype(np.uint8),
        lambda i: np.ones((len(i), SIZE, SIZE)),
    )


@pytest.fixture(scope="module")
def fitted(clip):
    return track(clip, clip.landmarks)


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
    """By the chord: the arc cosine of a trace makes 0.06° of single precision's last bit."""
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(np.minimum(chord, 1)))


def test_rotation_is_known_to_a_degree(clip, fitted):
    found = fitted["head_to_world"][:, :3, :3]
    assert np.median(degrees_between(found, clip.rotation)) < 1.0


def test_pixels_tell_more_of_the_pose_than_landmarks_do(clip, fitted, monkeypatch):
    monkeypatch.setattr(tracker, "PIXELS_WORTH", 0.0)
    without = track(clip, clip.landmarks)["head_to_world"][:, :3, :3]
    with_them = fitted["head_to_world"][:, :3, :3]
    errors = [np.mean(degrees_between(r, clip.rotation)) for r in (with_them, without)]
    assert errors[0] < 0.97 * errors[1]


def test_pixels_undo_what_landmarks_get_wrong_for_seconds(clip, monkeypatch):
    """A detector that sees the face grow and shrink by 1 % puts it nearer and farther: no smoothing
    in time undoes that. Pixels do, and more where their colours come from what they put right."""
    grown = 1 + 0.01 * np.sin(2 * np.pi * np.arange(FRAMES) / 40)[:, None, None]
    marks = vars(clip.landmarks).copy()
    middle = marks["points68"].mean(1, keepdims=True)
    for name in ("points68", "lips79"):
        marks[name] = middle + grown * (marks[name] - middle)
    wobble = {}
    for rounds, worth in ((1, 0.0), (1, tracker.PIXELS_WORTH), (2, tracker.PIXELS_WORTH)):
        monkeypatch.setattr(tracker, "PIXELS_WORTH", worth)
        monkeypatch.setattr(tracker, "PIXEL_ROUNDS", rounds)
        found = track(clip, SimpleNamespace(**marks))["translation"][:, 2]
        wobble[rounds, bool(worth)] = np.std(np.log(found / clip.depth))
    assert wobble[1, True] < 0.8 * wobble[1, False]
    assert wobble[2, True] < 0.95 * wobble[1, True], wobble


@pytest.mark.full
def test_a_long_clip_is_joined_in_windows_as_at_once(clip, fitted, monkeypatch):
    monkeypatch.setattr(tracker, "WINDOW", 25)
    monkeypatch.setattr(tracker, "OVERLAP", 12)
    parts = track(clip, clip.landmarks)
    apart = degrees_between(parts["head_to_world"][:, :3, :3], fitted["head_to_world"][:, :3, :3])
    assert apart.max() < 0.02
    np.testing.assert_allclose(parts["expression"], fitted["expression"], atol=0.02)
    np.testing.assert_allclose(parts["illumination"], fitted["illumination"], atol=1e-3)


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
        seen = appearance.sample(clip.pictures[frame][None], uv[None])[0]
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
    assert np.isfinite(marks.lips79).all()  # what is there is not looked at
    fitted = tracker.track(
        clip.model,
        marks,
        np.arange(40),
        lambda i: (clip.pictures[i] * 255).astype(np.uint8),
        lambda i: np.ones((len(i), SIZE, SIZE)),
    )
    assert np.isnan(fitted["residual"][20:23]).all()
    assert all(np.isfinite(v).all() for k, v in fitted.items() if k not in MAY_BE_NAN)
    step = np.linalg.norm(np.diff(fitted["translation"], axis=0), axis=-1)
    assert step[19:23].max() < 3 * np.median(step) + 0.5


def test_the_focal_length_of_a_turning_head_is_found(fitted):
    assert fitted["focal_deviation"] < tracker.OBSERVABLE
    assert abs(np.log(fitted["intrinsics"][0] / 2.5)) < 0.15


def test_frames_with_wild_landmarks_are_not_trusted_and_bridged(clip, fitted):
    marks = SimpleNamespace(**vars(clip.landmarks))
    marks.points68, marks.lips79 = marks.points68.copy(), marks.lips79.copy()
    wild = np.random.default_rng(3).uniform(0.2, 0.8, (3, 147, 2))
    marks.points68[30:33], marks.lips79[30:33] = wild[:, :68], wild[:, 68:]
    again = track(clip, marks)
    assert not again["trusted"][30:33].any() and again["trusted"][:28].all()
    away = degrees_between(again["head_to_world"][:, :3, :3], clip.rotation)
    assert away[30:33].max() < 4.0


def test_covered_mouths_are_looked_for_once_and_cost_the_others_no_round(clip, monkeypatch):
    """What a second round finds covered would throw that round away for the whole clip."""
    asked = []

    def hidden(colours, visible):
        asked.append(len(colours))
        return np.arange(len(colours)) == (25 if len(asked) > 1 else -1)

    monkeypatch.setattr(tracker.occlusion, "hidden", hidden)
    assert track(clip, clip.landmarks)["trusted"].all()
    assert len(asked) == tracker.PIXEL_ROUNDS


def test_a_covered_mouth_is_bridged_though_its_landmarks_look_right(clip, fitted):
    """A detector goes on drawing a mouth where a hand is; here it is even the true one."""
    covered = SimpleNamespace(**vars(clip))
    covered.pictures = clip.pictures.copy()
    for frame in range(20, 26):
        x, y = (clip.landmarks.points68[frame, 48:].mean(0) * SIZE).astype(int)
        covered.pictures[frame, y - 7 : y + 8, x - 7 : x + 8] = [0.32, 0.24, 0.2]  # skin's
    found = track(covered, clip.landmarks)
    assert np.flatnonzero(~found["trusted"]).tolist() == list(range(20, 26))
    assert fitted["trusted"].all()
    # From one side to the other in a straight line, whatever the landmarks do.
    jaw = found["expression"][19:27, list(clip.model.expression_names).index("jawOpen")]
    assert np.abs(np.diff(jaw, 2)).max() < 0.3 * np.abs(jaw).max()


def test_a_cut_is_not_smoothed_over(clip):
    marks = SimpleNamespace(**vars(clip.landmarks))
    moved = np.where(np.arange(FRAMES)[:, None, None] < 30, 0.0, [0.2, 0.0])
    marks.points68, marks.lips79 = marks.points68 + moved, marks.lips79 + moved
    marks.shot = (np.arange(FRAMES) >= 30).astype(np.int32)
    across = track(clip, marks)["head_to_world"][:, 0, 3]
    step = np.abs(np.diff(across))
    assert step[29] > 5 * np.delete(step, 29).max()


def test_perspective_lies_between_what_is_told_and_what_is_usual():
    usual = 1 / tracker.FOCAL_PRIOR
    sure, doubt = (tracker._perspective(0.5, deviation) for deviation in (0.001, 0.3))
    assert sure == pytest.approx((0.5, 0.002), rel=1e-2)
    assert usual < doubt[0] < 0.5 and doubt[1] > sure[1]
    for told, deviation in ((0.5, 1e9), (0.5, np.inf), (-0.2, 0.01)):
        assert tracker._perspective(told, deviation)[0] == pytest.approx(usual)
    assert doubt[1] * doubt[0] < tracker.KAPPA_PRIOR  # two that agree are surer than either
