"""`t3d sweep`: the variants of a config, trained and measured alike, in one table.

A sweep is a config file that has, beside `get_config()`, MEMBERS (variant → overrides) and perhaps
TABLES (how a paper prints them): configs/ablations.py. Every speaker is trained by itself, in
OUT/VARIANT/SPEAKER. A stage that two runs would train alike is trained once.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from t3d import checkpoint, evaluate, measure, talker
from t3d import config as configs
from t3d import run as runs
from t3d.data.parts import write_atomically
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.train import trainer

SHARED = ("seed", "size", "dtype", "mel_steps")  # what every stage's outcome hangs on
PAPER_FIGURES = ("ssim", "lpips", "au_accuracy", "lmd", "sync_confidence")  # Table I's five
SHOWN = (*PAPER_FIGURES, "ssim_head", "mouth_r")
PAPER_DIGITS = (3, 3, 1, 3, 3)
NO_FIGURE = "–"
Figures = dict[str, float | str]


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        variant; group, speaker: whom it learns; config; folder: of the run.
    """

    variant: str
    group: str
    speaker: SpeakerDataset
    config: ConfigDict
    folder: Path


# ---- what is to be run


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
        name, equals, paths = text.rpartition("=")
        if not equals:
            name = chr(ord("A") + number) if len(texts) > 1 else ""
        if name in groups:
            raise UserError(f"--data {text}: there are two groups called {name}; rename one")
        groups[name] = [SpeakerDataset(path) for path in paths.split(",")]
    speakers = [dataset.name for datasets in groups.values() for dataset in datasets]
    for speaker in speakers:
        if speakers.count(speaker) > 1:
            raise UserError(f"--data: two datasets are called {speaker}; prepare one anew")
    return groups


def members_of(
    name: str, overrides: Sequence[str], groups: dict[str, list[SpeakerDataset]], out: Path
) -> list[Member]:
    """All runs of a sweep, the speakers of one variant after another.

    Raises:
        UserError: the config is no sweep, or an override does not fit it.
    """
    variants = _variants(configs.load_module(name))
    made = {
        variant: configs.load_config(name, [*changes, *overrides])
        for variant, changes in variants.items()
    }
    return [
        Member(variant, group, speaker, config, out / variant / speaker.name)
        for variant, config in made.items()
        for group, speakers in groups.items()
        for speaker in speakers
    ]


def _variants(module: ModuleType) -> dict[str, Sequence[str]]:
    members = getattr(module, "MEMBERS", None)
    if not isinstance(members, dict) or not members:
        raise UserError(
            f"{module.__file__}: is no sweep (it has no MEMBERS, variant → overrides); take "
            "ablations, or train it with t3d train"
        )
    return members


# ---- stages that are trained once


def adopt(folder: Path, record: dict, donors: Iterable[Path], log: Callable[[str], None]) -> None:
    """Takes over finished stages that other runs trained exactly as this one would.

    Args:
        folder: of the run, which may be new.
        record: what `run.record_of` says of it.
        donors: folders of runs; the first that fits gives.
        log: takes a line for each stage.
    """
    donors = [donor for donor in donors if donor.resolve() != folder.resolve()]
    for stage in talker.STAGES:
        outcome = folder / "params" / stage
        if outcome.is_dir():
            continue
        mine = checkpoint.read_run(folder).get("stages", {})
        for donor in donors:
            theirs = checkpoint.read_run(donor)
            if (donor / "params" / stage).is_dir() and _fits(stage, record, mine, theirs):
                part = outcome.with_name(f".{stage}.{os.getpid()}.part")
                shutil.copytree(donor / "params" / stage, part)
                part.rename(outcome)
                taken = theirs["stages"][stage] | {"taken_from": str(donor)}
                checkpoint.update_run(folder, **record, stages={stage: taken})
                log(f"{stage}: taken from {donor}")
                break


def _fits(stage: str, record: dict, mine: dict, theirs: dict) -> bool:
    """Whether another run's stage is what this run's would become.

    Args:
        record: of this run, before it trained; mine: its stages so far; theirs: the other's record.
    """
    entry = theirs.get("stages", {}).get(stage)
    if entry is None:
        return False
    ours, others = record["config"], theirs["config"]
    schedule = {k: v for k, v in ours["stages"][stage].items() if k not in trainer.SCHEDULE}
    needed = talker.NEEDS[stage]
    return (
        [d["fingerprint"] for d in record["data"]] == [d.get("fingerprint") for d in theirs["data"]]
        and all(ours[key] == others.get(key) for key in SHARED)
        and _training_values(ours[stage]) == _training_values(others[stage])
        and entry["steps"] == ours["stages"][stage]["steps"]
        and entry["settings"]["config"] == schedule
        and all(name in mine for name in needed)
        and all(entry["settings"]["frozen"][name] == mine[name]["sha256"] for name in needed)
    )


def _training_values(group: dict) -> dict:
    return {key: value for key, value in group.items() if key not in runs.TEST_TIME}


# ---- running


def train_all(
    members: Sequence[Member], donor: Path | None, log: Callable[[str], None] = print
) -> None:
    """Trains all members one after another; what is finished is left as it is."""
    donors = [donor] if donor else []
    for number, member in enumerate(members):

        def say(line: str, member: Member = member) -> None:
            log(f"{member.variant} {member.speaker.name}: {line}")

        log(f"{number + 1}/{len(members)} {member.folder}")
        checkpoint.writable_folder(member.folder)
        adopt(member.folder, runs.record_of(member.config, [member.speaker]), donors, say)
        runs.train(member.config, [member.speaker], member.folder, log=say)
        donors.append(member.folder)


def measure_all(members: Sequence[Member], log: Callable[[str], None] = print) -> None:
    """Evaluates the members that have no figures yet, or older ones than their networks."""
    for number, member in enumerate(members):
        measured, trained = member.folder / evaluate.SERIES, member.folder / "params"
        newest = max(path.stat().st_mtime for path in trained.iterdir())
        if measured.exists() and measured.stat().st_mtime > newest:
            continue
        log(f"measuring {number + 1}/{len(members)} {member.folder}")
        run = runs.open_run(member.folder)
        evaluate.write(member.folder, run, evaluate.measure(run, member.speaker))


def trained_minutes(member: Member) -> float:
    """How long the stages took that were trained for this member, in minutes."""
    stages = checkpoint.read_run(member.folder)["stages"].values()
    return sum(stage["seconds"] for stage in stages if "taken_from" not in stage) / 60


# ---- figures


def pooled(members: Iterable[Member], system: str = "ours") -> measure.Series:
    """The frames of several members as one series."""
    return measure.merge(
        [measure.load_series(member.folder / evaluate.SERIES)[0][system] for member in members]
    )


def figures_of(members: Sequence[Member], tables: dict) -> Figures:
    """All figures, flat: '[group/]variant/figure', '…/minutes', '…/against_REFERENCE/figure'.

    Args:
        tables: of the sweep's file; each row is held against the last one of its table.
    """
    found: Figures = {}
    by_place: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        by_place.setdefault((member.group, member.variant), []).append(member)
    series = {place: pooled(several) for place, several in by_place.items()}
    for (group, variant), several in by_place.items():
        at = _at(group, variant)
        figures = measure.figures(series[group, variant])
        found |= {f"{at}/{name}": value for name, value in figures.items()}
        found[f"{at}/minutes"] = round(sum(map(trained_minutes, several)) / len(several), 2)
        found[f"{at}/frames"] = sum(
            len(measure.load_series(m.folder / evaluate.SERIES)[1]) for m in several
        )
    for group in dict.fromkeys(member.group for member in members):
        first = next(m.variant for m in members if m.group == group)
        real = measure.figures(pooled(by_place[group, first], "real"))
        found |= {f"{_at(group, 'real')}/{name}": value for name, value in real.items()}
        for rows in tables.values():
            reference = rows[-1][1]
            for _, variant, _ in rows[:-1]:
                found |= _against(series, group, variant, reference)
    return found


def _at(group: str, variant: str) -> str:
    return f"{group}/{variant}" if group else variant


def _against(series: dict, group: str, variant: str, reference: str) -> Figures:
    differences = measure.compare(series[group, variant], series[group, reference])
    at = f"{_at(group, variant)}/against_{reference}"
    found: Figures = {}
    for name, paired in differences.items():
        found[f"{at}/{name}"] = paired.difference
        found[f"{at}/{name}_low"], found[f"{at}/{name}_high"] = paired.low, paired.high
        found[f"{at}/{name}_separates"] = "yes" if paired.separates else "inside the noise"
    return found


# ---- tables


def cell(figures: Figures, at: str, name: str, reference: str | None) -> str:
    """A figure with its interval, and whether it differs from the reference's."""
    value = figures.get(f"{at}/{name}")
    if value is None or isinstance(value, str):
        return "n/a"
    digits = measure.FIGURES[name].digits
    low, high = figures.get(f"{at}/{name}_low"), figures.get(f"{at}/{name}_high")
    text = f"{value:.{digits}f}"
    if low is not None and not isinstance(low, str):
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    verdict = figures.get(f"{at}/against_{reference}/{name}_separates")
    if verdict == "inside the noise":
        return f"{text} ≈"
    if verdict == "yes":
        better = figures[f"{at}/against_{reference}/{name}"] * measure.FIGURES[name].better
        return f"{text} {'▲' if better > 0 else '▼'}"
    return text


def table(figures: Figures, group: str, rows: Sequence) -> tuple[list[str], list[list[str]]]:
    """A table of the paper: headings, and rows of text (the real frames first).

    Args:
        rows: (title, variant, the paper's five figures or none) each; the last is the reference.
    """
    headings = ["", *(measure.FIGURES[name].title for name in SHOWN), "trained, min"]
    headings += ["the paper's five"] if any(paper for _, _, paper in rows) else []
    reference = rows[-1][1]
    real = cell(figures, _at(group, "real"), "sync_confidence", None)
    truth = [real if name == "sync_confidence" else NO_FIGURE for name in SHOWN]
    lines = [["Ground-truth", *truth]]
    for title, variant, paper in rows:
        at = _at(group, variant)
        own = [cell(figures, at, name, reference) for name in SHOWN]
        said = " / ".join(f"{v:.{d}f}" for v, d in zip(paper, PAPER_DIGITS, strict=False))
        lines.append([title, *own, f"{figures[f'{at}/minutes']:.1f}", said])
    return headings, [(line + [NO_FIGURE] * len(headings))[: len(headings)] for line in lines]


def tables_of(module: ModuleType) -> dict:
    """The tables of a sweep's file; without any, one of all variants against the first."""
    first, *others = _variants(module)
    plain = {"All variants": tuple((name, name, ()) for name in (*others, first))}
    return getattr(module, "TABLES", plain)


NOTES = (
    "In brackets 95 % intervals (blocks of a second resampled). Against the table's last row, by "
    "the paired difference over the same frames: ▲ better, ▼ worse, ≈ inside the noise: the rows "
    "do not separate.",
    "The paper's figures (SSIM, LPIPS, AU Acc in %, LMD-79, SyncNet) were measured on other videos "
    "with other judges: read them down the column, not across.",
    "Minutes are those of the stages that had to be trained for the variant; stages that would "
    "come out the same were taken over.",
)


def markdown(figures: Figures, groups: Iterable[str], tables: dict) -> str:
    """All tables as Markdown."""
    parts = []
    for group in groups:
        for title, rows in tables.items():
            headings, lines = table(figures, group, rows)
            parts.append(f"### {title}{f', {group}' if group else ''}\n")
            for k, line in enumerate([headings, ["---"] * len(headings), *lines]):
                parts.append("| " + " | ".join(line) + " |" + ("\n" if k > len(lines) else ""))
    return "\n".join([*parts, *(f"{note}\n" for note in NOTES)])


def comma_separated(figures: Figures, members: Sequence[Member]) -> str:
    """Every figure of every variant, one a line, as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "variant", "figure", "value", "low", "high"])
    for group, variant in dict.fromkeys((m.group, m.variant) for m in members):
        at = _at(group, variant)
        for name in measure.FIGURES:
            values = [figures.get(f"{at}/{name}{end}", "") for end in ("", "_low", "_high")]
            writer.writerow([group, variant, name, *values])
    return stream.getvalue()


def show(figures: Figures, groups: Iterable[str], tables: dict) -> None:
    """Prints the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for group in groups:
        for title, rows in tables.items():
            headings, lines = table(figures, group, rows)
            shown = Table(title=f"{title} {group}", title_justify="left", show_lines=True)
            for heading in headings:
                shown.add_column(heading, justify="right" if heading else "left")
            for line in lines:
                shown.add_row(*(text.replace(" [", "\n[") for text in line))
            console.print(shown)
    for note in NOTES:
        console.print(note, highlight=False)


def sweep_command(args) -> None:
    """`t3d sweep`."""
    groups = read_groups(args.data)
    out = Path(args.out)
    members = members_of(args.config, args.overrides, groups, out)
    module = configs.load_module(args.config)
    tables = tables_of(module)
    donor = Path(args.start_from) if args.start_from else None
    if donor and not checkpoint.read_run(donor):
        raise UserError(f"--start-from {donor}: no run is there; give the folder of one")
    train_all(members, donor)
    measure_all(members)
    figures = figures_of(members, tables)
    write_atomically(out / "results.md", lambda p: p.write_text(markdown(figures, groups, tables)))
    write_atomically(out / "results.csv", lambda p: p.write_text(comma_separated(figures, members)))
    evaluate.write_json(out / "results.json", figures)
    if args.json:
        evaluate.write_json(Path(args.json), figures)
    show(figures, groups, tables)
    for name in ("results.md", "results.csv", "results.json"):
        print(out / name)
