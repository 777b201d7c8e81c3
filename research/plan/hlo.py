"""Read the text of a compiled program: its instructions, and how often each of them runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

ITEM_BYTES: Mapping[str, float] = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "f4e2m1fn": 0.5, "f8e8m0fnu": 1,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[\\"]*:\{[\\"]*n[\\"]*:[\\"]*(\d+)')
_END = re.compile(r"\}(, execution_thread=.*)?")
_ITERATED = ("body", "condition")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a program, on one device.

    Attributes:
      space: the memory it lies in; 0 is the device's main memory (a TPU's HBM), others are on chip.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> float:
        """Bytes, without the padding of tiles."""
        return self.size * ITEM_BYTES.get(self.dtype, 0)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      shapes: the arrays it gives, a tuple's flattened.
      operands: names of the instructions it takes.
      text: what stands between its parentheses.
      attributes: what follows them.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str
    attributes: str

    @functools.cached_property
    def called(self) -> Mapping[str, tuple[str, ...]]:
        """Computations it calls, by the role they play."""
        found: dict[str, tuple[str, ...]] = {}
        for role, name in _CALLED.findall(self.attributes):
            found[role] = (*found.get(role, ()), name)
        if branches := _BRANCHES.search(self.attributes):
            names = [name.strip().lstrip("%") for name in branches[1].split(",")]
            found["branches"] = tuple(names)
        return found

    def attribute(self, name: str) -> str | None:
        """Give the value of an attribute up to the next comma or closing brace, or None."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return None if found is None else found[1]

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; empty where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return "" if found is None else found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in their order, by name."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Its parameters, in the order of the caller's operands."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.text)))

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """Who takes each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return {name: tuple(users) for name, users in found.items()}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of one device.

    Attributes:
      runs: how often each computation runs: a loop's body by its trips, times those of the loops
        around it. What a fusion or an asynchronous operation calls counts as often as the caller.
      scheduled: the computations that are run as a sequence of operations (the entry, bodies and
        branches); the others are what those operations are made of.
      unknown_loops: loops whose trips the text does not tell; they are counted once.
    """

    computations: Mapping[str, Computation]
    entry: str
    runs: Mapping[str, float]
    scheduled: frozenset[str]
    unknown_loops: tuple[str, ...]

    def walk(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Give every instruction with its computation and how often it runs."""
        for name, runs in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, runs


def read(text: str, trips: Mapping[str, int] | None = None) -> Program:
    """Read the text of `compiled.as_text()`.

    Args:
      trips: turns of loops that end by their data (decoding), by the end of the loop's `op_name`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _computations(text)
    if not entry:
        raise ValueError("this text has no ENTRY computation; expected compiled.as_text()")
    walker = _Walker(computations, trips or {})
    walker.visit(entry, 1.0, scheduled=True)
    return Program(
        computations, entry, walker.runs, frozenset(walker.scheduled), tuple(walker.unknown)
    )


class _Walker:
    """Adds up how often each computation runs."""

    def __init__(self, computations: Mapping[str, Computation], trips: Mapping[str, int]):
        self.computations, self.trips = computations, trips
        self.runs: dict[str, float] = {}
        self.scheduled: set[str] = set()
        self.unknown: list[str] = []

    def visit(self, name: str, runs: float, scheduled: bool) -> None:
        self.runs[name] = self.runs.get(name, 0.0) + runs
        if scheduled:
            self.scheduled.add(name)
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            inside = scheduled and instruction.opcode in ("while", "conditional", "call")
            turns = 1.0
            if instruction.opcode == "while":
                turns = self._turns(computation, instruction)
            for role, names in instruction.called.items():
                if role == "to_apply" and instruction.opcode != "call":
                    continue  # the scalar function of a reduction
                for called in names:
                    often = turns if role in _ITERATED else 1.0
                    self.visit(called, runs * often, inside and role != "condition")

    def _turns(self, computation: Computation, loop: Instruction) -> float:
        if known := _TRIPS.search(loop.attributes):
            return float(known[1])
        turns = counted_trips(self.computations, computation, loop)
        if turns is not None:  # a loop over layers may have the name of the loop that ends by data
            return float(turns)
        bound = [n for end, n in self.trips.items() if loop.op_name.endswith(end)]
        if not bound:
            self.unknown.append(loop.op_name or loop.name)
        return float(bound[0]) if bound else 1.0


def counted_trips(
    computations: Mapping[str, Computation], around: Computation, loop: Instruction
) -> int | None:
    """Give the turns of a loop that counts from a constant to a constant, or None.

    The condition compares one entry of the loop's tuple with a constant; the body adds a constant
    to that entry; where the loop is entered it is a constant.
    """
    condition = computations[loop.called["condition"][0]]
    body = computations[loop.called["body"][0]]
    test = condition.instructions[condition.root]
    while test.opcode in ("copy", "fusion") and len(test.operands) == 1:
        test = condition.instructions[test.operands[0]]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    left, right = (condition.instructions[name] for name in test.operands)
    end = _constant(condition, right.name)
    if left.opcode != "get-tuple-element" or end is None:
        return None
    index = int(left.attribute("index") or 0)
    start = _entry_constant(around, loop, index)
    step = _step(body, index)
    if start is None or not step:
        return None
    return max(0, -(-(end - start) // step))


def _constant(computation: Computation, name: str) -> int | None:
    """Give an integer constant, seen through copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        instruction = computation.instructions[instruction.operands[0]]
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.text):
        return None
    return int(instruction.text)


def _entry_constant(around: Computation, loop: Instruction, index: int) -> int | None:
    """Give entry `index` of the tuple that a loop starts from, if it is a constant."""
    entered = around.instructions[loop.operands[0]]
    if entered.opcode != "tuple":
        return None
    return _constant(around, entered.operands[index])


def _step(body: Computation, index: int) -> int | None:
    """Give what a body adds to entry `index` of its tuple, if it is a constant."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    total, name = 0, root.operands[index]
    while True:
        instruction = body.instructions[name]
        if instruction.opcode in ("copy", "bitcast"):
            name = instruction.operands[0]
        elif instruction.opcode == "add":
            constants = [_constant(body, operand) for operand in instruction.operands]
            if sum(c is not None for c in constants) != 1:
                return None
            at = 0 if constants[0] is not None else 1
            total, name = total + (constants[at] or 0), instruction.operands[1 - at]
        elif instruction.opcode == "get-tuple-element":
            same = int(instruction.attribute("index") or 0) == index
            return total if same else None
        else:
            return None


def _computations(text: str) -> tuple[dict[str, Computation], str]:
    found: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in _lines(text):
        if header := _HEADER.match(line):
            name, root, instructions = header[2], "", {}
            entry = name if header[1] else entry
        elif name and _END.fullmatch(line):
            found[name] = Computation(name, instructions, root)
            name = ""
        elif name and (parts := _LINE.match(line)):
            instruction = _instruction(parts[2], parts[3])
            instructions[instruction.name] = instruction
            root = instruction.name if parts[1] else root
    return found, entry


def _lines(text: str) -> Iterator[str]:
    """Give the lines; attributes that a kernel broke over several lines are joined."""
    whole = ""
    for line in text.splitlines():
        if whole and not (line.startswith("  ") or _HEADER.match(line) or _END.fullmatch(line)):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    text = rest[opening + 1 : closing - 1]
    return Instruction(
        name=name,
        shapes=shapes_of(kind),
        opcode=rest[:opening],
        operands=tuple(re.findall(r"%([\w.\-]+)", text)),
        text=text,
        attributes=rest[closing:],
    )


def shapes_of(kind: str) -> tuple[Shape, ...]:
    """Read a type: `bf16[8,128]{1,0:T(8,128)(2,1)S(1)}`, or a tuple of such."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(kind):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _closing(text: str, opening: int) -> int:
    """Give the index behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"parentheses do not close in {text[:80]!r}")
