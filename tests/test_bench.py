"""The benches measure what they say, on a run of seconds."""

import json
import subprocess
import sys

import numpy as np
import pytest

from t3d import bench, bench_nerf, cli
from t3d.config import load_config
from t3d.data.speaker_dataset import SpeakerDataset


@pytest.fixture
def dataset(untrained):
    record = json.loads((untrained.workdir / "run.json").read_text())
    return SpeakerDataset(record["data"][0]["path"])


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "FEW", 12)
    monkeypatch.setattr(bench, "MANY", 12)
    monkeypatch.setattr(bench, "BATCHES", 8)


def test_the_input_keeps_up_and_the_workers_of_a_plan_are_told(dataset):
    plan = {"stage": "speech", "global_batch": 1000, "step_seconds": 0.5}
    found = bench.bench_data(load_config("tiny"), [dataset], ["speech"], plan)
    assert found["speech/cores_for_the_plan"] == pytest.approx(
        2000 / found["speech/samples_per_core_second"]
    )
    assert found["speech/samples_per_core_second"] > 100
    assert 0 <= found["speech/share_waited"] < 1
    assert found["speech/slowdown"] == pytest.approx(
        found["speech/step_seconds"] / found["speech/step_seconds_unfed"] - 1
    )


@pytest.mark.full
def test_a_population_is_timed_beside_a_run_of_its_own(dataset):
    found = bench.bench_population(load_config("tiny"), [dataset], "speech", 2)
    for kind in ("rates", "seeds"):
        one = found["alone/step_seconds"]
        assert found[f"{kind}/share"] == pytest.approx(found[f"{kind}/step_seconds"] / (2 * one))


@pytest.mark.full
def test_a_second_start_is_sooner(dataset, tmp_path, capsys):
    """How much sooner at a real size: docs/benchmarks.md."""
    command = ["bench", "startup", "--config", "tiny", "--data", str(dataset.path)]
    assert cli.main([*command, "--stage", "au", "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["times_sooner"] > 1.2, figures
    assert "times_sooner" in capsys.readouterr().out


def test_what_cannot_be_benched_is_one_line(dataset, tmp_path, capsys):
    command = ["bench", "data", "--data", str(dataset.path), "--config", "tiny"]
    assert cli.main([*command, "--stage", "nerv"]) == 2
    assert "there are sync" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{}")
    assert cli.main([*command, "--plan", str(tmp_path / "plan.json")]) == 2
    assert "t3d plan --json" in capsys.readouterr().err


def test_the_field_is_timed_beside_the_machines_ceiling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_nerf, "SIZES", ("tiny",))
    monkeypatch.setattr(bench_nerf, "SQUARES", (64,))
    monkeypatch.setattr(bench_nerf, "SECONDS", 0.0)
    monkeypatch.setattr(bench_nerf.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "nerf", "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["field_forward_share_of_ceiling"] == figures["tiny/field/share_of_ceiling"] > 0
    parts = {name.split("/")[1] for name in figures if name.startswith("tiny/")}
    fronts = {"field", "integral", "upsampler", "frame"}
    assert parts == fronts | {f"{name}_gradient" for name in fronts} | {"frames", "step"}
    # The first layer alone: 16 × 16 rays × 4 samples, 7 numbers (planes and place) to 16.
    assert figures["tiny/field/flops"] > 2 * 1024 * 7 * 16
    assert figures["tiny/field_gradient/flops"] > 2 * figures["tiny/field/flops"]
    assert figures["tiny/frame/flops"] > figures["tiny/field/flops"]
    at_once = bench_nerf.AT_ONCE_ON_CPUS
    many = at_once * figures["tiny/frame/flops"]  # but for what frames share
    assert figures["tiny/frames/flops"] == pytest.approx(many, rel=1e-3)
    per_second = figures["tiny/frames/frames_per_second"]
    assert per_second == pytest.approx(at_once / figures["tiny/frames/seconds"])
    assert figures["tiny/frames/points_per_second"] == pytest.approx(1024 * per_second)
    assert figures["tiny/step/memory_bytes"] > figures["tiny/frame/memory_bytes"] > 0
    assert "PyTorch is not installed" in capsys.readouterr().out


def test_frames_of_trained_heads_are_timed(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_nerf, "FRAMES", 4)
    monkeypatch.setattr(bench_nerf, "SECONDS", 0.0)
    out, workdir = tmp_path / "f.json", str(untrained.workdir)
    assert cli.main(["bench", "nerf", "--run", workdir, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures) == {f"frame_seconds/{workdir}", f"active_share/{workdir}"}
    assert figures[f"frame_seconds/{workdir}"] > 0
    assert 0.1 < figures[f"active_share/{workdir}"] < 0.9  # a head, and around it nothing


def test_a_process_counts_its_own_memory_and_not_its_parents():
    held = np.ones(1_500_000_000, np.uint8)
    asked = "from t3d import bench_nerf; print(bench_nerf._resident())"
    made = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert int(made.stdout) < held.nbytes < bench_nerf._resident()


def test_a_framework_that_fails_is_left_out_of_the_comparison(monkeypatch):
    times = {"jax": 2.0, "torch": 6.0, "torch_kept": 3.0}

    def found(who, what, log):
        seconds = times.get(who)
        return [{"seconds": seconds, "bytes": 10 * seconds}] if seconds else []

    monkeypatch.setattr(bench_nerf, "_in_process", found)
    figures = bench_nerf.beside_torch(lambda words: None)
    assert figures["peer/jax/step_times_faster"] == pytest.approx(1.5)
    assert figures["peer/jax/forward_memory_share"] == pytest.approx(2 / 3)
    assert not any("jax_lean" in name or "compiled" in name for name in figures)


def test_those_compared_are_measured_again_and_their_medians_count(monkeypatch):
    times = {"jax": [9.0, 2.0, 2.2], "torch_huge": [4.0, 5.0, 8.0]}
    times |= {"torch": [6.0], "torch_compiled_kept": [4.4, 4.4, 1.0]}
    asked = {"forward": [], "step": []}

    def found(who, what, log):
        asked[what].append(who)
        seconds = times.get(who, [])[asked[what].count(who) - 1 :][:1]
        return [{"seconds": s, "bytes": 10 * s} for s in seconds]

    monkeypatch.setattr(bench_nerf, "_in_process", found)
    figures = bench_nerf.beside_torch(lambda words: None)
    assert asked["step"][-6:] == ["jax", "torch_huge", "torch_compiled_kept"] * 2
    assert asked["step"].count("torch") == 1
    assert figures["peer/jax/step_seconds"] == pytest.approx(2.2)
    assert figures["peer/jax/step_times_faster"] == pytest.approx(5.0 / 2.2)
    assert figures["peer/jax/forward_times_faster_than_compiled"] == pytest.approx(2.0)
    assert figures["peer/jax/step_memory_share_of_compiled"] == pytest.approx(0.5)
