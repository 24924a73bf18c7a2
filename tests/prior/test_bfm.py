"""The Basel models, on files of their layout that hold ICT-FaceKit's head."""

import itertools

import numpy as np
import pytest
import scipy.io

from t3d import assets as model_files
from t3d import camera, cli
from t3d.data import video
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.data.synthetic import synthesize
from t3d.errors import UserError
from t3d.measure import by_encoder
from t3d.prior import basis, morphable, shell, skin
from t3d.prior.morphable import EXPRESSION_STD
from t3d.render import with_blinks
from t3d.talker import Motion

h5py = pytest.importorskip("h5py", reason="pip install h5py (it is in the extra `test`)")

IDENTITIES = 4
SHAPES = ("jawOpen", "mouthSmile_L", "mouthSmile_R", "mouthPucker", "browInnerUp_L", "cheekPuff_R")
SHOWN = ("face", "head_neck", "eyeball_left", "eyeball_right")
FILES = {
    "bfm09": {"bfm09": "01_MorphableModel.mat", "bfm09_expression": "bfm09_expression.npz"},
    "bfm17": {"bfm17": "model2017-1_bfm_nomouth.h5"},
}
MOVED = np.array([1.0, -2.0, 30.0], np.float32)  # cm: a file's origin may be anywhere


@pytest.fixture(scope="module")
def ict(assets):
    """ICT-FaceKit without the inside of the mouth: as much of a head as the Basel models have."""
    model = basis.load("ict")
    regions = [model.region_names.index(name) for name in SHOWN]
    kept = np.flatnonzero(np.isin(model.region, regions))
    small = morphable.restrict(model, kept)
    position = np.full(len(model.mean), -1)
    position[kept] = np.arange(len(kept))
    triangles = position[model.triangles]
    return small.replace(triangles=triangles[(triangles >= 0).all(-1)].astype(np.int32))


def _vectors(model, names=SHAPES):
    shapes = [model.expression_names.index(name) for name in names]
    return {
        "shape": model.identity_basis[:IDENTITIES],
        "expression": model.expression_basis[shapes] / EXPRESSION_STD,
        "color": model.albedo_basis[:IDENTITIES],
    }


def _unit_length(vectors):
    """Flat vectors of unit length in columns [3V, K], and their lengths."""
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    length = np.linalg.norm(flat, axis=-1)
    return (flat / length[:, None]).T.astype(np.float32), length


def write_2017(path, model, names=SHAPES):
    """A model as model2017-1_bfm_nomouth.h5 holds one, with expressions of these names."""
    means = {"shape": model.mean + MOVED, "expression": 0 * model.mean, "color": model.albedo_mean}
    with h5py.File(path, "w") as file:
        for kind, vectors in _vectors(model, names).items():
            unit = 1.0 if kind == "color" else 10.0  # millimetres
            columns, length = _unit_length(unit * vectors)
            file[f"{kind}/model/mean"] = (unit * means[kind]).reshape(-1).astype(np.float32)
            file[f"{kind}/model/pcaBasis"] = columns
            file[f"{kind}/model/pcaVariance"] = (length**2).astype(np.float32)
        file["shape/representer/cells"] = model.triangles.T
    return path


def write_2009(folder, model):
    """A model as 01_MorphableModel.mat holds one, its first vertices without expressions."""
    spare = 7
    whole = np.concatenate([np.full((spare, 3), 5.0, np.float32), model.mean + MOVED])
    arrays = {"tl": model.triangles[:, ::-1] + 1 + spare, "shapeMU": 1e4 * whole.reshape(-1, 1)}
    tex = np.concatenate([np.zeros((spare, 3), np.float32), model.albedo_mean])
    arrays["texMU"] = 255 * tex.reshape(-1, 1)
    vectors = _vectors(model)
    for kind, unit, name in (("shape", 1e4, "shape"), ("tex", 255.0, "color")):
        columns, length = _unit_length(unit * vectors[name])
        arrays[f"{kind}PC"] = np.concatenate([np.zeros((3 * spare, len(length))), columns])
        arrays[f"{kind}EV"] = length[:, None]
    scipy.io.savemat(folder / "01_MorphableModel.mat", arrays)
    columns, length = _unit_length(1e4 * vectors["expression"])
    np.savez(
        folder / "bfm09_expression.npz",
        mu_exp=np.zeros(columns.shape[0], np.float32),
        base_exp=columns.T,
        sig_exp=length,
        sub_inds=spare + np.arange(len(model.mean)),
    )


@pytest.fixture
def places(tmp_path, monkeypatch, assets):
    """A folder of assets with MediaPipe's face finder, and an empty cache."""
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "face_landmarker.task").symlink_to(assets / "face_landmarker.task")
    monkeypatch.setenv("T3D_ASSETS", str(folder))
    monkeypatch.setattr(model_files.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return folder


def _listed(folder, name, marks):
    (folder / f"{name}_landmarks.txt").write_text("\n".join(map(str, marks)))


@pytest.fixture(params=["bfm09", "bfm17"])
def basel(request, places, ict):
    """The model read from files of that layout, its landmarks given as a list."""
    if request.param == "bfm09":
        write_2009(places, ict)
    else:
        write_2017(places / "bfm17.h5", ict)
    _listed(places, request.param, ict.landmarks68)
    return basis.load(request.param)


def test_the_files_heads_come_out_in_our_units_and_place(basel, ict):
    shift = basel.mean - ict.mean
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-3)
    assert np.abs(shift[0]).max() < 0.05  # of the landmarks' middle, ICT's own rounded to 0.1 mm
    np.testing.assert_array_equal(basel.triangles, ict.triangles)
    vectors = _vectors(ict)
    for ours, name, count in (
        (basel.identity_basis, "shape", 100),
        (basel.expression_basis, "expression", 79),
        (basel.albedo_basis, "color", 100),
    ):
        assert ours.shape == (count, *ict.mean.shape) and ours.dtype == np.float32
        np.testing.assert_allclose(ours[: len(vectors[name])], vectors[name], atol=1e-4)
        assert not ours[len(vectors[name]) :].any()
    np.testing.assert_allclose(basel.albedo_mean, ict.albedo_mean, atol=1e-5)


def test_lips_and_regions_are_those_of_the_face(basel, ict):
    off = np.linalg.norm(basel.mean[basel.lips79] - ict.mean[ict.lips79], axis=-1)
    assert np.median(off) < 0.1 and off.max() < 0.6
    assert len(set(basel.lips79.tolist())) == 79
    mine = np.array(basel.region_names)[basel.region]
    theirs = np.array(ict.region_names)[ict.region]
    skinned = ~np.char.startswith(theirs, "eyeball")
    assert (theirs[(mine == "face") & skinned] == "face").mean() > 0.95
    assert (mine[theirs == "face"] == "face").mean() > 0.5
    for name in ("eyeball_left", "eyeball_right"):
        ball = ict.mean[theirs == name]
        middle = np.linalg.norm((ball - ball.mean(0))[:, :2], axis=-1) < 0.25
        pupil = middle & (ball[:, 2] > ball[:, 2].mean())
        assert pupil.sum() > 10 and (mine[theirs == name][pupil] == name).all()
    assert basel.region_names == skin.REGIONS and basel.expression_names == ()


@pytest.mark.parametrize("shapes", ["six", "all"])
def test_landmarks_are_found_on_pictures_of_the_mean_and_kept(places, ict, monkeypatch, shapes):
    """With all of them the mouth opens so far that the inside of the back of the head is seen."""
    names = SHAPES if shapes == "six" else ict.expression_names
    write_2017(places / "bfm17.h5", ict, names)
    found = basis.load("bfm17")
    off = 10 * (found.mean[ict.landmarks68] - found.mean[found.landmarks68])  # mm
    inner, jaw = np.linalg.norm(off[17:], axis=-1), np.linalg.norm(off[:17], axis=-1)
    assert np.median(inner) < 3.0 and inner.max() < 12.0  # brows are drawn at another height
    assert np.median(inner[31:]) < 2.5 and inner[31:].max() < 6.0  # the mouth
    assert np.linalg.norm(off[:17, :2], axis=-1).max() < 6.0 and jaw.max() < 22.0  # edge on: depth
    assert len(set(found.landmarks68.tolist())) == 68
    jaw = found.expression_basis[names.index("jawOpen")]
    gap = jaw[found.landmarks68[[62, 66]], 1]
    assert gap[0] - gap[1] > 1.0  # the upper and the lower lip are told apart by the jaw
    monkeypatch.setattr(basis, "_detect", lambda picture: pytest.fail("looked for again"))
    np.testing.assert_array_equal(basis.load("bfm17").landmarks68, found.landmarks68)


@pytest.mark.full
@pytest.mark.parametrize("name", ["bfm09", "bfm17"])
def test_a_video_is_prepared_with_an_imported_model(name, places, ict, assets, clips, tmp_path):
    """From the model's files and two seconds of a real clip to a dataset, as a user would; the
    files have 4 identities and 6 expressions only, so the fit is coarse."""
    speaker = clips / "WDA_KatieHill_000.mp4"
    if not speaker.exists():
        pytest.skip(f"{speaker} is missing: set T3D_CLIPS to the folder that has it")
    write_2009(tmp_path, ict)
    write_2017(tmp_path / "model2017-1_bfm_nomouth.h5", ict)
    for asset, file in FILES[name].items():
        assert cli.main(["assets", "import", asset, str(tmp_path / file)]) == 0
    (places / "deeplab_v3.tflite").symlink_to(assets / "deeplab_v3.tflite")
    frames = list(itertools.islice(video.read_frames(speaker), 50))
    clip = video.write_video(tmp_path / "clip.mp4", frames, np.zeros(2 * video.RATE))
    out = tmp_path / "data"
    prepare_it = ["prepare", str(clip), "--out", str(out), "--prior", name, "--size", "96"]
    assert cli.main(prepare_it) == 0
    dataset = SpeakerDataset(out)
    quality = dataset.meta["quality"]
    assert dataset.meta["prior"] == name and quality["tracked"] == 1
    assert quality["reprojection"] < 0.05 and quality["mouth_r"] > 0.95
    assert dataset.track["expression"][:, : len(SHAPES)].std(0).max() > 0.1
    assert not dataset.track["expression"][:, len(SHAPES) :].any()


def test_a_model_without_a_face_asks_for_the_landmarks(places, ict):
    back = ict.replace(mean=ict.mean * [1, 1, -1], triangles=ict.triangles[:, ::-1])
    write_2017(places / "bfm17.h5", back)
    with pytest.raises(UserError, match="no face was found.*t3d assets import bfm17_landmarks"):
        basis.load("bfm17")


@pytest.mark.parametrize("text", ["1 2 3", "a", " ".join(["100000"] * 68)])
def test_a_list_that_is_none_is_refused(places, ict, text):
    write_2017(places / "bfm17.h5", ict)
    (places / "bfm17_landmarks.txt").write_text(text)
    with pytest.raises(UserError, match=r"bfm17_landmarks\.txt: .*68 vertex numbers"):
        basis.load("bfm17")


def test_a_file_in_other_units_is_refused(places, ict):
    larger = ict.replace(mean=10 * ict.mean, identity_basis=10 * ict.identity_basis)
    write_2017(places / "bfm17.h5", larger)
    _listed(places, "bfm17", ict.landmarks68)
    with pytest.raises(UserError, match="bfm17: its eyes lie 89 cm apart"):
        basis.load("bfm17")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bfm17", "bfm17.h5"),
        ("bfm09", "01_MorphableModel.mat"),
        ("bfm09", "bfm09_expression.npz"),
    ],
)
def test_another_file_is_told_from_the_models(places, ict, name, file):
    write_2009(places, ict)
    write_2017(places / "bfm17.h5", ict)
    (places / file).write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match=f"{file}: not "):
        basis.load(name)


@pytest.mark.parametrize("name", [pytest.param("bfm09", marks=pytest.mark.full), "bfm17"])
def test_a_missing_model_is_one_line_that_says_where_it_is(places, name):
    with pytest.raises(UserError, match="faces.dmi.unibas.ch/bfm.*licence") as caught:
        basis.load(name)
    assert f"t3d assets import {name} FILE" in str(caught.value) and "\n" not in str(caught.value)


def test_named_expressions_are_refused_in_one_line(basel):
    with pytest.raises(UserError, match=f"{basel.name} have no names: jawOpen"):
        morphable.expression_from_weights(basel, {"jawOpen": 1.0})


def test_everything_that_draws_a_head_draws_a_basel_one(basel):
    made = shell.make_shell(basel, np.zeros(100), 1.0, 1.0)
    view = camera.recorded(np.array([2.0, 2.0, 0.5, 0.5], np.float32))
    pose = camera.head_pose(np.zeros(3), np.array([0.0, 0.0, 70.0])).astype(np.float32)
    guide = shell.guide(made, np.zeros(79, np.float32), pose, view, 32)
    assert 0.2 < guide["active"].mean() < 0.8 and np.isfinite(guide["near"]).all()


def test_what_needs_named_expressions_does_without_or_says_so(places, ict, tmp_path):
    write_2017(places / "bfm17.h5", ict)
    _listed(places, "bfm17", ict.landmarks68)
    still = np.zeros((3, 79), np.float32)
    motion = Motion(speech=still, style=still, expression=still)
    assert with_blinks(motion, "bfm17", np.ones(3)) is motion
    with pytest.raises(UserError, match="bfm17 have no names.*face_landmarker"):
        by_encoder(None, "bfm17", np.zeros((1, 3)), np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="bfm17 have no names.*use procedural or ict"):
        synthesize(tmp_path / "speaker", 1, views=0, prior="bfm17", size=64)
    assert not (tmp_path / "speaker").exists()
