"""Activations between the names of a `config.json` and ours."""

from __future__ import annotations

from collections.abc import Mapping

from research.huggingface.fields import Fields
from research.models.activations import Activation, Gelu, Silu

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Silu(),
    "swish": Silu(),
    "gelu_pytorch_tanh": Gelu(tanh=True),
    "gelu_new": Gelu(tanh=True),
    "gelu": Gelu(tanh=False),
}


def read_activation(fields: Fields, name: str, default: str) -> Activation:
    """Read the activation in field `name`; absent or null, it is the family's default.

    Raises:
      ValueError: it is not known.
    """
    said = fields.take(name, None) or default
    if said not in ACTIVATIONS:
        raise ValueError(
            f"{fields.where}: {name}={said!r} is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[said]


def write_activation(activation: Activation, *preferred: str) -> str:
    """Give a name of an activation, a preferred one where there are several."""
    names = (*preferred, *ACTIVATIONS)
    return next((name for name in names if ACTIVATIONS.get(name) == activation), str(activation))
