"""What arithmetic costs, analytically, from the parameter table: never from a compiler's count.

A multiply-add is 2 FLOPs. One token costs, in one forward pass,

    2 * (parameters of every kernel it meets)                            the products
    2 * num_heads * (head_dim + value_dim) * (positions it sees), a layer    scores and mixture

Of a bank of experts a token meets `experts_per_token` of `num_experts`.

Norms, biases, rotations, softmax and look-ups are left out, as is usual for model FLOPs (MFU).
A backward pass costs the products once more for the activations, and once more for the kernels
that are trained; attention costs twice more. So training costs 6 FLOPs a parameter and token in
full, and 4 where adapters alone are trained, plus 6 for the adapters. What rematerialisation
computes again is not counted.

Source: Kaplan et al. 2020, arXiv 2001.08361, appendix B; PaLM, arXiv 2204.02311, appendix B.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from research.core.axes import axes_of, declared
from research.models.architecture import Architecture

Lengths = Any  # int, or integers of any shape: tokens of each sequence


def kernel_parameters(arch: Architecture, params: Any) -> tuple[int, int]:
    """Count the parameters that a token is multiplied with: (of the layers, of the head).

    Adapters count where they sit. An embedding that is only looked up counts for nothing; a tied
    one is the head.
    """
    named = [
        (name, int(np.prod(leaf.shape)) * _met(arch, name))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if (name := _kernel_name(path))
    ]
    heads = ("head", "embed") if arch.tied_head else ("head",)
    outside = ("head", "embed", "positions")
    body = sum(size for name, size in named if not name.startswith(outside))
    return round(body), round(sum(size for name, size in named if name.startswith(heads)))


def active_parameters(arch: Architecture, params: Any) -> int:
    """Count the parameters that one token may meet: everything, but of the experts only its own.

    The embedding and the head count whole, as they do in "12.9B active" of Mixtral 8x7B; a dense
    model has all of its parameters active.
    """
    named = [
        (str(path[-1].key), int(np.prod(leaf.shape)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    return round(sum(size * _met(arch, name) for name, size in named))


def _met(arch: Architecture, name: str) -> float:
    """The share of a parameter that one token meets: of what every expert has its own of, k / E."""
    moe, axes = arch.moe, declared(name)
    each = axes.bank or (axes.outputs[:1] == "E" and len(axes.outputs) > 1)
    return moe.experts_per_token / moe.num_experts if moe and each else 1.0


def attention_flops(arch: Architecture, lengths: Lengths) -> Float[np.ndarray, ...]:
    """Give the FLOPs of attention over whole sequences: a token sees itself and what is before it,
    inside the layer's window."""
    n = np.asarray(lengths, np.float64)
    seen = np.zeros_like(n)
    for layer in range(arch.num_layers):
        window = arch.window(layer)
        inside = n if window is None else np.minimum(n, window)
        seen = seen + inside * (inside + 1) / 2 + (n - inside) * inside
    return 2.0 * arch.num_heads * (arch.head_dim + arch.value_dim) * seen


def forward_flops(
    arch: Architecture, params: Any, lengths: Lengths, *, predictions: Lengths | None = None
) -> Float[np.ndarray, ...]:
    """Give the FLOPs of one forward pass over each sequence.

    Args:
      params: the (possibly abstract) tree that the model is applied to, adapters included.
      lengths: tokens of each sequence, prompt and generated ones together.
      predictions: at how many positions logits are made; None: at all.
    """
    body, head = kernel_parameters(arch, params)
    n = np.asarray(lengths, np.float64)
    m = n if predictions is None else np.asarray(predictions, np.float64)
    return 2.0 * body * n + 2.0 * head * m + attention_flops(arch, n)


def training_flops(
    arch: Architecture, params: Any, trainable: Any, lengths: Lengths
) -> Float[np.ndarray, ...]:
    """Give the FLOPs of forward and backward over each sequence.

    Args:
      params: the tree that the model is applied to, adapters included.
      trainable: the tree that is trained: `params` itself, or the adapters alone.
    """
    n = np.asarray(lengths, np.float64)
    met = sum(kernel_parameters(arch, params))
    trained = sum(kernel_parameters(arch, trainable))
    return (4.0 * met + 2.0 * trained) * n + 3.0 * attention_flops(arch, n)


def _kernel_name(path: tuple) -> str:
    """Give the name of the kernel a leaf belongs to: the outermost key that declares axes."""
    for entry in path:
        axes = axes_of(str(getattr(entry, "key", getattr(entry, "name", ""))))
        if axes is not None:
            return str(getattr(entry, "key", "")) if axes.is_kernel else ""
    return ""
