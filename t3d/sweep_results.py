"""What a sweep found: figures by variant and by row, tables, a picture.

A row holds the trainings that differ in their seed only. Of one training, intervals and comparisons
are over the frames (t3d.measure); of several, over the trainings: Student's t of their mean, and of
their differences by seed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from t3d import checkpoint, evaluate, measure, plots
from t3d.measure import AU_FIGURES, FIGURES
from t3d.metrics.uncertainty import LEVEL, Paired
from t3d.plots import Whisker
from t3d.sweep_members import Member

PAPER_FIGURES = ("ssim", "lpips", "au_accuracy", "lmd", "sync_confidence")  # Table I's five
SHOWN = (*PAPER_FIGURES, "ssim_head", "mouth_r")
PAPER_DIGITS = (3, 3, 1, 3, 3)
PERCENT = {"au_accuracy": (100, 1)}  # shown so, as in the paper: factor, digits
NO_FIGURE = "–"
INSIDE = "inside the noise"
Figures = dict[str, float | str]
Place = tuple[str, str]  # group, variant


# ---- over several trainings


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the figures of n ≥ 2 trainings, and its 95 % interval by Student's t.

    Returns:
        (mean, low, high): where the mean over very many trainings is likely to be.
    """
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def compare_by_seed(ours: Mapping[int, float], others: Mapping[int, float]) -> Paired | None:
    """By how much a figure differs between trainings of the same seeds (paired t).

    Args:
        ours, others: seed → figure.

    Returns:
        the mean difference over the seeds that both have; None if they share less than two.
    """
    seeds = ours.keys() & others.keys()
    if len(seeds) < 2:
        return None
    difference, low, high = mean_interval([ours[seed] - others[seed] for seed in seeds])
    return Paired(difference, low, high, bool(low > 0 or high < 0))


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
    """All figures, flat: '[group/]variant/figure' and '[group/]row/figure', '…/minutes',
    '…/frames', '…/trainings' (of a row), '…/against_REFERENCE/figure'.

    Args:
        members: measured, all speakers of each variant; tables: of the sweep's file; each row is
            held against the last one of its table.
    """
    by_place: dict[Place, list[Member]] = {}
    for member in members:
        by_place.setdefault((member.group, member.variant), []).append(member)
    trainings = {place: _training(several) for place, several in by_place.items()}
    found: Figures = {}
    for place, training in trainings.items():
        found |= _named(at(*place), training.figures)
    for group in dict.fromkeys(member.group for member in members):
        first = next(place for place in by_place if place[0] == group)
        found |= _named(at(group, "real"), measure.figures(pooled(by_place[first], "real")))
        rows: dict[str, dict[int, Training]] = {}
        for member in members:
            if member.group == group:
                training = trainings[group, member.variant]
                rows.setdefault(member.row, {})[member.config.seed] = training
        found |= _row_figures(group, rows, tables)
    return found


@dataclass(frozen=True)
class Training:
    """Figures of a variant in a group, and the series they are made of."""

    figures: Figures
    series: measure.Series


def _training(members: Sequence[Member]) -> Training:
    series = pooled(members)
    minutes = sum(map(trained_minutes, members)) / len(members)
    frames = len(series["found"])
    figures = measure.figures(series) | {"minutes": round(minutes, 2), "frames": frames}
    return Training(figures, series)


def _row_figures(group: str, rows: dict[str, dict[int, Training]], tables: dict) -> Figures:
    found: Figures = {}
    for row, by_seed in rows.items():
        figures = over_trainings([training.figures for training in by_seed.values()])
        found |= _named(at(group, row), figures)
    for lines in tables.values():
        reference = lines[-1][1]
        for _, row, _ in lines[:-1]:
            if row in rows and reference in rows:
                differences = _told(compare(rows[row], rows[reference]))
                found |= _named(f"{at(group, row)}/against_{reference}", differences)
    return found


def over_trainings(trainings: Sequence[Figures]) -> Figures:
    """A row's figures: those of its one training, or the means over several, and how many."""
    if len(trainings) == 1:
        return trainings[0] | {"trainings": 1}
    found: Figures = {"trainings": len(trainings)}
    found |= {name: float(np.mean([t[name] for t in trainings])) for name in ("minutes", "frames")}
    for name in (*FIGURES, *AU_FIGURES):
        values = [training[name] for training in trainings]
        words = [value for value in values if isinstance(value, str)]
        if words:
            found[name] = words[0]
        else:
            found[name], found[f"{name}_low"], found[f"{name}_high"] = mean_interval(values)
    return found


def compare(ours: dict[int, Training], others: dict[int, Training]) -> dict[str, Paired]:
    """What one row is above another, for each figure that both have: frame by frame if each has
    one training, else seed by seed, and empty where they share less than two seeds."""
    if len(ours) == len(others) == 1:
        return measure.compare(*(row.series for side in (ours, others) for row in side.values()))
    found = {}
    for name in (*FIGURES, *AU_FIGURES):
        mine, theirs = (
            {seed: training.figures[name] for seed, training in side.items()}
            for side in (ours, others)
        )
        if not any(isinstance(value, str) for value in (*mine.values(), *theirs.values())):
            paired = compare_by_seed(mine, theirs)
            found |= {name: paired} if paired else {}
    return found


def _told(differences: Mapping[str, Paired]) -> Figures:
    found: Figures = {}
    for name, paired in differences.items():
        found[name] = paired.difference
        found[f"{name}_low"], found[f"{name}_high"] = paired.low, paired.high
        found[f"{name}_separates"] = "yes" if paired.separates else INSIDE
    return found


def at(group: str, name: str) -> str:
    """Where the figures of a variant or a row are found."""
    return f"{group}/{name}" if group else name


def _named(place: str, figures: Figures) -> Figures:
    return {f"{place}/{name}": value for name, value in figures.items()}


# ---- tables


def cell(figures: Figures, place: str, name: str, reference: str | None) -> str:
    """A figure with its interval, and whether it differs from the reference's."""
    value = figures.get(f"{place}/{name}")
    if value is None or isinstance(value, str):
        return "n/a"
    scale, digits = PERCENT.get(name, (1, FIGURES[name].digits))
    low, high = figures.get(f"{place}/{name}_low"), figures.get(f"{place}/{name}_high")
    text = f"{scale * value:.{digits}f}"
    if low is not None and not isinstance(low, str):
        text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    verdict = figures.get(f"{place}/against_{reference}/{name}_separates")
    if verdict == INSIDE:
        return f"{text} ≈"
    if verdict == "yes":
        better = figures[f"{place}/against_{reference}/{name}"] * FIGURES[name].better
        return f"{text} {'▲' if better > 0 else '▼'}"
    return text


def table(figures: Figures, group: str, rows: Sequence) -> tuple[list[str], list[list[str]]]:
    """A table of the paper: headings, and rows of text (the real frames first).

    Args:
        rows: (title, row, the paper's five figures or none) each; the last is the reference.
    """
    titles = [FIGURES[name].title + (", %" if name in PERCENT else "") for name in SHOWN]
    headings = ["", *titles, "trained, min"]
    several = any(figures.get(f"{at(group, row)}/trainings", 1) > 1 for _, row, _ in rows)
    headings += ["trainings"] if several else []
    headings += ["the paper's five"] if any(paper for _, _, paper in rows) else []
    real = cell(figures, at(group, "real"), "sync_confidence", None)
    lines = [
        ["Ground-truth", *(real if name == "sync_confidence" else NO_FIGURE for name in SHOWN)]
    ]
    for title, row, paper in rows:
        place = at(group, row)
        own = [cell(figures, place, name, rows[-1][1]) for name in SHOWN]
        own.append(_number(figures.get(f"{place}/minutes"), 1))
        own += [_number(figures.get(f"{place}/trainings"), 0)] if several else []
        said = " / ".join(f"{v:.{d}f}" for v, d in zip(paper, PAPER_DIGITS, strict=False))
        lines.append([title, *own, said])
    return headings, [(line + [NO_FIGURE] * len(headings))[: len(headings)] for line in lines]


def _number(value: float | None, digits: int) -> str:
    return NO_FIGURE if value is None else f"{value:.{digits}f}"


OVER_FRAMES = (
    "In brackets 95 % intervals (blocks of a second resampled). Against the table's last row, by "
    "the paired difference over the same frames: ▲ better, ▼ worse, ≈ inside the noise: the rows "
    "do not separate. The intervals are of these frames with one training each: what another seed "
    "would change is not in them."
)
OVER_TRAININGS = (
    "A row of several trainings holds their mean and in brackets its 95 % interval over trainings "
    "(Student's t, as many as the column says): what other seeds would change, on these frames. "
    "Against the table's last row, by the difference between trainings of the same seed (paired "
    "t): ▲ better, ▼ worse, ≈ inside the noise; no mark where two rows share less than two seeds. "
    "Where nothing differs, one mark in twenty comes by chance. A row of one training has the "
    "interval over its frames (blocks of a second resampled)."
)
NOTES = (
    "The paper's figures (SSIM, LPIPS, AU Acc, LMD-79 in its own unit, SyncNet) were measured on "
    "other videos with another judge: read them down the column, not across.",
    "Minutes are those of the stages that had to be trained for the variant; stages that would "
    "come out the same were taken over.",
)


def notes(figures: Figures, members: Sequence[Member]) -> list[str]:
    """What must be known to read the tables, who judged lip sync among it."""
    several = any(k.endswith("/trainings") and n > 1 for k, n in figures.items())
    lines = [OVER_TRAININGS if several else OVER_FRAMES, *NOTES]
    for speaker in dict.fromkeys(member.speaker.name for member in members):
        folders = [member.folder for member in members if member.speaker.name == speaker]
        lines.append(_judge_note(speaker, folders[0], several))
    words = {v for k, v in figures.items() if k.endswith("/lpips") and isinstance(v, str)}
    return lines + [f"LPIPS: {word}" for word in sorted(words - {"identical"})]


def _judge_note(speaker: str, folder: Path, several: bool) -> str:
    told = json.loads((folder / "metrics.json").read_text())
    proof = ""
    if "judge/windows" in told:
        proof = f", right on {told['judge/windows']:.0%} of the real windows (proved: "
        proof += f"{told['judge/proved']})"
    own = several and str(folder) in told["judge/name"]
    each = (
        "; each seed has a judge of its own, so that sync figures vary with the judge, too"
        if own
        else ""
    )
    return f"Judge of lip sync for {speaker}: {told['judge/name']}{proof}{each}."


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
    """Every figure of every variant, one a line, as CSV; means over trainings are not in it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "variant", "row", "seed", "figure", "value", "low", "high"])
    for member in {(m.group, m.variant): m for m in members}.values():
        place = at(member.group, member.variant)
        about = [member.group, member.variant, member.row, member.config.seed]
        for name in FIGURES:
            values = [figures.get(f"{place}/{name}{end}", "") for end in ("", "_low", "_high")]
            writer.writerow([*about, name, *values])
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


# ---- the picture


def picture(figures: Figures, groups: Iterable[str], members: Sequence[Member]) -> bytes:
    """The tables' figures with their intervals by row, a panel each, as PNG."""
    panels = {}
    for name in SHOWN:
        drawn = {group: _whiskers(figures, group, name, members) for group in groups}
        if any(drawn.values()):
            figure = FIGURES[name]
            panels[f"{figure.title} {('↓', '', '↑')[figure.better + 1]}"] = drawn
    return plots.whiskers(panels)


def _whiskers(
    figures: Figures, group: str, name: str, members: Sequence[Member]
) -> dict[str, Whisker]:
    """{row: Whisker} of the rows that have the figure."""
    found = {}
    for row in dict.fromkeys(m.row for m in members if m.group == group):
        place = f"{at(group, row)}/{name}"
        if isinstance(figures.get(place), float):
            variants = dict.fromkeys(m.variant for m in members if (m.group, m.row) == (group, row))
            singles = [figures[f"{at(group, variant)}/{name}"] for variant in variants]
            ends = [figures.get(f"{place}_{end}") for end in ("low", "high")]
            low, high = (end if isinstance(end, float) else figures[place] for end in ends)
            found[row] = Whisker(figures[place], low, high, singles if len(singles) > 1 else ())
    return found
