"""launch/jobset.yaml: its models, its restarts, and the command of its pods."""

import re
from pathlib import Path

import pytest
import yaml

from t3d import cli
from tests.launch import validators

FILE = Path(__file__).parents[2] / "launch" / "jobset.yaml"
JOBSETS = {
    jobset["metadata"]["labels"]["t3d"]: jobset for jobset in yaml.safe_load_all(FILE.read_text())
}
COUNTED = "RestartJobSet"  # what JobSet does where no rule matches


def test_both_jobsets_are_what_kubernetes_takes():
    assert set(JOBSETS) == {"gpu", "tpu"}
    assert validators.check_jobset(FILE) == []


def _job(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def _failure(job: dict, code: int, conditions: list[dict]) -> tuple[str, str]:
    """Reason and message with which Kubernetes fails a job when a pod ends (backoffLimit 0)."""
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": []})["values"]
        if code in codes or any(c in rule.get("onPodConditions", []) for c in conditions):
            return "PodFailurePolicy", f"… matching {rule['action']} rule at index {index}"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def _action(jobset: dict, reason: str, message: str) -> str:
    """What JobSet does with a job that failed so: the first rule that matches."""
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return COUNTED


@pytest.mark.parametrize("on", JOBSETS)
@pytest.mark.parametrize(
    "code, taken_away, action",
    [
        (2, False, "FailJobSet"),
        (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, False, COUNTED),
        (1, False, COUNTED),
    ],
)
def test_a_jobset_is_restarted_only_where_that_helps(on, code, taken_away, action):
    conditions = [{"type": "DisruptionTarget", "status": "True"}] if taken_away else []
    failure = _failure(_job(JOBSETS[on]), code, conditions)
    assert _job(JOBSETS[on])["backoffLimit"] == 0
    assert _action(JOBSETS[on], *failure) == action


def _command(on: str, **told: str) -> list[str]:
    """The command of a pod, $(NAME) put in as Kubernetes does."""
    (container,) = _job(JOBSETS[on])["template"]["spec"]["containers"]
    words = container["command"] + container["args"]
    assert {entry["name"] for entry in container.get("env", [])} == set(told)
    return [re.sub(r"\$\((\w+)\)", lambda name: told[name[1]], word) for word in words]


def test_a_gpu_pod_says_which_process_it_is():
    program, *words = _command("gpu", COORDINATOR="t3d-hosts-0-0.t3d", PROCESSES="2", PROCESS="1")
    args = cli.parse(words)
    assert program == "t3d" and args.command == "train"
    assert (args.coordinator, args.processes, args.process) == ("t3d-hosts-0-0.t3d:8476", 2, 1)


def test_on_a_tpu_gke_says_it():
    program, *words = _command("tpu")
    args = cli.parse(words)
    assert program == "t3d" and args.command == "train" and args.distributed
    job = _job(JOBSETS["tpu"])
    chips = int(job["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"])
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    assert job["parallelism"] == job["completions"] == rows * columns // chips
