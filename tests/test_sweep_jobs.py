"""Sweeps as jobs: the files, and a Slurm array run for real by stand-ins of sbatch and srun."""

import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from t3d import checkpoint, cli, sweep_jobs, talker
from t3d import config as configs
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.train import trainer

SWEEP = """
from t3d.config import product
from t3d.configs import tiny

def sweep():
    return product({"stages.space.learning_rate": (2e-3, 5e-3)})

def get_config(paper=False):
    config = tiny.get_config(paper)
    config.stages.space.update(steps=80, save_every=5, validate_every=0)
    config.space.renders = 0.0
    return config
"""
NAMES = ("learning_rate=0.002", "learning_rate=0.005")
# Slurm's commands, on one machine. sbatch runs all tasks of an array at once and waits for them.
SBATCH = """#!/bin/bash
echo "$@" >> "$STAND_IN/submitted"
script=${!#}
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$script")
for k in $(seq 0 "${last:-0}"); do
    SLURM_ARRAY_TASK_ID=$k SLURM_JOB_ID=10$k bash "$script" > "$STAND_IN/log$k" 2>&1 &
done
wait
echo "42;cluster"
"""
# Task 1 is preempted once, as soon as it has saved a state of its last stage.
SRUN = """#!/bin/bash
"$@" &
if [ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ ! -e "$STAND_IN/preempted" ]; then
    touch "$STAND_IN/preempted"
    until ls "$OUT"/learning_rate=0.005/*/checkpoints/space/[1-9]* > /dev/null 2>&1; do
        sleep 0.02
        kill -0 $! || break
    done
    kill -TERM $!
fi
wait $!
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$STAND_IN/requeued"
bash "$OUT/sweep.sbatch" > "$STAND_IN/again" 2>&1
"""


@pytest.fixture(scope="module")
def place(untrained, tmp_path_factory):
    """A sweep's file, a dataset, and a run whose stages before the last count as trained."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "rates.py").write_text(SWEEP)
    dataset = SpeakerDataset(checkpoint.read_run(untrained.workdir)["data"][0]["path"])
    give_away(untrained, configs.load_config(str(folder / "rates.py")), folder / "donor")
    return SimpleNamespace(
        folder=folder,
        data=str(dataset.path),
        speaker=dataset.name,
        start=("--start-from", str(folder / "donor")),
    )


def give_away(run, config, folder):
    """A run that says that all its stages but the last were trained with the config."""
    record = checkpoint.read_run(run.workdir)
    record["config"] = json.loads(configs.to_json(config))
    stages = {}
    for name in talker.STAGES[:-1]:
        sha256 = checkpoint.save_params(folder / "params" / name, run.params[name])
        schedule = record["config"]["stages"][name]
        settings = {
            "config": {k: v for k, v in schedule.items() if k not in trainer.SCHEDULE},
            "frozen": {need: stages[need]["sha256"] for need in talker.NEEDS[name]},
            "seed": config.seed,
        }
        entry = {"steps": schedule["steps"], "seconds": 0.0, "sha256": sha256}
        stages[name] = entry | {"settings": settings}
    checkpoint.update_run(folder, **record | {"stages": stages})


def command(place, out, *more):
    config = str(place.folder / "rates.py")
    return ["sweep", "--config", config, "--data", place.data, "--out", str(out), *more]


def plain(path):
    """The figures of a sweep without the times, which no two trainings share."""
    return {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("/minutes")}


@pytest.fixture(scope="module")
def array(place, tmp_path_factory):
    """The folder of a sweep that ran as a Slurm array, and that of what stood in for Slurm."""
    slurm, out = tmp_path_factory.mktemp("slurm"), place.folder / "array"
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (slurm / name).write_text(text)
        (slurm / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
        patch.setenv("STAND_IN", str(slurm))
        patch.setenv("OUT", str(out))
        assert cli.main(command(place, out, *place.start, "--launcher", "slurm")) == 0
    return SimpleNamespace(out=out, slurm=slurm)


@pytest.mark.full
def test_a_preempted_task_is_queued_again_and_goes_on(array):
    logs = {name: (array.slurm / name).read_text() for name in ("log0", "log1", "again")}
    assert "stopped by SIGTERM" in logs["log1"] and "goes on from step" in logs["again"], logs
    assert (array.slurm / "requeued").read_text() == "requeue 101\n"
    _, collect = (array.slurm / "submitted").read_text().splitlines()
    assert collect == f"--parsable --dependency=afterany:42 {array.out / 'collect.sbatch'}"


@pytest.mark.full
def test_an_array_with_a_preempted_task_ends_with_the_table_of_a_sweep_that_ran_here(place, array):
    here = place.folder / "here"
    t3d = [sys.executable, "-m", "t3d.cli"]  # a process of its own: it has the jobs' programs
    subprocess.run([*t3d, *command(place, here, *place.start)], check=True)
    found = plain(array.out / "results.json")
    assert found == plain(here / "results.json")
    assert found[f"{NAMES[0]}/ssim"] != found[f"{NAMES[1]}/ssim"]
    png = (array.out / "results.png").read_bytes()
    assert Image.open(io.BytesIO(png)).format == "PNG"


@pytest.mark.full
def test_jobs_write_only_in_the_folders_of_their_members(array):
    results = {f"results.{end}" for end in ("md", "csv", "json", "png")}
    job_files = {"logs", "sweep.sbatch", "collect.sbatch"}
    assert {path.name for path in array.out.iterdir()} == {*NAMES, *results, *job_files}


@pytest.mark.full
def test_what_is_finished_is_collected_and_what_is_missing_named(place, array, capsys):
    params = array.out / NAMES[1] / place.speaker / "params"
    (params / "space").rename(params / "elsewhere")
    before = times(array.out)
    assert cli.main(command(place, array.out, *place.start, "--collect")) == 0
    warning = capsys.readouterr().err.strip().splitlines()[-1]
    missing = f"1 of 2 members are missing: {NAMES[1]} {place.speaker} (6 of 7 stages are done)"
    assert warning == f"t3d: warning: {missing}"
    assert missing in (array.out / "results.md").read_text()
    found = plain(array.out / "results.json")
    assert f"{NAMES[0]}/ssim" in found and f"{NAMES[1]}/ssim" not in found
    assert times(array.out) == before


def times(folder):
    """When the files of a sweep's members were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*=*/**/*") if path.is_file()}


def test_without_a_finished_member_there_is_nothing_to_collect(place, tmp_path, capsys):
    assert cli.main(command(place, tmp_path / "new", "--collect")) == 2
    assert f"{NAMES[0]} {place.speaker} (0 of 7 stages are done)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_member_that_failed_says_why(place, tmp_path, capsys):
    out = tmp_path / "bad"
    wrong = "--config.space.patch=3"
    assert cli.main(command(place, out, wrong, "--member", "1")) == 2
    failure = out / NAMES[1] / place.speaker / "failed.txt"
    assert "space.patch=3" in failure.read_text()
    capsys.readouterr()
    assert cli.main(command(place, out, "--collect")) == 2
    assert "failed: UserError" in capsys.readouterr().err
    assert cli.main(command(place, out, "--member", "2")) == 2
    assert "there are members 0 to 1" in capsys.readouterr().err


def test_a_dry_run_tells_the_members_and_writes_nothing(place, tmp_path, capsys):
    assert cli.main(command(place, tmp_path / "new", "--dry-run", "--member", "9")) == 2
    assert "there are members 0 to 1" in capsys.readouterr().err
    assert cli.main(command(place, tmp_path / "new", *place.start, "--dry-run")) == 0
    first, second = capsys.readouterr().out.splitlines()
    given = "sync, lip, prior, speech, nerf, au would be taken from"
    assert all(given in line and "0 of 7 stages are done" in line for line in (first, second))
    assert cli.main(command(place, tmp_path / "new", "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [["0:", NAMES[0]], ["1:", NAMES[1]]]
    for launcher, file in FILES.items():
        where = ["--launcher", launcher, "--dry-run"]
        assert cli.main(command(place, tmp_path / "new", *where)) == 0
        assert f"---- {tmp_path / 'new' / file}" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


# ---- the files


FILES = {"slurm": "sweep.sbatch", "jobset": "sweep.jobset.yaml", "sky": "sweep.sky.yaml"}


@pytest.fixture
def written(place, tmp_path, monkeypatch):
    """Writes a launcher's files: (launcher, options) → path of the first one."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    def write(launcher, *options):
        given = [word for option in options for word in ("--launcher-option", option)]
        out = tmp_path / "my sweep"
        more = ["--launcher", launcher, *given, "--config.size=32"]
        assert cli.main(command(place, out, *place.start, *more)) == 0
        return out / FILES[launcher]

    return write


def test_slurm_without_sbatch_says_what_to_type(written, capsys):
    text = written("slurm", "partition=gpu", "gpus=0", "parallel=1").read_text()
    said = capsys.readouterr().out
    assert "sbatch " in said and "--dependency=afterany:JOBID" in said
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --array=0-1%1" in directives and "#SBATCH --partition=gpu" in directives
    assert not any("gpus" in line for line in directives) and "#SBATCH --requeue" in directives


def test_a_jobset_runs_each_member_once(written, place, tmp_path):
    path = written("jobset", "image=example.org/t3d:1", "mount=/mnt/t3d", "chips=2")
    (jobs,) = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed" and job["completions"] == 2
    assert container["command"] == ["t3d", "sweep"]
    assert container["args"] == [
        f"--config={place.folder / 'rates.py'}",
        f"--data={place.data}",
        f"--out={tmp_path / 'my sweep'}",
        f"--start-from={place.start[1]}",
        "--config.size=32",
        "--member=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["image"] == "example.org/t3d:1"
    assert container["volumeMounts"][0]["mountPath"] == "/mnt/t3d"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}


def test_what_is_not_named_yet_is_asked_for(written, capsys):
    written("jobset")
    assert "--launcher-option image=YOURS" in capsys.readouterr().out
    written("jobset", "image=example.org/t3d:1")
    assert "YOURS" not in capsys.readouterr().out


def test_jobs_share_the_folder_that_holds_all_paths(written, place, tmp_path):
    task = yaml.safe_load(written("sky").read_text())
    (mount,) = task["file_mounts"]
    for path in (place.data, place.folder, tmp_path / "my sweep"):
        assert Path(path).is_relative_to(mount)
    with pytest.raises(UserError, match="mount=DIR"):
        sweep_jobs.shared_folder(["--config=tiny", "--data=/data/a", "--out=/runs"])


def test_sky_starts_a_job_for_each_member(written):
    task = written("sky", "bucket=s3://mine")
    assert yaml.safe_load(task.read_text())["run"].strip().endswith('--member="$MEMBER"')
    script = task.with_name("sweep_sky.sh").read_text().splitlines()
    calls = [shlex.split(line) for line in script if line.startswith("sky ")]
    assert [call[call.index("--env") + 1] for call in calls] == ["MEMBER=0", "MEMBER=1"]
    assert all(call[-1] == str(task) for call in calls)


def test_the_commands_of_the_files_are_understood_by_t3d(written, tmp_path):
    words = shlex.split(yaml.safe_load(written("sky").read_text())["run"])
    args = cli.parse(words[1:-1] + ["--member=1"])
    assert args.out == str(tmp_path / "my sweep") and args.member == 1
    assert args.overrides == ["size=32"]


def test_an_unknown_option_names_the_nearest(place, tmp_path, capsys):
    options = ["--launcher", "slurm", "--launcher-option", "partitoin=x"]
    assert cli.main(command(place, tmp_path / "new", *options)) == 2
    assert "did you mean partition=VALUE" in capsys.readouterr().err


def test_options_that_do_not_go_together_are_refused(place, tmp_path, capsys):
    for options, word in (
        (["--member", "0", "--collect"], "one of them"),
        (["--launcher", "sky", "--member", "0"], "--launcher"),
        (["--launcher-option", "gpus=2"], "--launcher slurm"),
    ):
        assert cli.main(command(place, tmp_path / "new", *options)) == 2
        assert word in capsys.readouterr().err


# ---- the tools' own validators


@pytest.fixture(scope="module")
def validators():
    path = Path(__file__).parent / "launch" / "validators.py"
    spec = importlib.util.spec_from_file_location("validators", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scripts_are_clean(written, validators):
    sweep = written("slurm", "partition=gpu")
    assert validators.check_shell(sweep, "bash") == []
    assert validators.check_shell(sweep.with_name("collect.sbatch"), "bash") == []
    assert validators.check_shell(written("sky").with_name("sweep_sky.sh"), "sh") == []


def test_the_jobset_is_one_to_kubernetes(written, validators):
    selector = "selector=cloud.google.com/gke-tpu-topology=1x1"
    assert validators.check_jobset(written("jobset", selector, "chip=google.com/tpu")) == []


def test_the_task_is_one_to_skypilot(written, validators):
    assert validators.check_sky(written("sky")) == []


@pytest.mark.parametrize(
    "launcher, option", [("slurm", "parallel=0"), ("slurm", "parallel=²"), ("jobset", "selector=x")]
)
def test_options_that_no_cluster_can_use_are_refused(launcher, option):
    with pytest.raises(UserError, match=f"--launcher-option {option}: give"):
        sweep_jobs.options_of(launcher, [option])


def test_files_that_a_config_names_are_absolute_and_on_the_shared_storage(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overrides = ["features.file=heard/{name}.npy", "nerf.init=", "seed=4"]
    args = SimpleNamespace(
        config="ablations", data=["data/a"], out="out", seeds=None, start_from=None
    )
    args.overrides = overrides
    found = sweep_jobs.arguments_of(args)
    heard = f"--config.features.file={tmp_path}/heard/{{name}}.npy"
    assert found[-3:] == [heard, "--config.nerf.init=", "--config.seed=4"]
    assert sweep_jobs.shared_folder(found) == str(tmp_path)


def test_tables_that_slurm_refuses_do_not_make_the_array_run_twice(tmp_path, monkeypatch, capsys):
    (tmp_path / "sbatch").write_text(
        '#!/bin/sh\ncase "$*" in *collect*) echo "no GPU asked for" >&2; exit 1;; esac\necho 42\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError) as error:
        sweep_jobs._submit(tmp_path)
    assert "the array 42 is submitted" in str(error.value) and "--collect" in str(error.value)
    assert f"--dependency=afterany:42 {tmp_path / 'collect.sbatch'}" in str(error.value)
