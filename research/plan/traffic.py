"""What a compiled program moves between a device and its memory."""

from __future__ import annotations

from research.plan.hlo import Computation, Instruction, Program

# Operations that only rename what is there, or wait for what another operation has moved.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "add-dependency",
}  # fmt: skip
THROUGH = ("bitcast", "reshape", "copy", "convert", "transpose")


def memory_traffic(program: Program) -> float:
    """Give the bytes that one device reads from and writes to its main memory in a step.

    Every operation reads its operands and writes its results once; what lies on the chip (a TPU's
    VMEM) is free, and of a stack that is sliced or written in place only the slice counts.
    """
    return sum(
        runs * _moved(program, computation, instruction)
        for computation, instruction, runs in program.walk()
        if computation.name in program.scheduled
    )


def _moved(program: Program, around: Computation, instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return 0.0
    if opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0.0
    called = [name for names in instruction.called.values() for name in names]
    inner = program.computations[called[0]] if opcode == "fusion" else None
    read = sum(
        _read(inner, position, around.instructions[name])
        for position, name in enumerate(instruction.operands)
    )
    if opcode in ("dynamic-slice", "gather"):
        read = sum(shape.nbytes for shape in instruction.shapes if not shape.space)
    return read + _written(inner, around, instruction)


def _read(inner: Computation | None, position: int, operand: Instruction) -> float:
    """Give what a fusion reads of an operand: all of it, or the slices it takes."""
    main = sum(shape.nbytes for shape in operand.shapes if not shape.space)
    if inner is None or not main or position >= len(inner.parameters):
        return main
    taken = 0.0
    for user in _users(inner, inner.parameters[position].name):
        if user.opcode in ("dynamic-slice", "gather"):
            taken += user.shapes[0].nbytes
        elif user.opcode != "dynamic-update-slice":
            return main
    return min(main, taken)


def _users(inner: Computation, name: str) -> list[Instruction]:
    """Give who takes a value as its first operand, seen through what only renames it.

    A use in another place (an update, an index) reads it whole: it is given as its own user.
    """
    found: list[Instruction] = []
    for user in inner.users[name]:
        if user.opcode == "bitcast":
            found += _users(inner, user.name)
        elif user.opcode in ("dynamic-slice", "gather", "dynamic-update-slice"):
            found.append(user if user.operands[0] == name else inner.instructions[name])
        else:
            found.append(user)
    return found


def _written(inner: Computation | None, around: Computation, instruction: Instruction) -> float:
    """Give what an operation writes: its results, or the slice that it updates in place."""
    whole = [shape.nbytes for shape in instruction.shapes if not shape.space]
    if instruction.opcode == "dynamic-update-slice":
        return around.instructions[instruction.operands[1]].shapes[0].nbytes
    if instruction.opcode == "copy-start":
        shapes = instruction.shapes[:1]
        return sum(shape.nbytes for shape in shapes if not shape.space)
    if inner is None or not whole:
        return sum(whole)
    root = inner.instructions[inner.root]
    while root.opcode in THROUGH:
        root = inner.instructions[root.operands[0]]
    parts = (
        [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    written = 0.0
    for part in parts:
        while part.opcode == "bitcast":
            part = inner.instructions[part.operands[0]]
        if part.opcode == "dynamic-update-slice":
            written += inner.instructions[part.operands[1]].shapes[0].nbytes
        else:
            written += sum(shape.nbytes for shape in part.shapes if not shape.space)
    return min(sum(whole), written) if len(parts) == 1 or written else sum(whole)
