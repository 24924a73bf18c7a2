"""`t3d bench`: how fast the parts run on this machine, measured where their users meet them.

data: does the input pipeline keep up with the trainer; population: what one program for several
members saves; startup: what the cache of compiled programs saves; prior: how good and how fast the
tracker, the encoders and the rasteriser are; speech: what unseen sound does to a face; nerf: how
fast the radiance field is.
Figures of this machine stand in docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from t3d import checkpoint, planning, population, run
from t3d import config as configs
from t3d.bench_nerf import bench_nerf, bench_runs
from t3d.bench_prior import bench_prior
from t3d.bench_speech import bench_speech
from t3d.data import feature_files, video
from t3d.data.parts import write_atomically
from t3d.data.speaker_dataset import LONG_ENOUGH, SpeakerDataset
from t3d.errors import UserError
from t3d.talker import STAGES
from t3d.train import sharding, trainer

Figures = dict[str, float]
FEW, MANY = 60, 300  # steps of a measured training: of real size; of tiny ones
WARM = 1 / 3  # share of them that is not counted
BATCHES = 40  # that the input pipeline is timed over


# ---- a run to measure on


def untrained_run(
    config: ConfigDict, datasets: list[SpeakerDataset], workdir: Path, seed: int = 0
) -> None:
    """A run whose stages all have parameters drawn by lot: a clock does not mind.

    Args:
        workdir: of the run, which is made.
    """
    record = run.record_of(config, datasets)
    checkpoint.update_run(workdir, **record)
    made = planning.stages_of(config, record["rows"])
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    file = config.features.file.replace(feature_files.NAME, datasets[0].name)
    named = population.with_numbers(config, {"features.file": file})
    for name, stage in made.items():
        batch = planning.abstract_batch(named, stage.fields, 1)
        shapes = jax.eval_shape(stage.init, key, batch)
        params = jax.tree.map(
            lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes
        )
        sha256 = checkpoint.save_params(workdir / "params" / name, params)
        checkpoint.update_run(workdir, stages={name: {"sha256": sha256, "steps": 0}})


def learner_of(config: ConfigDict, datasets: list[SpeakerDataset], workdir: Path) -> run.Learner:
    """Feeds the stages of an untrained run."""
    untrained_run(config, datasets, workdir)
    return run.Learner(config, datasets, workdir, workdir / run.CACHE)


class Clock:
    """Notes when a training asks for its batches, and how long it waits for each."""

    def __init__(self):
        self.asked: list[float] = []
        self.waited: list[float] = []

    def over(self, batches: Callable) -> Callable:
        """The same batches of a `trainer.Training`, with the clock running."""

        def timed(step: int, rows: np.ndarray) -> Iterator[Any]:
            iterator = batches(step, rows)
            while True:
                self.asked.append(time.perf_counter())
                batch = next(iterator)
                self.waited.append(time.perf_counter() - self.asked[-1])
                yield batch

        return timed

    def seconds_a_step(self) -> float:
        """From the end of warming up to the last batch asked for."""
        asked = self.asked[int(WARM * len(self.asked)) :]
        return (asked[-1] - asked[0]) / (len(asked) - 1)

    def share_waited(self) -> float:
        """Of that time, what went by until the batches were there."""
        start = int(WARM * len(self.asked))
        waited = sum(self.waited[start:-1])
        return waited / (self.asked[-1] - self.asked[start])


def _short(config: ConfigDict, stage: str, steps: int) -> ConfigDict:
    """The config with so many steps of the stage, and nothing but steps in between."""
    numbers = {"steps": steps, "save_every": 0, "validate_every": 0, "validation_batches": 1}
    return population.with_numbers(config, {f"stages.{stage}.{k}": v for k, v in numbers.items()})


def _timed_training(prepared: run.Prepared, batches: Callable, workdir: Path) -> Clock:
    clock = Clock()
    training = replace(prepared.training, batches=clock.over(batches), workdir=workdir)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    trainer.run(prepared.stage, training, mesh, log=lambda line: None)
    return clock


# ---- does the input keep up?


def bench_data(
    config: ConfigDict, datasets: list[SpeakerDataset], stages: list[str], plan: dict | None
) -> Figures:
    """The input pipeline of each stage beside its trainer.

    Args:
        plan: what `t3d plan --json` wrote of one of the stages, to tell the workers it needs.

    Returns:
        by stage: samples_per_core_second (decoded pictures in memory, as after the first epoch),
        first_epoch_samples_per_core_second, step_seconds, step_seconds_unfed (the same batch over
        and over), slowdown (their ratio − 1), cores_for_this_trainer, and cores_for_the_plan.
    """
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            workdir = Path(folder) / stage
            learner = learner_of(_short(config, stage, FEW), datasets, workdir)
            found = _bench_stage(learner, stage, workdir)
            if plan and plan["stage"] == stage:
                rate = plan["global_batch"] / plan["step_seconds"]
                found["cores_for_the_plan"] = rate / found["samples_per_core_second"]
            figures |= {f"{stage}/{name}": value for name, value in found.items()}
    return figures


def _bench_stage(learner: run.Learner, stage: str, workdir: Path) -> Figures:
    prepared = learner.prepare(stage)
    size = learner.config.stages[stage].batch_size
    rows = np.arange(size)
    first = _samples_per_core(prepared, rows)
    _decode(learner.datasets, learner.config.size)
    warm = _samples_per_core(prepared, rows)
    fed = _timed_training(prepared, prepared.training.batches, workdir / "fed")
    one = next(prepared.training.batches(0, rows))
    same = _timed_training(prepared, lambda step, rows: _forever(one), workdir / "same")
    step, unfed = fed.seconds_a_step(), same.seconds_a_step()
    return {
        "first_epoch_samples_per_core_second": first,
        "samples_per_core_second": warm,
        "step_seconds": step,
        "step_seconds_unfed": unfed,
        "slowdown": step / unfed - 1,
        "share_waited": fed.share_waited(),
        "cores_for_this_trainer": size / unfed / warm,
    }


def _decode(datasets: list[SpeakerDataset], size: int) -> None:
    """Every picture once, as after the first epoch."""
    for dataset in datasets:
        for frame in dataset.frames("train"):
            for kind, side in (("head", size), ("mask", size), ("face", None)):
                dataset.picture(frame, kind, side)


def _forever(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def _samples_per_core(prepared: run.Prepared, rows: np.ndarray) -> float:
    """Samples per second of processor time, all threads counted."""
    batches = prepared.training.batches(0, rows)
    next(batches)
    began = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * len(rows) / (time.process_time() - began)


# ---- what does one program for several members save?


def bench_population(
    config: ConfigDict, datasets: list[SpeakerDataset], stage: str, members: int
) -> Figures:
    """Members that differ in rate (and in seed): one program for all, against separate runs.

    Compilation is not counted. On a CPU the devices are as many as JAX was told to simulate.

    Returns:
        alone/step_seconds of one run; rates/ and seeds/step_seconds of all members, which differ
        in rate alone, so that they share their batches, or in seed, too; …/share: of the time of
        separate runs that the population takes; devices.
    """
    devices = jax.devices()[: math.gcd(members, len(jax.devices()))]
    figures: Figures = {"members": members, "devices": len(devices)}
    _decode(datasets, config.size)
    with tempfile.TemporaryDirectory() as folder:
        single = learner_of(_member(config, stage, 0, 0), datasets, Path(folder) / "single")
        prepared = single.prepare(stage)
        clock = _timed_training(prepared, prepared.training.batches, Path(folder) / "alone")
        figures["alone/step_seconds"] = one = clock.seconds_a_step()
        for kind, seeds in (("rates", 1), ("seeds", members)):
            several = [
                learner_of(
                    _member(config, stage, number, number % seeds),
                    datasets,
                    Path(folder) / f"{kind}{number}",
                )
                for number in range(members)
            ]
            seconds = _timed_population(several, stage, Path(folder) / kind, devices)
            figures[f"{kind}/step_seconds"] = seconds
            figures[f"{kind}/share"] = seconds / (members * one)
    return figures


def _timed_population(
    learners: list[run.Learner], stage: str, folder: Path, devices: list[jax.Device]
) -> float:
    stage_of, trainings = population.together(learners, stage)
    clock = Clock()
    timed = clock.over(trainings[0].batches)
    trainings = [
        replace(t, batches=timed) if t.batches is trainings[0].batches else t for t in trainings
    ]
    mesh = sharding.make_mesh({"population": -1, "data": 1, "model": 1}, devices)
    trainer.run_population(stage_of, trainings, folder, mesh, log=lambda line: None)
    return clock.seconds_a_step()


def _member(config: ConfigDict, stage: str, number: int, seed: int) -> ConfigDict:
    rate = config.stages[stage].learning_rate * (1 + 0.1 * number)
    numbers = {"seed": seed, f"stages.{stage}.learning_rate": rate}
    return population.with_numbers(_short(config, stage, MANY), numbers)


# ---- how soon is the first step?


def bench_startup(config: str, overrides: list[str], data: str, stage: str) -> Figures:
    """`t3d train`, from the command to its first step, twice in one run's folder.

    The first start finds no compiled programs and no arrays of earlier networks, the second one,
    as after a preemption before the first save, those that the first has left.

    Returns:
        first_start_seconds, second_start_seconds, times_sooner.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        made = configs.load_config(config, overrides)
        untrained_run(made, run.open_datasets(data), workdir)
        command = [sys.executable, "-m", "t3d.cli", "train", "--config", config, "--data", data]
        command += ["--workdir", str(workdir), "--stage", stage]
        command += [f"--config.{text}" for text in overrides]
        command += [f"--config.stages.{stage}.steps=1"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs"}
        seconds = []
        for _ in range(2):
            for made_before in ("params", "checkpoints"):
                shutil.rmtree(workdir / made_before / stage, ignore_errors=True)
            seconds.append(_seconds_to_first_step(command, environment, f"{stage}: step 1/1"))
    first, second = seconds
    return {
        "first_start_seconds": first,
        "second_start_seconds": second,
        "times_sooner": first / second,
    }


def _seconds_to_first_step(command: list[str], environment: dict, line: str) -> float:
    began, seconds, said = time.perf_counter(), None, []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for text in process.stdout:
            said.append(text)
            if text.startswith(line) and seconds is None:
                seconds = time.perf_counter() - began
    if process.returncode or seconds is None:
        raise UserError(f"t3d bench startup: the training failed: {said[-1].strip()}")
    return seconds


# ---- the command


def bench_command(args) -> None:
    """`t3d bench data|population|startup|prior|speech|nerf`."""
    if args.what not in ("prior", "nerf") and not args.data:
        raise UserError(f"bench {args.what}: give --data DIR, a dataset made by t3d prepare")
    if args.what != "prior" and args.prepare:
        raise UserError(f"bench {args.what}: --prepare goes with bench prior")
    if args.what not in ("prior", "nerf") and args.runs:
        raise UserError(f"bench {args.what}: --run goes with bench prior and bench nerf")
    if args.what != "speech" and (args.voice or args.out):
        raise UserError(f"bench {args.what}: --voice and --out go with bench speech")
    chosen = [args.stage] if args.stage else list(STAGES) if args.what == "data" else ["nerf"]
    unknown = [name for name in chosen if name not in STAGES]
    if unknown:
        raise UserError(f"--stage {unknown[0]}: no such stage; there are {', '.join(STAGES)}")
    if args.what == "prior":
        datasets = [SpeakerDataset(path) for path in (args.data or "").split(",") if path]
        figures = bench_prior(datasets, _encoders(args.runs, datasets), args.prepare)
    elif args.what == "nerf" and args.runs:
        if args.overrides or args.data:
            raise UserError(
                "bench nerf --run: takes runs as they are, without --config.KEY or --data"
            )
        figures = bench_runs([run.open_run(path, ["nerf"]) for path in args.runs.split(",")])
    elif args.what == "nerf":
        figures = bench_nerf(args.overrides)
    elif args.what == "speech":
        figures = _bench_speech(args)
    elif args.what == "startup":
        figures = bench_startup(args.config, args.overrides, args.data, chosen[0])
    else:
        if args.what == "population":  # on a CPU a device for each core
            jax.config.update("jax_num_cpu_devices", os.cpu_count())
        config = configs.load_config(args.config, args.overrides)
        datasets = run.open_datasets(args.data)
        if args.what == "data":
            figures = bench_data(config, datasets, chosen, _read_plan(args.plan))
        else:
            figures = bench_population(config, datasets, chosen[0], args.members)
    title = args.what if args.what in ("prior", "nerf") else f"{args.what}: {args.config}"
    _show(f"t3d bench {title}", figures)
    if args.json:
        text = json.dumps(figures, indent=1) + "\n"
        write_atomically(Path(args.json), lambda path: path.write_text(text))


def _bench_speech(args) -> Figures:
    if not args.out:
        raise UserError("bench speech: give --out DIR, a folder for the six runs that it trains")
    dataset = SpeakerDataset(args.data)
    seconds = dataset.num_frames / video.FPS
    if seconds < LONG_ENOUGH:
        raise UserError(
            f"{args.data}: lasts {seconds:.0f} s; six blocks to train and to test on want "
            f"{LONG_ENOUGH} s or more"
        )
    voice = video.read_audio(args.voice) if args.voice else None
    config = configs.load_config(args.config, args.overrides)
    if config.features.file:
        raise UserError("bench speech: adds noise to sound; take it without --config.features.file")
    last = args.stage or "speech"
    if last not in ("lip", "speech"):
        raise UserError(f"bench speech: --stage {last}: must be lip or speech, the last to train")
    return bench_speech(config, dataset, Path(args.out), voice, last_stage=last)


def _encoders(paths: str | None, datasets: list[SpeakerDataset]) -> list[run.Run]:
    """The runs, one for each dataset; a single one reads them all."""
    if paths is None:
        return []
    folders = paths.split(",")
    if len(folders) == 1:
        folders *= len(datasets)
    if not datasets or len(folders) != len(datasets):
        raise UserError(
            f"--run {paths}: give one run, or one for each dataset of --data "
            f"({len(datasets)} given)"
        )
    runs = [run.open_run(folder, ["prior"]) for folder in folders]
    for opened, data in zip(runs, datasets):
        learned = opened.speakers[0].prior
        if learned != data.meta["prior"]:
            raise UserError(
                f"--run {opened.workdir}: its codes are of {learned}, those of {data.path} of "
                f"{data.meta['prior']}; give a dataset prepared with --prior {learned}"
            )
    return runs


def _read_plan(path: str | None) -> dict | None:
    if path is None:
        return None
    try:
        plan = json.loads(Path(path).read_text())
        return {key: plan[key] for key in ("stage", "global_batch", "step_seconds")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--plan {path}: is not what t3d plan --json writes ({error})") from error


def _show(title: str, figures: Figures) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value) if isinstance(value, int) else f"{value:.4g}")
    Console().print(table)
