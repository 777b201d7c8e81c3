"""Llama 3.1 70B, every weight trained, on 64 chips of v5p and on 256 of v6e.

Question: Does full fine-tuning of 70B with float32 weights and moments fit, without pipelines?
Method: weights, gradients and moments in float32, 16 bytes a parameter, split over half of the
  chips in two groups; bfloat16 products; layers rematerialised; the vocabulary in
  chunks.
Expectation: yes: 1.1 TB over 32 chips is 35 GB of 95, over 128 chips 9 GB of 31.
Command: maktab plan experiments/scale/llama3p1_70b_full.py --topology v5p:4x4x4
  maktab plan experiments/scale/llama3p1_70b_full.py --topology v6e:16x16 --set data.rows=256
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.full(
        "llama3p1_70b-full", models.llama3p1_70b(), layouts.fsdp(data=2), rows=64, scoring_rows=256
    )
