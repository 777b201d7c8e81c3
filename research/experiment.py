"""The root: everything that determines a run, as one frozen tree of numbers."""

from __future__ import annotations

import zlib
from typing import Any

from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.layout import Layout
from research.core.parts import part, require
from research.core.protocols import Evaluator, Objective, Optimizer, Schedule, Tuning
from research.curriculum.curriculum import Curriculum
from research.data.pool import Data
from research.huggingface.pretrained import Pretrained
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.moe.balancing import Balancing


@part
class Seeds:
    """Named seed streams; arms that share one are paired in it. None takes the experiment's seed.

    Attributes:
      initialisation: new parameters and adapter factors.
      order: which examples come when (unless scores decide).
      scoring: sampled paths of the scorer.
      dropout: masks.
    """

    initialisation: int | None = None
    order: int | None = None
    scoring: int | None = None
    dropout: int | None = None


@part
class Update:
    """What one step needs to know: the parts whose scalars are traced.

    Two experiments whose updates differ only in floats share one compiled step.
    """

    tuning: Tuning
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    max_gradient_norm: float | None
    micro_batches: int
    balancing: Balancing | None = None


@part
class Experiment:
    """One run.

    Attributes:
      name: the arm; runs of one name and different seeds are replicates.
      model: weights to start from, or an architecture to initialise.
      tokenizer: a Hugging Face folder or SentencePiece file; empty: the pretrained model's own.
      micro_batches: gradient accumulation; the batch's rows are split into so many.
      max_gradient_norm: clip the global norm to this; None: no clipping.
      max_withheld: non-finite updates that are tolerated in the whole run.
      balancing: how the selection bias of routers follows their load; None: it stays.
      sinks: where metrics go besides JSONL and TensorBoard (`research/report/sinks.py`).
      max_leaked_fraction: share of the pool that may equal an evaluator's items.
      scoring_layout: where weights lie while the curriculum asks and evaluators measure, over the
        devices of `layout`; they are moved there before, and back never. None: as in training. A
        layout that splits weights gathers all of them for every token that is generated.
      schedule_spans_round: fractions of the schedule refer to the round, not to the run.
    """

    name: str
    seed: int = 0
    seeds: Seeds = Seeds()
    model: Pretrained | Architecture
    tokenizer: str = ""
    data: Data
    tuning: Tuning
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    balancing: Balancing | None = None
    curriculum: Curriculum
    clock: Clock
    micro_batches: int = 1
    max_gradient_norm: float | None = 1.0
    max_withheld: int = 0
    max_leaked_fraction: float = 0.0
    schedule_spans_round: bool = False
    compute: Compute = Compute()
    layout: Layout = Layout()
    scoring_layout: Layout | None = None
    checkpoints: Checkpoints = Checkpoints()
    evaluators: tuple[Evaluator, ...] = ()
    sinks: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        names, keep = [evaluator.name for evaluator in self.evaluators], self.checkpoints
        require(
            self,
            (bool(self.name), "name is empty; name the arm, it is a folder's name too"),
            ("/" not in self.name, f"name={self.name!r} has a slash; it is a folder's name"),
            (
                self.micro_batches > 0 and self.data.rows % self.micro_batches == 0,
                f"micro_batches={self.micro_batches} does not divide data.rows={self.data.rows}",
            ),
            (
                self.max_gradient_norm is None or self.max_gradient_norm > 0,
                f"max_gradient_norm={self.max_gradient_norm} must be positive, or None",
            ),
            (self.max_withheld >= 0, f"max_withheld={self.max_withheld} must not be negative"),
            (len(set(names)) == len(names), f"evaluators share names: {names}"),
            (
                not keep.metric or keep.metric.split("/")[0] in names,
                f"checkpoints.metric={keep.metric!r} names no evaluator; there are {names}",
            ),
            (
                not keep.metric or self._saves_what_it_evaluates(),
                f"checkpoints.keep_best={keep.keep_best} needs evaluations at saves: "
                f"clock.evaluate_every={self.clock.evaluate_every} must be a positive multiple of "
                f"save_every={self.clock.save_every}",
            ),
            (
                self.curriculum.rounds <= self.clock.steps,
                f"curriculum.rounds={self.curriculum.rounds} exceeds {self.clock.steps} steps",
            ),
            (
                isinstance(self.model, Pretrained)
                or bool(self.tokenizer)
                or self.data.needs_no_text,
                "model is an architecture, so tokenizer must be given",
            ),
        )

    def _saves_what_it_evaluates(self) -> bool:
        save, evaluate = self.clock.save_every, self.clock.evaluate_every
        return save > 0 and evaluate > 0 and evaluate % save == 0

    def seed_of(self, stream: str) -> int:
        """Give the seed of a named stream; streams of one experiment differ from one another."""
        chosen = getattr(self.seeds, stream)
        return zlib.crc32(f"{stream}:{self.seed if chosen is None else chosen}".encode())

    def update(self) -> Update:
        """Give the parts that a step is compiled for."""
        return Update(
            tuning=self.tuning,
            objective=self.objective,
            optimizer=self.optimizer,
            schedule=self.schedule,
            max_gradient_norm=self.max_gradient_norm,
            micro_batches=self.micro_batches,
            balancing=self.balancing,
        )
