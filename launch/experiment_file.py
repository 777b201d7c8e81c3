"""Load an experiment file by its path: `get_config()`, and `sweep()` where arms are compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from research.core.parts import parse_setting, vary
from research.experiment import Experiment


class ExperimentFileError(ValueError):
    """An experiment file that cannot be used."""


def load_module(path: Path) -> ModuleType:
    """Run an experiment file as a module of its own; `sys.path` stays as it is.

    Raises:
      ExperimentFileError: the file is missing.
    """
    if not path.is_file():
        raise ExperimentFileError(
            f"no experiment file {path.absolute()}; give a Python file with get_config()"
        )
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ExperimentFileError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Call `get_config()` and apply `path=value` settings.

    Raises:
      ExperimentFileError: there is no `get_config`, or it returns something else.
      ValueError: a setting names no field, or has another type.
    """
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise ExperimentFileError(f"{path} has no get_config(); it must return an Experiment")
    experiment = module.get_config()
    if not isinstance(experiment, Experiment):
        raise ExperimentFileError(
            f"{path}: get_config() returned {type(experiment).__name__}, expected an Experiment"
        )
    return apply_settings(experiment, settings)


def load_sweep(
    path: Path, settings: Sequence[str] = (), generator: str = "sweep"
) -> list[Experiment]:
    """List the experiments that the file's generator yields, settings applied to each.

    Raises:
      ExperimentFileError: there is no such generator, it is empty, or two runs share name and seed.
    """
    module = load_module(path)
    if not hasattr(module, generator):
        raise ExperimentFileError(
            f"{path} has no {generator}(); write one that yields experiments, or use `maktab train`"
        )
    experiments = [apply_settings(item, settings) for item in getattr(module, generator)()]
    runs = [(item.name, item.seed) for item in experiments]
    doubled = sorted({run for run in runs if runs.count(run) > 1})
    if not experiments or doubled:
        raise ExperimentFileError(
            f"{path}: {generator}() gives {len(experiments)} experiments; {doubled} share name "
            "and seed, which name their folders: tell them apart"
        )
    return experiments


def apply_settings(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """Apply `path=value` settings in order."""
    for setting in settings:
        experiment = vary(experiment, dict([parse_setting(experiment, setting)]))
    return experiment
