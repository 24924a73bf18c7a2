"""What a compiled program does on one device, read from XLA's text of it.

The text is the program after partitioning and fusion: each instruction of its main computation is
a kernel, which reads its operands from memory and writes its results there. Loops are followed as
often as they run.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from t3d.flops import taps

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
# Names and results, no work: a `-done` ends what its `-start` has been counted for.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
PARTIAL = {"slice", "dynamic-slice", "gather"}  # read only as much as they write
FREE |= {"partition-id", "replica-id", "optimization-barrier", "domain"}
_BITS = {"pred": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_FAST_MEMORY = re.compile(r"S\([1-9]\)")  # a memory space of the chip's own, not its HBM
_TILE = re.compile(r"T\(([\d,]+)\)")


@dataclass
class Moved:
    """Collectives of one kind over groups of one size.

    Attributes:
        kind: one of COLLECTIVES; group: devices that take part together.
        count: how many a step; bytes: of the larger of operand and result, all of them together.
    """

    kind: str
    group: int
    count: float = 0
    bytes: float = 0


@dataclass
class Totals:
    """What a program does in one run on one device.

    Attributes:
        products: FLOPs of matrix products and convolutions.
        bytes: read from and written to the device's main memory by its kernels.
        kernels: how many are started.
        collectives: (kind, group) → Moved.
        unknown_loops: loops whose length the text does not tell; their bodies are counted once.
    """

    products: float = 0
    bytes: float = 0
    kernels: float = 0
    collectives: dict[tuple[str, int], Moved] = field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: Totals, times: float = 1) -> None:
        self.products += times * other.products
        self.bytes += times * other.bytes
        self.kernels += times * other.kernels
        self.unknown_loops += other.unknown_loops
        for (kind, group), moved in other.collectives.items():
            self.add_collective(kind, group, times * moved.count, times * moved.bytes)

    def add_collective(self, kind: str, group: int, count: float, size: float) -> None:
        mine = self.collectives.setdefault((kind, group), Moved(kind, group))
        mine.count += count
        mine.bytes += size


@dataclass(frozen=True)
class Array:
    """An array of the text.

    Attributes:
        dims: its dimensions.
        size: bytes it takes where it lies, a TPU's tiles filled up.
        bytes: of that in the device's main memory.
    """

    dims: tuple[int, ...]
    size: float
    bytes: float


@dataclass(frozen=True)
class Instruction:
    """One line of the text; `operands` are the names among its `operands_text`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    operands_text: str
    attributes: str

    @cached_property
    def arrays(self) -> list[Array]:
        return arrays_of(self.shape)

    @cached_property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @cached_property
    def size(self) -> float:
        return sum(array.size for array in self.arrays)

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names: `body=%loop`, `calls=…`."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.-]+))", self.attributes)
        return re.findall(r"[\w.-]+", (found[1] or found[2]).replace("%", "")) if found else []


def arrays_of(shape: str) -> list[Array]:
    """The arrays of a shape's text, such as `(f32[8,16]{1,0:T(8,128)S(1)}, s32[])`."""
    arrays = []
    for kind, numbers, layout in _ARRAY.findall(shape):
        dims = tuple(int(n) for n in numbers.split(",") if n)
        size = _size(kind, dims, layout)
        arrays.append(Array(dims, size, 0 if _FAST_MEMORY.search(layout) else size))
    return arrays


def _size(kind: str, dims: tuple[int, ...], layout: str) -> float:
    if kind in ("token", "opaque"):
        return 0
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
    order, _, rest = layout.partition(":")
    sizes = [dims[int(axis)] for axis in order.split(",") if axis]  # the minor axis first
    tile = _TILE.search(rest)
    sides = [int(n) for n in tile[1].split(",")] if tile else []
    for axis, side in zip(range(len(sizes)), reversed(sides)):
        sizes[axis] = side * math.ceil(sizes[axis] / side)
    return math.prod(sizes or dims) * bits / 8


# ---- parsing


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced brackets: {text[start : start + 80]}")


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing]
    return Instruction(
        name=head[1],
        shape=line[start:end],
        opcode=line[end:opening].strip(),
        operands=tuple(re.findall(r"%([\w.-]+)", inside)),
        operands_text=inside,
        attributes=line[closing + 1 :],
    )


class Program:
    """A compiled program's text, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = "", {}
        for line in text.splitlines():
            opening = _COMPUTATION.match(line)
            if opening:
                current = self.computations[opening[2]] = {}
                self.entry = opening[2] if opening[1] else self.entry
            elif instruction := _instruction(line):
                current[instruction.name] = instruction
        self._totals: dict[str, Totals] = {}
        self._products: dict[str, float] = {}

    def totals(self) -> Totals:
        """What one run of the program does on one device."""
        return self._of(self.entry)

    def _of(self, name: str) -> Totals:
        if name not in self._totals:
            total = Totals()
            for instruction in self.computations[name].values():
                total.add(self._one(instruction, self.computations[name]))
            self._totals[name] = total
        return self._totals[name]

    def _one(self, one: Instruction, among: dict[str, Instruction]) -> Totals:
        if one.opcode == "while":
            return self._loop(one)
        if one.opcode == "conditional":
            return max(map(self._of, self._branches(one)), key=lambda t: t.bytes, default=Totals())
        if one.opcode == "call":
            return self._of(one.called("to_apply")[0])
        kind = one.opcode.removesuffix("-start")
        if one.opcode == "async-start" and self._wraps_collective(one):
            return self._of(one.called("calls")[0])
        if kind in COLLECTIVES:
            return self._collective(one, kind, among)
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return Totals()
        return Totals(self._kernel_products(one, among), self._traffic(one, among), 1)

    def _loop(self, one: Instruction) -> Totals:
        known = re.search(r"known_trip_count\W+n\W+(\d+)", one.attributes)
        total = Totals(unknown_loops=0 if known else 1)
        total.add(self._of(one.called("body")[0]), int(known[1]) if known else 1)
        return total

    @staticmethod
    def _branches(one: Instruction) -> list[str]:
        several = one.called("branch_computations")
        return several or one.called("true_computation") + one.called("false_computation")

    def _wraps_collective(self, one: Instruction) -> bool:
        inside = [i for name in one.called("calls") for i in self.computations[name].values()]
        return any(i.opcode in COLLECTIVES for i in inside)

    # ---- one instruction

    def _collective(self, one: Instruction, kind: str, among: dict[str, Instruction]) -> Totals:
        """Its size is that of the whole: what is given to a reduction, what comes of a gather."""
        given = sum(among[name].size for name in one.operands if name in among)
        taken = one.size - (given if one.opcode == "all-gather-start" else 0)
        size = max(given, taken) if kind == "all-gather" else given
        total = Totals(kernels=1, bytes=2 * given)
        total.add_collective(kind, group_size(one.attributes), 1, size)
        return total

    def _traffic(self, one: Instruction, among: dict[str, Instruction]) -> float:
        if one.opcode in ("copy-start", "slice-start", "async-start"):
            return _moved(one)
        if one.opcode in PARTIAL:
            return 2 * one.bytes
        given = [among[name].bytes for name in one.operands if name in among]
        if one.opcode == "fusion" and len(given) == len(one.operands):
            read = self._read_by(one.called("calls")[0])
            given = [min(size, read.get(number, size)) for number, size in enumerate(given)]
        # What cuBLAS and cuDNN return beside the result is their workspace.
        library = 'custom_call_target="__cu' in one.attributes
        return (one.arrays[0].bytes if library else one.bytes) + sum(given)

    def _read_by(self, name: str) -> dict[int, float]:
        """Bytes that a fused computation reads of those operands that it only takes parts of."""
        users = defaultdict(list)
        for instruction in self.computations[name].values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return {
            int(one.operands_text): sum(user.size for user in users[one.name])
            for one in self.computations[name].values()
            if one.opcode == "parameter"
            and all(u.opcode in PARTIAL and u.operands[0] == one.name for u in users[one.name])
        }

    def _kernel_products(self, one: Instruction, among: dict[str, Instruction]) -> float:
        if one.opcode in ("fusion", "async-start"):
            return sum(self._inside(name) for name in one.called("calls"))
        return _product(one, among)

    def _inside(self, name: str) -> float:
        """FLOPs of the products in a fused computation and in those that it calls."""
        if name not in self._products:
            among = self.computations[name]
            self._products[name] = sum(self._kernel_products(i, among) for i in among.values())
        return self._products[name]


def _moved(one: Instruction) -> float:
    """Bytes that a copy which runs beside the kernels reads and writes in main memory."""
    given, taken = one.arrays[:2]
    return min(given.size, taken.size) * ((given.bytes > 0) + (taken.bytes > 0))


def group_size(attributes: str) -> int:
    """Devices of a collective's group: {{0,1},{2,3}}, [2,4]<=[8], mesh[…] {'axis'}, or pairs."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(explicit[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 2


def _product(one: Instruction, among: dict[str, Instruction]) -> float:
    """FLOPs of a matrix product or a convolution, else 0: two for each multiply-add."""
    operands = [among[name].arrays[0].dims for name in one.operands if name in among]
    if labels := re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes):
        return _convolution(one, operands, labels.groups())
    contracted = re.search(r"lhs_contracting_dim(?:s=\{|ensions\W+)([\d,\" ]+)", one.attributes)
    if contracted and one.opcode in ("dot", "custom-call"):
        axes = [int(n) for n in re.findall(r"\d+", contracted[1])]
        return 2 * math.prod(one.arrays[0].dims) * math.prod(operands[0][axis] for axis in axes)
    return 0


def _convolution(one: Instruction, operands: list[tuple[int, ...]], labels: Sequence[str]) -> float:
    """Also cuDNN's, whose backward ones give the image or the kernel and take the result."""
    image, kernel, result = operands[0], operands[1], one.arrays[0].dims
    if "convBackwardFilter" in one.attributes:
        kernel, result = result, kernel
    if "convBackwardInput" in one.attributes:
        image, result = result, image
    axes = [dict(zip(names, dims)) for names, dims in zip(labels, (image, kernel, result))]
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", _between(one.attributes, "window={", "}")))
    spatial = sorted(set(labels[1]) - {"i", "o"})

    def along(name: str, number: int, default: int) -> int:
        given = window.get(name)
        return int(given.split("x")[number].split("_")[0]) if given else default

    pairs = math.prod(
        taps(
            [sizes.get(axis, 1) for sizes in axes],
            along("stride", number, 1),
            along("pad", number, 0),
            along("lhs_dilate", number, 1),
            along("rhs_dilate", number, 1),
        )
        for number, axis in enumerate(spatial)
    )
    groups = int(_between(one.attributes, "batch_group_count=", ",") or 1)
    return 2 * axes[0]["b"] // groups * axes[1]["i"] * axes[1]["o"] * pairs


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]
