"""What is wrong with a video is said before anyone trains on it, and what is right is not."""

import json
import shlex

import numpy as np
import pytest

from t3d.cli import main
from t3d.data import quality, video
from t3d.data.prepare import report

STEP = video.RATE // video.FPS
COUNT = 500


@pytest.fixture(scope="module")
def filmed(clips):
    path = clips / "cnn2_25fps.mp4"
    if not path.exists():
        pytest.skip(f"{path} is missing: set T3D_CLIPS to the folder that has it")
    frames = [frame for _, frame in zip(range(COUNT), video.read_frames(path))]
    return frames, video.read_audio(path)[: COUNT * STEP]


def told(figures) -> dict[str, quality.Line]:
    return {line.what: line for line in quality.lines(figures, "clip.mp4")}


@pytest.fixture(scope="module")
def late(filmed, assets, tmp_path_factory):
    """The report of a clip whose sound is 5 frames late."""
    frames, sound = filmed
    path = tmp_path_factory.mktemp("late") / "clip.mp4"
    late = np.pad(sound, (5 * STEP, 0))[: len(sound)]
    video.write_video(path, frames, late)
    return path, report(path, "procedural")


def test_late_sound_is_told_with_the_command_that_shifts_it(late):
    line = told(late[1])["lips and sound"]
    assert late[1]["sound_offset"] == pytest.approx(-5, abs=1) and not line.fine
    milliseconds = round(-late[1]["sound_offset"] * 40)
    assert f"the sound is {milliseconds} ms late" in line.advice
    assert f"ffmpeg -i clip.mp4 -itsoffset -{milliseconds / 1000:g} -i clip.mp4" in line.advice


def test_what_is_fine_about_a_clip_is_said_to_be(late):
    lines = told(late[1])
    assert {name for name, line in lines.items() if not line.fine} == {
        "length",
        "head turns",
        "lips and sound",
    }
    assert late[1]["sharp"] > 0.9 * late[1]["face"] and late[1]["speaker"] == 1


def test_a_report_makes_nothing_but_the_figures_it_is_asked_for(late, capsys):
    path, figures = late
    out = path.parent / "figures.json"
    before = set(path.parent.iterdir())
    argv = ["prepare", str(path), "--report", "--prior", "procedural", "--json", str(out)]
    assert main(argv) in (0, None)
    assert set(path.parent.iterdir()) - before == {out}
    assert json.loads(out.read_text()) == pytest.approx(figures)
    text = capsys.readouterr().out
    assert "look  lips and sound" in text and "fine  face height" in text
    assert "3 of 14 things to look at" in text


def reported(frames, tmp_path) -> dict[str, quality.Line]:
    """What is told of a silent clip of such pictures."""
    video.write_video(tmp_path / "clip.mp4", frames, np.zeros(len(frames) * STEP))
    return told(report(tmp_path / "clip.mp4", "procedural"))


def test_a_blurred_silent_clip_is_told(filmed, assets, tmp_path):
    lines = reported([video.resize(video.resize(f, 80), 512) for f in filmed[0][:50]], tmp_path)
    assert "the face is blurred: no sharper than one" in lines["sharpness"].advice
    assert "is silent" in lines["sound"].advice
    assert "cannot be told" in lines["lips and sound"].figure
    assert not lines["sharpness"].fine and not lines["sound"].fine
    assert lines["lips and sound"].fine and lines["light"].fine and lines["light changes"].fine


def test_a_dark_flickering_clip_is_told(filmed, assets, tmp_path):
    dark = [f * (0.3 if k % 2 else 0.24) for k, f in enumerate(filmed[0][:50])]
    lines = reported([frame.astype(np.uint8) for frame in dark], tmp_path)
    assert "too dark" in lines["light"].advice
    assert "from frame to frame" in lines["light changes"].advice
    assert not lines["light"].fine and not lines["light changes"].fine


def test_light_that_fades_is_told(filmed, assets, tmp_path):
    fading = [f * (1 - 0.01 * k) for k, f in enumerate(filmed[0][:60])]
    lines = reported([frame.astype(np.uint8) for frame in fading], tmp_path)
    assert not lines["light changes"].fine and "in time" in lines["light changes"].advice


GOOD = {
    **dict(seconds=71, sound_seconds=71.2, width=512, height=512, fps=25),
    **dict(detected=1, speaker=1, others=0, cuts=0),
    **dict(face=220, sharp=210, yaw=40, pitch=20, mouth=0.03, light=0.5, light_change=0.05),
    **dict(flicker=0.002, loudest=-12, quiet=0.2, sound_offset=0, sound_offset_r=0.4),
    **dict(sound_offset_deviations=9, sound_offset_certain=1, tracked=1, reprojection=0.02),
    **dict(mouth_r=0.99, mouth_rmse=0.2),
}


def test_a_good_clip_has_no_warning():
    assert quality.warnings(GOOD) == []


@pytest.mark.parametrize(
    "figures, words",
    [
        (dict(seconds=2, sound_seconds=2), "only 2 s"),
        (dict(fps=12.5), "12.5 frames a second"),
        (dict(face=40, sharp=40), "only 40 pixels high"),
        (dict(sharp=60), "no sharper than one 60 pixels high"),
        (dict(light=0.95), "too bright"),
        (dict(light_change=0.5), "50% in time"),
        (dict(detected=0.9, speaker=0.9, tracked=0.9), "no face was found in 10.0%"),
        (dict(speaker=0.8, tracked=0.8), "20.0% of the frames show a face elsewhere"),
        (dict(others=0.3), "second face is in 30%"),
        (dict(yaw=3), "turns by 3°"),
        (dict(mouth=0.001), "hardly moves"),
        (dict(quiet=0.9), "quiet most of the time"),
        (dict(sound_seconds=60), "ends 11.0 s before the pictures: from there on it counts as"),
        (dict(sound_seconds=80), "ends 9.0 s after the pictures: what follows is not used"),
        (dict(sound_offset=2), "the sound is 80 ms early"),
        (dict(tracked=0.9), "covered or turned away in 10.0%"),
        (dict(reprojection=0.08), "8.0% of the eye distance off"),
        (dict(mouth_rmse=0.8), "off by 0.80 of its deviation"),
    ],
)
def test_each_fault_is_one_warning(figures, words):
    (text,) = quality.warnings(GOOD | figures)
    assert words in text


def test_advice_can_be_pasted_whatever_the_file_is_called():
    (text,) = quality.warnings(GOOD | dict(sound_offset=2), "my clips/it's.mp4")
    command = shlex.split(text[text.index("ffmpeg") :])
    assert command[command.index("-i") + 1] == "my clips/it's.mp4"


def test_sound_counts_as_long_as_the_pictures():
    count, rng = 250, np.random.default_rng(0)
    seen = dict(found=np.ones(count, bool), looked=np.ones(count, bool), others=0.0)
    seen |= dict(detected=seen["found"], shot=np.zeros(count), shape=np.array([64, 64]))
    seen |= dict(points68=rng.uniform(0, 64, (count, 68, 2)), looks=np.full((count, 2), 0.5))
    info = video.VideoInfo(64, 64, 25.0, 10.0, 16000)
    noise = 0.1 * rng.normal(size=20 * video.RATE)
    for seconds, quiet in ((10, 0.0), (4, 0.6), (20, 0.0)):
        sound = noise[: seconds * video.RATE]
        figures = quality.clip_figures(info, seen, (np.zeros(count),) * 2, sound)
        assert figures["sound_seconds"] == seconds and figures["quiet"] == pytest.approx(quiet)


def test_head_turns_of_known_poses_are_read_off_the_landmarks():
    from scipy.spatial.transform import Rotation

    from t3d import camera as cameras
    from t3d.prior import basis

    model = basis.load("procedural")
    yaw, pitch = np.meshgrid(np.linspace(-30, 30, 7), np.linspace(-15, 15, 5))
    yaw, pitch = yaw.ravel(), pitch.ravel()
    rotvec = Rotation.from_euler("YXZ", np.stack([yaw, pitch, 0 * yaw], 1), degrees=True)
    pose = cameras.head_pose(rotvec.as_rotvec(), np.tile([0.0, 0.0, 120.0], (len(yaw), 1)))
    points = np.asarray(model.mean)[np.asarray(model.landmarks68)]
    world = cameras.transform(pose, points)
    camera = cameras.recorded(np.array([4.0, 4.0, 0.5, 0.5]))
    seen = np.asarray(cameras.project(camera, np.asarray(world))[0])
    seen[3] = np.nan
    turns = quality.head_turns(model, seen)
    assert np.isnan(turns[0][3]) and np.isnan(turns[1][3])
    known = np.arange(len(yaw)) != 3
    np.testing.assert_allclose(turns[0][known], yaw[known], atol=4)
    np.testing.assert_allclose(turns[1][known], pitch[known], atol=4)
