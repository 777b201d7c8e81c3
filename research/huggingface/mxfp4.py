"""MXFP4 weights (GPT-OSS), read as the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from research.huggingface.fields import REMEDIES, Fields

DTYPE = "MXFP4"
BLOCKS, SCALES = "_blocks", "_scales"
"""What the names of a weight's two tensors end with: [E, out, G, 16] and [E, out, G], bytes."""
GROUP = 32  # numbers of the input axis that share a scale
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PAIRS = np.stack([np.tile(VALUES, 16), np.repeat(VALUES, 16)], axis=-1)
"""What each byte stands for: two E2M1 numbers, the low four bits first."""
_DOUBLES = (2 * PAIRS).view(np.uint64)[:, 0]  # a pair is looked up as one word


def is_used(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` says that weights are MXFP4."""
    return (config.get("quantization_config") or {}).get("quant_method") == "mxfp4"


def take(fields: Fields) -> None:
    """Accept a `quantization_config` of MXFP4, for a family whose weights come so.

    Raises:
      ValueError: it is of another kind.
    """
    found = fields.take("quantization_config", None)
    if found is not None and not is_used({"quantization_config": found}):
        raise ValueError(
            f"{fields.where}: quantization_config={found}: {REMEDIES['quantization_config']}"
        )


def unpacked_shape(name: str, blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape (E, in, out) of the weight that blocks and scales stand for.

    Raises:
      ValueError: they do not belong together.
    """
    if len(blocks) != 4 or blocks[:-1] != scales or 2 * blocks[-1] != GROUP:
        raise ValueError(
            f"{name}: MXFP4 blocks {blocks} and scales {scales} do not fit; expected [E, out, G, "
            f"{GROUP // 2}] and [E, out, G]"
        )
    return (blocks[0], blocks[2] * GROUP, blocks[1])


def read(
    region: tuple[Any, ...],
    blocks: Callable[[tuple], np.ndarray],
    scales: Callable[[tuple], np.ndarray],
) -> np.ndarray:
    """Read a part of the weight (E, in, out), float32, touching only the groups that it lies in."""
    expert, inputs, outputs = region
    first, last = inputs.start // GROUP, -(-inputs.stop // GROUP)
    groups = slice(first, last)
    held = dequantise(
        blocks((expert, outputs, groups, slice(0, GROUP // 2))), scales((expert, outputs, groups))
    )
    return held[..., inputs.start - first * GROUP : inputs.stop - first * GROUP].swapaxes(-1, -2)


def dequantise(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Give code x 2^(scale - 127), float32: [..., G, 16] and [..., G] -> [..., 32 G].

    Source: OCP Microscaling Formats v1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0); a scale of 255 is
    2^128 as in transformers. Codes are doubled and scales halved, so that no factor overflows.
    """
    numbers = _DOUBLES.take(blocks).view(np.float32).reshape(*scales.shape, GROUP)
    numbers *= np.ldexp(np.float32(1), scales.astype(np.int32) - 128)[..., None]
    return numbers.reshape(*scales.shape[:-1], -1)
