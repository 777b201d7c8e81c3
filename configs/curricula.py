"""Named curricula: the arms of the EDCO comparison, each a pure function.

The switches that decide whether two arms compare fairly are keywords of every round-wise preset
(`round_wise` lists them), with one default for all: the optimiser starts anew each round, examples
may repeat, arms make equal steps, and the whole pool is scored every round.
"""

from __future__ import annotations

from typing import Any

from research.core.protocols import Weights
from research.curriculum.budget import EqualCompute, EqualSteps
from research.curriculum.curriculum import Curriculum, Measure, Policy
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.estimators.excess_loss import ExcessLoss
from research.curriculum.estimators.first_token_entropy import FirstTokenEntropy
from research.curriculum.estimators.free import Free
from research.curriculum.estimators.given import Given
from research.curriculum.estimators.gradient_norm import GradientNorm
from research.curriculum.estimators.gradient_similarity import GradientSimilarity
from research.curriculum.estimators.ifd import Ifd
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.option_letters import OptionLetters
from research.curriculum.estimators.prefix_entropy import PrefixEntropy
from research.curriculum.estimators.scored_by import ScoredBy
from research.curriculum.estimators.teacher_forced_entropy import TeacherForcedEntropy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.expressions import nats, ranked, standardised, where
from research.curriculum.gradients import ADAPTERS
from research.curriculum.ordering import RoundOrder
from research.curriculum.policies.bottom_fraction import BottomFraction
from research.curriculum.policies.competence import Competence
from research.curriculum.policies.floor import UniformFloor
from research.curriculum.policies.mixture import Mixture
from research.curriculum.policies.round_wise_uniform import RoundWiseUniform
from research.curriculum.policies.self_paced import SelfPaced
from research.curriculum.policies.softmax import Softmax
from research.curriculum.policies.sorted_pool import Sorted
from research.curriculum.policies.top_fraction import TopFraction
from research.curriculum.policies.two_stage import TwoStage
from research.curriculum.policies.ucb1 import Ucb1
from research.curriculum.policies.uniform import Uniform
from research.curriculum.policies.window import Window

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


def first_token(
    *, fraction: float = 0.25, rounds: int = 8, instruction: str = QUICK_ANSWER, **switches
) -> Curriculum:
    """Highest entropy of the answer's first token: EDCO at the price of reading the prompts."""
    estimator = FirstTokenEntropy(instruction=instruction)
    return round_wise(estimator, TopFraction(fraction=fraction), rounds=rounds, **switches)


def option_letters(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Highest entropy among the letters of multiple-choice rows."""
    return round_wise(OptionLetters(), TopFraction(fraction=fraction), rounds=rounds, **switches)


def ifd(*, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Cherry data: the questions that help least with their answers, of those that help at all."""
    estimator = where(nats(Ifd()) < 1.0, nats(Ifd()), 0.0)
    return round_wise(estimator, TopFraction(fraction=fraction), rounds=rounds, **switches)


def excess_loss(
    reference: Weights, *, fraction: float = 0.25, rounds: int = 8, **switches
) -> Curriculum:
    """Rho-1's signal by example: highest loss beyond that of a reference trained on clean data."""
    policy = TopFraction(fraction=fraction)
    return round_wise(ExcessLoss(reference=reference), policy, rounds=rounds, **switches)


def rho_loss(
    held_out: Weights, *, fraction: float = 0.25, rounds: int = 8, **switches
) -> Curriculum:
    """RHO-LOSS: highest reducible loss; the reference was trained on rows held out of the pool."""
    return excess_loss(held_out, fraction=fraction, rounds=rounds, **switches)


def edco_by(
    scorer: Weights,
    *,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    instruction: str = QUICK_ANSWER,
    **switches,
) -> Curriculum:
    """Prefix entropy of another, smaller model, asked once: what the model's own view adds."""
    entropy = PrefixEntropy(prefix_tokens=prefix_tokens, instruction=instruction)
    policy = TopFraction(fraction=fraction)
    return round_wise(
        ScoredBy(estimator=entropy, model=scorer),
        policy,
        rounds=rounds,
        **{"rescore_fraction": 0.0, **switches},
    )


def uncertain_but_learnable(
    *,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    instruction: str = QUICK_ANSWER,
    **switches,
) -> Curriculum:
    """Entropy high and loss low, by the product of their places: unsure, yet the answer fits."""
    entropy = PrefixEntropy(prefix_tokens=prefix_tokens, instruction=instruction)
    estimator = ranked(entropy) * (1.0 - ranked(TeacherForcedLoss()))
    return round_wise(estimator, TopFraction(fraction=fraction), rounds=rounds, **switches)


def less(
    guide: Any,
    *,
    targets: tuple[str, ...] = ADAPTERS,
    fraction: float = 0.25,
    rounds: int = 8,
    **switches,
) -> Curriculum:
    """LESS: the examples whose gradients point where those of a few validation rows do."""
    estimator = GradientSimilarity(guide=guide, targets=targets)
    return round_wise(estimator, TopFraction(fraction=fraction), rounds=rounds, **switches)


def deft(
    guide: Any,
    surrogate: Weights,
    *,
    targets: tuple[str, ...] = ADAPTERS,
    surrogate_targets: tuple[str, ...] = ("down_F_D",),
    effort: float = 0.5,
    fraction: float = 0.25,
    rounds: int = 8,
    **switches,
) -> Curriculum:
    """Influence by a surrogate model plus effort of the model itself, both standardised.

    Source: DEALRec, arXiv 2401.17197; see `GradientSimilarity` for what is simplified.
    """
    influence = GradientSimilarity(guide=guide, targets=surrogate_targets, similarity="dot")
    estimator = standardised(
        ScoredBy(estimator=influence, model=surrogate)
    ) + effort * standardised(GradientNorm(targets=targets))
    return round_wise(estimator, TopFraction(fraction=fraction), rounds=rounds, **switches)


def window(*, skip: float = 0.1, fraction: float = 0.25, rounds: int = 8, **switches) -> Curriculum:
    """Highest loss below the top tenth, where noise gathers."""
    policy = Window(fraction=fraction, skip=skip)
    return round_wise(TeacherForcedLoss(), policy, rounds=rounds, **switches)


def softmax_loss(
    *, temperature: float = 1.0, fraction: float = 0.25, rounds: int = 8, **switches
) -> Curriculum:
    """High losses are likelier, none is certain."""
    policy = Softmax(fraction=fraction, temperature=temperature)
    return round_wise(TeacherForcedLoss(), policy, rounds=rounds, **switches)


def edco_with_floor(
    *,
    epsilon: float = 0.2,
    fraction: float = 0.25,
    rounds: int = 8,
    prefix_tokens: int = 64,
    instruction: str = QUICK_ANSWER,
    **switches,
) -> Curriculum:
    """EDCO with a fifth of every round left to chance."""
    estimator = PrefixEntropy(prefix_tokens=prefix_tokens, instruction=instruction)
    policy = UniformFloor(policy=TopFraction(fraction=fraction), epsilon=epsilon)
    return round_wise(estimator, policy, rounds=rounds, **switches)


def competence(
    *, initial: float = 0.1, fraction: float = 0.25, rounds: int = 8, **switches
) -> Curriculum:
    """Easy first: at random from an easy end that grows until the last round but one."""
    policy = Competence(fraction=fraction, initial=initial, rounds_to_full=max(1, rounds - 1))
    return round_wise(
        TeacherForcedLoss(), policy, rounds=rounds, **{"rescore_fraction": 0.0, **switches}
    )


def self_paced(
    *, threshold_nats: float, growth: float = 1.3, rounds: int = 8, **switches
) -> Curriculum:
    """Whatever has a loss below a threshold, which rises from round to round."""
    policy = SelfPaced(threshold_nats=threshold_nats, growth=growth)
    return round_wise(TeacherForcedLoss(), policy, rounds=rounds, **switches)


def medium_then_hard(
    *, medium_rounds: int = 4, fraction: float = 0.25, rounds: int = 8, **switches
) -> Curriculum:
    """The middle of the losses first, their top after it."""
    policy = TwoStage(fraction=fraction, medium_rounds=medium_rounds)
    return round_wise(TeacherForcedLoss(), policy, rounds=rounds, **switches)


def given_order(
    *, field: str, levels: tuple[str, ...] = (), descending: bool = False
) -> Curriculum:
    """The pool sorted by a grade of its rows, easy to hard."""
    return single_run(Given(field=field, levels=levels), Sorted(descending=descending))


def bandit(
    *,
    estimator: Measure | None = None,
    arms: int = 4,
    fraction: float = 0.25,
    rounds: int = 8,
    **switches,
) -> Curriculum:
    """UCB1 over levels of difficulty: by the untrained model's loss, or such as `Given(...)`."""
    return round_wise(
        TeacherForcedLoss() if estimator is None else estimator,
        Ucb1(fraction=fraction, arms=arms),
        rounds=rounds,
        **{"rescore_fraction": 0.0, **switches},
    )


def mixture(
    *,
    reference: Weights | None = None,
    rate: float = 1.0,
    fraction: float = 0.25,
    rounds: int = 8,
    **switches,
) -> Curriculum:
    """Shares of weighted sources after DoReMi: by excess loss, or by loss without a reference."""
    estimator = TeacherForcedLoss() if reference is None else ExcessLoss(reference=reference)
    policy = Mixture(policy=RoundWiseUniform(fraction=fraction), rate=rate)
    return round_wise(estimator, policy, rounds=rounds, **switches)


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
    estimator: Measure | None,
    policy: Policy,
    *,
    rounds: int,
    reset_optimizer_each_round: bool = True,
    allow_repeats: bool = True,
    cool_down_rounds: int = 0,
    budget: EqualSteps | EqualCompute = EQUAL_STEPS,
    rescore_fraction: float = 1.0,
    score_ahead: bool = False,
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
        score_ahead=score_ahead,
    )


def single_run(estimator: Measure | None, policy: Policy) -> Curriculum:
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
