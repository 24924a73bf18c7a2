"""Parameters and training states on disk (Orbax), and the record of a run (run.json)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from t3d import __version__
from t3d.errors import UserError

Params = Any
LARGEST_EXPANSION = 2000  # zstd on constant arrays reaches about this; more is a hostile claim
SMALLEST_SUSPECT = 1 << 30  # bytes: smaller claims are read without asking
RUN_FILE = "run.json"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")


# ---- the names and the fingerprint of a tree of arrays


def _name(path: tuple) -> str:
    """Joins a key path with slashes, the same for dicts, dataclasses, lists and tuples."""
    parts = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)
    return "/".join(map(str, parts))


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def params_sha256(params: Params) -> str:
    """Fingerprint of a tree of arrays, over every leaf's path, dtype, shape and bytes.

    Args:
        params: tree of dicts, lists, tuples or dataclasses; arrays on host or device.

    Returns:
        64 hexadecimal digits. Dicts, lists and tuples with the same paths count as the same.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(_named_leaves(params).items()):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


# ---- parameters


def save_params(path: str | os.PathLike, params: Params) -> str:
    """Writes parameters so that `path` holds either the old or the whole new ones.

    Args:
        path: the folder to write; replaced if there.
        params: tree of arrays.

    Returns:
        `params_sha256(params)`, which is stored too and checked by `load_params`.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path).absolute()
    host = jax.tree.map(np.asarray, params)
    sha256 = params_sha256(host)
    new = path.with_name(path.name + ".new")
    writable_folder(path.parent)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(new, host, force=True, custom_metadata={"sha256": sha256})
    shutil.rmtree(path, ignore_errors=True)
    new.rename(path)
    return sha256


def load_params(path: str | os.PathLike) -> Params:
    """Reads what `save_params` wrote, without being told its structure.

    Args:
        path: the folder.

    Returns:
        nested dicts (lists where lists or tuples were saved) of numpy arrays.

    Raises:
        UserError: no such folder, not parameters, damaged, or larger than its files can hold.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"{path}: no trained parameters there; train the stage {path.name} first")
    try:
        params, sha256 = _read_params(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: these parameters cannot be read ({_first_line(error)}); "
            "delete the folder and run the training again, which rewrites it"
        ) from error
    if sha256 is not None and sha256 != params_sha256(params):
        raise UserError(
            f"{path}: these parameters are damaged (their sha256 is another than when they were "
            "saved); delete the folder and run the training again, which rewrites it"
        )
    return params


def _read_params(path: Path) -> tuple[Params, str | None]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path)
        if metadata.item_metadata is None:
            raise ValueError("its metadata is missing")
        tree = metadata.item_metadata.tree
        _check_size(path, tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        params = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return params, (metadata.custom_metadata or {}).get("sha256")


def _check_size(path: Path, metadata_tree: Any) -> None:
    """Refuses arrays that are not numbers or that the files cannot possibly hold."""
    claimed = 0
    for name, leaf in _named_leaves(metadata_tree).items():
        if not hasattr(leaf, "shape") or leaf.dtype is None:
            raise UserError(f"{path}: {name} is not an array; these are no parameters of t3d")
        claimed += int(np.prod(leaf.shape, dtype=object)) * np.dtype(leaf.dtype).itemsize
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if claimed > max(SMALLEST_SUSPECT, LARGEST_EXPANSION * held):
        raise UserError(
            f"{path}: claims {claimed / 2**30:.0f} GiB of parameters in {held} bytes of files; "
            "it is damaged or not to be trusted"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


# ---- training states


class StateStore:
    """The numbered training states of one stage, the newest two kept.

    Each holds the state (a tree of arrays), its fingerprint, and notes (JSON). Saving copies the
    state to the host and writes in the background.
    """

    def __init__(self, folder: str | os.PathLike, log: Callable[[str], None] = print):
        self.folder = Path(folder).absolute()
        self.log = log
        writable_folder(self.folder)
        self._manager = ocp.CheckpointManager(
            epath.Path(self.folder),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "notes": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=checkpoint_managers.LatestN(2),
            ),
        )

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, notes: dict) -> None:
        """Saves a state under its step (returns before it is on disk; see `wait`)."""
        if step == self.latest_step():
            return
        host = jax.tree.map(lambda leaf: np.array(leaf), state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host),
                notes=ocp.args.JsonSave(notes | {"sha256": params_sha256(host)}),
            ),
        )

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(self, template: Any) -> tuple[Any, dict] | None:
        """The newest state that is whole, with its notes; None if there is none.

        A damaged state is named, removed, and the one before it taken.

        Args:
            template: tree of jax.ShapeDtypeStruct with shardings, of the state's structure.

        Raises:
            UserError: the states have other shapes, so another config made them.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore_step(step, template)
            except UserError:
                raise
            except Exception as error:
                self.log(
                    f"{self.folder / str(step)}: this checkpoint is damaged "
                    f"({_first_line(error)}); removed, going back to the one before it"
                )
                self._remove(step)
        return None

    def _restore_step(self, step: int, template: Any) -> tuple[Any, dict]:
        self._check_layout(step, template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), notes=ocp.args.JsonRestore()
            ),
        )
        if restored.notes.pop("sha256") != params_sha256(restored.state):
            raise ValueError("its sha256 is another than when it was saved")
        return restored.state, restored.notes

    def _check_layout(self, step: int, template: Any) -> None:
        saved = self._manager.item_metadata(step).state
        if saved is None:
            raise ValueError("its metadata is missing")
        there, here = _layout(saved.tree), _layout(template)
        for name in sorted(
            there.keys() | here.keys(), key=lambda n: (not n.startswith("params"), n)
        ):
            if there.get(name) != here.get(name):
                raise UserError(
                    f"{self.folder}: made with another config ({name} is "
                    f"{there.get(name, 'absent')} there, {here.get(name, 'absent')} here); "
                    "give the old config, another --workdir, or delete the folder to start over"
                )

    def _remove(self, step: int) -> None:
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        self._manager.reload()


def _layout(tree: Any) -> dict[str, str]:
    leaves = _named_leaves(tree).items()
    return {
        name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for name, leaf in leaves
        if hasattr(leaf, "shape")
    }


# ---- the record of a run


def writable_folder(path: Path) -> Path:
    """Makes the folder if need be.

    Raises:
        UserError: it cannot be made or written in.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made ({error.strerror}); choose another place"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: no permission to write there; choose another place")
    return path


def read_run(workdir: str | os.PathLike) -> dict:
    """The record of a run: config, versions, stages, data; empty if there is none yet.

    Raises:
        UserError: run.json is not readable as such.
    """
    path = Path(workdir) / RUN_FILE
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); delete it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: is not the record of a run; delete it")
    return record


def update_run(workdir: str | os.PathLike, **entries: Any) -> dict:
    """Sets entries of run.json (the stages one by one), and the versions in use; atomically.

    Args:
        workdir: the run's folder.
        **entries: JSON values; `stages={name: entry}` replaces only the stages named.

    Returns:
        the whole record.
    """
    record = read_run(workdir)
    stages = record.get("stages", {}) | entries.pop("stages", {})
    record |= entries | {"versions": versions(), "stages": stages}
    path = writable_folder(Path(workdir)) / RUN_FILE
    new = path.with_suffix(".json.new")
    new.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(new, path)
    return record


def versions() -> dict[str, str]:
    """Versions of t3d, Python and the packages that decide a run's numbers."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"t3d": __version__, "python": platform.python_version()} | packages
