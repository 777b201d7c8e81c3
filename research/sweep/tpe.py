"""Bayesian search by Optuna's tree-structured Parzen estimator, replayed from run directories."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from research.core.parts import part, require
from research.sweep.methods import draw
from research.sweep.plan import Told
from research.sweep.space import Choice, Integer, LogUniform, Point, Range, Uniform


@part
class Tpe:
    """Draw the first trials, then look where earlier ones were good.

    There is no study to keep: it is rebuilt from what came of earlier trials whenever points are
    asked for, with a seed for each batch. So a search that was killed goes on as if it had not
    been, on any machine, and two commands on one folder ask for the same points.

    Law: the points of a batch depend on the trials before it alone, not on the order or time in
      which they ended.

    Attributes:
      trials: how many, at most.
      at_once: trials of a batch; all of them are asked for before any of them is told of, and the
        next batch when all are. More run in parallel, fewer learn faster.
      startup: trials drawn at random before anything is learnt.
      seed: another seed looks elsewhere.

    Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; `optuna`.
    """

    trials: int
    at_once: int = 1
    startup: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            (self.trials > 0, f"trials={self.trials} must be positive"),
            (self.at_once > 0, f"at_once={self.at_once} must be positive"),
            (self.startup > 0, f"startup={self.startup} must be positive"),
        )

    @property
    def knows_all(self) -> bool:
        """Whether all points are known beforehand."""
        return False

    def propose(
        self, space: Mapping[str, Range], told: Sequence[Told], maximise: bool
    ) -> list[Point]:
        """Give the next batch: draws until there is something to learn from."""
        optuna, first = load_optuna(), len(told)
        if first < self.startup:
            last = min(self.startup, self.trials)
            return [draw(space, self.seed, number) for number in range(first, last)]
        distributions = {path: distribution(optuna, range_) for path, range_ in space.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=0, seed=self.seed * 100_003 + first, constant_liar=True
            )
            study = optuna.create_study(
                sampler=sampler, direction="maximize" if maximise else "minimize"
            )
            for each in told:
                study.add_trial(trial(optuna, distributions, each))
            asked = range(first, min(first + self.at_once, self.trials))
            return [study.ask(distributions).params for _ in asked]


def load_optuna() -> ModuleType:
    """Import Optuna, quietly.

    Raises:
      ValueError: it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise ValueError(
            "Tpe needs Optuna, which is not installed: pip install 'maktab[search]', or search "
            "with Grid or Random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def distribution(optuna: ModuleType, range_: Range) -> Any:
    """Say a range in Optuna's words."""
    kinds = optuna.distributions
    match range_:
        case Uniform(low=low, high=high):
            return kinds.FloatDistribution(low, high)
        case LogUniform(low=low, high=high):
            return kinds.FloatDistribution(low, high, log=True)
        case Integer(low=low, high=high):
            return kinds.IntDistribution(low, high)
        case Choice(values=values):
            return kinds.CategoricalDistribution(list(range(len(values))))


def trial(optuna: ModuleType, distributions: Mapping[str, Any], told: Told) -> Any:
    """Say what came of an arm in Optuna's words.

    A hopeless trial is a pruned one with what it reached at its rungs; one that stopped, such as by
    diverging, is a pruned one that reached nothing, which counts as worst.
    """
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        params=dict(told.arm.point or {}),
        distributions=dict(distributions),
        value=told.value,
        intermediate_values=dict(told.rungs),
        state=states.PRUNED if told.value is None else states.COMPLETE,
    )
