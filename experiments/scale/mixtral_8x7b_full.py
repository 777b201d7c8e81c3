"""Mixtral 8x7B, every weight trained, on 32 chips of v5p.

Question: Does full fine-tuning of a mixture of eight large experts fit 32 chips?
Method: weights, gradients and moments in float32; experts over 8 chips, everything over 4 more;
  bfloat16 products; layers rematerialised.
Expectation: yes: 750 GB over 32 chips is 23 GB of 95.
Command: maktab plan experiments/scale/mixtral_8x7b_full.py --topology v5p-64
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.full(
        "mixtral_8x7b-full", models.mixtral_8x7b(), layouts.expert(8), rows=64, scoring_rows=128
    )
