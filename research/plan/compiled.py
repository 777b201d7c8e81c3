"""What a compiled program needs: memory, products, traffic, and what it sends over the mesh."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research.plan.collectives import Collective, collectives
from research.plan.hlo import Computation, Instruction, Program, read
from research.plan.products import executed_flops
from research.plan.traffic import FREE, memory_traffic

LARGEST = 12  # tensors that are named
THROUGH = ("copy", "bitcast", "copy-start", "copy-done", "fusion", "get-tuple-element")


class DoesNotFit(RuntimeError):  # noqa: N818
    """A compiler refused a program that needs more memory than the device has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One array of a program, on one device.

    Attributes:
      what: the parameter's path, or where in the traced program it is made.
      shape: of the part that one device holds.
    """

    what: str
    shape: str
    nbytes: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled program, on one device.

    Attributes:
      argument_bytes: what is given to it.
      kept_bytes: what it gives back in memory of its own; donated arguments are not counted.
      temporary_bytes: the rest of its peak: gradients, activations and what is gathered.
      peak_bytes: the most that is alive at once, as the compiler planned it.
      activation_bytes: what layers keep for the backward pass: stacks that one loop writes and
        another reads.
      flops: of all products, recomputed ones included.
      traffic_bytes: between the chip and its memory.
      collectives: those that send the most first.
      largest: the largest arrays that are made, the largest first.
      unknown_loops: loops that were counted once because nothing tells their turns.
      compile_s: seconds of tracing and compiling, on the machine that planned.
    """

    name: str
    argument_bytes: float
    kept_bytes: float
    temporary_bytes: float
    peak_bytes: float
    activation_bytes: float
    flops: float
    traffic_bytes: float
    collectives: tuple[Collective, ...]
    largest: tuple[Tensor, ...]
    unknown_loops: tuple[str, ...]
    compile_s: float


def compile_program(
    name: str,
    program: Any,
    arguments: Sequence[Any],
    mesh: Mapping[str, int],
    options: Mapping[str, Any],
    trips: Mapping[str, int],
    ids: Sequence[int] = (),
    filled: float = 1.0,
) -> Compiled:
    """Compile a jitted program for abstract arguments and say what it needs.

    Args:
      mesh: axis -> size, in the order of the mesh's dimensions.
      options: the compiler's.
      trips: see `research.plan.hlo.read`.
      ids: of the mesh's devices, in its order.
      filled: see `research.plan.products.executed_flops`.

    Raises:
      DoesNotFit: the compiler refused; the message has its figures.
    """
    start = time.perf_counter()
    try:
        compiled = program.trace(*arguments).lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(f"{name} does not fit: {refusal(str(error))}") from error
    seconds = time.perf_counter() - start
    program = read(compiled.as_text(), trips)
    return _analyse(name, program, compiled.memory_analysis(), mesh, ids, filled, seconds)


def _analyse(
    name: str,
    program: Program,
    memory: Any,
    mesh: Mapping[str, int],
    ids: Sequence[int],
    filled: float,
    seconds: float,
) -> Compiled:
    arguments = memory.argument_size_in_bytes
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    on_host = memory.host_argument_size_in_bytes  # what waits there counts in the compiler's peak
    peak = max(memory.peak_memory_in_bytes - on_host, arguments + kept)
    return Compiled(
        name=name,
        argument_bytes=arguments,
        kept_bytes=kept,
        temporary_bytes=peak - arguments - kept,
        peak_bytes=peak,
        activation_bytes=kept_activations(program),
        flops=executed_flops(program, filled),
        traffic_bytes=memory_traffic(program),
        collectives=collectives(program, mesh, ids),
        largest=largest_tensors(program),
        unknown_loops=program.unknown_loops,
        compile_s=seconds,
    )


def refusal(message: str) -> str:
    """Give the sentence with the figures of a compiler's refusal."""
    for pattern in (
        r"Used \S+ of \S+ hbm[^\n]*",
        r"the total memory required[^\n]*",
        r"[^\n]*out of memory[^\n]*",
    ):
        if found := re.search(pattern, message):
            return found[0].strip()
    return message.strip().splitlines()[0]


def largest_tensors(program: Program, count: int = LARGEST) -> tuple[Tensor, ...]:
    """List the largest arrays that operations make in main memory, each shape and origin once."""
    found: dict[tuple[str, str], Tensor] = {}
    for computation, instruction, _ in program.walk():
        if computation.name not in program.scheduled or instruction.opcode in FREE:
            continue
        for shape in instruction.shapes:
            if not shape.space:
                what = instruction.op_name or instruction.opcode
                tensor = Tensor(what=what, shape=str(shape), nbytes=shape.nbytes)
                found.setdefault((str(shape), what), tensor)
    return tuple(sorted(found.values(), key=lambda tensor: -tensor.nbytes)[:count])


def kept_activations(program: Program) -> float:
    """Add the stacks that one loop writes, a slice a turn, and another loop is given."""
    return sum(
        shape.nbytes
        for name in program.scheduled
        for loop in program.computations[name].instructions.values()
        if loop.opcode == "while"
        for index, shape in enumerate(loop.shapes)
        if len(shape.dims) > 1
        and _writes(program, loop, index)
        and _reaches_a_loop(program.computations[name], loop, index)
    )


def _writes(program: Program, loop: Instruction, index: int) -> bool:
    """Whether a loop's body changes an entry of its tuple by writing a slice into it."""
    body = program.computations[loop.called["body"][0]]
    root = body.instructions[body.root]
    if root.opcode != "tuple" or len(root.operands) <= index:
        return False
    last = body.instructions[root.operands[index]]
    while last.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        last = body.instructions[last.operands[0]]
    if last.opcode == "get-tuple-element":
        source = body.instructions[last.operands[0]]
        if source.opcode != "fusion":
            return False
        last = source
    if last.opcode != "fusion":
        return last.opcode == "dynamic-update-slice"
    inner = program.computations[last.called["calls"][0]]
    return any(i.opcode == "dynamic-update-slice" for i in inner.instructions.values())


def _reaches_a_loop(around: Computation, loop: Instruction, index: int) -> bool:
    """Whether what a loop gives as one entry goes, perhaps copied, into another loop."""
    pending = [
        user
        for user in around.users[loop.name]
        if user.opcode == "get-tuple-element" and user.attribute("index") == str(index)
    ]
    size = loop.shapes[index].nbytes
    seen = set()
    while pending:
        instruction = pending.pop()
        for user in around.users[instruction.name]:
            if user.name in seen:
                continue
            seen.add(user.name)
            if user.opcode == "tuple" and any(
                taker.opcode == "while" for taker in around.users[user.name]
            ):
                return True
            if user.opcode in THROUGH and any(s.nbytes >= size / 2 for s in user.shapes):
                pending.append(user)
    return False
