"""The table of families in the docs, made from what each family's code can say.

    python -m research.huggingface.family_table > docs/families.md

Each family is asked for the architecture of a bare config, and then for that architecture with one
thing changed. What is true of all that it can write is said as "always", what is true of some as
"may have".
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

from research.huggingface.families.known import FAMILIES
from research.huggingface.family import Family, foreign_of, write_architecture
from research.huggingface.fields import Fields
from research.huggingface.rotary import KINDS
from research.models.activations import ClampedSwiglu, Gelu
from research.models.architecture import Architecture
from research.models.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    Scaling,
    YarnScaling,
)

LAYERS, POSITIONS = 6, 4096
HEAD = """# Model families

Made from the code by `make families`; a test holds the two together. *Always* is what every model
of a family has beyond a plain Llama (an RMS norm before each branch, rotary positions on whole
heads, a feed-forward gated by SiLU); *may have* is what its `config.json` can turn on. Names of
tensors and shapes are in `research/huggingface/families/`, one file a family.
"""
BARE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": POSITIONS,
    "n_embd": 64,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": POSITIONS,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
"""The sizes that some family cannot do without; a family takes those that it knows."""
SCALINGS: tuple[Scaling, ...] = (
    LinearScaling(factor=2.0),
    DynamicScaling(factor=2.0, original_max_positions=POSITIONS),
    Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64),
    YarnScaling(factor=4.0, original_max_positions=64),
)


def _scaling(arch: Architecture) -> str | None:
    return KINDS[type(arch.rope.scaling)] if arch.rope and arch.rope.scaling else None


def _moe(test: Callable[[Any], bool]) -> Callable[[Architecture], bool]:
    return lambda arch: arch.moe is not None and bool(test(arch.moe))


TRAITS: dict[str, Callable[[Architecture], bool]] = {
    "keys and values from a latent": lambda a: a.latent is not None,
    "norms on the heads of queries and keys": lambda a: a.query_key_norm,
    "norms over all queries and all keys": lambda a: a.projection_norm,
    "biases on queries, keys and values": lambda a: a.qkv_bias,
    "a bias on the output of attention": lambda a: a.out_bias,
    "biases in the feed-forward": lambda a: a.ffw_bias,
    "a window on every layer": lambda a: bool(a.windows) and all(a.windows),
    "windows on some layers": lambda a: bool(a.windows) and not all(a.windows),
    "attention sinks": lambda a: a.sinks,
    "capped scores": lambda a: a.attention_cap is not None,
    "clipped queries, keys and values": lambda a: a.qkv_clip is not None,
    "scores scaled by another factor than head_dim ** -0.5": lambda a: (
        a.attention_scale is not None
    ),
    "learned positions": lambda a: a.learned_positions,
    "another rotary base on layers with a window": lambda a: a.local_rope is not None,
    "layers without positions": lambda a: bool(a.unrotated),
    "rotation of a part of each head": lambda a: bool(a.rope) and a.rotary_dim < a.head_dim,
    "rotation of neighbours": lambda a: bool(a.rope and a.rope.interleaved),
    "layer norms with biases": lambda a: a.layer_norm,
    "no norm before a branch": lambda a: not a.pre_norm,
    "a norm after each branch": lambda a: a.post_norm,
    "norm scales stored less 1": lambda a: a.norm_offset == 1.0,
    "GELU": lambda a: isinstance(a.activation, Gelu),
    "a clamped activation": lambda a: isinstance(a.activation, ClampedSwiglu),
    "no gate": lambda a: not a.ffw_gated,
    "experts": lambda a: a.moe is not None,
    "a router that weighs by sigmoids": _moe(lambda moe: hasattr(moe.router, "corrected")),
    "a shared expert": _moe(lambda moe: moe.shared_dim),
    "dense layers among sparse ones": _moe(lambda moe: moe.dense_layers),
    "a bias of the router": _moe(lambda moe: moe.router_bias),
    "biases of experts": _moe(lambda moe: moe.expert_bias),
    "scaled embeddings": lambda a: a.embed_scale != 1.0,
    "scaled branches": lambda a: a.residual_scale != 1.0,
    "scaled logits": lambda a: a.logit_scale != 1.0,
    "capped logits": lambda a: a.logit_cap is not None,
    "a tied head": lambda a: a.tied_head,
}


def changes_of(arch: Architecture) -> Iterator[dict[str, Any]]:
    """Give what is tried on a family's architecture, one after the other."""
    for qkv, out, ffw in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)):
        yield {"qkv_bias": bool(qkv), "out_bias": bool(out), "ffw_bias": bool(ffw)}
    alternating = tuple(None if layer % 2 else 16 for layer in range(arch.num_layers))
    for windows in ((), (16,) * arch.num_layers, alternating):
        yield {"windows": windows}
    for name in ("attention_cap", "logit_cap", "qkv_clip", "attention_scale"):
        yield {name: None}
        yield {name: 0.5}
    for name in ("embed_scale", "residual_scale", "logit_scale"):
        yield {name: 1.0}
        yield {name: 0.5}
    for name in ("tied_head", "query_key_norm"):
        yield {name: not getattr(arch, name)}
    yield {"unrotated": ()}
    yield {"unrotated": (arch.num_layers - 1,)}
    if arch.rope is not None:
        for rope in _ropes(arch):
            yield {"rope": rope}
    if arch.moe is not None:
        for name, value in (("shared_dim", 0), ("dense_layers", ()), ("dense_layers", (0,))):
            yield {"moe": dataclasses.replace(arch.moe, **{name: value})}


def _ropes(arch: Architecture) -> Iterator[Rope]:
    """Give the rope of an architecture with every scaling, on whole heads and on halves."""
    assert arch.rope is not None
    pairs = arch.rotary_dim // 2
    long = LongScaling(
        short_factors=(1.0,) * pairs,
        long_factors=(2.0,) * pairs,
        original_max_positions=POSITIONS // 4,
        attention_factor=1.5,
    )
    for scaling in (None, *SCALINGS, long):
        yield dataclasses.replace(arch.rope, scaling=scaling)
    for fraction in (0.5, 1.0):
        yield dataclasses.replace(arch.rope, scaling=None, fraction=fraction)


def sayable(family: Family) -> list[Architecture]:
    """Give architectures that a family can write, each a step away from its bare one."""
    bare = family.read(Fields(BARE, f"a bare {family.model_type} config"))
    found = []
    for changes in ({}, *changes_of(bare)):
        try:
            arch = dataclasses.replace(bare, **changes)
            write_architecture(family, arch)
        except ValueError:
            continue
        found.append(arch)
    return found


def traits(models: list[Architecture]) -> tuple[list[str], list[str]]:
    """Name what all of some architectures have, and what only some have."""
    held = {name: [test(arch) for arch in models] for name, test in TRAITS.items()}
    always = [name for name, seen in held.items() if all(seen)]
    return always, [name for name, seen in held.items() if any(seen) and not all(seen)]


def stored(family: Family) -> list[str]:
    """Name the tensors of a family that hold several of our parameters, all experts, or lie turned.

    Turned is (in, out), where torch has (out, in).
    """
    fused: dict[str, list[str]] = {}
    turned, banks = [], []
    for ours, spelling in family.names.items():
        foreign, short = foreign_of(spelling), ours.split("/")[-1].split("_")[0]
        tensor = foreign.name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
        if foreign.of:
            fused.setdefault(tensor, []).append(short)
        turned += [tensor] if foreign.conv else []
        banks += [tensor] if foreign.stacked else []
    return [
        *(f"`{tensor}` holds {', '.join(dict.fromkeys(held))}" for tensor, held in fused.items()),
        *([f"{_listed(turned)} as (in, out)"] if turned else []),
        *([f"{_listed(banks)} with all experts on the first axis"] if banks else []),
    ]


def _listed(tensors: list[str]) -> str:
    return ", ".join(f"`{tensor}`" for tensor in dict.fromkeys(tensors))


def family_table() -> str:
    """Write the page."""
    lines = ["| family | `model_type` | class |", "|---|---|---|"]
    for family in FAMILIES.values():
        lines.append(f"| {_words(family)[0]} | `{family.model_type}` | `{family.class_name}` |")
    return "\n".join([HEAD, *lines, "", *map(_section, FAMILIES.values())])


def _section(family: Family) -> str:
    title, special = _words(family)
    models = sayable(family)
    always, some = traits(models)
    scalings = dict.fromkeys(_scaling(arch) for arch in models)
    said = {
        "Always": always,
        "May have": some,
        "Rope scalings": [kind for kind in scalings if kind],
        "Stored": stored(family),
    }
    told = [f"- {name}: {'; '.join(items)}." for name, items in said.items() if items]
    return "\n".join([f"## {title} (`{family.model_type}`)", "", special, "", *told, ""])


def _words(family: Family) -> tuple[str, str]:
    """Take the first sentence of a family's file apart: what it is, and what is special."""
    sentence = str(sys.modules[family.read.__module__].__doc__).partition("\n")[0]
    title, _, special = sentence.partition(": ")
    return title, special[:1].upper() + special[1:]


if __name__ == "__main__":
    sys.stdout.write(family_table())
