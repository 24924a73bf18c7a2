"""The whole chain, for real and small: synthesise, prepare, train all stages, continue, render."""

import json

import numpy as np
import pytest

from t3d import checkpoint, cli, run, talker
from t3d.config import load_config
from t3d.data.prepare import prepare
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.data.synthetic import synthesize
from t3d.errors import UserError

# How far each stage's loss must have fallen over its steps (last tenth against first tenth).
FALL = dict(sync=0.97, lip=0.9, prior=0.7, speech=0.8, nerf=0.5, au=0.9, space=0.7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    synthesize(folder / "speaker", seconds=8, views=0, size=64, seed=3)
    prepare(folder / "speaker", folder / "data", size=64)
    return SpeakerDataset(folder / "data")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    run.train(load_config("tiny"), [dataset], workdir)
    return workdir


def test_every_stage_learns(trained):
    entries = checkpoint.read_run(trained)["stages"]
    assert tuple(entries) == talker.STAGES
    for name, entry in entries.items():
        assert entry["loss_last"] < FALL[name] * entry["loss_first"], (name, entry)


def test_every_training_frame_is_left_to_one_ear_and_other_frames_to_none(dataset, tmp_path):
    learner = run.Learner(load_config("tiny"), [dataset], tmp_path / "run", tmp_path / "cache")
    deaf, train = learner._deaf_ears(dataset, learner.speakers[0]), dataset.frames("train")
    assert (np.diff(deaf[train]) >= 0).all()  # parts of the clip, not frames here and there
    counts = np.bincount(deaf[train])
    assert len(counts) == 2 and np.ptp(counts) <= 1
    assert (np.delete(deaf, train) == -1).all()


def test_a_finished_run_is_left_as_it_is(trained, dataset):
    before = (trained / "run.json").read_text()
    lines = []
    run.train(load_config("tiny"), [dataset], trained, log=lines.append)
    after = json.loads((trained / "run.json").read_text())
    assert after["stages"] == json.loads(before)["stages"]
    assert sum("is done" in line for line in lines) == len(talker.STAGES)


def test_a_stage_whose_predecessors_are_missing_says_which(dataset, tmp_path, capsys):
    code = cli.main(
        ["train", "--config", "tiny", "--data", str(dataset.path), "--workdir", str(tmp_path / "r")]
        + ["--stage", "nerf"]
    )
    assert code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lip, prior, speech" in line and "t3d train" in line


def test_the_sound_moves_the_head_and_the_camera_turns_it(trained, dataset):
    opened = run.open_run(trained)
    speaker = opened.speakers[0]
    motion = run.motion_of(opened, speaker, dataset.mel, 8)
    other = run.motion_of(opened, speaker, dataset.mel[200:], 8)
    assert np.abs(motion.expression - other.expression).max() > 1e-3
    pose = np.broadcast_to(speaker.still_pose, (8, 4, 4))
    front = np.broadcast_to(np.eye(4, dtype=np.float32), (8, 4, 4))
    (drawn,) = run.render_frames(opened, speaker, motion, pose, front)
    assert drawn["standardised"].shape == drawn["nerf"].shape == (8, 32, 32, 3)
    assert (drawn["alpha"][:, 0, 0] == 0).all() and drawn["alpha"].max() > 0.5


@pytest.mark.full
def test_two_speakers_train_together_with_the_papers_own_choices(
    dataset, prepared_speaker, tmp_path
):
    config = load_config(
        "tiny", ["paper=True"] + [f"stages.{name}.steps=2" for name in talker.STAGES]
    )
    run.train(config, [dataset, SpeakerDataset(prepared_speaker)], tmp_path / "paper")
    opened = run.open_run(tmp_path / "paper")
    assert len(opened.speakers) == 2 and opened.speakers[1].row == dataset.num_frames


def test_a_finished_run_refuses_another_architecture_and_says_which_value(trained, dataset):
    before = (trained / "run.json").read_text()
    with pytest.raises(UserError, match="nerf.width=16, not 24"):
        run.train(load_config("tiny", ["nerf.width=24"]), [dataset], trained)
    assert (trained / "run.json").read_text() == before


def test_a_sweep_trains_what_differs_and_prints_both_tables(trained, dataset, tmp_path, capsys):
    sweep = tmp_path / "two.py"
    sweep.write_text(
        "from t3d.configs.tiny import get_config\n"
        "MEMBERS = {'full': (), 'without_au': ('space.use_au=False',)}\n"
        "TABLES = {'Table III': (('w/o AU', 'without_au', (0.832, 0.039, 73.1, 2.624, 1.719)),\n"
        "    ('Ours', 'full', (0.835, 0.037, 75.3, 2.529, 1.956)))}\n"
    )
    out = tmp_path / "sweep"
    command = ["sweep", "--config", str(sweep), "--data", str(dataset.path), "--out", str(out)]
    assert cli.main([*command, "--start-from", str(trained)]) == 0
    said = capsys.readouterr().out
    full, without = (out / name / dataset.name for name in ("full", "without_au"))
    assert all("taken_from" in e for e in checkpoint.read_run(full)["stages"].values())
    own = [n for n, e in checkpoint.read_run(without)["stages"].items() if "taken_from" not in e]
    assert own == ["space"]
    results = json.loads((out / "results.json").read_text())
    alone = json.loads((full / "metrics.json").read_text())
    assert results["full/ssim"] == pytest.approx(alone["ours/ssim"])
    assert results["without_au/ssim"] != results["full/ssim"]
    difference = results["without_au/against_full/ssim"]
    assert difference == pytest.approx(results["without_au/ssim"] - results["full/ssim"], abs=1e-5)
    assert "0.832 / 0.039 / 73.1 / 2.624 / 1.719" in (out / "results.md").read_text()
    assert "Ground-truth" in said
    measured = (full / "metrics.json").stat().st_mtime
    assert cli.main([*command, "--start-from", str(trained)]) == 0  # nothing is done again
    assert (full / "metrics.json").stat().st_mtime == measured


@pytest.mark.full
def test_a_population_of_a_sweep_trains_together_what_differs_in_numbers(
    trained, dataset, tmp_path, capsys
):
    sweep = tmp_path / "rates.py"
    sweep.write_text(
        "from t3d.configs.tiny import get_config\n"
        "from t3d.config import product\n"
        "def sweep():\n"
        "    return product({'stages.nerf.learning_rate': (1e-2, 2e-2)})\n"
    )
    command = ["sweep", "--config", str(sweep), "--data", str(dataset.path)]
    command += ["--out", str(tmp_path / "out"), "--start-from", str(trained), "--population"]
    assert (
        cli.main([*command, "--config.stages.nerf.steps=20", "--config.stages.space.steps=3"]) == 0
    )
    said = capsys.readouterr().out
    assert "nerf: 2 members to train, 2 members as one program" in said
    folders = [p.parent for p in sorted((tmp_path / "out").rglob("run.json"))]
    records = [checkpoint.read_run(folder)["stages"] for folder in folders]
    for stages in records:
        assert stages["nerf"]["population"] == 2 and stages["space"]["population"] == 2
        assert all("taken_from" in stages[name] for name in ("sync", "lip", "prior", "speech"))
    assert records[0]["nerf"]["sha256"] != records[1]["nerf"]["sha256"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len({v for k, v in results.items() if k.endswith("/ssim_head")} - {1.0}) >= 2
    assert cli.main([*command, "--member", "0"]) == 2
    assert "--population" in capsys.readouterr().err


def test_a_damaged_speaker_file_is_named(trained):
    path = trained / "speaker_0.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    try:
        with pytest.raises(UserError, match="speaker_0.npz"):
            run.open_run(trained)
    finally:
        path.write_bytes(whole)
