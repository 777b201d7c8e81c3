"""Devices that are not here: TPU slices and NVIDIA GPUs by name, as abstract devices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jax
from jax.experimental import topologies

from research.core.parts import part, require
from research.plan.chips import CHIPS, Chip

FLAT = ("v5e", "v6e")  # two dimensions of chips; the others have three
RING = {"v5e": 16, "v6e": 16}  # a dimension of this length closes to a ring
CUBE = 4  # of the others, all dimensions close where all are multiples of this
GPUS = ("a100", "h100", "h200")
NODE = 8  # GPUs behind one switch
MOST_GPUS = 64
# Google's names count cores (v4, v5p) or chips; these are the shapes that they stand for.
CORES = ("v4", "v5p")
SHAPES = {
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "7x": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16",
}
EXPECTED = (
    "expected KIND:SHAPE, such as v5e:16x16, v5p:4x4x4, 7x:2x2x2, h100:16 or cpu:8, a name such as "
    "v5p-128, and N*... for N slices: 2*v5e:16x16"
)


@part
class Topology:
    """Some devices of one kind.

    Attributes:
      kind: a chip of `research/plan/chips.py`, or "cpu": the simulated devices of this machine.
      shape: chips along each dimension of a slice; for GPUs and CPUs their number.
      slices: how many such slices a slower network joins.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    def __post_init__(self) -> None:
        known = [*CHIPS, "cpu"]
        dims = 2 if self.kind in FLAT else 1 if self.kind in (*GPUS, "cpu") else 3
        gpus = self.kind in GPUS
        chips = math.prod(self.shape)
        require(
            self,
            (self.kind in known, f"{self.kind!r} is no kind of device; there are {known}"),
            (
                len(self.shape) == dims or self.kind not in known,
                f"{self.kind} has {dims} dimensions, not {len(self.shape)}: {EXPECTED}",
            ),
            (min(self.shape) > 0 and self.slices > 0, f"sizes must be positive: {EXPECTED}"),
            (
                self.slices == 1 or not (gpus or self.kind == "cpu"),
                f"{self.slices} slices of {self.kind}: only TPUs come in slices; say how many "
                f"devices there are in all",
            ),
            (
                not gpus or (chips <= NODE and NODE % chips == 0) or chips % NODE == 0,
                f"{chips} of {self.kind}: expected 1, 2, 4, 8, or a multiple of {NODE}",
            ),
            (not gpus or chips <= MOST_GPUS, f"{chips} GPUs: at most {MOST_GPUS} can be planned"),
        )

    @property
    def chip(self) -> Chip | None:
        """What one device can do; None for CPUs."""
        return CHIPS.get(self.kind)

    @property
    def platform(self) -> str:
        """The platform that compiles for it: "tpu", "cuda" or "cpu"."""
        return "cuda" if self.kind in GPUS else "cpu" if self.kind == "cpu" else "tpu"

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether each dimension closes to a ring: without, a link at its end is missing."""
        if self.kind in RING:
            return tuple(size == RING[self.kind] for size in self.shape)
        return (all(size % CUBE == 0 for size in self.shape),) * len(self.shape)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{f'{self.slices}*' if self.slices > 1 else ''}{self.kind}:{shape}"

    def devices(self) -> Sequence[Any]:
        """Describe the devices to jax.

        TPUs need libtpu and GPUs jax's CUDA plugin; neither needs the hardware.

        Raises:
          ValueError: the compiler for them is not installed, or there are fewer simulated CPU
            devices.
        """
        if self.platform == "cpu":
            return _simulated(self.shape[0])
        try:
            described = self._describe()
        except (RuntimeError, ImportError) as error:
            extra = "tpu" if self.platform == "tpu" else "cuda13"
            raise ValueError(
                f"{self} cannot be compiled for here: {str(error).splitlines()[0]}; install the "
                f"compiler with pip install 'maktab[{extra}]', and let no other process use it"
            ) from error
        return described.devices

    def _describe(self) -> Any:
        if self.platform == "cuda":
            chips = self.shape[0]
            text = resources.files("research.plan") / "targets" / f"{self.kind}.txtpb"
            return topologies.get_topology_desc(
                platform="cuda",
                topology_name=self.kind,
                topology=f"1x{max(1, chips // NODE)}x{min(chips, NODE)}",
                target_config=text.read_text(),
            )
        options: dict[str, Any] = {"wrap": [*self.rings, False][:3]}
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
        if self.slices > 1:
            options["num_slices"] = self.slices
        if self.kind == "v4":  # as in the cloud: one device a chip, of two cores
            options["chip_config_name"] = "megacore"
        name = "tpu7x" if self.kind == "7x" else self.kind
        shape = "x".join(map(str, self.shape))
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{shape}", **options
        )


def parse_topology(text: str) -> Topology:
    """Read `v5e:16x16`, `2*v5p:4x4x4`, `v5p-128`, `h100:16` or `cpu:8`.

    Raises:
      ValueError: it is none of these.
    """
    found = re.fullmatch(
        r"(?:(\d+)\*)?(?:tpu)?([a-z0-9]+)(?::(\d+(?:x\d+)*)|-(\d+))", text.lower().replace(" ", "")
    )
    if found is None:
        raise ValueError(f"topology {text!r}: {EXPECTED}")
    slices, kind, shape, count = found.groups()
    if count is not None:
        shape = _named(text, kind, int(count))
    return Topology(
        kind=kind, shape=tuple(int(n) for n in shape.split("x")), slices=int(slices or 1)
    )


def _named(text: str, kind: str, count: int) -> str:
    """Give the shape of a slice that is named by the number of its chips or cores."""
    if kind not in SHAPES:
        raise ValueError(f"topology {text!r}: {kind!r} is not named by numbers; {EXPECTED}")
    each = 2 if kind in CORES else 1
    shapes = {
        each * math.prod(int(n) for n in shape.split("x")): shape for shape in SHAPES[kind].split()
    }
    if count not in shapes:
        names = ", ".join(f"{kind}-{n}" for n in shapes)
        raise ValueError(f"topology {text!r}: there are {names}; or give the shape: {EXPECTED}")
    return shapes[count]


def _simulated(count: int) -> Sequence[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"cpu:{count}: jax simulates {len(devices)} devices here; "
            f"jax.config.update('jax_num_cpu_devices', {count}) before it starts"
        )
    return devices[:count]
