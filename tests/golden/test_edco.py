"""What EDCO's small comparison and the orderings read: whole tests, and pools without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import edco
from launch.experiment_file import load_module
from research.data.leakage import normalised
from research.data.pool import Data, open_pool
from research.data.tokenizer import open_tokenizer
from research.experiment import Experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ASSETS = str(EXPERIMENTS / "assets")
TESTED, LEARNT = 2080, 2940  # questions of O-RAN


def opened(data: Data):
    return open_pool(data, open_tokenizer(f"{ASSETS}/edco_base"))


def of_ordering(task: str) -> Experiment:
    return load_module(EXPERIMENTS / "ordering.py").experiment(task, "late")


@pytest.mark.parametrize("task", ["O-RAN of E1", "addition", "look-up"])
def test_no_question_is_both_learnt_and_asked_and_none_is_cut(task):
    experiment = edco.small(ASSETS) if task == "O-RAN of E1" else of_ordering(task)
    (evaluator,) = experiment.evaluators
    pool, test = opened(experiment.data), opened(evaluator.data)
    assert test.census.truncated == 0
    assert len(pool.examples) >= 0.99 * pool.census.read[0]
    if task == "O-RAN of E1":
        assert (len(pool), len(test)) == (LEARNT, TESTED)
    asked = {normalised(str(e.row.get("question", e.row.get("prompt")))) for e in test.examples}
    assert not asked & {normalised(str(e.row["prompt"])) for e in pool.examples}
    # A row holds nearly every question with its answer, and little more.
    assert pool.census.truncated <= 0.01 * len(pool)
    assert experiment.data.row_tokens <= 2.1 * pool.lengths_X.mean()
