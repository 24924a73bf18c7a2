"""A run survives: twenty kills, a full disk, another number of devices."""

import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from t3d import checkpoint
from t3d.errors import UserError

KILLS = 20
STEPS = 3000  # more than twenty lives have time for
TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="module")
def toy():
    import importlib.util

    spec = importlib.util.spec_from_file_location("toy", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved(workdir) -> int:
    states = workdir / "checkpoints" / "toy"
    return max((int(p.name) for p in states.glob("*") if p.name.isdigit()), default=0)


def wait_until_saved(workdir, step, process):
    deadline = time.monotonic() + 60
    while saved(workdir) < step and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert saved(workdir) >= step


def test_twenty_kills_lose_no_more_than_the_steps_since_the_last_save(start, toy, tmp_path):
    chance = random.Random(0)
    for life in range(KILLS):
        before = saved(tmp_path)
        process = start([TOY, tmp_path, STEPS, 0.01, 1, 0])
        process.stdout.readline()
        lived = life % 5 < 4  # every fifth does not see its first save
        if lived:
            wait_until_saved(tmp_path, before + 1, process)
        time.sleep(chance.uniform(0, 0.5))  # anywhere: before a save, in one, after it
        process.kill()
        output, _ = process.communicate()
        assert saved(tmp_path) >= before
        assert "damaged" not in output
        told = [line for line in output.splitlines() if "goes on from step" in line]
        assert all(line.endswith(f" {before}") for line in told), output
        assert len(told) == 1 or not (lived and before), output
    assert 160 <= saved(tmp_path) < STEPS
    parts, whole = toy.train(tmp_path, STEPS), toy.train(tmp_path / "whole", STEPS)
    np.testing.assert_array_equal(parts["w"], whole["w"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_with_one_line_and_leaves_the_old_states_whole(small_disk, toy, tmp_path):
    wide = {"steps": 20, "width": 40_000, "save_every": 2}
    with pytest.raises(KeyError):
        toy.train(small_disk / "run", stop=13, **wide)
    before = saved(small_disk / "run")
    assert before == 12
    (small_disk / "filler").write_bytes(b"0" * _free(small_disk))
    with pytest.raises(UserError, match="no space left on the disk") as error:
        toy.train(small_disk / "run", **wide)
    assert "\n" not in str(error.value) and "free disk space" in str(error.value)
    (small_disk / "filler").unlink()
    assert saved(small_disk / "run") == before
    lines = []
    parts = toy.train(small_disk / "run", **wide, log=lines.append)
    assert f"goes on from step {before}" in lines[0]
    whole = toy.train(tmp_path / "whole", **wide)
    np.testing.assert_array_equal(parts["w"], whole["w"])


def _free(folder) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_bsize - 8192


def test_a_state_split_over_eight_devices_goes_on_on_two(start, end, toy, tmp_path):
    code, output = end(start([TOY, tmp_path / "run", 200, 0, 8, 100], devices=8))
    assert code == 1 and "KeyError: 'stopped'" in output, output
    code, output = end(start([TOY, tmp_path / "run", 200, 0, 2, 0], devices=2))
    assert code == 0 and "goes on from step 100" in output, output
    alone = toy.train(tmp_path / "alone", 200)
    there = checkpoint.load_params(tmp_path / "run" / "params" / "toy")
    np.testing.assert_allclose(there["w"], alone["w"], rtol=1e-4)
