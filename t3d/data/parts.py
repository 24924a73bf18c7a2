"""Results of the parts of a long job, kept so that a stopped job goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np


def fingerprint(settings: dict | list) -> str:
    """Twelve hexadecimal digits that stand for JSON-like settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `path`, then renames: `path` is whole or as before.

    Its folder is made if it is not there. What is no plain file (/dev/stdout) is written straight.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Blobs:
    """Byte strings in a file, read one at a time: as many as a long clip has stay out of memory."""

    def __init__(self, path: Path, sizes: np.ndarray):
        """Args: the file; the length of each byte string [N], one after the other."""
        self._ends = np.concatenate([[0], np.cumsum(sizes)])
        self._file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        return os.pread(self._file, end - start, start)

    def __del__(self):
        os.close(self._file)


class Parts:
    """Finished parts under one folder, each a dict of arrays named by the settings it came from."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str, settings: dict) -> Path:
        """Where the part lies once it is finished."""
        return self.folder / f"{name}-{fingerprint(settings)}.npz"

    def get(
        self, name: str, settings: dict, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The part's arrays: read if it was finished with the same settings, else made and kept."""
        path = self.path(name, settings)
        kept = _load(path)
        if kept is not None:
            return kept
        made = make()
        write_atomically(path, lambda temporary: np.savez(temporary, **made))
        return made

    def stream(
        self,
        name: str,
        settings: dict,
        kinds: tuple[str, ...],
        make: Callable[[Callable[..., None]], None],
    ) -> dict[str, Blobs]:
        """A part that is a byte string of each kind for every frame, written as they are made.

        Args:
            name, settings: as of `get`.
            kinds: what the byte strings are, one file each.
            make: called with a function that takes the next frame's byte strings, one of each kind.

        Returns:
            {kind: its byte strings}.
        """
        files = {kind: self.path(kind, settings).with_suffix(".bin") for kind in kinds}
        sizes = _load(self.path(name, settings))
        if sizes is None or not all(_whole(files[kind], sizes[kind]) for kind in kinds):
            self.path(name, settings).unlink(missing_ok=True)
            sizes = self.get(name, settings, lambda: _stream(files, make))
        return {kind: Blobs(files[kind], sizes[kind]) for kind in kinds}


def _stream(files: dict[str, Path], make) -> dict[str, np.ndarray]:
    """Calls `make` with what appends to the files; the sizes of the byte strings in each."""
    sizes = {kind: [] for kind in files}
    unfinished = {kind: path.with_name(f".{path.name}") for kind, path in files.items()}
    with ExitStack() as stack:
        streams = {k: stack.enter_context(open(path, "wb")) for k, path in unfinished.items()}

        def add(*blobs: bytes) -> None:
            for (kind, stream), blob in zip(streams.items(), blobs, strict=True):
                sizes[kind].append(stream.write(blob))

        make(add)
    for kind, path in files.items():
        unfinished[kind].replace(path)
    return {kind: np.array(values, int) for kind, values in sizes.items()}


def _whole(path: Path, sizes: np.ndarray) -> bool:
    return path.exists() and path.stat().st_size == sizes.sum()


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
