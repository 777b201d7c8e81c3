"""E3: which part of EDCO does what it does, and does entropy chase noise?

Question: EDCO has a dozen settings that its paper fixes. Which of them moves the accuracy by more
  than the seeds do? With wrong answers in the pool, are they chosen more often than their share?
Method: One setting at a time around the EDCO arm of E1; 5 % and 20 % wrong answers (the same rows
  in every arm) for EDCO, dynamic loss and round-wise random. The probe of the report says how
  many of the chosen rows were corrupted.
Expectation: settings matter little; loss chases wrong answers, entropy does not, since it never
  looks at an answer.
Command: maktab sweep experiments/edco/e3_ablations.py --jobs 2, and --generator noise
Result: of wrong answers neither EDCO nor dynamic loss chooses more than the pool's share. Settings
  move the loss as they move the number of distinct rows (Spearman -0.96 over ten arms); without
  repeats EDCO and random rounds are equal (RESULTS.md). The others are not run yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from configs import curricula, edco
from research.core.parts import vary
from research.curriculum.curriculum import Curriculum
from research.curriculum.estimators.edco_release import EdcoRelease
from research.curriculum.policies.window import Window
from research.data.corruption import Corrupted
from research.experiment import Experiment

ASSETS = str(Path(__file__).resolve().parent.parent / "assets")
WRONG = (0.05, 0.20)
NOISE_SEEDS = 3


def get_config() -> Experiment:
    """Give EDCO on the small base."""
    return vary(edco.small(ASSETS), {"name": "EDCO", "curriculum": edco.small_edco()})


def ablations(edco_with: Callable[..., Curriculum], rounds: int) -> dict[str, Curriculum]:
    """Give EDCO with one setting changed, by what is changed.

    Args:
      edco_with: makes EDCO with some settings changed.
      rounds: that it has as it is.
    """
    base = edco_with()
    shape = {"prefix_tokens": base.estimator.prefix_tokens, "top_p": 1.0, "temperature": 1.0}
    top_20 = EdcoRelease(instruction=base.estimator.instruction, **shape)
    return {
        "EDCO": base,
        "an eighth a round": edco_with(fraction=0.125),
        "half a round": edco_with(fraction=0.5),
        "half the rounds": edco_with(rounds=rounds // 2),
        "twice the rounds": edco_with(rounds=2 * rounds),
        "a quarter scored anew": edco_with(rescore_fraction=0.25),
        "scored once": edco_with(rescore_fraction=0.0),
        "one token": edco_with(prefix_tokens=1),
        "8 tokens": edco_with(prefix_tokens=8),
        "128 tokens": edco_with(prefix_tokens=128),
        "asked to be quick": edco_with(instruction=curricula.QUICK_ANSWER),
        "not asked to be quick": edco_with(instruction=""),
        "summed": vary(base, {"estimator.reduction": "sum"}),
        "sampled at T=1": edco_with(temperature=1.0),
        "20 likeliest, all tokens": vary(base, {"estimator": vary(top_20, {"top_fraction": 1.0})}),
        "20 likeliest, top fifth": vary(base, {"estimator": top_20}),
        "without the top 5 %": vary(base, {"policy": Window(fraction=0.25, skip=0.05)}),
        "no repeats": edco_with(allow_repeats=False, fraction=1 / rounds),
        "a round of rest": edco_with(cool_down_rounds=1),
        "hardest first": edco_with(order="descending"),
        "round-wise random": curricula.round_wise_random(rounds=rounds),
        "round-wise random, no repeats": curricula.round_wise_random(
            rounds=rounds, fraction=1 / rounds, allow_repeats=False
        ),
    }


def persistent(edco_with: Callable[..., Curriculum], rounds: int) -> dict[str, Curriculum]:
    """Give EDCO and its control with one optimiser for all rounds."""
    kept = {"reset_optimizer_each_round": False}
    return {
        "EDCO, one optimiser": edco_with(**kept),
        "round-wise random, one optimiser": curricula.round_wise_random(rounds=rounds, **kept),
    }


def study(
    control: Experiment, edco_with: Callable[..., Curriculum], rounds: int
) -> Iterator[Experiment]:
    """Yield every ablation at five seeds; one optimiser also has one schedule."""
    yield from edco.compare(control, ablations(edco_with, rounds))
    one_schedule = vary(control, {"schedule_spans_round": False})
    yield from edco.compare(one_schedule, persistent(edco_with, rounds))


def sweep() -> Iterator[Experiment]:
    """Yield the study of the small base."""
    control = edco.of_right_answers(edco.small(ASSETS))
    yield from study(control, edco.small_edco, edco.SMALL_ROUNDS)


def qwen3() -> Iterator[Experiment]:
    """Yield it on Qwen3-4B with the authors' settings."""
    control = edco.released(ASSETS, edco.QWEN3)
    yield from study(control, edco.released_edco, edco.RELEASED_ROUNDS)


def llama() -> Iterator[Experiment]:
    """Yield it on Llama-3.2-3B with the authors' settings."""
    control = edco.released(ASSETS, edco.LLAMA)
    yield from study(control, edco.released_edco, edco.RELEASED_ROUNDS)


def noise() -> Iterator[Experiment]:
    """Yield the arms whose pool has wrong answers."""
    clean = edco.questions(ASSETS, edco.SMALL_POOL)
    arms = {
        "EDCO": edco.small_edco(),
        "dynamic loss": curricula.dynamic_loss(rounds=edco.SMALL_ROUNDS),
        "round-wise random": curricula.round_wise_random(rounds=edco.SMALL_ROUNDS),
    }
    for share in WRONG:
        control = edco.small(ASSETS, Corrupted(source=clean, fraction=share))
        named = {f"{name}, {share:.0%} wrong": arm for name, arm in arms.items()}
        yield from edco.compare(edco.of_right_answers(control), named, NOISE_SEEDS)
