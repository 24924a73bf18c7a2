"""Chips in numbers, and clusters of them that can be compiled for without being there."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from t3d.errors import UserError

GIB = 2**30
SMALL_KERNELS = 200  # rounds of the program that times their start
ATTAINABLE = 0.5  # of the peak: what well-tuned trainings on these chips reach (MaxText's figures)
PREALLOCATED = 0.75  # of a GPU's memory, which JAX takes unless it is told otherwise
PASSES = {"bfloat16": 1, "float32 default": 1, "float32 high": 3, "float32 highest": 6}


@dataclass(frozen=True)
class Chip:
    """What a chip can do.

    Attributes:
        peak: FLOP/s of matrix products by kind (`flops.count`).
        attainable: share of the peak to reckon with.
        memory: bytes a program may use; bandwidth: bytes/s to it.
        link: bytes/s that leave it for its neighbours of a slice or host, all links together.
        network: bytes/s that it can send to other hosts.
        start: seconds to start a kernel; no vendor tells them: 0 for chips that are not here.
    """

    name: str
    peak: Mapping[str, float]
    attainable: float
    memory: float
    bandwidth: float
    link: float
    network: float
    start: float = 0.0

    def compute_seconds(self, products: Mapping[str, float]) -> float:
        """Time of matrix products, FLOPs by kind; kinds not listed at the slowest rate."""
        slowest = min(self.peak.values())
        seconds = sum(n / self.peak.get(kind, slowest) for kind, n in products.items())
        return seconds / self.attainable


def _tpu(name: str, teraflops: float, gib: float, gigabytes: float, link: float) -> Chip:
    """A float32 product takes 1, 3 or 6 passes of bfloat16 by the precision it asks for."""
    peak = {kind: teraflops * 1e12 / passes for kind, passes in PASSES.items()}
    return Chip(name, peak, ATTAINABLE, gib * GIB, gigabytes * 1e9, link * 1e9, link * 1e9)


def _gpu(name: str, bf16: float, fp32: float, memory: float, gigabytes: float, links) -> Chip:
    """float32 products run as TF32, at half of bfloat16's rate, unless they ask for `highest`."""
    tf32 = bf16 / 2
    rates = {"bfloat16": bf16, "float32 default": tf32, "float32 high": tf32}
    peak = {kind: rate * 1e12 for kind, rate in (rates | {"float32 highest": fp32}).items()}
    link, network = (value * 1e9 for value in links)
    usable = PREALLOCATED * memory * 1e9
    return Chip(name, peak, ATTAINABLE, usable, gigabytes * 1e9, link, network)


# TPUs: "How to Scale Your Model" (jax-ml.github.io/scaling-book), table of chips: bfloat16 TFLOP/s,
# HBM in GiB, its GB/s, and GB/s one way of an ICI link times the chip's 4 links (torus of two
# dimensions) or 6 (of three). GPUs: NVIDIA's data sheets of the SXM boards: dense bfloat16 and
# float32 TFLOP/s, HBM in GB, its GB/s; NVLink's GB/s one way, and one network card a GPU of
# 200 Gbit/s (DGX A100) or 400 Gbit/s (DGX H100, H200).
CHIPS = {
    "v4": _tpu("TPU v4", 275, 32, 1200, 6 * 45),
    "v5e": _tpu("TPU v5e", 197, 16, 810, 4 * 45),
    "v5p": _tpu("TPU v5p", 459, 95, 2765, 6 * 90),
    "v6e": _tpu("TPU v6e", 918, 32, 1640, 4 * 90),
    "a100": _gpu("A100 80GB", 312, 19.5, 80, 2039, (300, 25)),
    "h100": _gpu("H100 80GB", 989, 67, 80, 3350, (450, 50)),
    "h200": _gpu("H200", 989, 67, 141, 4800, (450, 50)),
}
# Compute capability, streaming multiprocessors, shared bytes of one, L2 bytes, GHz, B/s.
_GPU_FACTS = {
    "a100": ((8, 0), 108, 167936, 41943040, 1.41),
    "h100": ((9, 0), 132, 233472, 52428800, 1.98),
    "h200": ((9, 0), 132, 233472, 52428800, 1.98),
}
_GPU_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class Cluster:
    """Devices to compile for.

    Attributes:
        topology: as it was asked for; chip: each device; near: how many its links reach.
        devices: described ones, or this machine's.
        options: of the compiler.
    """

    topology: str
    chip: Chip
    devices: list
    near: float
    options: tuple[tuple[str, bool], ...] = ()

    def network_seconds(self, kind: str, group: int, size: float) -> float:
        """Time of a collective by the ring algorithm; `size` as `hlo.Moved` has it."""
        speed = self.chip.link if group <= self.near else self.chip.network
        return ring_factor(kind, group) * size / speed


def ring_factor(kind: str, group: int) -> float:
    """What a device sends in a ring of `group`, over the size of the whole array."""
    if kind == "collective-permute":
        return 1.0 if group > 1 else 0.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def cluster(topology: str) -> Cluster:
    """Devices of a described cluster, or this machine's CPU, which is measured.

    Args:
        topology: a TPU slice "v5e:16x16"; GPUs of one host "h100:8" or of several
            "h200:HOSTSxGPUS"; or "cpu".

    Raises:
        UserError: no such chip or slice, or the package that compiles for it is not installed.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology == "cpu":
        return Cluster(topology, measured_cpu(), jax.devices(), near=len(jax.devices()))
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(
            f"--topology {topology}: give CHIP:SHAPE, for instance v5e:16x16, v5p:4x4x4, h100:8 or "
            f"h200:4x8 (hosts x GPUs), or cpu; chips are {', '.join(CHIPS)}"
        )
    return (_gpus if name in _GPU_FACTS else _tpu_slice)(topology, name, shape)


def _tpu_slice(topology: str, name: str, shape: str) -> Cluster:
    _need("libtpu", topology, "plan")
    # The compiler asks for the machine it is not on; one log line a device would be printed.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_LOG_DIR="disabled",
        TPU_MIN_LOG_LEVEL="3",
    )
    devices = _described(topology, platform="tpu", topology_name=topology)
    return Cluster(topology, CHIPS[name], devices, near=math.inf)


def _gpus(topology: str, name: str, shape: str) -> Cluster:
    _need("jax_cuda12_plugin", topology, "plan_gpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sizes = [int(n) for n in shape.split("x")]
    if len(sizes) > 2:
        raise UserError(f"--topology {topology}: give GPUs or HOSTSxGPUS, for instance {name}:4x8")
    hosts, each = sizes if len(sizes) == 2 else (1, sizes[0])
    devices = _described(
        topology,
        platform="cuda",
        target_config=_gpu_text(name),
        topology=f"1x{hosts}x{each}",
    )
    # Triton's tiles are found by trying them on the chip; cuBLAS takes its own.
    return Cluster(topology, CHIPS[name], devices, each, (("xla_gpu_enable_triton_gemm", False),))


def _gpu_text(name: str) -> str:
    (major, minor), cores, shared, cache, clock = _GPU_FACTS[name]
    chip = CHIPS[name]
    return _GPU_TEXT.format(
        name=f"NVIDIA {chip.name}",
        major=major,
        minor=minor,
        cores=cores,
        fpus=64 if major == 8 else 128,
        shared=shared,
        optin=shared - 1024,
        cache=cache,
        clock=clock,
        bandwidth=int(chip.bandwidth),
        memory=int(chip.memory / PREALLOCATED),
    )


def _need(module: str, topology: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"--topology {topology}: its compiler ({module}) is not installed: "
            f"pip install -c constraints.txt -e '.[{extra}]'"
        )


def _described(asked: str, **what) -> list:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(**what).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {asked}: no such one ({reason}); try another") from error


# ---- this machine


def measured_cpu() -> Chip:
    """This machine's CPU, timed now: a large product, a sweep over memory, many small kernels."""
    square, few = jnp.ones((1024, 1024)), jnp.ones(4)
    multiply, chain = jax.jit(jnp.matmul), jax.jit(_many_kernels)
    rate = 2 * 1024**3 / median_seconds(lambda: multiply(square, square))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    start = median_seconds(lambda: chain(few)) / (2 * SMALL_KERNELS)
    bandwidth = _sweep_speed()
    peak = dict.fromkeys(PASSES, rate)
    return Chip("this CPU", peak, 1.0, memory, bandwidth, bandwidth, bandwidth, start)


def _sweep_speed(size: int = 2**24) -> float:
    """Bytes/s read and written by a kernel in an array of 64 MB that stays where it is."""
    row, add = jnp.ones(size), jax.jit(lambda x: x + 1, donate_argnums=0)

    def sweep() -> jax.Array:
        nonlocal row
        row = add(row)
        return row

    return 2 * row.nbytes / median_seconds(sweep)


def _many_kernels(x: jax.Array) -> jax.Array:
    """Two kernels a round: a sort is never fused with what follows it."""
    for _ in range(SMALL_KERNELS):
        x = 1.01 * jnp.sort(x)[::-1]
    return x


def median_seconds(function: Callable, rounds: int = 15) -> float:
    """Median time of a call, its results waited for; the first call is not counted."""
    jax.block_until_ready(function())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)
