import io
import re

import av
import numpy as np
import pytest
from PIL import Image

from t3d import report


@pytest.fixture(scope="module")
def figures():
    figures = {
        f"{system}/{name}": 0.1234 + k
        for k, system in enumerate(report.SYSTEMS)
        for name in report.FIGURES
    }
    figures |= {"ours/mouth_r": 0.62, "ours/mouth_r_low": 0.5, "ours/mouth_r_high": 0.73}
    figures |= {f"{system}/lpips": "not available: <no weights>" for system in report.SYSTEMS}
    figures |= {"gain/lmd": 12.3, "gain/mouth_r": 0.4, "view_0/yaw": 30.0, "view_0/ssim_head": 0.5}
    figures |= {"split": "test", "frames": 260, "size": 128, "detector": "mediapipe"}
    figures |= {"judge": "seen by no loss", "judge/validation_accuracy": 0.81, "speaker": "a<b"}
    figures |= {"mean/ssim_head": 0.55, "nearest_pose/ssim_head": 0.78}
    return figures | {"au/absent": "AU14", "au/constant": "none", "real/psnr_head": "identical"}


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 255, (50, 32, 32, 3), dtype=np.uint8) for name in report.SYSTEMS}


@pytest.fixture(scope="module")
def openings():
    wave = 0.1 + 0.05 * np.sin(np.arange(50) / 3)
    return {"truth": wave, "ours": wave, "other_audio": np.where(wave > 0.1, np.nan, wave)}


def test_table_holds_every_figure_with_its_interval(figures):
    (_, headings, rows), (_, _, gains), (_, _, views) = report.tables(figures)
    assert headings[1:] == list(report.SYSTEMS.values()) and len(rows) == len(report.FIGURES)
    by_title = {row[0]: row[1:] for row in rows}
    assert by_title["mouth opening, r with the true one ↑"][0] == "0.62\n[0.50, 0.73]"
    assert by_title["PSNR over the head, dB ↑"][-1] == "identical"
    assert set(by_title["LPIPS ↓"]) == {"n/a"}
    assert gains[0] == ["LMD-79 lower by, %", "12.3"]
    assert views == [["yaw +30°", "0.500", report.NO_FIGURE]]
    assert "LPIPS: not available: <no weights>" in report.notes(figures)
    assert any("81%" in line for line in report.notes(figures))


def test_moments_are_closed_and_open_in_turn(openings):
    opening = openings["truth"].copy()
    opening[3] = np.nan
    chosen = report.moments(opening)
    assert len(chosen) == 8
    assert (opening[chosen[::2]] < opening[chosen[1::2]]).all()
    assert len(report.moments(opening[:3])) == 6  # a clip of three frames still has moments


def test_sheet_shows_each_moment_and_angle(films, openings):
    turned = films["ours"][:8]
    turns = [(10.0 * k, 0.0) for k in range(7)] + [(0.0, 15.0)]
    picture = report.sheet(films, openings["truth"], turned, turns)
    assert picture.size == (report.MARGIN + 8 * report.CELL, 5 * (report.CELL + report.LINE))
    corner = (report.MARGIN, report.LINE)
    cell = picture.crop((*corner, corner[0] + report.CELL, corner[1] + report.CELL))
    first = films["real"][report.moments(openings["truth"])[0]]
    assert np.abs(np.asarray(cell.resize((32, 32))).astype(int) - first).mean() < 30


def test_film_is_three_pictures_wide_and_has_sound(films):
    sound = np.sin(np.arange(50 * 640) / 10).astype(np.float32)
    with av.open(io.BytesIO(report.film(films, sound))) as container:
        assert {s.codec_context.name for s in container.streams} == {"h264", "aac"}
        assert container.streams.video[0].width == 3 * 256
        assert container.streams.video[0].frames == 50


def test_page_needs_nothing_beside_it_and_escapes_names(figures, films, openings):
    sound = np.zeros(50 * 640, np.float32)
    curves = report.curves(openings, sound)
    assert Image.open(io.BytesIO(curves)).size[0] > 800
    record = {"config": {"seed": 0}, "versions": {"t3d": "0"}, "stages": {}}
    text = report.page(figures, b"png", b"mp4", curves, record)
    assert "a&lt;b" in text and "<no weights>" not in text
    assert "width=device-width" in text and '<div class="wide"><table>' in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(links) == 3 and all(link.startswith("data:") for link in links)
    assert "0.62\n[0.50, 0.73]" in text and "&quot;seed&quot;: 0" in text
