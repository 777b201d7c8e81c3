"""What an `adapter_config.json` says, by PEFT's rules for names and patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from research.tuning.lora import Lora

PEFT_VERSION = "0.21.2"  # whose fields these are
_READ = (
    "peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "lora_dropout", "exclude_modules", "layers_to_transform", "init_lora_weights",
    "ensure_weight_tying",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
    "layers_pattern", "loftq_config", "lora_ga_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
_INITIAL_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")  # those that leave W as it is


def write_config(
    tuning: Lora, ranks: Mapping[str, tuple[int, float]], names: list[str], base_name: str
) -> dict[str, Any]:
    """Give the fields that PEFT needs, and those that differ from its defaults.

    Args:
      ranks: adapted module -> its rank and alpha.
      names: all modules that could be adapted.
    """
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name or None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": _number(tuning.alpha),
        "lora_dropout": float(tuning.dropout or 0.0),
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": tuning.rank,
        "target_modules": sorted(_shorten(dict.fromkeys(ranks, True), names)),
        "task_type": "CAUSAL_LM",
        "use_rslora": tuning.rslora,
    }
    patterns = {
        "rank_pattern": {name: r for name, (r, _) in ranks.items() if r != tuning.rank},
        "alpha_pattern": {name: _number(a) for name, (_, a) in ranks.items() if a != tuning.alpha},
    }
    return config | {key: _shorten(held, names) for key, held in patterns.items() if held}


def _number(value: float) -> int | float:
    """Write whole numbers as PEFT does: alpha is an integer there, if it can be."""
    return int(value) if float(value).is_integer() else float(value)


def _shorten(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Say `q_proj` once where every q_proj of the model has the same value."""
    short: dict[str, Any] = {}
    for name, value in values.items():
        last = name.rpartition(".")[2]
        kin = [other for other in names if other.rpartition(".")[2] == last]
        short[last if all(values.get(other) == value for other in kin) else name] = value
    return short


def require_supported(config: Mapping[str, Any], where: Path) -> None:
    """Refuse a config that leaves something out, or asks for what we do not compute.

    Raises:
      ValueError: naming every such field, its value and the remedy.
    """
    problems = [
        f"{name} is missing (PEFT would silently take a default)"
        for name in ("peft_type", "r", "lora_alpha", "target_modules")
        if config.get(name) is None
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

    targets, layers = config["target_modules"], config.get("layers_to_transform")
    layer = re.search(r"\.(\d+)\.", name)
    if named(config.get("exclude_modules")):
        return False
    if targets == "all-linear":
        return layer is not None
    if layers is not None and (isinstance(targets, str) or name not in targets):
        layers = (layers,) if isinstance(layers, int) else layers
        return layer is not None and int(layer[1]) in layers and named(targets)
    return named(targets)


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
