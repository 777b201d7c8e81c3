"""Show what an experiment is and what it will cost, without touching an accelerator."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group
from rich.table import Table

from research.core.axes import ALPHABET, axes_of, declared
from research.core.layout import Layout
from research.core.parts import describe, vary
from research.core.records import Batch, Learner
from research.data.batches import pack_batch
from research.data.inspect import overview
from research.data.packing import pack
from research.experiment import Experiment, Update
from research.train.budget import abstract_trees
from research.train.prepare import Prepared, prepare
from research.train.step import start_of, step_program

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show(experiment: Experiment, console: Console) -> None:
    """Print the resolved experiment, its parameters, FLOPs and memory, and its first batch.

    Everything is computed for one device of this machine's CPU; `experiment.layout` is printed,
    not built.
    """
    with console.status("reading model and data"):
        prepared = prepare(vary(experiment, {"layout": Layout()}), jax.devices("cpu")[:1])
    resolved = vary(prepared.experiment, {"layout": experiment.layout})
    console.print_json(json.dumps(describe(resolved), default=str))
    console.print(parameter_table(prepared))
    with console.status("compiling one step"):
        costs = cost_table(prepared)
    console.print(costs)
    console.print(overview(prepared.pool))
    batch = first_batch(prepared)
    console.print(batch_table(batch))


def parameter_table(prepared: Prepared) -> Group:
    """List every parameter with shape, axes, bytes, and how much of it is trained."""
    _, trainable = abstract_trees(prepared.experiment, prepared.model)
    table = Table("parameter", "shape", "axes", "bytes", "trained", title="parameters")
    trained = _sizes_by_owner(trainable)
    total = count = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(prepared.model.abstract()):
        name = _name(path)
        axes = declared(name.rsplit("/", 1)[-1])
        letters = "L" * (leaf.ndim - len(axes.letters)) + axes.letters
        size = leaf.size * leaf.dtype.itemsize
        total, count = total + size, count + leaf.size
        table.add_row(
            name, str(leaf.shape), letters, f"{size:,}", f"{trained.get(name, 0):,}" or "-"
        )
    letters = ", ".join(f"{k} {v}" for k, v in prepared.model.arch.sizes.items())
    trained_count = sum(trained.values())
    return Group(
        table,
        f"{count:,} parameters ({human(total)}), {trained_count:,} trained "
        f"({trained_count / count:.2%}); {letters}",
        "; ".join(f"{k} = {ALPHABET[k]}" for k in prepared.model.arch.sizes),
    )


def cost_table(prepared: Prepared) -> Table:
    """Give FLOPs and memory of the training step as XLA's compiler plans it for one CPU device."""
    experiment = prepared.experiment
    learner, frozen = jax.eval_shape(
        lambda p, k: start_of(experiment.tuning, experiment.optimizer, p, k),
        prepared.model.abstract(),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    plan = compiled_memory(prepared, learner, frozen)
    table = Table("what", "amount", title="one step, one device")
    rows: list[tuple[str, str]] = [
        ("trained parameters", human(nbytes(learner.trainable))),
        ("frozen parameters", human(nbytes(frozen))),
        ("optimiser state", human(nbytes(learner.optimizer))),
        ("gradients", human(nbytes(learner.trainable))),
        ("activations and other temporaries", human(plan.temp_size_in_bytes)),
        ("peak", human(plan.argument_size_in_bytes + plan.temp_size_in_bytes)),
        ("FLOPs a step (analytic)", f"{prepared.step_flops:.3e}"),
        ("steps", f"{experiment.clock.steps:,}"),
        ("tokens a step (fed at most)", f"{experiment.data.rows * experiment.data.row_tokens:,}"),
    ]
    if scored := sum(term.estimator is not None for term in prepared.terms):
        times = f" x {scored}" if scored > 1 else ""
        rows.append(("rows scored when a round opens", f"{len(prepared.pool):,}{times}"))
    for row in rows:
        table.add_row(*row)
    return table


def compiled_memory(prepared: Prepared, learner: Learner, frozen: Any) -> Any:
    """Compile the step for abstract arguments and give XLA's memory analysis."""
    data = prepared.experiment.data
    shape = (data.rows, data.row_tokens)
    ints = jax.ShapeDtypeStruct(shape, np.int32)
    batch = Batch(
        tokens_BT=ints,
        targets_BT=ints,
        weights_BT=jax.ShapeDtypeStruct(shape, np.float32),
        positions_BT=ints,
        segments_BT=ints,
        ids_BZ=jax.ShapeDtypeStruct((data.rows, data.segments), np.int32),
    )
    update: Update = prepared.experiment.update()
    span = (np.int32(0), np.int32(prepared.experiment.clock.steps))
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(step_program(prepared.model, prepared.place), donate_argnums=0)
    return program.lower(learner, frozen, batch, update, span, key).compile().memory_analysis()


def first_batch(prepared: Prepared) -> Batch:
    """Render the batch that comes first in the order of the data files."""
    data, pool = prepared.experiment.data, prepared.pool
    some = range(min(len(pool), data.rows * data.segments))
    rows, _ = pack(some, pool.lengths_X, data.rows, data.row_tokens, data.segments)
    filled = [[(x, pool.examples[x]) for x in row] for row in rows]
    return pack_batch(filled, data.row_tokens, data.segments)


def batch_table(batch: Batch) -> Table:
    """Describe a batch: its arrays, and how full it is."""
    filled = float(np.mean(batch.segments_BT > 0))
    trained = float(np.mean(batch.weights_BT > 0))
    title = f"one batch: {filled:.0%} of its positions filled, {trained:.0%} trained"
    table = Table("array", "shape", "dtype", "first row", title=title)
    for name in ("tokens_BT", "targets_BT", "weights_BT", "positions_BT", "segments_BT", "ids_BZ"):
        array = getattr(batch, name)
        start = " ".join(str(value) for value in array[0, :12].tolist())
        table.add_row(name, str(array.shape), str(array.dtype), start)
    return table


def human(count: float) -> str:
    """Write a number of bytes with a binary unit."""
    for unit in UNITS[:-1]:
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{int(count)} B"
        count /= 1024
    return f"{count:.1f} {UNITS[-1]}"


def nbytes(tree: Any) -> int:
    """Add the bytes of a tree's arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _name(path: tuple) -> str:
    return "/".join(str(entry.key) for entry in path)


def _sizes_by_owner(trainable: Any) -> dict[str, int]:
    """Count trained values by the parameter they belong to; factors belong to their weight."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable):
        keys = [str(entry.key) for entry in path]
        owner = next(i for i, key in enumerate(keys) if axes_of(key) is not None)
        name = "/".join(keys[: owner + 1])
        sizes[name] = sizes.get(name, 0) + leaf.size
    return sizes
