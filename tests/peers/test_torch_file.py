"""PyTorch files are read without PyTorch, and a hostile one runs nothing."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from t3d.errors import UserError
from t3d.peers import torch_file

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Stored:
    """An array on its way into a file, pickled by the names that torch uses."""

    def __init__(self, array, key, kind="FloatStorage"):
        self.array, self.key, self.kind = array, key, kind

    def __reduce__(self):
        a = self.array
        strides = tuple(s // a.itemsize for s in a.strides)
        storage = _StorageOf(self)
        arguments = (storage, 0, a.shape, strides, False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class _StorageOf:
    def __init__(self, stored):
        self.stored = stored


class _Pickler(pickle.Pickler):
    """Writes storages as torch does; `legacy` adds the old format's sixth element."""

    legacy = False

    def persistent_id(self, obj):
        if not isinstance(obj, _StorageOf):
            return None
        kind = getattr(sys.modules["torch"], obj.stored.kind)
        size = obj.stored.array.size
        return ("storage", kind, obj.stored.key, "cpu", size) + ((None,) if self.legacy else ())


@pytest.fixture
def fake_torch(monkeypatch):
    """Modules with torch's names, so that a pickle of them can be written."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "HalfStorage", "LongStorage", "BFloat16Storage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))

    def _rebuild_tensor_v2():
        raise AssertionError("reading never calls this")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def _pickled(obj, legacy=False):
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=2)
    pickler.legacy = legacy
    pickler.dump(obj)
    return stream.getvalue()


def _write_zip(path, pickled, blobs=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        for stored in blobs:
            archive.writestr(f"weights/data/{stored.key}", stored.array.tobytes(order="A"))


def _write_legacy(path, pickled, blobs):
    parts = [pickle.dumps(LEGACY_MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2), pickled]
    parts.append(pickle.dumps([s.key for s in blobs], 2))
    for stored in blobs:
        parts += [stored.array.size.to_bytes(8, "little"), stored.array.tobytes(order="A")]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def stored():
    rng = np.random.default_rng(0)
    return (
        _Stored(rng.normal(size=(4, 3, 2)).astype(np.float32), "0"),
        _Stored(np.asfortranarray(rng.normal(size=(3, 5)).astype(np.float16)), "1", "HalfStorage"),
        _Stored(np.array(7, np.int64), "2", "LongStorage"),
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_back_exactly_from_both_formats(tmp_path, fake_torch, stored, legacy):
    named = collections.OrderedDict(zip(("conv.weight", "half", "count"), stored, strict=True))
    path = tmp_path / "w.pth"
    pickled = _pickled({"state_dict": named, "epoch": 3}, legacy)
    (_write_legacy if legacy else _write_zip)(path, pickled, stored)
    found = torch_file.read(path)
    assert found["epoch"] == 3
    for name, want in named.items():
        np.testing.assert_array_equal(found["state_dict"][name], want.array)
        assert found["state_dict"][name].dtype == want.array.dtype


def test_a_file_saved_from_a_gpu_is_read(tmp_path, fake_torch, monkeypatch, stored):
    class FloatStorage:
        __module__, __qualname__ = "torch.cuda", "FloatStorage"

    cuda = types.ModuleType("torch.cuda")
    cuda.FloatStorage = FloatStorage
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    monkeypatch.setattr(sys.modules["torch"], "FloatStorage", FloatStorage)
    pickled = _pickled({"w": stored[0]}, legacy=True)
    assert b"torch.cuda" in pickled
    _write_legacy(tmp_path / "w.model", pickled, stored[:1])
    found = torch_file.state_dict(tmp_path / "w.model")
    np.testing.assert_array_equal(found["w"], stored[0].array)


def test_bfloat16_is_widened(tmp_path, fake_torch):
    want = np.array([1.0, -2.5, 0.15625], np.float32)
    raw = _Stored((want.view(np.uint32) >> 16).astype(np.uint16), "0", "BFloat16Storage")
    _write_zip(tmp_path / "w.pt", _pickled({"w": raw}), [raw])
    np.testing.assert_array_equal(torch_file.read(tmp_path / "w.pt")["w"], want)


def test_wrappings_are_taken_off(tmp_path, fake_torch, stored):
    _write_zip(tmp_path / "w.pt", _pickled({"state_dict": {"module.a": stored[0]}}), stored[:1])
    assert list(torch_file.state_dict(tmp_path / "w.pt")) == ["a"]


class _Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, legacy):
    victim, path = tmp_path / "touched", tmp_path / "evil.pth"
    pickled = pickle.dumps({"w": _Hostile(victim)}, 2)
    (_write_legacy if legacy else _write_zip)(path, pickled, [])
    with pytest.raises(UserError, match="evil.pth.*safe"):
        torch_file.read(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "os system", "torch load", "torch._utils _import_dotted_name",
     "numpy.core.multiarray _reconstruct", "collections OrderedDict.fromkeys.__globals__"],
)  # fmt: skip
def test_any_other_name_is_refused(tmp_path, name):
    path = tmp_path / "evil.pth"
    _write_zip(path, f"c{name.replace(' ', chr(10))}\n.".encode())
    with pytest.raises(UserError, match="evil.pth"):
        torch_file.read(path)


def _pickle_of_view(offset, shape, strides):
    storage = _StorageOf(_Stored(np.zeros(4, np.float32), "0"))

    class View:
        def __reduce__(self):
            rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (storage, offset, shape, strides, False, None)

    return _pickled({"w": View()})


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1, 99)),
        (0, (10**6, 10**6), (0, 0)),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, fake_torch, offset, shape, strides):
    path = tmp_path / "w.pt"
    _write_zip(path, _pickle_of_view(offset, shape, strides), [_Stored(np.zeros(4, "f4"), "0")])
    with pytest.raises(UserError, match="beyond its storage"):
        torch_file.read(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02.", b"PK\x03\x04broken"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(UserError, match="bad.pth"):
        torch_file.read(tmp_path / "bad.pth")


def test_a_truncated_file_is_refused(tmp_path, fake_torch, stored):
    path = tmp_path / "w.pth"
    _write_legacy(path, _pickled({"w": stored[0]}, legacy=True), stored[:1])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="w.pth"):
        torch_file.read(path)


def test_a_missing_file_and_one_without_tensors_are_refused(tmp_path):
    with pytest.raises(UserError, match="none.pth"):
        torch_file.read(tmp_path / "none.pth")
    _write_zip(tmp_path / "empty.pth", pickle.dumps({"epoch": 1}, 2))
    with pytest.raises(UserError, match="no named tensors"):
        torch_file.state_dict(tmp_path / "empty.pth")


def test_a_folded_layer_is_the_layer_and_its_batch_normalisation():
    rng = np.random.default_rng(0)
    kernel, bias, gain, shift, mean = (rng.normal(size=s) for s in ((3, 4), *[3] * 4))
    variance = rng.uniform(0, 1e-4, 3)  # beside which PyTorch's 1e-5 counts
    norm = {"weight": gain, "bias": shift, "running_mean": mean, "running_var": variance}
    left = {"a.0.bias": bias, "b.bias": bias, "a.1.num_batches_tracked": np.array(7)}
    left |= {f"a.1.{name}": value for name, value in norm.items()}
    folded, offset = torch_file.take_folded(left, kernel, "a.0", "a.1")
    x = rng.normal(size=(5, 4))
    want = gain * (x @ kernel.T + bias - mean) / np.sqrt(variance + 1e-5) + shift
    np.testing.assert_allclose(x @ folded.T + offset, want, rtol=1e-4, atol=1e-4)
    assert left.keys() == {"b.bias"}  # what is another layer's stays
