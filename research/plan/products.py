"""The products of a compiled program: what one device multiplies in a step, recomputation and all.

A multiply-add is 2 FLOPs. A TPU's compiler writes every product as a convolution, in which an axis
of a batch or of heads may be a window that only partly overlaps what it slides over: places where
it does not are no work.
"""

from __future__ import annotations

import math
import re

from research.plan.hlo import Computation, Instruction, Program, Shape

# Products in each kernel of splash attention, all of (queries x keys x head width), a half of them
# hidden by the mask: scores and mixture; and backwards scores again, then dP with dV and dK, or dP
# with dQ, or all of them.
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
FUSED_DKV = 5  # where there is no dq kernel
GROUPED = "ragged-dot-none"  # a kernel of rows [M, K] with the matrices [E, K, N] of their experts


def executed_flops(program: Program, filled: float = 1.0) -> float:
    """Give the FLOPs of all products that one device runs.

    Args:
      filled: the share of the rows that grouped kernels are given which some expert has.
    """
    kernels = [(i, runs) for _, i, runs in program.walk() if _splash(i) is not None]
    separate = any(_splash(i) == "splash_mha_dq" for i, _ in kernels)
    attention = sum(runs * _splash_flops(program, i, separate) for i, runs in kernels)
    grouped = sum(
        runs * filled * _grouped_flops(computation, instruction)
        for computation, instruction, runs in program.walk()
        if instruction.opcode == "custom-call" and instruction.name.startswith(GROUPED)
    )
    products = sum(
        runs * _flops(computation, instruction)
        for computation, instruction, runs in program.walk()
        if instruction.opcode in ("dot", "convolution")
    )
    return attention + grouped + products


def _grouped_flops(computation: Computation, instruction: Instruction) -> float:
    rows = instruction.shapes[0]
    matrices = computation.instructions[instruction.operands[-1]].shapes[0]
    return 2.0 * rows.size * matrices.size / (matrices.dims[0] * rows.dims[-1])


def _flops(computation: Computation, instruction: Instruction) -> float:
    left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        numbers = instruction.attribute("lhs_contracting_dims") or "{}"
        summed = math.prod(left.dims[int(n)] for n in re.findall(r"\d+", numbers))
        return 2.0 * instruction.shapes[0].size * summed
    return _convolution_flops(instruction, left, right)


def _convolution_flops(instruction: Instruction, left: Shape, right: Shape) -> float:
    """Count 2 x (batch x features in and out) x (overlaps along each window dimension)."""
    labels = instruction.attribute("dim_labels") or ""
    left_labels, rest = labels.split("_")
    right_labels, out_labels = rest.split("->")
    out = instruction.shapes[0]
    groups = int(instruction.attribute("feature_group_count") or 1)
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left.dims[left_labels.index("b")]
    inputs, outputs = (right.dims[right_labels.index(letter)] for letter in "io")
    del groups  # the kernel's inputs are those of one group already
    total = 2.0 * batch / batch_groups * inputs * outputs
    for number in range(len(left_labels) - 2):
        label = str(number)
        total *= overlaps(
            left.dims[left_labels.index(label)],
            right.dims[right_labels.index(label)],
            out.dims[out_labels.index(label)],
            _window(instruction, "pad", number, "0_0").split("_")[0],
            _window(instruction, "stride", number, "1"),
            _window(instruction, "lhs_dilate", number, "1"),
            _window(instruction, "rhs_dilate", number, "1"),
        )
    return total


def overlaps(
    size: int,
    window: int,
    places: int,
    pad_low: int | str,
    stride: int | str,
    dilate: int | str,
    window_dilate: int | str,
) -> int:
    """Count (place, tap) pairs in which a tap of a window meets an element, not padding or a gap.

    Args:
      size, window: elements slid over, and taps of the window.
      places: where the window stands, one for each output.
      pad_low: padding before the first element; negative cuts.
      stride: between places.
      dilate, window_dilate: distance of neighbours among the elements, and among the taps.
    """
    low, step, gap, reach = int(pad_low), int(stride), int(dilate), int(window_dilate)
    extent = (size - 1) * gap
    if gap == 1 and step == 1 and reach == 1:
        # place p and tap k meet element p + k - low, which is there between 0 and extent
        return sum(
            max(0, min(places - 1, extent + low - k) - max(0, low - k) + 1) for k in range(window)
        )
    return sum(
        1
        for k in range(window)
        for p in range(places)
        if 0 <= (x := p * step + k * reach - low) <= extent and x % gap == 0
    )


def _window(instruction: Instruction, key: str, number: int, default: str) -> str:
    """Give one dimension's entry of `window={size=8x2 pad=7_7x0_0 ...}`."""
    window = instruction.attribute("window") or ""
    found = re.search(rf"\b{key}=([\d_x\-]+)", window)
    return default if found is None else found[1].split("x")[number]


def _splash(instruction: Instruction) -> str | None:
    if instruction.opcode != "custom-call" or "tpu_custom_call" not in instruction.attributes:
        return None
    return next((kernel for kernel in SPLASH if kernel in instruction.name), None)


def _splash_flops(program: Program, instruction: Instruction, separate: bool) -> float:
    """Count a kernel by its queries [..., heads, T, H], as if every row were one causal text."""
    kernel = _splash(instruction) or ""
    products = SPLASH[kernel] if separate or kernel != "splash_mha_dkv" else FUSED_DKV
    where = next(c for c in program.computations.values() if instruction.name in c.instructions)
    operands = [where.instructions[name].shapes[0] for name in instruction.operands]
    query = next(s for s in operands if s.dtype in ("bf16", "f32") and len(s.dims) >= 3)
    keys = query.dims[-2]
    return 2.0 * products * query.size * (keys + 1) / 2
