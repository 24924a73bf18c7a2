"""Any video of a talking head is measured against the real one, and what cannot be is named."""

import json
from argparse import Namespace
from dataclasses import replace
from itertools import islice

import av
import numpy as np
import pytest

from t3d import checkpoint, cli, measure, run, two_videos
from t3d.data import video
from t3d.errors import UserError
from t3d.judges import Judge
from t3d.metrics.action_units import ACTION_UNITS
from t3d.peers import lpips

FRAMES, SIDE = 50, 224
WORDS = "not available: nobody to judge"


@pytest.fixture(scope="module", autouse=True)
def without_lpips():
    """The same figures whether its weights are on this machine or not, and sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "available", lambda: "not available: left out")
        yield


@pytest.fixture(scope="module")
def frames(clips, assets) -> list[np.ndarray]:
    """Two seconds of a real clip, made small."""
    path = clips / "cnn2_25fps.mp4"
    if not path.exists():
        pytest.skip(f"{path} is missing: set T3D_CLIPS to the folder that has it")
    return [video.resize(frame, SIDE) for frame in islice(video.read_frames(path), FRAMES)]


@pytest.fixture(scope="module")
def level() -> np.ndarray:
    """How loud each frame of the sound is."""
    return np.random.default_rng(0).uniform(0.05, 0.6, FRAMES)


@pytest.fixture(scope="module")
def sound(level) -> np.ndarray:
    """A tone of those levels: what a lossy codec leaves of them can be read again."""
    time = np.arange(FRAMES * two_videos.STEP) / video.RATE
    return np.repeat(level, two_videos.STEP) * np.sin(2 * np.pi * 300 * time)


@pytest.fixture(scope="module")
def seeing(level) -> Judge:
    """A judge that knows which loudness belongs to which frame: right by construction."""

    def look(images, boxes, rows):
        return level[rows[:, None] + np.arange(5)]

    def hear(sound, starts):
        heard = sound[: len(sound) // two_videos.STEP * two_videos.STEP]
        loud = np.sqrt(2 * np.square(heard.reshape(-1, two_videos.STEP)).mean(1))
        return loud[starts[:, None] + np.arange(5)]

    return Judge("seeing", look, hear)


@pytest.fixture(scope="module")
def truth(frames, sound, tmp_path_factory):
    return video.write_video(tmp_path_factory.mktemp("clips") / "truth.mp4", frames, sound)


@pytest.fixture(scope="module")
def same(truth):
    """The clip against itself."""
    return two_videos.load_pair(truth, truth)


@pytest.fixture(scope="module")
def same_found(same, seeing):
    return two_videos.compare(same, seeing)


def _clip(path, frames, sound=None, **options):
    return video.write_video(path, frames, sound, **options)


def _number(figures: dict, system: str) -> dict[str, float]:
    """The figures of a system that are numbers."""
    return {
        name: figures[f"{system}/{name}"]
        for name in measure.FIGURES
        if not isinstance(figures.get(f"{system}/{name}"), str)
    }


# ---- figures


def test_a_clip_against_itself_has_the_ideal_values(same_found):
    figures = same_found.figures
    assert figures["frames"] == FRAMES and figures["detector"] == "mediapipe"
    best = {"ssim": 1, "ssim_head": 1, "lmd": 0, "lmd_px": 0, "mouth_r": 1, "found": 1}
    best |= {"sharpness": 1, "jitter": 1, "pose_jitter": 1, "sync_offset": 0}
    found = _number(figures, "pred")
    assert {name: found[name] for name in best} == pytest.approx(best, abs=1e-6)
    assert figures["pred/psnr"] == figures["pred/psnr_head"] == "identical"
    assert found["au_accuracy"] == 1 and figures["pred/lpips"] == "not available: left out"
    assert figures["truth/ssim"] == figures["truth/lmd"] == "identical"
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_re_encoding_costs_a_little_of_all_but_the_sync(same_found):
    found = _number(same_found.figures, "reencoded")
    assert 0.9 < found["ssim_head"] < 0.999 and 30 < found["psnr_head"] < 60
    assert 0 < found["lmd"] < 1 and found["mouth_r"] > 0.95 and found["found"] == 1
    own = _number(same_found.figures, "truth")
    assert found["sync_offset"] == own["sync_offset"] == 0
    assert found["sync_confidence"] == pytest.approx(own["sync_confidence"], abs=0.05)


def test_a_judge_that_is_right_is_said_to_be_proved(same_found):
    figures = same_found.figures
    assert figures["judge/name"] == "seeing" and figures["judge/proved"] == "yes"
    assert figures["judge/windows"] > 0.95 and figures["judge/offset"] == 0


def test_sound_two_frames_late_in_a_smaller_shorter_video_is_found(
    truth, frames, sound, seeing, tmp_path
):
    late = np.pad(sound, (2 * two_videos.STEP, 0))[: 47 * two_videos.STEP]
    pred = _clip(tmp_path / "late.mp4", [video.resize(f, 160) for f in frames[:47]], late)
    pair = two_videos.load_pair(pred, truth)
    said = " ".join(pair.notes)
    assert "resized from 160 × 160 to 224 × 224" in said and "last 3 of 50 frames" in said
    assert {len(film.images) for film in pair.films.values()} == {47} == {len(pair.masks)}
    assert {len(film.sound) for film in pair.films.values()} == {47 * two_videos.STEP}
    figures = two_videos.compare(pair, seeing).figures
    assert figures["pred/sync_offset"] == -2 and figures["truth/sync_offset"] == 0
    assert 0.7 < figures["pred/ssim_head"] < figures["reencoded/ssim_head"]
    assert figures["pred/sharpness"] < 0.8 < figures["reencoded/sharpness"]


def test_another_rate_and_no_sound_are_told_and_do_no_harm(truth, frames, seeing, tmp_path):
    """The same second at 50 frames a second, each twice: read at 25 it is the real one again."""
    pred = _clip(tmp_path / "fast.mp4", [f for f in frames for _ in range(2)], fps=50)
    pair = two_videos.load_pair(pred, truth)
    assert "50.00 frames a second, read at 25" in " ".join(pair.notes)
    found = two_videos.compare(pair, seeing)
    assert found.figures["pred/mouth_r"] > 0.97 and found.figures["pred/ssim_head"] > 0.9
    for name in ("sync_confidence", "sync_distance", "sync_offset"):
        words = found.figures[f"pred/{name}"]
        assert words.startswith("not available") and str(pred) in words and "no sound" in words
    assert found.figures["truth/sync_offset"] == 0


def test_a_judge_is_not_proved_on_a_silent_truth(same, seeing):
    films = same.films | {"truth": replace(same.films["truth"], sound=None)}
    figures = two_videos.compare(replace(same, films=films), seeing).figures
    assert "no sound" in figures["judge/proved"] and "no sound" in figures["truth/sync_offset"]
    assert figures["pred/sync_offset"] == 0


def test_heads_are_judged_on_white(same):
    seen = []
    judge = Judge("looks", lambda images, boxes, rows: seen.append(images), None)
    two_videos._shown_on_white(judge, same.masks).look(
        same.films["truth"].images, same.films["truth"].boxes, np.arange(3)
    )
    image, mask = seen[0][7], same.masks[7]
    assert (image[mask == 0] == 255).all() and 0.2 < (mask > 0.5).mean() < 0.7
    np.testing.assert_array_equal(image[mask == 1], same.films["truth"].images[7][mask == 1])


def test_the_square_holds_the_head_without_resampling(same, frames):
    film = same.films["truth"]
    side = film.images.shape[1]
    assert side % 2 == 0 and side <= SIDE and (film.boxes[:, 2] < 1).all()
    written = next(video.read_frames(film.path))
    windows = np.lib.stride_tricks.sliding_window_view(written, (side, side), (0, 1))
    assert (windows == film.images[0].transpose(2, 0, 1)).all((2, 3, 4)).any()
    inside = (film.seen.points68 > 0).all() and (film.seen.points68 < side).all()
    assert inside and film.marks.points68 is film.seen.points68


@pytest.mark.parametrize("count, every", [(10, 1), (99, 1), (100, 2), (250, 5), (5000, 5)])
def test_lpips_is_taken_of_fifty_frames_and_more(count, every):
    assert two_videos.lpips_every(count) == every


def test_lpips_of_a_frame_is_the_networks_and_nothing_between():
    rng = np.random.default_rng(0)
    shapes = dict(enumerate(lpips._SHAPES))
    weights = {f"conv{i}.weight": rng.normal(0, 0.02, shape) for i, shape in shapes.items()}
    weights |= {f"conv{i}.bias": np.zeros(shape[0]) for i, shape in shapes.items()}
    weights |= {f"lin{i}": rng.uniform(0, 1, shape[0]) for i, shape in shapes.items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    a, b = rng.integers(0, 256, (2, 101, 64, 64, 3)).astype(np.uint8)
    found = measure._lpips(weights, a, b, two_videos.lpips_every(len(a)))
    assert np.isnan(found[1::2]).all() and np.isfinite(found[::2]).all() and found[0] > 0
    expected = lpips.distance(weights, a[40:41] / np.float32(255), b[40:41] / np.float32(255))
    assert found[40] == pytest.approx(float(expected[0]), rel=1e-5)


def test_a_second_face_is_told(same):
    seen = same.films["truth"].seen
    assert not two_videos._crowd_notes(same.films["truth"].path, seen)
    note = two_videos._crowd_notes(same.films["truth"].path, replace(seen, others=0.25))
    assert "second face is in 25%" in note[0]


# ---- action units by OpenFace


def _openface(path, labels: np.ndarray):
    names = [f" AU{unit:02d}_c" for unit in ACTION_UNITS]
    lines = ["frame, timestamp, success," + ",".join(names)]
    for k, row in enumerate(labels):
        lines.append(f"{k + 1}, {k / 25:.3f}, 1, " + ", ".join(f"{v:.2f}" for v in row))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_openface_labels_take_the_place_of_ours(same, tmp_path):
    labels = np.tile(np.arange(FRAMES)[:, None] % 4 < 2, (1, 5)).astype(float)
    wrong = np.where(np.arange(FRAMES)[:, None] < 10, 1 - labels, labels)
    tables = {
        "pred": _openface(tmp_path / "pred.csv", wrong[:-2]),
        "truth": _openface(tmp_path / "truth.csv", labels),
    }
    read = two_videos.openface_labels(tables, same)
    np.testing.assert_array_equal(read["truth"], labels)
    assert np.isnan(read["pred"][-2:]).all() and len(read["pred"]) == FRAMES
    figures = two_videos.compare(same, WORDS, read).figures
    assert figures["pred/au_accuracy"] == pytest.approx((FRAMES - 12) / FRAMES)
    assert figures["au/labels"] == "openface" and figures["truth/au_accuracy"] == "identical"
    assert "no table" in figures["reencoded/au_accuracy"]
    assert figures["judge/name"] == figures["pred/sync_offset"] == WORDS


def test_openface_tables_of_another_video_or_of_one_only_are_refused(same, tmp_path):
    long = _openface(tmp_path / "long.csv", np.ones((FRAMES + 30, 5)))
    with pytest.raises(UserError, match=r"long.csv: is of 3.2 s but .*truth.mp4 lasts 2.0 s"):
        two_videos.openface_labels({"pred": long, "truth": long}, same)
    args = Namespace(openface_pred=long, openface_truth=None)
    with pytest.raises(UserError, match="give OpenFace's tables of both"):
        two_videos.two_videos_command(args)


# ---- videos that cannot be compared


@pytest.fixture(scope="module")
def second(frames, sound, tmp_path_factory):
    """A second of the clip."""
    return _clip(tmp_path_factory.mktemp("short") / "second.mp4", frames[:25], sound[:16000])


def test_lengths_more_than_a_second_apart_are_refused(frames, second, tmp_path):
    long = _clip(tmp_path / "long.mp4", [*frames, *frames[:10]])
    for pair in ((long, second), (second, long)):
        with pytest.raises(UserError) as error:
            two_videos.load_pair(*pair)
        for part in ("2.40 s", "1.00 s", str(long), str(second), f"-t 1.00 -i {long}"):
            assert part in str(error.value)


def test_a_video_up_to_a_second_longer_is_cut_and_it_is_told(frames, second, tmp_path):
    longer = _clip(tmp_path / "longer.mp4", frames[:35])
    pair = two_videos.load_pair(longer, second)
    assert f"{longer}: its last 10 of 35 frames are left out." in pair.notes
    assert {len(film.images) for film in pair.films.values()} == {25} == {len(pair.masks)}


def test_another_shape_is_refused(frames, second, tmp_path):
    wide = _clip(tmp_path / "wide.mp4", [np.pad(f, ((0, 0), (0, 64), (0, 0))) for f in frames[:25]])
    with pytest.raises(UserError, match=r"wide.mp4: is 288 × 224 but .*second.mp4 224 × 224"):
        two_videos.load_pair(wide, second)


def test_too_short_broken_and_missing_videos_are_named(frames, second, tmp_path):
    short = _clip(tmp_path / "short.mp4", frames[:5])
    (tmp_path / "text.mp4").write_text("no video")
    for path, words in (
        (short, "lasts 0.20 s"),
        (tmp_path / "text.mp4", "not a"),
        (tmp_path / "nowhere.mp4", "no such file"),
    ):
        for pair in ((path, second), (second, path)):
            with pytest.raises(UserError, match=f"{path.name}: .*{words}"):
                two_videos.load_pair(*pair)


def test_a_video_without_a_face_is_named(second, tmp_path):
    grey = _clip(tmp_path / "grey.mp4", [np.full((SIDE, SIDE, 3), 90, np.uint8)] * 25)
    for pair in ((grey, second), (second, grey)):
        with pytest.raises(UserError, match="grey.mp4: a face was found in no frame"):
            two_videos.load_pair(*pair)


# ---- the command


@pytest.fixture
def sync_only(untrained, tmp_path):
    """A run that has just finished its first stage."""
    folder = tmp_path / "run"
    entries = json.loads((untrained.workdir / "run.json").read_text())
    checkpoint.update_run(folder, **entries)
    run._save_speakers(folder, untrained.speakers)
    checkpoint.save_params(folder / "params" / "sync", untrained.params["sync"])
    return folder


def test_the_command_takes_a_judge_from_a_run_with_its_first_stage_alone(
    same, sync_only, truth, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(two_videos, "load_pair", lambda pred, truth: same)
    out, figures = tmp_path / "new" / "out", tmp_path / "figures.json"
    given = ["--pred", truth, "--truth", truth, "--judge", sync_only, "--out", out]
    assert cli.main(["evaluate", *map(str, given), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found == json.loads((out / "metrics.json").read_text())
    assert isinstance(found["pred/sync_confidence"], float) and found["judge/proved"] == "no"
    for name in ("report.html", "sheet.png", "series.npz"):
        assert (out / name).stat().st_size > 500
    series, shown, about = measure.load_series(out / "series.npz")
    assert set(series) == {"pred", "reencoded", "truth"} and len(shown) == FRAMES
    assert about == {"pred": str(truth), "truth": str(truth)}
    printed = capsys.readouterr().out
    assert "identical" in printed and "report.html" in printed and "NOT proved" in printed


def test_the_real_video_written_anew_is_not_stretched_though_its_size_is_odd(truth, tmp_path):
    frames = islice(video.read_frames(truth), 20)
    odd = [np.pad(f, ((0, 1), (0, 1), (0, 0)), "edge") for f in frames]
    fine = np.indices((SIDE + 1, SIDE + 1)).sum(0) % 4 < 2  # of two pixels: a shift shows
    odd = [np.where(fine[..., None], f, f // 2) for f in odd]
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.height = stream.width = SIDE + 1
        stream.pix_fmt = "bgr0"
        for image in odd:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    side = SIDE + 1
    square = two_videos.Square((side, side), (side / 2, side / 2, side), side)
    copy = video.write_video(tmp_path / "copy.mp4", video.read_frames(path))
    with two_videos.Bars() as bars:
        cut, stretched = (
            two_videos._read(copy, square, FRAMES, bars, copied)[0] for copied in (True, False)
        )
    apart = [np.abs(film.images[5].astype(float) - odd[5]).mean() for film in (cut, stretched)]
    assert apart[0] < 0.7 * apart[1]


def test_what_is_wrong_with_a_table_is_said_before_the_faces_are_looked_for(monkeypatch, capsys):
    monkeypatch.setattr(two_videos, "load_pair", lambda *_: pytest.fail("too late"))
    command = ["evaluate", "--pred", "a.mp4", "--truth", "b.mp4"]
    assert cli.main([*command, "--openface-pred", "no.csv", "--openface-truth", "no.csv"]) == 2
    assert "no.csv" in capsys.readouterr().err
