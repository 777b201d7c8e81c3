"""Rotary settings between `config.json`, in its old and its new style, and `Rope`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from research.huggingface.fields import Fields
from research.models.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    Scaling,
    YarnScaling,
)

DEFAULT_THETA = 10000.0
KINDS: Mapping[type, str] = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    Llama3Scaling: "llama3",
    YarnScaling: "yarn",
    LongScaling: "longrope",
}
"""What a `config.json` calls each scaling."""
_FRACTION = "partial_rotary_factor"
_ORIGINAL = "original_max_position_embeddings"
_STRETCHED = ("llama3", "yarn", "longrope")
_YARN_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def read_rope(
    fields: Fields,
    *,
    theta: float = DEFAULT_THETA,
    fraction: float | None = None,
    interleaved: bool = False,
    original_max_positions: int | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Rope:
    """Read `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

    Args:
      theta: the family's default base.
      fraction: the family's default share of a head that is rotated; None: whole heads are, and a
        config that says otherwise is refused.
      interleaved: whether the family's pairs are neighbours.
      original_max_positions: positions of pre-training as said outside of the settings, which goes
        before what they say.
      aliases: other names of rope types in this family.

    Raises:
      ValueError: both styles disagree, the type is unknown, or a setting is missing or unknown.
    """
    old, new = fields.take("rope_scaling", None), fields.take("rope_parameters", None)
    if old and new and old != new:
        raise ValueError(
            f"{fields.where} has rope_scaling={old} and rope_parameters={new}; keep one of them"
        )
    settings = dict(old or new or {})
    kind = settings.get("rope_type") or settings.get("type") or "default"
    settings |= {"rope_type": (aliases or {}).get(kind, kind)}
    if original_max_positions is not None and settings["rope_type"] in _STRETCHED:
        settings[_ORIGINAL] = original_max_positions
    return rope_of(
        settings,
        fields,
        theta=fields.take("rope_theta", None),
        default_theta=theta,
        fraction=fraction,
        interleaved=interleaved,
    )


def rope_of(
    settings: Mapping[str, Any],
    fields: Fields,
    *,
    theta: float | None,
    default_theta: float,
    fraction: float | None = None,
    interleaved: bool = False,
) -> Rope:
    """Read one dictionary of rope settings.

    Args:
      theta: the base as said outside of the dictionary, which must not disagree; None: not said.

    Raises:
      ValueError: as `read_rope`.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    inner = settings.pop("rope_theta", theta)
    if theta is not None and inner != theta:
        raise ValueError(
            f"{fields.where} has rope_theta={theta} and, inside its rope settings, {inner}; "
            "keep one of them"
        )
    kind = settings.pop("rope_type", settings.get("type", "default"))
    settings.pop("type", None)  # both styles may be there
    own = settings.pop(_FRACTION, fields.take(_FRACTION, fraction))
    if fraction is None and own not in (None, 1.0):
        raise ValueError(f"{fields.where}: {_FRACTION} must be 1.0, whole heads are rotated")
    scaling = _read_scaling(kind, settings, fields)
    if settings:
        raise ValueError(f"{fields.where}: rope type {kind!r} has unknown settings {settings}")
    return Rope(
        theta=float(default_theta if inner is None else inner),
        scaling=scaling,
        fraction=float(1.0 if own is None else own),
        interleaved=interleaved,
    )


def _read_scaling(kind: str, settings: dict[str, Any], fields: Fields) -> Scaling | None:
    """Turn the settings of one rope type into a scaling, removing what was understood."""
    where = f"{fields.where}: rope type {kind!r}"

    def need(name: str) -> Any:
        if name not in settings:
            raise ValueError(f"{where} needs {name!r}, which is missing")
        return settings.pop(name)

    def original() -> int:
        return int(settings.pop(_ORIGINAL, fields.take("max_position_embeddings", 0)))

    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=float(need("factor")))
    if kind == "dynamic":
        return _read_dynamic(float(need("factor")), settings, fields)
    if kind == "llama3":
        return Llama3Scaling(
            factor=float(need("factor")),
            low_freq_factor=float(need("low_freq_factor")),
            high_freq_factor=float(need("high_freq_factor")),
            original_max_positions=original(),
        )
    if kind == "yarn":
        optional = {n: float(settings.pop(n)) for n in _YARN_OPTIONAL if n in settings}
        return YarnScaling(
            factor=float(need("factor")),
            original_max_positions=original(),
            truncate=bool(settings.pop("truncate", True)),
            **optional,
        )
    if kind == "longrope":
        trained, longest = original(), fields.take("max_position_embeddings")
        usual = long_attention_factor(settings.pop("factor", longest / trained), trained)
        return LongScaling(
            short_factors=tuple(map(float, need("short_factor"))),
            long_factors=tuple(map(float, need("long_factor"))),
            original_max_positions=trained,
            attention_factor=float(settings.pop("attention_factor", usual)),
        )
    raise ValueError(
        f"{where} is not supported; supported are default, {', '.join(KINDS.values())}"
    )


def _read_dynamic(factor: float, settings: dict[str, Any], fields: Fields) -> DynamicScaling:
    """Read a dynamic scaling, whose original length is the longest one in transformers too."""
    longest = fields.take("max_position_embeddings")
    said = settings.pop(_ORIGINAL, longest)
    if said != longest:
        raise ValueError(
            f"{fields.where}: rope type 'dynamic' has {_ORIGINAL}={said}, but stretches from "
            f"max_position_embeddings={longest} on; make them equal"
        )
    return DynamicScaling(factor=factor, original_max_positions=longest)


def long_attention_factor(factor: float, original_max_positions: int) -> float:
    """sqrt(1 + ln factor / ln original): LongRoPE's factor on cos and sin where none is given."""
    if factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_positions))


def write_rope(rope: Rope | None) -> dict[str, Any]:
    """Give the fields in the old style, which transformers 4 and 5 and servers all read."""
    rope = rope or Rope()
    partial = {} if rope.fraction == 1.0 else {_FRACTION: rope.fraction}
    return {"rope_theta": rope.theta, "rope_scaling": write_scaling(rope.scaling), **partial}


def write_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    """Give the settings of one scaling."""
    if scaling is None:
        return None
    held = {field.name: getattr(scaling, field.name) for field in dataclasses.fields(scaling)}
    if isinstance(scaling, DynamicScaling):
        del held["original_max_positions"]  # it is max_position_embeddings
    if isinstance(scaling, LongScaling):
        held["short_factor"] = list(held.pop("short_factors"))
        held["long_factor"] = list(held.pop("long_factors"))
    if "original_max_positions" in held:
        held[_ORIGINAL] = held.pop("original_max_positions")
    settings = {name: value for name, value in held.items() if value is not None}
    return {"rope_type": KINDS[type(scaling)], **settings}
