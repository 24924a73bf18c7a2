"""What a sweep is made of: the variants of a config, and one member for each speaker they learn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from t3d import config as configs
from t3d.data.parts import fingerprint
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError

SEED = "seed="
LONGEST_NAME = 100  # characters of a variant's folder
Changes = tuple[str, ...]  # overrides, "nerf.samples=32" each


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: of its folder; row: of the table, which variants that differ in `seed` only share;
        changes: its overrides.
    """

    name: str
    row: str
    changes: Changes


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        variant: its name; row: of the table; group, speaker: whom it learns; config; folder: of
            the run.
    """

    variant: str
    row: str
    group: str
    speaker: SpeakerDataset
    config: ConfigDict
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant} {self.speaker.name}"


# ---- variants


def variants_of(module: ModuleType, seeds: int | None = None) -> list[Variant]:
    """The variants of a sweep's file, from its MEMBERS (name → overrides) or its `sweep()`.

    Args:
        seeds: if given, each variant is trained with the seeds 0 to seeds − 1.

    Raises:
        UserError: the file has neither or both, or two alike; it has seeds of its own beside
            `seeds`.
    """
    named = _named(module)
    if seeds is None:
        return [Variant(name, _row(name, named), changes) for name, changes in named.items()]
    if any(_without_seed(changes) != changes for changes in named.values()):
        raise UserError(f"--seeds {seeds}: {module.__file__} has seeds of its own; leave it out")
    return [
        Variant(f"{name},{SEED}{seed}", name, (*changes, f"{SEED}{seed}"))
        for name, changes in named.items()
        for seed in range(seeds)
    ]


def _named(module: ModuleType) -> dict[str, Changes]:
    members, sweep = getattr(module, "MEMBERS", None), getattr(module, "sweep", None)
    if callable(sweep) and members is None:
        members = name_overrides(list(sweep()), str(module.__file__))
    elif sweep is not None or not isinstance(members, dict):
        members = None
    if not members:
        raise UserError(
            f"{module.__file__}: is no sweep (it needs either MEMBERS, variant → overrides, or "
            "sweep(), which yields overrides); take ablations, or train it with t3d train"
        )
    return {name: tuple(changes) for name, changes in members.items()}


def _without_seed(changes: Changes) -> Changes:
    return tuple(change for change in changes if not change.startswith(SEED))


def _row(name: str, named: Mapping[str, Changes]) -> str:
    """The variant's own name, or what it has in common with those of other seeds."""
    common = _without_seed(named[name])
    alike = [other for other, changes in named.items() if _without_seed(changes) == common]
    if len(alike) == 1:
        return name
    row = re.sub(rf"(^|,){SEED}[^,]+", "", alike[0])
    return row if row and row not in named else f"{row}, any seed".removeprefix(", ")


def name_overrides(members: Sequence[Mapping[str, Any]], source: str) -> dict[str, Changes]:
    """Variants by readable names: "learning_rate=0.002,seed=1".

    A name holds every override of its member, so that it stays as it is when others are added. A
    key is shortened to as many of its last parts as tell it from the other keys.

    Args:
        members: dotted keys and values each; source: the file, for errors.

    Returns:
        {name, legal as a folder's: ("stages.nerf.learning_rate=0.002", "seed=1")}.

    Raises:
        UserError: two members are the same.
    """
    changes = [tuple(f"{key}={value}" for key, value in member.items()) for member in members]
    twins = [each for each, count in Counter(changes).items() if count > 1]
    if twins:
        raise UserError(f"{source}: yields {', '.join(twins[0]) or 'nothing'} twice; drop one")
    short = _short_keys({key for member in members for key in member})
    names = [",".join(f"{short[k]}={_legal(v)}" for k, v in m.items()) for m in members]
    return {
        _numbered(name, each) if len(name) > LONGEST_NAME or names.count(name) > 1 else name: each
        for name, each in zip([name or "default" for name in names], changes)
    }


def _legal(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


def _numbered(name: str, changes: Changes) -> str:
    number = fingerprint({"changes": changes})
    return f"{name[: LONGEST_NAME - len(number) - 1]}-{number}"


def _short_keys(keys: set[str]) -> dict[str, str]:
    def ending(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    def shortest(key: str) -> str:
        parts = range(1, key.count(".") + 1)
        alone = (n for n in parts if sum(ending(k, n) == ending(key, n) for k in keys) == 1)
        return ending(key, next(alone, key.count(".") + 1))

    return {key: shortest(key) for key in keys}


# ---- speakers and members


def read_groups(texts: Sequence[str]) -> dict[str, list[SpeakerDataset]]:
    """Datasets by group.

    Args:
        texts: "a,b" or "TestA=a,b" each, paths of datasets. Without a name the groups are called
            A, B, …; a single one needs none ("").

    Raises:
        UserError: no such dataset; two groups or two speakers of one name.
    """
    groups: dict[str, list[SpeakerDataset]] = {}
    for number, text in enumerate(texts):
        name, paths = split_group(text)
        if not name and len(texts) > 1:
            name = chr(ord("A") + number)
        if name in groups:
            raise UserError(f"--data {text}: there are two groups called {name}; rename one")
        if not all(paths):
            raise UserError(f"--data {text}: a path is empty; write [GROUP=]DIR[,DIR…]")
        groups[name] = [SpeakerDataset(path) for path in paths]
    speakers = [dataset.name for datasets in groups.values() for dataset in datasets]
    for speaker in speakers:
        if speakers.count(speaker) > 1:
            raise UserError(f"--data: two datasets are called {speaker}; prepare one anew")
    return groups


def split_group(text: str) -> tuple[str, list[str]]:
    """A group's name ("" if it has none) and its paths, from "TestA=a,b"."""
    name, equals, paths = text.partition("=")
    if not equals or "/" in name or "," in name:  # the = belongs to a path
        name, paths = "", text
    return name, paths.split(",")


def members_of(
    name: str,
    overrides: Sequence[str],
    groups: dict[str, list[SpeakerDataset]],
    out: Path,
    seeds: int | None = None,
) -> list[Member]:
    """All runs of a sweep, the speakers of one variant after another; a member is known by its
    place among them.

    Raises:
        UserError: the config is no sweep, or an override does not fit it.
    """
    variants = variants_of(configs.load_module(name), seeds)
    made = [configs.load_config(name, [*variant.changes, *overrides]) for variant in variants]
    _check_seeds(variants, made)
    return [
        Member(variant.name, variant.row, group, speaker, config, out / variant.name / speaker.name)
        for variant, config in zip(variants, made)
        for group, speakers in groups.items()
        for speaker in speakers
    ]


def _check_seeds(variants: Sequence[Variant], made: Sequence[ConfigDict]) -> None:
    """UserError if two variants of one row have one seed: they are the same training."""
    seen: dict[tuple[str, int], str] = {}
    for variant, config in zip(variants, made):
        twin = seen.setdefault((variant.row, config.seed), variant.name)
        if twin != variant.name:
            raise UserError(
                f"{twin} and {variant.name}: are the same training, with seed {config.seed}; drop "
                "one, or leave --config.seed out"
            )


def tables_of(module: ModuleType) -> dict:
    """The tables of a sweep's file; without any, one of all rows against the first.

    Raises:
        UserError: a table has a row that the sweep lacks.
    """
    first, *others = rows = list(dict.fromkeys(variant.row for variant in variants_of(module)))
    plain = {"All variants": tuple((name, name, ()) for name in (*others, first))}
    tables = getattr(module, "TABLES", plain)
    for title, lines in tables.items():
        for _, row, _ in lines:
            if row not in rows:
                raise UserError(
                    f"{module.__file__}: {title} has a row of {row}, which is no variant; there "
                    f"are {', '.join(rows)}"
                )
    return tables
