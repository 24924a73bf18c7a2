import io
import re
import xml.etree.ElementTree as etree

import av
import numpy as np
import pytest

from t3d import plots

WAVE = 0.1 + 0.05 * np.sin(np.arange(50) / 3)


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (50, 32, 32, 3), dtype=np.uint8) for _ in range(3)]


def texts(svg: bytes) -> list[str]:
    """What an SVG of matplotlib says: it notes each text beside the shapes of its letters."""
    parser = etree.XMLParser(target=etree.TreeBuilder(insert_comments=True))
    nodes = etree.fromstring(svg, parser).iter()
    return [node.text.strip() for node in nodes if node.tag is etree.Comment]


def lines(svg: bytes, colour: str) -> list[str]:
    """The unfilled paths of that colour, each as its strokes: M where it begins anew, L."""
    nodes = etree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    style = f"fill: none; stroke: {colour.lower()}"
    return [re.sub("[^ML]", "", n.get("d")) for n in nodes if style in n.get("style", "")]


def test_moments_are_closed_and_open_in_turn():
    opening = WAVE.copy()
    opening[3] = np.nan
    chosen = plots.moments(opening)
    assert len(chosen) == 8
    assert (opening[chosen[::2]] < opening[chosen[1::2]]).all()
    assert len(plots.moments(opening[:3])) == 6  # a clip of three frames still has moments


def test_sheet_shows_each_picture_in_its_row(films):
    rows = [("one", films[0][:8], [str(k) for k in range(8)]), ("two", films[1][:5], ())]
    picture = plots.sheet(rows)
    assert picture.size == (plots.MARGIN + 8 * plots.CELL, 2 * plots.CELL + plots.LINE)
    second = (plots.MARGIN + plots.CELL, plots.CELL + plots.LINE)
    cell = picture.crop((*second, second[0] + plots.CELL, second[1] + plots.CELL))
    assert np.abs(np.asarray(cell.resize((32, 32))).astype(int) - films[1][1]).mean() < 30


def test_film_is_two_pictures_wide_and_has_sound(films):
    sound = np.sin(np.arange(50 * 640) / 10).astype(np.float32)
    shown = dict(zip(("a", "b", "c"), films))
    with av.open(io.BytesIO(plots.film(shown, sound))) as container:
        assert {s.codec_context.name for s in container.streams} == {"h264", "aac"}
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (512, 2 * (256 + plots.LINE))
        assert stream.frames == 50
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert image[:, 256:][256 + plots.LINE :].mean() > 250  # the fourth place stays white
    assert image[256 + plots.LINE :, :256].mean() < 200


def test_mouth_curves_break_where_frames_are_missing_or_unknown():
    unknown = np.where(np.arange(50) == 10, np.nan, WAVE)
    frames = np.concatenate([np.arange(25), np.arange(60, 85)])
    openings = {"truth": WAVE, "ours": unknown}
    svg = plots.mouth_curves(openings, frames, np.zeros(50 * 640, np.float32))
    assert {"truth", "ours", "seconds"} <= set(texts(svg))
    longest = [max(lines(svg, colour), key=len) for colour in plots.COLOURS[:2]]
    gaps = [line.count("M") - 1 for line in longest]
    assert gaps == [1, 2]  # one in time, and one where no face was found


def test_view_curves_keep_yaw_and_pitch_apart():
    ours = {("yaw", angle): 26 - abs(angle) / 5 for angle in (-30.0, 0.0, 30.0, 45.0)}
    ours |= {("pitch", -15.0): 24.0, ("pitch", 15.0): 23.0}
    svg = plots.view_curves({"PSNR, dB": {"ours": ours}, "IoU": {"ours": {("yaw", 0.0): 0.9}}})
    assert {"PSNR, dB", "IoU", "ours, yaw", "ours, pitch"} <= set(texts(svg))
    drawn = lines(svg, plots.COLOURS[1])
    assert drawn.count("MLLL") == 1 and "ML" not in drawn  # a line through yaws, not pitches


def test_usage_of_known_counts():
    assert plots.usage(np.array([5, 5, 5, 5])) == (1.0, pytest.approx(4.0))
    assert plots.usage(np.array([7, 0, 0, 0])) == (0.25, pytest.approx(1.0))
    assert plots.usage(np.zeros(4, int)) == (0.0, pytest.approx(1.0))


def test_code_bars_say_how_many_codes_are_used():
    svg = plots.code_bars({"AU10": np.array([3, 0, 1, 0]), "global": np.arange(8)})
    assert "AU10: 50% of 4, perplexity 1.8" in texts(svg)
    assert any(text.startswith("global: 88% of 8") for text in texts(svg))


def test_bars_stand_at_their_figures_with_a_colour_for_each_group():
    drawn = {"a → b": plots.Whisker(2, 1, 3), "b → a": plots.Whisker(4, 4, 4)}
    svg = plots.bars({"distance, σ": {"before": drawn, "after": drawn}, "mm": {"before": drawn}})
    said = texts(svg)
    assert {"distance, σ", "mm", "before", "after", "a → b"} <= set(said)
    assert svg.count(f"fill: {plots.COLOURS[1].lower()}".encode()) == 4 + 1  # and the legend's
    assert svg.count(f"fill: {plots.COLOURS[2].lower()}".encode()) == 2 + 1


def test_points_are_coloured_by_the_first_name_and_marked_by_the_second():
    points = np.random.default_rng(0).normal(size=(7, 2))
    groups = {(a, b): points for a in "xy" for b in "xy"}
    svg = plots.planes({"style": groups, "speech": groups}, ("sound of", "identity of"))
    said = texts(svg)
    assert "sound of x, identity of y" in said and {"style", "speech"} <= set(said)
    for colour in plots.COLOURS[1:3]:
        look = f"stroke: {colour.lower()}"
        uses = [n for n in etree.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")]
        assert sum(look in n.get("style", "") for n in uses) >= 2 * 2 * 7


def test_codes_over_time_break_where_frames_are_left_out():
    frames = np.delete(np.arange(50), 20)
    svg = plots.code_curves({"browDown_L": WAVE[:49], "code 60": -WAVE[:49]}, frames)
    assert {"browDown_L", "code 60", "code, σ", "seconds"} <= set(texts(svg))
    assert max(line.count("M") for line in lines(svg, plots.COLOURS[1])) == 2
