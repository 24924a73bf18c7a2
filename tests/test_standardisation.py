"""What `t3d evaluate --space` says of a space whose secrets are known, and of a run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from t3d import cli
from t3d import run as runs
from t3d import standardisation as st
from t3d import talker as talkers
from t3d.data.speaker_dataset import SpeakerDataset


@pytest.fixture(scope="module")
def dataset(untrained):
    entry = json.loads((untrained.workdir / "run.json").read_text())["data"][0]
    return SpeakerDataset(Path(entry["path"]))


@pytest.fixture(scope="module")
def frames(untrained, dataset):
    all_of = st.frames_of(untrained, untrained.speakers[0], dataset, "train")
    few = slice(0, 11)  # more than a batch, and not two
    motion = jax.tree.map(lambda x: x[few], all_of.motion)
    parts = (getattr(all_of, name)[few] for name in ("numbers", "real", "masks"))
    return st.Frames("train", *parts, motion, all_of.renders[few])


def test_images_go_through_the_space_as_they_do_one_by_one(untrained, frames):
    run, together = untrained, st.through(untrained, frames.real)
    for k in (0, 10):
        alone, _ = talkers.standardise(run.talker, run.params, frames.real[k : k + 1] / 255.0)
        assert np.abs(together[k] - np.asarray(alone[0]) * 255).max() < 1
    again = st.through(run, frames.real, st.quantised("au", "global"))
    np.testing.assert_array_equal(again, together)


def test_what_is_not_quantised_is_decoded_as_it_was_asked(untrained, frames):
    """Codes that are the queries themselves change nothing."""
    run, image = untrained, frames.real[:1] / 255.0
    asked = {}

    def keep(space, queries, found):
        asked[space] = queries
        return found.values

    talkers.standardise(run.talker, run.params, image, keep)
    leaves = dict(run.params["space"]["params"])
    rows = asked["global"].reshape(-1, asked["global"].shape[-1])
    leaves["global_codebook"] = rows[np.arange(len(leaves["global_codebook"])) % len(rows)]
    exact = replace(run, params=run.params | {"space": {"params": leaves}})
    only_au = st.through(run, frames.real[:1], st.quantised("au"))
    np.testing.assert_allclose(
        only_au.astype(int), st.through(exact, frames.real[:1]).astype(int), atol=1
    )
    assert (only_au != st.through(run, frames.real[:1])).any()


def test_rows_of_codes_are_those_of_the_frames(untrained, frames):
    run, rows = untrained, runs.codes_of(untrained.talker, untrained.params, frames.real)
    _, found = talkers.standardise(run.talker, run.params, frames.real[10:] / 255.0)
    np.testing.assert_array_equal(rows["global"][10:], found["global"].indices)
    np.testing.assert_array_equal(rows["au"][10:], np.asarray(found["au"].indices).T)


@pytest.mark.parametrize("space", ["au", "global"])
def test_shuffled_codes_are_other_codes_of_the_same_book(untrained, frames, space):
    run, image = untrained, frames.real[:2] / 255.0
    book = np.asarray(run.params["space"]["params"][f"{space}_codebook"])
    given = {}
    exchange = st.shuffled(run, space)

    def keep(name, queries, found):
        given[name] = np.asarray(exchange(name, queries, found)), np.asarray(found.values)
        return found.values

    talkers.standardise(run.talker, run.params, image, keep)
    other, usual = given[space]
    assert np.abs(other - usual).max() > 0
    rows = book.reshape(-1, book.shape[-1])
    apart = np.abs(other.reshape(-1, 1, other.shape[-1]) - rows).max(-1).min(1)
    assert apart.max() == 0
    untouched = "global" if space == "au" else "au"
    np.testing.assert_array_equal(*given[untouched])


@pytest.mark.parametrize("kind", st.KINDS)
def test_a_disturbance_is_the_same_every_time(untrained, dataset, frames, kind):
    if kind in ("noise", "blur"):  # an untrained field's renders have nothing to blur
        frames = replace(frames, renders=frames.real)
    once, again = (
        st.disturbed(untrained, untrained.speakers[0], dataset, frames, kind) for _ in range(2)
    )
    np.testing.assert_array_equal(once, again)
    assert once.shape == frames.renders.shape and once.dtype == np.uint8
    assert (once != frames.renders).any()  # an untrained field hardly moves
    if kind == "noise":
        middle = (frames.renders > 60) & (frames.renders < 195)
        off = (once.astype(float) - frames.renders)[middle]
        assert off.std() == pytest.approx(255 * st.NOISE, rel=0.05) and abs(off.mean()) < 1


@pytest.mark.parametrize("space, closer", [("returns the real frames", 1), ("does nothing", 0)])
def test_a_space_is_told_by_what_it_does(untrained, frames, monkeypatch, space, closer):
    returned = frames.real if closer else frames.renders
    monkeypatch.setattr(st, "through", lambda *_: returned)
    found = st._brought_back(untrained, frames, frames.renders, "blur")
    for part in st.PARTS:
        assert found[f"disturbed/blur/{part}/closer"] == closer
        after = found[f"disturbed/blur/{part}/after"]
        assert (after == pytest.approx(1)) if closer else (after == found["disturbed/blur/before"])


def test_what_is_told_of_codebooks_is_below_the_tables():
    found = {"frames": 9, "split": "test", "detector": "x", "codes/global/words": "a collapse"}
    assert "9 frames of the test split" in st.notes(found)[0] and "a collapse" in st.notes(found)


def test_parts_are_of_the_spaces_in_use(untrained):
    config = untrained.config.copy_and_resolve_references()
    assert list(st.parts_of(untrained)) == ["none", "au", "global", "both"]
    config.space.use_au = False
    assert list(st.parts_of(replace(untrained, config=config))) == ["none", "global"]


def test_the_command_writes_what_it_prints(untrained, tmp_path, capsys):
    place = tmp_path / "space.json"
    assert cli.main(["evaluate", "--workdir", str(untrained.workdir), "--space",
                     "--json", str(place)]) == 0  # fmt: skip
    found, shown = json.loads(place.read_text()), capsys.readouterr().out
    assert found == json.loads((untrained.workdir / "space.json").read_text())
    for kind, words in st.KINDS.items():
        assert words.split()[0] in shown
        for part in st.PARTS:
            share = found[f"disturbed/{kind}/{part}/closer"]
            assert 0 <= found[f"disturbed/{kind}/{part}/closer_low"] <= share <= 1
    assert 0 < found["codes/global/used"] <= 1 and 0 < found["codes/global/perplexity"] <= 1
    assert 0 < found["kmeans/perplexity"] <= found["kmeans/used"] <= 1
    assert -1 < found["shuffled/global"] < 1 and found["clean/ssim"] < 1


def test_it_goes_with_no_other_measurement(capsys):
    for other in (["--speech"], ["--views"], ["--pred", "a.mp4", "--truth", "b.mp4"]):
        run = [] if "--pred" in other else ["--workdir", "x"]
        assert cli.main(["evaluate", *run, "--space", *other]) == 2
        assert "--space" in capsys.readouterr().err


def test_a_frame_without_a_face_does_not_make_the_mouth_follow(
    untrained, dataset, frames, monkeypatch
):
    truth = np.sin(np.arange(len(frames.numbers)))
    frozen = np.where(truth > 0, 0.5, np.nan)  # a mouth that is never closed, or not found
    seen = iter([truth, frozen, truth, frozen])
    monkeypatch.setattr(st, "through", lambda run, images: images)
    monkeypatch.setattr(st.evaluate, "find_faces", lambda *_: SimpleNamespace(opening=next(seen)))
    found = st._kept(untrained, dataset, frames)
    assert found["real/mouth_r"] < 0
