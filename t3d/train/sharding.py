"""Where arrays live: batches split over the devices, everything else on each of them."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t3d.errors import UserError


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `data` over the given devices (default: all of the job's)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of parameters: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Puts a tree of arrays whole on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Splits a batch over the devices along its leading axis.

    Args:
        mesh: from `make_mesh`.
        batch: tree of host arrays [B, ...]; with several processes, each one's own part of it.

    Returns:
        the same tree of global device arrays; with one device the host arrays themselves, which
        a jitted function takes to the device faster than device_put does.

    Raises:
        UserError: the batch cannot be split evenly.
    """
    if mesh.size == 1:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    parts = len(mesh.local_devices)
    if any(size % parts for size in sizes):
        raise UserError(
            f"a batch of {max(sizes)} cannot be split over {parts} devices: "
            "set the stage's batch_size to a multiple of it"
        )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
