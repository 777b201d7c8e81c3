"""What the routers of all layers did, in the order of the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.core.records import RouterStatistics
from research.models.architecture import Architecture


def sparse_layers(arch: Architecture) -> tuple[int, ...]:
    """Number the layers that have experts, first to last."""
    return tuple(layer for layer in range(arch.num_layers) if arch.kind(layer).sparse)


def in_order(arch: Architecture, router: Mapping[str, RouterStatistics]) -> RouterStatistics:
    """Lay the statistics of all stacks end to end on L, in the order of `sparse_layers`.

    On the host where the arrays are NumPy's, on the devices otherwise.
    """
    layers = {stack.name: stack.layers for stage in arch.stages() for stack in stage}
    order = np.argsort([layer for name in router for layer in layers[name]])
    fields = {
        field.name: [getattr(seen, field.name) for seen in router.values()]
        for field in dataclasses.fields(RouterStatistics)
    }

    def joined(stacks: list) -> jax.Array | np.ndarray | None:
        if stacks[0] is None:
            return None
        xp = np if isinstance(stacks[0], np.ndarray) else jnp
        return xp.concatenate(stacks)[order]

    return RouterStatistics(**{name: joined(stacks) for name, stacks in fields.items()})
