"""A training step compiled for a cluster that is not there, and what it will cost."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from t3d import flops, hlo
from t3d import talker as talkers
from t3d.chips import Cluster
from t3d.data import feature_files
from t3d.data.pipeline import SYNC_STEPS, WINDOW
from t3d.data.speaker_dataset import FACE_SIZE
from t3d.errors import UserError
from t3d.run import check_config
from t3d.speech.features import BANDS
from t3d.train import sharding, stages, trainer

CHIPS = tuple(2**n for n in range(9))  # 1 to 256
ROUNDS = 15  # measured steps of each of them, in turn


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
    """One chip's part of a step: FLOPs by kind, bytes moved in its memory, kernels, collectives."""

    products: dict[str, float]
    bytes: float
    kernels: float
    collectives: tuple[hlo.Moved, ...]


@dataclass(frozen=True)
class Seconds:
    """A step's roofline: each resource's time if it alone were the limit.

    `start` is that of the kernels' starts, during which nothing else happens.
    """

    compute: float
    memory: float
    network: float
    start: float

    @property
    def step(self) -> float:
        """Everything overlaps but the starts."""
        return max(self.compute, self.memory, self.network) + self.start

    @property
    def apart(self) -> float:
        """The network waits for the rest, and the rest for it."""
        return max(self.compute, self.memory) + self.network + self.start

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
    size, rays = config.size, config.nerf.rays**2
    heard = (config.mel_steps, feature_files.width(config.features.file))
    novel = stages.novel_rays(config.nerf.rays) ** 2
    face, units = (FACE_SIZE, FACE_SIZE, 3), len(config.au.units)
    floats = {
        "image": (size, size, 3),
        "mask": (size, size, 1),
        "face": face,
        "faces5": (WINDOW, *face),
        "identity_face": face,
        "mel": heard,
        "mel5": (WINDOW, *heard),
        "mel16": (SYNC_STEPS, BANDS),
        "voice": (2, heard[-1]),
        "mel16_shifted": (SYNC_STEPS, BANDS),
        "points68": (68, 2),
        "points_face": (147, 2),
        "identity_points_face": (147, 2),
        **dict.fromkeys(("face_box", "rendered_face_box"), (3,)),
        "rendered_identity": (100,),
        "rendered_albedo": (100,),
        "rendered_expression": (79,),
        "rendered_illumination": (27,),
        "rendered_head_to_world": (4, 4),
        "illumination": (27,),
        "intrinsics": (4,),
        "head_to_world": (4, 4),
        "novel_camera": (4, 4),
        "au": (units,),
        **dict.fromkeys(("identity", "albedo"), (100,)),
        **dict.fromkeys(("expression", "identity_expression", "mean_expression"), (79,)),
        **dict.fromkeys(("lip_codes", "silent_codes", "oracle_codes"), (79,)),
        "sync_proved": (),
        **dict.fromkeys(("guide_near", "guide_far"), (rays,)),
        **dict.fromkeys(("novel_near", "novel_far", "novel_depth"), (novel,)),
        "guide_offset": (rays, 3),
        "novel_offset": (novel, 3),
    }
    return {name: (shape, jnp.float32) for name, shape in floats.items()} | {
        "guide_active": ((rays,), jnp.bool_),
        **dict.fromkeys(("novel_active", "novel_skin", "novel_painted"), ((novel,), jnp.bool_)),
        "has_render": ((), jnp.bool_),
        "render": ((size, size, 3), jnp.uint8),
        "novel_colour": ((novel, 3), jnp.uint8),
        "rendered_face": (face, jnp.uint8),
        "row": ((), jnp.int32),
        "rows": ((2,), jnp.int32),
        "deaf_ear": ((), jnp.int32),
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
    facts = stages.Facts(np.full(units, 0.3, np.float32), np.zeros((180, 147 * 3), np.float32))
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


def mesh_of(layout: Layout, target: Cluster) -> Mesh:
    """The mesh of a layout; UserError where the chips' links do not admit it."""
    sizes = {"population": 1, "data": layout.data, "model": layout.model}
    return sharding.make_mesh(sizes, target.devices)


def divided(batch: int, target: Cluster) -> Layout:
    """A batch's frames over as many chips as they and the links admit, their rays over the rest."""
    chips = len(target.devices)
    for data in range(math.gcd(batch, chips), 0, -1):
        if batch % data == 0 and chips % data == 0:
            layout = Layout(data, chips // data, batch)
            with contextlib.suppress(UserError):
                mesh_of(layout, target)
                return layout
    raise AssertionError("one shard of data can always be laid out")


def layout_of(config: ConfigDict, stage: str, target: Cluster, global_batch: int | None) -> Layout:
    """Where the frames and their rays go.

    Without a global batch every shard of `mesh.data` gets the config's batch. With one, and a mesh
    that the config leaves open, it is `divided`.

    Raises:
        UserError: the mesh or the batch does not fit the chips.
    """
    mesh, chips = config.mesh, len(target.devices)
    if mesh.population != 1:
        raise UserError(
            "config.mesh.population: a plan is of one member; set --config.mesh.population=1"
        )
    data, model = mesh.data, mesh.model
    if global_batch and (data, model) == (-1, 1):
        return divided(global_batch, target)
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
    mesh = mesh_of(layout, target)
    traced = trace(config, stage, mesh, layout.batch, rows)
    state = traced.in_avals[0][0]
    result = Compiled(layout, flops.count(traced.jaxpr.jaxpr), _bytes(state), _bytes(state.params))
    try:
        with sharding.on(mesh):
            compiled = traced.lower().compile(dict(target.options))
            totals = hlo.Program(compiled.as_text()).totals()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise UserError(
                f"--topology {target.topology}: its compiler failed "
                f"({str(error).splitlines()[0]}); take the one that belongs to jax "
                f"{jax.__version__}: pip install -c constraints.txt -e '.[plan]' or '.[plan_gpu]'"
            ) from error
        return replace(result, refusal=_refusal(str(error)))
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
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
    products = {k: share * n for k, n in asked.items()}
    return Cost(products, step.totals.bytes, step.totals.kernels, collectives)


def seconds_of(cost: Cost, target: Cluster) -> Seconds:
    """The roofline of a chip's part."""
    network = sum(target.network_seconds(m.kind, m.group, m.bytes) for m in cost.collectives)
    return Seconds(
        compute=target.chip.compute_seconds(cost.products),
        memory=cost.bytes / target.chip.bandwidth,
        network=network,
        start=cost.kernels * target.chip.start,
    )


def spread(cost: Cost, was: Layout, now: Layout) -> Cost:
    """The same part of a chip among other numbers of chips: the collectives' groups change.

    An all-reduce keeps its size (gradients); what else is sent goes with the frames of a shard.
    """
    if now.chips == 1:
        return replace(cost, collectives=())
    frames = now.batch / now.data / (was.batch / was.data)
    return replace(cost, collectives=tuple(_among(m, frames, was, now) for m in cost.collectives))


def _among(moved: hlo.Moved, frames: float, was: Layout, now: Layout) -> hlo.Moved:
    if moved.kind == "all-reduce":
        return replace(moved, group=now.group(was, moved.group))
    pairs = moved.kind == "collective-permute"
    group = moved.group if pairs else now.group(was, moved.group)
    return replace(moved, group=group, bytes=frames * moved.bytes)


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
        costs.append(Cost(kinds, size, nearest.totals.kernels, moved))
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
    shared = 0.0
    if split.layout.model > 1 and frame:
        left = max(0.0, fewer - fixed) * split.layout.data / split.layout.batch / frame
        shared = min(1.0, max(0.0, (1 - left) / (1 - 1 / split.layout.model)))
    return fixed + now.batch / now.data * frame * (1 - shared + shared / now.model)


def _points(layouts: list[Layout], costs: list[Cost], target: Cluster) -> list[Point]:
    seconds = [seconds_of(cost, target) for cost in costs]

    def pace(layout: Layout, time_of_step: float) -> float:
        return layout.batch / layout.chips / time_of_step

    best = pace(layouts[0], seconds[0].step)
    return [
        Point(at, s, pace(at, s.step) / best, pace(at, s.apart) / best)
        for at, s in zip(layouts, seconds, strict=True)
    ]


def describe(layout: Layout) -> str:
    return (
        f"{layout.batch} frames on data={layout.data} x model={layout.model} "
        f"({layout.batch / layout.data:g} a shard)"
    )


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

    step = step_of(layout_of(config, stage, target, global_batch))
    if step.totals is None:
        return Plan(name, stage, target, step, None, None, [], [], list(done))
    cost = cost_of(step)
    weak, strong = [], []
    if target.topology != "cpu":
        whole = step_of(Layout(chips, 1, chips * batch))
        split = step_of(divided(batch, target))
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
    numbers = jax.tree.map(partial(random_like, rng), given[:3])
    state, frozen, batch = jax.device_put(numbers, program.input_shardings[0][:3])
    key = jax.device_put(jax.random.key(0), program.input_shardings[0][3])

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, frozen, batch, key))
        return time.perf_counter() - start

    return run


def random_like(rng: np.random.Generator, leaf: jax.core.ShapedArray) -> jax.Array:
    """Numbers for a clock: what they are does not change how many are computed."""
    if leaf.dtype == jnp.float32:
        return jnp.asarray(rng.uniform(0.01, 0.1, leaf.shape), jnp.float32)
    return jnp.ones(leaf.shape, leaf.dtype)
