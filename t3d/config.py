"""Configs: found by name or path, changed on the command line, kept as JSON."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

import t3d
from t3d.errors import UserError

PREFIX = "--config."
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load_config(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> ConfigDict:
    """The config of a name or a file, with changes.

    Args:
        name_or_path: a config that comes with t3d ("preview"), or the path of a .py file with a
            `get_config()` function.
        overrides: "--config.nerf.samples=32" or "nerf.samples=32" each. A key that is a parameter
            of `get_config` is handed to it ("paper=True"); any other replaces a value of the
            config and must be of that value's type.

    Returns:
        the config, locked.

    Raises:
        UserError: no such config (the names there are), no such key (the nearest one), or a value
            of another type (the expected one).
    """
    get_config = _get_config_function(name_or_path)
    arguments, changes = {}, []
    for key, text in map(_split, overrides):
        parameter = inspect.signature(get_config).parameters.get(key)
        if parameter is None:
            changes.append((key, text))
        else:
            arguments[key] = _parse(key, text, parameter.default)
    config = get_config(**arguments)
    for key, text in changes:
        override(config, key, text)
    return config.lock()


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets a value of the config from its text, in place.

    Args:
        key: dotted, "nerf.samples".
        text: as written on the command line; parsed to the type of the present value.

    Raises:
        UserError: as `load_config`.
    """
    keys = dict(flatten(config))
    if key not in keys:
        raise UserError(_unknown_key(key, list(keys)))
    *groups, last = key.split(".")
    for group in groups:
        config = config[group]
    value = _parse(key, text, keys[key])
    with config.ignore_type():
        config[last] = value


def to_json(config: ConfigDict) -> str:
    """The config as JSON; tuples become arrays."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str | Mapping) -> ConfigDict:
    """The config, locked, that `to_json` wrote (its text, or the text already parsed).

    Arrays become tuples: configs hold no lists.

    Raises:
        UserError: not a JSON object.
    """
    try:
        values = json.loads(text) if isinstance(text, str) else text
    except ValueError as error:
        raise UserError(f"this config is not JSON ({error}); use what `to_json` wrote") from error
    if not isinstance(values, Mapping):
        raise UserError("this config is not a JSON object; use what `to_json` wrote")
    return ConfigDict(_tuples(values)).lock()


def config_names() -> list[str]:
    """The names of the configs that come with t3d, those of a folder as "sweeps/seeds"."""
    folder = _config_folder()
    paths = [path for path in folder.rglob("*.py") if not path.stem.startswith("_")]
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def product(values: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """All combinations, for a sweep: {"a": (1, 2), "b": (3,)} gives [{a: 1, b: 3}, {a: 2, b: 3}].

    Args:
        values: what each dotted key of a config takes in turn; the last key varies fastest.
    """
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


# ---- finding


def _config_folder() -> Path:
    """Installed as t3d.configs; in a checkout that is not installed, beside the package."""
    spec = importlib.util.find_spec("t3d.configs")
    if spec is not None and spec.submodule_search_locations:
        return Path(list(spec.submodule_search_locations)[0])
    return Path(t3d.__file__).resolve().parents[1] / "configs"


def load_module(name_or_path: str) -> ModuleType:
    """The Python file of a config, run; UserError when there is none or it cannot be run."""
    path = _config_path(name_or_path)
    try:
        return _import(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error


def _get_config_function(name_or_path: str) -> Callable[..., ConfigDict]:
    module = load_module(name_or_path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(
            f"{module.__file__}: has no get_config(); write one that returns a ConfigDict"
        )
    return module.get_config


def _config_path(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"{path}: no such config file; names are {_listing()}")
        return path
    if name_or_path in config_names():
        return _config_folder() / f"{name_or_path}.py"
    near = difflib.get_close_matches(name_or_path, config_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"no config {name_or_path!r}: {hint}there are {_listing()}, or give the path of a .py file"
    )


def _listing() -> str:
    return ", ".join(config_names()) or "none"


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"t3d_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- keys


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.removeprefix(PREFIX).partition("=")
    if not equals or not key:
        raise UserError(f"{text}: write it as {PREFIX}KEY=VALUE")
    return key, value


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, the groups themselves included."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")


def _unknown_key(key: str, keys: list[str]) -> str:
    last = key.rpartition(".")[2]

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        end = difflib.SequenceMatcher(None, last, other.rpartition(".")[2]).ratio()
        return whole + 2 * end

    nearest = max(keys, key=likeness)
    return f"{PREFIX}{key}: no such key; the nearest is {PREFIX}{nearest}"


# ---- values


def _parse(key: str, text: str, present: Any) -> Any:
    """The text as a value of the present one's type."""
    if isinstance(present, ConfigDict):
        raise UserError(f"{PREFIX}{key}: is a group; set one of {', '.join(present)} in it")
    try:
        return _convert(text, present)
    except (ValueError, SyntaxError, TypeError) as error:
        raise UserError(
            f"{PREFIX}{key}={text}: must be {_type_name(present)}, like {present!r}"
        ) from error


def _convert(text: str, present: Any) -> Any:
    if isinstance(present, str):
        return text
    if isinstance(present, bool):
        return _boolean(text)
    if isinstance(present, tuple):
        return _tuple(text, present)
    if present is None:
        return _literal(text)
    return _number(ast.literal_eval(text.strip()), present)


def _boolean(text: str) -> bool:
    if text.strip().lower() not in BOOLEANS:
        raise ValueError(text)
    return BOOLEANS[text.strip().lower()]


def _tuple(text: str, present: tuple) -> tuple:
    if present and all(isinstance(item, str) for item in present) and "'" not in text:
        return tuple(item.strip() for item in text.strip("() ").split(",") if item.strip())
    values = ast.literal_eval(text.strip() or "()")
    values = tuple(values) if isinstance(values, tuple | list) else (values,)
    kinds = {type(item) for item in present}
    return tuple(_number(value, present[0]) for value in values) if len(kinds) == 1 else values


def _number(value: Any, present: Any) -> Any:
    """The value, an int made a float where one is expected."""
    if isinstance(present, float) and type(value) is int:
        return float(value)
    if type(value) is not type(present):
        raise ValueError(value)
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _type_name(present: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list"}
    return names.get(type(present), f"of type {type(present).__name__}")


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value
