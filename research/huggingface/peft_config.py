"""What an `adapter_config.json` says, by PEFT's rules for names and patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.huggingface.peft_modules import LowRankPair, Module
from research.tuning.lora import Lora

PEFT_VERSION = "0.21.2"  # whose fields these are
_READ = (
    "peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "lora_dropout", "exclude_modules", "layers_to_transform", "init_lora_weights",
    "ensure_weight_tying", "target_parameters",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "fan_in_fan_out", "inference_mode",
    "layers_pattern", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
_INITIAL_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")  # those that leave W as it is


def write_config(
    tuning: Lora,
    adapted: Sequence[Module],
    pairs: Mapping[str, LowRankPair],
    layers: Iterable[str],
    base_name: str,
) -> dict[str, Any]:
    """Give the fields that PEFT needs, and those that differ from its defaults.

    Args:
      pairs: the adapter of each adapted module.
      layers: the names of all layers, adapted or not.
    """
    names = {module.name: module.parameter for module in adapted}
    every = dict.fromkeys(layers, False) | {f"{name}.weight": True for name in layers} | names

    def chosen(values: Mapping[str, Any], *, parameter: bool) -> dict[str, Any]:
        own = {name: value for name, value in values.items() if names[name] == parameter}
        kin = [name for name, bare in every.items() if bare == parameter]
        return _shorten(own, kin, least=1 + parameter)

    targets = dict.fromkeys(pairs, True)
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name or None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _number(tuning.alpha),
        "lora_dropout": float(tuning.dropout or 0.0),
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": tuning.rank,
        "target_modules": sorted(chosen(targets, parameter=False)),
        "task_type": "CAUSAL_LM",
        "use_rslora": tuning.rslora,
    }
    if any(module.parameter for module in adapted):
        config["target_parameters"] = sorted(chosen(targets, parameter=True))
    if any(module.conv for module in adapted if not module.parameter):
        config["fan_in_fan_out"] = True
    if any(module.mirrored for module in adapted):
        config["ensure_weight_tying"] = True
    ranks = {name: p.rank for name, p in pairs.items() if p.rank != tuning.rank}
    alphas = {name: _number(p.alpha) for name, p in pairs.items() if p.alpha != tuning.alpha}
    for field, held in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if held:
            config[field] = chosen(held, parameter=False) | chosen(held, parameter=True)
    return config


def _number(value: float) -> int | float:
    """Write whole numbers as PEFT does: alpha is an integer there, if it can be."""
    return int(value) if float(value).is_integer() else float(value)


def _shorten(values: Mapping[str, Any], names: Iterable[str], least: int) -> dict[str, Any]:
    """Say `q_proj` once where every q_proj of the model has the same value.

    The ends of names that are tried have `least` words or more, the first of them no number.
    """

    def ends(name: str) -> Iterator[str]:
        words = name.split(".")
        for start in range(len(words) - least, -1, -1):
            if not words[start].isdigit():
                yield ".".join(words[start:])

    kin: dict[str, set[Any]] = {}
    for name in names:
        for end in ends(name):
            kin.setdefault(end, set()).add(values.get(name))
    return {
        next(end for end in ends(name) if len(kin[end]) == 1): value
        for name, value in values.items()
    }


def require_supported(config: Mapping[str, Any], where: Path) -> None:
    """Refuse a config that leaves something out, or asks for what we do not compute.

    Raises:
      ValueError: naming every such field, its value and the remedy.
    """
    problems = [
        f"{name} is missing (PEFT would silently take a default)"
        for name in ("peft_type", "r", "lora_alpha", "target_modules")
        if config.get(name) is None
        and not (name == "target_modules" and config.get("target_parameters"))
    ]
    if config.get("peft_type", "LORA") != "LORA":
        problems.append(f"peft_type={config['peft_type']!r} is not supported, only LORA is")
    initial = config.get("init_lora_weights", True)
    if initial not in _INITIAL_WEIGHTS:
        problems.append(
            f"init_lora_weights={initial!r} changes the base weights; save it in PEFT with "
            "path_initial_model_for_weight_conversion"
        )
    for name in sorted(config.keys() - set(_READ) - set(_WITHOUT_EFFECT)):
        if config[name] not in (None, False, "none", [], {}):
            problems.append(f"{name}={config[name]!r} is not supported, it changes the model")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))


def is_target(config: Mapping[str, Any], name: str) -> bool:
    """Whether the config adapts the module `name`."""

    def named(wanted: Any) -> bool:
        if isinstance(wanted, str):
            return bool(re.fullmatch(wanted, name))
        return any(name == one or name.endswith(f".{one}") for one in wanted or ())

    targets, layers = config.get("target_modules") or (), config.get("layers_to_transform")
    layer = re.search(r"\.(\d+)\.", name)
    if named(config.get("exclude_modules")):
        return False
    if targets == "all-linear":
        return layer is not None
    if layers is not None and (isinstance(targets, str) or name not in targets):
        layers = (layers,) if isinstance(layers, int) else layers
        return layer is not None and int(layer[1]) in layers and named(targets)
    return named(targets)


def is_target_parameter(config: Mapping[str, Any], name: str) -> bool:
    """Whether the config adapts the bare parameter `name`; layers and exclusions do not count."""
    targets = config.get("target_parameters") or ()
    return any(name == one or name.endswith(f".{one}") for one in targets)


def rank_and_alpha(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Look a module up in the patterns: the first that matches the end of its name counts."""

    def look_up(pattern: str, default: Any) -> Any:
        for key, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        return default

    return look_up("rank_pattern", config["r"]), float(
        look_up("alpha_pattern", config["lora_alpha"])
    )
