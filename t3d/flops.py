"""FLOPs of a traced function, counted on its jaxpr: what is asked for, whoever compiles it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

ELEMENTWISE = "elementwise"
UNKNOWN_LOOPS = "loops of unknown length"
# What only moves numbers or renames them.
MOVES = set(
    "broadcast_in_dim concatenate convert_element_type bitcast_convert_type copy copy_p "
    "dynamic_slice dynamic_update_slice empty2 gather iota pad reshape rev sharding_constraint "
    "slice split squeeze stack stop_gradient transpose random_wrap random_unwrap".split()
)


def count(jaxpr: Jaxpr) -> Counter[str]:
    """FLOPs of one call.

    A matrix product or a convolution takes two for each multiply-add, positions that fall on
    padding left out; its kind is the operands' type and, for float32, the precision that it asks
    for ("bfloat16", "float32 default", "float32 high", "float32 highest"). Under "elementwise" all
    else counts one for each number that it writes, a reduction one for each that it reads. A loop
    counts its body as often as it runs, a branch the dearest of its cases.

    Args:
        jaxpr: of `jax.make_jaxpr`; what it calls is followed.

    Returns:
        FLOPs by kind; and, where there are any, how many loops of a length that the jaxpr does not
        tell, their bodies counted once.
    """
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        total.update(_equation(equation))
    return total


def products(counted: Counter[str]) -> dict[str, float]:
    """Of `count`: the matrix products and convolutions alone."""
    return {k: v for k, v in counted.items() if k not in (ELEMENTWISE, UNKNOWN_LOOPS)}


def _equation(equation: JaxprEqn) -> Counter[str]:
    name, inner = equation.primitive.name, [_open(j) for j in jaxprs_in_params(equation.params)]
    if name == "dot_general":
        return Counter({_kind(equation): _dot(equation)})
    if name == "conv_general_dilated":
        return Counter({_kind(equation): _convolution(equation)})
    if name == "scan":
        return _times(count(inner[0]), equation.params["length"])
    if name == "cond":
        return max(map(count, inner), key=lambda c: sum(c.values()))
    if name == "while":
        return _while(equation)
    if inner and not name.startswith(("reduce", "scatter", "sort", "arg", "cum")):
        return sum(map(count, inner), Counter())
    return Counter() if name in MOVES else Counter({ELEMENTWISE: _numbers(equation)})


def _open(jaxpr) -> Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _numbers(equation: JaxprEqn) -> int:
    reads = equation.primitive.name.startswith(("reduce", "arg", "scatter"))
    given = equation.invars[-1:] if reads else equation.outvars
    return sum(math.prod(getattr(v.aval, "shape", ())) for v in given)


def _times(counted: Counter[str], times: int) -> Counter[str]:
    return Counter({k: v if k == UNKNOWN_LOOPS else times * v for k, v in counted.items()})


def _while(equation: JaxprEqn) -> Counter[str]:
    """A `while` that counts a literal up to a literal by ones is a loop of known length."""
    body = count(_open(equation.params["body_jaxpr"]))
    length = _length(equation)
    return _times(body, length) if length is not None else body + Counter({UNKNOWN_LOOPS: 1})


def _length(equation: JaxprEqn) -> int | None:
    p = equation.params
    condition, body = _open(p["cond_jaxpr"]), _open(p["body_jaxpr"])
    test = condition.eqns[0] if len(condition.eqns) == 1 else None
    if test is None or test.primitive.name != "lt" or not isinstance(test.invars[1], Literal):
        return None
    if test.invars[0] not in condition.invars[p["cond_nconsts"] :]:
        return None
    place = condition.invars.index(test.invars[0]) - p["cond_nconsts"]
    first = equation.invars[p["cond_nconsts"] + p["body_nconsts"] + place]
    steps = [e for e in body.eqns if body.outvars[place] in e.outvars]
    by_one = steps and steps[0].primitive.name == "add" and _adds_one(steps[0])
    if not isinstance(first, Literal) or not by_one:
        return None
    return max(0, int(test.invars[1].val) - int(first.val))


def _adds_one(equation: JaxprEqn) -> bool:
    return any(isinstance(v, Literal) and int(v.val) == 1 for v in equation.invars)


# ---- matrix products and convolutions


def _kind(equation: JaxprEqn) -> str:
    dtype = equation.invars[0].aval.dtype.name
    if dtype != "float32":
        return dtype
    precision = equation.params["precision"]
    asked = precision[0] if isinstance(precision, tuple) else precision
    return f"float32 {asked.name.lower() if isinstance(asked, jax.lax.Precision) else 'default'}"


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    out = math.prod(equation.outvars[0].aval.shape)
    return 2 * out * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    p, (image, kernel) = equation.params, (v.aval.shape for v in equation.invars)
    image_axes, kernel_axes, out_axes = p["dimension_numbers"]
    out = equation.outvars[0].aval.shape
    pairs = 1
    for number, (i, k, o) in enumerate(zip(image_axes[2:], kernel_axes[2:], out_axes[2:])):
        pairs *= taps(
            (image[i], kernel[k], out[o]),
            p["window_strides"][number],
            p["padding"][number][0],
            p["lhs_dilation"][number],
            p["rhs_dilation"][number],
        )
    batch = image[image_axes[0]] // p["batch_group_count"]
    return 2 * batch * math.prod(kernel[axis] for axis in kernel_axes[:2]) * pairs


def taps(sizes: Sequence[int], stride: int, before: int, spread: int, reach: int) -> int:
    """Pairs of an output and a kernel position of a convolution that meet a number of the input.

    Args:
        sizes: of the input, the kernel and the output along one axis.
        stride: of the output; before: padding; spread, reach: dilation of input and kernel.
    """
    size, kernel, out = sizes
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * reach - before
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())
