"""Our face model, poses, pictures and light are AD-NeRF's, through the converters."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import scipy.io

from t3d import camera, guo
from t3d.errors import UserError
from t3d.peers import adnerf
from t3d.prior import bfm, morphable, shading

SIDE = 512


def _close(ours, theirs):
    """Equal to 1e-4 of the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


class Case:
    """A fixture's numbers, and our model of its arrays (its triangles are made up)."""

    def __init__(self, data, family):
        self.data = data
        zeros = np.zeros(len(family.mean), np.int32)
        self.model = morphable.MorphableModel(
            mean=family.mean,
            identity_basis=family.identity,
            expression_basis=family.expression,
            albedo_mean=family.albedo_mean,
            albedo_basis=family.albedo,
            triangles=family.triangles,
            landmarks68=data["in_keyinds"],
            lips79=zeros[:79],
            region=zeros,
            name="bfm09",
            expression_names=(),
            region_names=("face",),
        )
        self.origin = self.model.mean.astype(np.float64).mean(0)
        self.sample = data.get("in_vertices", np.arange(len(family.mean)))

    @property
    def points(self):
        return morphable.vertices(self.model, self.data["in_id_para"], self.data["in_exp_para"])

    @property
    def world(self):
        data = self.data
        pose = adnerf.head_to_world(data["in_euler"], data["in_trans"], self.origin)
        return camera.transform(pose, self.points)

    def project(self, world):
        k = adnerf.intrinsics(float(self.data["in_focal"][0]), SIDE)
        uv, depth = camera.project(camera.recorded(k), world)
        return np.concatenate([uv * SIDE, -depth[..., None] / adnerf.CENTIMETRES], -1)


def _any_triangles(count):
    return np.random.default_rng(0).integers(0, count, (50, 3))


def _small_files(folder, arrays, data):
    """The fixture's arrays as the two files of bfm09."""
    triangles = _any_triangles(400) + 1
    basel = {k: v for k, v in arrays.items() if k.startswith(("shape", "tex"))}
    scipy.io.savemat(folder / "01_MorphableModel.mat", basel | {"tl": triangles})
    guos = {k: arrays[k] for k in ("mu_exp", "base_exp", "sig_exp")}
    guos |= {"sub_inds": data["in_sub_inds"], "keyinds": data["in_keyinds"]}
    np.savez(folder / "bfm09_expression.npz", **guos)
    return folder / "01_MorphableModel.mat", folder / "bfm09_expression.npz"


@pytest.fixture(scope="module", params=["adnerf_face_small", "adnerf_face_full"])
def case(request, golden, golden_weights, tmp_path_factory):
    data = golden(request.param)
    recipe = json.loads(str(data["meta"]))["recipe"]
    arrays = {key: golden_weights.from_recipe(r) for key, r in recipe.items()}
    if "in_sub_inds" in data:
        files = _small_files(tmp_path_factory.mktemp("bfm09"), arrays, data)
        return Case(data, bfm.read_2009(*files))
    return Case(data, bfm.from_guo(arrays, _any_triangles(arrays["mu_shape"].size // 3)))


def test_geometry_is_theirs(case):
    ours = (case.points - case.origin) / adnerf.CENTIMETRES
    _close(ours[:, case.sample], case.data["out_geometry"])
    sums = ours.mean(), ours.std(), np.abs(ours).sum()
    np.testing.assert_allclose(sums[1:], case.data["out_geometry_sums"][1:], rtol=1e-4)


def test_texture_is_theirs(case):
    ours = 255 * morphable.albedo(case.model, case.data["in_tex_para"])
    _close(ours[:, case.sample], case.data["out_texture"])
    np.testing.assert_allclose(ours.mean(), case.data["out_texture_sums"][0], rtol=1e-4)


def test_turned_and_moved_heads_are_theirs(case):
    theirs = case.world @ camera.FRONTAL / adnerf.CENTIMETRES
    _close(theirs[:, case.sample], case.data["out_rotated"])


def test_pictures_are_theirs(case):
    _close(case.project(case.world)[:, case.sample], case.data["out_projected"])


def _with_contours(case):
    """Their landmarks: at the sides of the jaw what lies furthest out in the picture."""
    marks = np.tile(case.model.landmarks68, (len(case.points), 1))
    across = case.project(case.world)[..., 0]
    for sides, place, furthest in (("left", 0, np.argmin), ("right", 9, np.argmax)):
        rows = case.data[f"in_{sides}_contour"]
        best = furthest(across[:, rows], -1)
        marks[:, place : place + 8] = np.take_along_axis(rows[None], best[..., None], -1)[..., 0]
    return marks[..., None]


def test_landmarks_with_sliding_contours_are_theirs(case):
    marks = _with_contours(case)
    in_head = (case.points - case.origin) / adnerf.CENTIMETRES
    in_picture = case.project(case.world)
    _close(np.take_along_axis(in_head, marks, 1), case.data["out_landmarks_3d"])
    _close(np.take_along_axis(in_picture, marks, 1), case.data["out_landmarks_2d"])


def test_rotations_are_theirs(golden):
    data = golden("adnerf_face_small")
    np.testing.assert_allclose(adnerf.rotation(data["in_euler"]), data["out_rot_util"], atol=1e-6)


def test_vertex_normals_are_theirs(golden):
    data = golden("adnerf_face_small")
    mesh = [data[f"in_mesh_{name}"] for name in ("vertices", "tris", "vert_tris")]
    np.testing.assert_allclose(
        adnerf.vertex_normals(*mesh), data["out_mesh_vertex_normal"], atol=1e-5
    )


def test_light_and_shaded_colours_are_theirs(golden):
    data = golden("adnerf_face_small")
    light = adnerf.illumination(data["in_sh_gamma"])
    normals, texture = data["in_sh_normals"] @ camera.FRONTAL, data["in_sh_texture"]
    _close(shading.shade(np.ones_like(texture), normals, light), data["out_sh_lighting"])
    _close(255 * shading.shade(texture / 255, normals, light), data["out_sh_color"])


def test_a_track_becomes_our_codes_and_cameras(golden, case):
    data, frames = case.data, len(case.data["in_euler"])
    params = {
        "id": data["in_id_para"][:1],
        "exp": data["in_exp_para"],
        "euler": data["in_euler"],
        "trans": data["in_trans"],
        "focal": data["in_focal"],
        "tex": data["in_tex_para"][:1],
        "light": np.tile(golden("adnerf_face_small")["in_sh_gamma"][:1], (frames, 1)),
    }
    ours = adnerf.track(params, SIDE, case.origin)
    points = morphable.vertices(case.model, ours["identity"], ours["expression"])
    uv, _ = camera.project(
        camera.recorded(ours["intrinsics"]), camera.transform(ours["head_to_world"], points)
    )
    theirs = data["out_projected"][0, :, :2]  # the first frame has the identity that all have here
    _close(SIDE * uv[0, case.sample], theirs)
    assert ours["illumination"].shape == (frames, 27) and ours["albedo"].shape == (100,)


def test_a_file_that_is_no_track_is_refused(tmp_path):
    path = tmp_path / "track_params.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"id": 1}))
    with pytest.raises(UserError, match=r"track_params\.pt: no parameters of AD-NeRF"):
        adnerf.read_track(path, SIDE, np.zeros(3))


def _folder(tmp_path, arrays, data):
    """AD-NeRF's folder 3DMM, dictionaries pickled as `np.save` does."""
    np.save(
        tmp_path / "exp_info.npy",
        {k: arrays[k] for k in ("mu_exp", "base_exp", "sig_exp")},
        allow_pickle=True,
    )
    np.save(tmp_path / "topology_info.npy", {"sub_inds": data["in_sub_inds"]}, allow_pickle=True)
    np.save(tmp_path / "keys_info.npy", {"keyinds": data["in_keyinds"]}, allow_pickle=True)


@pytest.fixture
def small(golden, golden_weights):
    data = golden("adnerf_face_small")
    recipe = json.loads(str(data["meta"]))["recipe"]
    return {key: golden_weights.from_recipe(r) for key, r in recipe.items()}, data


def test_adnerfs_folder_becomes_the_expression_file(small, tmp_path):
    arrays, data = small
    _folder(tmp_path, arrays, data)
    found = guo.convert(tmp_path)
    np.testing.assert_array_equal(found["base_exp"], arrays["base_exp"])
    np.testing.assert_array_equal(found["mu_exp"], arrays["mu_exp"])
    np.testing.assert_array_equal(found["sub_inds"], data["in_sub_inds"])
    np.testing.assert_array_equal(found["keyinds"], data["in_keyinds"])


def test_dengs_folder_holds_the_same_arrays(small, tmp_path):
    arrays, data = small
    flat = np.concatenate([arrays["mu_exp"], arrays["base_exp"].reshape(-1)]).astype("<f4")
    (tmp_path / "Exp_Pca.bin").write_bytes(np.array(79, "<i4").tobytes() + flat.tobytes())
    np.savetxt(tmp_path / "std_exp.txt", arrays["sig_exp"][None])
    index = {"trimIndex": data["in_sub_inds"][:, None] + 1}
    scipy.io.savemat(tmp_path / "BFM_exp_idx.mat", index)
    found = guo.convert(tmp_path)
    np.testing.assert_array_equal(found["base_exp"], arrays["base_exp"])
    np.testing.assert_allclose(found["sig_exp"], arrays["sig_exp"], rtol=1e-6)
    np.testing.assert_array_equal(found["sub_inds"], data["in_sub_inds"])


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_calls_anything_is_refused_and_not_run(small, tmp_path):
    _folder(tmp_path, *small)
    np.save(tmp_path / "exp_info.npy", {"mu_exp": _Trap(tmp_path / "sprung")}, allow_pickle=True)
    with pytest.raises(UserError, match=r"exp_info\.npy.*it asks for"):
        guo.convert(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="AD-NeRF's data_util/face_tracking/3DMM"):
        guo.convert(tmp_path)
