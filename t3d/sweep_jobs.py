"""The members of a sweep as jobs of a cluster: a Slurm array, an indexed JobSet, SkyPilot tasks.

Each job runs the same `t3d sweep` command with `--member` and its number. Datasets and the sweep's
folder lie on storage that all jobs see, under the same paths as here.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t3d.data.parts import write_atomically
from t3d.errors import UserError
from t3d.sweep_members import split_group

OPTIONS = {  # of --launcher-option, and what each is without
    "slurm": {"partition": "", "gpus": "1", "cpus": "8", "time": "24:00:00", "parallel": "8"},
    "jobset": {
        "image": "REGISTRY/t3d:cuda",
        "claim": "t3d",
        "mount": "",
        "chip": "nvidia.com/gpu",
        "chips": "1",
        "selector": "",
        "parallel": "8",
    },
    "sky": {"accelerators": "L4:1", "bucket": "gs://BUCKET", "mount": ""},
}
PATHS = ("features.file", "nerf.init")  # values of the config
PLACEHOLDER = re.compile("REGISTRY|BUCKET")


@dataclass(frozen=True)
class Jobs:
    """What a launcher writes and runs.

    Attributes:
        files: name in the sweep's folder → text.
        commands: that start the jobs, to be typed in turn.
    """

    files: dict[str, str]
    commands: tuple[str, ...]


def launch(args, members: int) -> None:
    """Writes the job files of a sweep, and submits them where the launcher can.

    Args:
        args: of `t3d sweep`; members: how many there are.

    Raises:
        UserError: no such option; no storage that all jobs can share; Slurm refuses the job.
    """
    out = Path(os.path.abspath(args.out))
    options = options_of(args.launcher, args.launcher_option)
    jobs = MAKERS[args.launcher](arguments_of(args), args.json, out, members, options)
    if args.dry_run:
        for name, text in jobs.files.items():
            print(f"---- {out / name}\n{text}")
        print("---- would then be run", *jobs.commands, sep="\n")
        return
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for name, text in jobs.files.items():
        write_atomically(out / name, lambda p, text=text: p.write_text(text))
        print(out / name)
    for key in (key for key, value in options.items() if PLACEHOLDER.search(value)):
        print(f"it still names {options[key]}: run this again with --launcher-option {key}=YOURS")
    if args.launcher == "slurm" and shutil.which("sbatch"):
        _submit(out)
    else:
        print("now run", *jobs.commands, sep="\n")


def options_of(launcher: str, given: Sequence[str]) -> dict[str, str]:
    """A launcher's options, with what is given as KEY=VALUE.

    Raises:
        UserError: it has no such option.
    """
    options = dict(OPTIONS[launcher])
    for text in given:
        key, _, value = text.partition("=")
        if key not in options:
            near = difflib.get_close_matches(key, options, 1, 0.0)[0]
            raise UserError(
                f"--launcher-option {text}: {launcher} has {', '.join(options)}; did you mean "
                f"{near}=VALUE?"
            )
        if key == "parallel" and not (value.isdecimal() and int(value)):
            raise UserError(f"--launcher-option {text}: give a number of jobs at once, 1 or more")
        if key == "selector" and not all("=" in pair for pair in value.split(",") if pair):
            raise UserError(f"--launcher-option {text}: give selector=LABEL=VALUE[,LABEL=VALUE…]")
        options[key] = value
    return options


def arguments_of(args) -> list[str]:
    """The arguments of a `t3d sweep` command that name its members, with absolute paths."""
    config = os.path.abspath(args.config) if args.config.endswith(".py") else args.config
    found = [f"--config={config}"]
    for text in args.data:
        name, paths = split_group(text)
        absolute = ",".join(map(os.path.abspath, paths))
        found.append(f"--data={name}={absolute}" if name else f"--data={absolute}")
    found.append(f"--out={os.path.abspath(args.out)}")
    found += [f"--seeds={args.seeds}"] if args.seeds else []
    found += [f"--start-from={os.path.abspath(args.start_from)}"] if args.start_from else []
    return found + [f"--config.{with_whole_path(override)}" for override in args.overrides]


def with_whole_path(override: str) -> str:
    """An override, with an absolute path if its value is one."""
    key, _, value = override.partition("=")
    return f"{key}={os.path.abspath(value)}" if key in PATHS and value else override


def _collect(arguments: Sequence[str], json_file: str | None) -> list[str]:
    file = [f"--json={os.path.abspath(json_file)}"] if json_file else []
    return [*arguments, "--collect", *file]


def _job_name(out: Path) -> str:
    """Fit for Kubernetes: lower-case letters, digits and dashes, short."""
    name = re.sub(r"[^a-z0-9]+", "-", out.name.lower())[:24].strip("-")
    return f"t3d-{name or 'sweep'}"


# ---- Slurm


def slurm(
    arguments: list[str], json_file: str | None, out: Path, members: int, options: dict[str, str]
) -> Jobs:
    """An array with a task for each member, and a job for the tables after it."""
    wanted = {key: options[key] for key in ("partition", "gpus", "time")}
    wanted["cpus-per-task"] = options["cpus"]
    lines = [f"#SBATCH --{key}={value}" for key, value in wanted.items() if value not in ("", "0")]
    partition = [line for line in lines if line.startswith("#SBATCH --partition=")]
    t3d = f"{shlex.quote(sys.executable)} -m t3d.cli sweep"
    files = {
        "sweep.sbatch": SWEEP_SBATCH.format(
            name=_job_name(out),
            last=members - 1,
            parallel=options["parallel"],
            options="\n".join(lines),
            out=out,
            command=f"{t3d} {shlex.join(arguments)}",
        ),
        "collect.sbatch": COLLECT_SBATCH.format(
            name=_job_name(out),
            options="\n".join(["#SBATCH --time=01:00:00", *partition]),
            out=out,
            command=f"{t3d} {shlex.join(_collect(arguments, json_file))}",
        ),
    }
    sweep, collect = (shlex.quote(str(out / name)) for name in files)
    return Jobs(
        files, (f"sbatch {sweep}", f"sbatch --dependency=afterany:JOBID {collect}  # its number")
    )


SWEEP_SBATCH = """\
#!/bin/bash
# A task trains and measures one member of a sweep. Written by t3d sweep --launcher slurm; what
# stands in the first lines comes from its --launcher-option partition=, gpus=, cpus=, time= and
# parallel= (tasks at once).
#SBATCH --array=0-{last}%{parallel}
{options}
#
# These belong to how it works: SIGTERM comes to t3d 300 s before the time is over.
#SBATCH --job-name={name}
#SBATCH --ntasks=1
#SBATCH --output="{out}/logs/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -u

# Slurm signals the script itself only when it ends the whole task: cancelled, or queued again.
cancelled=
trap 'cancelled=yes' TERM
code=0
srun {command} \\
    --member="$SLURM_ARRAY_TASK_ID" || code=$?
if [ "$code" -eq 143 ] && [ -z "$cancelled" ]; then
    echo "stopped, saved: task $SLURM_ARRAY_TASK_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
COLLECT_SBATCH = """\
#!/bin/bash
# The tables of a sweep, of the members that are finished. Written by t3d sweep --launcher slurm.
{options}
#SBATCH --job-name={name}-collect
#SBATCH --ntasks=1
#SBATCH --output="{out}/logs/%j_collect.log"
exec {command}
"""


def _submit(out: Path) -> None:
    number = _sbatch(out / "sweep.sbatch")
    print(f"submitted: {number}; its log is {out / 'logs'}")
    try:
        tables = _sbatch(f"--dependency=afterany:{number}", out / "collect.sbatch")
    except UserError as error:  # the array runs: the whole command again would train all twice
        raise UserError(
            f"the array {number} is submitted, what makes the tables after it is not: {error}; "
            "submit that line alone, or type the sweep's command with --collect at the end"
        ) from error
    print(f"submitted: {tables}, which makes the tables after it")


def _sbatch(*arguments: str | Path) -> str:
    """Submits a script; its number."""
    command = ["sbatch", "--parsable", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{shlex.join(command)}: Slurm refuses it ({done.stderr.strip()}); give it what it "
            "asks for with --launcher-option, or an SBATCH_… variable"
        )
    return done.stdout.strip().partition(";")[0]


# ---- Kubernetes


def jobset(
    arguments: list[str], json_file: str | None, out: Path, members: int, options: dict[str, str]
) -> Jobs:
    """A JobSet of one indexed job, an index for each member."""
    selector = [pair.split("=", 1) for pair in options["selector"].split(",") if pair]
    text = JOBSET.format(
        name=_job_name(out),
        members=members,
        **{key: json.dumps(options[key]) for key in ("image", "claim", "chip", "chips")},
        parallel=min(int(options["parallel"]), members),
        selector=json.dumps({key: value for key, value in selector}),
        mount=json.dumps(options["mount"] or shared_folder(arguments)),
        arguments="\n".join(f"                    - {json.dumps(each)}" for each in arguments),
    )
    path = shlex.quote(str(out / "sweep.jobset.yaml"))
    collect = shlex.join(["t3d", "sweep", *_collect(arguments, json_file)])
    return Jobs(
        {"sweep.jobset.yaml": text}, (f"kubectl apply -f {path}", f"{collect}  # when it is done")
    )


JOBSET = """\
# An index trains and measures one member of a sweep. Written by t3d sweep --launcher jobset; image,
# claim, mount, chip, chips, selector and parallel come from its --launcher-option KEY=VALUE.
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
spec:
  replicatedJobs:
    - name: members
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: {members}
          parallelism: {parallel}
          backoffLimitPerIndex: 5 # crashes of one member; the others go on
          podFailurePolicy:
            rules:
              - action: FailIndex # something that its user must mend first
                onExitCodes: {{operator: In, values: [2]}}
              - action: Ignore # stopped, with everything saved: started again
                onExitCodes: {{operator: In, values: [75, 130, 143]}}
              - action: Ignore # its node was taken away
                onPodConditions: [{{type: DisruptionTarget, status: "True"}}]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300 # a spot node gives less
              nodeSelector: {selector}
              containers:
                - name: t3d
                  image: {image}
                  command: [t3d, sweep]
                  args:
{arguments}
                    - "--member=$(JOB_COMPLETION_INDEX)"
                  resources:
                    limits: {{{chip}: {chips}}}
                  volumeMounts:
                    - {{name: storage, mountPath: {mount}}}
              volumes:
                - name: storage
                  persistentVolumeClaim: {{claimName: {claim}}} # one that is ReadWriteMany
"""


def shared_folder(arguments: Sequence[str]) -> str:
    """The folder that holds all paths of a command.

    Raises:
        UserError: there is none but the root.
    """
    paths = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        key = flag.removeprefix("--config.")
        named = key in ("--data", "--out", "--start-from", *PATHS) or value.endswith(".py")
        if value and named:
            paths += split_group(value)[1]
    folder = os.path.commonpath(paths)
    if folder == os.sep:
        raise UserError(
            f"{', '.join(paths)}: have no folder in common; put them on the storage that the jobs "
            "see, and name where it is mounted with --launcher-option mount=DIR"
        )
    return folder


# ---- SkyPilot


def sky(
    arguments: list[str], json_file: str | None, out: Path, members: int, options: dict[str, str]
) -> Jobs:
    """A managed job for each member."""
    name = _job_name(out)
    text = SKY.format(
        accelerators=json.dumps(options["accelerators"]),
        bucket=json.dumps(options["bucket"]),
        mount=json.dumps(options["mount"] or shared_folder(arguments)),
        command=shlex.join(arguments),
    )
    path = shlex.quote(str(out / "sweep.sky.yaml"))
    lines = [
        f"sky jobs launch --yes --detach-run --name {name}-{k} --env MEMBER={k} {path}"
        for k in range(members)
    ]
    script = "\n".join([*SKY_SH.splitlines(), *lines, ""])
    collect = shlex.join(["t3d", "sweep", *_collect(arguments, json_file)])
    run = f"sh {shlex.quote(str(out / 'sweep_sky.sh'))}"
    return Jobs(
        {"sweep.sky.yaml": text, "sweep_sky.sh": script}, (run, f"{collect}  # when it is done")
    )


SKY = """\
# A job trains and measures one member of a sweep. Written by t3d sweep --launcher sky;
# accelerators, bucket and mount come from its --launcher-option KEY=VALUE. sweep_sky.sh starts all.
resources:
  accelerators: {accelerators}
  use_spot: true
  job_recovery:
    # Stopped: goes on. 2 is for its user to mend, and is not started again.
    recover_on_exit_codes: [75, 143]
file_mounts:
  {mount}:
    source: {bucket} # one with a hierarchical namespace: its renames are atomic
    mode: MOUNT
envs:
  MEMBER: "0"

name: t3d-sweep
workdir: .

setup: |
  python3 -m pip install -q uv
  python3 -m uv venv -q --allow-existing --python 3.11 .venv
  python3 -m uv pip install -q -c constraints.txt -e '.[cuda]'

run: |
  .venv/bin/t3d sweep {command} --member="$MEMBER"
"""
SKY_SH = """\
#!/bin/sh
# Starts the members of a sweep as SkyPilot's managed jobs: run it in t3d's folder, which is copied
# to the machines. Written by t3d sweep --launcher sky.
set -eu
"""

MAKERS = {"slurm": slurm, "jobset": jobset, "sky": sky}
