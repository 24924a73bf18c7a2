"""Parameters and training states on disk (Orbax), and the record of a run (run.json)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from t3d import __version__, hosts
from t3d.errors import UserError

Params = Any
LARGEST_EXPANSION = 2000  # zstd on constant arrays reaches about this; more is a hostile claim
SMALLEST_SUSPECT = 1 << 30  # bytes: smaller claims are read without asking
ASIDE = ".damaged"  # after the step in the name of a state's folder
RUN_FILE = "run.json"
RECORD = {"config": dict, "data": list, "rows": int, "versions": dict, "stages": dict}
PASSES = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES)
# What errors say that need not mean a damaged file.
PASSING = (*map(os.strerror, PASSES), "RESOURCE_EXHAUSTED", *hosts.TRANSPORT)
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tensorflow-datasets")


# ---- the names and the fingerprint of a tree of arrays


def _name(path: tuple) -> str:
    """Joins a key path with slashes, the same for dicts, dataclasses, lists and tuples."""
    parts = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)
    return "/".join(map(str, parts))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, "params/params/au_codebook"; in the tree's order."""
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
    for name, leaf in sorted(named_leaves(params).items()):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def fingerprint(tree: Any) -> int:
    """Fingerprint of a tree of arrays that may lie on several devices and hosts.

    Other than `params_sha256` it needs no array whole in one place: every element's bits are
    multiplied by an odd number that depends on its place, and summed modulo 2³². Any one changed
    element changes it; so do other paths, shapes and dtypes. All processes of a job must call it.
    """
    leaves = named_leaves(tree)
    names = "\0".join(f"{name} {leaf.dtype} {leaf.shape}" for name, leaf in leaves.items())
    sums = np.array([_weighted_bits(leaf) for leaf in leaves.values()], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
    return zlib.crc32(sums.tobytes(), zlib.crc32(names.encode()))


def _weighted_bits(leaf: Any) -> np.uint32:
    """The sum over the elements that this process is the one to count."""
    if not isinstance(leaf, jax.Array):
        return _shard_sum(np.asarray(leaf), [slice(0, n) for n in np.shape(leaf)], np.shape(leaf))
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    sums = [_shard_sum(np.asarray(shard.data), shard.index, leaf.shape) for shard in shards]
    return np.sum(sums, dtype=np.uint32) if sums else np.uint32(0)


def _shard_sum(values: np.ndarray, index: Sequence[slice], shape: tuple[int, ...]) -> np.uint32:
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint32)
    place = np.zeros((1,) * len(shape), np.uint32)
    for axis, (cut, size) in enumerate(zip(index, shape, strict=True)):
        along = np.arange(*cut.indices(size), dtype=np.uint32)
        place = place * np.uint32(size) + along.reshape(-1, *[1] * (len(shape) - axis - 1))
    weight = (2 * place + np.uint32(1)) * np.uint32(0x9E3779B1)
    return np.sum(bits.reshape(values.shape) * weight, dtype=np.uint32)


# ---- parameters


def _by_this_process() -> ocp.options.MultiprocessingOptions:
    """Parameters are read and written by one process, without waiting for the job's others."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"t3d-{me}"
    )


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
    with ocp.StandardCheckpointer(multiprocessing_options=_by_this_process()) as checkpointer:
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
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_by_this_process())
    with ocp.Checkpointer(handler, multiprocessing_options=_by_this_process()) as checkpointer:
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
    for name, leaf in named_leaves(metadata_tree).items():
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

    Each holds the state (a tree of arrays, wherever they lie), its fingerprint, and notes (JSON).
    Saving copies the state to the host and writes in the background. In a job of several processes
    all of them call each method, and each writes and reads its own part.
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
        """Saves a state under its step (returns before it is on disk; see `wait`).

        Raises:
            UserError: this state, or one still being written, could not be saved.
        """
        if step == self.latest_step():
            return
        if jax.default_backend() == "cpu":  # where Orbax's copy is the very buffer we donate
            state = jax.tree.map(jnp.copy, state)
        with self._said(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    notes=ocp.args.JsonSave(notes | {"fingerprint": fingerprint(state)}),
                ),
            )

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises as `save` does."""
        with self._said(self.latest_step()):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _said(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if hosts.in_job() and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # another host may be lost: `hosts.explain` knows
            full = "No space left" in str(error)
            reason = "no space left on the disk" if full else _first_line(error)
            remedy = "free disk space" if full else "mend what it says"
            raise UserError(
                f"{self.folder}: the state of step {step} could not be saved ({reason}); those "
                f"saved before are whole: {remedy}, and run the same command again"
            ) from error

    def restore(
        self, template: Any, resized: Callable[[int], Any] | None = None
    ) -> tuple[Any, dict] | None:
        """The newest state that is whole, with its notes; None if there is none.

        A damaged state is named, put aside, and the one before it taken.

        Args:
            template: tree of jax.ShapeDtypeStruct with shardings, of the state's structure; the
                devices need not be those that saved it.
            resized: of a population, how many members a state holds -> the template to read it
                with, for states that may hold another number of them.

        Raises:
            UserError: the states have other shapes, so another config made them; one cannot be
                read just now.
        """
        for step in hosts.as_first_says(sorted(self._manager.all_steps(), reverse=True)):
            members = self._members(step) if resized else None
            fit = resized(members) if members else template
            restored, damage = self._try(step, fit)
            if restored is not None:
                return restored
            self.log(
                f"{self.folder / str(step)}: this checkpoint is damaged ({damage}); put aside as "
                f"{step}{ASIDE}, going back to the one before it"
            )
            self._put_aside(step)
        return None

    def _members(self, step: int) -> int | None:
        """How many members a population's state holds; None if that cannot be told."""
        count = None
        with contextlib.suppress(Exception):  # `_try` says what is wrong with it
            leaves = named_leaves(self._manager.item_metadata(step).state.tree)
            count = int(leaves["step"].shape[0])
        return hosts.as_first_says(count)

    def _try(self, step: int, template: Any) -> tuple[tuple[Any, dict] | None, str]:
        """The state of a step with its notes, or what is wrong with it."""
        restored, damage, passing = None, "another host cannot read it", ""
        try:
            restored = self._restore_step(step, template)
        except UserError:
            raise
        except Exception as error:
            damage = _first_line(error)
            passing = damage if _passes(error) else ""
        if jax.process_count() > 1:  # all go on with it, or none
            seen = multihost_utils.process_allgather(np.array([restored is None, passing != ""]))
            restored = None if seen[:, 0].any() else restored
            passing = passing or ("by another host" if seen[:, 1].any() else "")
        if passing:
            raise UserError(
                f"{self.folder / str(step)}: cannot be read just now ({passing}); it is left as it "
                "is: mend that, and run the same command again"
            )
        if restored is None:
            return None, damage
        state, notes = restored
        if notes.pop("fingerprint") != fingerprint(state):
            return None, "its fingerprint is another than when it was saved"
        return (state, notes), ""

    def _restore_step(self, step: int, template: Any) -> tuple[Any, dict]:
        self._check_layout(step, template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), notes=ocp.args.JsonRestore()
            ),
        )
        if "fingerprint" not in restored.notes:
            raise UserError(
                f"{self.folder / str(step)}: an earlier t3d has saved this state; finish the stage "
                f"with that one, or delete {self.folder} to train the stage anew"
            )
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

    def _put_aside(self, step: int) -> None:
        if hosts.is_first():
            place = self.folder / str(step)
            shutil.rmtree(place.with_name(place.name + ASIDE), ignore_errors=True)
            place.rename(place.with_name(place.name + ASIDE))
        hosts.meet("damaged checkpoint put aside")
        self._manager.reload()


def _passes(error: Exception) -> bool:
    """Whether an error may be gone the next time, so that no file need be damaged."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return False
    return isinstance(error, (OSError, MemoryError)) or any(w in str(error) for w in PASSING)


def _layout(tree: Any) -> dict[str, str]:
    leaves = named_leaves(tree).items()
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
    remedy = "put a copy of it back; without one delete it and train again: no stage is known"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_first_line(error)}); {remedy}") from error
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key, kind()), kind) for key, kind in RECORD.items()
    ):
        raise UserError(f"{path}: is not the record of a run; {remedy}")
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
