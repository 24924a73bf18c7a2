"""`t3d prior show`: what its sheet shows, and what it says of a wrong word."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from t3d import cli, plots, prior_sheet
from t3d.errors import UserError
from t3d.prior import basis, morphable


@pytest.fixture(scope="module", params=["procedural", "ict"])
def model(request, assets):
    return basis.load(request.param)


def _picture(model, coefficients):
    look = replace(prior_sheet.mean_head(), **prior_sheet.parse(model, coefficients))
    return prior_sheet.draw(model, look)


def _change(model, coefficients):
    """[side, side] of how much a picture differs from the mean head's."""
    calm = prior_sheet.draw(model, prior_sheet.mean_head())
    return np.abs(_picture(model, coefficients).colour - calm.colour).sum(-1)


def test_every_expression_changes_the_picture_on_its_own_side(model):
    half = prior_sheet.SIDE // 2
    for name in model.expression_names:
        change = _change(model, f"{name}=1")
        assert change.sum() > 3.0, name
        if name.endswith(("_L", "_R")):
            mine, other = change[:, half:].sum(), change[:, :half].sum()
            share = (mine if name.endswith("_L") else other) / change.sum()
            assert share > 0.6, name  # the person's left is at the right of the picture


def test_the_first_modes_of_every_code_change_the_picture(model):
    for name in ("identity", "albedo"):
        for k in range(prior_sheet.COLUMNS):
            assert _change(model, f"{name}{k}=2").sum() > 100.0


def test_a_turned_head_shows_its_other_side_and_is_as_high(model):
    look = prior_sheet.mean_head()
    high = [
        np.ptp(np.nonzero(prior_sheet.draw(model, replace(look, yaw=y, share=0.2)).mask)[0])
        for y in (-40.0, 0.0, 40.0)
    ]
    assert np.ptp(high) < 0.1 * max(high)
    left, right = (prior_sheet.draw(model, replace(look, yaw=y)).mask for y in (40.0, -40.0))
    assert (left == right[:, ::-1]).mean() > 0.97


def test_the_command_writes_one_sheet_with_a_row_for_each_part(model, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    chosen = "jawOpen=0.7, identity0=-2"
    show = ["prior", "show", model.name, "--out", str(out), "--coefficients", chosen]
    assert cli.main(show) == 0
    assert f"{model.name}, {len(model.mean)} vertices" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        titled, plain = 2 + 1 + 6 + 1 + 1, 3  # views twice, modes, expressions, modes, bands
        height = titled * (plots.CELL + plots.LINE) + plain * plots.CELL
        assert picture.size == (plots.MARGIN + prior_sheet.COLUMNS * plots.CELL, height)
        first = np.asarray(picture)[plots.LINE : plots.LINE + plots.CELL, plots.MARGIN :]
        second = np.asarray(picture)[2 * plots.LINE + plots.CELL :][: plots.CELL, plots.MARGIN :]
    assert np.abs(first.astype(int) - second).mean() > 1.0  # the chosen head above the mean one


def test_coefficients_are_weights_of_names_and_deviations_of_codes(model):
    codes = prior_sheet.parse(model, "jawOpen=0.5, identity3=-2,albedo99=1,expression0=0.25")
    jaw = morphable.expression_from_weights(model, {"jawOpen": 0.5})
    assert codes["identity"][3] == -2 and np.count_nonzero(codes["identity"]) == 1
    assert codes["albedo"][99] == 1
    np.testing.assert_array_equal(codes["expression"][1:], jaw[1:])
    assert codes["expression"][0] == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jawopen=1", "no 'jawopen', did you mean jawOpen"),
        ("identity100=1", "no 'identity100'"),
        ("jawOpen", "'jawOpen': give NAME=NUMBER"),
        ("jawOpen=wide", "'jawOpen=wide': give NAME=NUMBER"),
        ("jawOpen=nan", "'jawOpen=nan': give NAME=NUMBER"),
    ],
)
def test_a_wrong_coefficient_is_named(text, said):
    with pytest.raises(UserError, match=said):
        prior_sheet.parse(basis.load("procedural"), text)


@pytest.mark.parametrize(
    ("name", "said"), [("flame", "no prior named 'flame'"), ("bfm17", "faces.dmi.unibas.ch")]
)
def test_an_unknown_or_missing_model_exits_with_2_and_one_line(
    name, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["prior", "show", name, "--out", str(tmp_path / "sheet.png")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "sheet.png").exists()


def test_the_command_needs_an_action_and_a_file(capsys):
    assert cli.main(["prior"]) == 2
    assert cli.main(["prior", "show", "procedural"]) == 2
    assert "--out" in capsys.readouterr().err
