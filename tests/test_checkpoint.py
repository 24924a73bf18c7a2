"""Parameters and training states survive the disk, and damage is noticed."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import struct

from t3d import checkpoint
from t3d.errors import UserError
from t3d.train import sharding


@struct.dataclass
class Pair:
    first: jax.Array
    second: jax.Array


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "Dense_0": {"kernel": rng.normal(size=(30, 4)).astype(np.float32), "bias": np.zeros(4)},
        "empty": {},
        "half": jnp.arange(5, dtype=jnp.bfloat16),
        "scalar": np.float32(3),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def corrupt(file, how):
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "truncate":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def largest_data_file(folder):
    return max((f for f in folder.rglob("d/*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_params_return_from_disk_without_a_template(tmp_path):
    sha256 = checkpoint.save_params(tmp_path / "lip", params())
    loaded = checkpoint.load_params(tmp_path / "lip")
    assert_same(loaded, params())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert checkpoint.params_sha256(loaded) == sha256
    assert [p.name for p in tmp_path.iterdir()] == ["lip"]


def test_saving_again_replaces_the_params(tmp_path):
    checkpoint.save_params(tmp_path / "lip", params())
    checkpoint.save_params(tmp_path / "lip", {"w": np.ones(2)})
    assert_same(checkpoint.load_params(tmp_path / "lip"), {"w": np.ones(2)})


def test_sha256_depends_on_path_dtype_shape_and_bytes_and_on_nothing_else():
    base = checkpoint.params_sha256({"a": np.arange(6.0), "b": {"c": np.ones(2)}})
    same = [
        {"b": {"c": jnp.ones(2)}, "a": np.arange(12.0)[::2] / 2},
        {"a": np.arange(6.0), "b": {"c": np.ones(2)}, "d": {}},
    ]
    same[0]["b"]["c"] = np.asarray(same[0]["b"]["c"], np.float64)
    other = [
        {"a": np.arange(6.0), "b": {"d": np.ones(2)}},
        {"a": np.arange(6.0).astype(np.float32), "b": {"c": np.ones(2)}},
        {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.ones(2)}},
        {"a": np.nextafter(np.arange(6.0), 9), "b": {"c": np.ones(2)}},
    ]
    assert all(checkpoint.params_sha256(tree) == base for tree in same)
    assert len({base, *map(checkpoint.params_sha256, other)}) == 5
    pair = Pair(np.ones(1), np.zeros(2))
    as_dict = {"first": np.ones(1), "second": np.zeros(2)}
    assert checkpoint.params_sha256(pair) == checkpoint.params_sha256(as_dict)


def test_missing_params_name_the_folder(tmp_path):
    with pytest.raises(UserError, match="sync: no trained parameters"):
        checkpoint.load_params(tmp_path / "sync")


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("which", ["data", "_METADATA", "manifest.ocdbt"])
def test_damaged_params_are_a_user_error_of_one_line(tmp_path, how, which):
    path = tmp_path / "lip"
    checkpoint.save_params(path, params())
    corrupt(largest_data_file(path) if which == "data" else path / which, how)
    with pytest.raises(UserError, match=str(path)) as error:
        checkpoint.load_params(path)
    assert "\n" not in str(error.value)


def test_params_changed_behind_our_back_are_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "params_sha256", lambda _: "0" * 64)
    checkpoint.save_params(tmp_path / "lip", params())
    monkeypatch.undo()
    with pytest.raises(UserError, match="another than when they were saved"):
        checkpoint.load_params(tmp_path / "lip")


def test_metadata_that_claims_a_huge_array_is_refused_before_it_is_allocated(tmp_path):
    path = tmp_path / "lip"
    checkpoint.save_params(path, {"w": np.zeros((3, 4), np.float32)})
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{path}/", "path": "w/"},
    }
    huge = spec | {"metadata": {"shape": [3_000_000, 4_000_000], "dtype": "<f4"}}
    tensorstore.open(huge, create=True, delete_existing=True).result()
    with pytest.raises(UserError, match="claims 44703 GiB"):
        checkpoint.load_params(path)


def test_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        checkpoint.save_params(tmp_path / "file" / "lip", params())


def state(seed):
    return {"step": jnp.int32(seed), "params": {"w": jax.random.normal(jax.random.key(seed), (9,))}}


def template(tree):
    whole = sharding.replicated(sharding.make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def save_states(folder, steps):
    with checkpoint.StateStore(folder) as store:
        for step in steps:
            store.save(step, state(step), {"seconds": float(step)})


def test_newest_two_states_are_kept_and_the_newest_restored(tmp_path):
    save_states(tmp_path / "nerf", (1, 2, 3))
    assert sorted(p.name for p in (tmp_path / "nerf").iterdir() if p.is_dir()) == ["2", "3"]
    with checkpoint.StateStore(tmp_path / "nerf") as store:
        restored, notes = store.restore(template(state(0)))
    assert_same(restored, state(3))
    assert notes == {"seconds": 3.0}


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("which", ["data", "state/_METADATA", "notes/metadata", "state"])
def test_damaged_newest_state_is_named_and_the_one_before_it_taken(tmp_path, how, which):
    save_states(tmp_path, (1, 2))
    newest = tmp_path / "2"
    if which == "state":
        for file in [f for f in (newest / "state").rglob("*") if f.is_file()]:
            corrupt(file, how)
    else:
        corrupt(largest_data_file(newest) if which == "data" else newest / which, how)
    lines = []
    with checkpoint.StateStore(tmp_path, lines.append) as store:
        restored, notes = store.restore(template(state(0)))
        assert_same(restored, state(1))
        assert notes == {"seconds": 1.0}
        store.save(2, state(2), {"seconds": 5.0})
    assert len(lines) == 1 and str(newest) in lines[0] and "\n" not in lines[0]
    assert (tmp_path / "2.damaged").is_dir()
    with checkpoint.StateStore(tmp_path) as store:
        assert store.restore(template(state(0)))[1] == {"seconds": 5.0}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, "Stale file handle"),
        MemoryError(),
        ValueError("UNAVAILABLE: the store is busy"),
        ValueError(f"Error opening file: {os.strerror(errno.EMFILE)}"),
    ],
)
def test_what_cannot_be_read_just_now_is_left_as_it_is(tmp_path, monkeypatch, error):
    save_states(tmp_path, (1, 2))

    def fail(*args, **options):
        raise error

    with checkpoint.StateStore(tmp_path) as store:
        monkeypatch.setattr(store._manager, "restore", fail)
        with pytest.raises(UserError, match=r"2: cannot be read just now .*left as it is"):
            store.restore(template(state(0)))
    with checkpoint.StateStore(tmp_path) as store:
        assert_same(store.restore(template(state(0)))[0], state(2))


def test_a_host_lost_during_a_save_is_not_for_the_user_to_mend(tmp_path, monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo: connection closed by peer")

    def fail(tree):
        raise lost

    with checkpoint.StateStore(tmp_path) as store:
        monkeypatch.setattr(checkpoint, "fingerprint", fail)
        with pytest.raises(UserError, match="could not be saved"):
            store.save(1, state(1), {})
        monkeypatch.setattr(checkpoint.hosts, "in_job", lambda: True)
        with pytest.raises(jax.errors.JaxRuntimeError):
            store.save(1, state(1), {})


def test_state_of_another_shape_is_a_user_error_and_not_damage(tmp_path):
    save_states(tmp_path, (1,))
    other = {"step": jnp.int32(0), "params": {"w": jnp.zeros(8)}}
    with checkpoint.StateStore(tmp_path) as store, pytest.raises(UserError, match="params/w"):
        store.restore(template(other))
    assert (tmp_path / "1").is_dir()


def test_later_changes_of_the_state_do_not_reach_a_save_in_flight(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = step({"w": jnp.zeros(1 << 20)})
    with checkpoint.StateStore(tmp_path) as store:
        store.save(1, tree, {})
        for _ in range(50):
            tree = step(tree)
    with checkpoint.StateStore(tmp_path) as store:
        np.testing.assert_array_equal(store.restore(template(tree))[0]["w"], 1.0)


def test_run_json_merges_stages_and_holds_versions(tmp_path):
    assert checkpoint.read_run(tmp_path) == {}
    checkpoint.update_run(tmp_path, config={"a": 1}, stages={"sync": {"steps": 1}})
    checkpoint.update_run(tmp_path, stages={"lip": {"steps": 2}})
    record = checkpoint.read_run(tmp_path)
    assert record["config"] == {"a": 1}
    assert record["stages"] == {"sync": {"steps": 1}, "lip": {"steps": 2}}
    assert record["versions"]["jax"] == jax.__version__
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json"):
        checkpoint.read_run(tmp_path)


def test_fingerprint_sees_one_changed_element_two_swapped_ones_and_another_path_or_type():
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    changed, swapped = rows.copy(), rows.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)
    swapped[0, [0, 1]] = swapped[0, [1, 0]]
    others = [{"a": changed}, {"a": swapped}, {"b": rows}, {"a": rows.T}, {"a": rows.astype("i4")}]
    assert checkpoint.fingerprint({"a": jnp.asarray(rows)}) == checkpoint.fingerprint({"a": rows})
    assert len({checkpoint.fingerprint(tree) for tree in ({"a": rows}, *others)}) == 6


def test_state_with_another_fingerprint_is_damaged(tmp_path, monkeypatch):
    save_states(tmp_path, (1,))
    monkeypatch.setattr(checkpoint, "fingerprint", lambda _: 0)
    save_states(tmp_path, (2,))
    monkeypatch.undo()
    lines = []
    with checkpoint.StateStore(tmp_path, lines.append) as store:
        assert_same(store.restore(template(state(0)))[0], state(1))
    assert "fingerprint" in lines[0]
