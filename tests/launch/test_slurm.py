"""launch/slurm.sbatch, run by a stand-in srun that starts both nodes' tasks on this machine."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t3d import checkpoint, cli

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
SRUN = Path(__file__).with_name("srun.py")
T3D = f'exec "{sys.executable}" -m t3d.cli "$@"'
WAIT_FOR_SIGTERM = """
trap 'exit 143' TERM
echo $$ > "$NOTES/task_$SLURM_PROCID"
while :; do sleep 0.1; done
"""


def _free_job_id() -> int:
    """A job's number for which the port that JAX derives from it is free."""
    while True:
        number = random.randrange(4096, 8192)
        with socket.socket() as trial:
            if trial.connect_ex(("localhost", 61440 + number % 4096)) != 0:
                return number


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm's batch step on two nodes: job(arguments, t3d=…, **variables)."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def tool(name: str, text: str) -> None:
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    tool("srun", f'exec "{sys.executable}" "{SRUN}" "$@"')
    tool("scontrol", 'echo "$@" >> "$NOTES/scontrol"')
    (tools / "activate").write_text(f'PATH="{tools}:$PATH"\n')

    def start(*arguments: str, t3d: str = T3D, **variables: str) -> subprocess.Popen:
        tool("t3d", t3d)
        told = dict(SLURM_JOB_ID=str(_free_job_id()), SLURM_NTASKS="2", NOTES=str(tmp_path))
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=os.environ | told | {"T3D_VENV": str(tmp_path)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def _requeued(tmp_path: Path) -> bool:
    return (tmp_path / "scontrol").exists()


def _tasks(tmp_path: Path) -> list[int]:
    """The process ids of both tasks, once they are ready for SIGTERM."""
    paths = [tmp_path / f"task_{k}" for k in range(2)]
    while not all(path.exists() and path.read_text().strip() for path in paths):
        time.sleep(0.05)
    return [int(path.read_text()) for path in paths]


@pytest.mark.parametrize(
    "code, restarts, again",
    [(0, 0, False), (2, 0, False), (143, 0, True), (143, 20, True)]
    + [(75, 0, True), (1, 19, True), (75, 20, False), (134, 20, False)],
)
def test_a_job_is_queued_again_only_where_that_helps(job, tmp_path, code, restarts, again):
    ended = job(t3d=f"exit {code}", SLURM_RESTART_COUNT=str(restarts))
    said = ended.communicate(timeout=30)[0]
    assert ended.returncode == code, said
    assert _requeued(tmp_path) == again, said
    assert ("queued again" in said) == (code not in (0, 2))


def test_sigterm_to_the_tasks_queues_the_job_again(job, tmp_path):
    running = job(t3d=WAIT_FOR_SIGTERM)
    for task in _tasks(tmp_path):
        os.kill(task, signal.SIGTERM)
    said = running.communicate(timeout=30)[0]
    assert running.returncode == 143 and _requeued(tmp_path), said


def test_a_cancelled_job_lets_its_tasks_save_and_is_not_queued_again(job, tmp_path):
    running = job(t3d=WAIT_FOR_SIGTERM)
    _tasks(tmp_path)
    os.killpg(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=30)[0]
    assert running.returncode == 143 and not _requeued(tmp_path), said


def test_each_process_sees_all_gpus_of_its_node(job):
    shown = job(t3d='echo "devices $JAX_LOCAL_DEVICE_IDS"', SLURM_GPUS_ON_NODE="4")
    assert shown.communicate(timeout=30)[0].split("\n")[:2] == ["devices 0,1,2,3"] * 2


def test_the_dry_run_prints_the_command(job):
    shown = job("--data", "a b", "--workdir", "r", T3D_DRY_RUN="1", SLURM_CPUS_PER_TASK="8")
    assert shown.communicate(timeout=30)[0] == (
        "srun --kill-on-bad-exit=0 --cpus-per-task=8 t3d train --distributed "
        "--data a\\ b --workdir r \n"
    )


def _training(dataset: Path, workdir: Path, steps: int) -> list[str]:
    where = ["--config", "tiny", "--data", str(dataset), "--workdir", str(workdir)]
    return [*where, "--stage", "au", f"--config.stages.au.steps={steps}"]


@pytest.mark.full
def test_two_hosts_find_each_other_and_train_as_one(job, prepared_speaker, tmp_path):
    both = job(*_training(prepared_speaker, tmp_path / "both", 4), JAX_PLATFORMS="cpu")
    said = both.communicate(timeout=300)[0]
    assert both.returncode == 0, said
    assert cli.main(["train", *_training(prepared_speaker, tmp_path / "alone", 4)]) == 0
    entries = [checkpoint.read_run(tmp_path / run)["stages"]["au"] for run in ("both", "alone")]
    assert entries[0]["steps"] == 4
    assert entries[0]["loss_last"] == pytest.approx(entries[1]["loss_last"], rel=1e-5)
    assert said.count("step 4/4") == 1, said  # the first host speaks, the other does not


@pytest.mark.full
def test_a_stopped_job_goes_on_when_it_is_queued_again(job, prepared_speaker, tmp_path):
    command = _training(prepared_speaker, tmp_path / "run", 200)
    noted = f'echo $$ > "$NOTES/task_$SLURM_PROCID"\n{T3D}'
    running = job(*command, t3d=noted, JAX_PLATFORMS="cpu")
    while "au: step" not in (line := running.stdout.readline()):
        assert line, "it ended before its first step"
    os.kill(_tasks(tmp_path)[1], signal.SIGTERM)
    said = running.communicate(timeout=300)[0]
    assert running.returncode == 143 and _requeued(tmp_path), said
    again = job(*command, JAX_PLATFORMS="cpu")
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and "goes on from step" in said, said
