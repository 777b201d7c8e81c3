"""Rotary settings between `config.json`, in its old and its new style, and `Rope`."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.huggingface.fields import Fields
from research.models.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling

DEFAULT_THETA = 10000.0
_ORIGINAL = "original_max_position_embeddings"
_YARN_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def read_rope(fields: Fields) -> Rope:
    """Read `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).

    Raises:
      ValueError: both styles disagree, the type is unknown, or a setting is missing or unknown.
    """
    old, new = fields.take("rope_scaling", None), fields.take("rope_parameters", None)
    theta = fields.take("rope_theta", None)
    if old and new and old != new:
        raise ValueError(
            f"{fields.where} has rope_scaling={old} and rope_parameters={new}; keep one of them"
        )
    settings = {key: value for key, value in (old or new or {}).items() if value is not None}
    inner_theta = settings.pop("rope_theta", theta)
    if theta is not None and inner_theta != theta:
        raise ValueError(
            f"{fields.where} has rope_theta={theta} and, inside its rope settings, {inner_theta}; "
            "keep one of them"
        )
    kind = settings.pop("rope_type", settings.get("type", "default"))
    settings.pop("type", None)
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{fields.where}: partial_rotary_factor must be 1.0, whole heads are rotated"
        )
    scaling = _read_scaling(kind, settings, fields)
    if settings:
        raise ValueError(f"{fields.where}: rope type {kind!r} has unknown settings {settings}")
    return Rope(theta=float(DEFAULT_THETA if inner_theta is None else inner_theta), scaling=scaling)


def _read_scaling(kind: str, settings: dict[str, Any], fields: Fields) -> Any:
    """Turn the settings of one rope type into a scaling, removing what was understood."""
    where = f"{fields.where}: rope type {kind!r}"

    def number(name: str) -> float:
        if name not in settings:
            raise ValueError(f"{where} needs {name!r}, which is missing")
        return float(settings.pop(name))

    def original() -> int:
        return int(settings.pop(_ORIGINAL, fields.take("max_position_embeddings", 0)))

    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=number("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_positions=original(),
        )
    if kind == "yarn":
        optional = {n: float(settings.pop(n)) for n in _YARN_OPTIONAL if n in settings}
        return YarnScaling(
            factor=number("factor"),
            original_max_positions=original(),
            truncate=bool(settings.pop("truncate", True)),
            **optional,
        )
    hint = (
        "; up to its max_position_embeddings a dynamic model equals one without rope settings: "
        "remove them from the file"
    )
    raise ValueError(
        f"{where} is not supported; supported are default, linear, llama3 and yarn"
        + (hint if kind == "dynamic" else "")
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """Give the fields in the old style, which transformers 4 and 5 and servers all read."""
    return {"rope_theta": rope.theta, "rope_scaling": _write_scaling(rope.scaling)}


def _write_scaling(scaling: Any) -> dict[str, Any] | None:
    if scaling is None:
        return None
    kinds = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}
    held = {field.name: getattr(scaling, field.name) for field in dataclasses.fields(scaling)}
    if "original_max_positions" in held:
        held[_ORIGINAL] = held.pop("original_max_positions")
    settings = {name: value for name, value in held.items() if value is not None}
    return {"rope_type": kinds[type(scaling)], **settings}
