"""The one training loop. A stage is data; see `Stage`."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t3d import checkpoint, hosts
from t3d.errors import UserError
from t3d.train import sharding
from t3d.train.writers import MAX_BAD_STEPS, Monitor, OnHost

Batch = dict[str, Any]
Params = Any
Frozen = dict[str, Params]
EDGE_STEPS = 20  # loss_first and loss_last are means over at most so many steps
AFTER_STEP, VALIDATION = 1, 2  # what else than the loss draws from a key
SCHEDULE = ("steps", "validate_every", "save_every")  # may change in a run that goes on


@dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Attributes:
        name: of its folders and of its part of the config.
        fields: what its batches hold (names of the data pipeline).
        init: (key, batch) -> params, a tree of float arrays; traced.
        loss: (params, frozen, batch, key, step) -> (scalar, aux); traced. `frozen` holds earlier
            stages' params by stage name. Scalars of the dict `aux` are logged; its other entries
            are only for `after_step`.
        config: steps, batch_size, learning_rate, warmup_steps, validate_every, save_every; and,
            if set, ema (decay of the averaged params, 0 = none), clip_norm (1.0), weight_decay
            (0.0, on matrices only). An every of 0 means only at the end.
        images: (params, frozen, batch) -> {name: [N, H, W, 3] in [0, 1]} for TensorBoard; traced.
        select: which params the stage yields: 'last', or 'best' (lowest validation loss).
        after_step: (params, aux, key) -> params after each update; traced.
    """

    name: str
    fields: tuple[str, ...]
    init: Callable[[jax.Array, Batch], Params]
    loss: Callable[[Params, Frozen, Batch, jax.Array, jax.Array], tuple[jax.Array, dict]]
    config: Any
    images: Callable[[Params, Frozen, Batch], dict[str, jax.Array]] | None = None
    select: str = "last"
    after_step: Callable[[Params, dict, jax.Array], Params] | None = None


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: int32, steps taken, skipped ones included.
        params, opt_state: of the stage and of its optimiser.
        ema: averaged params, or None.
        best: the params of the lowest validation loss, or None.
        best_loss, best_step: when that was; inf and -1 before the first validation.
        skipped, bad_steps: int32, steps without update in all, and in a row until now.
        edges: [2, 2] sum and number of the losses of the first and of the last steps.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    best: Params | None
    best_loss: jax.Array
    best_step: jax.Array
    skipped: jax.Array
    bad_steps: jax.Array
    edges: jax.Array


def stage_key(seed: int, name: str) -> jax.Array:
    """The stage's random key; step n draws from fold_in(stage_key, n)."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW after clipping the gradient's norm; the rate warms up linearly, falls as a cosine.

    Rate, decay and clip norm may be traced: they can differ between a population's members.
    """
    warmup = min(config.warmup_steps, config.steps - 1)
    shape = optax.warmup_cosine_decay_schedule(1 / (warmup + 1), 1.0, warmup, config.steps)

    def rate(step: jax.Array) -> jax.Array:
        return config.learning_rate * shape(step)

    decay = config.get("weight_decay", 0.0)
    return optax.chain(
        optax.clip_by_global_norm(config.get("clip_norm", 1.0)),
        optax.adamw(rate, b2=0.99, weight_decay=decay, mask=_matrices),
    )


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def init_state(stage: Stage, key: jax.Array, batch: Batch) -> TrainState:
    """The state before the first step."""
    params = stage.init(key, batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=make_optimizer(stage.config).init(params),
        ema=jax.tree.map(jnp.copy, params) if _ema(stage) else None,
        best=jax.tree.map(jnp.copy, params) if stage.select == "best" else None,
        best_loss=jnp.float32(jnp.inf),
        best_step=jnp.int32(-1),
        skipped=jnp.int32(0),
        bad_steps=jnp.int32(0),
        edges=jnp.zeros((2, 2)),
    )


def _ema(stage: Stage) -> float:
    return stage.config.get("ema", 0.0)


def current_params(state: TrainState) -> Params:
    """The params to judge a state by: the averaged ones if there are any."""
    return state.params if state.ema is None else state.ema


def final_params(state: TrainState) -> Params:
    """The params the stage yields: the best ones if it keeps them and has validated."""
    if state.best is not None and int(state.best_step) >= 0:
        return state.best
    return current_params(state)


# ---- the step, a pure function


def train_step(
    stage: Stage, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; with a loss or gradient that is not finite, only the counters move.

    Args:
        key: of the stage.

    Returns:
        the new state; scalars to log, `bad_steps` (not finite in a row until now) among them.
    """
    key = jax.random.fold_in(key, state.step)
    value_and_grad = jax.value_and_grad(stage.loss, has_aux=True)
    (loss, aux), grads = value_and_grad(state.params, frozen, batch, key, state.step)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    updated = _update(stage, state, grads, aux, key)
    state = jax.tree.map(partial(jnp.where, finite), updated, state)
    state = _count(stage, state, loss, finite)
    scalars = {name: value for name, value in aux.items() if _is_scalar(value)}
    own = {"loss": loss, "grad_norm": norm, "bad_steps": state.bad_steps}
    return state, scalars | own


def _is_scalar(value: Any) -> bool:
    return jax.tree_util.all_leaves([value]) and jnp.ndim(value) == 0


def _update(
    stage: Stage, state: TrainState, grads: Params, aux: dict, key: jax.Array
) -> TrainState:
    optimizer = make_optimizer(stage.config)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if stage.after_step:
        params = stage.after_step(params, aux, jax.random.fold_in(key, AFTER_STEP))
    ema = None
    if state.ema is not None:
        decay = jnp.minimum(_ema(stage), (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
    return state.replace(params=params, opt_state=opt_state, ema=ema)


def _count(stage: Stage, state: TrainState, loss: jax.Array, finite: jax.Array) -> TrainState:
    steps = stage.config.steps
    edge = _edge(steps)
    at_edge = jnp.stack([state.step < edge, state.step >= steps - edge]) & finite
    value = jnp.stack([jnp.where(finite, loss, 0.0), 1.0])
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
        edges=state.edges + at_edge[:, None] * value,
    )


def _edge(steps: int) -> int:
    """Over how many steps loss_first and loss_last are means."""
    return min(EDGE_STEPS, math.ceil(steps / 10))


def keep_best(state: TrainState, loss: jax.Array) -> TrainState:
    """Keeps the current params if this validation loss is the lowest so far."""
    better = loss < state.best_loss
    best = state.best
    if best is not None:
        best = jax.tree.map(partial(jnp.where, better), current_params(state), best)
    return state.replace(
        best=best,
        best_loss=jnp.where(better, loss, state.best_loss),
        best_step=jnp.where(better, state.step, state.best_step),
    )


# ---- stopping


class StopSignal:
    """While entered, the first SIGINT or SIGTERM is noted in `signum` instead of acting at once.

    A second one acts as it would have. In a job of several processes JAX notes SIGTERM, so that
    all of them stop at the same step (`hosts.stop_is_due`).
    """

    def __init__(self):
        self.signum: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if not hosts.in_job() and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number in list(self._old):
            signal.signal(number, self._old.pop(number))

    def _note(self, signum: int, _frame) -> None:
        self.signum = signum
        self.__exit__()

    def is_due(self) -> bool:
        """Whether to save and leave after this step; every process of a job asks after each one."""
        return hosts.stop_is_due(self.signum)


# ---- the loop


@dataclass(frozen=True)
class Training:
    """One training of a stage: alone, or as a member of a population.

    Attributes:
        frozen: params of earlier stages by name.
        batches: (step, rows) -> endless iterator of the batches from that step on, of which only
            those rows [b] are read; the batch of a step must depend on the step alone. Host
            arrays [b, ...].
        validation_batches: (rows) -> the same batches each time; none at all is allowed.
        workdir: where the outcome goes.
        seed: of all randomness.
        values: tree of scalars and arrays in which the members of a population differ; see
            `run_population`.
        made_of: JSON of what else decides the outcome, its data above all, by names: a state that
            was saved with something else is not gone on with.
        trim: params -> params, on the host: takes off what the member has only for the others'
            sake.
    """

    frozen: Frozen
    batches: Callable[[int, np.ndarray], Iterator[Batch]]
    validation_batches: Callable[[np.ndarray], Iterable[Batch]]
    workdir: Path
    seed: int = 0
    values: Any = ()
    made_of: dict[str, Any] = field(default_factory=dict)
    trim: Callable[[Params], Params] = lambda params: params


def run(
    stage: Stage,
    training: Training,
    mesh: Mesh | None = None,
    rules: Sequence[str] = (),
    log: Callable[[str], None] = print,
) -> Params:
    """Trains a stage, or goes on where it stopped: the numbers are the same to the bit.

    Writes in the training's workdir: checkpoints/<stage> (states), params/<stage> (the outcome),
    logs/<stage> (TensorBoard) and the stage's entry of run.json.

    Args:
        mesh: of all the job's devices; default: all of them along `data`.
        rules: what of the state is split (`sharding.placements`).
        log: takes lines for the user.

    Returns:
        the stage's params: numpy arrays, as `checkpoint.load_params` reads them.

    Raises:
        UserError: not writable; checkpoints of another config or other data; loss not finite for
            long (`NotFinite`).
        SystemExit: 130 or 143 after SIGINT or SIGTERM, when all is saved.
    """
    store = Path(training.workdir) / "checkpoints" / stage.name
    return _train(lambda _: stage, [training], False, store, mesh, rules, log)[0]


def run_population(
    stage_of: Callable[[Any], Stage],
    trainings: Sequence[Training],
    folder: Path,
    mesh: Mesh | None = None,
    rules: Sequence[str] = (),
    log: Callable[[str], None] = print,
) -> list[Params | None]:
    """Trains several members as one program, vmapped and sharded over the axis `population`.

    The numbers are those of separate runs, to rounding. Where all members have the same frozen
    params or the same seed and data (`batches` is one object), these are there once. Where the
    axis does not divide the members, the last one is trained more than once.

    Args:
        stage_of: a training's `values`, traced -> its stage. The stages must be alike in all else.
        folder: takes the checkpoints; what else `run` writes goes to each member's workdir.

    Returns:
        the params of each member; raises as `run`, but a member whose loss is not finite does not
        stop the others: it says so, is not recorded as finished, and its params are None.
    """
    store = Path(folder) / "checkpoints" / stage_of(trainings[0].values).name
    return _train(stage_of, trainings, True, store, mesh, rules, log)


def _train(stage_of, trainings, stacked, folder, mesh, rules, log) -> list[Params | None]:
    stage = stage_of(trainings[0].values)
    for training in trainings:
        checkpoint.writable_folder(Path(training.workdir))
    settings = [_settings(stage_of(t.values), t) for t in trainings]
    outcomes = [Path(t.workdir) / "params" / stage.name for t in trainings]
    finished = [_is_finished(stage, t.workdir, s, log) for t, s in zip(trainings, settings)]
    if not hosts.as_first_says(all(finished)):
        mesh = sharding.make_mesh() if mesh is None else mesh
        members, settings = (
            padded(each, mesh) if stacked else each for each in (list(trainings), settings)
        )
        with (
            StopSignal() as stop,
            checkpoint.StateStore(folder, log) as store,
            sharding.on(mesh),
        ):
            loop = _Loop(
                stage_of, members, len(trainings), stacked, settings, store, mesh, rules, log
            )
            loop.start()
            with _Monitors(stage, trainings, stacked, loop.step, log) as monitor:
                loop.run(monitor, stop)
            store.wait()
            recorded = loop.finish(outcomes)
            if stop.signum:
                raise SystemExit(128 + stop.signum)
        if hosts.is_first() and not recorded:  # a state of such members is of no use
            shutil.rmtree(folder)
    hosts.meet(f"{stage.name} is done")
    return [checkpoint.load_params(o) if o.is_dir() or not stacked else None for o in outcomes]


def fixed_settings(config: Any) -> dict:
    """The values of a stage's config that a finished stage was trained with for good."""
    return {key: value for key, value in config.to_dict().items() if key not in SCHEDULE}


def _settings(stage: Stage, training: Training) -> dict:
    """What decides the stage's outcome, as JSON holds it."""
    shas = {name: checkpoint.params_sha256(params) for name, params in training.frozen.items()}
    settings = {"seed": training.seed, "config": fixed_settings(stage.config), "frozen": shas}
    return json.loads(json.dumps(settings | {"made_of": training.made_of}))


def _changes(old: dict, new: dict, groups: Sequence[str] = ("config", "frozen", "made_of")) -> str:
    """Names what differs between two settings; empty if nothing does.

    What an earlier t3d did not note of what a stage is made of counts as the same.
    """
    changed = ["seed"] if "config" in groups and old["seed"] != new["seed"] else []
    for group in groups:
        was = old.get(group, new[group])
        was = new[group] | was if group == "made_of" else was
        keys = was.keys() | new[group].keys() if group == "config" else new[group].keys()
        changed += [f"{group}.{key}" for key in sorted(keys) if was.get(key) != new[group].get(key)]
    return ", ".join(changed).replace("made_of.", "")


def _is_finished(stage: Stage, workdir: Path, settings: dict, log: Callable[[str], None]) -> bool:
    workdir = Path(workdir)
    entry = checkpoint.read_run(workdir).get("stages", {}).get(stage.name, {})
    outcome = workdir / "params" / stage.name
    if entry.get("steps", -1) < stage.config.steps or not outcome.is_dir():
        return False
    changes = _changes(entry["settings"], settings)
    if changes:
        log(
            f"{stage.name}: is done with other settings ({changes} changed since): kept; delete "
            f"{outcome} and {workdir / 'checkpoints' / stage.name} to train it again"
        )
    else:
        log(f"{stage.name}: is done ({entry['steps']} steps)")
    return True


class _Loop:
    """The state of a stage in training, and the compiled functions that move it.

    One training has its arrays as they are; a population has them stacked, [M, …].
    """

    def __init__(self, stage_of, trainings, count, stacked, settings, store, mesh, rules, log):
        """Args: the trainings, padded; how many of them are wanted."""
        self.stage, self.count = stage_of(trainings[0].values), count
        self.trainings, self.stacked, self.settings = trainings, stacked, settings
        self.store, self.mesh, self.log = store, mesh, log
        self.shared_batches = all(t.batches is trainings[0].batches for t in trainings)
        self.feeds = _Feeds(trainings, mesh, self.stage.config.batch_size, self._stacks_batches())
        self.shared_frozen = all(s["frozen"] == settings[0]["frozen"] for s in settings)
        self.given = self._place_given(rules)
        self.key = self._place_key()
        self.state: TrainState | None = None
        self.step = 0
        self.seconds = 0.0
        self.validation: list[float] | None = None
        self._compile(stage_of, rules)

    def _stacks_batches(self) -> bool:
        return self.stacked and not self.shared_batches

    def _place_given(self, rules) -> dict:
        """The values and frozen params of all members, on the devices."""
        one = self.trainings[0]
        if not self.stacked:
            values, frozen = one.values, one.frozen
        else:
            values = stack([t.values for t in self.trainings])
            frozen = one.frozen if self.shared_frozen else stack([t.frozen for t in self.trainings])
        apart = self.stacked and not self.shared_frozen
        at = sharding.placements(self.mesh, frozen, rules, apart)
        at = {"frozen": at, "values": sharding.placements(self.mesh, values, (), self.stacked)}
        return sharding.place({"frozen": frozen, "values": values}, at)

    def _place_key(self) -> jax.Array:
        name, seeds = self.stage.name, [t.seed for t in self.trainings]

        def make() -> jax.Array:
            keys = [stage_key(seed, name) for seed in seeds]
            return jnp.stack(keys) if self.stacked else keys[0]

        return jax.jit(make, out_shardings=sharding.replicated(self.mesh))()

    def _compile(self, stage_of: Callable[[Any], Stage], rules: Sequence[str]) -> None:
        """The functions of one member, lifted to all, with their results in their places."""

        def init(given, key, batch):
            return init_state(stage_of(given["values"]), key, batch)

        def step(given, state, batch, key):
            return train_step(stage_of(given["values"]), state, given["frozen"], batch, key)

        def validation_loss(given, params, batch, key, step):
            stage = stage_of(given["values"])
            return stage.loss(params, given["frozen"], batch, key, step)[0]

        def images(given, params, batch):
            return stage_of(given["values"]).images(params, given["frozen"], batch)

        batch = 0 if self._stacks_batches() else None
        given = {"frozen": None if self.shared_frozen else 0, "values": 0}
        whole = sharding.replicated(self.mesh)
        init = self._lift(init, given, 0, batch)
        self.first = self.feeds.to_devices(next(self.feeds.batches(0)))
        self.shapes = jax.eval_shape(init, self.given, self.key, self.first)
        self.places = sharding.placements(self.mesh, self.shapes, rules, self.stacked)
        self.init = jax.jit(init, out_shardings=self.places)
        self.train_step = jax.jit(
            self._lift(step, given, 0, batch, 0),
            donate_argnums=1,
            out_shardings=(self.places, whole),
        )
        self.keep_best = jax.jit(
            self._lift(keep_best, 0, 0), donate_argnums=0, out_shardings=self.places
        )
        lifted = self._lift(validation_loss, given, 0, batch, 0, 0)
        self.validation_loss = jax.jit(lifted, out_shardings=whole)
        self.images = self.stage.images and jax.jit(
            self._lift(images, given, 0, batch), out_shardings=whole
        )

    def _lift(self, function: Callable, *axes: Any) -> Callable:
        if not self.stacked:
            return function
        return jax.vmap(function, in_axes=axes, spmd_axis_name="population")

    def start(self) -> None:
        """Takes the newest saved state, or makes the first one.

        Raises:
            UserError: it was trained on something else, or is finished and was trained otherwise.
        """
        usual = self._template(len(self.trainings))
        restored = self.store.restore(usual, self._template if self.stacked else None)
        if restored is None:
            self.state = self.init(self.given, self.key, self.first)
            return
        state, notes = restored
        self.step = notes["step"]
        self.seconds, self.validation = notes["seconds"], notes["validation"]
        steps = self.stage.config.steps
        for number in range(self.count):
            old, new = notes["settings"][number], self.settings[number]
            changes = _changes(old, new)
            if changes and (self.step >= steps or _changes(old, new, ("made_of",))):
                raise UserError(
                    f"{self.store.folder}: its state of step {self.step} was trained otherwise "
                    f"({changes} changed since); give what it had, or delete that folder to train "
                    f"the stage {self.stage.name} anew"
                )
            changed = f", with another {changes} than before" if changes else ""
            if number == 0 or changes:
                self.log(f"{self.stage.name}: goes on from step {self.step}{changed}")
        before_end = self.step <= steps - _edge(steps)

        def fit(state: TrainState) -> TrainState:
            if before_end:  # the last steps of a shorter schedule are none of this one
                state = state.replace(edges=state.edges.at[..., 1, :].set(0.0))
            return jax.tree.map(self._fit_members, state) if self.stacked else state

        whole = state.step.shape == self.shapes.step.shape
        donated = {"donate_argnums": 0} if whole else {}
        self.state = jax.jit(fit, out_shardings=self.places, **donated)(state)

    def _fit_members(self, leaf: jax.Array) -> jax.Array:
        """The wanted members' rows, padded as this mesh needs it."""
        return leaf[np.minimum(np.arange(len(self.trainings)), self.count - 1)]

    def _template(self, members: int) -> TrainState:
        """The shapes and places that a state of so many members is read with.

        One that was padded for another mesh is read whole by each device.
        """
        shapes, places = self.shapes, self.places
        if self.stacked and members != len(self.trainings) and members >= self.count:
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape[1:]), leaf.dtype), shapes
            )
            places = jax.tree.map(lambda at: NamedSharding(at.mesh, P(None, *at.spec[1:])), places)
        return jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            shapes,
            places,
        )

    def run(self, monitor: _Monitors, stop: StopSignal) -> None:
        """Steps until the end; saves and leaves when stopped."""
        steps = self.stage.config.steps
        began = time.monotonic() - self.seconds
        for batch in itertools.islice(self.feeds.batches(self.step), max(0, steps - self.step)):
            on_device = self.feeds.to_devices(batch)
            self.state, metrics = self.train_step(self.given, self.state, on_device, self.key)
            monitor.push(self.step, metrics, batch)
            self.step += 1
            if self._is_due("validate_every"):
                self.validate(monitor)
            leaving = stop.is_due()
            if self._is_due("save_every") or leaving:
                monitor.drain()
                self.seconds = time.monotonic() - began
                self.save()
            if leaving:
                self._leave(stop.signum or signal.SIGTERM)
        if self.step < steps:
            raise UserError(f"stage {self.stage.name}: its data ended at step {self.step}")

    def _is_due(self, every: str) -> bool:
        steps, interval = self.stage.config.steps, self.stage.config[every]
        return self.step == steps or (interval > 0 and self.step % interval == 0)

    def validate(self, monitor: _Monitors) -> None:
        """Mean loss over the validation batches, always with the same keys."""
        params, step = current_params(self.state), self.state.step
        losses, shown = [], None
        for number, batch in enumerate(self.feeds.validation_batches()):
            batch = self.feeds.to_devices(batch)
            key = self._validation_key(number)
            # One at a time: simulated devices deadlock when their collectives overlap.
            losses.append(
                jax.device_get(self.validation_loss(self.given, params, batch, key, step))
            )
            shown = batch if shown is None else shown
        if not losses:
            return
        means = np.mean(losses, axis=0)
        self.validation = np.atleast_1d(means).astype(float).tolist()
        monitor.scalars(self.step, {"validation_loss": means})
        if self.images:
            monitor.images(self.step, self.images(self.given, params, shown))
        self.state = self.keep_best(self.state, means.astype(np.float32))

    def _validation_key(self, number: int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(key, VALIDATION), number)

        return jax.vmap(one)(self.key) if self.stacked else one(self.key)

    def save(self) -> None:
        notes = {"step": self.step, "seconds": self.seconds, "validation": self.validation}
        self.store.save(self.step, self.state, notes | {"settings": self.settings})

    def _leave(self, signum: int) -> None:
        self.store.wait()
        self.log(
            f"{self.stage.name}: stopped by {signal.Signals(signum).name} at step {self.step} of "
            f"{self.stage.config.steps}; saved, the same command goes on from there"
        )
        raise SystemExit(128 + signum)

    def finish(self, outcomes: Sequence[Path]) -> int:
        """Writes each member's params and its entry of run.json, unless its loss is not finite.

        Returns:
            how many this process has written: the first one does.
        """
        state, entries = self.state.replace(opt_state=None), {}
        whole = sharding.replicated(self.mesh)
        pick = jax.jit(
            lambda tree, n: jax.tree.map(lambda x: x[n], tree) if self.stacked else tree,
            out_shardings=whole,
        )
        for number, outcome in enumerate(outcomes):
            own = jax.device_get(pick(state, number))
            if hosts.is_first() and own.bad_steps < MAX_BAD_STEPS:
                params = self.trainings[number].trim(final_params(own))
                sha256 = checkpoint.save_params(outcome, params)
                entries[number] = self._summary(number, own, params, len(outcomes))
                entries[number]["sha256"] = sha256
        for number, entry in entries.items():
            checkpoint.update_run(self.trainings[number].workdir, stages={self.stage.name: entry})
        return len(entries)

    def _summary(self, number: int, state: TrainState, params: Params, members: int) -> dict:
        """The stage's entry of run.json."""
        first, last = (float(s / n) if n else None for s, n in state.edges)
        best = self.stage.select == "best" and state.best_step >= 0
        validation = self.validation[number] if self.validation else None
        return {
            "steps": self.step,
            "loss_first": first,
            "loss_last": last,
            "validation": float(state.best_loss) if best else validation,
            "selected_step": int(state.best_step) if best else self.step,
            "skipped": int(state.skipped),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "seconds": round(self.seconds / members, 1),
            "device": self.mesh.devices.flat[0].device_kind,
            "devices": self.mesh.size,
            "settings": self.settings[number],
        } | ({"population": members} if self.stacked else {})


def padded(members: list, mesh: Mesh) -> list:
    """The members, the last one repeated until the axis `population` divides their number."""
    return members + members[-1:] * (-len(members) % mesh.shape["population"])


def stack(trees: Sequence[Any]) -> Any:
    """One tree of arrays [M, …] of M alike ones; tables of unlike length are padded with zeros."""

    def one(*leaves: Any) -> np.ndarray:
        leaves = [np.asarray(leaf) for leaf in leaves]
        longest = np.max([leaf.shape for leaf in leaves], axis=0).astype(int)
        stacked = np.zeros((len(leaves), *longest), leaves[0].dtype)
        for number, leaf in enumerate(leaves):
            stacked[(number, *map(slice, leaf.shape))] = leaf
        return stacked

    return jax.tree.map(one, *trees)


class _Feeds:
    """The batches of all trainings, each process reading only what its devices need."""

    def __init__(self, trainings, mesh, batch_size, stacked):
        self.mesh, self.batch_size = mesh, batch_size
        self.rows = sharding.local_rows(mesh, batch_size)
        self.members = len(trainings) if stacked else None
        local = sharding.local_members(mesh, len(trainings)) if stacked else [0]
        self.trainings = [trainings[number] for number in local]

    def batches(self, step: int) -> Iterator[Batch]:
        """Host arrays [b, …], or [m, b, …] of a population."""
        return self._together([t.batches(step, self.rows) for t in self.trainings])

    def validation_batches(self) -> Iterator[Batch]:
        return self._together([t.validation_batches(self.rows) for t in self.trainings])

    def _together(self, iterators: list[Iterable[Batch]]) -> Iterator[Batch]:
        if self.members is None:
            return iter(iterators[0])
        return (jax.tree.map(lambda *x: np.stack(x), *several) for several in zip(*iterators))

    def to_devices(self, batch: Batch) -> Batch:
        return sharding.shard_batch(self.mesh, batch, self.batch_size, self.members)


class _Monitors:
    """A monitor for each training."""

    def __init__(self, stage, trainings, stacked, start, log):
        first = hosts.is_first()
        self._stacked = stacked
        self._monitors = [
            Monitor(
                stage.name,
                start,
                stage.config.steps,
                Path(training.workdir) / "logs" / stage.name if first else None,
                log,
                member=number if stacked else None,
            )
            for number, training in enumerate(trainings)
        ]

    def __enter__(self) -> _Monitors:
        for monitor in self._monitors:
            monitor.__enter__()
        return self

    def __exit__(self, *_) -> None:
        for monitor in self._monitors:
            monitor.__exit__()

    def push(self, step: int, metrics: dict, batch: Batch) -> None:
        later = OnHost(metrics)
        for monitor in self._monitors:
            monitor.push(step, later, batch)

    def drain(self) -> None:
        for monitor in self._monitors:
            monitor.drain()

    def scalars(self, step: int, values: dict) -> None:
        for number, monitor in enumerate(self._monitors):
            monitor.scalars(step, {k: v[number] if self._stacked else v for k, v in values.items()})

    def images(self, step: int, images: dict) -> None:
        for number, monitor in enumerate(self._monitors):
            monitor.images(step, {k: v[number] if self._stacked else v for k, v in images.items()})
