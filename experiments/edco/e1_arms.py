"""E1: does training on what the model is unsure of beat random order, at equal steps and compute?

Question: EDCO (arXiv 2601.03725) reports gains over random order and over perplexity curricula on
  test sets of 230 questions. Do they hold against the fair control, round-wise random with the
  same optimiser resets, over five seeds and a thousand questions?
Method: Questions about O-RAN specifications, asked closed-book; a tenth of them is the pool (1,008,
  those left out that are long or that the test asks in the same words), 1,193 others the test.
  Every arm makes the same 64 steps on a base model that has seen another third (`base.py`). EDCO's
  scoring costs as much as 74 steps, padding charged: in `equal_compute` random order makes those
  too, and arms that score less pay with steps. Measured: accuracy (the right option's text is the
  likeliest a byte) and the loss of right answers.
Expectation: the order matters less than the seed; EDCO costs more than it gains.
Command: maktab sweep experiments/edco/e1_arms.py --jobs 2
  On an accelerator: --generator qwen3, or --generator llama, with the authors' settings.
Result: no accuracy differs; EDCO's loss is 0.045 nats above round-wise random (p = 0.002 by Holm),
  and plain random order beats both (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs import edco
from research.core.parts import vary
from research.curriculum.budget import EqualCompute
from research.experiment import Experiment

SCORING_STEPS = 74  # what scoring the pool four times costs here, in steps of training
ASSETS = str(Path(__file__).resolve().parent.parent / "assets")


def get_config() -> Experiment:
    """Give the control arm: plain random order."""
    return edco.small(ASSETS)


def sweep() -> Iterator[Experiment]:
    """Yield every arm at every seed, at equal steps, for the small base."""
    yield from edco.compare(get_config(), edco.small_arms())


def equal_compute() -> Iterator[Experiment]:
    """Yield random order with the steps that EDCO's scoring would pay for, and arms that pay for
    their scoring with steps: EDCO itself only where it scores a quarter of the pool anew."""
    control, arms = get_config(), edco.small_arms()
    longer = vary(control, {"clock.steps": edco.SMALL_STEPS + SCORING_STEPS})
    yield from edco.compare(longer, {"random, EDCO's compute": control.curriculum})
    anew = vary(arms["EDCO"], {"rescore_fraction": 0.25})
    paying = {"EDCO, a quarter anew": anew, "static EDCO": arms["static EDCO"]}
    equal = {
        f"{name}, equal compute": vary(arm, {"budget": EqualCompute()})
        for name, arm in paying.items()
    }
    yield from edco.compare(control, equal)


def qwen3() -> Iterator[Experiment]:
    """Yield the arms on Qwen3-4B with the authors' settings."""
    yield from edco.compare(edco.released(ASSETS, edco.QWEN3), edco.released_arms())


def llama() -> Iterator[Experiment]:
    """Yield the arms on Llama-3.2-3B with the authors' settings."""
    yield from edco.compare(edco.released(ASSETS, edco.LLAMA), edco.released_arms())
