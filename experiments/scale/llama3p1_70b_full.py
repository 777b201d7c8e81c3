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
        name="llama3p1_70b-full",
        model=models.llama3p1_70b(),
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
            scoring_rows=256,
        ),
        layout=layouts.fsdp(data=2),
    )
