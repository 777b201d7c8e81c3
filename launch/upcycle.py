"""Turn a dense model folder into one of a mixture of experts that starts as the same model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from configs import layouts
from launch.export import PROBE_SHAPE, probe
from research.huggingface.export import save
from research.huggingface.families.known import family_for
from research.huggingface.folder import load, match, open_folder
from research.huggingface.pretrained import locate
from research.models.architecture import Architecture, Moe
from research.models.compute import Compute
from research.models.moe.dense import Dense
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.models.moe.softmax_top_k import SoftmaxTopK
from research.models.transformer import Transformer, parameter_count
from research.models.upcycle import upcycle as upcycled

# Largest difference of float32 logits between the dense model and the mixture. A token's weights
# sum to 1 within float32, so that its copies add up to the dense output within about 1e-6 of it; a
# lost expert or weights that do not sum to 1 show as more than 1e-1.
TOLERANCE = 1e-3
ROUTERS: Mapping[str, Any] = {"softmax": SoftmaxTopK(), "sigmoid": SigmoidTopK()}


def upcycle(
    model: str,
    to: Path,
    *,
    experts: int,
    per_token: int,
    router: str,
    router_std: float,
    seed: int,
    dtype: str,
    console: Console,
) -> str:
    """Write the mixture and give the family that holds it.

    Raises:
      FileExistsError: `to` is there and not empty.
      FileNotFoundError, ValueError: the model cannot be used, no family can hold the mixture, or
        its logits are not the dense model's.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FileExistsError(f"{to} is there and not an empty folder; give a new one")
    if router not in ROUTERS:
        raise ValueError(f"--router {router!r} is unknown; choose from {', '.join(ROUTERS)}")
    opened = open_folder(locate(model))
    moe = mixture(opened.architecture, experts, per_token, ROUTERS[router])
    family = family_for(dataclasses.replace(opened.architecture, moe=moe))
    place = layouts.fsdp().on(jax.devices())
    compute = Compute(param_dtype=dtype, dispatch=Dense())
    dense = Transformer(opened.architecture, place, compute)
    match(opened, dense)
    with console.status(f"loading {opened.path}"):
        params = load(opened, dense)
    with console.status("comparing logits"):
        sparse, mixed = upcycled(dense, params, moe, jax.random.key(seed), router_std)
        difference = largest_difference(dense, params, sparse, mixed)
    said = (
        f"{parameter_count(params):,} parameters -> {parameter_count(mixed):,}; largest logit "
        f"difference on {PROBE_SHAPE[0]} rows of {PROBE_SHAPE[1]} random tokens: {difference:.2e}"
    )
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"dense and mixed logits differ by {difference:.2e}, above {TOLERANCE}; nothing was "
            "written"
        )
    del params
    with console.status(f"writing {to}"):
        save(to, sparse, mixed, source=opened.path, family=family)
    return family.model_type


def mixture(dense: Architecture, experts: int, per_token: int, router: Any) -> Moe:
    """Give the experts that copies of a model's feed-forward make.

    Raises:
      ValueError: the model has experts already.
    """
    if dense.moe is not None:
        raise ValueError(f"the model has {dense.moe.num_experts} experts already; give a dense one")
    return Moe(
        num_experts=experts,
        experts_per_token=per_token,
        expert_dim=dense.ffw_dim,
        router=router,
        expert_bias=dense.ffw_bias,
    )


def largest_difference(one: Transformer, params: Any, other: Transformer, mixed: Any) -> float:
    """Give max |logits of one model - logits of the other| over a batch of random tokens."""
    batch = probe(one)
    first, second = (
        jax.jit(lambda params, model=model: model.apply(params, batch).logits())(tree)
        for model, tree in ((one, params), (other, mixed))
    )
    return float(jnp.max(jnp.abs(first - second)))
