"""How long a step takes at least: a roofline of products, memory and networks, and its assumptions.

compute_s = FLOPs that are run / peak            memory_s = bytes to and from memory / bandwidth
network_s = sum over mesh axes of bytes sent / bandwidth of what the axis lies on
step_s    = max(compute_s, memory_s, network_s)         everything overlaps with everything
serial_s  = compute_s + memory_s + network_s            nothing overlaps
MFU       = model FLOPs / (devices x peak x step_s)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from research.plan.chips import Chip
from research.plan.collectives import Collective
from research.plan.compiled import Compiled
from research.plan.topologies import NODE, Topology

ASSUMPTIONS = (
    "products run at the data sheet's peak for the compute dtype, float32 ones at that of exact"
    " products; nothing else takes time",
    "routing is even: of the rows that a mixture's experts are given room for, they multiply those"
    " that hold a token",
    "every operation reads its operands from memory and writes its results once, at full bandwidth",
    "a collective is as fast as its links: on a TPU two links for every dimension of the torus that"
    " its group spans (one where the dimension is no ring), on a GPU the port into the switch",
    "what crosses slices or nodes is shared by the members of the group on each side; between v4"
    " slices it is free, because nobody publishes that network",
    "mesh axes take turns on the network; latency, contention and stragglers cost nothing",
    "the estimate lets products, memory and network overlap fully; 'serial' lets none of them",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one run of a program.

    Attributes:
      network_s: mesh axes -> seconds on the network.
      model_flops: of the whole program over all devices, analytically: no recomputation.
      balance: FLOPs a byte at which the chip's products and memory take equally long.
      intensity: FLOPs of products a byte of memory traffic.
    """

    compute_s: float
    memory_s: float
    network_s: Mapping[tuple[str, ...], float]
    model_flops: float
    peak_flops_per_s: float
    balance: float
    intensity: float

    @property
    def step_s(self) -> float:
        """Seconds where everything overlaps."""
        return max(self.compute_s, self.memory_s, sum(self.network_s.values()))

    @property
    def serial_s(self) -> float:
        """Seconds where nothing overlaps."""
        return self.compute_s + self.memory_s + sum(self.network_s.values())

    @property
    def bound(self) -> str:
        """What the estimate is bound by."""
        network = sum(self.network_s.values())
        times = {"products": self.compute_s, "memory": self.memory_s, "network": network}
        return max(times, key=lambda name: times[name])

    def mfu(self, seconds: float) -> float:
        """Give the share of all devices' peak that the model's own FLOPs are."""
        return self.model_flops / (self.peak_flops_per_s * seconds)


def roofline(
    compiled: Compiled,
    topology: Topology,
    devices: Sequence[Any],
    dtype: str,
    model_flops: float,
) -> Roofline | None:
    """Estimate the time of a compiled program; None for devices whose speed is not known.

    Args:
      devices: of the mesh, flat: what the collectives' groups count in.
      dtype: of the products.
    """
    chip = topology.chip
    if chip is None:
        return None
    network: dict[tuple[str, ...], float] = {}
    for one in compiled.collectives:
        seconds = one.runs * seconds_of(one, topology, chip, devices)
        network[one.axes] = network.get(one.axes, 0.0) + seconds
    return Roofline(
        compute_s=compiled.flops / chip.peak_flops_per_s[dtype],
        memory_s=compiled.traffic_bytes / chip.memory_bytes_per_s,
        network_s=dict(sorted(network.items(), key=lambda item: -item[1])),
        model_flops=model_flops,
        peak_flops_per_s=chip.peak_flops_per_s[dtype] * len(devices),
        balance=chip.balance(dtype),
        intensity=compiled.flops / max(compiled.traffic_bytes, 1.0),
    )


def seconds_of(one: Collective, topology: Topology, chip: Chip, devices: Sequence[Any]) -> float:
    """Give the seconds of one run of a collective."""
    members = [devices[position] for position in one.group]
    sides = [_side(device, topology) for device in members]
    count, each = len(set(sides)), len(sides) // max(1, len(set(sides)))
    fast = one.sent_bytes / link_rate(members, topology, chip) if each > 1 else 0.0
    if count == 1 or chip.outer_bytes_per_s is None:
        return fast
    shared = (count - 1) / max(len(members) - 1, 1)
    shared *= each if "all-to-all" in one.kind else 1  # there every pair has something of its own
    return max(fast, one.sent_bytes * shared / chip.outer_bytes_per_s)


def link_rate(members: Sequence[Any], topology: Topology, chip: Chip) -> float:
    """Give the bytes a second that a device sends on the fast network, in a group of members."""
    if topology.platform == "cuda":
        return chip.link_bytes_per_s
    side = _side(members[0], topology)
    near = [device.coords for device in members if _side(device, topology) == side]
    links = 0
    for dimension, size in enumerate(topology.shape):
        places = {coords[dimension] for coords in near}
        if len(places) > 1:
            links += 2 if len(places) == size and topology.rings[dimension] else 1
    # The two cores of one chip are joined by more than the links of the torus.
    return chip.link_bytes_per_s * (links or 2 * len(topology.shape))


def _side(device: Any, topology: Topology) -> int:
    """Name the slice or node that a device belongs to: the fast network ends there."""
    if topology.platform == "cuda":
        return device.id // NODE
    return getattr(device, "slice_index", None) or 0
