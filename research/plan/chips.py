"""What a chip can do, by its data sheet, and how much of its memory a program may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GIB = 2**30
CLOUD = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"
COMPILER = "the largest program its compiler accepted (libtpu 0.0.42)"
PASSES = 6  # of bfloat16 that a TPU makes of a float32 product at Precision.HIGHEST
HIGHEST = "https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision"
FRACTION = "0.75 of it: what jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as jax sees it.

    Attributes:
      name: as it stands in a topology.
      memory_bytes: on the data sheet.
      usable_bytes: what a program may take of it.
      peak_flops_per_s: of dense products, by the dtype of the operands as an experiment names it;
        those of float32 are exact (`research/core/precision.py`).
      memory_bytes_per_s: between the chip and its memory.
      link_bytes_per_s: over one link of the fast network, in one direction. A TPU has two links
        for each dimension of its torus, a GPU one port into the switch of its node.
      outer_bytes_per_s: of one device into the slower network that joins slices or nodes, in one
        direction; None where nobody publishes it.
      sources: where each number is from.
    """

    name: str
    memory_bytes: int
    usable_bytes: int
    peak_flops_per_s: Mapping[str, float]
    memory_bytes_per_s: float
    link_bytes_per_s: float
    outer_bytes_per_s: float | None
    sources: Mapping[str, str]

    def balance(self, dtype: str) -> float:
        """Give the FLOPs a byte at which products and memory take equally long."""
        return self.peak_flops_per_s[dtype] / self.memory_bytes_per_s


def tpu(
    name: str,
    page: str,
    *,
    memory_gib: float,
    usable_gib: float,
    bf16: float,
    memory: float,
    link: float,
    outer: float | None,
    cores: int = 1,
) -> Chip:
    """Describe a TPU whose chip is `cores` devices.

    It multiplies in bfloat16. An exact float32 product is six such passes; the compiled text has it
    as one product, so what it takes lies in the peak.
    """
    share = f", a half of the chip's for each of its {cores} devices" if cores > 1 else ""
    return Chip(
        name=name,
        memory_bytes=int(memory_gib * GIB / cores),
        usable_bytes=int(usable_gib * GIB),
        peak_flops_per_s={"bfloat16": bf16 / cores, "float32": bf16 / cores / PASSES},
        memory_bytes_per_s=memory / cores,
        link_bytes_per_s=link / cores,
        outer_bytes_per_s=None if outer is None else outer / cores,
        sources={
            "memory": f"{page}{share}",
            "usable": COMPILER,
            "peak": f"{page}{share}; float32 in {PASSES} bfloat16 passes: {HIGHEST}",
            "memory bandwidth": f"{page}{share}",
            "links": f"{page}: bandwidth of the chip, both directions, over its links{share}",
            "slower network": f"{page}{share}" if outer is not None else "not published",
        },
    )


def gpu(
    name: str,
    page: str,
    *,
    memory_bytes: int,
    bf16: float,
    fp32: float,
    memory: float,
    link: float,
    outer: float,
) -> Chip:
    """Describe an NVIDIA GPU of the SXM form in a node of eight.

    Its tensor cores multiply bfloat16 and TF32; exact float32 products run on its CUDA cores.
    """
    return Chip(
        name=name,
        memory_bytes=memory_bytes,
        usable_bytes=int(0.75 * memory_bytes),
        peak_flops_per_s={"bfloat16": bf16, "float32": fp32},
        memory_bytes_per_s=memory,
        link_bytes_per_s=link,
        outer_bytes_per_s=outer,
        sources={
            "memory": f"{page}; what the driver reports",
            "usable": FRACTION,
            "peak": f"{page}, dense; float32 on the CUDA cores, not as TF32: {HIGHEST}",
            "memory bandwidth": page,
            "links": f"{page}: NVLink, a half of both directions",
            "slower network": "one adapter a GPU, as in NVIDIA's DGX: 200 Gb/s (A100), 400 (H100)",
        },
    )


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        tpu(
            "v4",
            CLOUD + "v4 (links: all-reduce bandwidth of a pod, 1.1 PB/s, over 4096 x 6 links)",
            memory_gib=32,
            usable_gib=30.75,
            bf16=275e12,
            memory=1200e9,
            link=45e9,
            outer=None,
        ),
        tpu(
            "v5e",
            CLOUD + "v5e",
            memory_gib=16,
            usable_gib=15.75,
            bf16=197e12,
            memory=819e9,
            link=50e9,
            outer=25e9 / 8,
        ),
        tpu(
            "v5p",
            CLOUD + "v5p",
            memory_gib=95,
            usable_gib=95.74,
            bf16=459e12,
            memory=2765e9,
            link=100e9,
            outer=50e9 / 8,
        ),
        tpu(
            "v6e",
            CLOUD + "v6e",
            memory_gib=32,
            usable_gib=31.25,
            bf16=918e12,
            memory=1638e9,
            link=100e9,
            outer=100e9 / 8,
        ),
        tpu(
            "7x",
            CLOUD + "tpu7x",
            memory_gib=192,
            usable_gib=94.75,
            bf16=2307e12,
            memory=7380e9,
            link=100e9,
            outer=100e9 / 8,
            cores=2,
        ),
        gpu(
            "a100",
            NVIDIA + "a100/",
            memory_bytes=85_000_000_000,
            bf16=312e12,
            fp32=19.5e12,
            memory=2039e9,
            link=300e9,
            outer=25e9,
        ),
        gpu(
            "h100",
            NVIDIA + "h100/",
            memory_bytes=84_942_979_072,
            bf16=989.4e12,
            fp32=67e12,
            memory=3350e9,
            link=450e9,
            outer=50e9,
        ),
        gpu(
            "h200",
            NVIDIA + "h200/",
            memory_bytes=151_397_597_184,
            bf16=989.4e12,
            fp32=67e12,
            memory=4800e9,
            link=450e9,
            outer=50e9,
        ),
    )
}
