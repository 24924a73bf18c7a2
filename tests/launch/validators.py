"""Checks job files with the tools' own validators: ShellCheck, JobSet's models, SkyPilot.

They stay out of t3d's environment: they live in one of their own (.ci/run makes it, from
validators.txt), whose Python runs this file as a program.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("T3D_VALIDATORS", CHECKOUT / ".venv-validators"))
MISSING = (
    "no validators here: python3 -m venv .venv-validators && "
    ".venv-validators/bin/pip install -r tests/launch/validators.txt"
)


def check_shell(path: Path, dialect: str = "bash") -> list[str]:
    """What ShellCheck finds in a script of that dialect (sh, bash), a line each; [] if nothing."""
    # SC1091: an environment's activate script is not there to be read.
    options = ["--external-sources", "--exclude=SC1091", f"--shell={dialect}", "--format=gcc"]
    return _run([_tool("shellcheck"), *options, str(path)], cwd=CHECKOUT)


def check_jobset(path: Path) -> list[str]:
    """What JobSet's and Kubernetes' models refuse in a file of JobSets, a line each."""
    return _run([_tool("python"), __file__, "jobset", str(path)])


def check_sky(path: Path) -> list[str]:
    """What SkyPilot refuses in a task's file, a line each."""
    with tempfile.TemporaryDirectory() as home:  # SkyPilot writes there
        quiet = {"HOME": home, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        return _run([_tool("python"), __file__, "sky", str(path)], env=os.environ | quiet)


def _tool(name: str) -> str:
    programs = ENVIRONMENT / "bin"
    if not (programs / "sky").exists():
        import pytest

        pytest.skip(MISSING)
    return str(programs / name)


def _run(command: list[str], **options) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    problems = done.stdout.splitlines()
    assert (done.returncode == 0) == (not problems), done.stdout + done.stderr
    return problems


def _jobset_problems(path: str) -> list[str]:
    import yaml
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    problems = []
    for document in yaml.safe_load_all(Path(path).read_text()):
        kind = f"{document.get('apiVersion')} {document.get('kind')}"
        if kind != "jobset.x-k8s.io/v1alpha2 JobSet":
            problems.append(f"{kind} is not a JobSet of v1alpha2")
            continue
        try:
            read = JobsetV1alpha2JobSet.from_dict(document)
        except ValueError as error:
            problems += [line for line in str(error).splitlines() if "errors.pydantic" not in line]
            continue
        problems += _differences(document, read.to_dict(), "") + _wrong_choices(read)
    return problems


def _wrong_choices(read) -> list[str]:
    """Values that are none of those which a field's description lists, in a model and below."""
    if isinstance(read, list):
        return [line for item in read for line in _wrong_choices(item)]
    problems = []
    for name, field in getattr(type(read), "model_fields", {}).items():
        value = getattr(read, name)
        listed = re.search(r"Valid values are ([\w, ]+)", field.description or "")
        if listed and value is not None and value not in listed[1].split(", "):
            problems.append(f"{name}: {value!r} is none of {listed[1]}")
        problems += _wrong_choices(value)
    return problems


def _differences(given, read, where: str) -> list[str]:
    """What the models did not keep as it was given: fields that they do not know or miss."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [
            line
            for key in given.keys() | read.keys()
            for line in _differences(given.get(key), read.get(key), f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read))
        return [line for i, (a, b) in pairs for line in _differences(a, b, f"{where}[{i}]")]
    return [] if given == read else [f"{where}: {given!r} is read as {read!r}"]


def _sky_problems(path: str) -> list[str]:
    import sky

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            sky.Task.from_yaml(path)
    except (ValueError, sky.exceptions.InvalidSkyPilotConfigError) as error:
        return str(error).splitlines()
    return []


if __name__ == "__main__":
    found = {"jobset": _jobset_problems, "sky": _sky_problems}[sys.argv[1]](sys.argv[2])
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(bool(found))
