"""What a run costs before it starts, and how many steps its budget leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Selecting
from research.experiment import Experiment
from research.models.flops import forward_flops, training_flops
from research.models.transformer import Transformer
from research.score.terms import Term

# Dense bf16 FLOP/s of one chip, by the words in `device_kind`. Source: the vendors' data sheets.
PEAK_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
}


def abstract_trees(experiment: Experiment, model: Transformer) -> tuple[Any, Any]:
    """Give the shapes of (the tree the model is applied to, the tree that is trained)."""
    tuning = experiment.tuning

    def both(params: Any, key: jax.Array) -> tuple[Any, Any]:
        trainable, frozen = tuning.split(params, key)
        return tuning.join(trainable, frozen), trainable

    return jax.eval_shape(both, model.abstract(), jax.eval_shape(lambda: jax.random.key(0)))


def step_flops(experiment: Experiment, model: Transformer, *, whole: bool = False) -> float:
    """Give the analytic FLOPs of one update: every row in full, as one sequence.

    Args:
      whole: as if an objective that trains on a part of each batch trained on all of it.
    """
    data, objective = experiment.data, experiment.objective
    joined, trainable = abstract_trees(experiment, model)
    train = float(training_flops(model.arch, joined, trainable, data.row_tokens))
    if whole or not isinstance(objective, Selecting):
        return data.rows * train
    forward = float(forward_flops(model.arch, joined, data.row_tokens))
    rows = data.rows // experiment.micro_batches
    return experiment.micro_batches * (rows * forward + objective.num_kept(rows) * train)


def affordable_clock(
    experiment: Experiment, model: Transformer, terms: Sequence[Term], flops: float
) -> Clock:
    """Give the clock with the steps that the curriculum's budget leaves when scoring is charged.

    The clock's own steps are those of a control that scores nothing and trains on whole batches.
    Scoring a part of the pool is charged at the pool's mean, since which part it is depends on the
    scores.
    """
    clock, budget = experiment.clock, experiment.curriculum.budget
    if experiment.curriculum.policy.uses_scores:
        scoring = scoring_flops(experiment, model, terms)
    else:
        scoring = 0.0  # for the record alone
    control = step_flops(experiment, model, whole=True)
    return vary(clock, {"steps": budget.steps(clock.steps, flops, scoring, control)})


def scoring_flops(experiment: Experiment, model: Transformer, terms: Sequence[Term]) -> float:
    """Give the analytic FLOPs of all scorings of a run."""
    joined, _ = abstract_trees(experiment, model)
    curriculum, total = experiment.curriculum, 0.0
    for term in terms:
        flops_X, guide = term.flops(joined)
        size = np.size(flops_X)
        rounds = range(1 if term.is_static else curriculum.rounds)
        rows = [curriculum.rows_to_score(size, round_) for round_ in rounds]
        total += sum(rows) * float(np.mean(flops_X)) + sum(count > 0 for count in rows) * guide
    return total


def peak_flops_per_s(devices: Any, dtype: str) -> float | None:
    """Give the peak FLOP/s of all devices together, or None where it is not known.

    MFU = analytic FLOPs of the steps / seconds / this. Only bf16 has a stated peak here.
    """
    if dtype != "bfloat16":
        return None
    kinds = {device.device_kind for device in devices}
    matches = [
        (len(words), peak)
        for kind in kinds
        for words, peak in PEAK_BF16.items()
        if words.lower() in kind.lower()
    ]
    return max(matches)[1] * len(devices) if matches else None
