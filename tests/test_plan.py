"""The plan: FLOPs against closed forms and XLA, batches against real ones, time by the clock."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t3d import camera as cameras
from t3d import checkpoint, chips, flops, hlo, plan, planning
from t3d import talker as talkers
from t3d.cli import main
from t3d.config import load_config
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.errors import UserError
from t3d.prior import paint
from t3d.run import Learner

ROOT = Path(__file__).resolve().parents[1]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 't3d[plan]'"
)


def counted(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments).jaxpr)


def total(function, *arguments):
    return sum(flops.products(counted(function, *arguments)).values())


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


# ---- FLOPs of what is asked for


def test_a_matrix_product_takes_two_flops_for_each_multiply_add():
    assert total(jnp.matmul, jnp.ones((5, 7)), jnp.ones((7, 11))) == 2 * 5 * 7 * 11
    batched = total(jnp.matmul, jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11)))
    assert batched == 3 * 2 * 5 * 7 * 11


def convolve(stride, padding):
    def of(x, k):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), padding, dimension_numbers=names
        )

    return of


def test_a_convolution_takes_two_flops_for_each_tap_that_meets_the_image():
    x, k = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8))
    assert total(convolve(1, "VALID"), x, k) == 2 * 2 * 7 * 7 * 9 * 3 * 8
    # Along a side of 9, a kernel of 3 meets it 27 times, less the two that stick out.
    assert total(convolve(1, "SAME"), x, k) == 2 * 2 * 25 * 25 * 3 * 8
    assert total(convolve(2, "VALID"), x, k) == 2 * 2 * 4 * 4 * 9 * 3 * 8


def test_a_scan_counts_its_body_as_often_as_it_runs():
    weights, x = jnp.ones((6, 4, 4)), jnp.ones((3, 4))
    scanned = total(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], x, weights)
    assert scanned == 6 * 2 * 3 * 4 * 4


def test_a_while_of_known_length_is_multiplied_and_another_one_is_told():
    x = jnp.ones((4, 4))

    def until(limit):
        return lambda x, n: jax.lax.while_loop(
            lambda s: s[0] < (limit or n), lambda s: (s[0] + 1, s[1] @ x), (0, x)
        )

    assert total(until(5), x, 0) == 5 * 2 * 4**3
    found = counted(until(None), x, 3)
    assert sum(flops.products(found).values()) == 2 * 4**3
    assert found[flops.UNKNOWN_LOOPS] == 1


def test_of_a_branch_the_dearest_case_counts():
    x = jnp.ones((4, 4))
    both = [lambda x: x @ x, lambda x: x @ x @ x, lambda x: x]
    assert total(lambda x, n: jax.lax.switch(n, both, x), x, 0) == 2 * 2 * 4**3


def test_the_gradient_of_a_chain_of_products_costs_three_times_its_value():
    weights, x = [jnp.ones((8, 8))] * 4, jnp.ones((5, 8))

    def chain(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return x.sum()

    assert total(jax.value_and_grad(chain, (0, 1)), weights, x) == 3 * total(chain, weights, x)
    again = total(jax.value_and_grad(jax.checkpoint(chain), (0, 1)), weights, x)
    assert again == 4 * total(chain, weights, x)  # the value is computed again


def test_products_are_told_apart_by_type_and_by_the_precision_they_ask_for():
    x, half = jnp.ones((4, 4)), jnp.ones((4, 4), jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        assert set(flops.products(counted(jnp.matmul, x, x))) == {"float32 highest"}
    assert set(flops.products(counted(jnp.matmul, x, x))) == {"float32 default"}
    assert set(flops.products(counted(jnp.matmul, half, half))) == {"bfloat16"}


def test_without_a_loop_our_count_is_xlas_own():
    def of(x, k, w):
        y = convolve(2, "SAME")(x, k).reshape(2, -1) @ w
        return y + y * y

    given = jnp.ones((2, 16, 16, 3)), jnp.ones((3, 3, 3, 8)), jnp.ones((512, 64))
    found = counted(of, *given)
    assert sum(found.values()) == compiled(of, *given).cost_analysis()["flops"]


# ---- what the compiled text says


@pytest.fixture(scope="module")
def cpu():
    return chips.cluster("cpu")


@pytest.fixture(scope="module")
def steps(cpu):
    """The tiny config's nerf step compiled for this CPU, at two batch sizes."""
    config = load_config("tiny")
    return [
        planning.compile_step(config, "nerf", cpu, planning.Layout(1, 1, n), 50) for n in (4, 16)
    ]


def test_the_compiled_step_does_the_products_that_were_asked_for(steps):
    for step in steps:
        asked = sum(flops.products(step.asked).values())
        assert step.totals.products == pytest.approx(asked, rel=0.05)
        assert step.totals.unknown_loops == 0


def test_a_loop_of_the_compiled_text_is_followed_as_often_as_it_runs():
    def of(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    program = compiled(of, jnp.ones((64, 64)), jnp.ones((6, 64, 64)))
    assert hlo.Program(program.as_text()).totals().products == 6 * 2 * 64**3
    assert program.cost_analysis()["flops"] < 2 * 2 * 64**3  # XLA counts the body once


def test_bytes_moved_are_those_of_each_kernels_operands_and_results():
    program = compiled(lambda x, y: x @ y, jnp.ones((128, 64)), jnp.ones((64, 32)))
    totals = hlo.Program(program.as_text()).totals()
    assert totals.bytes == 4 * (128 * 64 + 64 * 32 + 128 * 32)
    assert totals.bytes == program.cost_analysis()["bytes accessed"]


def test_a_tpus_array_fills_its_tiles_and_fast_memory_is_not_main_memory():
    (padded,) = hlo.arrays_of("f32[100,16]{1,0:T(8,128)}")
    assert padded.bytes == 104 * 128 * 4
    (turned,) = hlo.arrays_of("bf16[100,16]{0,1:T(8,128)(2,1)}")
    assert turned.bytes == 16 * 128 * 2
    fast, scalar = hlo.arrays_of("(f32[8,128]{1,0:T(8,128)S(1)}, pred[])")
    assert (fast.size, fast.bytes, scalar.bytes) == (4096, 0, 1)


@pytest.mark.parametrize(
    "text, size",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}", 8),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_the_size_of_a_collectives_group_is_read_in_every_spelling(text, size):
    assert hlo.group_size(text) == size


def test_a_gradient_over_eight_devices_is_added_up_once():
    code = """if True:
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec as P
        from t3d import hlo
        mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
        whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=whole)
        x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
        grad = jax.jit(jax.grad(lambda w, x: ((x @ w) ** 2).sum()), out_shardings=whole)
        totals = hlo.Program(grad.lower(w, x).compile().as_text()).totals()
        (moved,) = totals.collectives.values()
        print(moved.kind, moved.group, moved.count, int(moved.bytes), totals.products)
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True
    )
    part = 2 * 2 * (64 // 8) * 32 * 16  # the product and its gradient, of an eighth of the rows
    assert run.stdout.split() == ["all-reduce", "8", "1", str(4 * 32 * 16), str(part)], run.stderr


# ---- layouts, rings, scaling


def pod(chips_in_it=256):
    """So many of this machine's device: a layout asks for their number alone."""
    return chips.Cluster("", described().chip, jax.devices()[:1] * chips_in_it, math.inf)


def test_without_a_global_batch_every_chip_keeps_the_configs_batch():
    config = load_config("talker")
    assert planning.layout_of(config, "nerf", pod(), None) == planning.Layout(256, 1, 8 * 256)
    config = load_config("talker", ["mesh.model=4"])
    assert planning.layout_of(config, "nerf", pod(), None) == planning.Layout(64, 4, 8 * 64)


def test_a_batch_smaller_than_the_pod_spreads_its_rays_over_the_rest():
    assert planning.layout_of(load_config("talker"), "nerf", pod(), 8) == planning.Layout(8, 32, 8)


@pytest.mark.parametrize(
    "overrides, batch, word",
    [
        (["mesh.data=3"], None, "does not fit 256 chips"),
        (["mesh.data=256"], 8, "cannot be split over 256"),
        (["mesh.population=2"], None, "mesh.population=1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_chips_is_a_users_error(overrides, batch, word):
    with pytest.raises(UserError, match=word):
        planning.layout_of(load_config("talker", overrides), "nerf", pod(), batch)


def test_a_ring_sends_what_a_simulated_one_sends():
    """All-reduce as a ring of n does it: n - 1 steps of adding up, n - 1 of handing on."""
    n, length = 5, 20
    parts = np.split(np.arange(length), n)
    sent = sum(len(parts[step % n]) for step in range(2 * (n - 1)))
    assert chips.ring_factor("all-reduce", n) * length == sent
    assert chips.ring_factor("all-gather", n) * length == sent / 2
    assert all(chips.ring_factor(kind, 1) == 0 for kind in hlo.COLLECTIVES)


def described(near=math.inf, link=1e9, network=1e8):
    """A chip in round numbers: 1 TFLOP/s, 1 GB/s to its memory."""
    peak = {"bfloat16": 1e12}
    return chips.Cluster("", chips.Chip("", peak, 1.0, 1e9, 1e9, link, network), [], near)


def made(layout, products, size, *collectives):
    moved = {(m.kind, m.group): m for m in collectives}
    asked = flops.Counter({"bfloat16": products * layout.chips})
    return planning.Compiled(
        layout, asked, 0, 0, None, hlo.Totals(products, size, 1, collectives=moved)
    )


def test_the_roofline_takes_the_longest_and_says_which():
    step = made(planning.Layout(4, 1, 8), 2e12, 3e9, hlo.Moved("all-reduce", 4, 1, 4e9))
    seconds = planning.seconds_of(planning.cost_of(step), described())
    assert (seconds.compute, seconds.memory, seconds.network) == pytest.approx((2, 3, 6))
    assert (seconds.step, seconds.apart, seconds.binds) == pytest.approx((6, 9, "network"))
    across = planning.seconds_of(planning.cost_of(step), described(near=2))
    assert across.network == pytest.approx(60)


def test_chips_that_need_not_talk_scale_perfectly_and_rings_cost_what_they_send():
    alone = made(planning.Layout(4, 1, 8), 1e12, 1e9)
    assert {p.efficiency_apart for p in planning.weak_scaling(alone, described())} == {1.0}
    talking = made(planning.Layout(4, 1, 8), 1e12, 1e9, hlo.Moved("all-reduce", 4, 1, 1e9))
    points = planning.weak_scaling(talking, described())
    expected = [1 / (1 + 2 * (n - 1) / n) for n in planning.CHIPS]
    assert [p.efficiency_apart for p in points] == pytest.approx(expected)


def test_gradients_keep_their_size_and_what_else_is_sent_goes_with_the_frames():
    sent = [hlo.Moved(kind, 4, 1, 1e9) for kind in ("all-reduce", "all-gather")]
    cost = planning.cost_of(made(planning.Layout(4, 1, 8), 1e12, 1e9, *sent))
    now = planning.spread(cost, planning.Layout(4, 1, 8), planning.Layout(8, 1, 8))
    assert [(m.group, m.bytes) for m in now.collectives] == [(8, 1e9), (8, 0.5e9)]


def test_dividing_rays_helps_only_the_part_of_the_work_that_has_rays():
    whole = made(planning.Layout(256, 1, 2048), 8e12, 0)  # 1 TFLOP a frame
    split = made(planning.Layout(8, 32, 8), 0.25e12 + 0.75e12 / 32, 0)  # of which 3/4 are divided
    points = planning.strong_scaling(whole, split, 8, described())
    times = [p.seconds.step for p in points]
    assert times[:4] == pytest.approx([8, 4, 2, 1])
    assert times[4:] == pytest.approx([0.25 + 0.75 / m for m in (2, 4, 8, 16, 32)])


# ---- the real thing


@pytest.fixture(scope="module")
def learner(untrained, tmp_path_factory):
    """A run whose stages all count as trained: each can be prepared."""
    folder = tmp_path_factory.mktemp("planned")
    path = checkpoint.read_run(untrained.workdir)["data"][0]["path"]
    made = Learner(untrained.config, [SpeakerDataset(path)], folder, folder / "cache")
    for name, params in untrained.params.items():
        sha256 = checkpoint.save_params(folder / "params" / name, params)
        checkpoint.update_run(folder, stages={name: {"sha256": sha256, "steps": 0}})
    return made


@pytest.mark.parametrize("name", talkers.STAGES)
def test_the_planned_batch_is_the_one_that_training_feeds(learner, name):
    prepared = learner.prepare(name)
    size = prepared.stage.config.batch_size
    batch = next(prepared.training.batches(0, np.arange(size)))
    planned = planning.abstract_batch(learner.config, prepared.stage.fields, size)
    found = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert found == {key: (value.shape, value.dtype) for key, value in planned.items()}


def test_random_views_are_painted_in_the_colours_of_the_frames(learner):
    """Each frame's own view, of its own surface: drawn again by hand from what the frames show."""
    [speaker], [dataset] = learner.speakers, learner.datasets
    learner.prepare("nerf")
    novel = {n: learner.arrays[f"novel_{n}"][0] for n in ("colour", "painted", "depth", "camera")}
    frames = dataset.frames("train")[[0, -1]]
    track, camera = dataset.track, cameras.recorded(speaker.intrinsics)
    pictures = [np.stack([dataset.picture(f, k) for f in frames]) for k in ("image", "mask")]
    shown = track["expression"][frames], track["head_to_world"][frames]
    roughly = paint.paint(speaker.shell, *shown, camera, pictures[0], pictures[1] / 255)
    for frame in frames:
        view = cameras.Camera(speaker.intrinsics, novel["camera"][frame])
        place = track["expression"][frame], track["head_to_world"][frame], view
        side = int(novel["depth"].shape[1] ** 0.5)
        drawn, rays = paint.drawn(speaker.shell, roughly, *place, side)
        np.testing.assert_array_equal(novel["painted"][frame], rays)
        hit = rays & (novel["depth"][frame] > 0)
        assert hit.sum() > 10
        off = np.abs(novel["colour"][frame][hit].astype(float) - drawn[hit])
        assert np.median(off) < 12, off


@pytest.mark.parametrize("filmed", [True, False])
def test_the_space_learns_from_renders_with_the_mouths_it_is_told_to(learner, filmed):
    [speaker], [dataset] = learner.speakers, learner.datasets
    learner.arrays.pop("oracle_codes", None)  # a stage may be prepared alone
    frozen = learner.prepare("space").training.frozen
    codes = {name: learner.arrays[name][0] for name in ("oracle_codes", "lip_codes")}
    learner.config.space.filmed_mouths = filmed
    learner.config.space.render_every, kept = 20, learner.config.space.render_every
    drawn = {}
    try:
        for changed in (None, *codes):
            for name, values in codes.items():
                learner.arrays[name] = [values + 40.0 * (name == changed)]
            drawn[changed] = learner._renders(frozen, dataset, speaker)["render"]
    finally:
        learner.arrays |= {name: [values] for name, values in codes.items()}
        learner.config.space.update(filmed_mouths=True, render_every=kept)
    told, other = ("oracle_codes", "lip_codes") if filmed else ("lip_codes", "oracle_codes")
    assert (drawn[told] != drawn[None]).any()
    np.testing.assert_array_equal(drawn[other], drawn[None])


def test_predicted_and_measured_steps_grow_alike_on_this_cpu(steps, cpu):
    first, last = planning.check_prediction(steps, cpu)
    predicted, measured = last.predicted / first.predicted, last.measured / first.measured
    assert predicted > 1.3 and measured > 1.3
    assert predicted / 2 < measured < predicted * 2


def test_the_plan_of_this_cpu_is_told_as_tables_and_json(tmp_path, capsys):
    file = tmp_path / "plan.json"
    command = ["plan", "--config", "tiny", "--topology", "cpu", "--stage", "speech"]
    assert main([*command, "--frames", "50", "--json", str(file)]) == 0
    told, shown = json.loads(file.read_text()), capsys.readouterr().out
    assert told["fits"] and told["chips"] == 1 and told["global_batch"] == 16
    assert told["memory_bytes"]["peak"] > told["parameter_bytes"]
    *terms, start = told["seconds"].values()
    assert told["step_seconds"] == max(terms) + start
    assert "binds" in shown and "bytes moved" in shown


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--topology", "v9:2x2"], "chips are v4"),
        (["--topology", "v5e"], "give CHIP:SHAPE"),
        (["--topology", "cpu", "--stage", "nerve"], "there are sync"),
        (["--topology", "v5e:2x4", "--check"], "--topology cpu"),
        (["--topology", "cpu", "--plot", "a.png"], "scaling is of a cluster"),
        (["--topology", "cpu", "--global-batch", "0"], "at least 1"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(arguments, word, capsys):
    assert main(["plan", "--config", "tiny", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("t3d: error: ") and word in line


@pytest.mark.parametrize(
    "module, topology", [("libtpu", "v5e:2x4"), ("jax_cuda12_plugin", "h100:8")]
)
def test_a_compiler_that_is_missing_is_named_with_the_command_that_brings_it(
    module, topology, capsys
):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    assert main(["plan", "--config", "tiny", "--topology", topology]) == 2
    assert "pip install" in capsys.readouterr().err


def planned(folder, *arguments):
    """What a plan in a process of its own writes: the compilers leave their mark on a process."""
    file = folder / "plan.json"
    command = [sys.executable, "-m", "t3d.cli", "plan", "--json", str(file), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(file.read_text())


@needs_libtpu
def test_a_tpu_slice_that_is_not_there_is_planned(tmp_path):
    picture = tmp_path / "plan.png"
    arguments = ["--config", "tiny", "--topology", "v5e:2x4", "--plot", str(picture)]
    told = planned(tmp_path, *arguments)
    assert told["fits"] and told["chips"] == 8 and told["global_batch"] == 16
    asked = sum(told["flops_all_chips"].values())
    assert sum(told["flops"].values()) == pytest.approx(asked / 8, rel=0.1)
    added = [c for c in told["collectives"] if (c["kind"], c["group"]) == ("all-reduce", 8)]
    assert sum(c["bytes"] for c in added) >= told["parameter_bytes"]  # the gradients
    for curve in ("weak_scaling", "strong_scaling"):
        points = [p["efficiency_nothing_hidden"] for p in told[curve]]
        assert points[0] == 1 and points == sorted(points, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_libtpu
def test_a_step_that_does_not_fit_a_tpu_is_told_not_raised(tmp_path):
    arguments = ["--config", "tiny", "--topology", "v5e:2x2", "--global-batch", "262144"]
    told = planned(tmp_path, *arguments)
    assert told["fits"] is False and "HBM" in told["refusal"]


@needs_libtpu
@pytest.mark.full
def test_the_papers_size_fits_a_v5e_pod(tmp_path):
    told = planned(tmp_path, "--config", "talker", "--topology", "v5e:16x16")
    assert told["fits"] and told["global_batch"] == 2048
    # 16 samples of 32² rays through 8 layers of 384, three times for the gradient, and H_u.
    frame = sum(told["flops_all_chips"].values()) / 2048
    assert 3 * 2 * 16 * 32**2 * 8 * 384**2 < frame < 3 * 2 * 3 * 16 * 32**2 * 8 * 384**2


def test_a_picture_is_a_png_whatever_it_is_called(tmp_path):
    plan_ = SimpleNamespace(weak=(), strong=(), name="", stage="", cluster=described())
    plan.draw(plan_, tmp_path / "efficiency")
    assert (tmp_path / "efficiency").read_bytes().startswith(b"\x89PNG")
