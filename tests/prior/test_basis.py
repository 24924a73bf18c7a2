import numpy as np
import pytest

from t3d import camera
from t3d.errors import UserError
from t3d.prior import basis, morphable, raster, skin


@pytest.fixture(scope="module", params=["procedural", "ict"])
def model(request, assets):
    return basis.load(request.param)


def _shown(model, **weights):
    expression = morphable.expression_from_weights(model, weights) if weights else np.zeros(79)
    return morphable.vertices(model, np.zeros(100, np.float32), expression.astype(np.float32))


def _gap(model, points):
    marks = points[model.landmarks68]
    return marks[62, 1] - marks[66, 1]


def _regions_seen(model, points, yaw=0.0, size=160):
    pose = camera.head_pose(np.array([0.0, np.deg2rad(yaw), 0.0]), np.array([0.0, -2.0, 80.0]))
    view = camera.recorded(np.array([2.6, 2.6, 0.5, 0.5]))
    uv, depth = camera.project(view, camera.transform(pose, points))
    drawn = raster.rasterize(uv * size, depth, model.triangles, size, size)
    seen = np.unique(drawn.triangle[drawn.triangle >= 0], return_counts=True)
    names = np.array(model.region_names)[model.region[model.triangles[seen[0], 0]]]
    return {name: seen[1][names == name].sum() for name in model.region_names}


def test_shapes_types_and_ranges(model):
    count = len(model.mean)
    assert model.identity_basis.shape == (100, count, 3)
    assert model.expression_basis.shape == (79, count, 3)
    assert model.albedo_basis.shape == (100, count, 3)
    assert model.triangles.dtype == model.landmarks68.dtype == model.lips79.dtype == np.int32
    assert model.triangles.min() >= 0 and model.triangles.max() < count
    assert model.region.shape == (count,) and model.region_names == skin.REGIONS
    assert 0 <= model.albedo_mean.min() and model.albedo_mean.max() <= 1
    for field in (model.mean, model.identity_basis, model.expression_basis, model.albedo_basis):
        assert field.dtype == np.float32 and np.isfinite(field).all()
    assert not model.albedo_basis[99].any() and not model.expression_basis[53:].any()
    assert len(set(model.lips79.tolist())) == 79 and len(set(model.landmarks68.tolist())) == 68


def test_no_triangle_is_without_use_and_no_vertex_either(model):
    assert len(np.unique(model.triangles)) == len(model.mean)
    a, b, c = np.moveaxis(np.sort(model.triangles, -1), -1, 0)
    assert ((a < b) & (b < c)).all()


def test_head_is_of_human_size_and_faces_the_viewer(model):
    marks = model.mean[model.landmarks68]
    chin, crown = marks[8, 1], model.mean[:, 1].max()
    assert 20 < crown - chin < 27
    assert 7.5 < np.linalg.norm(marks[36] - marks[45]) < 10.5
    assert marks[30, 2] > marks[8, 2] > marks[0, 2]
    assert np.abs(marks[:, 0].mean()) < 0.3


def test_landmarks_follow_the_ibug_order(model):
    marks = model.mean[model.landmarks68]
    x, y = marks[:, 0], marks[:, 1]
    assert x[36] < x[39] < x[42] < x[45] and x[48] < x[54] and x[0] < x[8] < x[16]
    assert (np.diff(x[:17]) > 0).all() and (np.diff(y[:8]) < 0).all()
    assert (np.diff(x[17:27]) > 0).all() and (np.diff(y[27:31]) < 0).all()
    assert y[37] > y[41] and y[44] > y[46] and y[51] > y[62] >= y[66] > y[57]
    np.testing.assert_allclose(x[[8, 27, 30, 33, 51, 57, 62, 66]], 0, atol=0.1)
    mirror = [*range(16, -1, -1), *range(26, 16, -1)]
    np.testing.assert_allclose(marks[mirror, 0], -marks[: len(mirror), 0], atol=0.1)


def test_lip_rings_run_from_the_outer_to_the_inner_contour(model):
    marks = model.mean[model.landmarks68]
    lips = model.mean[model.lips79]
    for start, corners in ((0, (48, 54)), (60, (60, 64))):
        np.testing.assert_allclose(lips[start], marks[corners[0]], atol=0.25)
        np.testing.assert_allclose(lips[start + 10], marks[corners[1]], atol=0.25)
    np.testing.assert_allclose(lips[5], marks[57], atol=0.25)
    np.testing.assert_allclose(lips[15], marks[51], atol=0.25)
    np.testing.assert_allclose(lips[65], marks[66], atol=0.25)
    np.testing.assert_allclose(lips[75], marks[62], atol=0.25)
    middle = lips[[5, 25, 45, 65, 75, 55, 35, 15], 1]
    assert (np.diff(middle) > -0.02).all()


def test_open_jaw_parts_the_lips_and_leaves_the_upper_face(model):
    still, open_ = _shown(model), _shown(model, jawOpen=1.0)
    assert _gap(model, still) < 0.15 and 2.0 < _gap(model, open_) < 5.0
    moved = np.linalg.norm(open_ - still, axis=-1)[model.landmarks68]
    assert moved[17:48].max() < 0.3 and moved[8] > 1.5
    assert moved[61:64].max() < 0.5 * moved[65:68].min()
    teeth = model.region == model.region_names.index("teeth")
    drop = (still - open_)[teeth, 1]
    assert drop.max() > 1.5 and (drop < 0.3).mean() > 0.3
    seen = _regions_seen(model, open_)
    assert seen["mouth_socket"] + seen["gums_tongue"] + seen["teeth"] > 50


def test_closed_mouth_over_an_open_jaw_stays_closed(model):
    assert abs(_gap(model, _shown(model, jawOpen=1.0, mouthClose=1.0))) < 0.6


def test_blink_hides_the_eyeball_of_its_side_only(model):
    still = _regions_seen(model, _shown(model))
    left = _regions_seen(model, _shown(model, eyeBlink_L=1.0))
    assert still["eyeball_left"] > 15 and still["eyeball_right"] > 15
    assert left["eyeball_left"] < 0.2 * still["eyeball_left"]
    assert left["eyeball_right"] == still["eyeball_right"]


def test_every_expression_does_what_its_name_says(model):
    still = _shown(model)[model.landmarks68]

    def change(**weights):
        return _shown(model, **weights)[model.landmarks68] - still

    assert change(mouthSmile_L=1.0)[54, 1] > 0.3 > 0.1 > abs(change(mouthSmile_L=1.0)[48, 1])
    assert change(mouthSmile_R=1.0)[48, 0] < -0.3
    assert change(mouthFrown_L=1.0)[54, 1] < -0.2
    assert change(mouthPucker=1.0)[48, 0] > 0.3 and change(mouthPucker=1.0)[51, 2] > 0.4
    assert change(mouthFunnel=1.0)[62, 1] - change(mouthFunnel=1.0)[66, 1] > 0.7
    assert change(mouthStretch_L=1.0)[54, 0] > 0.3
    assert change(mouthUpperUp_L=1.0, mouthUpperUp_R=1.0)[62, 1] > 0.3
    assert change(mouthLowerDown_L=1.0, mouthLowerDown_R=1.0)[66, 1] < -0.25
    assert change(mouthRollLower=1.0)[66, 2] < -0.3 and change(mouthRollUpper=1.0)[62, 2] < -0.3
    assert change(mouthShrugLower=1.0)[57, 1] > 0.2 and change(mouthShrugUpper=1.0)[51, 1] > 0.3
    assert change(jawLeft=1.0)[8, 0] > 0.4 and change(jawRight=1.0)[8, 0] < -0.4
    assert change(jawForward=1.0)[8, 2] > 0.5
    assert change(mouthLeft=1.0)[51, 0] > 0.4 and change(mouthRight=1.0)[57, 0] < -0.4
    assert change(browInnerUp_L=1.0)[22, 1] > 0.3 and change(browOuterUp_R=1.0)[18, 1] > 0.3
    assert change(browDown_L=1.0)[23, 1] < -0.2
    assert change(eyeWide_L=1.0)[43:45, 1].min() > 0.1
    assert change(eyeSquint_R=1.0)[40:42, 1].min() > 0.1
    assert change(noseSneer_L=1.0)[35, 1] > 0.05


def test_built_in_eyes_look_where_their_names_say():
    model = basis.load("procedural")  # ICT-FaceKit's look shapes move its lids only
    for name, axis, sign in (
        ("eyeLookOut_L", 0, 1),
        ("eyeLookIn_L", 0, -1),
        ("eyeLookUp_L", 1, 1),
        ("eyeLookDown_L", 1, -1),
    ):
        ball = model.region == model.region_names.index("eyeball_left")
        front = np.flatnonzero(ball)[model.mean[ball, 2].argsort()[-20:]]
        moved = (_shown(model, **{name: 1.0}) - model.mean)[front].mean(0)
        assert sign * moved[axis] > 0.1


def test_names_are_ict_facekits_and_the_same_for_both_priors(assets):
    built_in, ict = basis.load("procedural"), basis.load("ict")
    assert built_in.expression_names == ict.expression_names
    assert len(ict.expression_names) == 53


def test_identity_varies_plausibly_and_keeps_the_order_of_the_face(model):
    rng = np.random.default_rng(7)
    spread = np.sqrt(np.sum(model.identity_basis**2, 0)).mean()
    assert 0.1 < spread < 0.8
    for _ in range(5):
        code = rng.normal(size=100).astype(np.float32)
        marks = morphable.vertices(model, code, np.zeros(79, np.float32))[model.landmarks68]
        assert marks[36, 0] < marks[39, 0] < marks[42, 0] < marks[45, 0]
        assert marks[27, 1] > marks[30, 1] > marks[51, 1] > marks[57, 1] > marks[8, 1]


def test_albedo_vectors_are_smooth_and_of_falling_size(model):
    size = np.sqrt(np.mean(model.albedo_basis**2, (1, 2)))
    lightness = np.concatenate([size[0:57:3], size[57:59:2], size[59:99]])
    assert lightness[0] > 2 * lightness[15] > 2.5 * lightness[-1] > 0 == size[99]
    assert (size[1:57:3] < 0.3 * size[0:57:3]).all()
    ends = model.triangles[:, :2]
    step = np.abs(model.albedo_basis[15, ends[:, 0]] - model.albedo_basis[15, ends[:, 1]]).mean()
    assert step < 0.2 * np.abs(model.albedo_basis[15]).mean()


def test_loading_twice_gives_the_same_model():
    one, two = basis.load("procedural"), basis.load("procedural")
    for field in ("mean", "identity_basis", "expression_basis", "albedo_basis", "triangles"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_smooth_modes_of_a_rod_are_cosines():
    z = np.sort(np.random.default_rng(8).uniform(0, 40, 4000))
    points = np.stack([0.3 * np.sin(z * 50), 0.3 * np.cos(z * 50), z], -1)
    modes = skin.smooth_modes(points, 4)
    for k in range(4):
        wave = np.cos(np.pi * k * z / 40)
        assert abs(np.corrcoef(modes[k], wave)[0, 1]) > 0.97 if k else np.ptp(modes[0]) < 0.05


def test_unknown_prior_is_one_line_that_lists_the_names():
    with pytest.raises(UserError, match="procedural, ict"):
        basis.load("bfm")


def test_missing_asset_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="ict_facekit"):
        basis.load("ict")
