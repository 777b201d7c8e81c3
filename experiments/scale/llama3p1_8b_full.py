"""Llama 3.1 8B, every weight trained, on ever more chips of v5p at four rows a chip.

Question: Does what a chip computes, holds and sends stay as it is from 8 chips to 256?
Method: weights, gradients and moments in float32, split over all chips; four rows of 4,096 tokens a
  chip; bfloat16 products; layers rematerialised; the training step alone.
Expectation: FLOPs and what is not a shard stay within 5 %, bytes sent grow as (n - 1) / n.
Command: maktab plan experiments/scale/llama3p1_8b_full.py --topology v5p:2x2x2 --program training
  --set data.rows=32; 256 chips: --topology v5p:4x8x8 --set data.rows=1024 (all of them:
  python -m benchmarks.scaling)
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.full(
        "llama3p1_8b-full", models.llama3p1_8b(), layouts.fsdp(), rows=8, scoring_rows=64
    )
