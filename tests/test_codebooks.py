"""The pictures of codebooks.ipynb and free_view.ipynb, of a run whose networks know nothing."""

import json
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

from t3d import codebooks, free_view, plots
from t3d import talker as talkers
from t3d.errors import UserError
from t3d.train import writers

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module")
def workdir(untrained):
    """The run with logs as its space's training would leave them, stopped and gone on with."""
    folder = untrained.workdir / "logs" / "space"
    for start, steps in ((0, range(0, 30, 10)), (20, range(20, 50, 10))):
        with writers.Monitor("space", start, 50, folder, log=lambda line: None) as monitor:
            for step in steps:
                monitor.scalars(step, {"global_usage": step / 100 + start, "au_perplexity": 2.0})
        time.sleep(1.1)  # files are called after the second in which they were begun
    return untrained.workdir


@pytest.fixture(scope="module")
def opened(workdir):
    run, [seen] = codebooks.open_codebooks(workdir)
    return run, seen


def test_logs_are_read_back_without_what_was_done_again(workdir):
    read = writers.read_scalars(workdir / "logs" / "space")
    steps, values = read["space/global_usage"].T
    assert steps.tolist() == [0, 10, 20, 30, 40]
    np.testing.assert_allclose(values, [0, 0.1, 20.2, 20.3, 20.4], rtol=1e-6)


def test_a_log_that_is_cut_off_is_read_up_to_there(workdir, tmp_path):
    source = max((workdir / "logs" / "space").iterdir())
    (tmp_path / source.name).write_bytes(source.read_bytes()[:-9])
    assert len(writers.read_scalars(tmp_path)["space/global_usage"]) == 2
    assert writers.read_scalars(tmp_path / "none") == {}


def test_codes_of_the_frames_are_those_that_the_space_finds(opened):
    run, seen = opened
    _, found = talkers.standardise(run.talker, run.params, seen.images[:2] / np.float32(255))
    head = seen.tokens[:2] >= 0
    np.testing.assert_array_equal(seen.tokens[:2][head], found["global"].indices[head])
    patch = run.config.space.patch
    dark = seen.images[:2].min(-1) < codebooks.WHITE
    assert (
        0.1 < head.mean() < 0.9 and dark[np.kron(~head, np.ones([1, patch, patch])) > 0].sum() == 0
    )
    np.testing.assert_array_equal(seen.au[:2], np.asarray(found["au"].indices).T)
    counts = codebooks.books(run, seen)
    assert counts["global"].sum() == (seen.tokens >= 0).sum()
    assert all(counts[name].sum() == len(seen.frames) for name in codebooks.unit_names(run))


def test_an_exchanged_au_code_is_that_of_one_au_alone(opened):
    run, seen = opened
    codes = run.params["space"]["params"]["au_codebook"]
    given = {}

    def keep(space, queries, found):
        given[space] = codebooks._with_code(codes, 1, 3)(space, queries, found), found.values
        return found.values

    talkers.standardise(run.talker, run.params, seen.images[:2] / np.float32(255), keep)
    changed, usual = given["au"]
    np.testing.assert_array_equal(changed[1], np.broadcast_to(codes[1, 3], changed[1].shape))
    others = np.arange(len(usual)) != 1
    np.testing.assert_array_equal(changed[others], usual[others])
    np.testing.assert_array_equal(*given["global"])


def test_colours_of_codes_are_means_of_the_frames_that_use_them():
    rows, values = np.array([0, 2, 2, 0]), np.array([1.0, 3.0, 5.0, np.nan])
    np.testing.assert_array_equal(codebooks._mean_of(values, rows), [1, np.nan, 4])


def test_two_speakers_share_the_codes_that_both_use(opened):
    run, seen = opened
    same = codebooks.shared(run, [seen, seen])
    assert all(parts["both"] == 1 for parts in same.values())
    other = codebooks.Seen(**{**vars(seen), "name": "x", "tokens": (seen.tokens + 1) % 2})
    parts = codebooks.shared(run, [seen, other])["global"]
    assert sum(parts.values()) == pytest.approx(1) and parts["both"] < 1
    assert b"<svg" in plots.shares({"global": parts})


def test_a_run_without_its_logs_is_told_so(opened, tmp_path):
    run, _ = opened
    with pytest.raises(UserError, match="no logs of the space's training"):
        codebooks.training_curves(run.__class__(**{**vars(run), "workdir": tmp_path}))


@pytest.fixture(scope="module")
def view(workdir):
    return free_view.open_view(workdir)


def test_a_view_is_turned_and_changed(view):
    usual = view.images([0, 1], [(0, 0), (30, -10)])
    assert usual.shape[0] == 2 and usual.dtype == np.uint8
    again = view.images([0], [(0, 0)], identity={3: 0.0}, albedo={}, light=0.0)
    np.testing.assert_allclose(again[0].astype(int), usual[0], atol=1)
    assert len(view.opening) == len(view.motion.expression) == len(view.sound) // 640
    codes = free_view._added(np.zeros(5), {1: 2.0, 4: -1.0})
    assert codes.tolist() == [0, 2, 0, 0, -1]


def test_light_from_the_right_lights_the_right(view, monkeypatch):
    from t3d.prior import shading

    given = []
    monkeypatch.setattr(
        free_view.runs, "render_frames", lambda *args, **_: given.append(args[5]) or iter(())
    )
    for light in (0.0, 0.5):
        with pytest.raises(ValueError):  # nothing was drawn
            view.images([0], [(0, 0)], light=light)
    sides = np.array([[1.0, 0, 0], [-1.0, 0, 0]])  # a cheek that faces the image's right; its left
    usual, lit = (shading.shade(np.ones((2, 3)), sides, code[0].astype(float)) for code in given)
    assert (lit[0] > usual[0]).all() and (lit[1] < usual[1]).all()


@pytest.mark.parametrize("name, pictures", [("codebooks", 4 + 4), ("free_view", 3)])
def test_a_notebook_opens_with_a_run_and_nothing_else(name, pictures, workdir, monkeypatch):
    monkeypatch.setenv("T3D_RUN", str(workdir))
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    assert "RUN =" in first.source and len(first.source.splitlines()) == 3
    nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    kinds = [kind for o in outputs for kind in o.get("data", {})]
    assert kinds.count("image/svg+xml") + kinds.count("image/jpeg") >= pictures
    assert not [o for o in outputs if o.get("name") == "stderr"], json.dumps(outputs)[:2000]
    if name == "free_view":
        assert sum("widget-view" in kind for kind in kinds) == 2


def test_committed_pages_are_filled_in():
    for path in NOTEBOOKS.glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert sum(bool(cell.outputs) for cell in code) > len(code) / 2, path
        assert all(cell.execution_count for cell in code), path
