"""The shape of DeepSeek-V3 with LoRA on 256 chips of v5p.

Question: Does LoRA of 671B parameters in bfloat16 fit 256 chips?
Method: rank 16 on the layers' own kernels, not on the experts; frozen weights in bfloat16, 256
  experts over 32 chips, everything over 8 more; latent attention; layers rematerialised.
Expectation: yes: 1.3 TB over 256 chips is 5.3 GB of 95.
Command: maktab plan experiments/scale/deepseek_v3_lora.py --topology v5p:4x8x8
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

ROWS, ROW_TOKENS = 256, 4096


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return Experiment(
        name="deepseek_v3-lora",
        model=models.deepseek_v3(),
        data=Data(
            sources=(Jsonl(path="tokens.jsonl"),),
            rows=ROWS,
            row_tokens=ROW_TOKENS,
            needs_no_text=True,
        ),
        tuning=tunings.lora(rank=16),
        objective=CrossEntropy(),
        optimizer=optimizers.adamw_llm(),
        schedule=optimizers.linear(peak_lr=1e-4),
        curriculum=curricula.edco(rounds=4, instruction=""),
        clock=Clock(steps=1000, cycle_steps=25),
        micro_batches=1,
        compute=Compute(
            dtype="bfloat16",
            param_dtype="bfloat16",
            remat="full",
            vocabulary_chunk=512,
            scoring_rows=256,
        ),
        layout=layouts.expert(32),
    )
