"""Llama 3.1 70B, every weight trained, on two and four slices of 64 chips of v5p.

Question: Does a slow network between slices keep a 70B full fine-tune from scaling, so that
  pipeline parallelism over slices is needed?
Method: each slice holds all weights, split over its 64 chips; gradients alone cross between
  slices. One row of 4,096 tokens a chip; float32 weights and moments; layers rematerialised.
Expectation: no: gradients of 64 shards are 2.2 GB a chip, and a step's products take seconds.
Command: maktab plan experiments/scale/llama3p1_70b_slices.py --topology 2*v5p:4x4x4
  --program training; four slices: --topology 4*v5p:4x4x4 --set data.rows=256
  --set "layout.axes=(('replica',4),('fsdp',-1))"
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.full(
        "llama3p1_70b-slices", models.llama3p1_70b(), layouts.pod(2), rows=128, scoring_rows=256
    )
