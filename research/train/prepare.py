"""Open everything that a run needs, and refuse what cannot run, before a device is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research.core.layout import Placement
from research.core.parts import describe, vary
from research.core.protocols import Tree
from research.data.pool import Pool, open_pool
from research.data.tokenizer import Tokenizer, open_tokenizer
from research.experiment import Experiment
from research.huggingface.folder import load
from research.huggingface.pretrained import Pretrained, Resolved
from research.models.architecture import Architecture
from research.models.transformer import Transformer
from research.train.budget import affordable_clock


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An experiment with its files open.

    Attributes:
      experiment: as asked for, with the clock that its budget affords.
      weights: the resolved pretrained folder, or None for a fresh model.
      source: what the starting weights are, for checkpoints to compare.
      stop_ids: tokens that end a generated answer.
      step_flops: analytic FLOPs of one step.
      peak_flops_per_s: of all devices together at the compute dtype, or None where unknown.
    """

    experiment: Experiment
    model: Transformer
    place: Placement
    weights: Resolved | None
    source: Mapping[str, Any]
    tokenizer: Tokenizer | None
    tokenizer_path: Path | None
    pool: Pool
    stop_ids: tuple[int, ...]
    step_flops: float
    peak_flops_per_s: float | None

    def params(self) -> Tree:
        """Put the starting weights on the devices: read, or drawn from the initialisation seed."""
        if self.weights is None:
            return self.model.init(jax.random.key(self.experiment.seed_of("initialisation")))
        return load(self.weights.folder, self.model)


def prepare(experiment: Experiment, devices: Sequence[Any] | None = None) -> Prepared:
    """Resolve the model, open tokenizer and pool, and lay out the mesh.

    Raises:
      ValueError, FileNotFoundError: what is missing or malformed, and the remedy.
    """
    weights, architecture = resolve_model(experiment.model)
    path = tokenizer_path(experiment, weights)
    tokenizer = None if path is None else open_tokenizer(path)
    pool = open_pool(experiment.data, tokenizer)
    place = experiment.layout.on(jax.devices() if devices is None else devices)
    if experiment.data.rows % (place.num_row_shards * experiment.micro_batches):
        raise ValueError(
            f"data.rows={experiment.data.rows} is no multiple of {place.num_row_shards} row shards "
            f"x {experiment.micro_batches} micro-batches; change rows, the layout or micro_batches"
        )
    _check_vocabulary(architecture, pool)
    model = Transformer(architecture, place, experiment.compute)
    experiment = vary(
        experiment, {"clock": affordable_clock(experiment, architecture, pool.lengths_X)}
    )
    source: dict[str, Any] = (
        {"initialised": experiment.seed_of("initialisation"), **describe(architecture)}
        if weights is None
        else {"folder": str(weights.folder), "fingerprint": weights.fingerprint}
    )
    return Prepared(
        experiment=experiment,
        model=model,
        place=place,
        weights=weights,
        source=source,
        tokenizer=tokenizer,
        tokenizer_path=path,
        pool=pool,
    )


def resolve_model(model: Pretrained | Architecture) -> tuple[Resolved | None, Architecture]:
    """Give (resolved weights or None, architecture)."""
    if isinstance(model, Architecture):
        return None, model
    weights = model.resolve()
    return weights, weights.architecture


def tokenizer_path(experiment: Experiment, weights: Resolved | None) -> Path | None:
    """Where the tokenizer is: the experiment's own, else the pretrained folder."""
    if experiment.tokenizer:
        return Path(experiment.tokenizer)
    return None if weights is None else Path(weights.folder)


def _check_vocabulary(architecture: Architecture, pool: Pool) -> None:
    for example in pool.examples:
        if len(example.tokens) and int(example.tokens.max()) >= architecture.vocab_size:
            raise ValueError(
                f"{example.where}: token id {int(example.tokens.max())} is outside the model's "
                f"vocabulary of {architecture.vocab_size}; the tokenizer belongs to another model"
            )
