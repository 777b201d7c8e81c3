"""Llama 3.1 8B with LoRA on eight small TPU chips.

Question: Does LoRA of an 8B model, with a curriculum that lets it answer its own pool, fit a v5e-8?
Method: rank 16 on all linear layers; frozen weights in bfloat16, split over all chips; one row of
  4,096 tokens a chip at a time; layers rematerialised; the vocabulary in chunks.
Expectation: yes: 2 GiB of weights a chip leave most of its 16 GiB to activations.
Command: maktab plan experiments/scale/llama3p1_8b_lora.py --topology v5e-8
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
        name="llama3p1_8b-lora",
        model=models.llama3p1_8b(),
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
        micro_batches=4,
        compute=Compute(
            dtype="bfloat16",
            param_dtype="bfloat16",
            remat="full",
            vocabulary_chunk=512,
            scoring_rows=64,
        ),
        layout=layouts.fsdp(),
    )
