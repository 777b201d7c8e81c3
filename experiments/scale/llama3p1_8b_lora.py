"""Llama 3.1 8B with LoRA on eight small TPU chips.

Question: Does LoRA of an 8B model, with a curriculum that lets it answer its own pool, fit a v5e-8?
Method: rank 16 on all linear layers; frozen weights in bfloat16, split over all chips; one row of
  4,096 tokens a chip at a time; layers rematerialised; the vocabulary in chunks.
Expectation: yes: 2 GiB of weights a chip leave most of its 16 GiB to activations.
Command: maktab plan experiments/scale/llama3p1_8b_lora.py --topology v5e-8
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.core.parts import vary
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    adapters = scale.lora(
        "llama3p1_8b-lora", models.llama3p1_8b(), layouts.fsdp(), rows=32, scoring_rows=64
    )
    return vary(adapters, {"micro_batches": 4})
