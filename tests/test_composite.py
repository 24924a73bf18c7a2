"""A head put back into its recording: what is filmed stays, what is rendered shows, no seam."""

import numpy as np
import pytest

from t3d import cli
from t3d import run as runs
from t3d.composite import composite
from t3d.data import video
from t3d.data.speaker_dataset import SpeakerDataset, on_white

SIDE = 128


@pytest.fixture
def scene():
    """(filmed, mask, jaw) of a head, a disc with stripes, before a coloured wall."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    filmed = np.stack([90 + 80 * x, 120 + 40 * y, 60 + 0 * x], -1)
    head = np.hypot(x - 0.5, y - 0.5) < 0.3
    filmed[head] = np.stack([200 + 30 * np.sin(40 * x), 150 + 20 * y, 130 + 0 * x], -1)[head]
    turn = np.linspace(0, np.pi, 17)  # the lower half of its outline
    jaw = SIDE * np.stack([0.5 - 0.29 * np.cos(turn), 0.5 + 0.29 * np.sin(turn)], -1)
    return filmed.astype(np.uint8), (255 * head).astype(np.uint8), jaw


def test_a_perfect_head_gives_the_recording_back(scene):
    filmed, mask, jaw = scene
    found = composite(on_white(filmed, mask), mask / 255.0, filmed, mask, jaw)
    assert np.abs(found.astype(int) - filmed).max() <= 3


def test_colours_that_are_off_leave_no_seam_and_the_middle_is_the_rendered_one(scene):
    filmed, mask, jaw = scene
    darker = on_white((0.8 * filmed).astype(np.uint8), mask)
    found = composite(darker, mask / 255.0, filmed, mask, jaw).astype(float)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    radius = np.hypot(x - 0.5, y - 0.5)
    rim, middle = (radius > 0.27) & (radius < 0.3), radius < 0.05
    off = np.abs(found - filmed).mean(-1)
    assert off[rim].mean() < 6 < 25 < np.abs(darker.astype(float) - filmed).mean(-1)[rim].mean()
    assert np.abs(found - darker)[middle].mean() < 4
    np.testing.assert_array_equal(found[mask == 0], filmed[mask == 0])


def test_the_recording_shows_through_no_hole_in_the_head_and_crumbs_hang_in_no_air(scene):
    filmed, mask, jaw = scene
    shown = on_white(np.full_like(filmed, 40), mask)
    alpha = mask / 255.0
    alpha[60:70, 56:72] = 0.0  # an open mouth that the field sees through
    alpha[62:66, 6:12] = 1.0  # a crumb in the air
    alpha[62:65, 14:28] = 1.0  # and one at the ear
    found = composite(shown, alpha, filmed, mask, jaw).astype(float)
    whole = composite(shown, mask / 255.0, filmed, mask, jaw).astype(float)
    assert np.abs(found - whole)[50:80, 46:82].max() < 2
    outside = mask == 0
    outside[56:72, 20:28] = False  # a little of what hangs at the outline stays
    np.testing.assert_array_equal(found[outside], whole[outside])
    assert np.abs(whole - filmed)[60:70, 56:72].mean() > 60


def test_a_filmed_jaw_under_a_closed_mouth_is_painted_over(scene):
    filmed, mask, jaw = scene
    alpha = mask / 255.0
    alpha[80:] = 0  # the rendered chin ends higher
    shown = on_white(filmed, (255 * alpha).astype(np.uint8))
    found = composite(shown, alpha, filmed, mask, jaw)
    below = np.zeros((SIDE, SIDE), bool)
    below[92:100, 54:74] = True  # was chin, is wall
    wall = np.array([130, 150, 60])
    gone = np.abs(found[below].astype(int) - wall).mean()
    assert gone < 0.5 * np.abs(filmed[below].astype(int) - wall).mean()
    np.testing.assert_array_equal(found[-10:], filmed[-10:])


def test_the_command_writes_the_recording_with_the_rendered_head(
    untrained, prepared_speaker, tmp_path, capsys
):
    dataset = SpeakerDataset(prepared_speaker)
    out = tmp_path / "back.mp4"
    command = ["render", "--workdir", str(untrained.workdir), "--out", str(out)]
    command += ["--audio", str(prepared_speaker / "audio.wav"), "--composite"]
    assert cli.main(command) == 0
    assert f"{dataset.size} × {dataset.size}" in capsys.readouterr().out
    images = list(video.read_frames(out))
    frame = runs.recorded_frames(dataset)[0]
    filmed, mask = dataset.picture(frame, "image"), dataset.picture(frame, "mask")
    outside = mask == 0
    assert np.abs(images[0].astype(int) - filmed)[outside].mean() < 6  # compressed again
    assert np.abs(images[0].astype(int) - filmed)[mask == 255].mean() > 10  # it knows no face
    assert cli.main([*command, "--camera", "orbit"]) == 2
    assert "--composite shows the recorded camera" in capsys.readouterr().err
