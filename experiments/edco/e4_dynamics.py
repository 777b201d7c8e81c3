"""E4: what happens to the entropies while EDCO trains?

Question: EDCO is motivated by entropy collapse: easy samples teach a pretrained model nothing and
  make it sure of everything. Does choosing uncertain rows keep the pool's entropy up, does it
  choose new rows each round, and do entropy and loss agree about what is hard?
Method: EDCO, its mirror image and round-wise random over eight rounds, all scored alike each
  round (the control for the record alone). The probe page of `maktab report` has the figures:
  entropy of the pool and of the selected, new rows, coverage, rank correlation between rounds,
  and the quarters of entropy and loss with example texts.
Expectation: entropy falls in every arm, for fine-tuning on short answers sharpens; less so in
  EDCO.
Command: maktab sweep experiments/edco/e4_dynamics.py --jobs 2
Result: over E1's four rounds the pool's entropy moves by +0.01 nats under EDCO, -0.13 under its
  control, -0.26 under its mirror image (RESULTS.md). Over eight rounds, one seed: +0.02, -0.11,
  -0.38; EDCO's loss is 0.090 above its control's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs import edco
from research.core.parts import vary
from research.curriculum.curriculum import Curriculum
from research.curriculum.policies.bottom_fraction import BottomFraction
from research.experiment import Experiment

ASSETS = str(Path(__file__).resolve().parent.parent / "assets")
ROUNDS = 8


def get_config() -> Experiment:
    """Give EDCO over eight rounds, twice as many steps as in E1."""
    steps = edco.SMALL_STEPS * 2
    return vary(
        edco.small(ASSETS),
        {"name": "EDCO", "clock.steps": steps, "curriculum": edco.small_edco(rounds=ROUNDS)},
    )


def sweep() -> Iterator[Experiment]:
    """Yield the arms at five seeds."""
    control = edco.of_right_answers(get_config())
    yield from edco.compare(control, arms(edco.small_edco(rounds=ROUNDS)))


def qwen3() -> Iterator[Experiment]:
    """Yield the arms on Qwen3-4B with the authors' settings."""
    yield from edco.compare(edco.released(ASSETS, edco.QWEN3), arms(edco.released_edco()))


def llama() -> Iterator[Experiment]:
    """Yield the arms on Llama-3.2-3B with the authors' settings."""
    yield from edco.compare(edco.released(ASSETS, edco.LLAMA), arms(edco.released_edco()))


def arms(chosen: Curriculum) -> dict[str, Curriculum]:
    """Give EDCO, its mirror image and its control, all scored alike."""
    bottom = vary(chosen, {"policy": BottomFraction(fraction=chosen.policy.fraction)})
    return {"EDCO": chosen, "bottom": bottom, "round-wise random": edco.measured(chosen)}
