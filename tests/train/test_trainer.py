"""The loop: the same numbers stopped or not, no NaN in the parameters, no time of its own."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from t3d import checkpoint
from t3d.errors import UserError
from t3d.train import sharding, trainer, writers

ROOT = Path(__file__).resolve().parents[2]
TRUTH = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)


def config(**changes):
    base = dict(steps=20, batch_size=8, learning_rate=0.1, warmup_steps=2)
    return ConfigDict(base | dict(validate_every=5, save_every=5) | changes)


def toy_init(key, batch):
    return {"w": 0.1 * jax.random.normal(key, (batch["x"].shape[-1], batch["y"].shape[-1]))}


def toy_loss(params, frozen, batch, key, step):
    """A regression whose inputs are noisy, so that the key matters."""
    noise = 0.05 * jax.random.normal(key, batch["x"].shape)
    error = jnp.square((batch["x"] + noise) @ params["w"] + frozen["before"]["b"] - batch["y"])
    return error.mean(), {"error_max": error.max(), "found": {"errors": error}, "step": step}


def toy_batch(step, seed=0):
    x = np.random.default_rng((seed, step)).normal(size=(8, 4)).astype(np.float32)
    frame = 8 * step + np.arange(8)
    return {"x": x, "y": x @ TRUTH, "frame": frame, "speaker": np.zeros(8, np.int32)}


def toy_batches(start):
    while True:
        yield toy_batch(start)
        start += 1


def toy_validation():
    return [toy_batch(n, seed=1) for n in range(2)]


def toy_stage(loss=toy_loss, **options):
    changes = options.pop("config", {})
    return trainer.Stage("toy", ("x", "y"), toy_init, loss, config(**changes), **options)


def train(stage, workdir, batches=toy_batches, validation=toy_validation, log=None, frozen=None):
    log = log or (lambda line: None)
    return trainer.run(stage, training(workdir, batches, validation, frozen), log=log)


def training(workdir, batches=toy_batches, validation=toy_validation, frozen=None, seed=3):
    def some(batch, rows):
        return {name: value[rows] for name, value in batch.items()}

    return trainer.Training(
        frozen or {"before": {"b": np.zeros(3, np.float32)}},
        lambda step, rows: (some(batch, rows) for batch in batches(step)),
        lambda rows: [some(batch, rows) for batch in validation()],
        workdir,
        seed,
    )


def stop_before(last):
    def batches(start):
        for _, batch in zip(range(start, last), toy_batches(start)):
            yield batch
        raise KeyError("stopped")

    return batches


def entry(workdir):
    return checkpoint.read_run(workdir)["stages"]["toy"]


def test_loss_falls_and_the_outcome_is_on_disk(tmp_path):
    params = train(toy_stage(config={"steps": 100, "save_every": 50}), tmp_path)
    record = entry(tmp_path)
    assert record["loss_last"] < 0.1 * record["loss_first"]
    assert record["steps"] == 100 and record["skipped"] == 0 and record["parameters"] == 12
    assert record["sha256"] == checkpoint.params_sha256(params)
    np.testing.assert_allclose(params["w"], TRUTH, atol=0.15)
    loaded = checkpoint.load_params(tmp_path / "params" / "toy")
    np.testing.assert_array_equal(loaded["w"], params["w"])
    assert any((tmp_path / "logs" / "toy").glob("events*"))


@pytest.mark.parametrize(
    "stop_at, options", [(5, {}), (13, {"select": "best", "config": {"ema": 0.9}})]
)
def test_stopped_and_resumed_equals_not_stopped_to_the_bit(tmp_path, stop_at, options):
    whole = train(toy_stage(**options), tmp_path / "whole")
    with pytest.raises(KeyError):
        train(toy_stage(**options), tmp_path / "parts", batches=stop_before(stop_at))
    lines = []
    parts = train(toy_stage(**options), tmp_path / "parts", log=lines.append)
    assert f"goes on from step {stop_at // 5 * 5}" in lines[0]
    np.testing.assert_array_equal(whole["w"], parts["w"])
    first, second = entry(tmp_path / "whole"), entry(tmp_path / "parts")
    assert first.pop("seconds") >= 0 and second.pop("seconds") >= 0
    assert first == second


def test_two_seeds_and_two_stages_draw_other_numbers():
    keys = {
        tuple(np.asarray(jax.random.key_data(trainer.stage_key(seed, name))))
        for seed in range(3)
        for name in ("sync", "lip")
    }
    assert len(keys) == 6


def test_finished_stage_is_not_trained_again(tmp_path):
    first = train(toy_stage(), tmp_path)
    lines = []
    again = train(toy_stage(), tmp_path, batches=stop_before(0), log=lines.append)
    np.testing.assert_array_equal(first["w"], again["w"])
    assert lines == ["toy: is done (20 steps)"]


def test_finished_stage_with_other_settings_says_so(tmp_path):
    train(toy_stage(), tmp_path)
    lines = []
    other = {"before": {"b": np.ones(3, np.float32)}}
    train(toy_stage(config={"learning_rate": 0.2}), tmp_path, log=lines.append, frozen=other)
    assert "config.learning_rate, frozen.before changed since" in lines[0]


def test_more_steps_go_on_from_the_end(tmp_path):
    train(toy_stage(), tmp_path)
    lines = []
    train(toy_stage(config={"steps": 30}), tmp_path, log=lines.append)
    assert lines[0] == "toy: goes on from step 20"
    assert entry(tmp_path)["steps"] == 30


def test_the_last_steps_of_a_shorter_schedule_are_not_those_of_a_longer_one(tmp_path):
    train(toy_stage(), tmp_path)
    short = entry(tmp_path)["loss_last"]
    train(toy_stage(config={"steps": 200, "save_every": 0}), tmp_path)
    assert entry(tmp_path)["loss_last"] < 0.1 * short


def made_of(workdir, **things):
    return replace(training(workdir), made_of=things)


def test_a_state_of_other_data_or_losses_is_not_gone_on_with(tmp_path):
    with pytest.raises(KeyError):
        stopped = replace(made_of(tmp_path, data=["a"], weight=1.0), batches=stopping(13))
        trainer.run(toy_stage(), stopped, log=lambda line: None)
    for name, value in (("data", ["b"]), ("weight", 0.5)):
        other = made_of(tmp_path, **dict(data=["a"], weight=1.0) | {name: value})
        with pytest.raises(UserError, match=rf"state of step 10 .*\({name} changed.*delete that"):
            trainer.run(toy_stage(), other, log=lambda line: None)
    lines = []
    faster = toy_stage(config={"learning_rate": 0.2})  # that may change on the way
    trainer.run(faster, made_of(tmp_path, data=["a"], weight=1.0), log=lines.append)
    assert "goes on from step 10, with another config.learning_rate" in lines[0]
    shutil.rmtree(tmp_path / "params")  # what is left is the state of the last step
    with pytest.raises(UserError, match="state of step 20 .*config.learning_rate changed"):
        trainer.run(toy_stage(), made_of(tmp_path, data=["a"], weight=1.0), log=print)


def stopping(last):
    rows = training(None).batches
    return lambda step, own: itertools.chain(
        itertools.islice(rows(step, own), max(0, last - step)), _stopped()
    )


def _stopped():
    raise KeyError("stopped")
    yield


def test_a_member_whose_loss_is_not_finite_is_not_finished_and_the_others_are(tmp_path):
    good = training(tmp_path / "good")
    bad = training(tmp_path / "bad", poisoned(range(5, 99)), seed=4)
    lines = []
    params = trainer.run_population(
        lambda _: toy_stage(), [good, bad], tmp_path / "all", log=lines.append
    )
    assert np.isfinite(params[0]["w"]).all() and params[1] is None
    assert entry(tmp_path / "good")["steps"] == 20
    assert "stages" not in checkpoint.read_run(tmp_path / "bad")
    assert any("member 1: the loss was not finite" in line for line in lines)
    for again in range(2):  # alone, and with what is left of it: no state of it is kept
        made = [bad, training(tmp_path / "other", poisoned(range(99)), seed=5)]
        rate = 0.1 / (1 + again)
        lost = trainer.run_population(
            lambda _, rate=rate: toy_stage(config={"learning_rate": rate}),
            made,
            tmp_path / "lost",
            log=lines.append,
        )
        assert lost == [None, None] and not (tmp_path / "lost" / "toy").exists()


def test_a_population_goes_on_though_it_was_padded_for_another_mesh(tmp_path, monkeypatch):
    names = ("a", "b", "c")

    def members(folder, batches=toy_batches):
        return [training(folder / n, batches, seed=k) for k, n in enumerate(names)]

    def run(folder, batches=toy_batches):
        return trainer.run_population(
            lambda _: toy_stage(), members(folder, batches), folder / "all", log=lambda line: None
        )

    whole = run(tmp_path / "whole")
    for pad, stop in ((4, 7), (3, 13), (5, 99)):  # devices come and go
        if pad == 5:  # and the newest state, which was padded otherwise than the one before it
            for file in (tmp_path / "parts" / "all" / "10").rglob("d/*"):
                file.write_bytes(file.read_bytes()[:20])
        monkeypatch.setattr(
            trainer, "padded", lambda some, _, pad=pad: some + some[-1:] * (pad - len(some))
        )
        if stop < 99:
            with pytest.raises(KeyError):
                run(tmp_path / "parts", stop_before(stop))
        else:
            parts = run(tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one["w"], other["w"])


def test_step_is_traced_once(tmp_path):
    traces = []

    def counted(*args):
        traces.append(1)
        return toy_loss(*args)

    train(toy_stage(counted), tmp_path, validation=list)
    assert len(traces) == 1


def test_parameters_are_donated(tmp_path):
    mesh = sharding.make_mesh()
    alone = [training(tmp_path)]
    settings = [{"seed": 3, "config": {}, "frozen": {}}]
    with sharding.on(mesh), checkpoint.StateStore(tmp_path / "states") as store:
        made = (lambda _: toy_stage(), alone, 1, False, settings, store, mesh, (), print)
        loop = trainer._Loop(*made)
        loop.start()
        before = loop.state
        loop.train_step(loop.given, before, loop.first, loop.key)
    assert before.params["w"].is_deleted()


def poisoned(steps):
    def batches(start):
        for step, batch in enumerate(toy_batches(start), start):
            yield batch | {"x": batch["x"] * np.nan} if step in steps else batch

    return batches


def test_step_that_is_not_finite_changes_nothing_and_names_its_batch(tmp_path):
    lines, seen = [], {}

    def after(params, aux, key):
        jax.debug.callback(lambda s, w: seen.update({int(s): w}), aux["step"], params["w"])
        return params

    params = train(
        toy_stage(after_step=after), tmp_path, batches=poisoned({4, 9}), log=lines.append
    )
    assert np.isfinite(params["w"]).all()
    bad = [line for line in lines if "not finite" in line]
    assert [line.split(":")[1] for line in bad] == [" step 4", " step 9"]
    assert "0:32, 0:33" in bad[0]
    assert entry(tmp_path)["skipped"] == 2
    assert np.isnan(seen[4]).all() and np.isfinite(seen[5]).all()


def test_gradient_that_is_not_finite_is_skipped_too(tmp_path):
    def loss(params, frozen, batch, key, step):
        return jnp.sqrt(jnp.sum(jnp.square(batch["x"] @ params["w"]))), {}

    def batches(start):
        for step, batch in enumerate(toy_batches(start), start):
            yield batch | {"x": batch["x"] * (step != 3)}

    params = train(toy_stage(loss), tmp_path, batches=batches)
    assert np.isfinite(params["w"]).all()
    assert entry(tmp_path)["skipped"] == 1


def test_loss_that_stays_not_finite_stops_with_a_user_error(tmp_path):
    bad = set(range(6, 100))
    stage = toy_stage(config={"steps": 100, "save_every": 50})
    with pytest.raises(UserError, match=r"10 steps in a row .*step 15.*0:120") as error:
        train(stage, tmp_path, batches=poisoned(bad))
    assert "\n" not in str(error.value)
    params = train(stage, tmp_path)
    assert np.isfinite(params["w"]).all()


def test_best_parameters_are_those_of_the_lowest_validation_loss(tmp_path):
    """The target moves away after step 10, so that the loss ends above its lowest point."""

    def loss(params, frozen, batch, key, step):
        drift = jnp.where(step > 10, 1.0, 0.0)
        return jnp.square(params["w"] - TRUTH - 5.0 * drift).mean(), {}

    def validation():
        return [toy_batch(0)]

    lines = []
    stage = toy_stage(loss, select="best", config={"validate_every": 2, "learning_rate": 0.3})
    train(stage, tmp_path, validation=validation, log=lines.append)
    record = entry(tmp_path)
    assert record["selected_step"] <= 10
    assert record["validation"] < record["loss_last"]


def test_without_validation_batches_the_last_parameters_are_kept(tmp_path):
    best = train(toy_stage(select="best"), tmp_path / "best", validation=list)
    last = train(toy_stage(), tmp_path / "last", validation=list)
    np.testing.assert_array_equal(best["w"], last["w"])
    assert entry(tmp_path / "best")["validation"] is None


def test_averaged_parameters_follow_the_closed_form():
    stage = toy_stage(config={"ema": 0.9, "learning_rate": 0.05})
    key = trainer.stage_key(0, "toy")
    frozen = {"before": {"b": np.zeros(3, np.float32)}}
    step_once = jax.jit(partial(trainer.train_step, stage))
    state = trainer.init_state(stage, key, toy_batch(0))
    expected = np.asarray(state.params["w"])
    for step in range(6):
        state, _ = step_once(state, frozen, toy_batch(step), key)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-5)
    assert trainer.current_params(state) is state.ema


def test_after_step_gets_the_parameters_the_aux_and_its_own_key(tmp_path):
    def after(params, aux, key):
        assert aux["found"]["errors"].shape == (8, 3)
        return {"w": jnp.zeros_like(params["w"]) + jax.random.uniform(key)}

    params = train(toy_stage(after_step=after), tmp_path)
    assert np.ptp(params["w"]) == 0 and 0 < params["w"][0, 0] < 1


def test_images_are_written_at_validation(tmp_path):
    def images(params, frozen, batch):
        return {"grid": jnp.zeros((2, 8, 8, 3)) + params["w"].mean()}

    train(toy_stage(images=images), tmp_path)
    events = b"".join(f.read_bytes() for f in (tmp_path / "logs" / "toy").iterdir())
    assert events.count(b"toy/grid") >= 4 and b"toy/validation_loss" in events


def test_damaged_newest_checkpoint_falls_back_and_ends_the_same(tmp_path):
    whole = train(toy_stage(), tmp_path / "whole")
    with pytest.raises(KeyError):
        train(toy_stage(), tmp_path / "parts", batches=stop_before(13))
    newest = tmp_path / "parts" / "checkpoints" / "toy" / "10"
    for file in newest.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    lines = []
    parts = train(toy_stage(), tmp_path / "parts", log=lines.append)
    assert "toy/10: this checkpoint is damaged" in lines[0]
    assert "goes on from step 5" in lines[1]
    np.testing.assert_array_equal(whole["w"], parts["w"])


def test_checkpoint_of_another_shape_is_a_user_error(tmp_path):
    with pytest.raises(KeyError):
        train(toy_stage(), tmp_path, batches=stop_before(8))

    def wider(start):
        return ({**batch, "x": np.tile(batch["x"], 2)} for batch in toy_batches(start))

    with pytest.raises(UserError, match="made with another config .*params/w"):
        train(toy_stage(), tmp_path, batches=wider)


def test_workdir_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        train(toy_stage(), tmp_path / "file" / "run")


LONG = {"steps": 400, "save_every": 20, "validate_every": 100}
CHILD = """
import sys, time
import test_trainer as t

def slow(start):
    for batch in t.toy_batches(start):
        time.sleep(0.01)
        yield batch

try:
    log = lambda line: print(line, flush=True)
    t.train(t.toy_stage(config=t.LONG), sys.argv[1], batches=slow, log=log)
except SystemExit as stop:
    sys.exit(stop.code)
"""


def launch(workdir):
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "default",
    }
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(workdir)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_exits_with_its_code_and_the_run_goes_on(tmp_path, number, code):
    process = launch(tmp_path)
    saved = tmp_path / "checkpoints" / "toy" / "20"
    deadline = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, output
    last = output.strip().splitlines()[-1]
    assert f"stopped by {number.name}" in last and "Traceback" not in output
    step = int(last.split("at step ")[1].split(" of")[0])
    assert 20 <= step < 400
    lines = []
    parts = train(toy_stage(config=LONG), tmp_path, log=lines.append)
    assert f"goes on from step {step}" in lines[0]
    whole = train(toy_stage(config=LONG), tmp_path / "whole")
    np.testing.assert_array_equal(whole["w"], parts["w"])


def test_loop_costs_less_than_a_millisecond_a_step_beyond_the_step(tmp_path):
    stage = toy_stage(config={"steps": 2000, "save_every": 0, "validate_every": 0})
    times = []

    def timed(start):
        batch = toy_batch(0)
        while True:
            times.append(time.perf_counter())
            yield batch

    train(stage, tmp_path, batches=timed, validation=list)
    assert np.median(np.diff(times[500:])) < 1e-3


def test_record_is_plain_json(tmp_path):
    train(toy_stage(), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    settings = record["stages"]["toy"]["settings"]
    assert settings["seed"] == 3 and set(settings["frozen"]) == {"before"}


def test_lines_of_progress_tell_step_loss_and_time_left(tmp_path, monkeypatch):
    for wait in ("LINES_EVERY", "SCALARS_EVERY", "LAG"):
        monkeypatch.setattr(writers, wait, 0)
    lines = []
    train(toy_stage(), tmp_path, log=lines.append)
    assert lines[-1].startswith("toy: step 20/20, loss ") and lines[-1].endswith(", 0:00 left")
    assert re.fullmatch(r"toy: step 1/20, loss [\d.]+, compiled in [\d.e-]+ s", lines[0])
    assert "s a step" in lines[1] and "compiled" not in lines[1]
