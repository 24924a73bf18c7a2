"""The scripts are clean, and the validators find what is wrong."""

from pathlib import Path

import pytest

from tests.launch import validators

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), *sorted(LAUNCH.glob("*.sbatch")), LAUNCH / "../.ci/run"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean(path):
    bash = path.read_text().startswith("#!/bin/bash")
    assert validators.check_shell(path, "bash" if bash else "sh") == []


@pytest.mark.parametrize(
    "check, name, right, wrong, said",
    [
        (validators.check_shell, "slurm.sbatch", '"$@")', "$@)", "SC2206"),
        (validators.check_jobset, "jobset.yaml", "backoffLimit", "backofLimit", "backofLimit"),
        (validators.check_jobset, "jobset.yaml", "replicas: 2", "replicas: two", "integer"),
        (validators.check_jobset, "jobset.yaml", "claimName", "claim", "claimName"),
        (validators.check_jobset, "jobset.yaml", "FailJobSet", "FailJobset", "none of"),
        (validators.check_jobset, "jobset.yaml", "In, values", "Is, values", "enum"),
        (validators.check_jobset, "jobset.yaml", "kind: JobSet", "kind: Job", "not a JobSet"),
        (validators.check_sky, "sky.yaml", "[75, 143]", "[75, 1430]", "recover_on_exit_codes"),
        (validators.check_sky, "sky.yaml", "mode: MOUNT", "mode: MOUN", "MOUN"),
    ],
)
def test_a_mistake_is_found(check, name, right, wrong, said, tmp_path):
    text = (LAUNCH / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong, 1))
    assert said in "\n".join(check(tmp_path / name))
