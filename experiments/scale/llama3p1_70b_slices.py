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

from configs import curricula, layouts, models, optimizers, tunings
from research.clock import Clock
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy

ROWS, ROW_TOKENS = 128, 4096


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return Experiment(
        name="llama3p1_70b-slices",
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
        layout=layouts.pod(2),
    )
