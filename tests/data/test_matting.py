"""The head is in, the torso, the neck and the background are out."""

import numpy as np
import pytest

from t3d.data import landmarks, matting, video


def _face(centre=(100.0, 90.0), scale=60.0, roll=0.0) -> np.ndarray:
    """68 landmarks of a schematic face: jaw half an ellipse, eyes level, brows, nose."""
    angle = np.linspace(np.pi, 0, 17)
    points = np.zeros((68, 2))
    points[:17] = np.stack([np.cos(angle), 1.2 * np.sin(angle)], 1)
    points[17:27] = np.stack([np.linspace(-0.7, 0.7, 10), np.full(10, -0.35)], 1)
    points[27:36] = np.stack([np.zeros(9), np.linspace(-0.1, 0.4, 9)], 1)
    points[36:48] = np.stack([np.linspace(-0.6, 0.6, 12), np.full(12, -0.1)], 1)
    points[48:] = (0.0, 0.7)
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    return (points @ turn.T) * scale + centre


def _at(mask: np.ndarray, point) -> float:
    return float(mask[int(point[1]), int(point[0])])


@pytest.mark.parametrize("roll", [0.0, 0.3, -0.3])
def test_the_cut_keeps_the_face_and_hair_and_drops_what_is_below_the_jaw(roll):
    face = _face(roll=roll)
    mask = matting.head_mask(np.ones((220, 200), np.float32), face)
    down = np.array([-np.sin(roll), np.cos(roll)])
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1
    assert all(_at(mask, point) == 1 for point in face - 0.03 * (face - face[30]))
    assert _at(mask, face[24] - 40 * down) == 1, "hair above the brows"
    assert _at(mask, face[8] + 8 * down) == 0, "neck"
    right = np.array([down[1], -down[0]])
    assert _at(mask, face[8] + 50 * right) == 0, "shoulder beside the chin"
    assert _at(mask, face[0] - 10 * right) == 1, "ear or hair beside the eyes"


def test_nothing_outside_the_person_enters():
    person = np.zeros((200, 200), np.float32)
    person[60:, 70:130] = 0.5
    mask = matting.head_mask(person, _face())
    assert (mask <= person).all() and mask.max() == 0.5


def test_without_a_face_there_is_no_head():
    assert not matting.head_mask(np.ones((20, 30), np.float32), np.full((68, 2), np.nan)).any()


@pytest.mark.parametrize("all_person", [True, False])
def test_a_picture_without_a_border_to_find_keeps_its_mask(all_person):
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    person, face = np.full((256, 256), all_person), np.zeros((256, 256), bool)
    cut = matting._grab_cut(image, person, face)
    assert np.mean(cut == all_person) > 0.99


@pytest.fixture(scope="module")
def cut(clips, assets):
    """Frames of a clip with a blue background, their landmarks and head masks."""
    path = clips / "cnn2_25fps.mp4"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    frames = [frame for _, frame in zip(range(22), video.read_frames(path))]
    points = landmarks.detect(frames).points68
    return frames, points, list(matting.head_masks(iter(frames), points))


def test_every_frame_has_a_mask_of_its_size(cut):
    frames, _, masks = cut
    assert len(masks) == len(frames)
    assert all(mask.shape == frame.shape[:2] for mask, frame in zip(masks, frames, strict=True))


def test_the_whole_face_is_in_and_nothing_below_the_chin(cut):
    _, points, masks = cut
    for face, mask in zip(points, masks, strict=True):
        assert min(_at(mask, p) for p in face[17:] * 1.0) > 0.9
        chin = face[8] + [0, 0.1 * (face[8, 1] - face[27, 1])]
        assert mask[int(chin[1]) :].max() == 0


def test_the_blue_background_is_out_and_dark_hair_is_in(cut):
    frames, points, masks = cut
    for frame, face, mask in zip(frames, points, masks, strict=True):
        red, blue = frame[..., 0].astype(int), frame[..., 2].astype(int)
        corners = int(face[[3, 13], 1].mean())
        background = (blue - red > 90)[:corners]
        assert mask[:corners][background].mean() < 0.02
        top = np.argmax(~background[:, int(face[27, 0])])
        assert mask[top + 6 : int(face[27, 1]), int(face[27, 0])].min() > 0.9


def test_masks_are_steady_in_time(cut):
    _, points, masks = cut
    eyes = np.linalg.norm(points[:, 45] - points[:, 36], axis=-1)
    area = np.array([mask.sum() for mask in masks]) / eyes**2
    assert np.abs(np.diff(area)).max() / area.mean() < 0.04


def test_frames_without_a_face_borrow_the_nearest(cut):
    frames, points, _ = cut
    points = points[:8].copy()
    points[3:5] = np.nan
    masks = list(matting.head_masks(frames[:8], points))
    assert len(masks) == 8 and min(mask.sum() for mask in masks) > 0.9 * masks[0].sum()
