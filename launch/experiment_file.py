"""Load an experiment file by its path: `get_config()`, and `sweep()` where arms are compared."""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from research.core.parts import parse_setting, vary
from research.experiment import Experiment
from research.sweep.plan import Arms, Search, Sweep


class ExperimentFileError(ValueError):
    """An experiment file that cannot be used."""


def load_module(path: Path) -> ModuleType:
    """Run an experiment file as a module of its own; `sys.path` stays as it is.

    It is known as `experiment_STEM` from then on, so that parts which it defines can be told by
    name in `experiment.json`.

    Raises:
      ExperimentFileError: the file is missing, is not Python, or raises.
    """
    if not path.is_file():
        raise ExperimentFileError(
            f"no experiment file {path.absolute()}; give a Python file with get_config()"
        )
    name = f"experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentFileError(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with blamed(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Say at which line of an experiment file it failed.

    Raises:
      ExperimentFileError: for whatever the file raises.
    """
    try:
        yield
    except ExperimentFileError:
        raise
    except SyntaxError as error:
        where, line = f"{error.filename}:{error.lineno}", (error.text or "").strip()
        raise ExperimentFileError(
            f"{where}: {type(error).__name__}: {error.msg}: {line}"
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).absolute() == path.absolute()]
        number = own[-1].lineno if own else 1
        line = linecache.getline(str(path), number or 1).strip()
        raise ExperimentFileError(
            f"{path}:{number}: {type(error).__name__}: {error}\n  at: {line}"
        ) from error


def load_config(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Call `get_config()` and apply `path=value` settings.

    Raises:
      ExperimentFileError: there is no `get_config`, it raises, or it returns something else.
      ValueError: a setting names no field, or has another type.
    """
    module = load_module(path)
    if not hasattr(module, "get_config"):
        raise ExperimentFileError(f"{path} has no get_config(); it must return an Experiment")
    with blamed(path):
        experiment = module.get_config()
    return apply_settings(
        require_experiment(experiment, f"{path}: get_config() returned"), settings
    )


def load_sweep(path: Path, settings: Sequence[str] = (), generator: str = "sweep") -> Sweep:
    """Call the file's function that says what to compare, settings applied to every run.

    The function yields experiments, or returns `Arms` or a `Search` (`research/sweep/plan.py`).

    Raises:
      ExperimentFileError: there is no such function, it raises, is empty, gives something else, or
        two runs share name and seed.
    """
    module = load_module(path)
    if generator == "sweep" and not hasattr(module, "sweep") and hasattr(module, "search"):
        generator = "search"
    if not hasattr(module, generator):
        raise ExperimentFileError(
            f"{path} has no {generator}(); write one that yields experiments, or use `maktab train`"
        )
    with blamed(path):
        given = getattr(module, generator)()
        if not isinstance(given, (Arms, Search)):
            given = list(given)
    if isinstance(given, list):
        if not given:
            raise ExperimentFileError(f"{path}: {generator}() yields nothing; expected experiments")
        what = f"{path}: {generator}() yielded"
        given = tuple(require_experiment(item, what) for item in given)
    try:
        made = Arms(runs=given) if isinstance(given, tuple) else given
    except ValueError as error:
        raise ExperimentFileError(f"{path}: {generator}() yields {error}") from error
    return made.vary(lambda experiment: apply_settings(experiment, settings))


def require_experiment(value: object, what: str) -> Experiment:
    """Give `value` if it is an Experiment.

    Raises:
      ExperimentFileError: it is something else.
    """
    if not isinstance(value, Experiment):
        raise ExperimentFileError(f"{what} a {type(value).__name__}, expected an Experiment")
    return value


def apply_settings(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """Apply `path=value` settings, all at once; of two with one path the last counts."""
    return vary(experiment, dict(parse_setting(experiment, setting) for setting in settings))
