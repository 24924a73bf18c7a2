"""A population gives the numbers of separate runs, and trains alike stages once."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from t3d import checkpoint, config, population, run, talker
from t3d.data.prepare import prepare
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.data.synthetic import synthesize
from t3d.errors import UserError
from t3d.train import sharding, trainer

TOLERANCE = 1e-4
# Rounding grows: at the rate 0.02 of one member its parameters are 2e-7 apart after one step, 2e-5
# after 4, 1e-4 after 8, 2e-2 after 20 (what Adam makes of gradients that are next to nothing).
STEPS = 4
# How much of its way one element may be off: on an old CPU a bias was, by 1 % (3e-3 of the tensor).
OF_A_STEP = 0.02


@pytest.fixture(scope="module")
def other_speaker(tmp_path_factory):
    """Another speaker, of another length."""
    folder = tmp_path_factory.mktemp("other")
    synthesize(folder / "speaker", 3, views=0, size=64, seed=5)
    prepare(folder / "speaker", folder / "other", size=64)
    return SpeakerDataset(folder / "other")


@pytest.fixture
def learner(ready, data, tmp_path):
    """Makes a member that has everything but one stage: (name, stage, *overrides)."""

    def make(name: str, stage: str, *overrides: str, speaker: SpeakerDataset | None = None):
        workdir = tmp_path / name
        changed = config.load_config("tiny", [*OVERRIDES, *overrides])
        speaker = speaker or SpeakerDataset(data)
        made = run.Learner(changed, [speaker], workdir, tmp_path / "cache", lambda line: None)
        (workdir / "params").mkdir()
        done = checkpoint.read_run(ready)["stages"]
        del done[stage]
        checkpoint.update_run(workdir, stages=done)
        for other in done:
            (workdir / "params" / other).symlink_to(ready / "params" / other)
        return made

    return make


OVERRIDES = [
    f"stages.{name}.{key}={value}"
    for name in talker.STAGES
    for key, value in {
        "steps": STEPS,
        "save_every": 0,
        "validate_every": 0,
        "batch_size": 4,
        "validation_batches": 1,
    }.items()
]


def alone(member, stage, folder):
    prepared = member.prepare(stage)
    training = replace(prepared.training, workdir=folder)
    return trainer.run(prepared.stage, training, sharding.make_mesh(), log=lambda line: None)


def assert_like_separate_runs(learners, stage, tmp_path):
    (group,) = population._alike(learners, stage)
    assert len(group) == len(learners)
    lines = []
    population._train_stage(group, stage, tmp_path, sharding.make_mesh(), lines.append)
    for number, member in enumerate(learners):
        together = checkpoint.load_params(member.workdir / "params" / stage)
        entry = checkpoint.read_run(member.workdir)["stages"][stage]
        assert entry["population"] == len(learners)
        separate = alone(member, stage, tmp_path / f"alone{number}")
        reference = checkpoint.read_run(tmp_path / f"alone{number}")["stages"][stage]
        assert entry["settings"] == reference["settings"]
        for key in ("loss_first", "loss_last", "validation"):
            assert entry[key] == pytest.approx(reference[key], rel=TOLERANCE), key
        leaves = checkpoint.named_leaves(separate)
        assert leaves.keys() == checkpoint.named_leaves(together).keys()
        for name, value in checkpoint.named_leaves(together).items():
            assert value.shape == leaves[name].shape
            # of the whole tensor: Adam makes a full step of an element's rounding
            apart = np.linalg.norm(value - leaves[name])
            moved = STEPS * member.config.stages[stage].learning_rate  # an element, at most
            allowed = TOLERANCE * np.linalg.norm(leaves[name]) + OF_A_STEP * moved
            assert apart <= allowed, f"{number} {name}"


def test_seeds_rates_weights_and_speakers_as_one_program(learner, other_speaker, tmp_path):
    changes = ("stages.nerf.learning_rate=0.02", "seed=1", "nerf.oracle=0.3", "nerf.l1_weight=0.2")
    learners = [
        learner("a", "nerf", "nerf.mouth_weight=1.5"),
        learner("b", "nerf", *changes, speaker=other_speaker),
    ]
    assert_like_separate_runs(learners, "nerf", tmp_path)


def test_members_that_share_seed_and_data_share_their_batches(learner, tmp_path, monkeypatch):
    rates = [f"stages.speech.learning_rate={rate}" for rate in (0.002, 0.004)]
    learners = [learner(f"member{k}", "speech", rate) for k, rate in enumerate(rates)]
    asked = []
    original = learners[0].sources["train"].batches
    for each in learners:
        monkeypatch.setattr(
            each.sources["train"],
            "batches",
            lambda *a, each=each, **k: asked.append(each) or original(*a, **k),
        )
    population._train_stage(learners, "speech", tmp_path, sharding.make_mesh(), print)
    assert set(map(id, asked)) == {id(learners[0])}
    results = [checkpoint.load_params(each.workdir / "params" / "speech") for each in learners]
    leaves = [jax.tree.leaves(result)[0] for result in results]
    assert np.abs(leaves[0] - leaves[1]).max() > 0


def test_what_cannot_be_one_program_is_not_and_what_is_alike_is_trained_once(learner):
    changes = {
        "base": (),
        "same": ("speech.smooth=0.9", "nerf.l1_weight=0.7"),
        "rate": ("stages.speech.learning_rate=0.01",),
        "seed": ("seed=4",),
        "wide": ("speech.width=32",),
        "term_off": ("speech.lip_weight=0.0",),
        "longer": ("stages.speech.steps=30",),
    }
    learners = {name: learner(name, "speech", *each) for name, each in changes.items()}
    groups = population._alike(list(learners.values()), "speech")
    names = {id(member): name for name, member in learners.items()}
    found = [[names[id(member)] for member in group] for group in groups]
    assert found == [["base", "rate", "seed"], ["wide"], ["term_off"], ["longer"]]


@pytest.mark.parametrize("stage", talker.STAGES)
def test_every_number_of_a_stage_may_differ(learner, stage):
    """Each is moved a little: the group stays one, and the step can still be traced."""
    first = learner("first", stage)
    numbers = population.numbers_of(first.config, stage)
    assert f"stages.{stage}.learning_rate" in numbers
    moved = [f"{key}={0.5 * value}" for key, value in numbers.items()]
    second = learner("second", stage, *moved)
    assert len(population._alike([first, second], stage)) == 1
    prepared = first.prepare(stage)
    batch = next(prepared.training.batches(0, np.arange(4)))

    def step(values):
        changed = population.with_numbers(first.config, values)
        net = talker.build(changed, prepared.rows, prepared.capacity)
        made = run.stages.make_stages(changed, net, prepared.facts)[stage]
        key = trainer.stage_key(0, stage)
        state = trainer.init_state(made, key, batch)
        return trainer.train_step(made, state, prepared.training.frozen, batch, key)

    jax.eval_shape(step, numbers)


def test_a_population_is_filled_up_to_what_its_devices_can_share():
    """The last is trained twice; and what a mesh cannot split is said before the first step."""
    fake = type("Mesh", (), {"shape": {"data": 3}})
    with pytest.raises(UserError, match="stages.sync.batch_size=4 cannot be split over 3"):
        sharding.check_batches(fake, config.load_config("tiny", OVERRIDES), ["sync"])
    doubled = type("Mesh", (), {"shape": {"population": 2}})
    assert trainer.padded([1, 2, 3], doubled) == [1, 2, 3, 3]
    assert trainer.padded([1, 2], doubled) == [1, 2]
