"""Public PyTorch checkpoints become ours, and a bad or hostile file makes nothing."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from t3d import cli, convert, judges
from t3d.errors import UserError
from t3d.peers import headnerf, syncnet, wav2lip

GOLDEN = {
    "wav2lip": ("wav2lip_generator", wav2lip.generator_from_state),
    "sync-expert": ("wav2lip_syncnet_color", wav2lip.expert_from_state),
    "syncnet-v2": ("syncnet_python_model", syncnet.from_state),
    "headnerf": ("headnerf_grad", headnerf.from_state),
}


def save(path, state, wrapped=True):
    """Writes a file as torch.save does; Wav2Lip's training wraps the tensors and their names."""
    prefix = "module." if wrapped else ""
    tensors = "".join(f"V{prefix}{name}\n{_pickled(k, a)}" for k, (name, a) in _counted(state))
    words = f"(Vstate_dict\n({tensors}dVglobal_step\nI7\nd." if wrapped else f"({tensors}d."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", words)
        for key, (_, array) in _counted(state):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def _counted(state):
    return enumerate(state.items())


def _pickled(key, array):
    """The words that stand for a contiguous tensor in a pickle, whose bytes lie elsewhere."""
    kind = {"f": "FloatStorage", "i": "LongStorage"}[array.dtype.kind]
    shape = "".join(f"I{n}\n" for n in array.shape)
    strides = "".join(f"I{n // array.itemsize}\n" for n in array.strides)
    storage = f"(Vstorage\nctorch\n{kind}\nV{key}\nVcpu\nI{array.size}\ntQ"
    arguments = f"({storage}I0\n({shape}t({strides}tI00\nccollections\nOrderedDict\n(tRt"
    return f"ctorch._utils\n_rebuild_tensor_v2\n{arguments}R"


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Runs `t3d convert` in an empty folder: (exit code, lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(["convert", *map(str, arguments)])
        return code, capfd.readouterr().err.splitlines()

    return call


def complains(result, *words):
    code, lines = result
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("t3d: error: "), lines
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def converted(golden, golden_weights, tmp_path_factory):
    """A folder of converted weights, the smallest kind."""
    folder = tmp_path_factory.mktemp("converted")
    state = golden_weights.from_fixture(golden("syncnet_python_model"))
    path = save(folder / "syncnet_v2.model", state, wrapped=False)
    convert.convert("syncnet-v2", path, folder / "ours")
    return folder / "ours"


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_checkpoint_becomes_the_weights_of_its_network(run, golden, golden_weights, kind):
    name, from_state = GOLDEN[kind]
    state = golden_weights.from_fixture(golden(name))
    path = save(Path("public.pth"), state, wrapped=kind != "syncnet-v2")
    assert run(kind, path, "--out", "deep/ours")[0] == 0
    assert sorted(os.listdir()) == ["deep", "public.pth"] and os.listdir("deep") == ["ours"]
    found, want = convert.load("deep/ours", kind), from_state(state)
    assert found.keys() == want.keys()
    for key in want:
        np.testing.assert_array_equal(found[key], want[key])
    about = json.loads(Path("deep/ours/weights.json").read_text())
    assert about["kind"] == kind and about["source"] == "public.pth" and about["licence"]
    assert about["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_kind_is_tested_and_known_to_the_command_line(run):
    assert GOLDEN.keys() == convert.KINDS.keys()
    complains(run("wav2lipp", "x.pth", "--out", "ours"), "did you mean wav2lip?", *GOLDEN)


def test_a_hostile_file_is_refused_and_runs_nothing(run):
    hostile = b"(Vstate_dict\ncos\nsystem\n(Vtouch touched\ntRd."
    pickle.loads(hostile)
    os.remove("touched")  # that is what it does to the credulous
    path = Path("evil.pth")
    path.write_bytes(hostile)
    complains(run("wav2lip", path, "--out", "ours"), "evil.pth", "safe", "os.system")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile)
    complains(run("wav2lip", path, "--out", "ours"), "evil.pth", "safe", "os.system")
    assert os.listdir() == ["evil.pth"]


def test_a_file_that_is_none_or_not_whole_is_named(run, tmp_path):
    complains(run("sync-expert", "none.pth", "--out", "ours"), "none.pth", "No such file")
    path = save(tmp_path / "cut.pth", {"a": np.zeros(99, np.float32)})
    whole = path.read_bytes()
    for content in (b"a film", b"", whole[:-30], whole[:300]):
        path.write_bytes(content)
        complains(run("sync-expert", path, "--out", "ours"), "cut.pth", "state dict")
    assert os.listdir() == ["cut.pth"]


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("wav2lip", "audio_encoder.0.conv_block.0.weight", "wav2lip_gan.pth"),
        ("sync-expert", "audio_encoder.0.conv_block.0.weight", "lipsync_expert.pth"),
        ("syncnet-v2", "netcnnlip.0.weight", "syncnet_v2.model"),
    ],
)
def test_another_networks_file_is_told_what_was_expected(run, tmp_path, kind, name, file):
    other = {"conv1.weight": np.zeros((2, 2), np.float32)}
    path = save(tmp_path / "other.pth", other)
    complains(run(kind, path, "--out", "ours"), f"other.pth: no {name}", kind, file)
    save(path, {name: np.zeros((2, 2), np.float32)})
    complains(run(kind, path, "--out", "ours"), f"other.pth: {name} is (2, 2), not (", kind, file)
    assert os.listdir() == ["other.pth"]


def test_what_is_there_is_kept_unless_forced(run, converted):
    path = converted.parent / "syncnet_v2.model"
    shutil.copytree(converted, "ours")
    before = Path("ours/weights.json").stat().st_mtime_ns
    complains(run("syncnet-v2", path, "--out", "ours"), "ours", "--force")
    assert Path("ours/weights.json").stat().st_mtime_ns == before
    assert run("syncnet-v2", path, "--out", "ours", "--force")[0] == 0
    assert Path("ours/weights.json").stat().st_mtime_ns > before
    assert convert.load("ours", "syncnet-v2") and os.listdir() == ["ours"]


def test_other_peoples_files_are_never_replaced(run, converted, tmp_path):
    path = converted.parent / "syncnet_v2.model"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    complains(run("syncnet-v2", path, "--out", "notes", "--force"), "notes", "other files")
    complains(run("syncnet-v2", path, "--out", "notes/a.txt"), "a.txt", "is a file")
    shutil.copytree(converted, "both")
    shutil.copy(path, "both")  # where it was downloaded to
    (tmp_path / "notes" / "weights.json").write_text("{}")
    for place in ("both", "notes"):
        complains(run("syncnet-v2", path, "--out", place, "--force"), place, "other files")
    assert Path("both", path.name).exists() and Path("notes/a.txt").exists()
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_weights(run, converted, monkeypatch):
    shutil.copytree(converted, "ours")

    def fill(path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(convert.np, "savez", fill)
    path = converted.parent / "syncnet_v2.model"
    complains(run("syncnet-v2", path, "--out", "ours", "--force"), "no space left")
    assert convert.load("ours", "syncnet-v2") and os.listdir() == ["ours"]


def test_weights_that_are_not_as_they_were_written_are_refused(converted, tmp_path):
    with pytest.raises(UserError, match="none.*t3d convert wav2lip"):
        convert.load(tmp_path / "none", "wav2lip")
    with pytest.raises(UserError, match="ours.*syncnet-v2, not wav2lip.*t3d convert wav2lip"):
        convert.load(converted, "wav2lip")
    ours = tmp_path / "ours"
    shutil.copytree(converted, ours)
    blob = bytearray((ours / "weights.npz").read_bytes())
    blob[len(blob) // 2] ^= 1
    for content in (blob, blob[: len(blob) // 2], b""):
        (ours / "weights.npz").write_bytes(content)
        with pytest.raises(UserError, match="ours: cannot be read.*t3d convert syncnet-v2"):
            convert.load(ours, "syncnet-v2")
    np.savez(ours / "weights.npz", other=np.zeros(3))
    with pytest.raises(UserError, match="ours: not the weights that were written"):
        convert.load(ours, "syncnet-v2")
    for content in ("{}", "[]", "no json"):
        (ours / "weights.json").write_text(content)
        with pytest.raises(UserError, match="ours: cannot be read"):
            convert.load(ours, "syncnet-v2")


@pytest.mark.parametrize(
    ("kind", "made"), [("syncnet-v2", judges.of_public), ("sync-expert", judges.of_expert)]
)
def test_a_converted_network_is_the_judge_of_its_folder(
    golden, golden_weights, tmp_path, kind, made
):
    name, from_state = GOLDEN[kind]
    state = golden_weights.from_fixture(golden(name))
    convert.convert(kind, save(tmp_path / "public.pth", state), tmp_path / "ours")
    found, wanted = judges.of_folder(tmp_path / "ours"), made(from_state(state))
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8), np.full((6, 3), 0.5)
    sound, starts = rng.normal(0, 0.1, 16000), np.array([0, 1])
    np.testing.assert_array_equal(found.look(*film, starts), wanted.look(*film, starts))
    np.testing.assert_array_equal(found.hear(sound, starts), wanted.hear(sound, starts))
    assert wanted.name in found.name and str(tmp_path / "ours") in found.name


def test_a_folder_without_a_judge_is_refused(converted, tmp_path, capfd):
    ours = tmp_path / "ours"
    given = ["--pred", "a.mp4", "--truth", "b.mp4", "--judge", str(ours)]
    shutil.copytree(converted, ours)
    about = json.loads((ours / "weights.json").read_text())
    for text, words in (
        (json.dumps(about | {"kind": "wav2lip"}), "ours: holds wav2lip, not syncnet-v2"),
        ("no json", "weights.json: cannot be read"),
    ):
        (ours / "weights.json").write_text(text)
        code = cli.main(["evaluate", *given])
        complains((code, capfd.readouterr().err.splitlines()), words)
    (ours / "weights.json").unlink()
    with pytest.raises(UserError, match="ours: no run"):
        judges.of_folder(ours)
