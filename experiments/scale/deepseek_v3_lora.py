"""The shape of DeepSeek-V3 with LoRA on 256 chips of v5p.

Question: Does LoRA of 671B parameters in bfloat16 fit 256 chips?
Method: rank 16 on the layers' own kernels, not on the experts; frozen weights in bfloat16, 256
  experts over 32 chips, everything over 8 more; latent attention; layers rematerialised.
Expectation: yes: 1.3 TB over 256 chips is 5.3 GB of 95.
Command: maktab plan experiments/scale/deepseek_v3_lora.py --topology v5p:4x8x8
Result: docs/scale.md
"""

from __future__ import annotations

from configs import layouts, models, scale
from research.experiment import Experiment


def get_config() -> Experiment:
    """Give the run that is planned; to train it, name weights and data of your own."""
    return scale.lora(
        "deepseek_v3-lora",
        models.deepseek_v3(),
        layouts.expert(32),
        rows=256,
        scoring_rows=256,
        peak_lr=1e-4,
    )
