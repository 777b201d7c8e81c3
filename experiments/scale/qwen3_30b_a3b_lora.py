"""Qwen3 30B-A3B with LoRA on eight chips of v5p.

Question: Does LoRA of a mixture of 128 experts a layer fit a v5p-16?
Method: rank 16 on all linear layers, experts included, one adapter an expert; frozen weights in
  bfloat16; experts split over all chips, tokens travel to them.
Expectation: yes: 7.6 GB of weights a chip of 95.
Command: maktab plan experiments/scale/qwen3_30b_a3b_lora.py --topology v5p-16
Result: docs/scale.md
"""

from __future__ import annotations

from configs import curricula, layouts, models, optimizers, tunings
from research.clock import Clock
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy

ROWS, ROW_TOKENS = 32, 4096


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return Experiment(
        name="qwen3_30b_a3b-lora",
        model=models.qwen3_30b_a3b(),
        data=Data(
            sources=(Jsonl(path="tokens.jsonl"),),
            rows=ROWS,
            row_tokens=ROW_TOKENS,
            needs_no_text=True,
        ),
        tuning=tunings.lora(rank=16),
        objective=CrossEntropy(),
        optimizer=optimizers.adamw_llm(),
        schedule=optimizers.linear(peak_lr=2e-4),
        curriculum=curricula.edco(rounds=4, instruction=""),
        clock=Clock(steps=1000, cycle_steps=25),
        micro_batches=1,
        compute=Compute(
            dtype="bfloat16",
            param_dtype="bfloat16",
            remat="full",
            vocabulary_chunk=512,
            scoring_rows=64,
        ),
        layout=layouts.expert(8, fsdp=1),
    )
