import tracemalloc

import av
import jax
import numpy as np
import pytest

from t3d import camera as cameras
from t3d import cli, render
from t3d import run as runs
from t3d.data import video
from t3d.errors import UserError
from t3d.run import Speaker
from t3d.speech.features import mel
from t3d.talker import Motion


@pytest.fixture(scope="module")
def speaker():
    """A head that sways; only what a pose track needs."""
    rotvec = np.zeros((40, 3), np.float32)
    rotvec[:, 1] = np.linspace(-0.2, 0.3, 40)
    places = np.tile(np.array([1.0, -2.0, 70.0], np.float32), (40, 1))
    poses = cameras.head_pose(rotvec, places)
    zero = np.zeros(100, np.float32)
    return Speaker(
        name="someone",
        prior="procedural",
        identity=zero,
        albedo=zero,
        illumination=np.zeros(27, np.float32),
        intrinsics=np.array([2.2, 2.2, 0.5, 0.5], np.float32),
        identity_face=np.zeros((96, 96, 3), np.float32),
        head_to_world=poses,
        hair=np.zeros(5000, np.float32),
        room=1.0,
        row=0,
        voice=np.ones((2, 80), np.float32),
    )


def yaw_of(speaker, poses, views):
    """Degrees by which each camera sees the head from the image's right."""
    seen = cameras.inverse(poses) @ views
    return np.degrees(np.arctan2(seen[:, 0, 3], seen[:, 2, 3]))


def test_front_is_a_still_head_before_the_recorded_camera(speaker):
    poses, views = render.pose_track(speaker, 5, "front")
    assert poses.shape == views.shape == (5, 4, 4)
    np.testing.assert_array_equal(poses, np.broadcast_to(speaker.still_pose, (5, 4, 4)))
    np.testing.assert_allclose(views, np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-5)


def test_orbit_swings_30_degrees_to_both_sides_without_a_jump_and_keeps_its_distance(speaker):
    poses, views = render.pose_track(speaker, 400, "orbit")
    yaw = yaw_of(speaker, poses, views)
    yaw -= yaw_of(speaker, *render.pose_track(speaker, 1, "front"))
    assert 29 < yaw.max() < 32 and -32 < yaw.min() < -29
    assert np.abs(np.diff(yaw)).max() < 1.5
    np.testing.assert_array_equal(poses[0], poses[-1])
    distance = np.linalg.norm(views[:, :3, 3] - speaker.pivot, axis=1)
    np.testing.assert_allclose(distance, distance[0], rtol=1e-4)


def test_given_degrees_place_the_camera_at_the_right_and_below(speaker):
    poses, views = render.pose_track(speaker, 2, "yaw=20,pitch=-10")
    turned = yaw_of(speaker, poses, views) - yaw_of(
        speaker, *render.pose_track(speaker, 2, "front")
    )
    np.testing.assert_allclose(turned, 20, atol=2)
    assert (views[:, 1, 3] > 5).all()  # y points down
    only_pitch = render.pose_track(speaker, 1, "pitch=-10")[1]
    np.testing.assert_allclose(only_pitch[0, 0, 3], 0, atol=1e-4)


def test_recorded_track_runs_to_and_fro_for_as_long_as_need_be(speaker):
    poses, views = render.pose_track(speaker, 200, "recorded")
    np.testing.assert_array_equal(poses[:40], speaker.head_to_world)
    np.testing.assert_array_equal(poses[39:79], speaker.head_to_world[::-1])
    steps = np.abs(np.diff(poses, axis=0)).max((1, 2))
    assert steps.max() < 2 * np.abs(np.diff(speaker.head_to_world, axis=0)).max()
    np.testing.assert_array_equal(views, np.broadcast_to(np.eye(4), views.shape))
    assert (render.to_and_fro(1, 3) == 0).all() and list(render.to_and_fro(2, 4)) == [0, 1, 0, 1]


def test_blinks_last_a_quarter_second_and_come_every_2_to_6_seconds():
    closed = render.blink_weights(60 * 25, seed=3)
    shut = closed > 0.5
    starts = np.flatnonzero(np.diff(shut.astype(int)) == 1)
    gaps = np.diff(starts) / 25
    assert len(starts) >= 9 and gaps.min() > 1.9 and gaps.max() < 6.1
    assert closed.min() == 0 and 0.9 < closed.max() <= 1
    lengths = np.flatnonzero(np.diff((closed > 0).astype(int)) == -1) - np.flatnonzero(
        np.diff((closed > 0).astype(int)) == 1
    )
    assert lengths.max() <= 7
    np.testing.assert_array_equal(closed, render.blink_weights(60 * 25, seed=3))
    assert len(render.blink_weights(1, seed=3)) == 1
    tracemalloc.start()
    render.blink_weights(3600 * 25, seed=3)  # an hour
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert (closed != render.blink_weights(60 * 25, seed=4)).any()


def test_blinks_move_the_surface_and_no_audio_code():
    zero = np.zeros((3, 79), np.float32)
    blinking = render.with_blinks(Motion(zero, zero, zero), "procedural", np.array([0.0, 1.0, 0.5]))
    assert not blinking.speech.any() and not blinking.style.any()
    assert (np.count_nonzero(blinking.expression, axis=1) == [0, 2, 2]).all()
    np.testing.assert_allclose(blinking.expression.max(1), [0, 4, 2])  # weight over σ = 0.25


def write_wav(path, samples):
    from scipy.io import wavfile

    wavfile.write(path, 16000, samples)
    return path


def test_sound_without_samples_or_with_nan_is_refused_and_silence_is_legal(tmp_path, capsys):
    empty = write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16))
    with pytest.raises(UserError, match="empty.wav"):
        render.read_speech(empty)
    broken = write_wav(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32))
    with pytest.raises(UserError, match="nan.wav.*not numbers"):
        render.read_speech(broken)
    silent = write_wav(tmp_path / "silent.wav", np.zeros(16000, np.int16))
    assert len(render.read_speech(silent)) == 16000
    assert "silent" in capsys.readouterr().err


def test_a_video_is_as_long_as_its_sound_to_half_a_frame():
    assert render.frames_of(np.zeros(16000)) == 25
    assert render.frames_of(np.zeros(16000 + 64)) == 25
    assert render.frames_of(np.zeros(100)) == 1


def test_an_untrained_workdir_and_an_unknown_speaker_are_one_line(tmp_path, untrained, capfd):
    sound = write_wav(tmp_path / "a.wav", np.zeros(16000, np.int16))
    out = tmp_path / "a.mp4"
    arguments = ["render", "--workdir", str(tmp_path), "--audio", str(sound), "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "no run" in capfd.readouterr().err and not out.exists()
    with pytest.raises(UserError, match="--speaker nobody.*speaker"):
        render.speaker_of(untrained, "nobody")


def test_render_writes_a_video_in_sync_marked_as_synthetic_and_longer_than_the_clip(
    untrained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(render.runs, "open_run", lambda workdir: untrained)
    rng = np.random.default_rng(0)
    sound = write_wav(tmp_path / "a.wav", rng.normal(0, 3000, 2 * 16000 + 7).astype(np.int16))
    out = tmp_path / "a.mp4"
    arguments = ["render", "--workdir", "run", "--audio", str(sound), "--out", str(out)]
    assert cli.main([*arguments, "--camera", "orbit", "--size", "64"]) == 0
    with av.open(str(out)) as container:
        assert {s.codec_context.name for s in container.streams} == {"h264", "aac"}
        assert "synthetic media: generated by t3d" in container.metadata["comment"]
        assert container.streams.video[0].width == 64
    assert len(list(video.read_frames(out))) == 50
    heard, said = video.read_audio(out), video.read_audio(sound)
    n = min(len(heard), len(said))
    assert np.corrcoef(heard[2000 : n - 2000], said[2000 : n - 2000])[0, 1] > 0.8


def test_the_same_sound_gives_the_same_pictures_and_another_sound_another_motion(untrained):
    speaker = untrained.speakers[0]
    rng = np.random.default_rng(0)
    sound, other = (rng.normal(0, 0.1, 8 * 640).astype(np.float32) for _ in range(2))
    first, again = (np.stack(list(render.render_video(untrained, speaker, sound))) for _ in "ab")
    assert first.shape == (8, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    motions = [render.runs.motion_of(untrained, speaker, mel(s), 8) for s in (sound, other)]
    assert np.abs(motions[0].expression - motions[1].expression).max() > 0


def test_one_program_is_compiled_for_each_shape_however_many_frames_are_drawn(untrained):
    speaker = untrained.speakers[0]
    motion = runs.motion_of(untrained, speaker, np.zeros((400, 80), np.float32), 60)
    drawer = runs._drawer(untrained.talker, False)

    def draw(first: int) -> set[tuple[int, ...]]:
        """Draws 30 frames; the shapes of their images."""
        poses = speaker.head_to_world[render.to_and_fro(len(speaker.head_to_world), 60)]
        poses = poses[first : first + 30]
        eyes = np.tile(np.eye(4, dtype=np.float32), (30, 1, 1))
        part = jax.tree.map(lambda values: values[first : first + 30], motion)
        drawn = list(runs.render_frames(untrained, speaker, part, poses, eyes, standardised=False))
        return {d["nerf"].shape[1:] for d in drawn}

    draw(0)
    traced = drawer._cache_size()
    assert draw(0) == {(32, 32, 3)} and drawer._cache_size() == traced
    draw(30)
    rays = untrained.config.nerf.rays**2
    assert traced <= drawer._cache_size() <= rays // (rays // 8)  # one for each eighth of the rays
