"""A population: runs that differ in numbers alone, trained as one program.

Seeds, learning rates, loss weights and speakers are numbers; what changes a network's shape or a
schedule is not. Members that are alike in all else are stacked, vmapped and sharded over the mesh's
axis `population`; a stage that would come out the same for several members is trained once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from t3d import hosts
from t3d import talker as talkers
from t3d.data.parts import fingerprint
from t3d.run import TEST_TIME, Learner, Prepared
from t3d.train import sharding, stages, trainer
from t3d.train.writers import NotFinite

SHARED = ("size", "dtype", "mel_steps")
# Values of a stage that may be traced, so that members may differ in them; the seed is another.
NUMBERS = re.compile(r"learning_rate|weight_decay|clip_norm|mouth_gain|oracle|\w+_weight|beta_\w+")
TakeOver = Callable[[Learner, Iterable[Path]], None]


def train(
    learners: Sequence[Learner],
    folder: Path,
    take_over: TakeOver,
    log: Callable[[str], None] = print,
) -> dict[Path, str]:
    """Trains all stages of all members.

    Args:
        learners: the members; the first one's `config.mesh` is that of all.
        folder: takes the populations' checkpoints.
        take_over: (learner, folders of runs) copies the finished stages that would come out alike.

    Returns:
        why members are not whole, by their folders: those whose loss was not finite; the others go
        on without them.

    Raises:
        UserError, SystemExit: as `trainer.run_population`.
    """
    mesh = sharding.make_mesh(learners[0].config.mesh)
    sharding.check_batches(mesh, learners[0].config, talkers.STAGES)
    runs = [learner.workdir for learner in learners]
    lost: dict[Path, str] = {}
    _share(learners, runs, take_over)
    for name in talkers.STAGES:
        waiting = [learner for learner in learners if not learner.is_finished(name)]
        for group in _alike(waiting, name):
            several = f", {len(group)} members as one program" if len(group) > 1 else ""
            log(f"{name}: {len(waiting)} members to train{several}")
            with contextlib.suppress(NotFinite):  # told below, as of the members of a program
                _train_stage(group, name, folder, mesh, log)
            bad = [learner.workdir for learner in group if not learner.is_finished(name)]
            reason = (
                f"stage {name}: the loss was not finite; lower its "
                f"--config.stages.{name}.learning_rate, or look at its data"
            )
            lost |= dict.fromkeys(bad, reason)
        _share(learners, runs, take_over)
        for learner in (learner for learner in waiting if not learner.is_finished(name)):
            lost.setdefault(learner.workdir, f"stage {name}: was lost with that of a member alike")
        learners = [learner for learner in learners if learner.workdir not in lost]
        if not learners:
            break
    return lost


def _share(learners: Sequence[Learner], runs: Sequence[Path], take_over: TakeOver) -> None:
    if hosts.is_first():
        for learner in learners:
            take_over(learner, runs)
    hosts.meet("finished stages are shared")


def _alike(learners: Sequence[Learner], name: str) -> list[list[Learner]]:
    """Groups that can be one program, of members whose outcomes differ."""
    groups: dict[str, dict[tuple, Learner]] = {}
    for learner in learners:
        numbers = tuple(numbers_of(learner.config, name).items())
        own = groups.setdefault(signature(learner, name), {})
        own.setdefault((learner.identity(name), numbers), learner)
    return [list(group.values()) for group in groups.values()]


def numbers_of(config: ConfigDict, name: str) -> dict[str, float]:
    """The values of a stage in which the members of a population may differ, by dotted key."""
    groups = {name: config[name], f"stages.{name}": config.stages[name]}
    return {
        f"{group}.{key}": value
        for group, values in groups.items()
        for key, value in values.items()
        if NUMBERS.fullmatch(key) and isinstance(value, float) and value
    }


def signature(learner: Learner, name: str) -> str:
    """What members must have in common to train a stage as one program.

    A number that is zero switches a term off, so it counts as another program.
    """
    config = learner.config
    free = numbers_of(config, name)
    groups = [name, *talkers.NEEDS[name]]
    flat = {f"{group}.{key}": config[group][key] for group in groups for key in config[group]}
    flat |= {f"stages.{name}.{key}": value for key, value in config.stages[name].items()}
    kept = {
        key: value
        for key, value in flat.items()
        if key not in free and key.rpartition(".")[2] not in TEST_TIME and _counts(key, name)
    }
    shared = {key: config[key] for key in SHARED}
    if name in talkers.HEARING:
        shared["features"] = [speaker.feature_width for speaker in learner.speakers]
    settings, fields = config.stages[name], learner.stage(name).fields
    batches = learner.sources["validation"].count_batches(
        fields, settings.batch_size, settings.validation_batches
    )
    return json.dumps([kept, sorted(free), shared, batches], sort_keys=True, default=str)


def _counts(key: str, name: str) -> bool:
    """Whether a value matters to a stage: numbers of the stages before it are in their params."""
    group, _, last = key.rpartition(".")
    return group in (name, f"stages.{name}") or not NUMBERS.fullmatch(last)


def _train_stage(group: Sequence[Learner], name: str, folder: Path, mesh, log) -> None:
    rules = group[0].config.mesh.rules
    if len(group) == 1:
        prepared = group[0].prepare(name)
        trainer.run(prepared.stage, prepared.training, mesh, rules, group[0].log)
        return
    stage_of, trainings = together(group, name)
    store = folder / "population" / _digest(group, name, folder)
    trainer.run_population(stage_of, trainings, store, mesh, rules, log)


def together(
    group: Sequence[Learner], name: str
) -> tuple[Callable[[Any], trainer.Stage], list[trainer.Training]]:
    """What `trainer.run_population` takes to train a stage of members that are alike.

    Tables by frame are as long as the longest member's, and as many rays are evaluated as for the
    member that needs the most. Members of one seed and the same data share their batches.
    """
    shared = len({learner.identity(name) for learner in group}) == 1
    prepared = [learner.prepare(name, threads=2 if shared else 1) for learner in group]
    config = group[0].config
    rows, capacity = (max(getattr(p, key) for p in prepared) for key in ("rows", "capacity"))
    talker = talkers.build(config, rows, capacity)

    def stage_of(values: dict) -> trainer.Stage:
        own = with_numbers(config, values["numbers"])
        return stages.make_stages(own, talker, stages.Facts(**values["facts"]))[name]

    own = _differing([numbers_of(learner.config, name) for learner in group])
    trainings = [_training(p, numbers) for p, numbers in zip(prepared, own, strict=True)]
    if shared:
        feeds = {key: getattr(trainings[0], key) for key in ("batches", "validation_batches")}
        trainings = [replace(training, **feeds) for training in trainings]
    return stage_of, trainings


def _differing(numbers: list[dict[str, float]]) -> list[dict[str, float]]:
    """Only those that are not the same for all members."""
    keys = [key for key in numbers[0] if len({own[key] for own in numbers}) > 1]
    return [{key: own[key] for key in keys} for own in numbers]


def with_numbers(config: ConfigDict, numbers: dict[str, Any]) -> ConfigDict:
    """A copy of the config with other values (which may be traced) at dotted keys."""
    changed = ConfigDict(config.to_dict(), type_safe=False)
    for key, value in numbers.items():
        *groups, last = key.split(".")
        at = changed
        for group in groups:
            at = at[group]
        at[last] = value
    return changed


def _training(prepared: Prepared, numbers: dict[str, float]) -> trainer.Training:
    return replace(
        prepared.training,
        values={"numbers": numbers, "facts": asdict(prepared.facts)},
        trim=partial(_without_padding, rows=prepared.rows),
    )


def _without_padding(params: dict, rows: int) -> dict:
    """The params with only the member's own rows of per-frame codes."""
    inner = params.get("params", {})
    if "latents" not in inner:
        return params
    return params | {"params": inner | {"latents": np.asarray(inner["latents"])[:rows]}}


def _digest(group: Sequence[Learner], name: str, folder: Path) -> str:
    """Names a population by its members' folders: another one does not go on from its state."""
    members = [os.path.relpath(learner.workdir, folder) for learner in group]
    return f"{name}-{fingerprint(members)}"
