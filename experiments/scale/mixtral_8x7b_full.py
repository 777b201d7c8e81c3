"""Mixtral 8x7B, every weight trained, on 32 chips of v5p.

Question: Does full fine-tuning of a mixture of eight large experts fit 32 chips?
Method: weights, gradients and moments in float32; experts over 8 chips, everything over 4 more;
  bfloat16 products; layers rematerialised.
Expectation: yes: 750 GB over 32 chips is 23 GB of 95.
Command: maktab plan experiments/scale/mixtral_8x7b_full.py --topology v5p-64
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

ROWS, ROW_TOKENS = 64, 4096


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return Experiment(
        name="mixtral_8x7b-full",
        model=models.mixtral_8x7b(),
        data=Data(
            sources=(Jsonl(path="tokens.jsonl"),),
            rows=ROWS,
            row_tokens=ROW_TOKENS,
            needs_no_text=True,
        ),
        tuning=tunings.full(),
        objective=CrossEntropy(),
        optimizer=optimizers.adamw_llm(),
        schedule=optimizers.linear(peak_lr=1e-5),
        curriculum=curricula.edco(rounds=4, instruction=""),
        clock=Clock(steps=1000, cycle_steps=25),
        micro_batches=1,
        compute=Compute(
            dtype="bfloat16",
            param_dtype="float32",
            remat="full",
            vocabulary_chunk=512,
            scoring_rows=128,
        ),
        layout=layouts.expert(8),
    )
