"""Plan a run for devices that are not here: compile what it would run, and say what that takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.core.generation import Sampling
from research.core.layout import HOST, Placement
from research.core.parts import vary
from research.core.protocols import Delegating, Differentiating, Estimator
from research.core.records import Batch, Learner
from research.experiment import Experiment
from research.models.attention.blockwise import Blockwise
from research.models.flops import forward_flops
from research.models.moe.dispatch import expert_shards
from research.models.transformer import Transformer
from research.plan.compiled import Compiled, Tensor, compile_program
from research.plan.roofline import Roofline, roofline
from research.plan.topologies import Topology
from research.score.pool import score_batch
from research.train.budget import abstract_trees, step_flops
from research.train.prepare import elsewhere, resolve_model
from research.train.step import compile_step, shardings_of, start_of, structure_of

PROGRAMS = ("training", "scoring", "decoding")
NEW_TOKENS = 128  # that decoding is planned for, where the estimator decodes nothing
GENERATION = "jit(generate)/while"  # the loop that adds tokens: it may end before its bound
BLOCK = 512  # of blockwise attention on GPUs
NO_TUNING: Mapping[str, Any] = {}
WITHOUT_GPU: Mapping[str, Any] = {"xla_gpu_autotune_level": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One program of a run.

    Attributes:
      compiled: what the compiler made of it.
      parameter_bytes: of one device, as the program has them.
      beside_bytes: of one device: what the run keeps there meanwhile and the program is not given.
      time: its roofline; None for devices whose speed is not known.
      tokens: fed or generated in one run of it, over all devices.
      shape: what it is run on, in words.
    """

    compiled: Compiled
    parameter_bytes: float
    beside_bytes: float
    time: Roofline | None
    tokens: int
    shape: str

    @property
    def peak_bytes(self) -> float:
        """The most that a device holds while it runs."""
        return self.compiled.peak_bytes + self.beside_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs on some devices; bytes and FLOPs are those of one device.

    Attributes:
      experiment: as it was planned, with what had to be changed to compile it here.
      mesh: axis -> size, of training.
      parameter_bytes, optimizer_bytes, gradient_bytes: of one device.
      step_flops: analytic FLOPs of a training step on all devices.
      usable_bytes: what a program may take of a device's memory; None: not known.
      largest_arguments: the largest arrays that a run keeps, on one device.
      notes: what was changed or is not as in a real run.
    """

    topology: Topology
    experiment: Experiment
    mesh: Mapping[str, int]
    parameter_bytes: float
    optimizer_bytes: float
    gradient_bytes: float
    step_flops: float
    usable_bytes: int | None
    programs: tuple[Planned, ...]
    largest_arguments: tuple[Tensor, ...]
    notes: tuple[str, ...]

    @property
    def peak_bytes(self) -> float:
        """The most that any of the programs needs."""
        return max(program.peak_bytes for program in self.programs)

    @property
    def fits(self) -> bool:
        """Whether all programs fit the memory of a device; True where that is not known."""
        return self.usable_bytes is None or self.peak_bytes <= self.usable_bytes


def plan(
    experiment: Experiment,
    topology: Topology,
    programs: Sequence[str] = PROGRAMS,
    watch: Callable[[Planned], None] = lambda planned: None,
) -> Plan:
    """Compile the programs of a run for a topology. Reads no data and no weights.

    Args:
      programs: of "training", "scoring", "decoding"; scoring is left out of a run without scores.
      watch: told of each program when it is compiled.

    Raises:
      DoesNotFit: the compiler refused one of them for want of memory.
      ValueError: a layout does not fit the topology, the model or the batch.
    """
    experiment, notes = for_devices(experiment, topology)
    site = Site(experiment, topology)
    notes = (*notes, *site.notes())
    learner, frozen = site.state()
    planned = []
    for name in programs:
        if name == "scoring" and (missing := unplanned_scoring(experiment)):
            notes = (*notes, missing)
            continue
        planned.append(getattr(site, name)(learner, frozen))
        watch(planned[-1])
    return Plan(
        topology=topology,
        experiment=experiment,
        mesh=dict(site.place.mesh.shape),
        parameter_bytes=shard_bytes(learner.trainable) + shard_bytes(frozen),
        optimizer_bytes=shard_bytes(learner.optimizer),
        gradient_bytes=shard_bytes(learner.trainable),
        step_flops=step_flops(experiment, site.model),
        usable_bytes=None if topology.chip is None else topology.chip.usable_bytes,
        programs=tuple(planned),
        largest_arguments=largest_of((learner, frozen)),
        notes=notes,
    )


def unplanned_scoring(experiment: Experiment) -> str:
    """Say why no scoring step is planned; "" where one is."""
    scorer, asked = experiment.curriculum.scorer, experiment.curriculum.measured
    if isinstance(scorer, Differentiating):
        return "scoring takes gradients of single rows, one at a time; it was not planned"
    if scorer is None and any(isinstance(measure, Delegating) for measure in asked):
        return "another model scores, once; that was not planned"
    return "" if scorer else "this run scores nothing, so no scoring step was planned"


def for_devices(experiment: Experiment, topology: Topology) -> tuple[Experiment, tuple[str, ...]]:
    """Change what cannot be compiled without the devices, and say so."""
    if topology.platform != "cuda" or experiment.compute.attention is not None:
        return experiment, ()
    attention = Blockwise(query_block=BLOCK, key_block=BLOCK)
    note = (
        "attention is planned blockwise: that of cuDNN, which a run takes, compiles only beside a "
        "GPU, and needs less memory and traffic"
    )
    return vary(experiment, {"compute.attention": attention}), (note,)


class Site:
    """An experiment's model on a topology, and its programs compiled for it."""

    def __init__(self, experiment: Experiment, topology: Topology):
        _, arch = resolve_model(experiment.model)
        self.experiment, self.topology = experiment, topology
        self.place = experiment.layout.on(topology.devices())
        self.model = Transformer(arch, self.place, experiment.compute)
        self.model.require_place()
        self.scoring_model = self.model.for_scoring()
        if experiment.scoring_layout is not None:
            self.scoring_model = elsewhere(self.scoring_model, experiment.scoring_layout)
        self.options = WITHOUT_GPU if topology.platform == "cuda" else NO_TUNING
        shards = self.place.num_row_shards * experiment.micro_batches
        if experiment.data.rows % shards:
            raise ValueError(
                f"data.rows={experiment.data.rows} is no multiple of {self.place.num_row_shards} "
                f"row shards x {experiment.micro_batches} micro-batches; change one of them"
            )

    def notes(self) -> tuple[str, ...]:
        """Say what is planned on another mesh than training's."""
        if self.scoring_model.place == self.place:
            return ()
        mesh = dict(self.scoring_model.place.mesh.shape)
        return (
            f"scoring and decoding are planned on scoring_layout, mesh {mesh}, beside the arrays "
            "of training; moving the weights there is not timed",
        )

    def state(self) -> tuple[Learner, Any]:
        """Give the shapes of (learner, frozen), in the shardings of a run."""
        tuning, optimizer = self.experiment.tuning, self.experiment.optimizer
        start = jax.eval_shape(
            lambda params, key: start_of(tuning, optimizer, params, key),
            self.model.abstract(),
            _key(),
        )
        return placed(start, shardings_of(self.place, start))

    def scoring_state(self, learner: Learner, frozen: Any) -> tuple[tuple[Any, Any], float]:
        """Give ((trainable, frozen) where scoring has them, what a device keeps beside them).

        Arrays that lie as in training are the same arrays, not copies of them.
        """
        held = (learner.trainable, frozen)
        moved = placed(held, self.scoring_model.place.weights(held))
        pairs = zip(jax.tree.leaves(held), jax.tree.leaves(moved), strict=True)
        shared = [a for a, b in pairs if a.sharding.is_equivalent_to(b.sharding, a.ndim)]
        on_device = [
            leaf for leaf in jax.tree.leaves((learner, frozen)) if leaf.sharding.memory_kind != HOST
        ]
        return moved, shard_bytes(on_device) - shard_bytes(shared)

    def training(self, learner: Learner, frozen: Any) -> Planned:
        """Compile one update."""
        data = self.experiment.data
        batch = batch_on(self.place, data.rows, data.row_tokens, data.segments)
        step: Any = compile_step(self.model, self.place, structure_of(learner))
        span = (np.int32(0), np.int32(self.experiment.clock.steps))
        arguments = (learner, frozen, batch, self.experiment.update(), span, _key())
        held = shard_bytes((learner.trainable, frozen))
        flops = step_flops(self.experiment, self.model)
        shape = f"{data.rows} rows of {data.row_tokens:,} tokens"
        if self.experiment.micro_batches > 1:
            shape += f" in {self.experiment.micro_batches} micro-batches"
        compiled = self._compile("training", step, arguments, self.place)
        tokens = data.rows * data.row_tokens
        return self._planned(compiled, self.place, (held, 0.0), flops, tokens, shape)

    def scoring(self, learner: Learner, frozen: Any) -> Planned:
        """Compile one batch of the curriculum's scorer, its rows as long as the training rows."""
        estimator: Any = self.experiment.curriculum.scorer
        rows, length = self._scored_rows(), self.experiment.data.row_tokens
        model, tuning = self.scoring_model, self.experiment.tuning
        place = model.place
        batches = tuple(batch_on(place, rows, length, 1) for _ in estimator.views)

        def score(trainable: Any, frozen: Any, batches: tuple, key: Any) -> jax.Array:
            params = tuning.join(trainable, frozen)
            return score_batch(estimator, model, place, (), params, batches, key, np.int32(0))

        held, beside = self.scoring_state(learner, frozen)
        compiled = self._compile("scoring", jax.jit(score), (*held, batches, _key()), place)
        new = estimator.new_tokens or 0
        shape = f"{rows} rows of {length:,} tokens"
        shape += f" and {new} generated ones" if new else ""
        flops = rows * len(batches) * self._forward_flops(length, new)
        tokens = rows * len(batches) * (length + new)
        return self._planned(compiled, place, (shard_bytes(held), beside), flops, tokens, shape)

    def decoding(self, learner: Learner, frozen: Any) -> Planned:
        """Compile the continuation of prompts: their prefill, and the loop that adds tokens."""
        new = self._new_tokens()
        rows, length = self._scored_rows(), self.experiment.data.row_tokens
        model, tuning = self.scoring_model, self.experiment.tuning
        place = model.place

        def decode(trainable: Any, frozen: Any, prompts: Batch) -> Any:
            params = tuning.join(trainable, frozen)
            return model.generate(params, prompts, Sampling(max_new_tokens=new), ())

        held, beside = self.scoring_state(learner, frozen)
        arguments = (*held, batch_on(place, rows, length, 1))
        compiled = self._compile("decoding", jax.jit(decode), arguments, place)
        shape = f"{rows} prompts of {length:,} tokens, {new} new ones each"
        flops = rows * self._forward_flops(length, new)
        return self._planned(compiled, place, (shard_bytes(held), beside), flops, rows * new, shape)

    def _compile(self, name: str, program: Any, arguments: tuple, place: Placement) -> Compiled:
        turns = {GENERATION: self._new_tokens() - 1}  # the prompt gives the first token
        ids = [device.id for device in place.mesh.devices.flat]
        shape, filled = dict(place.mesh.shape), self.filled(place)
        return compile_program(name, program, arguments, shape, self.options, turns, ids, filled)

    def _planned(
        self,
        compiled: Compiled,
        place: Placement,
        held: tuple[float, float],
        flops: float,
        tokens: int,
        shape: str,
    ) -> Planned:
        devices, dtype = list(place.mesh.devices.flat), self.experiment.compute.dtype
        return Planned(
            compiled=compiled,
            parameter_bytes=held[0],
            beside_bytes=held[1],
            time=roofline(compiled, self.topology, devices, dtype, flops),
            tokens=tokens,
            shape=shape,
        )

    def filled(self, place: Placement) -> float:
        """Give the share of an expert's rows that hold a token, where routing is even.

        A device has room for every row that all the others could send to its experts.
        """
        moe = self.model.arch.moe
        if moe is None:
            return 1.0
        shards = expert_shards(place)
        room = min(moe.experts_per_token, moe.num_experts // shards)
        return moe.experts_per_token / (shards * room)

    def _new_tokens(self) -> int:
        scorer: Estimator | None = self.experiment.curriculum.scorer
        return (scorer.new_tokens if scorer else None) or NEW_TOKENS

    def _scored_rows(self) -> int:
        return self.scoring_model.place.divisible(self.experiment.compute.scoring_rows)

    def _forward_flops(self, length: int, new: int) -> float:
        joined, _ = abstract_trees(self.experiment, self.model)
        predictions = new if new else None
        return float(forward_flops(self.model.arch, joined, length + new, predictions=predictions))


def batch_on(place: Placement, rows: int, length: int, examples: int) -> Batch:
    """Give the shapes of a batch, in the shardings of a run."""
    ints = jax.ShapeDtypeStruct((rows, length), np.int32)
    batch = Batch(
        tokens_BT=ints,
        targets_BT=ints,
        weights_BT=jax.ShapeDtypeStruct((rows, length), np.float32),
        positions_BT=ints,
        segments_BT=ints,
        ids_BZ=jax.ShapeDtypeStruct((rows, examples), np.int32),
    )
    return placed(batch, place.batch(batch))


def placed(tree: Any, shardings: Any) -> Any:
    """Give shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def shard_bytes(tree: Any) -> float:
    """Add the bytes of a placed tree on one device."""
    return float(sum(_shard(leaf)[1] for leaf in jax.tree.leaves(tree)))


def largest_of(tree: Any, count: int = 12) -> tuple[Tensor, ...]:
    """List the largest arrays of a placed tree, by what one device holds of them."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape, nbytes = _shard(leaf)
        text = f"{np.dtype(leaf.dtype).name}[{','.join(map(str, shape))}]"
        what = jax.tree_util.keystr(path, simple=True, separator="/")
        found.append(Tensor(what=what, shape=text, nbytes=nbytes))
    return tuple(sorted(found, key=lambda tensor: -tensor.nbytes)[:count])


def _shard(leaf: Any) -> tuple[tuple[int, ...], int]:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return shape, math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
