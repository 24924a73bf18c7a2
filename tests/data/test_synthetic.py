"""The synthetic speaker: its voice moves its mouth, and its truth is true."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.data import landmarks, matting, synthetic, video
from t3d.errors import UserError
from t3d.metrics.lips import mouth_opening
from t3d.prior import basis, morphable

FRAMES, SIZE, VIEWS = 30, 96, 8


@pytest.fixture(scope="module")
def model():
    return basis.load("procedural")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "speaker"
    return synthetic.synthesize(out, FRAMES / 25, views=VIEWS, size=SIZE, seed=3)


@pytest.fixture(scope="module")
def truth(folder):
    with np.load(folder / "truth.npz", allow_pickle=False) as data:
        return dict(data)


def opening(model, weights):
    """Mouth opening [T] of a frontal head with these weights [T, 53], seen from afar."""
    named = dict(zip(synthetic.EXPRESSION_NAMES, weights.T, strict=True))
    small = morphable.restrict(model, model.landmarks68)
    coefficients = morphable.expression_from_weights(model, named)
    return mouth_opening(morphable.vertices(small, np.zeros(100), coefficients)[..., :2])


def world_of(model, truth, frame):
    """The speaker's bare head [V, 3] in the world, from the stored codes."""
    head = model.mean + np.einsum("k,kvd->vd", truth["identity"], model.identity_basis)
    head = head + truth["displacement"]
    head = head + np.einsum("k,kvd->vd", truth["expression"][frame], model.expression_basis)
    turn = cameras.rotation_matrix(truth["rotvec"][frame]) @ np.diag([1.0, -1.0, -1.0])
    return head @ turn.T + truth["translation"][frame]


def nearest_hit(origin, directions, corners):
    """Parameter [N] of each ray's first hit among triangles [F, 3, 3], by trying all (inf: none).

    Moeller and Trumbore's test.
    """
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    best = []
    for direction in directions:
        p = np.cross(direction, ac)
        scale = 1.0 / (ab * p).sum(-1)
        u = ((origin - a) * p).sum(-1) * scale
        q = np.cross(origin - a, ab)
        v, t = (q @ direction) * scale, (ac * q).sum(-1) * scale
        best.append(np.min(t, initial=np.inf, where=(u >= 0) & (v >= 0) & (u + v <= 1)))
    return np.array(best)


def log_spectrogram(audio):
    """[N, 40] log power in 40 even bands up to 8 kHz, every 12.5 ms, by plain FFT."""
    starts = np.arange(0, len(audio) - 800, 200)
    windows = audio[starts[:, None] + np.arange(800)] * np.hanning(800)
    power = np.abs(np.fft.rfft(windows))[:, :400] ** 2
    return np.log10(power.reshape(len(starts), 40, 10).mean(-1) + 1e-4)


def test_mouth_can_be_predicted_from_the_sound(model):
    audio, _, weights = synthetic.speech(20, seed=5)
    true = opening(model, weights)
    bands = log_spectrogram(audio)
    # A spectrogram row's window is centred 400 samples after its start.
    centre = ((np.arange(len(true)) + 0.5) * 640 - 400) / 200
    rows = np.clip(np.round(centre)[:, None] + np.arange(-8, 9), 0, len(bands) - 1).astype(int)
    x = bands[rows].reshape(len(true), -1)
    train, test = slice(0, 350), slice(375, None)
    x = (x - x[train].mean(0)) / x[train].std(0)
    gram = x[train] @ x[train].T + 300.0 * np.eye(350)
    dual = np.linalg.solve(gram, true[train] - true[train].mean())
    assert np.corrcoef(x[test] @ (x[train].T @ dual), true[test])[0, 1] >= 0.8


def test_silence_closes_the_mouth_and_open_vowels_open_it(model):
    _, phones, weights = synthetic.speech(20, seed=6)
    gap = opening(model, weights)

    def middle(symbols, least):
        return [
            gap[round((phone.start + phone.end) / 2 * 25 - 0.5)]
            for phone in phones
            if phone.symbol in symbols and phone.end - phone.start > least
        ]

    assert max(middle({"SIL"}, 0.3)) < 0.02
    assert np.mean(middle({"AA", "AE"}, 0.1)) > 0.15
    assert np.mean(middle({"M", "B", "P"}, 0.07)) < 0.03


def test_sound_is_as_long_as_the_frames_and_never_clipped():
    audio, phones, weights = synthetic.speech(7.3, seed=0)
    assert len(weights) == 182 and len(audio) == 182 * 640
    assert audio.dtype == np.float32 and 0.5 < np.abs(audio).max() < 0.9
    assert 0.0 <= weights.min() and weights.max() <= 1.0
    ends = [phone.end for phone in phones]
    assert [phone.start for phone in phones[1:]] == ends[:-1] and ends[-1] == pytest.approx(7.28)


def test_silence_is_quiet_where_the_phones_say_so():
    audio, phones, _ = synthetic.speech(10, seed=1)
    power = {True: [], False: []}
    for symbol, start, end in phones:
        if end - start > 0.1:
            inner = audio[int((start + 0.04) * 16000) : int((end - 0.04) * 16000)]
            power[symbol == "SIL"].append(np.sqrt(np.mean(inner**2)))
    assert max(power[True]) < 0.1 * np.median(power[False])


def test_another_seed_says_something_else_and_the_same_seed_the_same():
    first, again, other = (synthetic.speech(2, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_landmarks_are_the_projected_codes(truth, model):
    for frame in (0, FRAMES - 1):
        world = world_of(model, truth, frame)
        fx, fy, cx, cy = truth["intrinsics"]
        x = (fx * world[:, 0] / world[:, 2] + cx) * SIZE
        y = (fy * world[:, 1] / world[:, 2] + cy) * SIZE
        uv = np.stack([x, y], -1)
        assert np.abs(uv[model.landmarks68] - truth["points68"][frame]).max() < 1e-2
        assert np.abs(uv[model.lips79] - truth["lips79"][frame]).max() < 1e-2


def test_expression_codes_are_the_stored_blendshapes(truth, model):
    weights = truth["blendshapes"]
    assert model.expression_names == synthetic.EXPRESSION_NAMES
    assert np.allclose(truth["expression"][:, :53] * morphable.EXPRESSION_STD, weights, atol=1e-6)


def test_surface_lies_millimetres_off_the_model_whatever_its_codes(truth, model):
    """The face is 3 to 5 mm off its codes' face, and no other identity or pose takes it all up."""
    face = model.region == model.region_names.index("face")
    away = truth["displacement"][face].astype(float)
    height = np.linalg.norm(away, axis=-1)
    assert np.sqrt(np.mean(height**2)) > 0.3 and height.max() < 0.501
    points = model.mean[face]
    rigid = [np.tile(axis, (len(points), 1)) for axis in np.eye(3)]
    rigid += [np.cross(axis, points) for axis in np.eye(3)] + [points]
    known = np.concatenate([model.identity_basis[:, face], rigid]).reshape(107, -1).T
    left = away.ravel() - known @ np.linalg.lstsq(known, away.ravel(), rcond=None)[0]
    assert np.sqrt(np.mean(np.square(left).reshape(-1, 3).sum(-1))) > 0.1
    neutral = morphable.vertices(model, truth["identity"], np.zeros(79)) + truth["displacement"]
    np.testing.assert_allclose(truth["head_points"], neutral[model.landmarks68], atol=1e-5)


def test_displacement_is_smooth_and_the_seeds_own(model):
    drawn = [synthetic._displacement(model, np.random.default_rng(k)) for k in (1, 1, 2)]
    assert np.array_equal(*drawn[:2]) and np.abs(drawn[0] - drawn[2]).max() > 0.3
    edges = np.concatenate([model.triangles[:, :2], model.triangles[:, 1:]])
    length = np.linalg.norm(np.subtract(*model.mean[edges].swapaxes(0, 1)), axis=-1)
    change = np.linalg.norm(np.subtract(*drawn[0][edges].swapaxes(0, 1)), axis=-1)
    face = (model.region == model.region_names.index("face"))[edges].all(-1)
    assert np.percentile(change[face] / length[face], 95) < 0.5


def test_cameras_stand_where_their_yaw_and_pitch_say(truth):
    asked = list(zip(truth["view_yaw"].tolist(), truth["view_pitch"].tolist(), strict=True))
    assert asked[:2] == [(30, 0), (-30, 0)]
    assert set(asked) == {(y, 0) for y in (-45, -30, -15, 15, 30, 45)} | {(0, 15), (0, -15)}
    axes = truth["view_camera_to_world"][:, :3, 2]
    angle = np.degrees(np.arccos(axes[:, 2]))
    np.testing.assert_allclose(angle, np.abs(asked).sum(-1), atol=1e-3)
    right, down = truth["view_camera_to_world"][:, :2, 3].T
    np.testing.assert_array_equal(np.sign(np.round(right, 3)), np.sign(truth["view_yaw"]))
    level = truth["view_pitch"] == 0
    np.testing.assert_array_equal(
        np.sign(np.round(down[~level], 3)), -np.sign(truth["view_pitch"][~level])
    )


def test_stored_depth_is_where_rays_meet_the_face(folder, truth, model):
    every = [np.eye(4), *truth["view_camera_to_world"]]
    names = ("front", *(f"view_{k}" for k in range(VIEWS)))
    for name, to_world in zip(names, every, strict=True):
        scan = np.load(folder / f"{name}.npz")
        assert scan["frames"].tolist() == [0, 10, 20]
        assert np.array_equal(np.isfinite(scan["depth"]), scan["mask"])
        vertices = world_of(model, truth, 20)
        camera = Camera(truth["intrinsics"], to_world.astype(np.float32))
        nose, _ = cameras.project(camera, vertices[model.landmarks68[27:36]])
        column, row = (nose.mean(0) * SIZE).astype(int)
        around = np.mgrid[row - 2 : row + 3, column - 2 : column + 3].reshape(2, -1)
        local = (np.stack([around[1], around[0]]).T + 0.5) / SIZE - truth["intrinsics"][2:]
        local = np.concatenate([local / truth["intrinsics"][:2], np.ones((25, 1))], -1)
        hit = nearest_hit(
            to_world[:3, 3], local @ to_world[:3, :3].T, vertices[model.triangles].astype(float)
        )
        stored = scan["depth"][2][tuple(around)]
        seen = np.isfinite(hit)  # at 45° the nose's ridge is the outline
        assert seen.mean() > 0.4 and np.mean(np.isfinite(stored) == seen) > 0.9
        error = np.abs(stored - np.where(seen, hit, 0.0))[seen & np.isfinite(stored)]
        assert np.median(error) < 0.05 and np.mean(error < 0.3) > 0.75, name
    masks = np.load(folder / "mask.npz")["mask"]
    np.testing.assert_array_equal(np.load(folder / "front.npz")["mask"], masks[::10])


@pytest.mark.parametrize("prior", ["procedural", "ict"])
def test_an_ordinary_detector_finds_the_face_and_its_mask(prior, assets, tmp_path):
    """Prepared without the truth the speaker is a person like others, whichever model it is of."""
    folder = synthetic.synthesize(tmp_path / "speaker", 1, views=0, prior=prior, size=256, seed=1)
    frames = list(video.read_frames(folder / "video.mp4"))
    found = landmarks.detect(frames)
    assert found.found.all()
    true = np.load(folder / "truth.npz")["points68"]
    error = np.linalg.norm(found.points68 - true, axis=-1)[:, 17:].mean()
    assert error < 0.12 * np.linalg.norm(true[:, 36] - true[:, 45], axis=-1).mean()
    masks = np.stack(list(matting.head_masks(frames, found.points68))) > 0.5
    known = np.load(folder / "mask.npz")["mask"]
    iou = (masks & known).sum((1, 2)) / (masks | known).sum((1, 2))
    assert iou.min() > 0.9


def test_pictures_show_the_head_where_the_truth_says(folder, truth):
    mask = np.load(folder / "mask.npz")["mask"]
    assert mask.shape == (FRAMES, SIZE, SIZE) and mask.dtype == bool
    for frame in range(0, FRAMES, 7):
        inside = truth["points68"][frame, 17:].astype(int)
        assert mask[frame][inside[:, 1], inside[:, 0]].all()
        grown = binary_dilation(mask[frame], iterations=4)
        jaw = truth["points68"][frame, :17].astype(int)
        assert grown[jaw[:, 1], jaw[:, 0]].all()
    height = mask.any(2).sum(1) / SIZE
    assert 0.5 < height.min() and height.max() < 0.66


def test_every_video_has_all_frames_and_its_sound(folder):
    audio, _, _ = synthetic.speech(FRAMES / 25, seed=3)
    for name in ("video.mp4", *(f"view_{k}.mp4" for k in range(VIEWS))):
        assert sum(1 for _ in video.read_frames(folder / name)) == FRAMES
        heard = video.read_audio(folder / name)[: len(audio)]
        assert np.corrcoef(heard, audio[: len(heard)])[0, 1] > 0.9


def test_a_view_shows_what_its_camera_sees(folder, truth, model):
    """The face's middle is skin of like colour in all views, at the projected places."""
    world = world_of(model, truth, 5)[model.landmarks68[27:31]]
    for k in np.flatnonzero(np.abs(truth["view_yaw"]) < 45):  # there the nose is the outline
        camera = Camera(truth["intrinsics"], truth["view_camera_to_world"][k])
        uv, depth = cameras.project(camera, world)
        assert (depth > 0).all()
        frame = list(video.read_frames(folder / f"view_{k}.mp4"))[5]
        column, row = (uv * SIZE).astype(int).T
        red, green, blue = frame[row, column].mean(0)
        assert red > 1.15 * green and red > 1.15 * blue


def test_nothing_is_left_behind_by_what_cannot_be_made(tmp_path):
    out = tmp_path / "speaker"
    for arguments in ({"seconds": 0.2}, {"views": 99}, {"prior": "no-such"}, {"size": 31}):
        with pytest.raises(UserError):
            synthetic.synthesize(out, **({"seconds": 1.0} | arguments))
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="exists"):
        synthetic.synthesize(out, 1.0)
