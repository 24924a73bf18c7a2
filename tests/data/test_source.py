"""Real pictures that are covered, missing, cut or shared with another face are marked, bridged."""

import itertools

import numpy as np
import pytest

from t3d.data import quality, source, video
from t3d.data.source import Clip
from t3d.errors import UserError

FRAMES = 60
NAMES = ("points68", "lips79", "blendshapes")


def frames_of(clips, name, first, end):
    path = clips / name
    if not path.exists():
        pytest.skip(f"{path} is missing: set T3D_CLIPS to the folder that has it")
    return list(itertools.islice(video.read_frames(path), first, end))


@pytest.fixture(scope="module")
def speaker(clips):
    return frames_of(clips, "cnn2_25fps.mp4", 0, FRAMES)


@pytest.fixture(scope="module")
def other(clips):
    return frames_of(clips, "WDA_KatieHill_000.mp4", 0, 40)


def observe(frames, tmp_path, blocks=None):
    info = video.VideoInfo(512, 512, 25.0, len(frames) / 25, 16000)
    clip = Clip(tmp_path / "clip.mp4", "", info, None)
    return source.observe(clip, iter(frames), blocks or source.whole(len(frames)))


@pytest.fixture(scope="module")
def plain(speaker, assets, tmp_path_factory):
    return observe(speaker, tmp_path_factory.mktemp("plain"))


def marked(seen) -> list[int]:
    assert all(np.isfinite(seen[name]).all() for name in NAMES), "bridged"
    return np.flatnonzero(~seen["found"]).tolist()


def test_an_undisturbed_clip_is_one_shot_found_throughout(plain):
    assert marked(plain) == [] and plain["shot"].max() == 0 and plain["others"] == 0
    assert plain["looked"].all() and plain["detected"].all()
    assert plain["looks"].shape == (FRAMES, 2) and np.isfinite(plain["looks"][:, 0]).all()


def test_a_covered_face_is_marked_and_bridged(speaker, plain, tmp_path):
    covered = list(speaker)
    for k in range(25, 37):
        low, high = plain["points68"][k].min(0) - 12, plain["points68"][k].max(0) + 12
        covered[k] = speaker[k].copy()
        covered[k][int(low[1]) : int(high[1]), int(low[0]) : int(high[0])] = 0
    seen = observe(covered, tmp_path)
    assert marked(seen) == list(range(25, 37)) and seen["shot"].max() == 0
    middle = (seen["points68"][24] + seen["points68"][37]) / 2
    between = (seen["points68"][30] + seen["points68"][31]) / 2
    np.testing.assert_allclose(between, middle, atol=1e-2)


@pytest.mark.parametrize("length", [1, 12])
def test_missing_pictures_are_marked_and_are_no_cut(speaker, tmp_path, length):
    frames = list(speaker)
    frames[25 : 25 + length] = [np.full_like(speaker[0], 127)] * length
    seen = observe(frames, tmp_path)
    assert marked(seen) == list(range(25, 25 + length)) and seen["shot"].max() == 0


def test_a_cut_to_another_person_and_back_is_marked_and_not_bridged_across(
    speaker, other, tmp_path
):
    seen = observe(speaker[:25] + other[:20] + speaker[25:], tmp_path)
    assert marked(seen) == list(range(25, 45)) and seen["detected"].all()
    np.testing.assert_array_equal(seen["shot"], np.repeat([0, 1, 2], [25, 20, 35]))
    np.testing.assert_array_equal(seen["points68"][25:35], seen["points68"][[24] * 10])


def test_a_clip_of_many_scenes_is_refused_in_words(speaker, other, tmp_path, clips):
    third = [frame[:, ::-1] for frame in frames_of(clips, "WDA_KatieHill_000.mp4", 150, 175)]
    dark = [frame // 4 for frame in third]
    scenes = [frame[::-1] for frame in speaker[:15]] + speaker[:20] + other[:20] + dark
    with pytest.raises(UserError, match="one scene and one place, was found in .*in one shot"):
        observe(scenes, tmp_path)


def beside(large, small):
    """Pictures with a face of half the size at the left of them."""
    half = [np.pad(video.resize(f, 256), ((256, 0), (0, 0), (0, 0))) for f in small]
    return [np.concatenate(pair, 1) for pair in zip(half, large)]


def test_of_two_faces_the_larger_is_found_consistently(speaker, other, plain, tmp_path):
    seen = observe(beside(speaker, other), tmp_path)
    assert marked(seen) == [] and seen["others"] == 1
    shift = seen["points68"] - [256, 0] - plain["points68"][:40]
    assert np.abs(shift).max() < 12


def test_the_smaller_face_does_not_stand_in_for_the_larger(speaker, other, tmp_path):
    gone = [np.zeros_like(f) if 20 <= k < 26 else f for k, f in enumerate(speaker[:40])]
    seen = observe(beside(gone, other), tmp_path)
    assert set(range(20, 26)) <= set(marked(seen)) <= set(range(20, 32))
    assert (seen["points68"][..., 0].mean(1) > 256).all()


def test_a_sampled_look_is_the_same_where_it_looks(speaker, plain, tmp_path):
    seen = observe(speaker, tmp_path, [(5, 25), (40, 50)])
    looked = np.flatnonzero(seen["looked"])
    np.testing.assert_array_equal(looked, [*range(5, 25), *range(40, 50)])
    assert seen["found"][looked].all() and not np.delete(seen["found"], looked).any()
    assert np.abs(seen["points68"][looked] - plain["points68"][looked]).max() < 8


def test_at_most_forty_seconds_are_sampled_from_all_over_a_clip():
    assert source.sampled(900) == source.whole(900)
    blocks = source.sampled(15000)
    assert sum(end - first for first, end in blocks) == 1000
    assert blocks[0][0] == 0 and blocks[-1][1] == 15000


def test_light_and_sharpness_are_of_the_face(speaker, plain):
    points = plain["points68"][0]
    light, sharp = quality.look(speaker[0], points, True)
    assert sharp == pytest.approx(plain["looks"][0, 1])
    assert quality.look(speaker[0] // 2, points, False)[0] == pytest.approx(light / 2, abs=0.01)
    assert np.isnan(quality.look(speaker[0], points, False)[1])
    assert np.isnan(quality.look(speaker[0], None, True)).all()


@pytest.mark.parametrize("size", [96, 160, 256])
def test_an_enlarged_picture_is_as_sharp_as_it_was_before(speaker, plain, size):
    enlarged = video.resize(video.resize(speaker[0], size), 512)
    points = plain["points68"][0]
    tall = float(points[8, 1] - points[17:27, 1].min())
    _, sharp = quality.look(enlarged, points, True)
    assert sharp == pytest.approx(tall * size / 512, rel=0.35)
    assert sharp < 0.8 * quality.look(speaker[0], points, True)[1]
