"""`t3d plan`: what a training step will need and take on a cluster, before there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from t3d import config as configs
from t3d import flops, hlo
from t3d.chips import Chip, Cluster, cluster
from t3d.data.parts import write_atomically
from t3d.errors import UserError
from t3d.planning import (
    CHIPS,
    ROUNDS,
    Check,
    Layout,
    Plan,
    Point,
    check_prediction,
    compile_step,
    describe,
    make_plan,
)

CHECKED = (2, 4, 8, 16)  # batch sizes that a prediction is checked at
NOT_CHECKED = "memory is not checked at these numbers of chips"


def to_json(plan: Plan) -> dict:
    """The plan for a program; seconds, bytes and FLOPs, of one chip unless they say otherwise."""
    step, chip = plan.step, plan.cluster.chip
    fields = {
        "fits": plan.fits,
        "config": plan.name,
        "stage": plan.stage,
        "topology": plan.cluster.topology,
        "chip": chip.name,
        "chips": step.layout.chips,
        "data": step.layout.data,
        "model": step.layout.model,
        "global_batch": step.layout.batch,
        "chip_memory_bytes": chip.memory,
        "refusal": step.refusal,
        "flops_all_chips": flops.products(step.asked),
        "flops_elementwise_all_chips": step.asked[flops.ELEMENTWISE],
        "parameter_bytes": step.parameter_bytes,
    }
    if plan.cost is None:
        return fields
    return fields | {
        "memory_bytes": asdict(step.memory) | {"peak": step.memory.peak},
        "flops": plan.cost.products,
        "bytes_moved": plan.cost.bytes,
        "kernels": step.totals.kernels,
        "loops_counted_once": step.asked[flops.UNKNOWN_LOOPS] + step.totals.unknown_loops,
        "collectives": [asdict(m) for m in plan.cost.collectives if m.group > 1],
        "seconds": asdict(plan.seconds),
        "attainable_share_of_peak": chip.attainable,
        "step_seconds": plan.seconds.step,
        "step_seconds_nothing_hidden": plan.seconds.apart,
        "binds": plan.seconds.binds,
        "frames_per_second": step.layout.batch / plan.seconds.step,
        "compiled_layouts": [asdict(layout) for layout in plan.compiled_for],
        "weak_scaling": [_point_json(p) for p in plan.weak],
        "strong_scaling": [_point_json(p) for p in plan.strong],
    }


def _point_json(point: Point) -> dict:
    return {
        "chips": point.layout.chips,
        **asdict(point.layout),
        "step_seconds": point.seconds.step,
        "binds": point.seconds.binds,
        "efficiency": point.efficiency,
        "efficiency_nothing_hidden": point.efficiency_apart,
    }


def show(plan: Plan, console: Console) -> None:
    """Prints the plan as tables."""
    _print(console, _title(plan), ("", "per chip", "note"), _rows(plan))
    if plan.cost and plan.cost.collectives and plan.step.layout.chips > 1:
        rows = [(m.kind, f"{m.group}", f"{m.count:g}", _size(m.bytes)) for m in _largest(plan)]
        _print(console, "Collectives of a step", ("kind", "chips", "how many", "bytes"), rows)
    for title, points in (
        ("Weak scaling, predicted: every chip keeps its frames", plan.weak),
        ("Strong scaling, predicted: the config's batch is kept", plan.strong),
    ):
        if points:
            columns = ("chips", "data x model", "frames", "step", "binds", "efficiency", "*")
            _print(console, title, columns, map(_point_row, points))
    if plan.weak:
        compiled = "; ".join(map(describe, plan.compiled_for))
        console.print(
            f"Compiled: {compiled}. All other numbers of chips are computed from these by the ring "
            f"model; {NOT_CHECKED}. Efficiency: collectives hidden behind the rest; *: not hidden."
        )


def _title(plan: Plan) -> str:
    return (
        f"{plan.name}, stage {plan.stage}, on {plan.cluster.topology} "
        f"({plan.step.layout.chips} x {plan.cluster.chip.name}): {describe(plan.step.layout)}"
    )


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    step, chip = plan.step, plan.cluster.chip
    asked = sum(flops.products(step.asked).values())
    room = f"of {_size(chip.memory)} that a program may use"
    if plan.cost is None:
        return [("fits", "no", step.refusal), ("products, all chips", _flops(asked), "")]
    memory, seconds = step.memory, plan.seconds
    kinds = ", ".join(f"{_flops(n)} {kind}" for kind, n in plan.cost.products.items())
    divided = asked / sum(plan.cost.products.values())
    return [
        ("fits", "yes" if plan.fits else "no", f"{_size(memory.peak)} {room}"),
        ("arguments", _size(memory.arguments), f"of which {_size(memory.aliased)} are donated"),
        (
            "outputs",
            _size(memory.outputs),
            f"{_size(memory.outputs - memory.aliased)} beside those",
        ),
        ("temporaries", _size(memory.temporaries), ""),
        ("code", _size(memory.code), ""),
        ("products", _flops(asked / divided), kinds),
        ("", "", f"{_flops(asked)} on all chips, divided by {divided:.4g}"),
        ("elementwise", _flops(step.asked[flops.ELEMENTWISE] / divided), "hidden behind the bytes"),
        ("bytes moved", _size(plan.cost.bytes), f"by {step.totals.kernels:g} kernels"),
        ("compute", _time(seconds.compute), f"at {chip.attainable:.0%} of the peak"),
        ("memory", _time(seconds.memory), f"at {_size(chip.bandwidth)}/s"),
        ("network", _time(seconds.network), f"at {_size(plan.cluster.chip.link)}/s, rings"),
        ("starts", _time(seconds.start), _starts(chip)),
        ("step", _time(seconds.step), f"{seconds.binds} binds; {_pace(plan)}"),
    ]


def _starts(chip: Chip) -> str:
    return f"{_time(chip.start)} a kernel" if chip.start else "not known: a lower bound"


def _pace(plan: Plan) -> str:
    return f"{plan.step.layout.batch / plan.seconds.step:,.0f} frames/s on all chips"


def _largest(plan: Plan) -> list[hlo.Moved]:
    return sorted(plan.cost.collectives, key=lambda m: -m.bytes)


def _point_row(point: Point) -> tuple[str, ...]:
    at = point.layout
    return (
        f"{at.chips}",
        f"{at.data} x {at.model}",
        f"{at.batch}",
        _time(point.seconds.step),
        point.seconds.binds,
        f"{point.efficiency:.1%}",
        f"{point.efficiency_apart:.1%}",
    )


def _print(console: Console, title: str, columns: Sequence[str], rows) -> None:
    console.print(f"\n{title}")
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _unit(value: float, unit: str, step: int = 1000) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < step:
            return f"{value:.3g} {prefix}{unit}"
        value /= step
    return f"{value:.4g} P{unit}"


_size = partial(_unit, unit="B")
_flops = partial(_unit, unit="FLOP")


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.3g} µs"


def draw(plan: Plan, path: Path) -> None:
    """The efficiencies over the number of chips, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    curves = (("weak: frames a chip kept", plan.weak), ("strong: global batch kept", plan.strong))
    for axis, (title, points) in zip(axes, curves, strict=True):
        chips = [p.layout.chips for p in points]
        axis.plot(chips, [p.efficiency for p in points], "o-", label="collectives hidden")
        axis.plot(chips, [p.efficiency_apart for p in points], "s--", label="not hidden")
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="chips", xticks=CHIPS, xticklabels=CHIPS, ylim=(0, 1.08))
        axis.minorticks_off()
        axis.grid(color="0.9")
    axes[0].set_ylabel("predicted efficiency")
    axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(f"{plan.name}, stage {plan.stage}, {plan.cluster.topology}: predicted")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
    pyplot.close(figure)


def show_check(checks: Sequence[Check], console: Console) -> None:
    """Prints predicted against measured step times, and their ratios to the first."""
    first = checks[0]
    rows = [
        (
            f"{c.batch}",
            _time(c.predicted),
            _time(c.measured),
            f"{c.predicted / first.predicted:.2f}",
            f"{c.measured / first.measured:.2f}",
        )
        for c in checks
    ]
    columns = ("batch", "predicted", "measured", "predicted ratio", "measured ratio")
    _print(console, f"Steps on this CPU, median of {ROUNDS}", columns, rows)


def _refuse_what_no_plan_can_do(args) -> None:
    if args.check and args.topology != "cpu":
        raise UserError("--check: steps can be measured on this machine only: --topology cpu")
    if args.plot and args.topology == "cpu":
        raise UserError("--plot: scaling is of a cluster: give another --topology than cpu")


def _checks(args, config: ConfigDict, target: Cluster) -> list[Check]:
    layouts = [Layout(1, 1, size) for size in CHECKED]
    steps = [compile_step(config, args.stage, target, at, args.frames) for at in layouts]
    return check_prediction(steps, target)


def _console() -> Console:
    plain = partial(Console, markup=False, emoji=False, highlight=False)
    return plain() if plain().is_terminal else plain(width=110)


def plan_command(args) -> None:
    """`t3d plan`."""
    _refuse_what_no_plan_can_do(args)
    console, config = _console(), configs.load_config(args.config, args.overrides)
    # Programs for chips that are not here can be written to JAX's cache but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    target = cluster(args.topology)
    plan = make_plan(
        args.config, config, args.stage, target, args.frames, args.global_batch, console.print
    )
    checks = _checks(args, config, target) if args.check else []
    if args.json:
        text = json.dumps(to_json(plan) | {"check": [asdict(c) for c in checks]}, indent=1) + "\n"
        write_atomically(Path(args.json), lambda temporary: temporary.write_text(text))
    if args.plot and plan.weak:
        draw(plan, Path(args.plot))
    show(plan, console)
    if checks:
        show_check(checks, console)
    if args.plot and not plan.weak:
        raise UserError(f"--plot {args.plot}: not drawn, since a step does not fit; see above")
