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
Result: not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs import curricula, edco
from research.core.parts import vary
from research.experiment import Experiment

ASSETS = str(Path(__file__).resolve().parent.parent / "assets")
ROUNDS, SEEDS = 8, 3


def get_config() -> Experiment:
    """Give EDCO over eight rounds, twice as many steps as in E1."""
    steps = edco.SMALL_STEPS * 2
    return vary(
        edco.small(ASSETS),
        {"name": "EDCO", "clock.steps": steps, "curriculum": edco.small_edco(rounds=ROUNDS)},
    )


def sweep() -> Iterator[Experiment]:
    """Yield the arms at three seeds."""
    chosen = get_config().curriculum
    bottom = curricula.easiest(rounds=ROUNDS, prefix_tokens=32, instruction="")
    arms = {"EDCO": chosen, "bottom": bottom, "round-wise random": edco.measured(chosen)}
    yield from edco.compare(edco.of_right_answers(get_config()), arms, SEEDS)
