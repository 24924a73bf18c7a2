"""`t3d sweep`: the variants of a config, trained and measured alike, in one table.

A sweep is a config file that has, beside `get_config()`, MEMBERS (variant → overrides) and perhaps
TABLES (how a paper prints them): configs/ablations.py. Every speaker is trained by itself, in
OUT/VARIANT/SPEAKER. A stage that two runs would train alike is trained once.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
PERCENT = {"au_accuracy": (100, 1)}  # shown so, as in the paper: factor, digits
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
        name, equals, paths = text.partition("=")
        if not equals or "/" in name or "," in name:  # the = belongs to a path
            name, paths = chr(ord("A") + number) if len(texts) > 1 else "", text
        if name in groups:
            raise UserError(f"--data {text}: there are two groups called {name}; rename one")
        if not all(paths.split(",")):
            raise UserError(f"--data {text}: a path is empty; write [GROUP=]DIR[,DIR…]")
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
        mine = checkpoint.read_run(folder).get("stages", {})
        if outcome.is_dir() and stage in mine:
            continue
        for donor in donors:
            theirs = checkpoint.read_run(donor)
            if (donor / "params" / stage).is_dir() and _fits(stage, record, mine, theirs):
                _copy(donor / "params" / stage, outcome)
                taken = theirs["stages"][stage] | {"taken_from": str(donor)}
                checkpoint.update_run(folder, **record, stages={stage: taken})
                log(f"{stage}: taken from {donor}")
                break


def _copy(source: Path, target: Path) -> None:
    """Copies a folder; what a killed copy left is replaced."""
    part = target.with_name(f"{target.name}.new")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


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
        and all(entry["settings"]["frozen"].get(name) == mine[name]["sha256"] for name in needed)
    )


def _training_values(group: dict) -> dict:
    return {key: value for key, value in group.items() if key not in runs.TEST_TIME}


# ---- running


def train_all(
    members: Sequence[Member], donor: Path | None, log: Callable[[str], None] = print
) -> None:
    """Trains all members one after another; what is finished is left as it is.

    Raises:
        UserError: before anything is trained, if a config or a dataset cannot be; if a member's
            folder holds stages of other settings.
    """
    for member in members:
        runs.check_config(member.config)
        runs.check_datasets(member.config, [member.speaker])
        record = runs.record_of(member.config, [member.speaker])
        runs.check_same_run(member.folder, record["config"], record["data"])
    donors = [donor] if donor else []
    for number, member in enumerate(members):

        def say(line: str, member: Member = member) -> None:
            log(f"{member.variant} {member.speaker.name}: {line}")

        log(f"{number + 1}/{len(members)} {member.folder}")
        checkpoint.writable_folder(member.folder)
        adopt(member.folder, runs.record_of(member.config, [member.speaker]), donors, say)
        runs.train(member.config, [member.speaker], member.folder, log=say)
        _check_whole(member)
        donors.append(member.folder)


def _check_whole(member: Member) -> None:
    """UserError if a stage was kept that was trained on top of others, or otherwise, than now."""
    stages = checkpoint.read_run(member.folder)["stages"]
    for name in talker.STAGES:
        settings, wanted = stages[name]["settings"], member.config.stages[name].to_dict()
        schedule = {k: v for k, v in wanted.items() if k not in trainer.SCHEDULE}
        if settings["config"] != schedule or any(
            settings["frozen"].get(need) != stages[need]["sha256"] for need in talker.NEEDS[name]
        ):
            raise UserError(
                f"{member.folder}: its stage {name} was trained before what it hangs on changed; "
                f"delete {member.folder} and run the same command again"
            )


def measure_all(members: Sequence[Member], log: Callable[[str], None] = print) -> None:
    """Evaluates the members that have no figures of today's networks, split and judge."""
    for number, member in enumerate(members):
        run = runs.open_run(member.folder)
        if _is_measured(member, evaluate.about_of(run, member.speaker, "test")):
            continue
        log(f"measuring {number + 1}/{len(members)} {member.folder}")
        evaluate.write(member.folder, run, evaluate.measure(run, member.speaker))


def _is_measured(member: Member, about: dict) -> bool:
    path = member.folder / evaluate.SERIES
    if not path.exists():
        return False
    newest = max(p.stat().st_mtime for p in (member.folder / "params").iterdir())
    _, _, told = measure.load_series(path)
    return told == about and path.stat().st_mtime > newest


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
    scale, digits = PERCENT.get(name, (1, measure.FIGURES[name].digits))
    low, high = figures.get(f"{at}/{name}_low"), figures.get(f"{at}/{name}_high")
    text = f"{scale * value:.{digits}f}"
    if low is not None and not isinstance(low, str):
        text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
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
    titles = [measure.FIGURES[name].title + (", %" if name in PERCENT else "") for name in SHOWN]
    headings = ["", *titles, "trained, min"]
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
    """The tables of a sweep's file; without any, one of all variants against the first.

    Raises:
        UserError: a row names a variant that MEMBERS lacks.
    """
    first, *others = variants = _variants(module)
    plain = {"All variants": tuple((name, name, ()) for name in (*others, first))}
    tables = getattr(module, "TABLES", plain)
    for title, rows in tables.items():
        for _, variant, _ in rows:
            if variant not in variants:
                raise UserError(
                    f"{module.__file__}: {title} has a row of {variant}, which MEMBERS lacks; "
                    "add it there"
                )
    return tables


def notes(figures: Figures, members: Sequence[Member]) -> list[str]:
    """What must be known to read the tables, who judged lip sync among it."""
    lines = list(NOTES)
    for speaker in dict.fromkeys(member.speaker.name for member in members):
        folder = next(m.folder for m in members if m.speaker.name == speaker)
        told = json.loads((folder / "metrics.json").read_text())
        proof = ""
        if "judge/windows" in told:
            proof = f", right on {told['judge/windows']:.0%} of the real windows (proved: "
            proof += f"{told['judge/proved']})"
        lines.append(f"Judge of lip sync for {speaker}: {told['judge/name']}{proof}.")
    words = {v for k, v in figures.items() if k.endswith("/lpips") and isinstance(v, str)}
    return lines + [f"LPIPS: {word}" for word in sorted(words - {"identical"})]


NOTES = (
    "In brackets 95 % intervals (blocks of a second resampled). Against the table's last row, by "
    "the paired difference over the same frames: ▲ better, ▼ worse, ≈ inside the noise: the rows "
    "do not separate. The intervals are of these frames with one training each: what another seed "
    "would change is not in them.",
    "The paper's figures (SSIM, LPIPS, AU Acc, LMD-79 in its own unit, SyncNet) were measured on "
    "other videos with another judge: read them down the column, not across.",
    "Minutes are those of the stages that had to be trained for the variant; stages that would "
    "come out the same were taken over.",
)


def markdown(
    figures: Figures, groups: Iterable[str], tables: dict, lines_below: Sequence[str]
) -> str:
    """All tables as Markdown, and the lines below them."""
    parts = []
    for group in groups:
        for title, rows in tables.items():
            headings, lines = table(figures, group, rows)
            parts.append(f"### {title}{f', {group}' if group else ''}\n")
            for k, line in enumerate([headings, ["---"] * len(headings), *lines]):
                parts.append("| " + " | ".join(line) + " |" + ("\n" if k > len(lines) else ""))
    return "\n".join([*parts, *(f"{note}\n" for note in lines_below)])


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


def show(figures: Figures, groups: Iterable[str], tables: dict, lines_below: Sequence[str]) -> None:
    """Prints the tables, and the lines below them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for group in groups:
        for title, rows in tables.items():
            headings, lines = table(figures, group, rows)
            shown = Table(title=Text(f"{title} {group}"), title_justify="left", show_lines=True)
            for heading in headings:
                shown.add_column(heading, justify="right" if heading else "left")
            for line in lines:
                shown.add_row(*(Text(text.replace(" [", "\n[")) for text in line))
            console.print(shown)
    for note in lines_below:
        console.print(note, highlight=False, markup=False)


def sweep_command(args) -> None:
    """`t3d sweep`."""
    groups = read_groups(args.data)
    out = Path(args.out)
    tables = tables_of(configs.load_module(args.config))
    members = members_of(args.config, args.overrides, groups, out)
    donor = Path(args.start_from) if args.start_from else None
    if donor and not checkpoint.read_run(donor):
        raise UserError(f"--start-from {donor}: no run is there; give the folder of one")
    train_all(members, donor)
    measure_all(members)
    figures = evaluate.plain(figures_of(members, tables))
    below = notes(figures, members)
    text, rows = markdown(figures, groups, tables, below), comma_separated(figures, members)
    write_atomically(out / "results.md", lambda p: p.write_text(text))
    write_atomically(out / "results.csv", lambda p: p.write_text(rows))
    evaluate.write_json(out / "results.json", figures)
    if args.json:
        evaluate.write_json(Path(args.json), figures)
    show(figures, groups, tables, below)
    for name in ("results.md", "results.csv", "results.json"):
        print(out / name)
