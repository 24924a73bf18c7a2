"""Model files are found, taken only when they are the pinned ones, and never assumed."""

import hashlib
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

from t3d import assets
from t3d.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no T3D_ASSETS."""
    monkeypatch.delenv("T3D_ASSETS", raising=False)
    monkeypatch.setattr(assets.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "t3d"


def _pin(monkeypatch, content: bytes, url: str = ""):
    pinned = replace(
        assets.ASSETS["face_landmarker"], sha256=hashlib.sha256(content).hexdigest(), url=url
    )
    monkeypatch.setitem(assets.ASSETS, "face_landmarker", pinned)


@pytest.fixture
def server():
    """A public home whose only file holds b"model"."""

    class Home(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"model")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Home) as home:
        Thread(target=home.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{home.server_port}/face_landmarker.task"
        home.shutdown()


def test_the_shared_files_are_the_pinned_ones(assets):
    from t3d.assets import ASSETS

    for name in ("face_landmarker", "deeplab_v3", "ict_facekit"):
        content = (assets / ASSETS[name].filename).read_bytes()
        assert hashlib.sha256(content).hexdigest() == ASSETS[name].sha256


def test_the_named_folder_is_looked_in_before_the_cache(cache, tmp_path, monkeypatch):
    cache.mkdir(parents=True)
    (cache / "face_landmarker.task").write_bytes(b"cached")
    assert assets.find("face_landmarker") == cache / "face_landmarker.task"
    (tmp_path / "face_landmarker.task").write_bytes(b"chosen")
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    assert assets.find("face_landmarker") == tmp_path / "face_landmarker.task"


@pytest.mark.parametrize("name", list(assets.ASSETS))
def test_a_missing_asset_names_its_use_and_the_commands(cache, name):
    what = "FOLDER" if name in ("ict_facekit", "bfm09_expression") else "FILE"
    with pytest.raises(UserError, match=f"t3d assets import {name} {what}") as error:
        assets.find(name)
    assert assets.ASSETS[name].use in str(error.value) and "\n" not in str(error.value)
    prior = "--prior" in assets.ASSETS[name].use
    assert ("take --prior procedural, which needs none" in str(error.value)) == prior
    if assets.ASSETS[name].url:
        assert f"t3d assets fetch {name}" in str(error.value)


def test_an_imported_file_is_found(cache, tmp_path, monkeypatch):
    _pin(monkeypatch, b"model")
    (tmp_path / "download").write_bytes(b"model")
    path = assets.import_file("face_landmarker", tmp_path / "download")
    assert assets.find("face_landmarker") == path and path.read_bytes() == b"model"
    assert [f.name for f in cache.iterdir()] == ["face_landmarker.task"]


def test_another_file_is_refused(cache, tmp_path, monkeypatch):
    _pin(monkeypatch, b"model")
    (tmp_path / "download").write_bytes(b"another")
    with pytest.raises(UserError, match="not the face_landmarker.task that is pinned"):
        assets.import_file("face_landmarker", tmp_path / "download")
    with pytest.raises(UserError, match="no such file"):
        assets.import_file("face_landmarker", tmp_path / "none")
    assert not cache.exists()


def test_a_fetched_file_is_found(cache, server, monkeypatch):
    _pin(monkeypatch, b"model", server)
    assert assets.fetch("face_landmarker") == assets.find("face_landmarker")
    assert assets.find("face_landmarker").read_bytes() == b"model"
    assert [f.name for f in cache.iterdir()] == ["face_landmarker.task"]


def test_a_changed_file_at_the_public_home_is_refused_and_removed(cache, server, monkeypatch):
    _pin(monkeypatch, b"the file of last year", server)
    with pytest.raises(UserError, match="pinned"):
        assets.fetch("face_landmarker")
    assert not any(cache.iterdir())


def test_no_connection_is_a_user_error(cache, monkeypatch):
    _pin(monkeypatch, b"model", "http://127.0.0.1:9/none")
    with pytest.raises(UserError, match="cannot be fetched"):
        assets.fetch("face_landmarker")


def test_what_has_no_public_file_says_how_to_import_it(cache):
    with pytest.raises(UserError, match="ICT-FaceKit.*t3d assets import ict_facekit"):
        assets.fetch("ict_facekit")


def test_an_unknown_name_lists_the_known(cache):
    with pytest.raises(UserError, match="face_landmarker"):
        assets.find("face_landmarks")


def test_the_listing_tells_what_is_here(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    (tmp_path / "ict_facekit.npz").write_bytes(b"")
    here = {row["name"]: row["path"] for row in assets.listing()}
    assert here.pop("ict_facekit") == str(tmp_path / "ict_facekit.npz")
    assert set(here.values()) == {""}


def _excerpt(assets, folder):
    """A checkout's FaceXModel, of the shapes of the shared excerpt alone."""
    folder.mkdir(exist_ok=True)
    indices = json.loads((assets / "ict_sample" / "vertex_indices.json").read_text())
    indices["expressions"] = ["jawOpen", "mouthSmile_L"]
    for file in (assets / "ict_sample").glob("*.obj"):
        (folder / file.name).symlink_to(file)
    (folder / "vertex_indices.json").write_text(json.dumps(indices))
    return folder


def test_a_facekit_checkout_becomes_the_shared_arrays(assets, tmp_path, monkeypatch):
    from t3d import facekit

    monkeypatch.setattr(facekit, "IDENTITIES", 2)
    ours = facekit.convert(_excerpt(assets, tmp_path))
    with np.load(assets / "ict_facekit.npz") as shared:
        same = ["neutral", "triangles", "uv", "triangle_uv", "landmarks_68", "region_names"]
        for key in [*same, "region_ranges"]:
            np.testing.assert_array_equal(ours[key], shared[key], err_msg=key)
        np.testing.assert_array_equal(ours["identity"], shared["identity"][:2])
        shapes = [shared["expression_names"].tolist().index(n) for n in ours["expression_names"]]
        np.testing.assert_array_equal(ours["expression"], shared["expression"][shapes])


def test_an_imported_facekit_checkout_is_the_prior(assets, tmp_path, monkeypatch):
    from t3d import facekit
    from t3d.assets import import_file
    from t3d.prior import basis

    packed = basis.load("ict")
    checkout = _excerpt(assets, tmp_path / "FaceXModel")
    monkeypatch.setattr(facekit, "IDENTITIES", 2)
    monkeypatch.delenv("T3D_ASSETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = import_file("ict_facekit", checkout)
    assert place.is_relative_to(tmp_path / "cache")
    imported = basis.load("ict")
    for field in ("mean", "triangles", "landmarks68", "lips79", "region", "albedo_mean"):
        np.testing.assert_array_equal(getattr(imported, field), getattr(packed, field))
    np.testing.assert_array_equal(imported.identity_basis[:2], packed.identity_basis[:2])
    smile = packed.expression_names.index("mouthSmile_L")
    np.testing.assert_array_equal(imported.expression_basis[1], packed.expression_basis[smile])


def test_guos_expressions_are_imported_from_adnerfs_folder(cache, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"mu_exp": rng.normal(size=12), "base_exp": rng.normal(size=(79, 12))}
    np.save(tmp_path / "exp_info.npy", arrays | {"sig_exp": np.ones(79)}, allow_pickle=True)
    np.save(tmp_path / "topology_info.npy", {"sub_inds": np.arange(4) + 3}, allow_pickle=True)
    np.save(tmp_path / "keys_info.npy", {"keyinds": np.zeros(68, int)}, allow_pickle=True)
    with np.load(assets.import_file("bfm09_expression", tmp_path)) as kept:
        np.testing.assert_allclose(kept["base_exp"], arrays["base_exp"], rtol=1e-6)
        assert kept["sub_inds"].tolist() == [3, 4, 5, 6]
    assert assets.find("bfm09_expression") == cache / "bfm09_expression.npz"


def test_a_folder_that_is_no_facekit_is_refused(cache, tmp_path):
    with pytest.raises(UserError, match="vertex_indices.json.*FaceXModel"):
        assets.import_file("ict_facekit", tmp_path)
