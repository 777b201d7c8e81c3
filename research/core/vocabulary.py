"""Per-token log-probability and entropy over the vocabulary, without ever holding all logits."""

from __future__ import annotations

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

    Source: H = ln S - W/S as in `entropy_of_logits`; the log-sum-exp is shared.
    """

    def statistics(hidden_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BTV = output.project(hidden_BTD)
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        return target_BT - log_z_BT, entropy_of_logits(jax.lax.stop_gradient(logits_BTV))

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
