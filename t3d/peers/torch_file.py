"""Reads PyTorch checkpoint files without PyTorch, and without running what is in them.

A checkpoint is a pickle, and a pickle may call anything. This reader admits the handful of names
that tensors in dictionaries need, answers them itself, and refuses every other.
"""

from __future__ import annotations

import collections
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from t3d.errors import UserError

_NORM_EPSILON = 1e-5  # PyTorch's, of batch normalisation
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
    "BFloat16Storage": "<u2",
}


class _Storage:
    """A flat piece of memory, perhaps filled later (legacy files hold the bytes at the end)."""

    def __init__(self, kind: str, length: int):
        self.kind = kind
        self.dtype = np.dtype(_DTYPES[kind])
        self.length = length
        self.values: np.ndarray | None = None

    def fill(self, data: bytes) -> None:
        if len(data) != self.length * self.dtype.itemsize:
            raise ValueError("a tensor's bytes are missing")
        values = np.frombuffer(data, self.dtype)
        if self.kind == "BFloat16Storage":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        self.values = values


class _Tensor:
    """A view into a storage, made into an array once the storage is filled."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset = storage, offset
        self.shape, self.strides = tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True) if n
        )
        numbers = (self.offset, *self.shape, *self.strides)
        too_far = 0 not in self.shape and last >= self.storage.length
        if min(numbers) < 0 or too_far or math.prod(self.shape) > self.storage.length:
            raise ValueError("a tensor reaches beyond its storage")
        flat = self.storage.values[self.offset :]
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides).copy()


def _rebuild_tensor(storage, offset, shape, strides, *_unused):
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_unused):
    return tensor


_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, load_storage):
        super().__init__(file, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it asks for something that is no tensor storage")
        return self._load_storage(*pid[1:])


def read(path: str | Path) -> Any:
    """What `torch.save` wrote, tensors as NumPy arrays (bfloat16 widened to float32).

    Args:
        path: a file of either format, zip (since PyTorch 1.6) or the older stream.

    Returns:
        The saved object: dictionaries, lists, numbers and strings, with arrays for tensors.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or asks for anything but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            read_format = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            return _arrays(read_format(file))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise UserError(f"{path}: claims more memory than there is; get the file anew") from error
    except Exception as error:  # a damaged pickle may raise anything at all
        raise UserError(
            f"{path}: not a checkpoint of tensors that is safe to read ({error}); "
            "give a state dict saved by torch.save"
        ) from error


def state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The named arrays of a checkpoint file, out of their usual wrappings.

    A dictionary under "state_dict", "model" or "net" is unwrapped and a "module." in front of
    every name is taken off.

    Raises:
        UserError: as `read`, or there are no named tensors.
    """
    found = read(path)
    for key in ("state_dict", "model", "net"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    named = (
        {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
        if isinstance(found, dict)
        else {}
    )
    if not named:
        raise UserError(f"{path}: holds no named tensors; give a state dict saved by torch.save")
    if all(str(name).startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return named


def take(left: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Takes a named tensor out of `left`, as float32.

    Raises:
        ValueError: it is missing or of another shape.
    """
    if name not in left:
        raise ValueError(f"no {name}")
    if left[name].shape != shape:
        raise ValueError(f"{name} is {left[name].shape}, not {shape}")
    return np.asarray(left.pop(name), np.float32)


def take_folded(
    left: dict[str, np.ndarray], kernel: np.ndarray, layer: str, normalisation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Folds the batch normalisation that follows a layer into it.

    Args:
        left: named tensors, out of which the layer's bias and the normalisation's are taken.
        kernel: [out, …] of the layer.
        layer: its name.
        normalisation: the name of what follows it.

    Returns:
        kernel [out, …] and bias [out], float32.

    Raises:
        ValueError: as `take`.
    """
    channels = kernel.shape[:1]
    bias = take(left, f"{layer}.bias", channels)
    names = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, variance = (
        take(left, f"{normalisation}.{name}", channels).astype(np.float64) for name in names
    )
    left.pop(f"{normalisation}.num_batches_tracked", None)
    gain = gain / np.sqrt(variance + _NORM_EPSILON)
    kernel = kernel * gain.reshape(-1, *[1] * (kernel.ndim - 1))
    return kernel.astype(np.float32), ((bias - mean) * gain + shift).astype(np.float32)


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip file without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        storages: dict[str, _Storage] = {}

        def load_storage(kind, key, _location, length, *_view):
            if key not in storages:
                storage = storages[key] = _Storage(kind, length)
                member = archive.getinfo(f"{folder}data/{key}")
                if member.file_size != length * storage.dtype.itemsize:
                    raise ValueError("a storage's length does not agree")
                storage.fill(archive.read(member))
            return storages[key]

        with archive.open(pickles[0]) as stream:
            return _Unpickler(stream, load_storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    storages: dict[str, _Storage] = {}

    def load_storage(kind, key, _location, length, view=None):
        if view is not None:
            raise ValueError("a storage that is a view of another; save it again with torch ≥ 1.6")
        return storages.setdefault(key, _Storage(kind, length))

    def load() -> Any:
        return _Unpickler(file, load_storage).load()

    if load() != _LEGACY_MAGIC:
        raise ValueError("no mark of a torch file at its start")
    load(), load()  # protocol version, the writing machine's facts
    found, keys = load(), load()
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != storage.length:
            raise ValueError("a storage's length does not agree")
        storage.fill(file.read(storage.length * storage.dtype.itemsize))
    return found


def _arrays(found: Any) -> Any:
    if isinstance(found, _Tensor):
        return found.array()
    if isinstance(found, dict):
        return {key: _arrays(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return type(found)(_arrays(value) for value in found)
    return found
