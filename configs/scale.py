"""Runs to plan for, as `experiments/scale` asks: adapters, or every weight, of a large model."""

from __future__ import annotations

from configs import curricula, optimizers, tunings
from research.clock import Clock
from research.core.layout import Layout
from research.core.parts import vary
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy


def full(
    name: str, model: Architecture, layout: Layout, *, rows: int, scoring_rows: int
) -> Experiment:
    """Train every weight, in float32 with float32 moments, on rows of 4,096 tokens.

    Products are in bfloat16, layers are rematerialised, the vocabulary comes in chunks; EDCO scores
    the pool four times. To train it, name weights and data of your own.
    """
    return Experiment(
        name=name,
        model=model,
        data=Data(
            sources=(Jsonl(path="tokens.jsonl"),),
            rows=rows,
            row_tokens=4096,
            needs_no_text=True,
        ),
        tuning=tunings.full(),
        objective=CrossEntropy(),
        optimizer=optimizers.adamw_llm(),
        schedule=optimizers.linear(peak_lr=1e-5),
        curriculum=curricula.edco(rounds=4, instruction=""),
        clock=Clock(steps=1000, cycle_steps=25),
        compute=Compute(
            dtype="bfloat16", remat="full", vocabulary_chunk=512, scoring_rows=scoring_rows
        ),
        layout=layout,
    )


def lora(
    name: str,
    model: Architecture,
    layout: Layout,
    *,
    rows: int,
    scoring_rows: int,
    peak_lr: float = 2e-4,
) -> Experiment:
    """Train adapters of rank 16 on frozen weights in bfloat16; else as `full`."""
    return vary(
        full(name, model, layout, rows=rows, scoring_rows=scoring_rows),
        {
            "tuning": tunings.lora(rank=16),
            "schedule": optimizers.linear(peak_lr=peak_lr),
            "compute.param_dtype": "bfloat16",
        },
    )
