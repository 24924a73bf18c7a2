"""The one training loop. A stage is data; see `Stage`."""

from __future__ import annotations

import itertools
import json
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from t3d import checkpoint
from t3d.errors import UserError
from t3d.train import sharding
from t3d.train.writers import Monitor

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
    """AdamW after clipping the gradient's norm; the rate warms up linearly, falls as a cosine."""
    warmup = min(config.warmup_steps, config.steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (warmup + 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
    )
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
    edge = min(EDGE_STEPS, math.ceil(steps / 10))
    at_edge = jnp.stack([state.step < edge, state.step >= steps - edge]) & finite
    value = jnp.stack([jnp.where(finite, loss, 0.0), 1.0])
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
        edges=state.edges + at_edge[:, None] * value,
    )


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

    A second one acts as it would have.
    """

    def __init__(self):
        self.signum: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number in list(self._old):
            signal.signal(number, self._old.pop(number))

    def _note(self, signum: int, _frame) -> None:
        self.signum = signum
        self.__exit__()


# ---- the loop


def run(
    stage: Stage,
    frozen: Frozen,
    batches: Callable[[int], Iterator[Batch]],
    validation_batches: Callable[[], Iterable[Batch]],
    workdir: str | Path,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Params:
    """Trains a stage, or goes on where it stopped: the numbers are the same to the bit.

    Writes in `workdir`: checkpoints/<stage> (states), params/<stage> (the outcome), logs/<stage>
    (TensorBoard) and the stage's entry of run.json.

    Args:
        frozen: params of earlier stages by name.
        batches: (step) -> endless iterator of the batches from that step on; the batch of a step
            must depend on the step alone. Host arrays [B, ...].
        validation_batches: () -> the same batches each time; none at all is allowed.
        seed: of all randomness.
        log: takes lines for the user.

    Returns:
        the stage's params: numpy arrays, as `checkpoint.load_params` reads them.

    Raises:
        UserError: not writable; checkpoints of another config; loss not finite for long.
        SystemExit: 130 or 143 after SIGINT or SIGTERM, when all is saved.
    """
    workdir = checkpoint.writable_folder(Path(workdir))
    settings = _settings(stage, frozen, seed)
    outcome = workdir / "params" / stage.name
    if _is_finished(stage, workdir, settings, log):
        return checkpoint.load_params(outcome)
    with StopSignal() as stop, _store(stage, workdir, log) as store:
        loop = _Loop(stage, frozen, validation_batches, store, seed, settings, log)
        loop.start(batches)
        with _monitor(stage, loop.step, workdir, log) as monitor:
            loop.run(batches, monitor, stop)
        store.wait()
    sha256 = checkpoint.save_params(outcome, final_params(loop.state))
    checkpoint.update_run(workdir, stages={stage.name: loop.summary() | {"sha256": sha256}})
    return checkpoint.load_params(outcome)


def _store(stage: Stage, workdir: Path, log: Callable[[str], None]) -> checkpoint.StateStore:
    return checkpoint.StateStore(workdir / "checkpoints" / stage.name, log)


def _monitor(stage: Stage, step: int, workdir: Path, log: Callable[[str], None]) -> Monitor:
    return Monitor(stage.name, step, stage.config.steps, workdir / "logs" / stage.name, log)


def _settings(stage: Stage, frozen: Frozen, seed: int) -> dict:
    """What decides the stage's outcome beside its data, as JSON holds it."""
    config = stage.config.to_dict()
    config = {key: value for key, value in config.items() if key not in SCHEDULE}
    shas = {name: checkpoint.params_sha256(params) for name, params in frozen.items()}
    return json.loads(json.dumps({"seed": seed, "config": config, "frozen": shas}))


def _changes(old: dict, new: dict) -> str:
    """Names what differs between two settings; empty if nothing does."""
    changed = [] if old["seed"] == new["seed"] else ["seed"]
    keys = {"config": old["config"].keys() | new["config"].keys(), "frozen": new["frozen"].keys()}
    for group in ("config", "frozen"):
        changed += [
            f"{group}.{key}"
            for key in sorted(keys[group])
            if old[group].get(key) != new[group].get(key)
        ]
    return ", ".join(changed)


def _is_finished(stage: Stage, workdir: Path, settings: dict, log: Callable[[str], None]) -> bool:
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
    """The state of a stage in training, and the compiled functions that move it."""

    def __init__(self, stage, frozen, validation_batches, store, seed, settings, log):
        self.stage, self.store, self.settings, self.log = stage, store, settings, log
        self.validation_batches = validation_batches
        self.mesh = sharding.make_mesh()
        self.whole = sharding.replicated(self.mesh)
        self.frozen = sharding.replicate(self.mesh, frozen)
        self.key = sharding.replicate(self.mesh, stage_key(seed, stage.name))
        self.state: TrainState | None = None
        self.step = 0
        self.seconds = 0.0
        self.validation: float | None = None
        self.train_step = self._jit(partial(train_step, stage), donate_argnums=0)
        self.keep_best = self._jit(keep_best, donate_argnums=0)
        self.validation_loss = self._jit(lambda *args: stage.loss(*args)[0])
        self.images = stage.images and self._jit(stage.images)

    def _jit(self, function: Callable, **options) -> Callable:
        return jax.jit(function, out_shardings=self.whole, **options)

    def start(self, batches: Callable[[int], Iterator[Batch]]) -> None:
        """Takes the newest saved state, or makes the first one."""
        batch = sharding.shard_batch(self.mesh, next(iter(batches(0))))
        init = self._jit(partial(init_state, self.stage))
        template = jax.tree.map(self._abstract, jax.eval_shape(init, self.key, batch))
        restored = self.store.restore(template)
        if restored is None:
            self.state = init(self.key, batch)
            return
        self.state, notes = restored
        self.step = int(self.state.step)
        self.seconds, self.validation = notes["seconds"], notes["validation"]
        changes = _changes(notes["settings"], self.settings)
        changed = f", with another {changes} than before" if changes else ""
        self.log(f"{self.stage.name}: goes on from step {self.step}{changed}")

    def _abstract(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.whole)

    def run(self, batches: Callable[[int], Iterator[Batch]], monitor: Monitor, stop) -> None:
        """Steps until the end; saves and leaves when stopped."""
        if self.step >= self.stage.config.steps:
            return
        began = time.monotonic() - self.seconds
        for batch in itertools.islice(batches(self.step), self.stage.config.steps - self.step):
            on_device = sharding.shard_batch(self.mesh, batch)
            self.state, metrics = self.train_step(self.state, self.frozen, on_device, self.key)
            monitor.push(self.step, metrics, batch)
            self.step += 1
            if self._is_due("validate_every"):
                self.validate(monitor)
            if self._is_due("save_every") or stop.signum:
                monitor.drain()
                self.seconds = time.monotonic() - began
                self.save()
            if stop.signum:
                self._leave(stop.signum)
        if self.step < self.stage.config.steps:
            raise UserError(f"stage {self.stage.name}: its data ended at step {self.step}")

    def _is_due(self, every: str) -> bool:
        steps, interval = self.stage.config.steps, self.stage.config[every]
        return self.step == steps or (interval > 0 and self.step % interval == 0)

    def validate(self, monitor: Monitor) -> None:
        """Mean loss over the validation batches, always with the same keys."""
        params, step = current_params(self.state), self.state.step
        losses, shown = [], None
        for number, batch in enumerate(self.validation_batches()):
            batch = sharding.shard_batch(self.mesh, batch)
            key = jax.random.fold_in(jax.random.fold_in(self.key, VALIDATION), number)
            losses.append(self.validation_loss(params, self.frozen, batch, key, step))
            shown = batch if shown is None else shown
        if not losses:
            return
        self.validation = float(np.mean(jax.device_get(losses)))
        monitor.scalars(self.step, {"validation_loss": self.validation})
        if self.images:
            monitor.images(self.step, self.images(params, self.frozen, shown))
        self.state = self.keep_best(self.state, np.float32(self.validation))

    def save(self) -> None:
        notes = {"seconds": self.seconds, "validation": self.validation}
        self.store.save(self.step, self.state, notes | {"settings": self.settings})

    def _leave(self, signum: int) -> None:
        self.store.wait()
        self.log(
            f"{self.stage.name}: stopped by {signal.Signals(signum).name} at step {self.step} of "
            f"{self.stage.config.steps}; saved, the same command goes on from there"
        )
        raise SystemExit(128 + signum)

    def summary(self) -> dict:
        """The stage's entry of run.json."""
        state = jax.device_get(self.state)
        first, last = (float(s / n) if n else None for s, n in state.edges)
        best = self.stage.select == "best" and state.best_step >= 0
        return {
            "steps": self.step,
            "loss_first": first,
            "loss_last": last,
            "validation": float(state.best_loss) if best else self.validation,
            "selected_step": int(state.best_step) if best else self.step,
            "skipped": int(state.skipped),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "seconds": round(self.seconds, 1),
            "device": self.mesh.devices.flat[0].device_kind,
            "devices": self.mesh.size,
            "settings": self.settings,
        }
