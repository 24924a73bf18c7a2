"""Several processes as one job: preempted, killed, failing; each time the job ends clearly and the
same command goes on, to the same numbers."""

import shutil
import signal
import time

import numpy as np
import pytest

from t3d import checkpoint, hosts

STEPS, EVERY = 120, 10
SIXTY = 60  # seconds within which the others must end when a host is lost


@pytest.fixture
def train(start, port, data):
    """Starts `t3d train` of the stage au on so many hosts of one device each."""

    def launch(workdir, world: int, **overrides):
        command = ["-m", "t3d.cli", "train", "--config", "tiny", "--stage", "au"]
        command += ["--data", data, "--workdir", workdir]
        settings = {"steps": STEPS, "save_every": EVERY, "validate_every": 100} | overrides
        command += [f"--config.stages.au.{key}={value}" for key, value in settings.items()]
        if world == 1:
            return [start(command)]
        job = ["--coordinator", f"127.0.0.1:{port}", "--processes", world]
        return [start([*command, *job, "--process", number]) for number in range(world)]

    return launch


def saved(workdir) -> int:
    """The newest step on disk."""
    steps = [p for p in (workdir / "checkpoints" / "au").glob("*") if p.name.isdigit()]
    return max((int(p.name) for p in steps), default=0)


def wait_until_saved(workdir, step, processes):
    deadline = time.monotonic() + 120
    while saved(workdir) < step and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    assert saved(workdir) >= step


def outcome(workdir):
    return checkpoint.named_leaves(checkpoint.load_params(workdir / "params" / "au"))


def test_lost_preempted_and_resumed_on_other_hosts_to_the_same_numbers(train, end, tmp_path):
    whole, parts, fewer = (tmp_path / name for name in ("whole", "parts", "fewer"))
    assert [end(process)[0] for process in train(whole, 2)] == [0, 0]

    # A host is killed: the other one says so and ends; nothing is lost but the last steps.
    first, second = train(parts, 2)
    wait_until_saved(parts, EVERY, [first, second])
    _kill_with_children(second)
    lost = time.monotonic()
    code, output = end(first)
    assert code == hosts.LOST and time.monotonic() - lost < SIXTY, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("t3d: error: ") and "host" in last and "goes on" in last, output
    before = saved(parts)

    # One host is told to stop: both save the same step.
    first, second = train(parts, 2)
    wait_until_saved(parts, before + EVERY, [first, second])
    second.send_signal(signal.SIGTERM)
    ends = [end(process) for process in (first, second)]
    assert [code for code, _ in ends] == [143, 143], ends
    said = ends[0][1]
    assert f"goes on from step {before}" in said and "stopped by SIGTERM" in said, said
    stopped = saved(parts)
    assert f"at step {stopped} of {STEPS}; saved" in said
    shutil.copytree(parts, fewer)

    assert [end(process)[0] for process in train(parts, 2)] == [0, 0]
    for name, value in outcome(whole).items():
        np.testing.assert_array_equal(outcome(parts)[name], value)

    # The rest on one host instead of two.
    ((code, output),) = [end(process) for process in train(fewer, 1)]
    assert code == 0 and f"goes on from step {stopped}" in output, output
    entries = [checkpoint.read_run(path)["stages"]["au"] for path in (whole, fewer)]
    for key in ("loss_first", "loss_last", "validation"):
        assert entries[1][key] == pytest.approx(entries[0][key], rel=1e-4)


def _kill_with_children(process):
    import psutil

    watcher = psutil.Process(process.pid)
    for each in [*watcher.children(recursive=True), watcher]:
        each.kill()
    process.wait()


def test_what_ends_one_host_is_said_by_the_others(start, end, port, data, tmp_path):
    def host(number, folder):
        return start(
            ["-m", "t3d.cli", "train", "--config", "tiny", "--data", folder]
            + ["--workdir", tmp_path / "run", "--coordinator", f"127.0.0.1:{port}"]
            + ["--processes", 2, "--process", number]
        )

    first, second = host(0, data), host(1, tmp_path / "elsewhere")
    began = time.monotonic()
    (code, output), (other, told) = end(first), end(second)
    assert other == hosts.FAILED and "elsewhere: no such dataset" in told
    assert code == hosts.FAILED and time.monotonic() - began < SIXTY, output  # do not start again
    last = output.strip().splitlines()[-1]
    assert "host 1 failed" in last and "elsewhere: no such dataset" in last


def test_a_job_of_one_host_is_stopped_before_its_first_step_too(start, end, data, port, tmp_path):
    """SIGTERM while the first batch is made, that is before the loop asks for it."""
    command = ["-m", "t3d.cli", "train", "--config", "tiny", "--stage", "au", "--data", data]
    command += ["--workdir", tmp_path, "--config.stages.au.steps=100000"]
    job = ["--coordinator", f"127.0.0.1:{port}", "--processes", 1, "--process", 0]
    process = start([*command, *job])
    deadline = time.monotonic() + 60
    while not (tmp_path / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 143 and "stopped by SIGTERM" in output, output


@pytest.mark.parametrize(
    "options, words",
    [
        (["--distributed"], "--coordinator HOST:PORT --processes N --process K"),
        (["--coordinator", "here:1"], "belong together"),
        (["--coordinator", "here:1", "--processes", 2, "--process", 2], "give 0 to 1"),
    ],
)
def test_a_job_that_cannot_be_is_one_line(start, end, data, tmp_path, options, words):
    command = ["-m", "t3d.cli", "train", "--config", "tiny", "--data", data]
    code, output = end(start([*command, "--workdir", tmp_path / "run", *options]))
    assert code == 2 and words in output.strip().splitlines()[-1], output
    assert "Traceback" not in output
