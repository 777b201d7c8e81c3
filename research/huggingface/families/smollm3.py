"""SmolLM3: a llama whose every fourth layer has no rotary positions."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope
from research.huggingface.windows import read_windows, write_windows
from research.models.architecture import Architecture

THETA = 2000000.0


def read_unrotated(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Read which layers have no positions: zeros of `no_rope_layers`, or each of an interval.

    Raises:
      ValueError: `no_rope_layers` does not say it for every layer.
    """
    interval = fields.take("no_rope_layer_interval", 4)
    rotated = fields.take("no_rope_layers", None)
    if rotated is None:
        rotated = [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if len(rotated) != num_layers:
        raise ValueError(
            f"{fields.where}: no_rope_layers has {len(rotated)} entries; expected {num_layers}, "
            "1 for a layer with rotary positions and 0 for one without"
        )
    return tuple(layer for layer, kept in enumerate(rotated) if not kept)


def read(fields: Fields) -> Architecture:
    """Read a smollm3 config; where windows are used, layers without positions slide."""
    sizes = llama.read_sizes(fields, tied=True, rope=read_rope(fields, theta=THETA))
    unrotated = read_unrotated(fields, sizes["num_layers"])
    window = fields.take("sliding_window", None)
    window = window if fields.take("use_sliding_window", False) else None
    fields.take("max_window_layers", None)
    biased = bool(fields.take("attention_bias", False))
    return Architecture(
        **sizes,
        unrotated=unrotated,
        qkv_bias=biased,
        out_bias=biased,
        ffw_bias=bool(fields.take("mlp_bias", False)),
        windows=read_windows(fields, sizes["num_layers"], window, lambda layer: layer in unrotated),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a smollm3 config."""
    return llama.write(arch) | {
        "no_rope_layers": [int(layer not in arch.unrotated) for layer in range(arch.num_layers)],
        "use_sliding_window": any(arch.windows),
        **write_windows(arch),
    }


FAMILY = Family(
    model_type="smollm3",
    class_name="SmolLM3ForCausalLM",
    read=read,
    write=write,
    names=llama.NAMES,
)
