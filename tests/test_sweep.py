import csv
import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from t3d import (
    checkpoint,
    cli,
    evaluate,
    measure,
    plots,
    population,
    sweep,
    sweep_members,
    sweep_results,
    talker,
)
from t3d import config as configs
from t3d import run as runs
from t3d.errors import UserError
from t3d.train import trainer
from t3d.train.writers import NotFinite

DATA = [{"path": "d", "name": "d", "sha256": "1", "fingerprint": "f"}]


def record(*overrides, **data):
    config = json.loads(configs.to_json(configs.load_config("tiny", overrides)))
    return {"config": config, "data": [DATA[0] | data], "rows": 10}


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


def test_what_hears_features_is_taken_over_only_from_a_run_that_heard_the_same(tmp_path):
    heard = {"path": "a.npy", "sha256": "1", "rate": 50.0}
    donor = make_run(tmp_path / "heard", record(features=heard))
    taken = {}
    for name, features in {
        "moved": heard | {"path": "b.npy"},
        "other file": heard | {"sha256": "2"},
        "other rate": heard | {"rate": 25.0},
        "mel": None,
    }.items():
        sweep.adopt(tmp_path / name, record(features=features), [donor], print)
        taken[name] = tuple(checkpoint.read_run(tmp_path / name)["stages"])
    assert taken.pop("moved") == talker.STAGES
    assert set(taken.values()) == {("sync", "au")}


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
    assert sweep_results.trained_minutes(SimpleNamespace(folder=tmp_path / "new")) == 1.5


def test_every_ablation_is_a_config_and_a_row():
    module = configs.load_module("ablations")
    for title, rows in sweep_members.tables_of(module).items():
        for _, variant, paper in rows:
            assert variant in module.MEMBERS and len(paper) == len(sweep_results.PAPER_FIGURES), (
                title
            )
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
    assert list(sweep_members.read_groups([path])) == [""]
    (group,) = sweep_members.read_groups([f"TestA={path}"]).items()
    assert group[0] == "TestA" and group[1][0].name == "speaker"
    with pytest.raises(UserError, match="two datasets are called speaker"):
        sweep_members.read_groups([path, path])
    with pytest.raises(UserError, match="no such dataset"):
        sweep_members.read_groups(["missing"])


def test_a_config_that_is_no_sweep_is_refused(untrained, tmp_path):
    with pytest.raises(UserError, match="MEMBERS"):
        sweep_members.members_of("tiny", [], {}, tmp_path)


def test_a_row_says_whether_it_differs_from_the_last_one():
    figures = {
        "a/ssim": 0.8, "a/ssim_low": 0.78, "a/ssim_high": 0.82, "b/ssim": 0.9,
        "a/against_b/ssim": -0.1, "a/against_b/ssim_separates": "yes",
        "a/lmd": 2.0, "b/lmd": 2.1, "a/against_b/lmd": -0.1, "a/against_b/lmd_separates": "yes",
        "a/mouth_r": 0.5, "b/mouth_r": 0.5, "a/against_b/mouth_r": 0.001,
        "a/against_b/mouth_r_separates": "inside the noise",
        "a/minutes": 3.0, "b/minutes": 4.0, "real/sync_confidence": 0.2, "a/lpips": "not available",
    }  # fmt: skip
    headings, (truth, first, last) = sweep_results.table(
        figures, "", (("A", "a", ()), ("B", "b", ()))
    )
    at = {name: 1 + k for k, name in enumerate(sweep_results.SHOWN)}
    assert len(headings) == len(first) == len(truth) == len(last)
    assert first[at["ssim"]] == "0.800 [0.780, 0.820] ▼" and last[at["ssim"]] == "0.900"
    assert first[at["lmd"]].endswith("▲") and first[at["mouth_r"]].endswith("≈")
    assert first[at["lpips"]] == "n/a" and truth[at["sync_confidence"]] == "0.200"


def test_an_equals_sign_in_a_path_names_no_group(untrained, tmp_path):
    path = json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    (tmp_path / "lr=1").symlink_to(path, target_is_directory=True)
    assert list(sweep_members.read_groups([f"{tmp_path}/lr=1"])) == [""]
    assert list(sweep_members.read_groups([f"TestB={tmp_path}/lr=1"])) == ["TestB"]
    with pytest.raises(UserError, match="empty"):
        sweep_members.read_groups([f"{path},"])


def test_a_table_of_an_unknown_variant_is_refused_before_anything_is_trained():
    module = SimpleNamespace(
        __file__="two.py", MEMBERS={"a": ()}, TABLES={"T": (("B", "b", ()), ("A", "a", ()))}
    )
    with pytest.raises(UserError, match="row of b"):
        sweep_members.tables_of(module)


def test_a_stage_trained_before_what_it_hangs_on_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", record())
    member = SimpleNamespace(folder=folder, config=configs.load_config("tiny"))
    sweep._check_whole(member)
    entry = checkpoint.read_run(folder)["stages"]["lip"] | {"sha256": "another"}
    checkpoint.update_run(folder, stages={"lip": entry})
    with pytest.raises(UserError, match="stage prior"):
        sweep._check_whole(member)


@pytest.mark.parametrize(
    "overrides, left", [((), 0), (("stages.lip.steps=101",), 1), (("speech.smooth=2",), 1)]
)
def test_only_what_is_not_finished_is_to_be_trained(tmp_path, overrides, left):
    folder = make_run(tmp_path / "run", record())
    member = SimpleNamespace(folder=folder, config=configs.load_config("tiny", overrides))
    assert sweep.untrained([member]) == [member]  # its speaker is not yet written
    (folder / "speaker_0.npz").touch()
    assert sweep.untrained([member]) == [member] * left


def test_a_stage_that_is_not_whole_is_taken_from_the_next_donor(donor, tmp_path):
    half = make_run(tmp_path / "half", record())
    written = [path for path in (half / "params" / "lip").rglob("*") if path.is_file()]
    for path in written[len(written) // 2 :]:
        path.unlink()
    (half / "params" / "au" / "late").touch()  # what another process still writes does no harm
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    lines = []
    sweep.adopt(tmp_path / "new", record(), [tmp_path / "bad", half, donor], lines.append)
    found = checkpoint.read_run(tmp_path / "new")["stages"]
    assert {name for name, entry in found.items() if entry["taken_from"] == str(donor)} == {"lip"}
    assert len(found) == len(talker.STAGES) and any("lip: is not whole" in line for line in lines)
    params = checkpoint.load_params(tmp_path / "new" / "params" / "lip")
    assert checkpoint.params_sha256(params) == found["lip"]["sha256"]
    assert not list((tmp_path / "new" / "params").glob("*.new"))


# ---- variants, their names and rows


def module(**entries):
    return SimpleNamespace(__file__="sweep.py", **entries)


def rows_of(entries, seeds=None):
    return {v.name: v.row for v in sweep_members.variants_of(entries, seeds)}


def test_product_varies_the_last_key_fastest():
    made = configs.product({"a.b": (1, 2), "seed": range(2)})
    assert made == [{"a.b": a, "seed": s} for a in (1, 2) for s in (0, 1)]


@pytest.mark.parametrize("name", ["learning_rate", "seeds"])
def test_the_sweeps_that_come_with_t3d_fit_their_configs(name):
    sweep_file = configs.load_module(f"sweeps/{name}")
    variants = sweep_members.variants_of(sweep_file)
    made = [configs.load_config(f"sweeps/{name}", variant.changes) for variant in variants]
    for config, changes in zip(made, sweep_file.sweep(), strict=True):
        for key, value in changes.items():
            assert configs.to_json(config) and dict(configs.flatten(config))[key] == value
    (table,) = sweep_members.tables_of(sweep_file).values()
    assert len(made) == len({v.name for v in variants}) > len(table)
    plain = configs.load_config(f"sweeps/{name}")
    reference = next(c for v, c in zip(variants, made) if v.row == table[-1][1])
    assert reference.stages == plain.stages and reference.seed == plain.seed


@pytest.mark.parametrize(
    "name", ["ablations", "sweeps/fields", "sweeps/learning_rate", "sweeps/seeds"]
)
def test_every_variant_that_comes_with_t3d_can_be_trained(name):
    for variant in sweep_members.variants_of(configs.load_module(name)):
        runs.check_config(configs.load_config(name, variant.changes))


def test_variants_are_named_by_what_they_change_and_rows_leave_the_seed_out():
    changes = configs.product({"stages.nerf.learning_rate": (2e-3, 1e-2), "seed": (0, 1)})
    assert rows_of(module(sweep=lambda: changes)) == {
        "learning_rate=0.002,seed=0": "learning_rate=0.002",
        "learning_rate=0.002,seed=1": "learning_rate=0.002",
        "learning_rate=0.01,seed=0": "learning_rate=0.01",
        "learning_rate=0.01,seed=1": "learning_rate=0.01",
    }
    assert set(rows_of(module(sweep=lambda: [{"seed": 3}, {"seed": 5}])).values()) == {"any seed"}


def test_keys_are_as_short_as_they_can_be_told_apart():
    changes = [{"stages.nerf.learning_rate": 1e-3, "stages.space.learning_rate": 1.0, "size": 64}]
    (name,) = rows_of(module(sweep=lambda: changes))
    assert name == "nerf.learning_rate=0.001,space.learning_rate=1.0,size=64"


def test_names_are_unique_and_legal_folders(tmp_path):
    values = [(16, 64), "a/b c", "a b/c", "..", -1, 1, "n" * 300, "n" * 300 + "m", {"k": "é*?"}]
    names = list(rows_of(module(sweep=lambda: [{"x": value} for value in values] + [{}])))
    assert len(names) == len(set(names)) == len(values) + 1 and "default" in names
    for name in names:
        (tmp_path / name).mkdir()
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_variants_that_differ_in_the_seed_only_are_a_row_by_hand_too():
    members = {"a": (), "again": ("seed=1",), "other": ("size=64",)}
    assert rows_of(module(MEMBERS=members)) == {
        "a": "a, any seed",
        "again": "a, any seed",
        "other": "other",
    }


def test_seeds_multiply_every_variant_and_keep_the_rows_of_the_tables():
    ablations = configs.load_module("ablations")
    rows = rows_of(ablations, seeds=3)
    assert list(rows)[:3] == ["full,seed=0", "full,seed=1", "full,seed=2"]
    assert set(rows.values()) == set(ablations.MEMBERS) and len(rows) == 15
    for lines in sweep_members.tables_of(ablations).values():
        assert {row for _, row, _ in lines} <= set(rows.values())
    with pytest.raises(UserError, match="seeds of its own"):
        rows_of(configs.load_module("sweeps/seeds"), seeds=3)


def test_a_sweep_that_yields_the_same_twice_is_refused():
    with pytest.raises(UserError, match="size=64 twice"):
        rows_of(module(sweep=lambda: [{"size": 64}, {"seed": 1}, {"size": 64}]))
    with pytest.raises(UserError, match="is no sweep"):
        rows_of(module(sweep=lambda: [{"size": 64}], MEMBERS={"a": ()}))


def test_a_seed_on_the_command_line_that_makes_members_alike_is_refused(untrained, tmp_path):
    data = checkpoint.read_run(untrained.workdir)["data"][0]["path"]
    groups = sweep_members.read_groups([data])
    with pytest.raises(UserError, match="leave --config.seed out"):
        sweep_members.members_of("sweeps/seeds", ["seed=4"], groups, tmp_path)
    first, *_ = sweep_members.members_of("ablations", ["seed=4"], groups, tmp_path)
    assert first.config.seed == 4


# ---- several trainings in one row


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(5.0, 2.0, (4000, 3))
    inside = 0
    for values in draws:
        mean, low, high = sweep_results.mean_interval(values)
        assert mean == pytest.approx(values.mean())
        inside += low <= 5.0 <= high
    assert abs(inside / len(draws) - 0.95) < 0.012  # 3.5 standard errors


def test_rows_are_compared_seed_by_seed_like_scipys_paired_test():
    rng = np.random.default_rng(1)
    ours, others = ({s: float(rng.normal()) for s in range(4)} for _ in range(2))
    paired = sweep_results.compare_by_seed(ours | {9: 1e9}, others | {8: -1e9})
    test = stats.ttest_rel(list(ours.values()), list(others.values()))
    expected = test.confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high))
    assert paired.separates == (test.pvalue < 0.05)
    assert sweep_results.compare_by_seed({0: 1.0, 1: 2.0}, {1: 1.0, 2: 5.0}) is None


FRAMES = 50


def drawn_series(level, rng):
    """What an evaluation might have measured, with all figures near `level` of their best."""
    near = {
        key: rng.normal(level, 0.02, FRAMES)
        for key in ("ssim", "ssim_head", "lmd", "lmd_px", "jitter", "pose_jitter", "sharpness")
    }
    true = {f"true_{key}": np.ones(FRAMES) for key in ("jitter", "pose_jitter", "sharpness")}
    opening = rng.normal(0, 1, FRAMES)
    shown = rng.random((FRAMES, 5)) < 0.5
    return near | true | {
        "psnr": 30 * near["ssim"],
        "psnr_head": 30 * near["ssim"],
        "lpips": np.array("not available: no weights"),
        "true_opening": opening,
        "opening": level * opening + rng.normal(0, 0.3, FRAMES),
        "clip": np.zeros(FRAMES),
        "found": np.ones(FRAMES),
        "au": (shown ^ (rng.random(shown.shape) < 0.2)).astype(float),
        "true_au": shown.astype(float),
        "sync": rng.normal(1, 0.1, (FRAMES, 31)) - 0.5 * np.eye(31)[15],
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Members as they are when measured: two rows of three seeds, and one of a single training."""
    folder, rng = tmp_path_factory.mktemp("measured"), np.random.default_rng(2)
    members = []
    levels = {"full": (0.90, 0.92, 0.91), "bad": (0.70, 0.72, 0.71), "once": (0.8,)}
    for row, means in levels.items():
        for seed, level in enumerate(means):
            variant = f"{row},seed={seed}" if len(means) > 1 else row
            path = folder / variant
            checkpoint.update_run(path, stages={"nerf": {"seconds": 60.0 * (seed + 1)}})
            systems = {name: drawn_series(level, rng) for name in ("ours", "real")}
            measure.save_series(path / evaluate.SERIES, systems, np.arange(FRAMES))
            evaluate.write_json(path / "metrics.json", {"judge/name": f"trained in {path}"})
            speaker, config = SimpleNamespace(name="anna"), SimpleNamespace(seed=seed)
            members.append(sweep_members.Member(variant, row, "", speaker, config, path))
    return members


TABLES = {"T": (("Once", "once", ()), ("Bad", "bad", ()), ("Full", "full", ()))}


@pytest.fixture(scope="module")
def figures(measured):
    return sweep_results.figures_of(measured, TABLES)


def single(member, name):
    series, _, _ = measure.load_series(member.folder / evaluate.SERIES)
    return measure.figures(series["ours"])[name]


def test_a_row_of_several_trainings_holds_their_mean_and_students_interval(measured, figures):
    for name in ("ssim", "lmd", "mouth_r", "sync_confidence", "au_accuracy"):
        values = [single(member, name) for member in measured[:3]]
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert figures[f"full/{name}"] == pytest.approx(np.mean(values))
        ends = figures[f"full/{name}_low"], figures[f"full/{name}_high"]
        assert ends == pytest.approx((expected.low, expected.high))
        assert figures[f"full,seed=1/{name}"] == values[1]  # every member stays
    assert figures["full/lpips"] == "not available: no weights"
    assert figures["full/trainings"] == 3 and figures["full/minutes"] == pytest.approx(2.0)


def test_a_row_of_one_training_keeps_the_interval_over_its_frames(measured, figures):
    series, _, _ = measure.load_series(measured[-1].folder / evaluate.SERIES)
    own = measure.figures(series["ours"])
    assert all(figures[f"once/{name}"] == value for name, value in own.items())
    assert figures["once/trainings"] == 1


def test_rows_are_marked_over_trainings_and_not_at_all_where_seeds_are_missing(measured, figures):
    bad, full = ([single(m, "ssim") for m in measured[a : a + 3]] for a in (3, 0))
    expected = stats.ttest_rel(bad, full).confidence_interval(0.95)
    ends = figures["bad/against_full/ssim_low"], figures["bad/against_full/ssim_high"]
    assert ends == pytest.approx((expected.low, expected.high))
    headings, (_, once, worse, reference) = sweep_results.table(figures, "", TABLES["T"])
    ssim, trainings = 1 + sweep_results.SHOWN.index("ssim"), headings.index("trainings")
    assert worse[ssim].endswith("▼") and once[ssim].endswith("]")
    assert [line[trainings] for line in (once, worse, reference)] == ["1", "3", "3"]
    assert not any("/against_full" in key for key in figures if key.startswith("once/"))


def test_the_notes_say_over_what_the_intervals_are(measured, figures):
    several = sweep_results.notes(figures, measured)
    assert "over trainings" in several[0] and any("a judge of its own" in n for n in several)
    alone = sweep_results.figures_of(measured[-1:], {})
    (first, *_) = sweep_results.notes(alone, measured[-1:])
    assert "one training each" in first
    headings, _ = sweep_results.table(alone, "", (("Once", "once", ()),))
    assert "trainings" not in headings


def test_the_csv_has_every_member(measured, figures):
    lines = list(csv.DictReader(io.StringIO(sweep_results.comma_separated(figures, measured))))
    ssim = {
        (row["variant"], row["row"], row["seed"]): row for row in lines if row["figure"] == "ssim"
    }
    assert set(ssim) == {(m.variant, m.row, str(m.config.seed)) for m in measured}
    assert float(ssim["bad,seed=2", "bad", "2"]["value"]) == single(measured[5], "ssim")


def test_a_row_that_no_member_has_finished_is_shown_as_missing(measured):
    figures = sweep_results.figures_of(measured[:3], TABLES)
    _, (_, _, bad, full) = sweep_results.table(figures, "", TABLES["T"])
    assert set(bad[1:]) == {"n/a", sweep_results.NO_FIGURE} and "n/a" not in full[1]


def test_the_picture_shows_rows_with_intervals_and_single_trainings(measured, figures):
    picture = Image.open(io.BytesIO(sweep_results.picture(figures, [""], measured)))
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = np.array([int(plots.COLOURS[1][k : k + 2], 16) for k in (1, 3, 5)])
    assert picture.width > 1000 and (pixels == blue).all(1).sum() > 500
    drawn = sweep_results._whiskers(figures, "", "ssim", measured)
    assert list(drawn) == ["full", "bad", "once"] and len(drawn["bad"].singles) == 3
    assert drawn["once"].singles == () and drawn["bad"].low == figures["bad/ssim_low"]
    assert not sweep_results._whiskers(figures, "", "lpips", measured)


def test_a_member_whose_loss_is_not_finite_stops_no_other(tmp_path, monkeypatch):
    members = [SimpleNamespace(folder=tmp_path / name) for name in ("a", "b", "c")]

    def train_member(member, donors, log):
        if member.folder.name == "b":
            raise NotFinite("stage nerf: the loss was not finite 10 times")
        (member.folder / "done").touch()

    monkeypatch.setattr(sweep, "_check", lambda member: None)
    monkeypatch.setattr(sweep, "untrained", lambda members: members)
    monkeypatch.setattr(sweep, "train_member", train_member)
    monkeypatch.setattr(sweep, "_is_trained", lambda member: (member.folder / "done").exists())
    checked = []
    monkeypatch.setattr(sweep, "_check_whole", checked.append)
    lines = []
    sweep.train_all(members, None, lines.append)
    assert checked == [members[0], members[2]]
    assert "loss was not finite" in (tmp_path / "b" / sweep.FAILURE).read_text()
    assert not (tmp_path / "c" / sweep.FAILURE).exists()
    assert any("failed: NotFinite: stage nerf" in line for line in lines)


def test_a_population_goes_on_without_a_member_whose_loss_is_not_finite(tmp_path, monkeypatch):
    finished = {}

    class Member:
        def __init__(self, name):
            self.workdir, self.config = tmp_path / name, configs.load_config("tiny")

        def is_finished(self, stage):
            return stage in finished.get(self, ())

    def train_stage(group, name, *_):
        for member in group:
            if (member.workdir.name, name) != ("b", "speech"):
                finished.setdefault(member, set()).add(name)

    monkeypatch.setattr(population, "_alike", lambda waiting, name: [waiting] if waiting else [])
    monkeypatch.setattr(population, "_train_stage", train_stage)
    a, b = Member("a"), Member("b")
    lost = population.train([a, b], tmp_path, lambda *_: None, lambda line: None)
    assert "not finite" in lost[b.workdir]
    assert list(lost) == [b.workdir] and "stage speech" in lost[b.workdir]
    assert finished[a] == set(talker.STAGES) and "nerf" not in finished[b]


def test_a_sweep_with_a_failed_member_has_its_tables_and_an_error(monkeypatch, tmp_path, capsys):
    members, told = ["one", "two"], []
    monkeypatch.setattr(sweep, "read_groups", lambda data: {})
    monkeypatch.setattr(sweep, "members_of", lambda *_: members)
    monkeypatch.setattr(sweep, "train_all", lambda *_: None)
    monkeypatch.setattr(sweep, "_is_trained", lambda member: member == "one")
    monkeypatch.setattr(sweep, "measure_all", lambda members: told.append(("measured", members)))
    monkeypatch.setattr(sweep, "collect", lambda members: (["one"], "1 of 2 members are missing"))
    monkeypatch.setattr(sweep, "report", lambda args, members, *_: told.append(members))
    command = ["sweep", "--config", "sweeps/seeds", "--data", "x", "--out", str(tmp_path)]
    assert cli.main(command) == 2
    assert told == [("measured", ["one"]), ["one"]]
    assert "1 of 2 members are missing" in capsys.readouterr().err


def test_a_stage_that_needs_more_steps_is_taken_over_from_who_has_them(tmp_path):
    made = record()
    short, long = (make_run(tmp_path / name, made) for name in ("short", "long"))
    more = record("stages.lip.steps=120")
    entry = checkpoint.read_run(long)["stages"]["lip"] | {"steps": 120}
    checkpoint.update_run(long, config=more["config"], stages={"lip": entry})
    lines = []
    sweep.adopt(short, more, [long], lines.append)
    assert any(line.startswith("lip: taken from") for line in lines)
    assert checkpoint.read_run(short)["stages"]["lip"]["steps"] == 120
