"""Runs of several devices and several processes on this machine's CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def _start(command: list, devices: int = 1, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def start():
    """Starts a Python child with so many simulated devices: (command, devices, **environment)."""
    return _start


@pytest.fixture(scope="session")
def end():
    """Waits for a child: its exit code and what it printed."""

    def wait(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            pytest.fail(f"did not end within {timeout} s:\n{output}")
        return process.returncode, output

    return wait


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def ready(untrained) -> Path:
    """A run whose stages all have random parameters on disk, so that any stage can be trained."""
    return untrained.workdir


@pytest.fixture(scope="session")
def data(ready) -> Path:
    """The dataset of that run."""
    return Path(json.loads((ready / "run.json").read_text())["data"][0]["path"])
