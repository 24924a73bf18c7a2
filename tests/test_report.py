import re

import numpy as np
import pytest
from PIL import Image

from t3d import measure, report
from tests import browser

T = 50
RUN = tuple(name for name in report.SYSTEMS if name not in ("pred", "truth"))
VIDEOS = ("pred", "reencoded", "truth")


def figures_of(systems) -> dict:
    found = {f"{s}/{key}": 0.1234 + k for k, s in enumerate(systems) for key in measure.FIGURES}
    found |= {f"{system}/lpips": "not available: <no weights>" for system in systems}
    found |= {f"{systems[-1]}/psnr_head": "identical", "speaker": "a<b", "frames": T, "size": 32}
    return found | {"note/0": "b.mp4: its last 3 frames are left out."}


@pytest.fixture(scope="module")
def figures():
    found = figures_of(RUN)
    found |= {"ours/mouth_r": 0.62, "ours/mouth_r_low": 0.5, "ours/mouth_r_high": 0.73}
    found |= {"ours/au10_accuracy": 0.75, "ours/au14_accuracy": "not available: absent"}
    found |= {"gain/lmd": 12.3, "gain/mouth_r": 0.4, "split": "test", "detector": "mediapipe"}
    found |= {"views/yaw+0/psnr": 26.1, "views/yaw+30/psnr": 20.5, "views/yaw+30/psnr_low": 20.0}
    found |= {"views/yaw+30/psnr_high": 21.0, "views/yaw+30/front_psnr": 14.0}
    found |= {"views/held_out_12_15/ssim": 0.7, "views/pitch-15/psnr": 22.0}
    found |= {"against": "runs/other", "against/lmd": -0.5, "against/lmd_low": -0.9}
    found |= {"against/lmd_high": 0.1, "against/lmd_separates": "inside the noise"}
    found |= {"over_nerf/ssim": 0.02, "over_nerf/ssim_separates": "yes"}
    found |= {"judge/name": "trained in RUN", "judge/windows": 0.71, "judge/seconds": 0.9}
    found |= {"judge/offset": 0, "judge/proved": "no", "au/absent": "AU14", "au/constant": "none"}
    return found | {"mean/ssim_head": 0.55, "nearest_pose/ssim_head": 0.78}


def page_of(systems, figures, **more) -> report.Page:
    rng = np.random.default_rng(0)
    wave = 0.1 + 0.05 * np.sin(np.arange(T) / 3)
    series = {
        "true_opening": wave,
        "opening": wave + rng.normal(0, 0.01, T),
        "ssim_head": rng.uniform(0.8, 0.9, T),
        "sharpness": rng.uniform(70, 80, T),
        "true_sharpness": np.full(T, 100.0),
    }
    films = {s: rng.integers(0, 255, (T, 32, 32, 3), dtype=np.uint8) for s in systems}
    return report.Page(
        figures=figures,
        films=films,
        series={system: series for system in systems},
        frames=np.arange(100, 100 + T),
        sound=0.1 * np.sin(np.arange(T * 640) / 10).astype(np.float32),
        **more,
    )


@pytest.fixture(scope="module")
def run_page(figures):
    return page_of(
        RUN,
        figures,
        turned=np.zeros((2, 32, 32, 3), np.uint8),
        turns=((30.0, 0.0), (0.0, 15.0)),
        codes={"au": np.ones((5, 8), int), "global": np.arange(16)},
        beyond=np.full(T, 3.0),
        record={"config": {"seed": 0}, "versions": {"t3d": "0"}, "stages": {}},
    )


@pytest.fixture(scope="module")
def written(run_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(folder, run_page)
    return folder


def rows_of(section) -> dict:
    return {row[0]: list(row[1:]) for row in section.rows}


def test_tables_begin_with_the_papers_five_and_hold_every_figure(figures):
    first, second, *_ = report.tables(figures)
    keys = [*measure.TABLE_I, *(key for key in measure.FIGURES if key not in measure.TABLE_I)]
    titles = [row[0].rstrip(" ↑↓") for section in (first, second) for row in section.rows]
    assert titles == [measure.FIGURES[key].title for key in keys]
    assert list(first.headings[1:]) == [report.SYSTEMS[name] for name in RUN]
    assert "test" in first.title and f"{T} frames" in first.title
    rows = rows_of(first) | rows_of(second)
    assert rows["mouth opening, r with the true one ↑"][0] == "0.62\n[0.50, 0.73]"
    assert rows["PSNR over the head, dB ↑"][-1] == "identical"
    assert set(rows["LPIPS ↓"]) == {"n/a"}
    assert "sync offset, frames" in rows  # neither more nor less is better


def test_tables_of_views_gains_and_another_run(figures):
    by_title = {section.title: rows_of(section) for section in report.tables(figures)}
    turned = by_title["Turned views"]
    assert list(turned) == ["yaw 0°", "yaw +30°", "pitch -15°"]
    assert turned["yaw +30°"] == ["20.50\n[20.00, 21.00]", "14.00"]
    assert turned["yaw 0°"] == ["26.10", report.NO_FIGURE]
    assert by_title["Frames held out for their yaw"] == {"12° to 15°": ["0.700"]}
    assert by_title["The true sound against sound from elsewhere"]["LMD-79 lower by, %"] == ["12.3"]
    other = by_title["Against runs/other, frame by frame"]
    assert list(other.values()) == [["-0.50\n[-0.90, 0.10]", "inside the noise"]]
    alone = by_title["The whole system against the field alone, frame by frame"]
    assert list(alone.values()) == [["0.020", "yes"]]
    assert list(by_title["Each action unit"]) == ["AU10 accuracy ↑"]  # AU14 never shows


def test_notes_say_what_must_be_known(figures):
    text = "\n".join(report.notes(figures))
    assert "71% of windows" in text and "NOT proved" in text
    assert "NOT proved" not in "\n".join(report.notes(figures | {"judge/proved": "yes"}))
    assert "LPIPS: not available: <no weights>" in text
    assert "Left out" not in text
    assert "Left out: 2 frames" in "\n".join(report.notes(figures | {"frames_left_out": 2}))
    assert "absent AU14" in text and "its last 3 frames" in text and "the truth" not in text
    truth = "\n".join(report.notes(figures | {"views/truth": "landmarks are the truth"}))
    assert "Turned views: landmarks are the truth." in truth


def test_two_videos_need_no_more_than_their_figures(tmp_path, capsys):
    figures = figures_of(VIDEOS)
    first, *_ = report.tables(figures)
    assert list(first.headings[1:]) == [report.SYSTEMS[name] for name in VIDEOS]
    report.show(figures)
    assert "its last 3 frames" in capsys.readouterr().out
    report.write(tmp_path, page_of(VIDEOS, figures))
    assert "The worst frames" in (tmp_path / "report.html").read_text()


NAMES = ("clip [dQw4w9WgXcQ].mp4", "a[/b].mp4", "[red]c.mp4", "d:smile:.mp4")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(figures, capsys, name):
    report.show(figures | {"note/0": f"{name}: is a note.", "split": name, "ours/lpips": "[b]"})
    printed = capsys.readouterr().out
    assert f"{name}: is a note." in printed and f"five figures ({name}, 50" in printed
    assert "[b]" in printed
    report.show_against(figures | {"against": name})
    assert f"Against {name}, frame by frame" in capsys.readouterr().out


def test_show_against_prints_the_differences(figures, capsys):
    report.show_against(figures)
    printed = capsys.readouterr().out
    assert "inside the noise" in printed and "runs/other" in printed and "0.62" not in printed


def test_page_needs_nothing_beside_it_and_escapes_names(written):
    text = (written / "report.html").read_text()
    assert "a&lt;b" in text and "<no weights>" not in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(links) == 2 + 4 + 4 and all(link.startswith("data:") for link in links)
    assert "0.62<small>[0.50, 0.73]</small>" in text and "&quot;seed&quot;: 0" in text
    assert "head turned 3° further than in training" in text
    assert Image.open(written / "sheet.png").width > 1000


@pytest.mark.skipif(
    browser.installed() is None, reason="no Chromium here: apt-get install chromium"
)
def test_page_plays_in_chromium_without_complaint(written, tmp_path):
    play = """(async () => {
        const film = document.querySelector("video"); film.muted = true; await film.play();
        while (film.currentTime < 0.3) await new Promise(go => setTimeout(go, 20));
        return {state: film.readyState, length: film.duration, width: film.videoWidth,
            sound: film.webkitAudioDecodedByteCount, error: film.error && film.error.message,
            drawn: [...document.images].every(i => i.complete && i.naturalWidth > 0),
            wider: document.documentElement.scrollWidth > innerWidth}
    })()"""
    with browser.tab(tmp_path / "profile") as tab:
        for width in (1280, 390):
            tab.open(written / "report.html", width, 800)
            found = tab.run(play)
            assert found["state"] >= 3 and found["error"] is None and found["width"] == 512
            assert abs(found["length"] - T / 25) < 0.1 and found["sound"] > 0
            assert found["drawn"] and not found["wider"]
        assert tab.complaints() == []
