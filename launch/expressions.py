"""Estimators and policies as a command line names them."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from research.core.parts import parse_part, parse_setting, vary
from research.core.protocols import Estimator
from research.curriculum import estimators, expressions, policies
from research.curriculum.curriculum import Policy
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.data.pool import Data
from research.data.sources import Jsonl, Parquet
from research.huggingface.pretrained import Pretrained

# Short names, for those that are asked for most.
ESTIMATORS: Mapping[str, Estimator] = {
    "loss": TeacherForcedLoss(),
    "entropy": TeacherForcedEntropy(),
    "prefix_entropy": PrefixEntropy(),
    "edco_release": EdcoRelease(),
    "length": Length(),
}
OPERANDS = ("nats", "standardised", "ranked", "where", "quantile")
GIVEN: Mapping[str, Callable[..., Any]] = {
    "Pretrained": Pretrained,
    "Data": Data,
    "Jsonl": Jsonl,
    "Parquet": Parquet,
}


def estimator_named(text: str, settings: Sequence[str] = ()) -> Any:
    """Give an estimator by its short name or as it is written in Python, some fields changed.

    Raises:
      ValueError: a name or a field is unknown.
    """
    known = {
        **parts_in(estimators),
        **{name: getattr(expressions, name) for name in OPERANDS if hasattr(expressions, name)},
        **GIVEN,
    }
    part = ESTIMATORS.get(text)
    if part is None:
        try:
            part = parse_part(text, known)
        except ValueError as error:
            short = ", ".join(ESTIMATORS)
            raise ValueError(f"--estimator {error}; or choose from {short}") from error
    return vary(part, dict(parse_setting(part, setting) for setting in settings))


def policy_named(text: str) -> Policy:
    """Give a policy as it is written in Python.

    Raises:
      ValueError: a name or a field is unknown.
    """
    try:
        return parse_part(text, parts_in(policies))
    except ValueError as error:
        raise ValueError(f"--policy {error}") from error


def parts_in(folder: ModuleType) -> dict[str, type]:
    """Give the parts that the files of a folder define, by name."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(folder.__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{folder.__name__}.{entry.name}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and dataclasses.is_dataclass(value) and not name.startswith("_"):
                found[name] = value
    return found
