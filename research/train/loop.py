"""The loop: cycles of steps, between which the host plans, records, saves and evaluates."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from research.checkpoint import Store
from research.clock import Cycle
from research.core.records import Batch, Learner, Report, State
from research.data.batches import pack_batch
from research.data.packing import pack
from research.evaluate.evaluate import evaluate
from research.experiment import Experiment
from research.report.writers import Record
from research.score.pool import score_pool
from research.train.prepare import Prepared, prepare
from research.train.step import compile_step, initialise, structure_of


class Watch(Protocol):
    """Someone who looks on: a progress bar. What it does changes nothing."""

    def begin(self, prepared: Prepared, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def cycle(self, cycle: Cycle, metrics: Mapping[str, Any], timing: Mapping[str, Any]) -> None: ...
    def evaluating(self, name: str, done: int) -> None: ...


class NonFiniteError(RuntimeError):
    """Updates were withheld because loss or gradient was not finite."""


def train(experiment: Experiment, workdir: Path, watch: Watch) -> State:
    """Run `experiment` to its last step, resuming from `workdir` if it holds a checkpoint."""
    prepared = prepare(experiment)
    ...
