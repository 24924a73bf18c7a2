"""What `t3d evaluate --speech` says of codes whose secrets are known, and of a run."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from t3d import bench, cli, disentanglement
from t3d import config as configs
from t3d import run as runs
from t3d import talker as talkers
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.disentanglement import Heard
from t3d.errors import UserError
from t3d.prior import basis, morphable

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "disentanglement.ipynb"
COUNTS = {"train": 400, "validation": 100, "test": 150}


@pytest.fixture(scope="module")
def workdir(untrained, tmp_path_factory):
    """A run of two speakers: the synthetic one, and one with its video, but
    another face and the sound reversed."""
    folder = tmp_path_factory.mktemp("two")
    first = Path(json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"])
    second = folder / "other"
    shutil.copytree(first, second)
    meta = json.loads((second / "meta.json").read_text())
    (second / "meta.json").write_text(json.dumps(meta | {"name": "other", "fingerprint": "f" * 12}))
    with np.load(second / "track.npz") as stored:
        track = dict(stored) | {"identity": stored["identity"] + np.float32(0.5)}
    np.savez(second / "track.npz", **track)
    np.save(second / "mel.npy", np.load(first / "mel.npy")[::-1] * 0.7)
    datasets = [SpeakerDataset(first), SpeakerDataset(second)]
    config = configs.load_config("tiny")
    bench.untrained_run(config, datasets, folder / "run")
    speakers = [runs._speaker(config, dataset, row) for dataset, row in zip(datasets, (0, 50))]
    speakers[1] = replace(speakers[1], identity_face=1 - speakers[1].identity_face)
    runs._save_speakers(folder / "run", speakers)
    for stage in ("sync", "nerf", "au", "space"):  # a run in which only speech is learned
        shutil.rmtree(folder / "run" / "params" / stage)
    return folder / "run"


@pytest.fixture(scope="module")
def opened(workdir):
    return disentanglement.open_voices(workdir)


@pytest.fixture(scope="module")
def found(opened):
    return disentanglement.figures(*opened)


# ---- what is heard


def test_every_sound_is_heard_on_every_identity(opened):
    run, (voice, other) = opened
    test = voice.heard["test"]
    moved = runs.motion_of(run, other.speaker, voice.dataset.mel, test.frames)
    np.testing.assert_array_equal(test.aud[1], moved.speech)
    np.testing.assert_array_equal(test.style[1], moved.style)
    assert np.abs(test.aud[0] - test.aud[1]).max() > 1e-3  # another identity image
    assert np.abs(test.style[0] - test.style[1]).max() > 1e-3  # another identity code
    np.testing.assert_array_equal(
        voice.read("both", "test"), np.hstack([test.aud[0], test.style[0]])
    )
    track = voice.dataset.track
    np.testing.assert_array_equal(test.tracked, track["expression"][test.frames])


def test_a_swap_keeps_the_aud_code_and_takes_the_others_style(opened):
    run, (voice, other) = opened
    aud, style = voice.heard["test"].aud[0], other.heard["train"].style[1]
    assert len(aud) < len(style)
    fuse = jax.jit(partial(talkers.fuse, run.talker, run.params))
    with talkers.exact():
        expected = fuse(aud, style[: len(aud)]).expression
    np.testing.assert_allclose(disentanglement.swapped(run, voice, other), expected, atol=1e-4)
    # Where the other has said less, its style comes again.
    few = replace(other.heard["train"], style=other.heard["train"].style[:, :3])
    brief = replace(other, heard=other.heard | {"train": few})
    with talkers.exact():
        expected = fuse(aud, style[np.arange(len(aud)) % 3]).expression
    np.testing.assert_allclose(disentanglement.swapped(run, voice, brief), expected, atol=1e-4)


def test_full_audio_is_smoothed_as_codes_are(opened):
    run, (voice, _) = opened
    sharp = run.config.copy_and_resolve_references()
    sharp.speech.smooth = 0.0
    heard = disentanglement._hear(
        replace(run, config=sharp), voice.dataset.mel, voice.dataset, "test"
    )
    frames = voice.heard["test"].frames
    windows = runs.mel_windows(voice.dataset.mel, frames, sharp.mel_steps)
    np.testing.assert_array_equal(heard.audio, windows.reshape(len(frames), -1))
    smooth = runs.smooth(heard.audio, run.config.speech.smooth)
    np.testing.assert_allclose(voice.heard["test"].audio, smooth, atol=1e-5)


# ---- planted codes


@pytest.fixture(scope="module")
def planted(opened):
    """Voices whose f_exp-aud is the mouth alone and whose f_exp-style is the speaker alone."""
    rng, (_, real) = np.random.default_rng(0), opened
    return [replace(voice, heard={s: plant(rng, n, voice) for s, n in COUNTS.items()})
            for voice in real]  # fmt: skip


def plant(rng, count, voice):
    opening = 0.1 + np.abs(rng.normal(0, 0.05, count))
    aud, style = rng.normal(size=(2, 2, count, 79))
    aud[..., 0] = 20 * opening + rng.normal(0, 0.1, (2, count))
    style[..., 1] += 8 * voice.number
    style[1] += 3  # what the identity code itself adds
    tracked = rng.normal(voice.number, 1, (count, 79))
    audio = np.concatenate([aud[0], style[0]], 1)
    return Heard(np.arange(count), opening, tracked, audio, aud, style, aud + style)


def test_a_mouth_that_only_aud_holds_is_told_from_aud_and_style_adds_nothing(planted):
    found = disentanglement.opening_figures(planted[0])
    spread = planted[0].heard["test"].opening.std()
    expected = 1 / (1 + (0.1 / 20 / spread) ** 2)  # the noise that was planted
    assert found["opening/aud/r2"] == pytest.approx(expected, abs=0.05)
    assert found["opening/style/r_low"] < 0 < found["opening/style/r_high"]
    assert abs(found["opening/adds/r"]) < 0.02 and abs(found["opening/adds/r2"]) < 0.02
    assert found["opening/audio/r"] > 0.9
    assert found["opening/chance/r"].startswith("not available") and found["opening/chance/r2"] <= 0


def test_a_code_that_is_switched_off_follows_nothing(planted):
    """As f_exp-aud in a run of speech.inputs=entire (Table II)."""
    silent = {s: replace(h, aud=np.zeros_like(h.aud)) for s, h in planted[0].heard.items()}
    found = disentanglement.opening_figures(replace(planted[0], heard=silent))
    assert found["opening/aud/r"].startswith("not available") and found["opening/aud/r2"] <= 0
    assert found["opening/adds/r"] == pytest.approx(found["opening/both/r"])


def test_a_speaker_that_only_style_holds_is_told_from_style_whatever_the_identity(planted):
    found = disentanglement.speaker_figures(planted)
    assert found["chance/accuracy"] == 0.5
    assert found["style/accuracy"] > 0.99 and found["audio/accuracy"] > 0.99
    assert found["aud/accuracy"] == pytest.approx(0.5, abs=0.1)
    assert found["less/accuracy"] == pytest.approx(found["style/accuracy"] - found["aud/accuracy"])


def test_a_style_that_is_the_identity_code_alone_tells_no_sound(planted):
    def deaf(heard):
        return replace(heard, style=heard.style - 8 * voice.number * np.eye(79)[1])

    voices = []
    for voice in planted:
        voices.append(replace(voice, heard={s: deaf(h) for s, h in voice.heard.items()}))
    found = disentanglement.speaker_figures(voices)
    assert found["style/accuracy"] == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def adding(opened):
    """The run, with a FuseNet that adds its two codes."""
    run, _ = opened
    fuse = run.params["speech"]["fuse"]["params"]
    last = max(fuse)
    plain = fuse | {last: jax.tree.map(np.zeros_like, fuse[last])}
    speech = run.params["speech"] | {"fuse": {"params": plain}}
    return replace(run, params=run.params | {"speech": speech})


def test_a_style_that_is_the_missing_part_leaves_no_error_of_brows_and_eyes(adding, planted):
    voice = planted[1]
    test = voice.heard["test"]
    style = test.tracked - test.aud
    voice = replace(voice, heard=voice.heard | {"test": replace(test, style=style)})
    found = disentanglement.manner_figures(adding, voice)
    assert found["upper_face/own/mm"] < 1e-5
    for name in ("shuffled", "mean", "training"):
        assert found[f"upper_face/{name}/lower_squared"] == pytest.approx(100, abs=1e-6)
    assert found["deviation/style"] == pytest.approx(np.sqrt(style[1].var(0).sum()))
    assert found["deviation/style/07"] == pytest.approx(style[1][:, 7].std())


def test_a_style_without_time_is_worth_nothing_in_time(adding, planted):
    """One that says what is mean of the tracked expression: it and its shuffles are the same."""
    voice = planted[0]
    test = voice.heard["test"]
    still = replace(
        test,
        aud=np.zeros_like(test.aud),
        style=np.broadcast_to(voice.heard["train"].tracked.mean(0), test.style.shape),
    )
    voice = replace(voice, heard=voice.heard | {"test": still})
    found = disentanglement.manner_figures(adding, voice)
    for name in ("shuffled", "mean", "training"):
        assert found[f"upper_face/{name}/lower"] == pytest.approx(0, abs=1e-3)
    assert max(found["deviation/style"], found["deviation/style/00"]) < 1e-9


def test_brows_and_eyes_move_as_the_models_landmarks_do(opened):
    _, (voice, _) = opened
    model = basis.load(voice.speaker.prior)
    marks = morphable.restrict(model, model.landmarks68[list(disentanglement.UPPER_FACE)])
    codes = np.random.default_rng(0).normal(size=(3, 79)).astype(np.float32)
    rest = morphable.vertices(marks, voice.speaker.identity, np.zeros(79, np.float32))
    expected = 10 * (morphable.vertices(marks, voice.speaker.identity, codes) - rest)
    np.testing.assert_allclose(voice.upper_face(codes), expected, atol=1e-3)


def test_a_swap_that_changes_nothing_and_one_that_goes_all_the_way(planted):
    voice, other = planted
    own, goal = voice.heard["test"].fused[0], other.heard["train"].tracked
    same = disentanglement.swap_figures(voice, other, own)
    assert same["timing_r"] == 1 and same["lag"] == 0
    assert [same[f"{name}/nearer"] for name in ("mean", "upper_face", "deviation")] == [0, 0, 0]
    moved = (own - own.mean(0)) / own.std(0) * goal.std(0) + goal.mean(0)
    there = disentanglement.swap_figures(voice, other, moved)
    for name in ("mean", "upper_face", "deviation"):
        assert there[f"{name}/after"] < 1e-6 < there[f"{name}/before"]
        assert there[f"{name}/nearer"] == pytest.approx(100)
    half = disentanglement.swap_figures(voice, other, own + 0.5 * (goal.mean(0) - own.mean(0)))
    assert half["mean/nearer"] == pytest.approx(50)


def test_late_lips_of_a_swap_are_seen(planted):
    voice, other = planted
    late = np.roll(voice.heard["test"].fused[0], 3, 0)
    found = disentanglement.swap_figures(voice, other, late)
    assert found["lag"] == 3 and found["timing_r"] < 0.5


# ---- a run


def test_figures_of_a_run_are_flat_and_complete(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    keys = [f"{name}/{key}" for name in ("speaker", "other") for key in (
        "opening/aud/r", "opening/style/r2", "opening/both/r", "opening/audio/r_low",
        "opening/adds/r_high", "deviation/style", "upper_face/shuffled/lower_squared")]  # fmt: skip
    keys += [f"speakers/{what}/accuracy" for what in ("chance", "aud", "style", "audio", "less")]
    keys += ["swap/speaker/other/timing_r", "swap/other/speaker/mean/nearer_low"]
    assert not [key for key in keys if key not in found]
    assert all(isinstance(value, (int, float, str)) for value in found.values())


def test_one_speaker_is_told_what_it_takes_two_for(opened):
    run, (voice, _) = opened
    found = disentanglement.figures(run, [voice])
    assert "two speakers" in found["speakers"] and "--data a,b" in found["swap"]
    assert not [key for key in found if key.startswith(("speakers/", "swap/"))]
    titles = [section.title for section in disentanglement.tables(found, ["speaker"])]
    assert len(titles) == 3 and "Whose sound it was, told from" not in titles
    assert sum("two speakers" in line for line in disentanglement.notes(found)) == 2


@pytest.fixture(scope="module")
def moved(opened, tmp_path_factory):
    """The two datasets in another place, in the run's order."""
    folder = tmp_path_factory.mktemp("moved")
    return [shutil.copytree(v.dataset.path, folder / v.name) for v in opened[1]]


def test_the_command_needs_no_field_and_writes_what_it_shows(
    workdir, moved, found, tmp_path, capsys
):
    out = tmp_path / "figures.json"
    command = ["evaluate", "--workdir", str(workdir), "--speech", "--json", str(out)]
    assert cli.main([*command, "--data", ",".join(map(str, moved))]) == 0
    told = json.loads(out.read_text())
    assert told == json.loads((workdir / "speech.json").read_text())
    assert told.keys() == found.keys()
    numbers = [key for key, value in found.items() if not isinstance(value, str)]
    expected = [found[key] for key in numbers]
    assert [told[key] for key in numbers] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    printed = capsys.readouterr().out
    assert "Whose sound it was" in printed and "speech.json" in printed
    assert f"{found['speakers/style/accuracy']:.3f}" in printed


@pytest.mark.parametrize(
    "more, said",
    [
        (["--views"], "--views does not go with --speech"),
        (["--split", "validation"], "--split does not go with --speech"),
        (["--data", "elsewhere"], "--data: give the datasets of speaker, other"),
        (["--data", "gone,elsewhere"], "gone: the dataset"),
    ],
)
def test_what_does_not_go_with_speech_is_one_line(workdir, more, said, capsys):
    assert cli.main(["evaluate", "--workdir", str(workdir), "--speech", *more]) == 2
    assert said in capsys.readouterr().err


def test_speech_of_two_videos_is_refused(capsys):
    assert cli.main(["evaluate", "--pred", "a.mp4", "--truth", "b.mp4", "--speech"]) == 2
    assert "--speech does not go with --pred" in capsys.readouterr().err


def test_a_run_whose_speech_is_not_trained_is_named(workdir, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(workdir, half)
    shutil.rmtree(half / "params" / "speech")
    with pytest.raises(UserError, match="stage speech is not trained"):
        disentanglement.open_voices(half)


def test_moved_datasets_are_wanted_in_the_runs_order(workdir, moved):
    with pytest.raises(UserError, match="not the dataset"):
        disentanglement.open_voices(workdir, moved[::-1])


# ---- the notebook


def test_the_notebook_opens_with_the_run_and_shows_tables_and_pictures(workdir, monkeypatch):
    how = "pip install -e '.[notebook]' (it is in the extra `test`)"
    nbclient, nbformat, _ = (
        pytest.importorskip(name, reason=how) for name in ("nbclient", "nbformat", "ipykernel")
    )
    monkeypatch.setenv("T3D_RUN", str(workdir))
    book = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    assert "RUN =" in first.source and len(first.source.splitlines()) == 3
    client = nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    pictures = [o for o in outputs if "image/svg+xml" in o.get("data", {})]
    assert len(pictures) == 2 + 1 + 2 + 2 + 1
    text = "".join(o.get("data", {}).get("text/html", "") for o in outputs)
    titles = (
        "Mouth opening on",
        "Whose sound",
        "Style within",
        "Brows and eyes",
        "Another speaker",
    )
    assert not [title for title in titles if title not in text]
    assert not [o for o in outputs if o.get("name") == "stderr"]
