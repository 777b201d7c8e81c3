"""E0: which score does a short prefix give, and what does it cost, before anything is trained?

Question: EDCO scores a row by the first L tokens of an answer, and claims 83.5 % less time than the
  whole answer at a ranking that is as good. How much of the selected quarter stays the same,
  against what a second scoring with other draws leaves the same (the ceiling)?
Method: Two rounds of two steps at a learning rate that moves nothing: scores of round 0 and round 1
  are a test and a retest of the same model, and the second scoring is timed without compilation.
  Greedy and sampled paths (T = 1) at L = 1 to 128, greedy ones with a request for a quick answer
  too, beside every estimator that the other experiments use. `e0_table.py` reads the runs.
Expectation: overlap grows with L and stops well below the ceiling for L = 1; short answers end long
  before 128 tokens, so the saving is smaller than the paper's.
Command: maktab sweep experiments/edco/e0_estimators.py --workdir runs/e0 &&
  python experiments/edco/e0_table.py runs/e0
Result: a greedy prefix of 32 tokens chooses 99 % of what whole greedy answers choose; two sampled
  whole answers share 38 % of their highest quarters, where chance shares 25 % (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from configs import curricula, domains, edco
from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Estimator, Source
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.first_token_entropy import FirstTokenEntropy
from research.curriculum.estimators.ifd import Ifd
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.experiment import Experiment
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant

ASSETS = str(Path(__file__).resolve().parent.parent / "assets")
LENGTHS = (1, 4, 8, 16, 32, 50, 64, 128)
FULL = 256  # tokens of a whole answer; what goes on longer is cut there
BATCHES = (1, 32, 256)
QUICK = "Answer briefly, in at most three sentences."
STILL = 1e-12  # a learning rate that changes no float32 weight of size one


def get_config() -> Experiment:
    """Give a run that scores a sixteenth of the questions twice and learns nothing."""
    return still(edco.small(ASSETS), domains.closed_book(some(0.0625)))


def still(control: Experiment, questions: Source) -> Experiment:
    """Give a run that scores some questions and learns nothing."""
    return vary(
        control,
        {
            "name": "teacher-forced loss",
            "data.sources": (questions,),
            "data.rows": 8,
            "optimizer": AdamW(),
            "schedule": Constant(peak_lr=STILL),
            "schedule_spans_round": False,
            "curriculum": scored_by(TeacherForcedLoss()),
            "clock": Clock(steps=2, cycle_steps=1, save_every=0),
            "evaluators": (),
        },
    )


def some(share: float) -> Source:
    """Give the first questions of the pool, a share of all questions."""
    low, _ = domains.PARTS["pool"]
    return edco.questions(ASSETS, (low, low + share))


def scored_by(estimator: Estimator) -> curricula.Curriculum:
    """Measure an estimator for the record, in two rounds."""
    policy = RoundWiseUniform(fraction=0.25)
    return curricula.round_wise(estimator, policy, rounds=2, reset_optimizer_each_round=False)


def estimators(template: bool) -> Mapping[str, Estimator]:
    """Give what is compared, by name; the whole answer, sampled, is what the others approximate.

    Args:
      template: questions are asked through the model's chat template.
    """
    prefixes = {
        f"{'quick, ' if quick else ''}{'greedy' if t is None else 'sampled'}, L={length}": (
            PrefixEntropy(
                prefix_tokens=length,
                temperature=t,
                instruction=QUICK if quick else "",
                template=template,
            )
        )
        for quick, t in ((False, None), (False, 1.0), (True, None))
        for length in (*LENGTHS, FULL)
    }
    others = {
        "sampled, L=64, summed": PrefixEntropy(
            prefix_tokens=64, temperature=1.0, template=template, reduction="sum"
        ),
        "release": EdcoRelease(),
        "first token": FirstTokenEntropy(template=template),
        "teacher-forced entropy": TeacherForcedEntropy(),
        "teacher-forced loss": TeacherForcedLoss(),
        "IFD": Ifd(),
        "length": Length(),
    }
    return prefixes | others


def sweep() -> Iterator[Experiment]:
    """Yield a run for each estimator, 32 rows at once."""
    yield from study(get_config(), template=False)


def qwen3() -> Iterator[Experiment]:
    """Yield the same for Qwen3-4B."""
    yield from study(still(edco.released(ASSETS, edco.QWEN3), some(0.0625)), template=True)


def llama() -> Iterator[Experiment]:
    """Yield the same for Llama-3.2-3B."""
    yield from study(still(edco.released(ASSETS, edco.LLAMA), some(0.0625)), template=True)


def study(control: Experiment, *, template: bool) -> Iterator[Experiment]:
    """Yield a run for each estimator."""
    for name, estimator in estimators(template).items():
        yield vary(control, {"name": name, "curriculum": scored_by(estimator)})


def timing() -> Iterator[Experiment]:
    """Yield prefill alone, a prefix and a whole answer at several batches."""
    for rows in BATCHES:
        share = 0.0625 if rows > 1 else 0.005  # row by row, a few rows say what one takes
        for length in (1, 64, FULL):
            estimator = PrefixEntropy(prefix_tokens=length, temperature=1.0, template=False)
            yield vary(
                get_config(),
                {
                    "name": f"L={length}, batch {rows}",
                    "curriculum": scored_by(estimator),
                    "data.sources": (domains.closed_book(some(share)),),
                    "compute.scoring_rows": rows,
                },
            )
