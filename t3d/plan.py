"""`t3d plan`: a training step compiled for a cluster that is not there, and what it will cost."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from t3d import config as configs
from t3d import flops, hlo
from t3d import talker as talkers
from t3d.chips import Cluster, cluster
from t3d.data.parts import write_atomically
from t3d.data.pipeline import SYNC_STEPS, WINDOW
from t3d.data.speaker_dataset import FACE_SIZE
from t3d.errors import UserError
from t3d.run import check_config
from t3d.train import sharding, stages, trainer

CHIPS = tuple(2**n for n in range(9))  # 1 to 256
CHECKED = (2, 4, 8, 16)  # batch sizes that a prediction is checked at
ROUNDS = 15  # measured steps of each of them, in turn
NOT_CHECKED = "memory is not checked at these numbers of chips"


@dataclass(frozen=True)
class Layout:
    """How a batch lies on the chips: `batch` frames over `data`, their rays over `model`."""

    data: int
    model: int
    batch: int

    @property
    def chips(self) -> int:
        return self.data * self.model

    def group(self, other: Layout, size: int) -> int:
        """Size here of a group of devices that has `size` members in another layout."""
        if size == other.chips:
            return self.chips
        return self.data if size == other.data else self.model


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip's memory: `aliased` is what outputs take over from donated arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Compiled:
    """A training step compiled for a cluster.

    Attributes:
        layout: of its batch.
        asked: FLOPs of the whole step, on all chips together (`flops.count`).
        state_bytes, parameter_bytes: of the state and of the parameters in it.
        memory, totals: of one chip; None where the compiler found no room.
        refusal: what it said then.
        program: what was compiled.
    """

    layout: Layout
    asked: Counter[str]
    state_bytes: int
    parameter_bytes: int
    memory: Memory | None = None
    totals: hlo.Totals | None = None
    refusal: str = ""
    program: jax.stages.Compiled | None = None


@dataclass(frozen=True)
class Cost:
    """What one chip does in a step: FLOPs by kind, bytes of its memory moved, collectives."""

    products: dict[str, float]
    bytes: float
    collectives: tuple[hlo.Moved, ...]


@dataclass(frozen=True)
class Seconds:
    """A step's roofline: each resource's time if it alone were the limit."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Everything overlaps."""
        return max(self.compute, self.memory, self.network)

    @property
    def apart(self) -> float:
        """The network waits for the rest, and the rest for it."""
        return max(self.compute, self.memory) + self.network

    @property
    def binds(self) -> str:
        return max(asdict(self), key=asdict(self).get)


@dataclass(frozen=True)
class Point:
    """A number of chips on a scaling curve.

    Attributes:
        efficiency: frames a second and chip over those of the first point, the collectives hidden
            behind the rest; efficiency_apart: not hidden.
    """

    layout: Layout
    seconds: Seconds
    efficiency: float
    efficiency_apart: float


@dataclass(frozen=True)
class Plan:
    """All that `t3d plan` tells; `weak` and `strong` are empty where a step does not fit."""

    name: str
    stage: str
    cluster: Cluster
    step: Compiled
    cost: Cost | None
    seconds: Seconds | None
    weak: list[Point]
    strong: list[Point]
    compiled_for: list[Layout]

    @property
    def fits(self) -> bool:
        return self.step.memory is not None and self.step.memory.peak <= self.cluster.chip.memory


# ---- the step, in the abstract


def field_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape of one frame and type of every field that a stage's batches hold."""
    size, mel, rays = config.size, config.mel_steps, config.nerf.rays**2
    novel = stages.novel_rays(config.nerf.rays) ** 2
    face, units = (FACE_SIZE, FACE_SIZE, 3), len(config.au.units)
    floats = {
        "image": (size, size, 3),
        "mask": (size, size, 1),
        "face": face,
        "faces5": (WINDOW, *face),
        "identity_face": face,
        "mel": (mel, 80),
        "mel5": (WINDOW, mel, 80),
        "mel16": (SYNC_STEPS, 80),
        "mel16_shifted": (SYNC_STEPS, 80),
        "points68": (68, 2),
        "points_face": (147, 2),
        "identity_points_face": (147, 2),
        "illumination": (27,),
        "intrinsics": (4,),
        "head_to_world": (4, 4),
        "novel_camera": (4, 4),
        "au": (units,),
        **dict.fromkeys(("identity", "albedo"), (100,)),
        **dict.fromkeys(("expression", "lip_codes", "oracle_codes"), (79,)),
        **dict.fromkeys(("guide_near", "guide_far"), (rays,)),
        **dict.fromkeys(("novel_near", "novel_far", "novel_depth"), (novel,)),
        "guide_offset": (rays, 3),
        "novel_offset": (novel, 3),
    }
    return {name: (shape, jnp.float32) for name, shape in floats.items()} | {
        "guide_active": ((rays,), jnp.bool_),
        "novel_active": ((novel,), jnp.bool_),
        "has_render": ((), jnp.bool_),
        "render": ((size, size, 3), jnp.uint8),
        "row": ((), jnp.int32),
    }


def abstract_batch(
    config: ConfigDict, fields: Sequence[str], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of a stage without its numbers, as t3d/run.py would feed it."""
    shapes = field_shapes(config)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shapes[name][0]), shapes[name][1])
        for name in fields
    }


def stages_of(config: ConfigDict, rows: int) -> dict[str, trainer.Stage]:
    """The stages, with facts of no real data: they do not change what is computed.

    Args:
        rows: of the table of per-frame codes. Every ray counts as one that meets the head.
    """
    talker = talkers.build(config, rows, config.nerf.rays**2)
    units = len(config.au.units)
    facts = stages.Facts(np.full(units, 0.3, np.float32), np.zeros((79, 79 * 3), np.float32))
    return stages.make_stages(config, talker, facts)


def abstract_arguments(
    config: ConfigDict, made: dict[str, trainer.Stage], name: str, batch_size: int
) -> tuple:
    """What a stage's step takes: (state, frozen, batch, key), all without numbers."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def batch(stage: trainer.Stage) -> dict:
        return abstract_batch(config, stage.fields, batch_size)

    frozen = {
        need: jax.eval_shape(made[need].init, key, batch(made[need]))
        for need in talkers.NEEDS[name]
    }
    given = batch(made[name])
    state = jax.eval_shape(partial(trainer.init_state, made[name]), key, given)
    return state, frozen, given, key


def trace(config: ConfigDict, name: str, mesh: Mesh, batch_size: int, rows: int):
    """The training step as `trainer.run` places it on a mesh: traced, not yet compiled."""
    rules, made = config.mesh.rules, stages_of(config, rows)
    with sharding.on(mesh):
        state, frozen, batch, key = abstract_arguments(config, made, name, batch_size)
        whole, rows_of = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        places = sharding.placements(mesh, state, rules)
        given = (
            _placed(state, places),
            _placed(frozen, sharding.placements(mesh, frozen, rules)),
            _placed(batch, jax.tree.map(lambda _: rows_of, batch)),
            _placed(key, whole),
        )
        step = partial(trainer.train_step, made[name])
        return jax.jit(step, donate_argnums=0, out_shardings=(places, whole)).trace(*given)


def _placed(tree: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, places
    )


# ---- compiling


def layout_of(config: ConfigDict, stage: str, chips: int, global_batch: int | None) -> Layout:
    """Where the frames and their rays go.

    Without a global batch every shard of `mesh.data` gets the config's batch. With one, and a mesh
    that the config leaves open, its frames are spread as far as they go and their rays over what
    is left.

    Raises:
        UserError: the mesh or the batch does not fit the chips.
    """
    mesh = config.mesh
    if mesh.population != 1:
        raise UserError(
            "config.mesh.population: a plan is of one member; set --config.mesh.population=1"
        )
    data, model = mesh.data, mesh.model
    if global_batch and (data, model) == (-1, 1):
        data = math.gcd(global_batch, chips)
        model = chips // data
    data = chips // model if data == -1 else data
    if data * model != chips:
        raise UserError(
            f"config.mesh: data={data}, model={model} does not fit {chips} chips: the sizes must "
            "multiply to that number"
        )
    batch = global_batch or config.stages[stage].batch_size * data
    if batch % data:
        raise UserError(
            f"--global-batch {batch}: cannot be split over {data} chips; give a multiple, or set "
            "--config.mesh.data to a divisor of it and mesh.model to the rest"
        )
    return Layout(data, model, batch)


def compile_step(
    config: ConfigDict, stage: str, target: Cluster, layout: Layout, rows: int
) -> Compiled:
    """Compiles the real training step for a cluster; too little memory is an answer, no error."""
    sizes = {"population": 1, "data": layout.data, "model": layout.model}
    mesh = sharding.make_mesh(sizes, target.devices)
    traced = trace(config, stage, mesh, layout.batch, rows)
    state = traced.in_avals[0][0]
    result = Compiled(layout, flops.count(traced.jaxpr.jaxpr), _bytes(state), _bytes(state.params))
    try:
        with sharding.on(mesh):
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return replace(result, refusal=_refusal(str(error)))
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
    totals = hlo.Program(compiled.as_text()).totals()
    return replace(result, memory=memory, totals=totals, program=compiled)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _refusal(text: str) -> str:
    """The compiler's line that says how much is missing."""
    lines = [line.strip() for line in text.splitlines() if "hbm" in line.lower()]
    return (lines or text.splitlines())[0]


# ---- predicting


def cost_of(step: Compiled) -> Cost:
    """One chip's part: what is asked for, divided as the compiled program divides it."""
    asked = flops.products(step.asked)
    share = max(step.totals.products / sum(asked.values()), 1 / step.layout.chips)
    collectives = tuple(step.totals.collectives.values())
    if step.layout.chips == 1:  # what several chips would have to add up: the gradients
        collectives = (hlo.Moved("all-reduce", 1, 1, step.parameter_bytes),)
    return Cost({k: share * n for k, n in asked.items()}, step.totals.bytes, collectives)


def seconds_of(cost: Cost, target: Cluster) -> Seconds:
    """The roofline of a chip's part."""
    network = sum(target.network_seconds(m.kind, m.group, m.bytes) for m in cost.collectives)
    return Seconds(
        compute=target.chip.compute_seconds(cost.products),
        memory=cost.bytes / target.chip.bandwidth,
        network=network,
    )


def spread(cost: Cost, was: Layout, now: Layout) -> Cost:
    """The same part of a chip among other numbers of chips: the collectives' groups change."""
    moved = tuple(
        m if m.kind == "collective-permute" else replace(m, group=now.group(was, m.group))
        for m in cost.collectives
    )
    return replace(cost, collectives=moved if now.chips > 1 else ())


def weak_scaling(step: Compiled, target: Cluster) -> list[Point]:
    """1 to 256 chips, the batch of each kept."""
    cost, was = cost_of(step), step.layout
    layouts = [
        Layout(n // was.model, was.model, n * was.batch // was.chips)
        for n in CHIPS
        if n >= was.model
    ]
    return _points(layouts, [spread(cost, was, now) for now in layouts], target)


def strong_scaling(whole: Compiled, split: Compiled, batch: int, target: Cluster) -> list[Point]:
    """1 to 256 chips for one global batch: its frames are divided, then the rays of each frame.

    A chip's part is a fixed piece (the optimiser's pass over the state), a piece for each frame
    that the rays' division leaves whole, and one that it divides; the two compiled steps tell
    them apart.

    Args:
        whole: a step without division of rays; split: one with it, if there are enough chips.
    """
    layouts = [Layout(math.gcd(batch, n), n // math.gcd(batch, n), batch) for n in CHIPS]
    costs = []
    for now in layouts:
        nearest = whole if now.model == 1 else split
        moved = spread(cost_of(nearest), nearest.layout, now).collectives
        products, size = (_part(whole, split, now, of) for of in (_products, _traffic))
        asked = flops.products(whole.asked)
        kinds = {kind: products * n / sum(asked.values()) for kind, n in asked.items()}
        costs.append(Cost(kinds, size, moved))
    return _points(layouts, costs, target)


def _products(step: Compiled) -> tuple[float, float]:
    """FLOPs of a chip: all, and those that no frame causes."""
    return sum(cost_of(step).products.values()), 0.0


def _traffic(step: Compiled) -> tuple[float, float]:
    """Bytes that a chip moves: all, and those that no frame causes (the state's, in and out)."""
    return step.totals.bytes, 2.0 * step.state_bytes


def _part(
    whole: Compiled, split: Compiled, now: Layout, of: Callable[[Compiled], tuple[float, float]]
) -> float:
    (every, fixed), (fewer, _) = of(whole), of(split)
    frame = max(0.0, every - fixed) * whole.layout.data / whole.layout.batch
    divided = 0.0
    if split.layout.model > 1 and frame:
        left = max(0.0, fewer - fixed) * split.layout.data / split.layout.batch / frame
        divided = min(1.0, max(0.0, (1 - left) / (1 - 1 / split.layout.model)))
    return fixed + now.batch / now.data * frame * (1 - divided + divided / now.model)


def _points(layouts: list[Layout], costs: list[Cost], target: Cluster) -> list[Point]:
    seconds = [seconds_of(cost, target) for cost in costs]

    def pace(layout: Layout, time_of_step: float) -> float:
        return layout.batch / layout.chips / time_of_step

    best = pace(layouts[0], seconds[0].step)
    return [
        Point(at, s, pace(at, s.step) / best, pace(at, s.apart) / best)
        for at, s in zip(layouts, seconds, strict=True)
    ]


def make_plan(
    name: str,
    config: ConfigDict,
    stage: str,
    target: Cluster,
    rows: int,
    global_batch: int | None = None,
    log: Callable[[str], None] = print,
) -> Plan:
    """Compiles a stage's step and predicts its time, and its scaling from two further layouts.

    Args:
        name: of the config; rows: frames of all speakers; log: takes a line of progress.

    Raises:
        UserError: no such stage; a mesh or batch that does not fit.
    """
    if stage not in talkers.STAGES:
        raise UserError(f"--stage {stage}: no such stage; there are {', '.join(talkers.STAGES)}")
    check_config(config)
    chips, batch = len(target.devices), config.stages[stage].batch_size
    done: dict[Layout, Compiled] = {}

    def step_of(layout: Layout) -> Compiled:
        if layout not in done:
            log(f"compiling {stage} for {target.topology}: {describe(layout)}")
            done[layout] = compile_step(config, stage, target, layout, rows)
        return done[layout]

    step = step_of(layout_of(config, stage, chips, global_batch))
    if step.totals is None:
        return Plan(name, stage, target, step, None, None, [], [], list(done))
    cost = cost_of(step)
    weak, strong = [], []
    if target.topology != "cpu":
        data = math.gcd(batch, chips)
        whole = step_of(Layout(chips, 1, chips * batch))
        split = step_of(Layout(data, chips // data, batch))
        if whole.totals and split.totals:
            weak = weak_scaling(whole, target)
            strong = strong_scaling(whole, split, batch, target)
    seconds = seconds_of(cost, target)
    return Plan(name, stage, target, step, cost, seconds, weak, strong, list(done))


# ---- a prediction against the clock


@dataclass(frozen=True)
class Check:
    """Seconds of a step at a batch size: predicted, and the median of those measured."""

    batch: int
    predicted: float
    measured: float


def check_prediction(steps: Sequence[Compiled], target: Cluster) -> list[Check]:
    """Steps compiled for this machine's CPU, measured in turn, beside their prediction."""
    runs = [_runner(step.program) for step in steps]
    times = [[run() for run in runs] for _ in range(ROUNDS + 1)][1:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    predicted = [seconds_of(cost_of(step), target).step for step in steps]
    sizes = [step.layout.batch for step in steps]
    return [Check(*row) for row in zip(sizes, predicted, medians, strict=True)]


def _runner(program: jax.stages.Compiled) -> Callable[[], float]:
    """A function that takes one training step on random numbers and tells its seconds."""
    rng, (given, _) = np.random.default_rng(0), program.in_avals
    numbers = jax.tree.map(partial(_random, rng), given[:3])
    state, frozen, batch = jax.device_put(numbers, program.input_shardings[0][:3])
    key = jax.device_put(jax.random.key(0), program.input_shardings[0][3])

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, frozen, batch, key))
        return time.perf_counter() - start

    return run


def _random(rng: np.random.Generator, leaf: jax.core.ShapedArray) -> jax.Array:
    """Numbers for a clock: what they are does not change how many are computed."""
    if leaf.dtype == jnp.float32:
        return jnp.asarray(rng.uniform(0.01, 0.1, leaf.shape), jnp.float32)
    return jnp.ones(leaf.shape, leaf.dtype)


# ---- telling


def describe(layout: Layout) -> str:
    return (
        f"{layout.batch} frames on data={layout.data} x model={layout.model} "
        f"({layout.batch / layout.data:g} a shard)"
    )


def to_json(plan: Plan) -> dict:
    """The plan for a program; seconds, bytes and FLOPs, of one chip unless they say otherwise."""
    step, chip = plan.step, plan.cluster.chip
    fields = {
        "fits": plan.fits,
        "config": plan.name,
        "stage": plan.stage,
        "topology": plan.cluster.topology,
        "chip": chip.name,
        "chips": step.layout.chips,
        "data": step.layout.data,
        "model": step.layout.model,
        "global_batch": step.layout.batch,
        "chip_memory_bytes": chip.memory,
        "refusal": step.refusal,
        "flops_all_chips": flops.products(step.asked),
        "flops_elementwise_all_chips": step.asked[flops.ELEMENTWISE],
        "parameter_bytes": step.parameter_bytes,
    }
    if plan.cost is None:
        return fields
    return fields | {
        "memory_bytes": asdict(step.memory) | {"peak": step.memory.peak},
        "flops": plan.cost.products,
        "bytes_moved": plan.cost.bytes,
        "kernels": step.totals.kernels,
        "collectives": [asdict(m) for m in plan.cost.collectives if m.group > 1],
        "seconds": asdict(plan.seconds),
        "attainable_share_of_peak": chip.attainable,
        "step_seconds": plan.seconds.step,
        "step_seconds_nothing_hidden": plan.seconds.apart,
        "binds": plan.seconds.binds,
        "frames_per_second": step.layout.batch / plan.seconds.step,
        "compiled_layouts": [asdict(layout) for layout in plan.compiled_for],
        "weak_scaling": [_point_json(p) for p in plan.weak],
        "strong_scaling": [_point_json(p) for p in plan.strong],
    }


def _point_json(point: Point) -> dict:
    return {
        "chips": point.layout.chips,
        **asdict(point.layout),
        "step_seconds": point.seconds.step,
        "binds": point.seconds.binds,
        "efficiency": point.efficiency,
        "efficiency_nothing_hidden": point.efficiency_apart,
    }


def show(plan: Plan, console: Console) -> None:
    """Prints the plan as tables."""
    _print(console, _title(plan), ("", "per chip", "note"), _rows(plan))
    if plan.cost and plan.cost.collectives and plan.step.layout.chips > 1:
        rows = [(m.kind, f"{m.group}", f"{m.count:g}", _size(m.bytes)) for m in _largest(plan)]
        _print(console, "Collectives of a step", ("kind", "chips", "how many", "bytes"), rows)
    for title, points in (
        ("Weak scaling, predicted: every chip keeps its frames", plan.weak),
        ("Strong scaling, predicted: the config's batch is kept", plan.strong),
    ):
        if points:
            columns = ("chips", "data x model", "frames", "step", "binds", "efficiency", "*")
            _print(console, title, columns, map(_point_row, points))
    if plan.weak:
        compiled = "; ".join(map(describe, plan.compiled_for))
        console.print(
            f"Compiled: {compiled}. All other numbers of chips are computed from these by the ring "
            f"model; {NOT_CHECKED}. Efficiency: collectives hidden behind the rest; *: not hidden."
        )


def _title(plan: Plan) -> str:
    return (
        f"{plan.name}, stage {plan.stage}, on {plan.cluster.topology} "
        f"({plan.step.layout.chips} x {plan.cluster.chip.name}): {describe(plan.step.layout)}"
    )


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    step, chip = plan.step, plan.cluster.chip
    asked = sum(flops.products(step.asked).values())
    room = f"of {_size(chip.memory)} that a program may use"
    if plan.cost is None:
        return [("fits", "no", step.refusal), ("products, all chips", _flops(asked), "")]
    memory, seconds = step.memory, plan.seconds
    kinds = ", ".join(f"{_flops(n)} {kind}" for kind, n in plan.cost.products.items())
    divided = asked / sum(plan.cost.products.values())
    return [
        ("fits", "yes" if plan.fits else "no", f"{_size(memory.peak)} {room}"),
        ("arguments", _size(memory.arguments), f"of which {_size(memory.aliased)} are donated"),
        (
            "outputs",
            _size(memory.outputs),
            f"{_size(memory.outputs - memory.aliased)} beside those",
        ),
        ("temporaries", _size(memory.temporaries), ""),
        ("code", _size(memory.code), ""),
        ("products", _flops(asked / divided), kinds),
        ("", "", f"{_flops(asked)} on all chips, divided by {divided:.4g}"),
        ("elementwise", _flops(step.asked[flops.ELEMENTWISE] / divided), "hidden behind the bytes"),
        ("bytes moved", _size(plan.cost.bytes), f"by {step.totals.kernels:g} kernels"),
        ("compute", _time(seconds.compute), f"at {chip.attainable:.0%} of the peak"),
        ("memory", _time(seconds.memory), f"at {_size(chip.bandwidth)}/s"),
        ("network", _time(seconds.network), f"at {_size(plan.cluster.chip.link)}/s, rings"),
        ("step", _time(seconds.step), f"{seconds.binds} binds; {_pace(plan)}"),
    ]


def _pace(plan: Plan) -> str:
    return f"{plan.step.layout.batch / plan.seconds.step:,.0f} frames/s on all chips"


def _largest(plan: Plan) -> list[hlo.Moved]:
    return sorted(plan.cost.collectives, key=lambda m: -m.bytes)


def _point_row(point: Point) -> tuple[str, ...]:
    at = point.layout
    return (
        f"{at.chips}",
        f"{at.data} x {at.model}",
        f"{at.batch}",
        _time(point.seconds.step),
        point.seconds.binds,
        f"{point.efficiency:.1%}",
        f"{point.efficiency_apart:.1%}",
    )


def _print(console: Console, title: str, columns: Sequence[str], rows) -> None:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _unit(value: float, unit: str, step: int = 1000) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < step:
            return f"{value:.3g} {prefix}{unit}"
        value /= step
    return f"{value:.4g} P{unit}"


_size = partial(_unit, unit="B")
_flops = partial(_unit, unit="FLOP")


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def draw(plan: Plan, path: Path) -> None:
    """The efficiencies over the number of chips, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    curves = (("weak: frames a chip kept", plan.weak), ("strong: global batch kept", plan.strong))
    for axis, (title, points) in zip(axes, curves, strict=True):
        chips = [p.layout.chips for p in points]
        axis.plot(chips, [p.efficiency for p in points], "o-", label="collectives hidden")
        axis.plot(chips, [p.efficiency_apart for p in points], "s--", label="not hidden")
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="chips", xticks=CHIPS, xticklabels=CHIPS, ylim=(0, 1.08))
        axis.minorticks_off()
        axis.grid(color="0.9")
    axes[0].set_ylabel("predicted efficiency")
    axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(f"{plan.name}, stage {plan.stage}, {plan.cluster.topology}: predicted")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
    pyplot.close(figure)


def show_check(checks: Sequence[Check], console: Console) -> None:
    """Prints predicted against measured step times, and their ratios to the first."""
    first = checks[0]
    rows = [
        (
            f"{c.batch}",
            _time(c.predicted),
            _time(c.measured),
            f"{c.predicted / first.predicted:.2f}",
            f"{c.measured / first.measured:.2f}",
        )
        for c in checks
    ]
    columns = ("batch", "predicted", "measured", "predicted ratio", "measured ratio")
    _print(console, f"Steps on this CPU, median of {ROUNDS}", columns, rows)


def plan_command(args) -> None:
    """`t3d plan`."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=110)
    config = configs.load_config(args.config, args.overrides)
    if args.check and args.topology != "cpu":
        raise UserError("--check: steps can be measured on this machine only: --topology cpu")
    if args.plot and args.topology == "cpu":
        raise UserError("--plot: scaling is of a cluster: give another --topology than cpu")
    target = cluster(args.topology)
    plan = make_plan(
        args.config, config, args.stage, target, args.frames, args.global_batch, console.print
    )
    show(plan, console)
    told = to_json(plan)
    if args.check:
        layouts = [Layout(1, 1, size) for size in CHECKED]
        steps = [compile_step(config, args.stage, target, at, args.frames) for at in layouts]
        checks = check_prediction(steps, target)
        show_check(checks, console)
        told["check"] = [asdict(c) for c in checks]
    if args.json:
        text = json.dumps(told, indent=1) + "\n"
        write_atomically(Path(args.json), lambda temporary: temporary.write_text(text))
    if args.plot and not plan.weak:
        raise UserError(
            f"--plot {args.plot}: not drawn, since a step does not fit; try a smaller one"
        )
    if args.plot:
        draw(plan, Path(args.plot))
