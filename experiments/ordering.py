"""Orderings that disagree: which one wins, when?

Question: The literature disagrees: hard first (EDCO), medium and then very hard (GLM-4.5), easy
  first by competence (Platanios). Which order of the same examples gives the best model, and does
  it depend on the task, on how hard its hard part is, and on what the model knew before? (General
  before specific, DAPT then TAPT, and simple formats before rich ones, Pre-Act, are not asked.)
Method: Four tasks whose rows say how hard they are: sums by the length of their carry, look-ups by
  their hops, O-RAN questions by their grade, MATH's problems (final answers alone; data:
  `experiments/edco/README.md`) by their level; what is tested is left out of the pool. Every order
  makes the same steps, about one pass, from three checkpoints of the small base
  (`experiments/edco/README.md` says how they are exported). Compared is the loss of right answers,
  nats a token: it tells orders apart where the model answers nothing right yet. `ordering_map.py`
  draws who wins where.
Expectation: random order is hard to beat where the model can already do the task; easy first helps
  where it cannot, and only in the parts that build on one another.
Command: maktab sweep experiments/ordering.py --jobs 2 --workdir runs/ordering &&
  python experiments/ordering_map.py runs/ordering   (from the last checkpoint alone:
  --generator late)
Result: none beats random order beyond chance. Orders that sort lose 0.4 to 1.9 nats on sums: what
  comes last is what stays. On O-RAN and MATH orders that see each row once tie; nobody learns the
  look-ups. The start changes nothing of this (`ordering_results.md`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from configs import curricula, domains, edco
from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Source
from research.curriculum.curriculum import Curriculum
from research.curriculum.estimators.given import Given
from research.curriculum.policies.competence import Competence
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.two_stage import TwoStage
from research.data.pool import Data
from research.data.selection import Columns, Split
from research.data.sources import Jsonl
from research.data.synthetic import Addition, Lookup
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained

ASSETS = str(Path(__file__).resolve().parent / "assets")
DATA = "data"
SEEDS, STEPS, ROUNDS = 3, 96, 6
POOL, TEST = STEPS * 16, 300
MATH_STEPS = 30
LEFT_OUT = 0.25  # of MATH's problems; of O-RAN's questions an eighth, of sums a hundredth
# What the model knew before: little, some, all that the base ever learns.
STARTS = {
    "early": "runs/edco-base-early",
    "middle": "runs/edco-base-middle",
    "late": f"{ASSETS}/edco_base",
}
DIAL = Given()  # the field `difficulty`


def get_config() -> Experiment:
    """Give random order on sums, from the base as it ships."""
    return experiment("addition", "late")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, what right answers are tested on, and how hard each row is.

    Attributes:
      steps: about one pass: an order then decides when a row comes, not whether.
    """

    data: Data
    test: Likelihood
    dial: Given
    steps: int = STEPS


def tasks() -> dict[str, Task]:
    """Give the tasks by name; nothing that is tested is in a pool."""
    sums, hops = {"digits": 3}, {"letters": 6, "most_hops": 4}
    graded, (tested, _) = edco.questions(ASSETS, edco.SMALL_POOL), edco.only_asked(ASSETS)
    return {
        "addition": task(
            Addition(count=POOL, **sums), Addition(count=TEST, seed=1, **sums), row_tokens=32
        ),
        "look-up": task(
            Lookup(count=POOL, **hops), Lookup(count=TEST, seed=1, **hops), row_tokens=32
        ),
        "O-RAN": task(
            domains.closed_book(graded),
            domains.closed_book(tested),
            dial=Given(levels=("E", "M", "H")),
            steps=edco.SMALL_STEPS,
        ),
        "MATH": task(
            problems((0.0, 0.75)),
            problems((0.75, 1.0)),
            row_tokens=128,
            dial=Given(field="level"),
            steps=MATH_STEPS,
        ),
    }


def task(
    pool: Source,
    test: Source,
    *,
    row_tokens: int = edco.ROW_TOKENS,
    dial: Given = DIAL,
    steps: int = STEPS,
) -> Task:
    """Give a task of one row a question; longer rows and those that are tested are left out."""
    asked = edco.closed_book(test, rows=64, row_tokens=edco.ASKED_TOKENS)
    return Task(
        data=edco.closed_book(
            pool, rows=16, row_tokens=row_tokens, held_out=(test,), left_out=LEFT_OUT
        ),
        test=Likelihood(name="right-answers", data=asked, slice_by=(dial.field,)),
        dial=dial,
        steps=steps,
    )


def problems(fraction: tuple[float, float]) -> Source:
    """Give some of MATH's problems with their final answers."""
    math = Jsonl(path=f"{DATA}/math_sample/train.jsonl.gz")
    return Columns(
        source=Split(source=math, by="problem", fraction=fraction),
        prompt="Question: {problem}\nAnswer:",
        completion=" {answer}",
    )


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
    learnt = tasks()[task]
    return vary(
        edco.small(ASSETS),
        {
            "name": f"{task}, {start}: random",
            "model": Pretrained(folder=STARTS[start]),
            "data": learnt.data,
            "evaluators": (learnt.test,),
            "schedule.peak_lr": 1e-3,
            "schedule_spans_round": False,
            "clock": Clock(steps=learnt.steps, cycle_steps=16, save_every=0, evaluate_first=False),
        },
    )


def compare(starts: Mapping[str, str]) -> Iterator[Experiment]:
    """Yield each order of each task from each start at each seed, seed after seed."""
    cells = [(task, start) for task in tasks() for start in starts]
    for seed, (task, start) in itertools.product(range(SEEDS), cells):
        control = experiment(task, start)
        for name, arm in orders(tasks()[task].dial).items():
            run = {"name": f"{task}, {start}: {name}", "seed": seed, "curriculum": arm}
            yield vary(control, run)


def sweep() -> Iterator[Experiment]:
    """Yield the runs from every start; the first two are checkpoints of the base's own run."""
    yield from compare(STARTS)


def late() -> Iterator[Experiment]:
    """Yield the runs from the base as it ships."""
    yield from compare({"late": STARTS["late"]})
