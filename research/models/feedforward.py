"""The feed-forward of one layer, gated or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
from flax import nnx

from research.core.layout import Placement
from research.core.weights import contract, value_of
from research.models.architecture import Architecture
from research.models.parameters import parameter


class FeedForward(nnx.Module):
    """down(activation(gate(x), up(x))), or down(activation(up(x))) where nothing is gated.

    Args:
      width: F; None: that of the architecture.
    """

    gate_D_F: nnx.Param
    up_D_F: nnx.Param
    down_F_D: nnx.Param
    gate_bias_F: nnx.Param
    up_bias_F: nnx.Param
    down_bias_D: nnx.Param

    def __init__(
        self, key: jax.Array, arch: Architecture, place: Placement, width: int | None = None
    ):
        self.arch, self.place = arch, place
        sizes: Mapping[str, int] = arch.sizes | ({"F": width} if width else {})
        names = ["gate_D_F"] if arch.ffw_gated else []
        names += ["up_D_F", "down_F_D"]
        if arch.ffw_bias:
            names += [*(["gate_bias_F"] if arch.ffw_gated else []), "up_bias_F", "down_bias_D"]
        for name in names:
            setattr(self, name, parameter(name, key, sizes, arch.init_std))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        arch = self.arch
        up_BTF = contract("BTD,DF->BTF", x_BTD, self.up_D_F)
        up_BTF = biased(up_BTF, self.up_bias_F) if arch.ffw_bias else up_BTF
        if arch.ffw_gated:
            gate_BTF = contract("BTD,DF->BTF", x_BTD, self.gate_D_F)
            gate_BTF = biased(gate_BTF, self.gate_bias_F) if arch.ffw_bias else gate_BTF
            hidden_BTF = arch.activation(gate_BTF, up_BTF)
        else:
            hidden_BTF = cast(Callable, arch.activation)(up_BTF)
        hidden_BTF = self.place.constrain(hidden_BTF, "BTF")
        out_BTD = contract("BTF,FD->BTD", hidden_BTF, self.down_F_D)
        return biased(out_BTD, self.down_bias_D) if arch.ffw_bias else out_BTD


def biased(x: jax.Array, bias: Any) -> jax.Array:
    """Add a bias at the activation's dtype."""
    return x + value_of(bias).astype(x.dtype)
