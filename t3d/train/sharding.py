"""Where arrays live: the mesh, and which axis of it splits which array.

The mesh has three axes. `population` splits the members of a population (train/population.py),
`data` the frames of a batch, `model` the rays of a frame and the parameters that the rules name.
What is split changes where numbers are computed, not which numbers come out.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t3d.checkpoint import named_leaves
from t3d.errors import UserError
from t3d.talker import exact

AXES = ("population", "data", "model")
ALONG_DATA = {"population": 1, "data": -1, "model": 1}
# What the networks call their axes (flax's logical axes) → the mesh's.
LOGICAL_AXES = (("frames", "data"), ("rays", "model"))


def make_mesh(
    sizes: Mapping[str, int] = ALONG_DATA, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of a job.

    Args:
        sizes: devices along each of AXES (`config.mesh`); at most one is -1: all that are left.
        devices: default: all of the job's, those of one host side by side.

    Raises:
        UserError: the devices cannot be laid out so.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"config.mesh: {said}: give sizes of at least 1, and -1 at most once")
    known = math.prod(size for size in shape if size != -1)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f"config.mesh: {said} does not fit {len(devices)} devices: the sizes must multiply to "
            "that number; set --config.mesh.data=-1 to take what is left"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    try:
        return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)
    except NotImplementedError as error:  # a torus of TPU chips
        raise UserError(
            f"config.mesh: {said} cannot be laid along the links of these {len(devices)} chips; "
            "take sizes that are products of the sides of the slice"
        ) from error


@contextlib.contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Within it, networks are traced for the mesh: their logical axes are the mesh's.

    Products of float32 are float32 (`talker.exact`).
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES), exact():
        yield


# ---- parameters and states


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of what is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Any, placements: Any) -> Any:
    """Puts host arrays, the same on every process, where they belong.

    Args:
        tree: of host arrays; placements: the same tree of shardings.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, placements)
    return jax.tree.map(
        lambda x, at: jax.make_array_from_callback(np.shape(x), at, np.asarray(x).__getitem__),
        tree,
        placements,
    )


def placements(mesh: Mesh, tree: Any, rules: Sequence[str] = (), stacked: bool = False) -> Any:
    """The placement of each array of a tree.

    Args:
        mesh: from `make_mesh`.
        tree: of arrays or their shapes.
        rules: "REGEX=AXIS" each; the first one whose expression is found in an array's path
            ("params/params/au_codebook", "opt_state/1/0/mu/params/au_codebook") splits its
            largest dimension that the axis divides. What no rule names is whole everywhere.
        stacked: the arrays' leading axis is the population.

    Returns:
        the tree with a NamedSharding for each array.

    Raises:
        UserError: a rule that is none.
    """
    table = [_rule(text) for text in rules]

    def place(name: str, leaf: Any) -> NamedSharding:
        lead = ("population",) if stacked else ()
        axis = next((axis for pattern, axis in table if pattern.search(name)), None)
        return NamedSharding(
            mesh, PartitionSpec(*lead, *_split(mesh, axis, leaf.shape[len(lead) :]))
        )

    leaves = [place(name, leaf) for name, leaf in named_leaves(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _rule(text: str) -> tuple[re.Pattern, str]:
    pattern, equals, axis = text.rpartition("=")
    if not equals or axis not in AXES[1:]:
        raise UserError(f"config.mesh.rules: {text!r}: write REGEX=data or REGEX=model")
    try:
        return re.compile(pattern), axis
    except re.error as error:
        raise UserError(f"config.mesh.rules: {text!r}: no regular expression ({error})") from error


def _split(mesh: Mesh, axis: str | None, shape: tuple[int, ...]) -> list[str | None]:
    """The axis at the largest dimension that it divides, None elsewhere."""
    if axis is None or mesh.shape[axis] == 1:
        return []
    fits = [i for i, size in enumerate(shape) if size and size % mesh.shape[axis] == 0]
    at = max(fits, key=lambda i: shape[i], default=None)
    return [axis if i == at else None for i in range(len(shape))] if fits else []


# ---- batches


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """The placement of a batch [B, …]; stacked: [M, B, …], one batch for each member."""
    return NamedSharding(mesh, PartitionSpec(*(("population",) if stacked else ()), "data"))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process has to read: ascending int [b]."""
    return _local(mesh, PartitionSpec("data"), batch_size)


def check_batches(mesh: Mesh, config: Any, names: Sequence[str]) -> None:
    """UserError, before the first step, for stages whose batches the mesh cannot split."""
    parts = mesh.shape["data"]
    for name in names:
        size = config.stages[name].batch_size
        if size % parts:
            raise UserError(
                f"config.stages.{name}.batch_size={size} cannot be split over {parts} devices: set "
                "it to a multiple of them, or --config.mesh.model so that fewer are along data "
                "(the others share the rays of a frame)"
            )


def local_members(mesh: Mesh, members: int) -> np.ndarray:
    """The members of a population whose batches this process has to read: ascending int [m]."""
    return _local(mesh, PartitionSpec("population"), members)


def _local(mesh: Mesh, spec: PartitionSpec, size: int) -> np.ndarray:
    every = np.arange(size)
    indices = NamedSharding(mesh, spec).addressable_devices_indices_map((size,))
    return np.unique(np.concatenate([every[index] for index in indices.values()]))


def shard_batch(mesh: Mesh, batch: Any, batch_size: int, members: int | None = None) -> Any:
    """Splits a batch over the devices along its leading axis (or its two leading axes).

    Args:
        mesh: from `make_mesh`.
        batch: tree of host arrays [b, …]: the `local_rows` of the global batch; with `members`
            [m, b, …]: those of the `local_members`.
        batch_size: B, of the global batch; members: M, of the population.

    Returns:
        the same tree of global arrays [B, …] or [M, B, …]; with one device the host arrays
        themselves, which a jitted function takes to the device faster than device_put does.
    """
    if mesh.size == 1:
        return batch
    lead = (batch_size,) if members is None else (members, batch_size)
    sharding = batch_sharding(mesh, members is not None)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def spread(leaf: np.ndarray) -> jax.Array:
        shape = (*lead, *leaf.shape[len(lead) :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(spread, batch)
