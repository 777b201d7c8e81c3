"""Qwen3 30B-A3B with LoRA on eight chips of v5p.

Question: Does LoRA of a mixture of 128 experts a layer fit a v5p-16?
Method: rank 16 on all linear layers, experts included, one adapter an expert; frozen weights in
  bfloat16; experts split over all chips, tokens travel to them.
Expectation: yes: 7.6 GB of weights a chip of 95.
Command: maktab plan experiments/scale/qwen3_30b_a3b_lora.py --topology v5p-16
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.lora(
        "qwen3_30b_a3b-lora",
        models.qwen3_30b_a3b(),
        layouts.expert(8, fsdp=1),
        rows=32,
        scoring_rows=64,
    )
