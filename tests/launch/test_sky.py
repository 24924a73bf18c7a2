"""launch/sky.yaml: SkyPilot takes it, and its nodes run the right command."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from t3d import cli
from tests.launch import validators

FILE = Path(__file__).parents[2] / "launch" / "sky.yaml"
TASK = yaml.safe_load(FILE.read_text())


def test_skypilot_takes_it():
    assert validators.check_sky(FILE) == []


def test_only_what_a_restart_helps_is_started_again():
    recovery = TASK["resources"]["job_recovery"]
    assert recovery == {"recover_on_exit_codes": [75, 143]}


@pytest.mark.parametrize("block", ["setup", "run"])
def test_its_scripts_are_clean(block, tmp_path):
    (tmp_path / "block.sh").write_text(TASK[block])
    assert validators.check_shell(tmp_path / "block.sh") == []


def test_a_node_says_which_process_it_is(tmp_path):
    program = tmp_path / ".venv" / "bin" / "t3d"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 75\n")
    program.chmod(0o755)
    told = dict(SKYPILOT_NODE_IPS="10.0.0.5\n10.0.0.6", SKYPILOT_NUM_NODES="2")
    given = TASK["envs"] | dict(
        SKYPILOT_NODE_RANK="1", OVERRIDES="--config.mesh.model=4 --stage nerf"
    )
    done = subprocess.run(
        ["bash", "-c", TASK["run"]],
        env=os.environ | told | given,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75  # the node answers with t3d's own code
    args = cli.parse(done.stdout.splitlines())
    assert (args.config, args.data, args.workdir) == (
        "talker",
        TASK["envs"]["DATA"],
        TASK["envs"]["WORKDIR"],
    )
    assert (args.coordinator, args.processes, args.process) == ("10.0.0.5:8476", 2, 1)
    assert args.overrides == ["mesh.model=4"] and args.stage == "nerf"
