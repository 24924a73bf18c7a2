"""Results of the parts of a long job, kept so that a stopped job goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def fingerprint(settings: dict | list) -> str:
    """Twelve hexadecimal digits that stand for JSON-like settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `path`, then renames: `path` is whole or as before."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def pack(blobs: list[bytes]) -> dict[str, np.ndarray]:
    """Byte strings as arrays that a part can hold."""
    ends = np.cumsum([len(blob) for blob in blobs])
    return {"bytes": np.frombuffer(b"".join(blobs), np.uint8), "ends": ends}


def unpack(packed: dict[str, np.ndarray], index: int) -> bytes:
    """One byte string of `pack`."""
    ends = packed["ends"]
    return packed["bytes"][ends[index - 1] if index else 0 : ends[index]].tobytes()
