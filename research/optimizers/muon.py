"""Muon: orthogonalised momentum for the layers' kernels, AdamW for everything else."""

from __future__ import annotations

import math
from typing import Any

import jax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from research.core.axes import axes_of, declared
from research.core.parts import part, require
from research.core.tree import flatten, unflatten
from research.optimizers.adamw import AdamW
from research.optimizers.matrices import descend, lift
from research.optimizers.moments import Float32, Moments, seed_of


@part
class Muon:
    """Descend along rms sqrt(max(in, out)) U V' of the momentum's U S V', matrix by matrix.

    A kernel is the stack of [in, out] matrices that its name declares: layers and experts are never
    mixed, heads never split. Vectors and whatever has a vocabulary axis go to `rest`. The factor
    gives the update the root mean square of AdamW's, so both take one learning rate and decay.

    Attributes:
      beta: decay of the momentum.
      nesterov: look one step ahead of the momentum.
      iterations: Newton-Schulz iterations, which bring the singular values near 1.
      rms: root mean square of the update per learning rate.
      weight_decay: decoupled, for the kernels that Muon moves.
      moments: how the momentum is kept between steps; an update always computes with float32.
      rest: the optimiser of all other parameters.

    Source: Jordan et al. 2024 (modded-nanogpt); the factor: Liu et al. 2025, arXiv 2502.16982; the
      orthogonalisation is `optax.contrib.scale_by_muon`.
    """

    beta: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    rms: float = 0.2
    weight_decay: float = 0.0
    moments: Moments = Float32()
    rest: AdamW = AdamW()

    def __post_init__(self) -> None:
        require(
            self,
            (0 <= self.beta < 1, f"beta={self.beta} must lie in [0, 1)"),
            (self.iterations > 0, f"iterations={self.iterations} must be positive"),
            (self.rms > 0, f"rms={self.rms} must be positive"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative"),
        )

    def init(self, trainable: Any) -> Any:
        """Make zero momentum for kernels and the state of `rest` for the others."""
        kernels, others = divide(trainable)
        return {
            "kernels": self._kept(self._direction(kernels).init(lift(kernels))),
            "rest": self.rest.init(others),
        }

    def update(
        self, gradients: Any, state: Any, trainable: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        """Give (updates to add, new state)."""
        (kernels, others), (kernel_slopes, other_slopes) = divide(trainable), divide(gradients)
        held = state["kernels"]
        held = held._replace(mu=self.moments.read(held.mu, signed=True))
        direction, momentum = self._direction(kernels).update(lift(kernel_slopes), held)
        direction = jax.tree_util.tree_map_with_path(self._sized, direction)
        updates = descend(direction, kernels, learning_rate, self.weight_decay)
        rest_updates, rest = self.rest.update(other_slopes, state["rest"], others, learning_rate)
        both = flatten(updates) | flatten(rest_updates)
        return unflatten(both), {"kernels": self._kept(momentum), "rest": rest}

    def _kept(self, state: Any) -> Any:
        momentum = self.moments.keep(state.mu, seed_of(state.count, 1), signed=True)
        return state._replace(mu=momentum)

    def _direction(self, kernels: Any) -> Any:
        return scale_by_muon(
            beta=self.beta,
            nesterov=self.nesterov,
            ns_steps=self.iterations,
            weight_dimension_numbers=jax.tree_util.tree_map_with_path(_dimensions, kernels),
        )

    def _sized(self, path: tuple, direction: jax.Array) -> jax.Array:
        _, num_inputs, num_outputs = declared(path[-1].key).matrix(direction.shape)
        return direction * (self.rms * math.sqrt(max(num_inputs, num_outputs)))


def divide(tree: Any) -> tuple[Any, Any]:
    """Give (kernels without a vocabulary axis, everything else).

    A factor of an adapter belongs with the parameter that it adapts.
    """
    leaves = flatten(tree)

    def orthogonal(path: tuple[str, ...]) -> bool:
        axes = [found for name in path if (found := axes_of(name))]
        return axes[-1].is_kernel and not any("V" in found.letters for found in axes)

    kernels = {path: leaf for path, leaf in leaves.items() if orthogonal(path)}
    others = {path: leaf for path, leaf in leaves.items() if not orthogonal(path)}
    return unflatten(kernels), unflatten(others)


def _dimensions(path: tuple, kernel: jax.Array) -> MuonDimensionNumbers:
    del kernel
    axes = declared(path[-1].key)
    last, first = -len(axes.outputs), -len(axes.outputs) - len(axes.inputs)
    return MuonDimensionNumbers(tuple(range(first, last)), tuple(range(last, 0)))
