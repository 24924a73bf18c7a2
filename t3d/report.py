"""What an evaluation says to people: tables, a sheet of pictures, and a page with all of it."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from t3d import plots, worst
from t3d.data.parts import write_atomically
from t3d.data.video import FPS
from t3d.measure import AU_FIGURES, FIGURES, TABLE_I, Series
from t3d.metrics.action_units import ACTION_UNITS

SYSTEMS = {  # what may be measured, in the order of the columns; the first one is the subject
    "ours": "ours",
    "pred": "the video measured",
    "nerf": "ours before the standardised space",
    "other_audio": "ours, sound from elsewhere",
    "mean_warp": "mean frame warped to the pose",
    "nearest": "training frame nearest in pose and sound",
    "reencoded": "the real frames, re-encoded",
    "real": "the real frames",
    "truth": "the true video",
}
MEANING = {  # what a picture beside the truth is
    "ours": "driven by the sound and the poses of these frames; it has seen none of them",
    "nerf": "what comes out of the 3D head alone",
    "other_audio": "driven by other speech: its lips must be worse, or the sound is not heard",
    "mean_warp": "one still picture, moved with the head: what costs nothing",
    "nearest": "what a memory of training can do",
    "reencoded": "through H.264 and back: better than this no video gets",
}
TRUTHS = ("real", "truth")
SIDE_BY_SIDE = ("ours", "pred", "other_audio", "mean_warp")  # with the truth before them
DRAWN = ("ours", "pred", "other_audio")  # whose mouths are drawn over time
GAINS = {
    "gain/lmd": ("LMD-79 lower by, %", 1),
    "gain/mouth_r": ("mouth opening r higher by", 2),
}
VIEW = re.compile(r"views/(yaw|pitch)([+-]?\d+)/(.+)")
HELD_OUT = re.compile(r"views/held_out_([\d.]+)_([\d.]+)/(.+)")
VIEW_FIGURES = {  # title, digits
    "psnr": ("PSNR over the head, dB", 2),
    "ssim": ("SSIM over the head", 3),
    "iou": ("IoU of the silhouettes", 3),
    "covered": ("share of the 3DMM covered", 3),
    "depth_cm": ("depth off by, cm", 2),
    "found": ("share of frames with a face", 2),
    "yaw_error": ("yaw, tracked again, off by °", 1),
    "identity_mm": ("shape, tracked again, off by mm", 1),
    "mouth_r": ("mouth opening, r with yaw 0", 2),
    "frames": ("frames", 0),
}
TRACKED = "tracked_"  # before a view's figure: the same by the tracker's pose
REENACTED = "reenacted_"  # the same, with the recorded picture's mouth in place of the sound's
BASELINE = "front_"  # before a view's figure: what the recorded picture itself scores there
NO_FIGURE = "–"
Figures = Mapping[str, float | str]


@dataclass(frozen=True)
class Section:
    """One table: what it is about, its headings (the first above the rows' names), its rows."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What report.html is made of.

    Attributes:
        figures: flat, 'system/figure' → number or words, and the setting (speaker, split, frames,
            size, detector, judge …; note/0, note/1 … are said as they are), of which any may be
            missing but speaker and frames.
        films: system → uint8 [T, s, s, 3]; the subject ('ours' or 'pred') and the truth ('real' or
            'truth') must be among them.
        series: system → figures by frame, of `measure.series_of`; the subject's must be there.
        frames: [T] the frames' numbers at 25 fps.
        sound: [T · 640] of the frames, 16 kHz.
        turned: uint8 [n, s, s, 3] of the subject from the angles `turns` (yaw, pitch; degrees).
        codes: {"au": [n_au, K], "global": [K]} how often each code was used.
        beyond: [T] degrees that the head is turned further than in training (`worst.beyond`).
        record: of the run (run.json): config, stages and versions are shown.
    """

    figures: Figures
    films: Mapping[str, np.ndarray]
    series: Mapping[str, Series]
    frames: np.ndarray
    sound: np.ndarray
    turned: np.ndarray | None = None
    turns: Sequence[tuple[float, float]] = ()
    codes: Mapping[str, np.ndarray] | None = None
    beyond: np.ndarray | None = None
    record: Mapping = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The system that is measured; the others are its controls."""
        return next(name for name in SYSTEMS if name in self.films)

    @property
    def truth(self) -> str:
        """The name of the true frames."""
        return next(name for name in TRUTHS if name in self.films)


# ---- tables


def tables(figures: Figures) -> list[Section]:
    """All figures as tables: the columns of the paper's Table I first, then all others."""
    columns = [s for s in SYSTEMS if any(f"{s}/{key}" in figures for key in FIGURES)]
    frames = f"{figures['frames']} frames"
    what = f"{figures['split']}, {frames}" if "split" in figures else frames
    others = [key for key in FIGURES if key not in TABLE_I]
    gains = [[title, cell(figures, key, n)] for key, (title, n) in GAINS.items() if key in figures]
    found = [
        _by_system(f"The paper's five figures ({what})", figures, columns, TABLE_I),
        _by_system("More figures", figures, columns, others),
        Section("The true sound against sound from elsewhere", ["", "ours"], gains),
        paired(figures, "over_nerf", "The whole system against the field alone, frame by frame"),
        against(figures),
        *_views(figures),
        _by_system("Each action unit", figures, columns, AU_FIGURES),
    ]
    return [section for section in found if section.rows]


def against(figures: Figures) -> Section:
    """The paired differences from another run, of `t3d evaluate --against`."""
    other = figures.get("against", "another run")
    return paired(figures, "against", f"Against {other}, frame by frame")


def paired(figures: Figures, place: str, title: str) -> Section:
    """Paired differences 'place/figure' (`evaluate.paired_figures`), the paper's figures first."""
    names = [key for key in (*TABLE_I, *FIGURES) if f"{place}/{key}" in figures]
    rows = [
        [
            _named(key),
            cell(figures, f"{place}/{key}", FIGURES[key].digits),
            str(figures.get(f"{place}/{key}_separates", NO_FIGURE)),
        ]
        for key in dict.fromkeys(names)
    ]
    return Section(title, ["", "difference", "separates"], rows)


def _by_system(
    title: str, figures: Figures, columns: Sequence[str], keys: Sequence[str]
) -> Section:
    digits = {key: figure.digits for key, figure in (FIGURES | AU_FIGURES).items()}
    rows = [
        [_named(key), *(cell(figures, f"{s}/{key}", digits[key]) for s in columns)]
        for key in keys
        if any(f"{s}/{key}" in figures for s in columns)
        and not (key in AU_FIGURES and isinstance(figures[f"{columns[0]}/{key}"], str))
    ]
    return Section(title, ["", *(SYSTEMS[s] for s in columns)], rows)


def _named(key: str) -> str:
    """A figure's title with an arrow to where it is better."""
    figure = (FIGURES | AU_FIGURES)[key]
    return f"{figure.title} {('↓', '', '↑')[figure.better + 1]}".strip()


def cell(figures: Figures, name: str, digits: int) -> str:
    """A figure with its interval below it, as text; 'n/a' where there are only words for it."""
    value = figures.get(name)
    if value is None:
        return NO_FIGURE
    if isinstance(value, str):
        return value if len(value) < 12 else "n/a"
    ends = [figures.get(f"{name}_{end}") for end in ("low", "high")]
    known = all(isinstance(end, (int, float)) for end in ends)
    text = f"{value:.{digits}f}"
    return text + (f"\n[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if known else "")


def _views(figures: Figures) -> list[Section]:
    """Turned cameras, and frames held out for their yaw."""
    turned = {m[0]: (m[1], int(m[2])) for name in figures if (m := VIEW.fullmatch(name))}
    angles = sorted(set(turned.values()), key=lambda turn: (turn[0] != "yaw", turn[1]))
    cameras = {f"{kind} {angle:+d}°": f"views/{kind}{angle:+d}" for kind, angle in angles}
    cameras = {name.replace("+0°", "0°"): view for name, view in cameras.items()}
    held = {(m[1], m[2]) for name in figures if (m := HELD_OUT.fullmatch(name))}
    bins = {
        f"{low}° to {high}°": f"views/held_out_{low}_{high}"
        for low, high in sorted(held, key=lambda pair: float(pair[0]))
    }
    return [
        _by_view("Turned views", "camera", figures, cameras),
        _by_view("Frames held out for their yaw", "off the median yaw", figures, bins),
    ]


def _by_view(title: str, heading: str, figures: Figures, views: Mapping[str, str]) -> Section:
    """Args: views: row's name → what its figures' names begin with."""
    known = {
        f"{before}{key}": (words, digits)
        for key, (words, digits) in VIEW_FIGURES.items()
        for before in ("", TRACKED, REENACTED, BASELINE)
        if any(f"{view}/{before}{key}" in figures for view in views.values())
    }
    beginnings = {
        TRACKED: "tracked pose: ",
        REENACTED: "tracked pose, filmed mouth: ",
        BASELINE: "front image: ",
    }
    headings = [
        "".join(words for before, words in beginnings.items() if key.startswith(before)) + title
        for key, (title, _) in known.items()
    ]
    rows = [
        [name, *(cell(figures, f"{view}/{key}", digits) for key, (_, digits) in known.items())]
        for name, view in views.items()
    ]
    return Section(title, [heading, *headings], rows)


def notes(figures: Figures) -> list[str]:
    """What must be known to read the tables."""
    lines = []
    if "size" in figures:
        lines.append(f"Images are {figures['size']} × {figures['size']} pixels.")
    if "detector" in figures:
        lines.append(
            f"Detector of faces in the frames: {figures['detector']}. A frame without a face "
            "counts as worst."
        )
    if figures.get("frames_left_out"):
        lines.append(
            f"Left out: {figures['frames_left_out']} frames of the recording in which the speaker "
            "was not found; there is no truth in them."
        )
    lines += _judge_notes(figures)
    if "au/absent" in figures:
        lines.append(
            f"AUs that say nothing here: absent {figures['au/absent']}; constant "
            f"{figures['au/constant']}."
        )
    if "mean/ssim_head" in figures:
        lines.append(
            f"SSIM over the head of the plain mean frame {figures['mean/ssim_head']:.3f}, of the "
            f"training frame nearest in pose alone {figures['nearest_pose/ssim_head']:.3f}."
        )
    if "views/fit_mm" in figures:
        lines.append(
            f"Turned views: our head is {figures['views/scale']:.2f} times the true one's size, "
            f"its landmarks at rest are {figures['views/fit_mm']:.1f} mm off the true ones. The "
            "true cameras look at it as that lays it on the true head; tracked pose: they turn "
            "about it as the tracker saw it in the recorded picture, about the point that is "
            "theirs. The front image is that picture, put in place of the view."
        )
    if "views/truth" in figures:
        lines.append(f"Turned views: {figures['views/truth']}.")
    lines.append("In brackets: 95 % intervals, blocks of a second resampled.")
    lines += [str(value) for name, value in figures.items() if name.startswith("note/")]
    return lines + _words(figures)


def _judge_notes(figures: Figures) -> list[str]:
    if "judge/windows" not in figures:
        return [f"Judge of lip sync: {figures['judge/name']}."] if "judge/name" in figures else []
    shares = [figures[f"judge/{name}"] for name in ("windows", "seconds")]
    windows, seconds = (s if isinstance(s, str) else f"{s:.0%}" for s in shares)
    proved = figures["judge/proved"] == "yes"
    verdict = "it has proved itself" if proved else "it has NOT proved itself, sync says little"
    return [
        f"Judge of lip sync: {figures['judge/name']}. Of the real frames it finds the own sound "
        f"nearer than another in {windows} of windows, in {seconds} of seconds, and the offset "
        f"{figures['judge/offset']}: {verdict}."
    ]


def _words(figures: Figures) -> list[str]:
    """The words that stand in place of figures: each once, after the figures they stand for."""
    found: dict[str, dict[str, None]] = {}
    for name, value in figures.items():
        system, _, key = name.partition("/")
        if system in SYSTEMS and key in FIGURES and isinstance(value, str) and len(value) >= 12:
            found.setdefault(value, {})[FIGURES[key].title] = None
    return [f"{', '.join(titles)}: {words}" for words, titles in found.items()]


def show(figures: Figures) -> None:
    """Prints all tables and notes on the terminal."""
    show_sections(tables(figures), notes(figures))


def show_sections(sections: Sequence[Section], lines: Sequence[str]) -> None:
    """Prints tables, and lines below them, on the terminal."""
    console = _console()
    for section in sections:
        _print(console, section)
    for line in lines:
        console.print(line)


def show_against(figures: Figures) -> None:
    """Prints the differences from another run on the terminal."""
    _print(_console(), against(figures))


def _console() -> Console:
    plain = partial(Console, markup=False, emoji=False, highlight=False)  # names hold brackets
    console = plain()
    return console if console.is_terminal else plain(width=140)


def _print(console: Console, section: Section) -> None:
    table = Table(title=section.title, title_justify="left")
    table.add_column(section.headings[0])
    for heading in section.headings[1:]:
        table.add_column(heading, justify="right")
    for row in section.rows:
        table.add_row(*row)
    console.print(table)


# ---- the page

_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:0 auto;padding:1rem;color:#222}
h1{font-size:1.4rem;line-height:1.25;overflow-wrap:anywhere;margin:.3rem 0 1rem}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem}li{margin:.2rem 0}
.top{display:flex;flex-wrap:wrap;gap:1rem 2rem;align-items:center}.top dl{flex:1 1 18rem;margin:0}
dt{font-weight:600}dd{margin:0 0 .6rem;color:#555}
video{display:block;width:100%;max-width:var(--film)}
.wide{overflow-x:auto;background:linear-gradient(90deg,#fff0,#fff 70%) 100% 0/3rem 100% local,
radial-gradient(farthest-side at 100% 50%,#0004,#0000) 100% 0/1rem 100% scroll;
background-repeat:no-repeat}
table{border-collapse:collapse;font-size:.85rem;line-height:1.3}
th,td{padding:.35rem .6rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
th{vertical-align:bottom;font-weight:600;min-width:6.2rem}
td{white-space:nowrap;font-variant-numeric:tabular-nums}td small{color:#666;display:block}
th:first-child,td:first-child{position:sticky;left:0;background:#fff;text-align:left;
white-space:normal;width:13rem;min-width:8.5rem}
th:nth-child(2),td:nth-child(2){background:#eaf2fa99}
.wide>img{display:block;width:auto;max-width:100%;min-width:44rem;mix-blend-mode:multiply}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1.2rem}
figure{margin:0}.cards img{width:100%;max-width:26rem}figcaption{font-size:.85rem;color:#555}
details{margin-top:.6rem}details:first-of-type{margin-top:2.2rem}
ul{font-size:.9rem;padding-left:1.2rem}
pre{overflow-x:auto;font-size:.8rem;background:#f6f6f6;padding:.6rem}
"""


def html_page(page: Page, sheet_png: bytes) -> str:
    """One HTML file that needs nothing beside it."""
    speaker = html.escape(str(page.figures["speaker"]))
    first, *others = (_table(section) for section in tables(page.figures))
    body = [
        f"<h1>{speaker}: a talking head, measured</h1>",
        _film(page),
        first,
        f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in notes(page.figures))}</ul>",
        _mouths(page),
        _picture(
            "Moments" if page.turned is None else "Moments and angles", "image/png", sheet_png
        ),
        *others,
        _view_curves(page.figures),
        _codes(page.codes),
        _worst(page),
        *(_record(page.record, key) for key in ("config", "stages", "versions")),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>t3d: {speaker}</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _table(section: Section) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_lines(c)}</{tag}>" for c in cells) + "</tr>"

    lines = [line(section.headings, "th"), *(line(row, "td") for row in section.rows)]
    table = f'<div class="wide"><table>{"".join(lines)}</table></div>'
    return f"<h2>{html.escape(section.title)}</h2>{table}"


def _lines(text: str) -> str:
    first, *others = html.escape(text).split("\n")
    return first + "".join(f"<small>{line}</small>" for line in others)


def _film(page: Page) -> str:
    names = [page.truth, *(name for name in SIDE_BY_SIDE if name in page.films)]
    mp4 = plots.film({SYSTEMS[name]: page.films[name] for name in names}, page.sound)
    side = plots.film_side(page.films[page.truth])
    said = "".join(
        f"<dt>{SYSTEMS[s]}</dt><dd>{MEANING[s]}</dd>" for s in MEANING if s in page.films
    )
    said += "<dt>what is heard</dt><dd>with all of them the true sound, where there is one</dd>"
    return (
        f'<div class="top"><video controls playsinline style="--film:{2 * side}px" '
        f'src="{_data("video/mp4", mp4)}"></video><dl>{said}</dl></div>'
    )


def _mouths(page: Page) -> str:
    openings = {SYSTEMS[page.truth]: page.series[page.subject]["true_opening"]}
    openings |= {SYSTEMS[s]: page.series[s]["opening"] for s in DRAWN if s in page.series}
    svg = plots.mouth_curves(openings, page.frames, page.sound)
    return _picture("Mouth opening", "image/svg+xml", svg)


def _view_curves(figures: Figures) -> str:
    """Panels of the turned views: each figure over the angle, and the front image's as a floor."""
    panels: dict[str, dict[str, dict]] = {}
    for name, value in figures.items():
        found = VIEW.fullmatch(name)
        key = found[3].removeprefix(BASELINE) if found else ""
        if key in VIEW_FIGURES and not isinstance(value, str):
            curve = "front image" if found[3].startswith(BASELINE) else "ours"
            panel = panels.setdefault(VIEW_FIGURES[key][0], {})
            panel.setdefault(curve, {})[found[1], float(found[2])] = value
    if not panels:
        return ""
    order = [title for title, _ in VIEW_FIGURES.values() if title in panels]
    svg = plots.view_curves({title: dict(sorted(panels[title].items())[::-1]) for title in order})
    return _picture("Views over the angle of the camera", "image/svg+xml", svg)


def _codes(codes: Mapping[str, np.ndarray] | None) -> str:
    if not codes:
        return ""
    books = {f"AU{unit:02d}": use for unit, use in zip(ACTION_UNITS, codes.get("au", ()))}
    books |= {"global": codes["global"]} if "global" in codes else {}
    return _picture("Use of the codebooks", "image/svg+xml", plots.code_bars(books))


def _worst(page: Page) -> str:
    found = worst.worst(page.series[page.subject], page.beyond)
    if not found:
        return ""
    titles = SYSTEMS[page.truth], SYSTEMS[page.subject]
    cards = []
    for bad in found:
        pair = [page.films[name][bad.row] for name in (page.truth, page.subject)]
        when = f"{bad.row / FPS:.2f} s, frame {page.frames[bad.row]}"
        picture = _data("image/png", plots.png(plots.strip(pair, titles)))
        cards.append(
            f'<figure><img alt="{when}" src="{picture}">'
            f"<figcaption><b>{when}</b>: {html.escape(bad.cause)}</figcaption></figure>"
        )
    return f'<h2>The worst frames</h2><div class="cards">{"".join(cards)}</div>'


def _record(record: Mapping, key: str) -> str:
    if not record.get(key):
        return ""
    text = html.escape(json.dumps(record[key], indent=1))
    return f"<details><summary>{key.capitalize()}</summary><pre>{text}</pre></details>"


def _picture(title: str, kind: str, content: bytes) -> str:
    """A titled picture that scrolls sideways where it would get too small to read."""
    image = f'<img alt="{title}" src="{_data(kind, content)}">'
    return f'<h2>{title}</h2><div class="wide">{image}</div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---- files


def write(folder: Path, page: Page) -> None:
    """Writes sheet.png and report.html into a folder."""
    png = plots.png(plots.sheet(_sheet_rows(page)))
    text = html_page(page, png)
    write_atomically(folder / "sheet.png", lambda p: p.write_bytes(png))
    write_atomically(folder / "report.html", lambda p: p.write_text(text, encoding="utf-8"))


def _sheet_rows(page: Page) -> list[plots.Row]:
    """The truth and the systems at the moments; then the subject's angles."""
    chosen = plots.moments(page.series[page.subject]["true_opening"])
    when = [f"{frame / FPS:.2f} s" for frame in chosen]
    names = [page.truth, *(s for s in SYSTEMS if s in page.films and s not in TRUTHS)]
    rows = [(SYSTEMS[s], page.films[s][chosen], () if k else when) for k, s in enumerate(names)]
    if page.turned is not None:
        turns = [f"pitch {b:+.0f}°" if b else f"yaw {a:+.0f}°" for a, b in page.turns]
        turns = [turn.replace("+0°", "0°") for turn in turns]
        rows.append((f"{SYSTEMS[page.subject]}, turned", page.turned, turns))
    return rows
