"""`t3d bench nerf`: how fast the radiance field is, and how near to what this machine can do.

The parts (F_θ, the integral, H_u), a whole frame and a training step, at the sizes of two configs;
where PyTorch is installed, HeadNeRF's architecture in both frameworks beside one another.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from t3d import camera as cameras
from t3d import codes, flops, pages, planning, render, talker
from t3d import config as configs
from t3d import run as runs
from t3d.nerf import integral
from t3d.nerf.head import View
from t3d.nerf.rays import Guide
from t3d.nerf.upsampler import Upsampler
from t3d.run import Run
from t3d.talker import Motion
from t3d.train import trainer

Figures = dict[str, float]
SIZES = ("preview", "talker")  # configs; the last one is of the paper's size
REPEATS, SECONDS = 3, 2.0  # a part is timed at least so often, and for so long
AT_ONCE_ON_CPUS, AT_ONCE = 8, 64  # frames that are drawn together, for frames a second
FRAMES = 64  # that a trained head is timed over
SQUARES = (1024, 2048, 4096)  # sides of the matrices whose product is the ceiling


def bench_nerf(overrides: list[str], log: Callable[[str], None] = print) -> Figures:
    """The figures of this machine.

    Args:
        overrides: of both configs, "nerf.samples=32" each.

    Returns:
        ceiling_flops (a second, of matrix products); for each size and part (field, integral,
        upsampler, frame, each also with …_gradient; frames, many at once; step, of training):
        seconds, flops (of matrix products, once), share_of_ceiling, points_per_second, memory_bytes
        (XLA's plan: arguments, results and what lies between), and of frame, frames and step
        frames_per_second; field_forward_share_of_ceiling, of the paper's size; and, with PyTorch,
        peer/…: seconds and resident memory of HeadNeRF's architecture.
    """
    figures: Figures = {}
    for size in SIZES:
        config = configs.load_config(size, overrides)
        dtype = jnp.dtype(config.dtype)
        ceiling = figures.get(f"ceiling_flops_{dtype.name}") or matmul_ceiling(dtype)
        figures[f"ceiling_flops_{dtype.name}"] = ceiling
        with talker.exact():
            for part, (function, arguments, frames) in parts_of(config).items():
                log(f"{size}: {part} …")
                points = frames * config.nerf.rays**2 * config.nerf.samples
                found = _measure(function, arguments, points, ceiling)
                if part in ("frame", "frames", "step"):
                    found["frames_per_second"] = frames / found["seconds"]
                figures |= {f"{size}/{part}/{name}": value for name, value in found.items()}
    share = figures[f"{SIZES[-1]}/field/share_of_ceiling"]
    figures["field_forward_share_of_ceiling"] = share
    if not importlib.util.find_spec("torch"):
        log("PyTorch is not installed: HeadNeRF's architecture is not measured beside it")
    elif jax.default_backend() != "cpu":
        log("HeadNeRF's architecture is measured beside PyTorch on CPUs only (JAX_PLATFORMS=cpu)")
    else:
        figures |= beside_torch(log)
    return figures


def matmul_ceiling(dtype: jnp.dtype) -> float:
    """FLOP/s of the fastest of a few large square products."""

    def rate(side: int) -> float:
        a = jnp.ones((side, side), dtype)
        return 2 * side**3 / _seconds(jax.jit(jnp.matmul), (a, a))

    with talker.exact():
        return max(map(rate, SQUARES))


def parts_of(config: ConfigDict) -> dict[str, tuple[Callable, tuple, int]]:
    """Functions, their arguments and how many frames they are for, by part.

    The field is F_θ up to its last layer, which only rays have (`Field.shade`); a frame has both.
    """
    nerf = config.nerf
    head = talker.build(config, 1, nerf.rays**2).head
    view, who = _view(nerf.rays, 1), codes.zeros((1,))
    params = jax.jit(head.init)(jax.random.key(0), who, view)
    points = nerf.rays**2 * nerf.samples
    rng = np.random.default_rng(0)
    where = jnp.asarray(rng.uniform(-9, 9, (1, points, 3)), jnp.float32)
    latent = jnp.zeros((1, nerf.latent))
    field_params = {"params": params["params"]["field"]}

    def field(params, where):
        return head.field.apply(params, where, who, latent, method="shade")

    seen = jnp.asarray(rng.normal(size=(1, nerf.rays, nerf.rays, nerf.features)), "f4")
    summed = jax.eval_shape(field, field_params, where)[0].shape[-1]
    features = jnp.asarray(rng.normal(size=(1, nerf.rays**2, nerf.samples, summed)), "f4")
    density = jnp.asarray(rng.uniform(0, 1, features.shape[:-1]), "f4")
    edges = jnp.linspace(50.0, 60.0, nerf.samples + 1) + jnp.zeros((*density.shape[:-1], 1))
    upsampler_params = {"params": params["params"]["upsampler"]}

    def integrate(density, features):
        return integral.integrate(density, features, edges, jnp.ones(edges.shape[:-1])).feature

    def upsample(params, seen):
        upsampler = Upsampler(head.size, dtype=head.field.dtype, spread=head.spread)
        return upsampler.apply(params, seen)

    many = AT_ONCE_ON_CPUS if jax.default_backend() == "cpu" else AT_ONCE
    crowd = codes.zeros((many,)), _view(nerf.rays, many)

    def frame(params, who):
        return head.apply(params, who, view).image

    def frames(params, who, view):
        return head.apply(params, who, view).image

    parts = {
        "field": (field, (field_params, where)),
        "integral": (integrate, (density, features)),
        "upsampler": (upsample, (upsampler_params, seen)),
        "frame": (frame, (params, who)),
    }
    parts |= {f"{name}_gradient": (_gradient(f), given) for name, (f, given) in parts.items()}
    rows = {name: (f, given, 1) for name, (f, given) in parts.items()}
    batch = config.stages.nerf.batch_size
    rows["frames"] = (frames, (params, *crowd), many)
    return rows | {"step": (*_training_step(config, batch), batch)}


def _view(rays: int, batch: int) -> View:
    """A head 60 cm in front of the camera that every ray meets."""
    pose = cameras.head_pose(np.zeros((batch, 3), np.float32), np.tile([0, 0, 60.0], (batch, 1)))
    near = jnp.full((batch, rays**2), 50.0)
    guide = Guide(near, near + 10, jnp.zeros((*near.shape, 3)), jnp.ones(near.shape, bool))
    intrinsics = jnp.tile(jnp.array([2.5, 2.5, 0.5, 0.5]), (batch, 1))
    return View(cameras.recorded(intrinsics), jnp.asarray(pose, jnp.float32), guide)


def _gradient(function: Callable) -> Callable:
    """Values and gradients of a function's sum of squares, of all that it takes."""

    def total(*arguments):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(function(*arguments)))

    return lambda *arguments: jax.value_and_grad(total, tuple(range(len(arguments))))(*arguments)


def _training_step(config: ConfigDict, batch: int) -> tuple[Callable, tuple]:
    made = planning.stages_of(config, rows=batch)
    shapes = planning.abstract_arguments(config, made, "nerf", batch)
    rng = np.random.default_rng(0)
    numbers = jax.tree.map(functools.partial(planning.random_like, rng), shapes[:3])
    return functools.partial(trainer.train_step, made["nerf"]), (*numbers, jax.random.key(0))


def _measure(function: Callable, arguments: tuple, points: int, ceiling: float) -> Figures:
    traced = jax.jit(function).trace(*arguments)
    program = traced.lower().compile()
    needed = sum(flops.products(flops.count(traced.jaxpr.jaxpr)).values())
    seconds = _seconds(program, arguments)
    plan = program.memory_analysis()
    sizes = ("argument", "output", "temp")
    return {
        "seconds": seconds,
        "flops": float(needed),
        "share_of_ceiling": needed / seconds / ceiling,
        "points_per_second": points / seconds,
        "memory_bytes": sum(getattr(plan, f"{size}_size_in_bytes") for size in sizes),
    }


def _seconds(program: Callable, arguments: tuple) -> float:
    """The median time of a call."""
    jax.block_until_ready(program(*arguments))
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < SECONDS:
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


# ---- frames of a trained head


def bench_runs(opened: list[Run]) -> Figures:
    """How long a frame of trained heads takes, the finding of its rays included, not the space.

    Args:
        opened: runs whose stage nerf is done; each one's first speaker is drawn in recorded poses.

    Returns:
        frame_seconds/WORKDIR and active_share/WORKDIR, of the rays that meet the head: those that
        are evaluated, and a few more (`nerf.head.capacity_of`).
    """
    figures: Figures = {}
    for run in opened:
        speaker = run.speakers[0]
        poses, views = render.pose_track(speaker, FRAMES, "recorded")
        rest = Motion(*[np.zeros((FRAMES, 79), np.float32)] * 3)

        def draw(run=run, speaker=speaker, motion=rest, poses=poses, views=views):
            return list(runs.render_frames(run, speaker, motion, poses, views, standardised=False))

        active = runs.guides_of(
            run.config, speaker, rest.expression, poses, views, run.config.nerf.rays
        )["active"]
        figures[f"frame_seconds/{run.workdir}"] = _seconds(draw, ()) / FRAMES
        figures[f"active_share/{run.workdir}"] = float(active.mean())
    return figures


# ---- HeadNeRF's architecture, in both frameworks

# Who is timed. Ours keeps the layers' results for backpropagation, or nothing (lean), and has
# huge pages, as `t3d` gives itself. PyTorch comes as it is, with huge pages, or never gives memory
# back to the system, in any number of arenas or in one.
_HUGE = {pages.TUNABLES: pages.HUGE_PAGES}
_OURS = {"jax": "nerf.remat=none", "jax_lean": "nerf.remat=all"}
_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
_ONE_ARENA = _KEPT | {"MALLOC_ARENA_MAX": "1"}
_TORCH = {
    "torch": {},
    "torch_huge": _HUGE,
    "torch_kept": _KEPT,
    "torch_one_arena": _ONE_ARENA,
    "torch_compiled_kept": _KEPT,
    "torch_compiled_one_arena": _ONE_ARENA,
}
AGAIN = 2  # processes that those compared are measured in once more
PIECE = "nerf.chunk=4096"  # activations that stay in the cache


def beside_torch(log: Callable[[str], None]) -> Figures:
    """HeadNeRF's 512² frame of 64² rays × 64 points, forward and with gradients (step).

    Each is measured in a process of its own, and ours, the fastest eager PyTorch and the fastest
    compiled one in `AGAIN` more by turns, for a process' memory may lie well or badly; medians.

    Returns:
        peer/WHO/{forward, step}_{seconds, bytes}, bytes of resident memory;
        peer/WHO/…_times_faster and …_memory_share, ours against the fastest eager PyTorch;
        …_times_faster_than_compiled and …_memory_share_of_compiled, against the fastest compiled.
    """
    figures: Figures = {}
    for what in ("forward", "step"):
        found: dict[str, list[Figures]] = {who: [] for who in (*_OURS, *_TORCH)}

        def measure(who: str, what=what, found=found) -> None:
            log(f"HeadNeRF's architecture: {who}, {what} …")
            found[who] += _in_process(who, what, log)

        def median(who: str, unit: str, found=found) -> float:
            return float(np.median([one[unit] for one in found[who]]))

        for who in found:
            measure(who)
        ours = [who for who in _OURS if found[who]]
        rivals = {}
        for compiled in (False, True):
            timed = [who for who in _TORCH if found[who] and ("compiled" in who) == compiled]
            if timed:
                rivals[compiled] = min(timed, key=lambda who: median(who, "seconds"))
        for _ in range(AGAIN if rivals else 0):
            for who in (*ours, *rivals.values()):
                measure(who)
        for who in (who for who in found if found[who]):
            for unit in ("seconds", "bytes"):
                figures[f"peer/{who}/{what}_{unit}"] = median(who, unit)
        for who in ours:
            for compiled, rival in rivals.items():
                names = ("times_faster_than_compiled", "memory_share_of_compiled")
                faster, share = names if compiled else ("times_faster", "memory_share")
                seconds, memory = (median(who, u) / median(rival, u) for u in ("seconds", "bytes"))
                figures[f"peer/{who}/{what}_{faster}"] = 1 / seconds
                figures[f"peer/{who}/{what}_{share}"] = memory
    return figures


def _in_process(who: str, what: str, log: Callable[[str], None]) -> list[Figures]:
    """Of a process of its own; [], and a line, where that fails (no compiler, say)."""
    clean = {k: v for k, v in os.environ.items() if k != pages.TUNABLES and "MALLOC_" not in k}
    made = subprocess.run(
        [sys.executable, "-m", "t3d.bench_nerf", who, what],
        env=clean | _TORCH.get(who, _HUGE),
        capture_output=True,
        text=True,
    )
    if made.returncode:
        log(f"{who} failed and is left out: {made.stderr.strip()[-300:]}")
        return []
    return [json.loads(made.stdout.splitlines()[-1])]


def _peer(who: str, what: str) -> Figures:
    """Seconds of a call, and how much resident memory it added."""
    run = _peer_jax(what, _OURS[who]) if who in _OURS else _peer_torch(what, who)
    before = _resident()
    run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return {"seconds": float(np.median(times)), "bytes": _resident() - before}


def _peer_jax(what: str, remat: str) -> Callable[[], Any]:
    config = configs.load_config("headnerf", ["nerf.rays=64", "nerf.latent=0", PIECE, remat])
    head = talker.build(config, 1, 64**2).head
    view, who = _view(64, 1), codes.zeros((1,))
    params = jax.jit(head.init)(jax.random.key(0), who, view)

    def loss(params, who):
        return jnp.mean((head.apply(params, who, view).image - 0.5) ** 2)

    function = jax.grad(loss, (0, 1)) if what == "step" else lambda p, w: head.apply(p, w, view)
    program = jax.jit(function)
    return lambda: jax.block_until_ready(program(params, who))


def _peer_torch(what: str, who: str) -> Callable[[], Any]:
    import torch

    from t3d.peers import headnerf_torch

    net = headnerf_torch.Net()
    shape, looks = torch.zeros(1, 179, requires_grad=True), torch.zeros(1, 127, requires_grad=True)
    points, lengths = headnerf_torch.samples()
    call = torch.compile(net) if "compiled" in who else net

    def forward():
        with torch.no_grad():
            return call(points, lengths, shape, looks)

    def step():
        net.zero_grad()
        ((call(points, lengths, shape, looks) - 0.5) ** 2).mean().backward()

    return step if what == "step" else forward


def _resident() -> int:
    """The most bytes that this process has held.

    Linux' own count of it: what getrusage tells a child begins at what its parent had held.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage's count
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(_peer(*sys.argv[1:])))
