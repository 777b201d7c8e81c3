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
from research.train.budget import scoring_flops
from research.train.prepare import Prepared, prepare

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ASSETS = str(EXPERIMENTS / "assets")
TESTED, LEARNT = 1193, 1008  # questions of O-RAN


def opened(data: Data):
    return open_pool(data, open_tokenizer(f"{ASSETS}/edco_base"))


def of_ordering(task: str) -> Experiment:
    return load_module(EXPERIMENTS / "ordering.py").experiment(task, "late")


def scoring_of(prepared: Prepared) -> float:
    return scoring_flops(prepared.experiment, prepared.scoring_model, prepared.terms)


@pytest.mark.parametrize("task", ["O-RAN of E1", "addition", "look-up"])
def test_no_question_is_both_learnt_and_asked_and_none_is_cut(task):
    experiment = edco.small(ASSETS) if task == "O-RAN of E1" else of_ordering(task)
    pool = opened(experiment.data)
    learnt = {normalised(str(e.row["prompt"])) for e in pool.examples}
    for evaluator in experiment.evaluators:
        test = opened(evaluator.data)
        assert test.census.truncated == 0
        if task == "O-RAN of E1":
            assert (len(pool), len(test)) == (LEARNT, TESTED)
        asked = {normalised(str(e.row.get("question", e.row.get("prompt")))) for e in test.examples}
        assert not asked & learnt
    # A row holds most questions with their answer, and little more.
    assert pool.census.truncated == 0
    assert len(pool) >= 0.85 * pool.census.read[0]
    assert experiment.data.row_tokens <= 2.1 * pool.lengths_X.mean()


def test_arms_of_equal_compute_spend_what_they_say():
    e1 = load_module(EXPERIMENTS / "edco" / "e1_arms.py")
    first = {x.name: x for x in e1.equal_compute() if x.seed == 0}
    edco_arm = prepare(next(x for x in e1.sweep() if x.name == "EDCO"))
    step = edco_arm.step_flops
    longer = first.pop("random, EDCO's compute")
    steps = edco_arm.experiment.clock.steps
    assert longer.clock.steps == steps + int(scoring_of(edco_arm) / step)
    assert len(first) == 2
    for arm in map(prepare, first.values()):
        left = steps * step - arm.experiment.clock.steps * step - scoring_of(arm)
        assert 0 <= left < step


@pytest.mark.parametrize("task", ["addition", "look-up", "O-RAN"])
def test_every_order_but_those_that_leave_out_rows_sees_the_pool_about_once(task):
    experiment = of_ordering(task)
    drawn = experiment.clock.steps * experiment.data.rows
    assert 0.97 <= drawn / len(opened(experiment.data)) <= 1.03
