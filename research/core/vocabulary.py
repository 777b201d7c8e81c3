"""Per-token log-probability and entropy over the vocabulary, without ever holding all logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.core.records import Output


def entropy_of_logits(logits_V: Float[Array, "*rows V"]) -> Float[Array, "*rows"]:
    """Give the Shannon entropy in nats of softmax(logits), in float32.

    H = ln S - W / S with m = max z, S = sum exp(z - m), W = sum exp(z - m) (z - m); logits of -inf
    have probability 0 and add nothing.

    Law: 0 <= H <= ln V.
    """
    z = logits_V.astype(jnp.float32)
    shifted = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    e = jnp.exp(shifted)
    s = jnp.sum(e, axis=-1)
    w = jnp.sum(jnp.where(e > 0, shifted, 0.0) * e, axis=-1)
    return jnp.maximum(jnp.log(s) - w / s, 0.0)


def token_statistics(
    output: Output, targets_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Give log p(target) and the entropy of the prediction at every position, in nats, float32.

    Positions are walked in chunks of `output.chunk_tokens` under remat, so that at most
    B x chunk_tokens x V logits exist at once; None makes them all at once.

    The log-probability is differentiable, the entropy is a constant.

    Source: H = ln S - W/S as in `entropy_of_logits`; the exponentials are shared.
    """

    def walk(weights: Any, hidden_BTD: jax.Array, targets_BT: jax.Array) -> tuple:
        head = weights[output.head_name]
        return _walk(dataclasses.replace(output, head=head, hidden_BTD=hidden_BTD), targets_BT)

    weights, hidden_BTD = {output.head_name: output.head}, output.hidden_BTD
    if output.place is None:
        return walk(weights, hidden_BTD, targets_BT)
    return output.place.by_rows(walk, weights, hidden_BTD.dtype, hidden_BTD, targets_BT)


def _walk(output: Output, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    def statistics(hidden_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _statistics(output.project(hidden_BTD), targets_BT)

    chunk_tokens = output.chunk_tokens
    num_rows, num_positions, width = output.hidden_BTD.shape
    if chunk_tokens is None or chunk_tokens >= num_positions:
        return statistics(output.hidden_BTD, targets_BT)
    num_chunks = -(-num_positions // chunk_tokens)
    padding = num_chunks * chunk_tokens - num_positions
    hidden = jnp.pad(output.hidden_BTD, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets_BT, ((0, 0), (0, padding)))
    hidden = hidden.reshape(num_rows, num_chunks, chunk_tokens, width).swapaxes(0, 1)
    targets = targets.reshape(num_rows, num_chunks, chunk_tokens).swapaxes(0, 1)
    body = jax.checkpoint(lambda _, chunk: (None, statistics(*chunk)), prevent_cse=False)
    _, stacked = jax.lax.scan(body, None, (hidden, targets))
    logprob_BT, entropy_BT = jax.tree.map(
        lambda chunks: chunks.swapaxes(0, 1).reshape(num_rows, -1)[:, :num_positions], stacked
    )
    return logprob_BT, entropy_BT


@jax.custom_vjp
def _statistics(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _statistics_forward(logits_BTV, targets_BT)[0]


def _statistics_forward(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[tuple, tuple]:
    """Give (log p(target), H), and for the backward pass the logits with ln Z alone."""
    top_BT1 = jnp.max(logits_BTV, axis=-1, keepdims=True)
    shifted_BTV = logits_BTV - top_BT1
    e_BTV = jnp.exp(shifted_BTV)
    s_BT = jnp.sum(e_BTV, axis=-1)
    w_BT = jnp.sum(jnp.where(e_BTV > 0, shifted_BTV, 0.0) * e_BTV, axis=-1)
    log_z_BT = top_BT1[..., 0] + jnp.log(s_BT)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    entropy_BT = jnp.maximum(jnp.log(s_BT) - w_BT / s_BT, 0.0)
    return (target_BT - log_z_BT, entropy_BT), (logits_BTV, targets_BT, log_z_BT)


def _statistics_backward(kept: tuple, bars: tuple) -> tuple[jax.Array, None]:
    """d log p(target) / d z_v = [v = target] - exp(z_v - ln Z): one pass, nothing is scattered."""
    logits_BTV, targets_BT, log_z_BT = kept
    hit_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
    p_BTV = jnp.exp(logits_BTV - log_z_BT[..., None])
    return (jnp.where(hit_BTV, 1.0, 0.0) - p_BTV) * bars[0][..., None], None


_statistics.defvjp(_statistics_forward, _statistics_backward)
