"""Named curricula: the arms of the EDCO comparison, each a pure function.

The switches that decide whether two arms compare fairly are keywords of every round-wise preset
(`round_wise` lists them), with one default for all: the optimiser starts anew each round, examples
may repeat, arms make equal steps, and the whole pool is scored every round.
"""

from __future__ import annotations

from research.core.protocols import Estimator, Recorder
from research.curriculum.budget import EqualCompute, EqualSteps
from research.curriculum.curriculum import Curriculum, Policy
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.free import Free
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.ordering import RoundOrder
from research.curriculum.policies.bottom_fraction import BottomFraction
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.policies.uniform import Uniform

QUICK_ANSWER = "Answer the following question briefly, in at most three sentences."

EQUAL_STEPS = EqualSteps()


def edco(
    *,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    temperature: float | None = None,
    instruction: str = QUICK_ANSWER,
    order: RoundOrder = "shuffled",
    **switches,
) -> Curriculum:
    """EDCO as described: train each round on the part of the pool with the highest prefix entropy.

    A model without a chat template answers no instruction: give `instruction=""`. For data in
    another language, say it in that language.
    """
    estimator = PrefixEntropy(
        prefix_tokens=prefix_tokens, temperature=temperature, instruction=instruction
    )
    policy = TopFraction(fraction=fraction, order=order)
    return round_wise(estimator, policy, rounds=rounds, **switches)


def edco_release(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """EDCO as its released code scores: one sampled answer, top-20 entropy, highest fifth."""
    return round_wise(EdcoRelease(), TopFraction(fraction=fraction), rounds=rounds, **switches)


def static_edco(
    *,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    instruction: str = QUICK_ANSWER,
    **switches,
) -> Curriculum:
    """EDCO whose scores stay those of the untrained model: what re-scoring adds."""
    estimator = PrefixEntropy(prefix_tokens=prefix_tokens, instruction=instruction)
    policy = TopFraction(fraction=fraction)
    return round_wise(estimator, policy, rounds=rounds, **{"rescore_fraction": 0.0, **switches})


def easiest(
    *,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    instruction: str = QUICK_ANSWER,
    **switches,
) -> Curriculum:
    """EDCO's mirror image: the lowest prefix entropy."""
    estimator = PrefixEntropy(prefix_tokens=prefix_tokens, instruction=instruction)
    return round_wise(estimator, BottomFraction(fraction=fraction), rounds=rounds, **switches)


def dynamic_loss(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Highest teacher-forced loss each round."""
    policy = TopFraction(fraction=fraction)
    return round_wise(TeacherForcedLoss(), policy, rounds=rounds, **switches)


def dynamic_entropy(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Highest teacher-forced entropy each round."""
    policy = TopFraction(fraction=fraction)
    return round_wise(TeacherForcedEntropy(), policy, rounds=rounds, **switches)


def free_loss(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Highest loss as training itself last saw it; what was never seen comes first."""
    policy = TopFraction(fraction=fraction, unscored="first")
    return round_wise(Free(), policy, rounds=rounds, **{"rescore_fraction": 0.0, **switches})


def round_wise_random(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """The control of all round-wise arms: a random part of the pool each round."""
    policy = RoundWiseUniform(fraction=fraction)
    return round_wise(None, policy, rounds=rounds, **{"rescore_fraction": 0.0, **switches})


def random() -> Curriculum:
    """Plain fine-tuning: the shuffled pool, epoch after epoch, one optimiser."""
    return single_run(None, Uniform())


def static_perplexity(*, descending: bool = False) -> Curriculum:
    """The pool sorted once by the untrained model's loss, easy to hard."""
    return single_run(TeacherForcedLoss(), Sorted(descending=descending))


def shortest_first(*, descending: bool = False) -> Curriculum:
    """The pool sorted by length, short to long."""
    return single_run(Length(), Sorted(descending=descending))


def round_wise(
    estimator: Estimator | Recorder | None,
    policy: Policy,
    *,
    rounds: int,
    reset_optimizer_each_round: bool = True,
    allow_repeats: bool = True,
    cool_down_rounds: int = 0,
    budget: EqualSteps | EqualCompute = EQUAL_STEPS,
    rescore_fraction: float = 1.0,
) -> Curriculum:
    """A round-wise arm with the switches that all of them share."""
    return Curriculum(
        estimator=estimator,
        policy=policy,
        rounds=rounds,
        reset_optimizer_each_round=reset_optimizer_each_round,
        allow_repeats=allow_repeats,
        cool_down_rounds=cool_down_rounds,
        budget=budget,
        rescore_fraction=rescore_fraction,
    )


def single_run(estimator: Estimator | None, policy: Policy) -> Curriculum:
    """An arm without rounds: what is scored is scored once, before the first step."""
    return Curriculum(
        estimator=estimator,
        policy=policy,
        rounds=1,
        reset_optimizer_each_round=False,
        allow_repeats=True,
        budget=EQUAL_STEPS,
        rescore_fraction=0.0,
    )
