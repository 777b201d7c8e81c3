"""An update in turns, layer by layer, for a state that waits in the host's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from research.core.axes import declared
from research.core.protocols import Optimizer
from research.core.tree import Path, flatten, unflatten

Leaves = dict[int, Any]  # of a state, by their place in it


def moved_in_turns(
    optimizer: Optimizer,
    gradients: Any,
    state: Any,
    trainable: Any,
    learning_rate: jax.Array,
    keep: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Give (trainable, state) after an update; the state comes from the host and goes back to it.

    An optimiser moves each matrix by its own state alone. So the state of one layer, and of one
    parameter that is in no layer, is fetched, moved and put back before the next one is fetched.
    Left to itself the compiler fetches all of it first, and the device holds more than if nothing
    had been on the host.

    Args:
      keep: gives what stays of (new, old) state.
    """
    slopes, moved = flatten(gradients), flatten(trainable)
    leaves, treedef = jax.tree.flatten(state)
    owners = [_owner(path, moved) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    shared = {index: leaves[index] for index, owner in enumerate(owners) if owner is None}
    after, before = dict(shared), None

    def move(own: Leaves, slopes: Any, weights: Any) -> tuple[Leaves, Any, Leaves]:
        structure = jax.tree.structure(jax.eval_shape(optimizer.init, unflatten(weights)))
        held = dict(sorted((jax.device_put(own, jax.memory.Space.Device) | shared).items()))
        old = jax.tree.unflatten(structure, held.values())
        tree = unflatten(weights)
        change, new = optimizer.update(unflatten(slopes), old, tree, learning_rate)
        kept = dict(zip(held, jax.tree.leaves(keep(new, old)), strict=True))
        back = jax.device_put({index: kept[index] for index in own}, jax.memory.Space.Host)
        return back, flatten(applied(tree, change)), {index: kept[index] for index in shared}

    for layers, paths in _turns(moved):
        own = {index: leaves[index] for index, owner in enumerate(owners) if owner in paths}
        if before is not None:
            own, _ = jax.lax.optimization_barrier((own, before))
        weights, gradient = ({path: tree[path] for path in paths} for tree in (moved, slopes))
        if layers is None:
            own, weights, rest = move(own, gradient, weights)
        else:
            own, weights, rest = _layer_by_layer(move, layers, own, gradient, weights, shared)
        before, moved, after = own, moved | weights, after | own | rest
    return unflatten(moved), jax.tree.unflatten(treedef, [after[i] for i in range(len(leaves))])


def applied(trainable: Any, changes: Any) -> Any:
    """Add updates, at each parameter's own dtype."""
    return jax.tree.map(lambda p, c: (p + c).astype(p.dtype), trainable, changes)


def _layer_by_layer(
    move: Callable, layers: int, own: Leaves, slopes: Any, weights: Any, shared: Leaves
) -> tuple[Leaves, Any, Leaves]:
    """Move each slice of some stacks in place."""

    def body(layer: jax.Array, carry: tuple) -> tuple:
        own, weights, _ = carry
        slices = jax.tree.map(lambda x: x[layer], (own, slopes, weights))
        *new, rest = move(*slices)
        stacks = jax.tree.map(
            lambda stack, x: jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0),
            (own, weights),
            tuple(new),
        )
        return (*stacks, rest)

    return jax.lax.fori_loop(0, layers, body, (own, weights, shared))


def _turns(weights: Mapping[Path, Any]) -> list[tuple[int | None, list[Path]]]:
    """List (layers of a stack or None, its parameters)."""
    turns: dict[Path, tuple[int | None, list[Path]]] = {}
    for path, weight in weights.items():
        stacked = weight.ndim > len(declared(path[-1]).letters)
        layers = weight.shape[0] if stacked else None
        turns.setdefault(path[:2] if stacked else path, (layers, []))[1].append(path)
    return list(turns.values())


def _owner(path: tuple, weights: Mapping[Path, Any]) -> Path | None:
    """Name the parameter whose path a leaf of the state has in its own; None: it is of all."""
    names = tuple(str(getattr(key, "key", "")) for key in path)
    for start in range(len(names)):
        for end in range(len(names), start, -1):
            if names[start:end] in weights:
                return names[start:end]
    return None
