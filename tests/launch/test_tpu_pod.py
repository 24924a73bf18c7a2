"""launch/tpu_pod.sh: the commands it would give, and when it starts t3d again."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from t3d import cli

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
TPU = "gcloud --quiet compute tpus"
ON_ALL = f"{TPU} tpu-vm ssh t3d --zone=us-west4-a --worker=all"
TRAIN = ("train", "--data", "/mnt/t3d/a b", "--workdir", "/mnt/t3d/run")


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPT), *arguments]
    environment = os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def _dry_run(*arguments: str, **variables: str) -> list[list[str]]:
    """The words of each command that a dry run prints, the shell's quotes taken off."""
    done = _run(*arguments, T3D_DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_create_makes_a_slice_and_installs_t3d_on_all_hosts():
    create, folder, pack, copy, *install = _dry_run("create")
    assert create == shlex.split(
        f"{TPU} queued-resources create t3d --node-id=t3d --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert folder == ["mkdir", "-p", "build"]
    assert pack == shlex.split("git archive --format=tar.gz --output=build/t3d.tar.gz HEAD")
    assert copy == shlex.split(
        f"{TPU} tpu-vm scp build/t3d.tar.gz t3d: --zone=us-west4-a --worker=all"
    )
    assert [words[:-1] for words in install] == [shlex.split(ON_ALL)] * 5
    assert [words[-1] for words in install] == [
        "--command=" + line
        for line in (
            "sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common",
            "mountpoint -q /mnt/t3d || sudo mount --mkdir -t nfs 10.0.0.2:/t3d /mnt/t3d",
            "mkdir -p t3d && tar -xzf t3d.tar.gz -C t3d && python3 -m pip install -q uv",
            "cd t3d && python3 -m uv venv -q --allow-existing --python 3.11 .venv",
            "cd t3d && python3 -m uv pip install -q -c constraints.txt -e '.[tpu]'",
        )
    ]


def test_what_is_to_change_can_be_given():
    create, *_ = _dry_run("create", NAME="mine", ZONE="z", TYPE="v5p-16", RUNTIME="r", OPTIONS="")
    assert create == shlex.split(
        f"{TPU} queued-resources create mine --node-id=mine --zone=z "
        "--accelerator-type=v5p-16 --runtime-version=r"
    )


def test_train_runs_the_same_command_on_all_hosts():
    (line,) = _dry_run(*TRAIN)
    assert line[:-1] == shlex.split(ON_ALL)
    change, run, *words = shlex.split(line[-1].removeprefix("--command=cd t3d && "))
    assert (change, run) == ("exec", ".venv/bin/t3d")
    args = cli.parse(words)
    assert args.distributed and (args.data, args.workdir) == (TRAIN[2], TRAIN[4])


def test_delete_deletes():
    assert _dry_run("delete") == [
        shlex.split(f"{TPU} queued-resources delete t3d --zone=us-west4-a --force")
    ]


def test_stop_ends_t3d_on_all_hosts_and_not_the_shell_that_says_so():
    (line,) = _dry_run("stop")
    assert line[:-1] == shlex.split(ON_ALL)
    command = line[-1].removeprefix("--command=")
    *_, pattern = shlex.split(command)
    assert re.search(pattern, ".venv/bin/t3d train --distributed") and not re.search(
        pattern, command
    )


def test_another_word_is_answered_with_the_usage():
    done = _run("trian")
    assert done.returncode == 2 and "create | install | train" in done.stderr


@pytest.fixture
def gcloud(tmp_path):
    """Runs `train` with a gcloud that answers in turn: gcloud([code of an ssh, …], state)."""

    def run(codes: list[int], state: str = "ACTIVE") -> tuple[int, list[str]]:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "state").write_text(f"{state}\n")
        for name, text in (("gcloud", GCLOUD), ("git", "#!/bin/sh\n")):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        done = _run(*TRAIN, PATH=f"{tmp_path}:{os.environ['PATH']}", NOTES=str(tmp_path))
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


# `$4 $5` are the resource and the verb; an ssh that trains ends with the next of the codes.
GCLOUD = """#!/bin/sh
cd "$NOTES"
case "$*" in
*" describe "*) cat state && exit ;;
*"t3d train"*) echo train >> calls && code=$(head -n1 codes) && sed -i 1d codes && exit "$code" ;;
*) echo "$4 $5" >> calls ;;
esac
case "$5" in create) echo ACTIVE > state ;; esac
"""


@pytest.mark.parametrize(
    "codes, ended",
    [([0], 0), ([2], 2), ([143, 75, 1, 0], 0), ([143] * 30 + [0], 0), ([75] * 21, 75)],
)
def test_t3d_is_started_again_only_where_that_helps(gcloud, codes, ended):
    code, calls = gcloud(codes)
    assert code == ended and calls == ["train"] * len(codes)


def test_a_slice_that_was_taken_away_is_made_anew(gcloud):
    code, calls = gcloud([255, 0], state="SUSPENDED")
    assert code == 0
    made = ["queued-resources delete", "queued-resources create", "tpu-vm scp"]
    assert calls == ["train", *made, *["tpu-vm ssh"] * 5, "train"]
