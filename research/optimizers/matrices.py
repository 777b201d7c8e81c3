"""What optimisers share: float32 arithmetic, and the matrices that names declare."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.core.axes import Axes, declared


def lift(tree: Any) -> Any:
    """Give the tree in float32: moments and updates are float32 whatever is trained."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def descend(direction: Any, trainable: Any, learning_rate: Any, weight_decay: Any) -> Any:
    """Give the updates -learning_rate (direction + weight_decay W), float32.

    Only kernels decay, the embedding and the head included (as in transformers and nanoGPT); norm
    scales and biases do not. Decay is decoupled: it is added to the direction, not to the gradient.

    Source: Loshchilov & Hutter 2017, arXiv 1711.05101.
    """

    def update(path: tuple, direction: jax.Array, weight: jax.Array) -> jax.Array:
        if declared(path[-1].key).is_kernel:
            direction = direction + weight_decay * weight.astype(jnp.float32)
        return -learning_rate * direction

    return jax.tree_util.tree_map_with_path(update, direction, trainable)


def sides(axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the (input, output) axes of a kernel, counted from the end."""
    last = len(axes.outputs)
    return tuple(range(-last - len(axes.inputs), -last)), tuple(range(-last, 0))


def factor_names(axes: Axes) -> tuple[str, str]:
    """Name a kernel's factors by the axes they keep: `up_E_D_F` has `row_E_D`, `column_E_F`."""
    bank = f"{axes.bank}_" if axes.bank else ""
    return f"row_{bank}{axes.inputs}", f"column_{bank}{axes.outputs}"
