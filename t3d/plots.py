"""The pictures of a report: sheets of frames, a film side by side, curves and bars."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t3d.data import video

CELL, MARGIN, LINE = 144, 150, 22  # pixels of a sheet: a picture, the titles at its left, a line
LETTERS = 19  # of a title at the left, in a line
MOMENTS = 8
FILM_SIDES = 256, 384  # pixels of a picture in the film: least, most
CURVE_SECONDS = 20.0
BINS = 100  # of the sound's wave a second
# Okabe and Ito's colours, told apart by colour-blind people, and a line style for each.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
STYLES = ("-", "-", "--", "-.", ":")
WIDTHS = (2.6, 1.2, 1.2)  # of curves: the truth is seen below one that equals it
Row = tuple[str, np.ndarray, Sequence[str]]  # title, pictures [n, s, s, 3], labels or none


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
    """Pictures in a row, with a title above each if there are titles: uint8 [height, width, 3]."""
    above = LINE if titles else 0
    canvas = Image.new("RGB", (side * len(images), side + above), "white")
    for k, image in enumerate(images):
        picture = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(picture, (k * side, above))
    draw = ImageDraw.Draw(canvas)
    for k, title in enumerate(titles):
        draw.text((k * side + 4, 1), title, "black", _font())
    return np.asarray(canvas)


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(15)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Rows of titled pictures, in the manner of the paper's Fig. 2 and 3."""
    strips = [Image.fromarray(strip(images, labels)) for _, images, labels in rows]
    size = MARGIN + max(s.width for s in strips), sum(s.height for s in strips)
    canvas, top = Image.new("RGB", size, "white"), 0
    for (title, *_), pictures in zip(rows, strips):
        canvas.paste(pictures, (MARGIN, top))
        top += pictures.height
        place = 6, top - CELL // 2
        text = "\n".join(wrap(title, LETTERS))
        ImageDraw.Draw(canvas).text(place, text, "black", _font(), anchor="lm")
    return canvas


def film_side(film: np.ndarray) -> int:
    """Side in pixels of each picture of `film`, for films [T, s, s, 3]; even."""
    return int(np.clip(film.shape[1], *FILM_SIDES)) // 2 * 2


def film(films: Mapping[str, np.ndarray], sound: np.ndarray) -> bytes:
    """Films of T frames beside each other, two in a row, as mp4.

    Args:
        films: title → uint8 [T, s, s, 3]; sound: [T · 640] at 16 kHz.
    """
    titles, shown = list(films), list(films.values())
    side = film_side(shown[0])
    blank = np.full((1, 1, 3), 255, np.uint8)

    def picture(k: int) -> np.ndarray:
        cells = [(f[k], t) for f, t in zip(shown, titles)]
        cells += [(blank, "")] * (len(cells) % 2)
        return np.concatenate(
            [strip(*zip(*cells[i : i + 2]), side) for i in range(0, len(cells), 2)]
        )

    marks = {"comment": "synthetic media: all pictures but the true ones are generated"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        frames = (picture(k) for k in range(len(shown[0])))
        return video.write_video(path, frames, sound, metadata=marks).read_bytes()


def mouth_curves(openings: Mapping[str, np.ndarray], frames: np.ndarray, sound) -> bytes:
    """The mouth's opening over time above the sound's wave, as SVG; at most 20 s of it.

    Args:
        openings: title → [T] over the eye distance, the truth first; NaN breaks a curve.
        frames: [T] numbers; curves break where some are left out.
        sound: [T · 640] at 16 kHz.
    """
    count = min(len(frames), int(CURVE_SECONDS * video.FPS))
    seconds = np.arange(count) / video.FPS
    gaps = np.flatnonzero(np.diff(frames[:count]) != 1) + 1
    figure, (upper, lower) = _figure((10, 4.2), 2, 1, sharex=True, height_ratios=(3, 1))
    for (title, opening), *look in zip(openings.items(), COLOURS, STYLES, WIDTHS):
        style = dict(zip(("color", "linestyle", "linewidth"), look))
        broken = np.insert(100 * opening[:count], gaps, np.nan)
        at = np.insert(seconds, gaps, np.nan)
        upper.plot(at, broken, label=title, **style)
    upper.set_ylabel("mouth opening,\n% of the eye distance")
    upper.legend(ncols=3, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    step = video.RATE // BINS
    wave = np.asarray(sound[: count * video.RATE // video.FPS])
    wave = wave[: len(wave) // step * step].reshape(-1, step)
    lower.fill_between(np.arange(len(wave)) / BINS, wave.min(1), wave.max(1), color="0.5", lw=0)
    lower.set(ylabel="sound", xlabel="seconds", yticks=[], xlim=(0, count / video.FPS))
    return _svg(figure)


def view_curves(views: Mapping[str, Mapping[str, Mapping[tuple[str, float], float]]]) -> bytes:
    """Figures over the angle of the camera, one panel each, as SVG.

    Args:
        views: panel's title → curve's name → (axis 'yaw' or 'pitch', degrees) → figure.
    """
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    figure, axes = _figure((3 * columns, 2.6 * rows + 0.3), rows, columns, squeeze=False)
    shown = {}
    for axis in axes.flat[len(views) :]:
        axis.remove()
    for axis, (title, curves) in zip(axes.flat, views.items()):
        for (name, points), colour, style in zip(curves.items(), COLOURS[1:], STYLES[1:]):
            for turn, marker, line in (("yaw", "o", style), ("pitch", "D", "none")):
                at = sorted((angle, y) for (kind, angle), y in points.items() if kind == turn)
                if at:
                    look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
                    look["markerfacecolor"] = colour if turn == "yaw" else "white"
                    shown[f"{name}, {turn}"] = axis.plot(*zip(*at), **look)[0]
        axis.set(title=title, xlabel="degrees")
        values = [y for points in curves.values() for y in points.values()]
        if min(values) >= 0:  # shares to 1, the rest from 0: small differences look small
            axis.set_ylim(0, 1.05 if max(values) <= 1 else None)
    figure.legend(shown.values(), shown, loc="outside upper left", ncols=4, frameon=False)
    return _svg(figure)


def usage(counts: np.ndarray) -> tuple[float, float]:
    """Share of the codes [K] that are used, and their perplexity: exp of the use's entropy."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float((counts > 0).mean()), float(np.exp(-(share * np.log(share)).sum()))


def code_bars(codebooks: Mapping[str, np.ndarray]) -> bytes:
    """How often each code [K] of each codebook is used, the most used first, as SVG."""
    columns = min(3, len(codebooks))
    rows = -(-len(codebooks) // columns)
    figure, axes = _figure((3.4 * columns, 2.2 * rows), rows, columns, squeeze=False)
    for axis in axes.flat[len(codebooks) :]:
        axis.remove()
    for axis, (name, counts) in zip(axes.flat, codebooks.items()):
        used, perplexity = usage(counts)
        share = 100 * np.sort(counts)[::-1] / max(1, counts.sum())
        axis.fill_between(np.arange(len(share)), share, step="post", color=COLOURS[1], lw=0)
        axis.set_title(f"{name}: {used:.0%} of {len(counts)}, perplexity {perplexity:.1f}")
        axis.set(ylabel="% of the use", xlabel="codes", xlim=(0, len(share)), ylim=(0, None))
    return _svg(figure)


@dataclass(frozen=True)
class Whisker:
    """A figure, its interval, and the single values it is the mean of, if any."""

    value: float
    low: float
    high: float
    singles: Sequence[float] = ()


def whiskers(panels: Mapping[str, Mapping[str, Mapping[str, Whisker]]]) -> bytes:
    """Dots with their intervals, a row each, one panel for each figure, as PNG.

    Args:
        panels: panel's title → group's name ("" for a single one) → row's name → Whisker.
    """
    groups = list(dict.fromkeys(group for panel in panels.values() for group in panel))
    rows = list(dict.fromkeys(r for p in panels.values() for drawn in p.values() for r in drawn))
    columns = max(1, min(4, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    width = max(5.0, 2.4 * columns + 0.08 * max(map(len, rows), default=0))
    height = 0.4 + lines * (0.9 + len(rows) * (0.15 + 0.15 * len(groups)))
    figure, axes = _figure((width, height), lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    shown = {}
    for axis, (title, panel) in zip(axes.flat, panels.items()):
        for number, group in enumerate(groups):
            shift = 0.5 * ((number + 0.5) / len(groups) - 0.5)
            look = {"color": COLOURS[1:][number % 4], "fmt": "oDs^"[number % 4]}
            shown[group] = _draw_whiskers(axis, panel.get(group, {}), rows, shift, look)
        axis.set_title("\n".join(wrap(title, 32)))
        axis.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", color="0.9")
        axis.locator_params(axis="x", nbins=4)
    figure.supxlabel("lines: 95 % intervals; ticks: single trainings of a mean", fontsize=8)
    if len(groups) > 1:
        figure.legend(shown.values(), shown, loc="outside upper left", ncols=4, frameon=False)
    return _png(figure)


def _draw_whiskers(axis, drawn: Mapping[str, Whisker], rows: list[str], shift: float, look: dict):
    """A group's dots in one panel, `shift` rows lower; their handle for the legend."""
    heights = [rows.index(row) + shift for row in drawn]
    values = [whisker.value for whisker in drawn.values()]
    ends = [[w.value - w.low for w in drawn.values()], [w.high - w.value for w in drawn.values()]]
    for height, whisker in zip(heights, drawn.values()):
        place = [height] * len(whisker.singles)
        axis.plot(whisker.singles, place, "|", color=look["color"], markersize=9)
    return axis.errorbar(values, heights, xerr=ends, markersize=5, linewidth=1.4, **look)


def bars(panels: Mapping[str, Mapping[str, Mapping[str, Whisker]]]) -> bytes:
    """Upright bars with their intervals, one panel for each figure, as SVG.

    Args:
        panels: panel's title → colour's name → bar's name → Whisker.
    """
    figure, axes = _figure((3.4 * len(panels), 3.0), 1, len(panels), squeeze=False)
    for axis, (title, groups) in zip(axes.flat, panels.items()):
        for number, (group, drawn) in enumerate(groups.items()):
            places = np.arange(len(drawn)) + 0.8 * ((number + 0.5) / len(groups) - 0.5)
            heights = [bar.value for bar in drawn.values()]
            ends = [
                [b.value - b.low for b in drawn.values()],
                [b.high - b.value for b in drawn.values()],
            ]
            look = {"color": COLOURS[1:][number % 4], "label": group, "capsize": 3}
            axis.bar(places, heights, 0.8 / len(groups), yerr=ends, **look)
            axis.set_xticks(range(len(drawn)), ["\n".join(wrap(name, 22)) for name in drawn])
        axis.set_ylabel(title)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=4, frameon=False)
    return _svg(figure)


def planes(
    panels: Mapping[str, Mapping[tuple[str, str], np.ndarray]], what: tuple[str, str]
) -> bytes:
    """Points in planes, coloured by one name and marked by another, as SVG.

    Args:
        panels: panel's title → (colour's name, mark's name) → [n, 2].
        what: words before the colours' and the marks' names in the legend.
    """
    figure, axes = _figure((4.2 * len(panels), 3.8), 1, len(panels), squeeze=False)
    for axis, (title, groups) in zip(axes.flat, panels.items()):
        colours, marks = (list(dict.fromkeys(names)) for names in zip(*groups))
        for (colour, mark), points in groups.items():
            look = {"color": COLOURS[1:][colours.index(colour) % 4], "linestyle": "none"}
            look |= {"marker": "o^sD"[marks.index(mark) % 4], "markerfacecolor": "none"}
            label = f"{what[0]} {colour}, {what[1]} {mark}"
            axis.plot(*points.T, markersize=3.5, markeredgewidth=0.7, label=label, **look)
        axis.set(title=title, xlabel="direction of the probe, σ")
        axis.set_ylabel("widest direction at right angles to it, σ")
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=2, frameon=False)
    return _svg(figure)


def code_curves(curves: Mapping[str, np.ndarray], frames: np.ndarray) -> bytes:
    """Codes over time, as SVG; at most 20 s of them.

    Args:
        curves: title → [T] (σ); frames: [T] numbers; curves break where some are left out.
    """
    figure, axis = _figure((10, 2.6), 1, 1)
    count = min(len(frames), int(CURVE_SECONDS * video.FPS))
    gaps = np.flatnonzero(np.diff(frames[:count]) != 1) + 1
    at = np.insert(np.arange(count) / video.FPS, gaps, np.nan)
    for (title, values), colour, style in zip(curves.items(), COLOURS[1:], STYLES[1:]):
        look = {"color": colour, "linestyle": style, "linewidth": 1.2, "label": title}
        axis.plot(at, np.insert(values[:count].astype(float), gaps, np.nan), **look)
    axis.set(xlabel="seconds", ylabel="code, σ", xlim=(0, count / video.FPS))
    axis.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def step_curves(curves: Mapping[str, np.ndarray]) -> bytes:
    """Figures over the steps of a training, one panel each, as SVG.

    Args:
        curves: title → [N, 2] steps and values.
    """
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = _figure((3 * columns, 2.2 * rows), rows, columns, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, curves.items()):
        axis.plot(*points.T, color=COLOURS[1], linewidth=1.2)
        axis.set(title=title, xlabel="step", ylim=(0, None))
    return _svg(figure)


def code_rasters(
    rows: Mapping[str, np.ndarray], opening: np.ndarray, frames: np.ndarray, sound: np.ndarray
) -> bytes:
    """Codes over time as stripes of colour, under the sound and the mouth's opening, as SVG.

    Args:
        rows: title → [T] what a code's colour stands for, over the eye distance; opening: [T] over
            the eye distance; frames: [T] numbers; sound: [T · 640] at 16 kHz. At most 20 s.
    """
    count = min(len(frames), int(CURVE_SECONDS * video.FPS))
    end = count / video.FPS
    heights = (1, 2, 0.5 * len(rows))
    figure, (top, middle, lower) = _figure(
        (10, 1.8 + 0.35 * len(rows)), 3, 1, sharex=True, height_ratios=heights
    )
    step = video.RATE // BINS
    wave = np.asarray(sound[: count * video.RATE // video.FPS])
    wave = wave[: len(wave) // step * step].reshape(-1, step)
    top.fill_between(np.arange(len(wave)) / BINS, wave.min(1), wave.max(1), color="0.5", lw=0)
    top.set(ylabel="sound", yticks=[])
    seconds = (np.arange(count) + 0.5) / video.FPS
    middle.plot(seconds, 100 * opening[:count], color=COLOURS[0], linewidth=1.2)
    middle.set_ylabel("mouth opening,\n% of the eyes")
    stripes = 100 * np.stack([values[:count] for values in rows.values()])
    drawn = lower.imshow(
        stripes, aspect="auto", cmap="cividis", extent=(0, end, len(rows), 0), interpolation="none"
    )
    lower.set(yticks=np.arange(len(rows)) + 0.5, yticklabels=list(rows), xlabel="seconds")
    lower.set_xlim(0, end)
    figure.colorbar(drawn, ax=lower, label="mean opening\nof the code, %", pad=0.01)
    return _svg(figure)


def code_map(panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> bytes:
    """Codes in a plane, as large as they are used, as SVG; crosses are never used.

    Args:
        panels: title → places [K, 2], uses [K], and what their colour stands for [K] (over the eye
            distance; NaN of codes that are not used).
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure((3.4 * columns, 2.9 * lines), lines, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, (places, uses, means)) in zip(axes.flat, panels.items()):
        used = uses > 0
        axis.plot(*places[~used].T, "x", color="0.75", markersize=3, markeredgewidth=0.5, zorder=0)
        area = 4 + 200 * uses[used] / max(1, uses.max())
        look = {"s": area, "c": 100 * means[used], "cmap": "cividis", "linewidths": 0.4}
        drawn = axis.scatter(*places[used].T, edgecolors="white", **look)
        axis.set(title=f"{title}: {used.sum()} of {len(uses)} codes used", xticks=[], yticks=[])
        figure.colorbar(drawn, ax=axis, label="mean mouth opening, %")
    return _svg(figure)


def shares(rows: Mapping[str, Mapping[str, float]]) -> bytes:
    """Parts of a whole as lying bars, as SVG.

    Args:
        rows: row's title → part's name → share, 0 to 1.
    """
    figure, axis = _figure((7, 0.8 + 0.3 * len(rows)), 1, 1)
    left = np.zeros(len(rows))
    for part, colour in zip(next(iter(rows.values())), COLOURS[1:]):
        wide = 100 * np.array([parts[part] for parts in rows.values()])
        axis.barh(range(len(rows)), wide, left=left, color=colour, label=part, edgecolor="white")
        left += wide
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
    axis.set(xlabel="% of the codes that either uses", xlim=(0, 100))
    axis.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def jpeg(image: Image.Image) -> bytes:
    """A picture as a JPEG file: a tenth of the PNG's size, for pages that hold many faces."""
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=88)
    return stream.getvalue()


def png(image: np.ndarray | Image.Image) -> bytes:
    """A picture as a PNG file."""
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, "png")
    return stream.getvalue()


def _figure(size: tuple[float, float], rows: int, columns: int, **how):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 9, "svg.hashsalt": "t3d"})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **how)


def _svg(figure) -> bytes:
    return _saved(figure, format="svg", metadata={"Date": None})


def _png(figure) -> bytes:
    return _saved(figure, format="png", dpi=150)


def _saved(figure, **how) -> bytes:
    from matplotlib import pyplot

    stream = io.BytesIO()
    figure.savefig(stream, **how)
    pyplot.close(figure)
    return stream.getvalue()
