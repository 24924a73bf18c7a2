import json
from types import SimpleNamespace

import numpy as np
import pytest

from t3d import checkpoint, sweep, talker
from t3d import config as configs
from t3d.errors import UserError
from t3d.train import trainer

DATA = [{"path": "d", "name": "d", "sha256": "1", "fingerprint": "f"}]


def record(*overrides, fingerprint="f"):
    config = json.loads(configs.to_json(configs.load_config("tiny", overrides)))
    return {"config": config, "data": [DATA[0] | {"fingerprint": fingerprint}], "rows": 10}


def make_run(folder, made, seed=0):
    """A folder that looks like a finished run; parameters are drawn from the seed."""
    shas = {}
    for k, name in enumerate(talker.STAGES):
        params = {"w": np.random.default_rng([seed, k]).normal(size=3)}
        shas[name] = checkpoint.save_params(folder / "params" / name, params)
        schedule = made["config"]["stages"][name]
        entry = {
            "steps": schedule["steps"],
            "seconds": 60.0,
            "sha256": shas[name],
            "settings": {
                "config": {k: v for k, v in schedule.items() if k not in trainer.SCHEDULE},
                "frozen": {need: shas[need] for need in talker.NEEDS[name]},
            },
        }
        checkpoint.update_run(folder, **made, stages={name: entry})
    return folder


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "donor", record())


@pytest.mark.parametrize(
    "overrides, adopted",
    [
        ((), talker.STAGES),
        (("space.use_au=False",), ("sync", "lip", "prior", "speech", "nerf", "au")),
        (("speech.smooth=2",), talker.STAGES),  # matters at test time only
        (("speech.inputs=entire",), ("sync", "lip", "prior", "au")),
        (("stages.nerf.steps=9",), ("sync", "lip", "prior", "speech", "au")),
        (("stages.lip.learning_rate=0.5",), ("sync", "au")),
        (("seed=1",), ()),
        (("size=64",), ()),
    ],
)
def test_a_stage_is_taken_over_only_if_nothing_it_hangs_on_differs(
    donor, tmp_path, overrides, adopted
):
    lines = []
    sweep.adopt(tmp_path / "new", record(*overrides), [donor], lines.append)
    found = checkpoint.read_run(tmp_path / "new").get("stages", {})
    assert tuple(found) == tuple(adopted) and len(lines) == len(adopted)
    for name in adopted:
        mine, theirs = (
            checkpoint.load_params(p / "params" / name) for p in (tmp_path / "new", donor)
        )
        np.testing.assert_array_equal(mine["w"], theirs["w"])
        assert found[name]["taken_from"] == str(donor)


def test_other_data_give_nothing(donor, tmp_path):
    sweep.adopt(tmp_path / "new", record(fingerprint="other"), [donor], print)
    assert not (tmp_path / "new").exists()


def test_a_stage_above_one_of_another_donor_is_not_mixed_in(donor, tmp_path):
    # The other run's sync and lip came out differently; the donor's prior hangs on the donor's lip.
    other = make_run(tmp_path / "other", record("stages.prior.steps=3"), seed=1)
    started = tmp_path / "new"
    sweep.adopt(started, record(), [other], print)
    sweep.adopt(started, record(), [donor], print)
    found = checkpoint.read_run(started)["stages"]
    assert set(found) == {"sync", "lip", "au"}
    assert {entry["taken_from"] for entry in found.values()} == {str(other)}


def test_only_what_was_trained_for_a_variant_counts_as_its_time(donor, tmp_path):
    sweep.adopt(tmp_path / "new", record("space.use_au=False"), [donor], print)
    trained = {"space": {"seconds": 90.0}}
    checkpoint.update_run(tmp_path / "new", stages=trained)
    assert sweep.trained_minutes(SimpleNamespace(folder=tmp_path / "new")) == 1.5


def test_every_ablation_is_a_config_and_a_row():
    module = configs.load_module("ablations")
    for title, rows in sweep.tables_of(module).items():
        for _, variant, paper in rows:
            assert variant in module.MEMBERS and len(paper) == len(sweep.PAPER_FIGURES), title
    made = {n: configs.load_config("ablations", changes) for n, changes in module.MEMBERS.items()}
    assert {n: (c.speech.inputs, c.space.use_au, c.space.use_global) for n, c in made.items()} == {
        "full": ("disentangled", True, True),
        "without_global": ("disentangled", True, False),
        "without_au": ("disentangled", False, True),
        "speech": ("speech", True, False),
        "entire": ("entire", True, False),
    }


def test_groups_are_read_with_and_without_names(untrained):
    path = json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    assert list(sweep.read_groups([path])) == [""]
    (group,) = sweep.read_groups([f"TestA={path}"]).items()
    assert group[0] == "TestA" and group[1][0].name == "speaker"
    with pytest.raises(UserError, match="two datasets are called speaker"):
        sweep.read_groups([path, path])
    with pytest.raises(UserError, match="no such dataset"):
        sweep.read_groups(["missing"])


def test_a_config_that_is_no_sweep_is_refused(untrained, tmp_path):
    with pytest.raises(UserError, match="MEMBERS"):
        sweep.members_of("tiny", [], {}, tmp_path)


def test_a_row_says_whether_it_differs_from_the_last_one():
    figures = {
        "a/ssim": 0.8, "a/ssim_low": 0.78, "a/ssim_high": 0.82, "b/ssim": 0.9,
        "a/against_b/ssim": -0.1, "a/against_b/ssim_separates": "yes",
        "a/lmd": 2.0, "b/lmd": 2.1, "a/against_b/lmd": -0.1, "a/against_b/lmd_separates": "yes",
        "a/mouth_r": 0.5, "b/mouth_r": 0.5, "a/against_b/mouth_r": 0.001,
        "a/against_b/mouth_r_separates": "inside the noise",
        "a/minutes": 3.0, "b/minutes": 4.0, "real/sync_confidence": 0.2, "a/lpips": "not available",
    }  # fmt: skip
    headings, (truth, first, last) = sweep.table(figures, "", (("A", "a", ()), ("B", "b", ())))
    at = {name: 1 + k for k, name in enumerate(sweep.SHOWN)}
    assert len(headings) == len(first) == len(truth) == len(last)
    assert first[at["ssim"]] == "0.800 [0.780, 0.820] ▼" and last[at["ssim"]] == "0.900"
    assert first[at["lmd"]].endswith("▲") and first[at["mouth_r"]].endswith("≈")
    assert first[at["lpips"]] == "n/a" and truth[at["sync_confidence"]] == "0.200"


def test_an_equals_sign_in_a_path_names_no_group(untrained, tmp_path):
    path = json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    (tmp_path / "lr=1").symlink_to(path, target_is_directory=True)
    assert list(sweep.read_groups([f"{tmp_path}/lr=1"])) == [""]
    assert list(sweep.read_groups([f"TestB={tmp_path}/lr=1"])) == ["TestB"]
    with pytest.raises(UserError, match="empty"):
        sweep.read_groups([f"{path},"])


def test_a_table_of_an_unknown_variant_is_refused_before_anything_is_trained():
    module = SimpleNamespace(
        __file__="two.py", MEMBERS={"a": ()}, TABLES={"T": (("B", "b", ()), ("A", "a", ()))}
    )
    with pytest.raises(UserError, match="row of b"):
        sweep.tables_of(module)


def test_a_stage_trained_before_what_it_hangs_on_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", record())
    member = SimpleNamespace(folder=folder, config=configs.load_config("tiny"))
    sweep._check_whole(member)
    entry = checkpoint.read_run(folder)["stages"]["lip"] | {"sha256": "another"}
    checkpoint.update_run(folder, stages={"lip": entry})
    with pytest.raises(UserError, match="stage prior"):
        sweep._check_whole(member)
