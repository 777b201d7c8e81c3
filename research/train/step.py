"""One optimiser update, on devices only: summed, divided once, withheld if not finite."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from research.core.layout import Placement
from research.core.protocols import Model, Optimizer, Tree, Tuning
from research.core.records import Batch, Learner, Report, Total
from research.core.tree import flatten, unflatten
from research.experiment import Update
from research.models.moe.balancing import Balancing
from research.optimizers.clipping import clip
from research.optimizers.turns import applied, moved_in_turns

Step = Callable[..., tuple[Learner, Report]]
CORRECTION = "router_correction_E"


def initialise(
    place: Placement, update: Update, params: Tree, seed: int, frozen: Tree | None = None
) -> tuple[Learner, Tree]:
    """Split parameters and start the optimiser: (learner, frozen), each leaf in its sharding.

    The given parameters are donated: they live on as `frozen`, or inside the learner.

    Args:
      frozen: the frozen part, where another learner has it too; then nothing is donated.
    """
    shapes, key = _hashable(params), jax.random.key(seed)
    start = _compile_start(place, update.tuning, update.optimizer, shapes, frozen is not None)
    return start(params, key) if frozen is None else (start(params, key), frozen)


@functools.lru_cache(maxsize=8)
def _compile_start(
    place: Placement, tuning: Tuning, optimizer: Optimizer, shapes: Any, beside: bool
) -> Callable:
    treedef, leaves = shapes
    params = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*leaf[:2]) for leaf in leaves])
    start = functools.partial(start_of, tuning, optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    learner, frozen = shardings_of(place, jax.eval_shape(start, params, key))
    if beside:
        return jax.jit(lambda params, key: start(params, key)[0], out_shardings=learner)
    return jax.jit(start, donate_argnums=0, out_shardings=(learner, frozen))


def shardings_of(place: Placement, start: tuple[Learner, Tree]) -> tuple[Learner, Tree]:
    """Give where each leaf of (learner, frozen) lies between two steps."""
    learner, frozen = place.weights(start)
    return dataclasses.replace(learner, optimizer=place.optimizer(start[0].optimizer)), frozen


@functools.lru_cache(maxsize=8)
def compile_reset(optimizer: Optimizer, structure: Any) -> Callable[[Tree], Tree]:
    """Give the program that makes a fresh optimiser state, in the shardings of the old one."""
    treedef, leaves = structure
    learner = jax.tree.unflatten(treedef, [sharding for _, _, sharding in leaves])
    return jax.jit(optimizer.init, out_shardings=learner.optimizer)


def start_of(
    tuning: Tuning, optimizer: Optimizer, params: Tree, key: jax.Array
) -> tuple[Learner, Tree]:
    """Give (learner, frozen) at step 0; pure, so that it also works abstractly."""
    trainable, frozen = tuning.split(params, key)
    zero, state = jnp.int32(0), optimizer.init(trainable)
    return Learner(step=zero, withheld=zero, trainable=trainable, optimizer=state), frozen


@functools.lru_cache(maxsize=8)
def compile_step(model: Model, place: Placement, structure: Any) -> Step:
    """Give the jitted step of a model on a placement, for learners of one structure.

    `step(learner, frozen, batch, update, span, key) -> (learner, report)`: `update` carries the
    scalars (learning rate, weight decay, dropout rate, ...) as traced leaves, `span` is (first
    step, steps) of the schedule, so arms that differ only in numbers run the same program. The
    learner is donated and comes back in the same shardings.

    Args:
      structure: `structure_of(learner)`: its shapes, dtypes and shardings, hashable.
    """
    treedef, leaves = structure
    shardings = jax.tree.unflatten(treedef, [sharding for _, _, sharding in leaves])
    return jax.jit(
        step_program(model, place),
        donate_argnums=0,
        out_shardings=(shardings, place.replicated),
    )


@jax.jit
def all_finite(tree: Tree) -> jax.Array:
    """Whether every number of a tree is finite, wherever it lies."""
    tree = jax.device_put(tree, jax.memory.Space.Device)
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def abstractly(learner: Learner) -> Learner:
    """Give shapes, dtypes and shardings of a learner, without its values."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), learner
    )


def step_program(model: Model, place: Placement) -> Step:
    """Give the step of a model on a placement, not compiled."""
    return functools.partial(_step, model, place)


def structure_of(learner: Learner) -> Any:
    """Give what a learner looks like, without its values, as something that hashes."""
    return _hashable(learner)


def _hashable(tree: Tree) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((leaf.shape, str(leaf.dtype), leaf.sharding) for leaf in leaves)


def _step(
    model: Model,
    place: Placement,
    learner: Learner,
    frozen: Tree,
    batch: Batch,
    update: Update,
    span: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> tuple[Learner, Report]:
    first, steps = span
    learning_rate = update.schedule((learner.step - first + 0.5) / steps)
    gradients, loss, report = _gradients(model, place, learner, frozen, batch, update, key)
    gradients, norm = clip(gradients, update.max_gradient_norm)
    sound = jnp.isfinite(norm) & jnp.isfinite(loss)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(sound, new, old))
    held = gradients, learner.optimizer, learner.trainable, learning_rate
    if place.layout.optimizer_on_host:
        trainable, optimizer = moved_in_turns(update.optimizer, *held, keep)
    else:
        changes, optimizer = update.optimizer.update(*held)
        trainable = applied(learner.trainable, changes)
        optimizer = keep(optimizer, learner.optimizer)
    trainable = balance(update.balancing, trainable, report)
    learner = Learner(
        step=learner.step + 1,
        withheld=learner.withheld + (1 - sound),
        trainable=keep(trainable, learner.trainable),
        optimizer=optimizer,
    )
    one = jnp.float32(1)
    seen = {
        "gradient_norm": Total(sum=jnp.where(sound, norm, 0.0), count=sound.astype(jnp.float32)),
        "learning_rate": Total(sum=jnp.float32(learning_rate), count=one),
        "withheld": Total(sum=1.0 - sound, count=one),
    }
    return learner, dataclasses.replace(report, totals=report.totals | seen)


def balance(balancing: Balancing | None, trainable: Tree, report: Report) -> Tree:
    """Move the corrections of routers by what this step's routers did, outside the gradient.

    Raises:
      ValueError: there is nothing to move, or it is not trained.
    """
    if balancing is None:
        return trainable
    leaves = flatten(trainable)
    paths = [("layers", stack, "ffw", CORRECTION) for stack in report.router or {}]
    missing = [".".join(path) for path in paths if path not in leaves]
    if missing or not paths:
        raise ValueError(
            f"balancing={balancing} moves {CORRECTION} of every layer with experts, but "
            + (f"{missing} is not trained" if paths else "this model is dense")
            + f"; choose a router with a correction, and train it: Lora(trained=({CORRECTION!r},)),"
            " or Full()"
        )
    for path in paths:
        assert report.router is not None
        moved = balancing(leaves[path].astype(jnp.float32), report.router[path[1]])
        leaves[path] = moved.astype(leaves[path].dtype)
    return unflatten(leaves)


def _gradients(
    model: Model,
    place: Placement,
    learner: Learner,
    frozen: Tree,
    batch: Batch,
    update: Update,
    key: jax.Array,
) -> tuple[Tree, jax.Array, Report]:
    """Give d(mean loss)/d(trainable) over the whole batch, however it is cut into micro-batches."""
    key = jax.random.fold_in(key, learner.step)

    def loss(trainable: Tree, micro: Batch, key: jax.Array) -> tuple[jax.Array, tuple]:
        params = model.with_noise(update.tuning.join(trainable, frozen, key), key)
        total, report = update.objective(model, params, micro)
        return total.sum, (total, report)

    differentiate = jax.grad(loss, has_aux=True)
    count = update.micro_batches
    if count == 1:
        gradients, (total, report) = differentiate(learner.trainable, batch, key)
    else:
        micro = jax.tree.map(lambda x: _cut(x, count), batch)
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), learner.trainable)

        def body(summed: Tree, item: tuple) -> tuple[Tree, tuple]:
            rows, key = item
            rows = jax.lax.with_sharding_constraint(rows, place.batch(rows))
            gradients, seen = differentiate(learner.trainable, rows, key)
            return jax.tree.map(lambda s, g: s + g, summed, gradients), seen

        gradients, (totals, reports) = jax.lax.scan(
            body, zeros, (micro, jax.random.split(key, count))
        )
        total = jax.tree.map(lambda x: x.sum(0), totals)
        report = Report(
            totals=jax.tree.map(lambda x: x.sum(0), reports.totals),
            rows=jax.tree.map(_join, reports.rows),
            router=jax.tree.map(lambda x: x.sum(0), reports.router),
        )
    share = 1.0 / jnp.maximum(total.count, 1.0)
    mean = jax.tree.map(lambda g: g.astype(jnp.float32) * share, gradients)
    return mean, total.sum * share, report


def _cut(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...]; each micro-batch takes every count-th row, so that all
    of them stay spread over the devices that B is spread over."""
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)


def _join(x: jax.Array) -> jax.Array:
    """Undo `_cut`: rows come back in the batch's order."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
