"""The synthetic speaker: its voice moves its mouth, and its truth is true."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from t3d import camera as cameras
from t3d.camera import Camera
from t3d.data import synthetic, video
from t3d.errors import UserError
from t3d.metrics.lips import mouth_opening
from t3d.prior import basis, morphable

FRAMES, SIZE, VIEWS = 30, 96, 2


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
    every = model.mean + np.einsum("k,kvd->vd", truth["identity"], model.identity_basis)
    for frame in (0, FRAMES - 1):
        moved = every + np.einsum("k,kvd->vd", truth["expression"][frame], model.expression_basis)
        turn = cameras.rotation_matrix(truth["rotvec"][frame]) @ np.diag([1.0, -1.0, -1.0])
        world = moved @ turn.T + truth["translation"][frame]
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
    nose = morphable.vertices(
        morphable.restrict(model, model.landmarks68[27:31]),
        truth["identity"],
        truth["expression"][5],
    )
    world = cameras.transform(cameras.head_pose(truth["rotvec"][5], truth["translation"][5]), nose)
    for k, matrix in enumerate(truth["view_camera_to_world"]):
        uv, depth = cameras.project(Camera(truth["intrinsics"], matrix), world)
        assert (depth > 0).all()
        frame = list(video.read_frames(folder / f"view_{k}.mp4"))[5]
        column, row = (uv * SIZE).astype(int).T
        red, green, blue = frame[row, column].astype(float).T
        assert (red > green).all() and (red > blue).all()


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
