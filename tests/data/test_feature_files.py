import numpy as np
import pytest

from t3d.data import feature_files
from t3d.errors import UserError


def save(path, values):
    np.save(path, values)
    return path


def test_steps_are_read_at_the_times_of_the_mel(tmp_path):
    slope = np.array([1.0, -2.0, 0.25])
    file = save(tmp_path / "a.npy", (np.arange(100)[:, None] / 50 * slope).astype(np.float16))
    found = feature_files.read(file, 50, 161)
    assert found.shape == (161, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[:158], np.arange(158)[:, None] / 80 * slope, atol=2e-3)


@pytest.mark.parametrize("steps, fits", [(91, True), (109, True), (89, False), (111, False)])
def test_a_file_may_be_a_fifth_of_a_second_off_its_sound(tmp_path, steps, fits):
    file = save(tmp_path / "a.npy", np.zeros((steps, 4)))
    if fits:
        assert len(feature_files.read(file, 50, 161)) == 161
    else:
        with pytest.raises(UserError, match=rf"{steps} steps at 50.*sound 2.00 s.*rate of"):
            feature_files.read(file, 50, 161)


def test_the_rate_that_would_fit_is_told_and_fits(tmp_path):
    file = save(tmp_path / "a.npy", np.zeros((50, 4)))
    with pytest.raises(UserError, match="a rate of 25 would fit"):
        feature_files.read(file, 50, 161)
    assert len(feature_files.read(file, 25, 161)) == 161


BAD = {
    "nan": (np.full((100, 4), np.nan), "finite"),
    "infinite": (np.full((100, 4), np.inf), "finite"),
    "batched": (np.zeros((1, 100, 4)), r"\(1, 100, 4\).*batch axis"),
    "flat": (np.zeros(100), "shape"),
    "words": (np.full((100, 4), "a"), "real numbers"),
    "complex": (np.zeros((100, 4), complex), "real numbers"),
    "objects": (np.full((100, 4), None), "cannot be read"),
    "without steps": (np.zeros((0, 4)), "shape"),
    "without features": (np.zeros((100, 0)), "shape"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_array_of_finite_numbers_by_step_is_named(tmp_path, kind):
    values, message = BAD[kind]
    with pytest.raises(UserError, match=rf"a\.npy: .*{message}"):
        feature_files.read(save(tmp_path / "a.npy", values), 50, 161)


def test_a_missing_file_another_format_and_a_cut_one_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.npy: no such feature file"):
        feature_files.read(tmp_path / "none.npy", 50, 161)
    np.savez(tmp_path / "several.npz", a=np.zeros((100, 4)))
    (tmp_path / "words.npy").write_text("0.5, 0.25\n")
    whole = save(tmp_path / "cut.npy", np.zeros((100, 4)))
    whole.write_bytes(whole.read_bytes()[:-40])
    for name in ("several.npz", "words.npy", "cut.npy"):
        with pytest.raises(UserError, match=f"{name}.*numpy.save"):
            feature_files.read(tmp_path / name, 50, 161)


def test_a_name_stands_for_the_datasets(tmp_path):
    pattern = str(tmp_path / "{name}_50.npy")
    assert feature_files.path_of(pattern, "anna") == tmp_path / "anna_50.npy"


def test_the_width_is_that_of_the_file_or_of_the_mel_and_needs_a_name(tmp_path):
    assert feature_files.width(str(save(tmp_path / "anna.npy", np.zeros((100, 24))))) == 24
    assert feature_files.width("") == 80
    with pytest.raises(UserError, match="{name}.npy: without a dataset"):
        feature_files.width(str(tmp_path / "{name}.npy"))


def test_a_moved_file_is_found_in_the_datasets_folder_and_a_changed_one_is_refused(tmp_path):
    file = save(tmp_path / "a.npy", np.zeros((100, 4)))
    entry, data = feature_files.entry(file, 50.0), tmp_path / "data"
    data.mkdir()
    assert feature_files.find(entry, data) == file
    moved = file.rename(data / "a.npy")
    assert feature_files.find(entry, data) == moved
    assert feature_files.identity(entry) == feature_files.identity(feature_files.entry(moved, 50.0))
    assert feature_files.identity(entry) != feature_files.identity(feature_files.entry(moved, 25.0))
    save(moved, np.ones((100, 4)))
    with pytest.raises(UserError, match=r"a\.npy.*changed; put them back"):
        feature_files.find(entry, data)
