"""Video and sound on one clock, whatever file comes."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from scipy.io import wavfile

from t3d.data import video
from t3d.errors import UserError


def _noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Band-limited noise (5 ms steps), so that a correlation has one peak."""
    steps = np.random.default_rng(seed).uniform(-0.6, 0.6, int(seconds * 200) + 2)
    return np.interp(np.arange(int(seconds * 16000)) / 80, np.arange(len(steps)), steps)


def _grey_frames(count: int, size=(48, 64)) -> list[np.ndarray]:
    return [np.full((*size, 3), 40 + 2 * k, np.uint8) for k in range(count)]


def _flash_and_beep(path, picture_start: float, sound_start: float, at=1.0, lost=(0.0, 0.0)):
    """A video whose picture turns white and whose sound begins at one instant of its clock.

    The sound's packets between the two times `lost` are not in the file.
    """

    def mux_sound(packets):
        for packet in packets:
            if packet.pts is None or not lost[0] <= packet.pts * packet.time_base < lost[1]:
                out.mux(packet)

    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264", rate=25, options={"bf": "0"})
        picture.width = picture.height = 64
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for k in range(50):
            bright = 255 if picture_start + k / 25 >= at - 1e-6 else 0
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), bright, np.uint8), "rgb24")
            frame.pts = k + round(picture_start * 25)
            out.mux(picture.encode(frame))
        time = sound_start + np.arange(32000) / 16000
        wave = np.where(time >= at, np.sin(2 * np.pi * 440 * time), 0).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, round(sound_start * 16000)
        mux_sound(sound.encode(frame))
        out.mux(picture.encode(None))
        mux_sound(sound.encode(None))


def _turn_clockwise(path):
    """Writes a quarter turn into the display matrix of an mp4's picture track, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    unit = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, unit, 0, -unit, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def test_written_frames_and_sound_come_back_in_place(tmp_path):
    frames, sound = _grey_frames(60), _noise(2.4)
    path = video.write_video(tmp_path / "a.mp4", frames, sound, metadata={"made-by": "t3d"})
    back = np.stack(list(video.read_frames(path)))
    assert back.shape == (60, 48, 64, 3) and back.dtype == np.uint8
    assert np.abs(back.mean((1, 2, 3)) - [f.mean() for f in frames]).max() < 2
    heard = video.read_audio(path)
    assert heard.dtype == np.float32 and len(heard) >= len(sound)
    correlation = np.correlate(heard[400 : len(sound)], sound[800:-800], "valid")
    assert np.argmax(correlation) == 400
    assert abs(len(heard) - len(sound)) < 1100
    assert av.open(str(path)).metadata["made-by"] == "t3d"


@pytest.mark.parametrize(("picture", "sound"), [(0, 0), (0.08, 0), (0.32, 0), (0, 0.2)])
def test_flash_and_beep_stay_together_when_a_stream_starts_late(tmp_path, picture, sound):
    _flash_and_beep(tmp_path / "a.mp4", picture, sound)
    images = np.stack(list(video.read_frames(tmp_path / "a.mp4")))
    flash = np.argmax(images.mean((1, 2, 3)) > 128) / 25
    beep = np.argmax(np.abs(video.read_audio(tmp_path / "a.mp4")) > 0.3) / 16000
    assert flash == pytest.approx(1.0 - picture, abs=0.001)
    assert beep == pytest.approx(flash, abs=0.01)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_what_follows_lost_sound_stays_with_its_pictures(tmp_path, name):
    _flash_and_beep(tmp_path / name, 0, 0, at=1.2, lost=(0.4, 0.9))
    images = np.stack(list(video.read_frames(tmp_path / name)))
    flash = np.argmax(images.mean((1, 2, 3)) > 128) / 25
    beep = np.argmax(np.abs(video.read_audio(tmp_path / name)) > 0.3) / 16000
    assert flash == pytest.approx(1.2, abs=0.021)  # of mkv's and ts' clocks
    assert beep == pytest.approx(flash, abs=0.03)


def _frames_of_sound(stamps, samples=1600):
    """A tenth of a second each, at 16 kHz, of the values 0.1, 0.2, …; a stamp is in seconds."""
    for number, stamp in enumerate(stamps):
        wave = np.full((1, samples), 0.1 * (number + 1), np.float32)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
        frame.pts = None if stamp is None else round(stamp * 16000)
        yield frame


@pytest.mark.parametrize(
    ("stamps", "heard"),
    [
        ((5.0, 5.1, 5.2), [1, 1, 2, 2, 3, 3]),
        ((5.0, None, 5.2), [1, 1, 2, 2, 3, 3]),
        ((5.0, 5.1, 5.4, 5.5), [1, 1, 2, 2, 0, 0, 0, 0, 3, 3, 4, 4]),
        ((5.0, 5.1, 5.2, 5.15, 5.25), [1, 1, 2, 4, 4, 5, 5]),  # some of it is there twice
        ((5.0, 5.18, 5.28), [1, 1, 2, 2, 3, 3]),  # less than may be
        ((5.0, 5.1, 5.7, 5.3, 5.4), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),  # one stamp is off
        ((5.0, 9e4, 9e4 + 0.1), [1, 1, 2, 2, 3, 3]),  # no sound is silent for a day
        ((5.0, 0.0, 0.3, 0.4), [1, 1, 2, 2, 0, 0, 0, 0, 3, 3, 4, 4]),  # the clock began anew: a gap
        ((5.0, 4.7, 4.8), [1, 1, 2, 2, 3, 3]),  # to before the first
    ],
)
def test_sound_lies_where_its_stamps_say_unless_they_leap(stamps, heard):
    begin, samples = video._joined(_frames_of_sound(stamps), 16000)
    assert begin == 5.0
    assert len(samples) == 800 * len(heard)
    found = samples.reshape(-1, 800)[:, 100:-100].mean(1)
    np.testing.assert_allclose(found, 0.1 * np.array(heard), atol=1e-3)


def test_sound_is_cut_or_led_out_to_its_pictures():
    sound = np.arange(1, 1001, dtype=np.float32)
    np.testing.assert_array_equal(video.at_length(sound, 1), sound[:640])
    longer = video.at_length(sound, 2)
    assert len(longer) == 1280 and (longer[:1000] == sound).all() and not longer[1000:].any()


def test_a_film_whose_subtitle_outlasts_it_is_whole(tmp_path):
    video.write_video(tmp_path / "a.mp4", _grey_frames(50), _noise(2))
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:06,500\nhello\n\n")
    with av.open(str(tmp_path / "a.mp4")) as film, av.open(str(tmp_path / "a.srt")) as words:
        with av.open(str(tmp_path / "a.mkv"), "w") as out:
            made = [
                {s.index: out.add_stream_from_template(s) for s in c.streams} for c in (film, words)
            ]
            for container, streams in zip((words, film), made[::-1]):
                for packet in container.demux():
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream.index]
                        out.mux(packet)
    with av.open(str(tmp_path / "a.mkv")) as made:
        assert made.duration / av.time_base == pytest.approx(6.5, abs=0.1)
    assert video.probe_talking(tmp_path / "a.mkv").duration == pytest.approx(2, abs=0.1)


def test_a_name_with_a_colon_is_a_name(tmp_path, monkeypatch):
    video.write_video(tmp_path / "12:30 talk.mp4", _grey_frames(30), _noise(1.2))
    monkeypatch.chdir(tmp_path)
    assert video.probe_talking("12:30 talk.mp4").width == 64
    assert len(video.read_audio("12:30 talk.mp4")) > 19000
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far" / "deep")
    (tmp_path / "12:30 talk.mp4").rename(tmp_path / "far" / "a.mp4")
    assert video.probe_talking("near/link/../a.mp4").width == 64


@pytest.mark.parametrize("rate", [12.5, 24, 30, 50])
def test_other_frame_rates_become_25_without_drift(tmp_path, rate):
    count = int(2.4 * rate)
    times = np.arange(count) / rate
    frames = [np.full((32, 32, 3), 20 + 80 * t, np.uint8) for t in times]
    video.write_video(tmp_path / "a.mp4", frames, fps=Fraction(rate))
    back = np.stack(list(video.read_frames(tmp_path / "a.mp4"))).mean((1, 2, 3))
    assert abs(len(back) - 60) <= 1
    drift = (back - 20) / 80 - np.arange(len(back)) / 25
    assert np.abs(drift).max() < 0.6 / min(rate, 25) + 0.03
    assert abs(np.mean(drift)) < 0.6 / min(rate, 25)


def test_a_phone_video_comes_upright(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :16] = (255, 0, 0)
    path = video.write_video(tmp_path / "a.mp4", [image] * 30)
    _turn_clockwise(path)
    upright = next(video.read_frames(path))
    assert upright.shape == (64, 32, 3)
    assert upright[:12, :, 0].min() > 200 and upright[24:, :, 0].max() < 60


def test_odd_sizes_are_written(tmp_path):
    path = video.write_video(tmp_path / "a.mp4", [np.full((33, 35, 3), 99, np.uint8)] * 3)
    assert next(video.read_frames(path)).shape == (34, 36, 3)


def test_a_failed_write_leaves_nothing(tmp_path):
    def frames():
        yield from _grey_frames(5)
        raise RuntimeError("renderer died")

    with pytest.raises(RuntimeError, match="renderer died"):
        video.write_video(tmp_path / "a.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def test_a_wav_is_read_as_mono(tmp_path):
    tone = np.sin(np.arange(44100) * 2 * np.pi * 440 / 44100)
    stereo = np.stack([tone, tone], 1) * 16384
    wavfile.write(tmp_path / "a.wav", 44100, stereo.astype(np.int16))
    heard = video.read_audio(tmp_path / "a.wav")
    assert len(heard) == pytest.approx(16000, abs=2)
    expected = 0.5 * np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)
    np.testing.assert_allclose(heard[500:15000], expected[500:15000], atol=2e-3)


def _bad(path, kind: str):
    if kind == "text":
        path.write_text("hello\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "silent":
        video.write_video(path, _grey_frames(40))
    elif kind == "short":
        video.write_video(path, _grey_frames(12), _noise(0.5))
    elif kind == "sound only":
        wavfile.write(path, 16000, (_noise(2) * 3e4).astype(np.int16))
    elif kind == "truncated":
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 255, (50, 32, 32, 3), np.uint8)
        video.write_video(path, frames, _noise(2))
        if path.suffix == ".mkv":
            mp4 = path.rename(path.with_suffix(".mp4"))
            _copied(mp4, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _copied(source, path):
    """The same packets in another container."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("a.mp4", "text", "not a"),
        ("a.txt", "text", "not a"),
        ("a.mp4", "empty", "empty"),
        ("a.mp4", "missing", "no such file"),
        ("a.mp4", "silent", "no sound"),
        ("a.mp4", "short", "at least 1 s"),
        ("a.wav", "sound only", "no video stream"),
        ("a.mp4", "truncated", "truncated"),
        ("a.mkv", "truncated", "truncated"),
    ],
)
def test_bad_input_is_one_line_naming_the_file(tmp_path, name, kind, words):
    path = _bad(tmp_path / name, kind)
    with pytest.raises(UserError, match=words) as error:
        video.probe_talking(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="folder does not exist"):
        video.write_video(tmp_path / "no" / "a.mp4", _grey_frames(2))


def test_crop_of_a_gradient_is_the_gradient_of_the_box():
    ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], (100, 100, 3))
    cut = video.crop(np.ascontiguousarray(ramp), (50.0, 50.0, 40.0), 20)
    expected = 2 * (30 + (np.arange(20) + 0.5) * 2) - 1
    assert np.abs(cut[10, 2:-2, 0] - expected[2:-2]).max() <= 1


def test_crop_outside_repeats_the_edge_or_fills():
    image = np.full((20, 20, 3), 50, np.uint8)
    assert (video.crop(image, (0, 0, 16), 8) == 50).all()
    filled = video.crop(image, (0, 0, 16), 8, fill=255)
    assert (filled[:3, :3] == 255).all() and (filled[6:, 6:] == 50).all()


def test_resize_keeps_the_mean_of_fine_texture():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = video.resize(board.astype(np.uint8), (8, 16))
    assert small.shape == (8, 16) and np.abs(small.astype(int) - 127).max() <= 2
