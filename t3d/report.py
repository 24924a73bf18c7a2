"""What an evaluation says to people: a table, a sheet of pictures, and a page with all of it."""

from __future__ import annotations

import base64
import html
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from t3d.data import video
from t3d.data.parts import write_atomically

SYSTEMS = {
    "ours": "ours",
    "nerf": "ours before the standardised space",
    "other_audio": "ours, sound from elsewhere",
    "mean_warp": "mean frame warped to the pose",
    "nearest": "training frame nearest in pose and sound",
    "real": "the real frames",
}
FIGURES = {  # title, digits
    "ssim_head": ("SSIM over the head ↑", 3),
    "ssim": ("SSIM ↑", 3),
    "psnr_head": ("PSNR over the head, dB ↑", 2),
    "lpips": ("LPIPS ↓", 3),
    "lmd": ("LMD-79, head aligned, % of eye distance ↓", 2),
    "lmd_px": ("LMD-79, pixels ↓", 2),
    "mouth_r": ("mouth opening, r with the true one ↑", 2),
    "au_accuracy": ("AU accuracy ↑", 3),
    "au_balanced": ("AU accuracy, balanced ↑", 3),
    "sync_confidence": ("sync confidence ↑", 3),
    "sync_distance": ("sync distance ↓", 3),
    "sync_offset": ("sync offset, frames", 0),
    "found": ("share of frames with a face ↑", 3),
}
GAINS = {
    "gain/lmd": ("LMD-79 lower by, %", 1),
    "gain/mouth_r": ("mouth opening r higher by", 2),
}
VIEW_FIGURES = {"ssim_head": ("SSIM over the head ↑", 3), "psnr_head": ("PSNR, dB ↑", 2)}
CELL, MARGIN, LINE = 144, 150, 22  # pixels of a sheet: a picture, the titles at its left, a line
MOMENTS = 8
CURVE_SECONDS = 20.0
NO_FIGURE = "–"
Figures = Mapping[str, float | str]


# ---- the table


def cell(figures: Figures, name: str, digits: int) -> str:
    """A figure with its interval, as text; 'n/a' where there are only words for it."""
    value = figures.get(name)
    if value is None:
        return NO_FIGURE
    if isinstance(value, str):
        return value if len(value) < 12 else "n/a"
    text = f"{value:.{digits}f}"
    if f"{name}_low" in figures:
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        text += f"\n[{low:.{digits}f}, {high:.{digits}f}]" if not isinstance(low, str) else ""
    return text


def tables(figures: Figures) -> list[tuple[str, list[str], list[list[str]]]]:
    """All figures as tables: (title, headings, rows of text)."""
    rows = [
        [title, *(cell(figures, f"{system}/{key}", digits) for system in SYSTEMS)]
        for key, (title, digits) in FIGURES.items()
    ]
    gains = [[title, cell(figures, name, digits)] for name, (title, digits) in GAINS.items()]
    found = [
        (f"{figures['split']}, {figures['frames']} frames", ["", *SYSTEMS.values()], rows),
        ("The true sound against sound from elsewhere", ["", "ours"], gains),
    ]
    views = sorted(name.split("/")[0] for name in figures if name.endswith("/yaw"))
    if views:
        headings = ["camera", *(title for title, _ in VIEW_FIGURES.values())]
        rows = [
            [
                f"yaw {figures[f'{view}/yaw']:+.0f}°",
                *(cell(figures, f"{view}/{k}", d) for k, (_, d) in VIEW_FIGURES.items()),
            ]
            for view in views
        ]
        found.append(("Other cameras (bare head, no hair)", headings, rows))
    return found


def notes(figures: Figures) -> list[str]:
    """What must be known to read the table."""
    judge = figures["judge/validation_accuracy"]
    judge = judge if isinstance(judge, str) else f"right on {judge:.0%} of validation windows"
    lines = [
        f"Images are {figures['size']} × {figures['size']} pixels, heads on white.",
        f"Detector of faces in rendered frames: {figures['detector']}. A frame without a face "
        "counts as worst.",
        f"Judge of lip sync: {figures['judge']}; {judge}. Every row is held against the true "
        "sound.",
        f"AUs that say nothing here: absent {figures['au/absent']}; constant "
        f"{figures['au/constant']}.",
        f"SSIM over the head of the plain mean frame {figures['mean/ssim_head']:.3f}, of the "
        f"training frame nearest in pose alone {figures['nearest_pose/ssim_head']:.3f}.",
        "In brackets: 95 % intervals, blocks of a second resampled.",
    ]
    words = {
        f"{title.strip(' ↑↓')}: {figures[f'ours/{key}']}"
        for key, (title, _) in FIGURES.items()
        if isinstance(figures.get(f"ours/{key}"), str)
    }
    return lines + sorted(words)


def show(figures: Figures) -> None:
    """Prints the tables on the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    for title, headings, rows in tables(figures):
        table = Table(title=title, title_justify="left")
        table.add_column(headings[0])
        for heading in headings[1:]:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in notes(figures):
        console.print(line, highlight=False)


# ---- pictures


def moments(opening: np.ndarray, count: int = MOMENTS) -> np.ndarray:
    """Frames [count] with the mouth closed and open in turn, one pair for each part of the time.

    Args:
        opening: [T], NaN where unknown.
    """
    parts = np.array_split(np.arange(len(opening)), count // 2)
    low, high = (np.where(np.isnan(opening), end, opening) for end in (np.inf, -np.inf))
    pairs = [(p[np.argmin(low[p])], p[np.argmax(high[p])]) for p in parts if len(p)]
    return np.array(pairs, int).reshape(-1)


def strip(images: Sequence[np.ndarray], titles: Sequence[str], side: int = CELL) -> np.ndarray:
    """Pictures in a row with a title above each: uint8 [LINE + side, n · side, 3]."""
    canvas = Image.new("RGB", (side * len(images), side + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        picture = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(picture, (k * side, LINE))
        draw.text((k * side + 4, 3), title, "black", _font(14))
    return np.asarray(canvas)


def _font(size: int):
    return ImageFont.load_default(size)


def sheet(
    films: Mapping[str, np.ndarray],
    opening: np.ndarray,
    turned: np.ndarray,
    turns: Sequence[tuple[float, float]],
) -> Image.Image:
    """Rows of moments (truth and systems), and ours from several angles.

    Args:
        films: uint8 [T, s, s, 3] of 'real', 'ours', 'nerf' and 'mean_warp'.
        opening: [T] the true mouth opening, by which the moments are chosen.
        turned: uint8 [n, s, s, 3] from the angles `turns` (yaw, pitch in degrees).
    """
    chosen = moments(opening)
    names = [f"{frame / video.FPS:.2f} s" for frame in chosen]
    rows = [
        ("the real frames", films["real"][chosen], names),
        ("ours", films["ours"][chosen], names),
        ("ours before the\nstandardised space", films["nerf"][chosen], names),
        ("mean frame\nwarped to the pose", films["mean_warp"][chosen], names),
        (
            "ours, turned",
            turned,
            [f"yaw {a:+.0f}°" if not b else f"pitch {b:+.0f}°" for a, b in turns],
        ),
    ]
    height = CELL + LINE
    width = MARGIN + CELL * max(len(images) for _, images, _ in rows)
    canvas = Image.new("RGB", (width, height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (title, images, labels) in enumerate(rows):
        canvas.paste(Image.fromarray(strip(images, labels)), (MARGIN, k * height))
        draw.text((6, k * height + height // 2), title, "black", _font(14))
    return canvas


def curves(openings: Mapping[str, np.ndarray], sound: np.ndarray) -> bytes:
    """The mouth opening over time above the sound's wave, as PNG; at most 20 s of it.

    Args:
        openings: 'truth' and systems, [T] each; sound: [T · 640] at 16 kHz.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = min(len(openings["truth"]), int(CURVE_SECONDS * video.FPS))
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(10, 4.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    seconds = np.arange(count) / video.FPS
    styles = {"truth": "black", "ours": "tab:blue", "other_audio": "tab:orange"}
    for name, colour in styles.items():
        label = "truth" if name == "truth" else SYSTEMS[name]
        upper.plot(seconds, openings[name][:count], color=colour, label=label, linewidth=1.3)
    upper.set_ylabel("mouth opening / eye distance")
    upper.legend(ncols=3, frameon=False, fontsize=9)
    heard = sound[: count * video.RATE // video.FPS]
    lower.plot(np.arange(len(heard)) / video.RATE, heard, color="grey", linewidth=0.4)
    lower.set_ylabel("sound")
    lower.set_xlabel("seconds")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)
    return stream.getvalue()


def film(films: Mapping[str, np.ndarray], sound: np.ndarray) -> bytes:
    """Truth, ours and ours with sound from elsewhere side by side, as mp4 with the true sound."""
    side = max(256, films["real"].shape[1])
    shown = {"real": "the real frames", "ours": "ours", "other_audio": SYSTEMS["other_audio"]}
    frames = (
        strip([films[name][k] for name in shown], list(shown.values()), side)
        for k in range(len(films["real"]))
    )
    marks = {"comment": "synthetic media: two of three pictures are generated by t3d"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        return video.write_video(path, frames, sound, metadata=marks).read_bytes()


# ---- the page

_STYLE = """
body{font:16px/1.45 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:1.8rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:bottom}
td{white-space:pre}th:first-child,td:first-child{text-align:left}
td:first-child{white-space:normal;min-width:9rem}
img,video{max-width:100%;height:auto}.sheet{min-width:44rem}
pre{overflow-x:auto;font-size:.8rem;background:#f6f6f6;padding:.6rem}
"""


def page(
    figures: Figures, sheet_png: bytes, film_mp4: bytes, curves_png: bytes, record: Mapping
) -> str:
    """One HTML file that needs nothing beside it.

    Args:
        record: of the run (run.json), shown at the end.
    """
    speaker = html.escape(str(figures["speaker"]))
    body = [f"<h1>{speaker}: a talking head, measured</h1>"]
    for title, headings, rows in tables(figures):
        body.append(f"<h2>{html.escape(title)}</h2>{_table(headings, rows)}")
    body.append("<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes(figures)) + "</ul>")
    body.append(
        "<h2>Side by side</h2><video controls playsinline "
        f'src="{_data("video/mp4", film_mp4)}"></video>'
        f'<h2>Mouth opening</h2><img alt="mouth opening over time" '
        f'src="{_data("image/png", curves_png)}">'
        '<h2>Moments and angles</h2><div class="wide"><img class="sheet" alt="sheet of pictures" '
        f'src="{_data("image/png", sheet_png)}"></div>'
    )
    for title, key in (("Config", "config"), ("Stages", "stages"), ("Versions", "versions")):
        text = html.escape(json.dumps(record.get(key, {}), indent=1))
        body.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>t3d: {speaker}</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    lines = [line(headings, "th"), *(line(row, "td") for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write(
    folder: Path,
    figures: Figures,
    films: Mapping[str, np.ndarray],
    openings: Mapping[str, np.ndarray],
    turned: np.ndarray,
    turns: Sequence[tuple[float, float]],
    sound: np.ndarray,
    record: Mapping,
) -> None:
    """Writes sheet.png and report.html into a folder (arguments as `sheet`, `curves`, `page`)."""
    stream = io.BytesIO()
    sheet(films, openings["truth"], turned, turns).save(stream, "png")
    text = page(figures, stream.getvalue(), film(films, sound), curves(openings, sound), record)
    write_atomically(folder / "sheet.png", lambda p: p.write_bytes(stream.getvalue()))
    write_atomically(folder / "report.html", lambda p: p.write_text(text, encoding="utf-8"))
