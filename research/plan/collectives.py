"""What a compiled program sends between devices: each collective, its mesh axes and its bytes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from research.plan.hlo import Computation, Instruction, Program

# What one device sends, as a multiple of its operand's bytes, in a group of n; a ring's cost.
SENT = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
# Between slices a TPU's compiler hands shards to its Megascale runtime, on the hosts.
MEGASCALE = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
SLICE_IDS = 100_000  # a device's id is this times its slice, from 1, and its place in the slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: "all-gather", "reduce-scatter", ...
      axes: the mesh axes that it spans, in the mesh's order.
      group: positions in the mesh (of `mesh.devices.flat`) of the group that holds position 0, or
        for a permutation the pair that sends farthest.
      runs: how often a step runs it.
      operand_bytes: of one device, each time.
      sent_bytes: what one device sends each time.
      shape: of what is moved.
      source: where in the traced program it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    runs: float
    operand_bytes: float
    sent_bytes: float
    shape: str
    source: str

    @property
    def step_bytes(self) -> float:
        """What one device sends in a step."""
        return self.runs * self.sent_bytes


def collectives(
    program: Program, mesh: Mapping[str, int], ids: Sequence[int] = ()
) -> tuple[Collective, ...]:
    """List the collectives of a program, those that send the most first.

    Args:
      mesh: axis -> size, in the order of the mesh's dimensions.
      ids: of `mesh.devices.flat`; programs over several slices name devices by them.

    Raises:
      ValueError: a program says who talks to whom in a way that is not known here.
    """
    found = [
        _collective(computation, instruction, kind, runs, mesh, ids)
        for computation, instruction, runs in program.walk()
        if (kind := _kind(computation, instruction)) is not None
    ]
    return tuple(sorted((c for c in found if c.axes), key=lambda c: -c.step_bytes))


def bytes_by_axis(found: Sequence[Collective]) -> dict[tuple[str, ...], float]:
    """Add what one device sends in a step over each mesh axis (or several that act as one)."""
    totals: dict[tuple[str, ...], float] = {}
    for one in found:
        totals[one.axes] = totals.get(one.axes, 0.0) + one.step_bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _kind(computation: Computation, instruction: Instruction) -> str | None:
    """Name what an instruction does on the network; None where it does nothing there.

    A TPU's compiler writes some collectives in parts: a reduce-scatter as a fusion that slices an
    all-reduce, and an all-gather that is hidden behind products as a chain of fusions, each of
    which repeats the instruction; only the one that starts it counts.
    """
    kind = instruction.opcode.removesuffix("-start")
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if kind == "send" and transfer:
        return MEGASCALE[transfer[1]]
    if kind not in SENT:
        return None
    users = computation.users[instruction.name]
    if "chain_id=" in instruction.attributes:
        starts = any('"AsyncCollectiveStart"' in user.attributes for user in users)
        return kind if starts else None
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return kind


def _collective(
    computation: Computation,
    instruction: Instruction,
    kind: str,
    runs: float,
    mesh: Mapping[str, int],
    ids: Sequence[int],
) -> Collective:
    operands = [computation.instructions[name] for name in instruction.operands]
    shapes = [shape for operand in operands for shape in operand.shapes]
    shapes = shapes[:1] if kind.startswith(("collective-permute", "ragged")) else shapes
    if instruction.opcode == "send":
        groups = _groups_of_slices(instruction, ids)
    else:
        groups = groups_of(instruction, math.prod(mesh.values()))
    if kind == "collective-permute":
        groups = groups[np.argsort(-np.abs(groups[:, 0] - groups[:, 1]))]
    size = sum(shape.nbytes for shape in shapes)
    sent = size * SENT[kind](groups.shape[1]) if groups.size else 0.0
    return Collective(
        kind=kind,
        axes=axes_spanned(groups, mesh),
        group=tuple(int(x) for x in groups[0]) if groups.size else (),
        runs=runs,
        operand_bytes=size,
        sent_bytes=sent,
        shape=" ".join(str(shape) for shape in shapes[:3]) + (" ..." if len(shapes) > 3 else ""),
        source=instruction.op_name,
    )


def axes_spanned(groups: Int[np.ndarray, "groups size"], mesh: Mapping[str, int]) -> tuple:
    """Give the mesh axes along which members of one group differ."""
    if not groups.size:
        return ()
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)
    differs = (coordinates != coordinates[:, :1]).any(axis=(0, 1))
    return tuple(axis for axis, yes in zip(mesh, differs, strict=True) if yes)


def groups_of(instruction: Instruction, num_devices: int) -> Int[np.ndarray, "groups size"]:
    """Read who talks to whom, in any of the ways a program writes it.

    Raises:
      ValueError: it is written in a way that is not known here.
    """
    text = instruction.attributes
    if "source_target_pairs=" in text:
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
        numbers = re.findall(r"\d+", pairs[1]) if pairs else []
        return np.array(numbers, int).reshape(-1, 2)
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
        groups = [g.split(",") for g in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(groups or [range(num_devices)], int)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(found[2]).reshape(_numbers(found[1]))
    if found := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? ?\{(.*?)\}",
        text,
    ):
        return _mesh_groups(found[1], found[2], found[3])
    raise ValueError(
        f"{instruction.opcode} {instruction.name}: its replica_groups are not written in a known "
        f"way: {text[:200]}"
    )


def _groups_of_slices(
    instruction: Instruction, ids: Sequence[int]
) -> Int[np.ndarray, "groups size"]:
    """Read `{1,2}x{0:3}` (slices; each place of one with its like), `{{100000,200000},...}` (groups
    of ids) and `{{100000->200000},...}` (pairs) as positions in `ids`."""
    text = instruction.attributes
    if found := re.search(r'_xla_megascale_target="\{([\d,]+)\}x\{(\d+)(?::(\d+))?\}"', text):
        first, last = int(found[2]), int(found[3] or found[2])
        groups = [[n * SLICE_IDS + k for n in _numbers(found[1])] for k in range(first, last + 1)]
    elif found := re.search(r"_xla_megascale_target=\{((?:\{[\d,>-]+\},?)+)\}", text):
        groups = [_numbers(group) for group in re.findall(r"\{([^}]+)\}", found[1])]
    else:
        raise ValueError(
            f"{instruction.name}: its slices are not written in a known way: {text[:300]}"
        )
    position = {device: index for index, device in enumerate(ids)}
    return np.array([[position[device] for device in group] for group in groups], int)


def _mesh_groups(sizes: str, ids: str | None, axes: str) -> Int[np.ndarray, "groups size"]:
    """Read `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`; an axis may be a part: 'a':(2)2."""
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    count = math.prod(shape.values())
    if ids is None:
        devices = np.arange(count)
    else:
        devices = _iota(ids) if ids.startswith("[") else np.array(_numbers(ids))
    asked = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    dims: list[tuple[str, int]] = []
    for name, size in shape.items():
        cuts = {1, size}
        for part, before, width in asked:
            if part == name and before:
                cuts |= {int(before), int(before) * int(width)}
        edges = sorted(cuts)
        dims += [(f"{name}:{low}", high // low) for low, high in itertools.pairwise(edges)]
    grid = devices.reshape([size for _, size in dims])
    last = []
    for name, before, width in asked:
        low = int(before or 1)
        high = low * int(width) if width else shape[name]
        for index, (label, _) in enumerate(dims):
            part, _, start = label.rpartition(":")
            if part == name and low <= int(start) < high:
                last.append(index)
    kept = [index for index in range(len(dims)) if index not in last]
    size = math.prod(dims[index][1] for index in last)
    return grid.transpose([*kept, *last]).reshape(-1, size)


def _iota(text: str) -> Int[np.ndarray, ...]:
    """Read `[2,4]T(1,0)`: 0, 1, 2, ... in that shape, transposed."""
    dims, _, order = text.partition("T")
    grid = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return grid.transpose(_numbers(order)) if order else grid


def _numbers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]
