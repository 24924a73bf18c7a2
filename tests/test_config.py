"""Configs: names, overrides, errors that name the remedy, JSON."""

import pytest
from ml_collections import ConfigDict

from t3d import config
from t3d.errors import UserError

SOURCE = """
from ml_collections import ConfigDict

def get_config(paper=False):
    samples = 64 if paper else 16
    nerf = dict(samples=samples, rate=1e-3, fine=True, widths=(64, 64), aus=("AU10", "AU25"))
    return ConfigDict(dict(nerf=dict(nerf, near=(0.5, 2.0)), name="toy", note=None, paper=paper))
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(SOURCE)
    return str(file)


@pytest.fixture
def named(tmp_path, monkeypatch):
    for name in ("preview", "talker", "tiny", "__init__"):
        (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.setattr(config, "_config_folder", lambda: tmp_path)


@pytest.mark.parametrize(
    "text, value",
    [
        ("--config.nerf.samples=32", 32),
        ("nerf.samples=-1", -1),
        ("nerf.rate=5e-4", 5e-4),
        ("nerf.rate=1", 1.0),
        ("nerf.fine=false", False),
        ("nerf.widths=(8,16,32)", (8, 16, 32)),
        ("nerf.widths=8", (8,)),
        ("nerf.near=1,3", (1.0, 3.0)),
        ("nerf.aus=AU14,AU20", ("AU14", "AU20")),
        ("nerf.aus=('AU14',)", ("AU14",)),
        ("name=32", "32"),
        ("note=a=b", "a=b"),
        ("note=3", 3),
    ],
)
def test_override_has_the_type_of_the_value_it_replaces(path, text, value):
    loaded = config.load_config(path, [text])
    key = text.removeprefix("--config.").partition("=")[0]
    got = loaded
    for part in key.split("."):
        got = got[part]
    assert got == value and type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in got] == [type(item) for item in value]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("nerf.samples=many", "a whole number"),
        ("nerf.samples=1.5", "a whole number"),
        ("nerf.samples=True", "a whole number"),
        ("nerf.rate=fast", "a number"),
        ("nerf.rate=", "a number"),
        ("nerf.fine=2", "true or false"),
        ("nerf.widths=8.5", "a list"),
        ("nerf=3", "samples"),
        ("nerf.samples", "KEY=VALUE"),
    ],
)
def test_value_of_a_wrong_type_is_an_error_that_names_the_right_one(path, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        config.load_config(path, [text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, nearest",
    [("nerf.sample", "nerf.samples"), ("samples", "nerf.samples"), ("nerff.rate", "nerf.rate")],
)
def test_unknown_key_names_the_nearest_one(path, key, nearest):
    with pytest.raises(UserError, match=f"nearest is --config.{nearest}$"):
        config.load_config(path, [f"{key}=1"])


def test_override_of_a_parameter_of_get_config_decides_the_values_made_from_it(path):
    loaded = config.load_config(path, ["paper=True"])
    assert loaded.nerf.samples == 64 and loaded.paper is True
    assert config.load_config(path, ["paper=True", "nerf.samples=8"]).nerf.samples == 8


def test_config_is_locked(path):
    with pytest.raises(AttributeError):
        config.load_config(path).nerf.sample = 3


def test_config_is_found_by_name(named):
    assert config.config_names() == ["preview", "talker", "tiny"]
    assert config.load_config("tiny").name == "toy"


def test_unknown_name_lists_the_names_and_the_nearest(named):
    with pytest.raises(UserError, match="did you mean preview.*preview, talker, tiny"):
        config.load_config("preveiw")


@pytest.mark.parametrize(
    "source, message",
    [("x = 1", "no get_config"), ("def get_config(:", "SyntaxError"), ("1 / 0", "ZeroDivision")],
)
def test_file_that_is_no_config_is_a_user_error(tmp_path, source, message):
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(UserError, match=message):
        config.load_config(str(file))


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        config.load_config(str(tmp_path / "none.py"))


def test_json_returns_the_same_config(path):
    loaded = config.load_config(path)
    returned = config.from_json(config.to_json(loaded))
    assert isinstance(returned, ConfigDict) and returned == loaded
    assert returned.is_locked
    with pytest.raises(UserError, match="not a JSON object"):
        config.from_json("[1]")
    with pytest.raises(UserError, match="not JSON"):
        config.from_json("{")
