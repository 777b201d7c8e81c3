"""What a run costs before it starts, and how many steps its budget leaves."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from research.clock import Clock
from research.core.parts import vary
from research.experiment import Experiment
from research.models.flops import training_flops
from research.models.transformer import Transformer
from research.score.views import Views, scoring_flops

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


def step_flops(experiment: Experiment, model: Transformer) -> float:
    """Give the analytic FLOPs of one update: every row in full, as one sequence."""
    data = experiment.data
    joined, trainable = abstract_trees(experiment, model)
    return data.rows * float(training_flops(model.arch, joined, trainable, data.row_tokens))


def affordable_clock(
    experiment: Experiment, model: Transformer, views: Views | None, flops: float
) -> Clock:
    """Give the clock with the steps that the curriculum's budget leaves when scoring is charged.

    The clock's own steps are those of a control that scores nothing. Scoring a part of the pool
    is charged at the pool's mean, since which part it is depends on the scores.
    """
    clock, curriculum = experiment.clock, experiment.curriculum
    if views is None or curriculum.scorer is None:
        return clock
    joined, _ = abstract_trees(experiment, model)
    flops_X = scoring_flops(curriculum.scorer, model.arch, joined, views)
    rows = sum(
        curriculum.rows_to_score(len(flops_X), round_) for round_ in range(curriculum.rounds)
    )
    return vary(
        clock,
        {"steps": curriculum.budget.steps(clock.steps, flops, rows * float(np.mean(flops_X)))},
    )


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
