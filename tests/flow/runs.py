"""A run that takes seconds: a tiny random model on made-up rows, with everything switched on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from configs import curricula
from research.clock import Clock
from research.core.parts import vary
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.models.architecture import Architecture
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Cosine
from research.tuning.full import Full

ARCHITECTURE = Architecture(
    vocab_size=37,
    model_dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffw_dim=20,
    max_positions=64,
)
NUM_EXAMPLES = 29  # prime, so that no batch size divides it


class Silent:
    """A watch that sees nothing."""

    def begins(self, prepared: Any, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None: ...
    def evaluating(self, name: str, done: int, total: int) -> None: ...


def write_rows(folder: Path, seed: int = 0) -> Path:
    """Write rows of 5 to 13 `input_ids`, all at once, since another process may be reading them."""
    random, file = np.random.default_rng(seed), folder / "rows.jsonl"
    rows = [
        {"id": f"row-{i}", "input_ids": random.integers(1, 37, random.integers(5, 14)).tolist()}
        for i in range(NUM_EXAMPLES)
    ]
    draft = folder / f".rows.{os.getpid()}.draft"
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.replace(file)
    return file


def tiny_run(folder: Path, changes: dict[str, Any] | None = None) -> Experiment:
    """Give an EDCO run of 8 steps in 2 rounds, packed, saved every 2 steps."""
    experiment = Experiment(
        name="tiny",
        model=ARCHITECTURE,
        data=Data(
            sources=(Jsonl(path=str(write_rows(folder))),),
            rows=8,
            row_tokens=19,
            max_segments=3,
            needs_no_text=True,
        ),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(weight_decay=0.1),
        schedule=Cosine(peak_lr=1e-2, warmup_fraction=0.2),
        curriculum=curricula.edco(fraction=0.5, rounds=2, prefix_tokens=3, instruction=""),
        clock=Clock(steps=8, cycle_steps=2),
    )
    return vary(experiment, changes or {})
