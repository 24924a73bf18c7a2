"""Runs that hear a file of features in place of the mel: trained, resumed, evaluated, rendered."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from scipy.io import wavfile

from t3d import bench, checkpoint, cli, evaluate, planning, population, render, run, talker
from t3d.config import load_config
from t3d.data import video
from t3d.data.prepare import Bars
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.speech.features import standardise

WIDTH = 24


@pytest.fixture(scope="module")
def dataset(untrained):
    return SpeakerDataset(checkpoint.read_run(untrained.workdir)["data"][0]["path"])


def mixed(mel, rate=50, seed=0):
    """What a speech model might make of a sound: [T, 24] at 50 a second, not of the mel's scale."""
    steps = np.arange(int(len(mel) * rate / 80)) * 80 // rate
    mixing = np.random.default_rng(seed).normal(size=(80, WIDTH))
    return (30 + 5 * mel[steps] @ mixing).astype(np.float16)


@pytest.fixture(scope="module")
def files(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    np.save(folder / f"{dataset.name}.npy", mixed(dataset.mel))
    np.save(folder / "mel.npy", dataset.mel)
    return folder


def config_of(file, *overrides):
    rarely = [
        f"stages.{stage}.{every}=0"
        for stage in ("lip", "speech")
        for every in ("validate_every", "save_every")
    ]
    # FuseNet must undo what an encoder that knows nothing says of the lips.
    said = [f"features.file={file}", "stages.lip.steps=60", "speech.leak_weight=0"]
    return load_config("tiny", [*said, *rarely, *overrides])


@pytest.fixture(scope="module")
def trained(untrained, dataset, files, tmp_path_factory):
    """LipNet, StyleNet and FuseNet learn from features; the other networks know nothing."""
    workdir = tmp_path_factory.mktemp("heard") / "run"
    config = config_of(files / "{name}.npy")
    stages = checkpoint.read_run(untrained.workdir)["stages"]
    checkpoint.update_run(workdir, **run.record_of(config, [dataset]), stages=stages)
    shutil.copytree(untrained.workdir / "params", workdir / "params")
    for stage in ("lip", "speech"):
        run.train(config, [dataset], workdir, only=stage, log=lambda line: None)
    return run.open_run(workdir)


@pytest.fixture(scope="module")
def learners(dataset, files, tmp_path_factory):
    """Of two runs: one hears a file that is the mel, the other the mel."""
    folder = tmp_path_factory.mktemp("learners")
    configs = config_of(files / "mel.npy", "features.rate=80"), config_of("")
    return [
        run.Learner(config, [dataset], folder / name, folder / "cache", lambda line: None)
        for name, config in zip(("file", "mel"), configs)
    ]


def test_a_file_that_is_the_mel_gives_the_mels_batches_standardised(dataset, learners):
    sources = [learner.sources["train"] for learner in learners]
    fields = ("mel", "mel5", "mel16", "mel16_shifted", "frame")
    ours, theirs = (next(s.batches(fields, 8, 0, "lip", mel_steps=11)) for s in sources)
    train = set(dataset.frames("train"))
    said = dataset.mel[[k for k in range(len(dataset.mel)) if int(k / 80 * 25) in train]]
    for name in ("mel", "mel5"):
        expected = (theirs[name] - said.mean(0)) / said.std(0) * 0.96 - 1.7
        np.testing.assert_allclose(ours[name], expected, atol=1e-4)
    for name in ("mel16", "mel16_shifted", "frame"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_networks_take_the_features_width_and_learn_from_them(trained, dataset):
    record = checkpoint.read_run(trained.workdir)
    for stage in ("lip", "speech"):
        entry = record["stages"][stage]
        assert entry["loss_last"] < 0.95 * entry["loss_first"], entry
    assert trained.speakers[0].feature_width == WIDTH
    heard = run.hear_clip(trained, trained.speakers[0], dataset)
    assert heard.shape == (len(dataset.mel), WIDTH)
    first, second = (
        run.motion_of(trained, trained.speakers[0], sound, 8) for sound in (heard, heard[::-1])
    )
    assert np.abs(first.expression - second.expression).max() > 1e-4


def test_a_run_goes_on_with_the_features_it_began_with_and_with_no_others(
    trained, dataset, files, tmp_path
):
    file = files / f"{dataset.name}.npy"
    moved = shutil.copy(file, tmp_path / "moved.npy")
    lines = []
    run.train(config_of(moved), [dataset], trained.workdir, only="lip", log=lines.append)
    assert any("lip: is done" in line for line in lines)
    np.save(tmp_path / "other.npy", mixed(dataset.mel, seed=1))
    before = (trained.workdir / "run.json").read_text()
    for changes, told in (
        ([tmp_path / "other.npy"], r"other\.npy"),
        ([file, "features.rate=51"], "51 steps a second"),
        ([""], "not on the mel"),
    ):
        with pytest.raises(UserError, match=rf"was trained on .*moved\.npy.*{told}.*--workdir"):
            run.train(config_of(*changes), [dataset], trained.workdir)
    assert (trained.workdir / "run.json").read_text() == before


def test_evaluation_hears_the_features_and_never_the_mel(trained, dataset):
    speaker, frames = trained.speakers[0], dataset.frames("test")[:2]
    deaf = SpeakerDataset(dataset.path)
    deaf.mel = np.zeros_like(dataset.mel)
    films = []
    for data in (dataset, deaf):
        motion = run.motion_of(trained, speaker, run.hear_clip(trained, speaker, data), frames)
        truth = evaluate.truth_of(data, frames, trained.config.size)
        films.append(evaluate._films(trained, speaker, data, motion, truth, Bars()))
    for system in ("ours", "other_audio"):
        np.testing.assert_array_equal(films[0][system], films[1][system])


def test_a_planned_batch_has_the_width_of_the_file(dataset, files):
    config = config_of(files / f"{dataset.name}.npy")
    batch = planning.abstract_batch(config, ("mel", "mel5", "mel16"), 2)
    shapes = {name: leaf.shape for name, leaf in batch.items()}
    assert shapes == {
        "mel": (2, config.mel_steps, WIDTH),
        "mel5": (2, 5, config.mel_steps, WIDTH),
        "mel16": (2, 16, 80),
    }


@pytest.fixture
def sound(tmp_path):
    samples = np.random.default_rng(0).normal(0, 3000, 16000).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 16000, samples)
    return tmp_path / "a.wav"


def rendered(workdir, sound, out, *options):
    command = ["render", "--workdir", str(workdir), "--audio", str(sound), "--out", str(out)]
    return cli.main([*command, *map(str, options)])


def test_render_takes_the_features_of_its_sound(trained, sound, tmp_path):
    features = np.random.default_rng(0).normal(30, 5, (50, WIDTH))
    np.save(tmp_path / "x.npy", features)
    out = tmp_path / "x.mp4"
    assert rendered(trained.workdir, sound, out, "--features", tmp_path / "x.npy") == 0
    assert len(list(video.read_frames(out))) == 25
    speaker, audio = trained.speakers[0], video.read_audio(sound)
    heard = render.hear(trained, speaker, audio, tmp_path / "x.npy")
    mean, deviation = speaker.feature_scale
    assert heard.shape == (81, WIDTH)
    np.testing.assert_allclose(
        heard[8], 0.96 * (features[5] - mean) / deviation - 1.7, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "shape, told",
    [
        (None, "--features FILE.npy"),
        ((50, WIDTH + 1), "25 features a step.*24"),
        ((25, WIDTH), "a rate of 25 would fit"),
    ],
)
def test_render_says_which_features_it_needs(trained, sound, tmp_path, capsys, shape, told):
    options = ()
    if shape:
        np.save(tmp_path / "x.npy", np.zeros(shape))
        options = ("--features", tmp_path / "x.npy")
    assert rendered(trained.workdir, sound, tmp_path / "a.mp4", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)
    assert not (tmp_path / "a.mp4").exists()


def test_render_refuses_features_for_a_run_that_hears_the_mel(untrained, sound, tmp_path, capsys):
    assert rendered(untrained.workdir, sound, tmp_path / "a.mp4", "--features", "x.npy") == 2
    assert "--features x.npy" in capsys.readouterr().err


def another_speaker(dataset, folder):
    shutil.copytree(dataset.path, folder)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"name": "another"}))
    return SpeakerDataset(folder)


def test_several_speakers_have_a_file_each_of_one_width(dataset, files, tmp_path):
    both = [dataset, another_speaker(dataset, tmp_path / "another")]
    with pytest.raises(UserError, match="mel.npy: is one file for 2 speakers.*{name}"):
        run.check_datasets(config_of(files / "mel.npy"), both)
    np.save(tmp_path / f"{dataset.name}.npy", mixed(dataset.mel))
    np.save(tmp_path / "another.npy", mixed(dataset.mel)[:, 1:])
    config = config_of(tmp_path / "{name}.npy")
    with pytest.raises(UserError, match="24, another 23.*one model"):
        run.check_datasets(config, both)
    np.save(tmp_path / "another.npy", 7 + 2 * mixed(dataset.mel).astype(np.float32))
    run.check_datasets(config, both)
    own = [standardise(run._features_of(config, d), run._feature_scale(config, d)) for d in both]
    np.testing.assert_allclose(*own, atol=1e-3)  # each by its speaker's mean and deviation
    with pytest.raises(UserError, match="none_speaker.npy: no such feature file"):
        run.check_datasets(config_of(tmp_path / "none_{name}.npy"), both)


def test_train_says_in_one_line_what_is_wrong_with_the_features(dataset, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((50, 4)))
    command = ["train", "--config", "tiny", "--data", str(dataset.path)]
    command += ["--workdir", str(tmp_path / "run"), f"--config.features.file={tmp_path}/x.npy"]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.npy" in line and "a rate of 25 would fit" in line and not (tmp_path / "run").exists()
    assert cli.main([*command, "--config.features.rate=0"]) == 2
    assert "config.features.rate=0" in capsys.readouterr().err


def test_an_untrained_run_for_the_benches_has_networks_of_the_features_width(
    trained, dataset, files, tmp_path
):
    bench.untrained_run(config_of(files / "{name}.npy"), [dataset], tmp_path / "run")
    for stage, learned in trained.params.items():
        made = checkpoint.load_params(tmp_path / "run" / "params" / stage)
        assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, learned)


def test_members_of_a_population_that_hear_differently_share_only_what_does_not_hear(learners):
    for learner in learners:
        checkpoint.update_run(learner.workdir, stages={"sync": {"sha256": "1"}})
    for stage in ("sync", "lip", "au"):
        groups = population._alike(learners, stage)
        assert sum(map(len, groups)) == (2 if stage in talker.HEARING else 1)
