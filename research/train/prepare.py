"""Open everything that a run needs, and refuse what cannot run, before a device is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from research.core.layout import Layout, Placement
from research.core.parts import describe, vary
from research.core.protocols import Tree
from research.core.records import State
from research.core.tree import flatten, unflatten
from research.data.leakage import Leak
from research.data.pool import Pool, open_pool
from research.data.tokenizer import Tokenizer, open_tokenizer
from research.experiment import Experiment
from research.huggingface.folder import load, match, open_folder
from research.huggingface.pretrained import Pretrained, Resolved
from research.huggingface.stops import stop_ids
from research.models.architecture import Architecture
from research.models.transformer import Transformer
from research.score.terms import Term, open_terms
from research.train.budget import affordable_clock, peak_flops_per_s, step_flops
from research.train.leaks import find_leaks


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An experiment with its files open.

    Attributes:
      experiment: as asked for, with the clock that its budget affords.
      scoring_model: the model as it scores and is evaluated, where it does.
      weights: the resolved pretrained folder, or None for a fresh model.
      source: what the starting weights are, for checkpoints to compare.
      leaks: rows of the pool that say much of what an evaluator asks.
      terms: the measurements of the curriculum, with the rows and models that they need.
      stop_ids: tokens that end a generated answer.
      step_flops: analytic FLOPs of one step.
      peak_flops_per_s: of all devices together at the compute dtype; None where unknown.
    """

    experiment: Experiment
    model: Transformer
    scoring_model: Transformer
    place: Placement
    weights: Resolved | None
    source: Mapping[str, Any]
    tokenizer: Tokenizer | None
    pool: Pool
    leaks: tuple[Leak, ...]
    terms: tuple[Term, ...]
    stop_ids: tuple[int, ...]
    step_flops: float
    peak_flops_per_s: float | None

    def scoring_params(self, state: State) -> Tree:
        """Give the weights that the model scores with: adapters joined, where scoring has them."""
        held = self._moved((state.learner.trainable, state.frozen))
        return self.experiment.tuning.join(*held)

    def scoring_start(self, held: Tree) -> Tree:
        """Give the starting weights where scoring has them; `held` as in `params`."""
        return self._moved(self.params(held))

    def _moved(self, tree: Tree) -> Tree:
        place = self.scoring_model.place
        return tree if place == self.place else jax.device_put(tree, place.weights(tree))

    def params(self, held: Tree | None = None) -> Tree:
        """Put the starting weights on the devices: read, or drawn from the initialisation seed.

        Args:
          held: those of them that are there already, such as what a tuning has frozen.
        """
        there = flatten(held or {})
        if self.weights is not None:
            return load(self.weights.folder, self.model, there)
        drawn = self.model.init(jax.random.key(self.experiment.seed_of("initialisation")))
        return unflatten(flatten(drawn) | there)


def prepare(experiment: Experiment, devices: Sequence[Any] | None = None) -> Prepared:
    """Resolve the model, open tokenizer and pool, lay out the mesh, and settle the budget.

    Raises:
      ValueError, FileNotFoundError: what is missing or malformed, and the remedy.
    """
    weights, architecture = resolve_model(experiment.model)
    path = tokenizer_path(experiment, weights)
    tokenizer = None if path is None else open_tokenizer(path)
    pool = open_pool(experiment.data, tokenizer, vocab_size=architecture.vocab_size)
    pool.require_fit(architecture.longest_text)
    leaks = find_leaks(experiment, pool, architecture.vocab_size)
    devices = jax.devices() if devices is None else devices
    place = experiment.layout.on(devices)
    refuse_idle_processes(place, devices)
    shards = place.num_row_shards * experiment.micro_batches
    if experiment.data.rows % shards:
        raise ValueError(
            f"data.rows={experiment.data.rows} is no multiple of {place.num_row_shards} row shards "
            f"x {experiment.micro_batches} micro-batches; change rows, the layout or micro_batches"
        )
    model = Transformer(architecture, place, experiment.compute)
    model.require_place()
    if weights is not None:
        match(open_folder(weights.folder), model)
    asks = bool(experiment.curriculum.measured or experiment.evaluators)
    scoring_model = model.for_scoring() if asks else model
    if experiment.scoring_layout is not None:
        scoring_model = elsewhere(scoring_model, experiment.scoring_layout)
    stops = stop_ids(
        None if weights is None else weights.folder,
        None if tokenizer is None else tokenizer.eos_id,
    )
    terms = open_terms(experiment.curriculum, pool, scoring_model, stops)
    flops = step_flops(experiment, model)
    clock = affordable_clock(experiment, model, terms, flops)
    return Prepared(
        experiment=vary(experiment, {"clock": clock}),
        model=model,
        scoring_model=scoring_model,
        place=place,
        weights=weights,
        source=describe_source(experiment, weights, architecture, terms),
        tokenizer=tokenizer,
        pool=pool,
        leaks=leaks,
        terms=terms,
        stop_ids=stops,
        step_flops=flops,
        peak_flops_per_s=peak_flops_per_s(place.mesh.devices.flat, experiment.compute.dtype),
    )


def elsewhere(model: Transformer, layout: Layout) -> Transformer:
    """Lay a model out in another way over the devices that it has.

    Raises:
      ValueError: the layout needs others, does not fit the model, or leaves a process without one.
    """
    devices = list(model.place.mesh.devices.flat)
    try:
        moved = dataclasses.replace(model, place=layout.on(devices))
        refuse_idle_processes(moved.place, devices)
        moved.require_place()
    except ValueError as error:
        raise ValueError(f"scoring_layout: {error}") from error
    return moved


def refuse_idle_processes(place: Placement, devices: Sequence[Any]) -> None:
    """Check that every process has a device in the mesh.

    Raises:
      ValueError: some would have nothing to do, and could not take part.
    """
    there = {device.process_index for device in devices}
    idle = there - {device.process_index for device in place.mesh.devices.flat}
    if idle:
        raise ValueError(
            f"layout {dict(place.layout.axes)} covers {place.mesh.size} of {len(devices)} devices, "
            f"none of process {', '.join(map(str, sorted(idle)))}; give one axis the size -1, or "
            "start fewer processes"
        )


def resolve_model(model: Pretrained | Architecture) -> tuple[Resolved | None, Architecture]:
    """Give (resolved weights or None, architecture)."""
    if isinstance(model, Architecture):
        return None, model
    weights = model.resolve()
    return weights, weights.architecture


def tokenizer_path(experiment: Experiment, weights: Resolved | None) -> str | None:
    """Where the tokenizer is: the experiment's own, else the pretrained folder; None: no text."""
    if experiment.tokenizer:
        return experiment.tokenizer
    return None if weights is None or experiment.data.needs_no_text else str(weights.folder)


def describe_source(
    experiment: Experiment,
    weights: Resolved | None,
    architecture: Architecture,
    terms: Sequence[Term] = (),
) -> dict[str, Any]:
    """Name the starting weights, wherever they lie: a fingerprint, or a seed and a shape; and those
    of the models that the curriculum asks."""
    others = [term.weights.fingerprint for term in terms if term.weights is not None]
    asked = {"asked": others} if others else {}
    if weights is not None:
        return {"fingerprint": weights.fingerprint, **asked}
    start = {"seed": experiment.seed_of("initialisation"), "architecture": describe(architecture)}
    return start | asked
