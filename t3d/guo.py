"""The expressions of Guo et al. for the Basel Face Model 2009, from the folders that hold them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from t3d.errors import UserError

_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("_codecs", "encode"),
}


def convert(folder) -> dict[str, np.ndarray]:
    """The arrays of bfm09_expression.npz, from one of two folders.

    AD-NeRF's data_util/face_tracking/3DMM has exp_info.npy, topology_info.npy and keys_info.npy;
    Deng et al.'s BFM has Exp_Pca.bin, std_exp.txt and BFM_exp_idx.mat.

    Returns:
        mu_exp [3n], base_exp [79, 3n] (micrometres), sig_exp [79], sub_inds [n] (vertices of the
        2009 mesh, from 0) and, of AD-NeRF's, keyinds [68] (the landmarks, among the n).

    Raises:
        UserError: naming the file that is missing or of another layout.
    """
    folder = Path(folder)
    read = _adnerf if (folder / "exp_info.npy").exists() else _deng
    try:
        arrays = read(folder)
        count = arrays["sub_inds"].size
        shapes = {"mu_exp": (3 * count,), "base_exp": (79, 3 * count), "sig_exp": (79,)}
        return arrays | {k: arrays[k].reshape(shape) for k, shape in shapes.items()}
    except (OSError, KeyError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{folder}: not a folder of Guo et al.'s expressions ({error}); give AD-NeRF's "
            "data_util/face_tracking/3DMM, or one of Exp_Pca.bin, std_exp.txt, BFM_exp_idx.mat"
        ) from error


def _adnerf(folder: Path) -> dict[str, np.ndarray]:
    info = read_dictionary(folder / "exp_info.npy")
    return {
        **{key: np.asarray(info[key], np.float32) for key in ("mu_exp", "base_exp", "sig_exp")},
        "sub_inds": _numbers(read_dictionary(folder / "topology_info.npy")["sub_inds"]),
        "keyinds": _numbers(read_dictionary(folder / "keys_info.npy")["keyinds"]),
    }


def _numbers(values) -> np.ndarray:
    return np.asarray(values, np.int64).reshape(-1)


def _deng(folder: Path) -> dict[str, np.ndarray]:
    """Exp_Pca.bin: the number K (int32), the mean [3n], then K vectors [3n] (float32)."""
    data = (folder / "Exp_Pca.bin").read_bytes()
    count = int(np.frombuffer(data, "<i4", 1)[0])
    values = np.frombuffer(data, "<f4", offset=4).reshape(1 + count, -1)
    index = scipy.io.loadmat(folder / "BFM_exp_idx.mat")["trimIndex"]
    return {
        "mu_exp": values[0],
        "base_exp": values[1:],
        "sig_exp": np.loadtxt(folder / "std_exp.txt", dtype=np.float32),
        "sub_inds": _numbers(index) - 1,
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_dictionary(path: Path) -> dict[str, Any]:
    """The dictionary of arrays that `np.save` wrote to `path`, as a pickle.

    A pickle may call anything: this reader admits what arrays need and refuses all else. Raises
    OSError when the file is missing, ValueError when it is anything but such a dictionary.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            read_header(file)
            found = _Unpickler(file, encoding="latin1").load()
            return dict(found.item())
        except Exception as error:  # a damaged pickle may raise anything at all
            reason = f"{path.name}: not a dictionary of arrays that is safe to read: {error}"
            raise ValueError(reason) from error
