"""Orderings that disagree: which one wins, when?

Question: The literature disagrees: hard first (EDCO), medium and then very hard (GLM-4.5), easy
  first by competence (Platanios). Which order of the same examples gives the best model, and does
  it depend on the task, on how hard its hard part is, and on what the model knew before? (General
  before specific, DAPT then TAPT, and simple formats before rich ones, Pre-Act, are not asked.)
Method: Three tasks whose rows say how hard they are: sums by the length of their carry, look-ups by
  their hops, O-RAN questions by their grade; what is tested is left out of the pool. Every order
  makes the same steps, about one pass, from three checkpoints of the small base
  (`experiments/edco/README.md` says how they are exported). Compared is the loss of right answers,
  nats a token: it tells orders apart where the model answers nothing right yet. `ordering_map.py`
  draws who wins where.
Expectation: random order is hard to beat where the model can already do the task; easy first helps
  where it cannot, and only in the parts that build on one another.
Command: maktab sweep experiments/ordering.py --jobs 2 --workdir runs/ordering &&
  python experiments/ordering_map.py runs/ordering   (from the last checkpoint alone:
  --generator late)
Result: not run yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from configs import curricula, domains, edco
from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Evaluator, Source
from research.curriculum.curriculum import Curriculum
from research.curriculum.estimators.given import Given
from research.curriculum.policies.competence import Competence
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.two_stage import TwoStage
from research.data.pool import Data
from research.data.synthetic import Addition, Lookup
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained

ASSETS = str(Path(__file__).resolve().parent / "assets")
SEEDS, STEPS, ROUNDS = 3, 96, 6
POOL = STEPS * 16  # about one pass: an order then decides when a row comes, not whether
GRADED = (0.30, 0.452)  # as many O-RAN questions
TEST = 300
# What the model knew before: little, some, all that the base ever learns.
STARTS = {
    "early": "runs/edco-base-early",
    "middle": "runs/edco-base-middle",
    "late": f"{ASSETS}/edco_base",
}
GRADES = Given(levels=("E", "M", "H"))
DIAL = Given()


def get_config() -> Experiment:
    """Give random order on sums, from the base as it ships."""
    return experiment("addition", "late")


def tasks() -> dict[str, tuple[Data, Evaluator, Given]]:
    """Give each task's pool, its test and its dial; nothing that is tested is in the pool."""
    sums, hops = (
        {"digits": 3},
        {"letters": 6, "most_hops": 4},
    )
    oran = vary(
        edco.small(ASSETS),
        {"data.sources": (domains.closed_book(edco.questions(ASSETS, GRADED)),)},
    )
    oran = edco.of_right_answers(oran)
    return {
        "addition": (
            *made(Addition(count=POOL, **sums), Addition(count=TEST, seed=1, **sums)),
            DIAL,
        ),
        "look-up": (
            *made(Lookup(count=POOL, **hops), Lookup(count=TEST, seed=1, **hops)),
            DIAL,
        ),
        "O-RAN": (oran.data, oran.evaluators[0], GRADES),
    }


def made(pool: Source, test: Source) -> tuple[Data, Likelihood]:
    """Give what to learn from, and what right answers are tested on, by difficulty too."""
    data = edco.closed_book(pool, rows=16, row_tokens=32, held_out=(test,))
    asked = edco.closed_book(test, rows=64, row_tokens=32)
    data = vary(data, {"max_bad_fraction": 0.02})  # sums that are tested are left out
    return data, Likelihood(name="right-answers", data=asked, slice_by=("difficulty",))


def orders(dial: Given) -> dict[str, Curriculum]:
    """Give the orders. The first three see every row about once; competence sees hard rows less
    often than easy ones, and the last sees the middle third of the rows and then the hardest."""
    easy, hard = (curricula.single_run(dial, Sorted(descending=down)) for down in (False, True))
    by_competence = curricula.round_wise(
        dial,
        Competence(fraction=1 / ROUNDS, initial=0.3, rounds_to_full=ROUNDS - 1),
        rounds=ROUNDS,
        reset_optimizer_each_round=False,
        rescore_fraction=0.0,
    )
    return {
        "random": curricula.random(),
        "easy first": easy,
        "hard first": hard,
        "competence": by_competence,
        "medium, then hard": curricula.round_wise(
            dial,
            TwoStage(fraction=1 / 3, medium_rounds=ROUNDS // 2),
            rounds=ROUNDS,
            reset_optimizer_each_round=False,
            rescore_fraction=0.0,
        ),
    }


def experiment(task: str, start: str) -> Experiment:
    """Give random order on a task from one of the starts."""
    pool, test, _ = tasks()[task]
    return vary(
        edco.small(ASSETS),
        {
            "name": f"{task}, {start}: random",
            "model": Pretrained(folder=STARTS[start]),
            "data": pool,
            "evaluators": (test,),
            "schedule.peak_lr": 1e-3,
            "schedule_spans_round": False,
            "clock": Clock(steps=STEPS, cycle_steps=16, save_every=0, evaluate_first=False),
        },
    )


def compare(starts: Mapping[str, str]) -> Iterator[Experiment]:
    """Yield each order of each task from each start at each seed, seed after seed."""
    cells = [(task, start) for task in tasks() for start in starts]
    for seed, (task, start) in itertools.product(range(SEEDS), cells):
        control, (_, _, dial) = experiment(task, start), tasks()[task]
        for name, arm in orders(dial).items():
            run = {"name": f"{task}, {start}: {name}", "seed": seed, "curriculum": arm}
            yield vary(control, run)


def sweep() -> Iterator[Experiment]:
    """Yield the runs from every start; the first two are checkpoints of the base's own run."""
    yield from compare(STARTS)


def late() -> Iterator[Experiment]:
    """Yield the runs from the base as it ships."""
    yield from compare({"late": STARTS["late"]})
