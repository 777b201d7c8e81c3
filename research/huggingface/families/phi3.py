"""Phi-3, Phi-3.5, Phi-4 and their minis: fused projections, long rotary factors, rotary in part."""

from __future__ import annotations

import functools
from typing import Any

from research.huggingface.families import llama
from research.huggingface.family import Family, Foreign
from research.huggingface.fields import Fields
from research.huggingface.rotary import long_attention_factor, read_rope
from research.models.architecture import Architecture
from research.models.rope import LongScaling, Rope

QKV = functools.partial(
    Foreign, "model.layers.{layer}.self_attn.qkv_proj.weight", of=("KGH", "KH", "KH")
)
GATE_UP = functools.partial(Foreign, "model.layers.{layer}.mlp.gate_up_proj.weight", of=("F", "F"))
NAMES = llama.NAMES | {
    "layers/attention/query_D_KGH": QKV(index=0),
    "layers/attention/key_D_KH": QKV(index=1),
    "layers/attention/value_D_KH": QKV(index=2),
    "layers/ffw/gate_D_F": GATE_UP(index=0),
    "layers/ffw/up_D_F": GATE_UP(index=1),
}
BUILT_IN = ("Phi3Config", "Phi3ForCausalLM")
ORIGINAL = "original_max_position_embeddings"
TRAINED = 4096
"""Positions that the first Phi-3 was trained on: the default of `ORIGINAL`."""


def read_long_rope(fields: Fields) -> Rope:
    """Read rotary settings; `su` and `yarn` are old names of longrope in this family.

    Raises:
      ValueError: another scaling is asked for, which transformers refuses too.
    """
    rope = read_rope(
        fields,
        fraction=1.0,
        original_max_positions=fields.take(ORIGINAL, TRAINED),
        aliases={"su": "longrope", "yarn": "longrope"},
    )
    if not isinstance(rope.scaling, LongScaling | None):
        raise ValueError(f"{fields.where}: a phi3 model has longrope or none, not {rope.scaling}")
    return rope


def read(fields: Fields) -> Architecture:
    """Read a phi3 config.

    Published ones name code of their own repository in `auto_map`, which transformers has built in
    and which is not run.
    """
    for place, name in (fields.take("auto_map", None) or {}).items():
        if place != "AutoTokenizer" and str(name).split(".")[-1] not in BUILT_IN:
            raise ValueError(
                f"{fields.where}: auto_map has {place}={name!r}, code that is never run; expected "
                f"only {' and '.join(BUILT_IN)}, which are built in"
            )
    for name in ("embd_pdrop", "resid_pdrop"):
        fields.expect(name, 0.0, why="there is no dropout; set it to 0.0")
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.expect(name, False, why="its projections have no bias")
    for name in ("full_attn_mod", "interpolate_factor"):
        fields.expect(name, 1, why="no other value is known in a published model")
    fields.take("legacy_cache", None)
    sizes = llama.read_sizes(fields, norm_eps=1e-5, rope=read_long_rope(fields))
    window = fields.take("sliding_window", None)
    return Architecture(**sizes, windows=(window,) * sizes["num_layers"] if window else ())


def write(arch: Architecture) -> dict[str, Any]:
    """Write a phi3 config; its rope settings have the three entries that old readers insist on."""
    config = llama.write_sizes(arch) | {"sliding_window": arch.window(0)}
    scaling = arch.rope.scaling if arch.rope else None
    if not isinstance(scaling, LongScaling):
        return config
    settings = {
        "type": "longrope",
        "short_factor": list(scaling.short_factors),
        "long_factor": list(scaling.long_factors),
    }
    trained = scaling.original_max_positions
    usual = long_attention_factor(arch.max_positions / trained, trained)
    if scaling.attention_factor != usual:
        settings["attention_factor"] = scaling.attention_factor
    return config | {"rope_scaling": settings, ORIGINAL: trained}


FAMILY = Family(
    model_type="phi3", class_name="Phi3ForCausalLM", read=read, write=write, names=NAMES
)
