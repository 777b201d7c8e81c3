"""Gemma 3 (text): five sliding layers for each full one, each kind with its own rotary base."""

from __future__ import annotations

from typing import Any

from research.huggingface.families import gemma2, llama
from research.huggingface.family import Family
from research.huggingface.fields import Fields
from research.huggingface.rotary import read_rope, rope_of
from research.huggingface.windows import FULL, SLIDING, read_windows
from research.models.architecture import Architecture
from research.models.rope import Rope

NAMES = gemma2.NAMES | {
    "layers/attention/query_norm_H": "model.layers.{layer}.self_attn.q_norm.weight",
    "layers/attention/key_norm_H": "model.layers.{layer}.self_attn.k_norm.weight",
}
PERIOD = 6
FULL_THETA, LOCAL_THETA = 1000000.0, 10000.0


def read_ropes(fields: Fields) -> tuple[Rope, Rope]:
    """Read the rotations of full and of sliding layers.

    transformers 5 nests them by layer type in `rope_parameters`; transformers 4 has `rope_theta`
    and `rope_scaling` for full layers, `rope_local_base_freq` for sliding ones.
    """
    nested, theta = fields.take("rope_parameters", None), fields.take("rope_local_base_freq", None)
    if not nested:
        full = read_rope(fields, theta=FULL_THETA)
        return full, Rope(theta=float(LOCAL_THETA if theta is None else theta))
    if set(nested) - {FULL, SLIDING}:
        raise ValueError(
            f"{fields.where}: rope_parameters has {sorted(nested)}; expected {FULL!r} and "
            f"{SLIDING!r}, the two kinds of layers"
        )
    outer = fields.take("rope_theta", None)
    full = nested.get(FULL) or {}
    local = nested.get(SLIDING) or {}
    return (
        rope_of(full, fields, theta=outer, default_theta=FULL_THETA),
        rope_of(local, fields, theta=theta, default_theta=LOCAL_THETA),
    )


def read(fields: Fields) -> Architecture:
    """Read a gemma3_text config; every sixth layer is full."""
    full, local = read_ropes(fields)
    sizes = llama.read_sizes(fields, head_dim=256, tied=True, rope=full)
    fields.expect("attn_logit_softcapping", why="scores are not capped")
    window = fields.take("sliding_window", 4096)
    period = fields.take("sliding_window_pattern", None)
    period = fields.take("_sliding_window_pattern", None) or period or PERIOD
    cap = fields.take("final_logit_softcapping", None)
    return Architecture(
        **gemma2.read_shared(fields, sizes),
        local_rope=local,
        query_key_norm=True,
        logit_cap=float(cap) if cap else None,
        windows=read_windows(
            fields, sizes["num_layers"], window, lambda layer: (layer + 1) % period != 0
        ),
    )


def write(arch: Architecture) -> dict[str, Any]:
    """Write a gemma3_text config."""
    local = arch.local_rope or Rope(theta=LOCAL_THETA)
    return gemma2.write_shared(arch) | {
        "rope_local_base_freq": local.theta,
        "final_logit_softcapping": arch.logit_cap,
        "sliding_window_pattern": _period(arch),
    }


def _period(arch: Architecture) -> int | None:
    """Give the number of layers after which full ones return, for readers without layer_types."""
    full = [layer for layer, window in enumerate(arch.windows) if not window]
    period = full[0] + 1 if full else arch.num_layers + 1
    return period if full == list(range(period - 1, arch.num_layers, period)) else None


FAMILY = Family(
    model_type="gemma3_text", class_name="Gemma3ForCausalLM", read=read, write=write, names=NAMES
)
