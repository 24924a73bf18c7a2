"""The right face is found, in the right places, under the right names."""

import os
import subprocess
import sys

import numpy as np
import pytest

from t3d.data import landmarks, synthetic, video
from t3d.data.landmarks import BETWEEN, BLENDSHAPES, LIPS79, MEDIAPIPE_68, MEDIAPIPE_LIPS


def _opening(points68: np.ndarray) -> np.ndarray:
    gap = np.linalg.norm(points68[:, 62] - points68[:, 66], axis=-1)
    return gap / np.linalg.norm(points68[:, 36] - points68[:, 45], axis=-1)


def _clip_frames(clips, name: str, count: int) -> list[np.ndarray]:
    path = clips / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return [frame for _, frame in zip(range(count), video.read_frames(path))]


def test_the_maps_are_68_and_80_distinct_points():
    assert len(MEDIAPIPE_68) == len(set(MEDIAPIPE_68)) == 68
    assert len(MEDIAPIPE_LIPS) == len(set(MEDIAPIPE_LIPS)) == 80
    assert len(LIPS79) == 79
    assert (MEDIAPIPE_68[62], MEDIAPIPE_68[66]) == (13, 14)
    assert (MEDIAPIPE_68[36], MEDIAPIPE_68[45]) == (33, 263)
    assert max(MEDIAPIPE_68 + MEDIAPIPE_LIPS) < 468
    mirror = {49: 53, 55: 59, 56: 58, 65: 67, 61: 63, 20: 23, 0: 16, 5: 11}
    assert all(BETWEEN[left][1] == BETWEEN[right][1] for left, right in mirror.items())


def test_landmarks_are_where_rendered_heads_have_them():
    """The points between MediaPipe's are nearer to the truth than MediaPipe's own."""
    clip = synthetic.turning_clip("procedural", 15.0, frames=12, size=256, noise=0.0)
    found = landmarks.detect(list(clip.pictures))
    truth = clip.truth["points68"]
    eyes = np.linalg.norm(truth[:, 36] - truth[:, 45], axis=-1).mean()
    away = np.linalg.norm(found.points68 / 256 - truth, axis=-1).mean(0) / eyes
    assert away.mean() < 0.0375
    assert away[[49, 53, 55, 59, 56, 58]].mean() < 0.03


def test_blendshapes_are_named_and_ordered_as_ict_facekits(assets):
    with np.load(assets / "ict_facekit.npz") as model:
        assert tuple(BLENDSHAPES) == tuple(model["expression_names"].tolist())


def test_a_face_lies_as_a_face_does(clips, assets):
    frames = _clip_frames(clips, "cnn2_25fps.mp4", 30)
    found = landmarks.detect(frames)
    assert found.found.all() and found.others == 0
    assert found.points68.shape == (30, 68, 2) and found.lips79.shape == (30, 79, 2)
    assert found.blendshapes.shape == (30, 53)
    x, y = np.moveaxis(found.points68, -1, 0)
    assert (np.diff(x[:, :17], axis=1)[:, 4:12] > 0).all(), "the jaw runs to image right"
    assert (y[:, 8] > y[:, 57]).all() and (y[:, 57] > y[:, 33]).all(), "chin, lip, nose"
    assert (y[:, 33] > y[:, 27]).all() and (y[:, 39] > y[:, 19]).all(), "nose, bridge, brow"
    assert (x[:, 36] < x[:, 39]).all() and (x[:, 42] < x[:, 45]).all()
    lips = found.points68[:, 48:60]
    low, high = lips.min(1) - 3, lips.max(1) + 3
    assert (found.lips79 > low[:, None]).all() and (found.lips79 < high[:, None]).all()
    assert ((found.blendshapes >= 0) & (found.blendshapes <= 1)).all()


def test_the_mouth_opens_as_measured_on_a_known_clip(clips, assets):
    opening = _opening(landmarks.detect(_clip_frames(clips, "cnn2_25fps.mp4", 300)).points68)
    assert opening.mean() == pytest.approx(0.035, abs=0.008)
    assert opening.std() == pytest.approx(0.028, abs=0.008)


def test_frames_without_a_face_are_nan_and_counted(clips, assets):
    face = _clip_frames(clips, "cnn2_25fps.mp4", 1)[0]
    found = landmarks.detect([np.zeros_like(face), face, np.zeros_like(face)], video=False)
    assert found.found.tolist() == [False, True, False]
    assert np.isnan(found.points68[[0, 2]]).all() and np.isfinite(found.points68[1]).all()
    assert np.isnan(found.blendshapes[0]).all()


def test_of_two_faces_the_larger_is_followed(clips, assets):
    frames = _clip_frames(clips, "cnn2_25fps.mp4", 12)
    small = [video.resize(frame, 256) for frame in frames]
    for flip in (False, True):
        wide = []
        for one, two in zip(frames, small, strict=True):
            pair = [one, np.pad(two, ((0, 256), (0, 0), (0, 0)))]
            wide.append(np.concatenate(pair[::-1] if flip else pair, 1))
        found = landmarks.detect(wide)
        alone = landmarks.detect(frames).points68 + np.array([256 * flip, 0])
        assert found.others == 1.0
        assert np.abs(found.points68 - alone).max() < 12


def test_points_are_in_pixels_of_frames_that_are_not_square(clips, assets):
    frame = _clip_frames(clips, "cnn2_25fps.mp4", 1)[0]
    wide = np.pad(frame, ((0, 0), (100, 200), (0, 0)))
    shift = landmarks.detect([wide], video=False).points68 - [100, 0]
    assert np.abs(shift - landmarks.detect([frame], video=False).points68).max() < 6


def test_a_missing_system_library_is_one_line_with_the_remedy(tmp_path, assets):
    for name in ("libEGL.so.1", "libGL.so.1", "libGLESv2.so.2"):
        (tmp_path / name).write_bytes(b"")
    script = "import numpy as np; from t3d.data import landmarks\n" + (
        "landmarks.detect([np.zeros((64, 64, 3), np.uint8)], video=False)"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("t3d.errors.UserError: ")
    assert "apt install libegl1 libgles2 libgl1" in last


def test_mediapipes_start_up_chatter_is_not_heard_but_errors_are(tmp_path, assets):
    script = (
        "import os, sys, numpy as np\n"
        "from t3d.data import landmarks, mediapipe_tasks\n"
        "landmarks.detect([np.zeros((64, 64, 3), np.uint8)] * 3)\n"
        "with mediapipe_tasks._quiet_stderr():\n"
        "    os.write(2, b'E0000 00:00:00 graph.cc:1] broken\\n')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr == "E0000 00:00:00 graph.cc:1] broken\n"
