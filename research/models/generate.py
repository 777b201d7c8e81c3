"""Generation: one jitted program that reads the prompts once, then adds a token a step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from research.core.generation import Generated, Sampling, Statistic
from research.core.protocols import Model
from research.core.records import Batch, record
from research.models.sampling import choose


@record
class Progress:
    """What a decoding step hands to the next.

    Attributes:
      step: tokens made so far, the same for all rows (scalar).
      token_B: the last token of each row, not yet fed.
      position_B: its position.
      open_B: whether the row goes on.
      seen: what is given back, filled up to `step`.
      cache: keys and values of all that was fed.
    """

    step: Array
    token_B: Array
    position_B: Array
    open_B: Array
    seen: Generated
    cache: Any


@functools.partial(jax.jit, static_argnames=("model", "stop_ids"))
def generate(
    model: Model,
    params: Any,
    prompts: Batch,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    key_B: Array | None = None,
    *,
    statistic: Statistic | None = None,
) -> Generated:
    """Continue one prompt a row until a stop token, or for `max_new_tokens`.

    Prompts are fed once; only the logits of each row's last token are made. Then a loop feeds one
    token a row and step, and ends early when no row goes on. Prompts may be padded on either side:
    padding has segment 0, and positions count a row's own tokens. A row that is all padding is
    finished before it starts. A row for which the model has no more positions ends there.

    Args:
      stop_ids: tokens that end a row; empty: every row gets `max_new_tokens`.
      key_B: a key a row; step n draws from `fold_in(key_B, n)`. Greedy decoding needs none.
      statistic: what to keep of each prediction's raw logits (temperature 1, nothing left out).

    Raises:
      ValueError: the prompts are packed, or sampling was given no keys.

    Law: a row's tokens and statistic depend neither on its batch-mates nor on the padding.
    """
    if prompts.ids_BZ.shape[1] != 1:
        raise ValueError(
            f"prompts hold up to {prompts.ids_BZ.shape[1]} examples a row; generation continues "
            "one a row: build them with single_batch"
        )
    if sampling.temperature is not None and key_B is None:
        raise ValueError("sampling at a temperature needs key_B, a key for every row")
    num_rows, prompt_tokens = prompts.tokens_BT.shape
    num_steps = sampling.max_new_tokens
    params = model.unstack(params)
    output, cache = model.prefill(params, prompts, prompt_tokens + num_steps - 1)
    position_BT = jnp.where(prompts.segments_BT > 0, prompts.positions_BT, -1)
    last_B = jnp.argmax(position_BT, axis=1)
    hidden_BTD = jnp.take_along_axis(output.hidden_BTD, last_B[:, None, None], axis=1)
    blank = jnp.zeros((num_rows, num_steps))
    progress = Progress(
        step=jnp.int32(0),
        token_B=jnp.zeros(num_rows, jnp.int32),
        position_B=jnp.max(position_BT, axis=1),
        open_B=jnp.any(prompts.segments_BT > 0, axis=1),
        seen=Generated(
            tokens_BN=blank.astype(jnp.int32),
            lengths_B=jnp.zeros(num_rows, jnp.int32),
            finished_B=jnp.zeros(num_rows, bool),
            entropy_BN=None if statistic is None else blank,
        ),
        cache=cache,
    )
    longest = model.longest_text
    add = functools.partial(_add_token, sampling, stop_ids, longest, key_B, statistic)
    progress = add(progress, output.project(hidden_BTD)[:, 0], cache)

    def goes_on(progress: Progress) -> Array:
        return (progress.step < num_steps) & jnp.any(progress.open_B)

    def advance(progress: Progress) -> Progress:
        output, cache = model.extend(
            params,
            progress.cache,
            progress.token_B[:, None],
            progress.position_B[:, None],
            jnp.ones((num_rows, 1), jnp.int32),
        )
        return add(progress, output.logits()[:, 0], cache)

    return jax.lax.while_loop(goes_on, advance, progress).seen


def _add_token(
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    longest: int | None,
    key_B: Array | None,
    statistic: Statistic | None,
    progress: Progress,
    logits_BV: Array,
    cache: Any,
) -> Progress:
    """Choose the next token of every open row and note it, with the statistic of its prediction."""
    step, open_B, seen = progress.step, progress.open_B, progress.seen
    token_B = jnp.where(open_B, choose(logits_BV, sampling, key_B, step), 0)
    stops_B = open_B & jnp.isin(token_B, jnp.asarray(stop_ids, jnp.int32))
    goes_on_B = ~stops_B if longest is None else ~stops_B & (progress.position_B + 1 < longest)

    def note(noted_BN: Array, value_B: Array) -> Array:
        return jax.lax.dynamic_update_slice(noted_BN, value_B[:, None], (0, step))

    entropy_BN = seen.entropy_BN
    if statistic is not None:
        entropy_BN = note(entropy_BN, jnp.where(open_B, statistic(logits_BV), 0.0))
    return Progress(
        step=step + 1,
        token_B=token_B,
        position_B=progress.position_B + 1,
        open_B=open_B & goes_on_B,
        seen=Generated(
            tokens_BN=note(seen.tokens_BN, token_B),
            lengths_B=seen.lengths_B + open_B,
            finished_B=seen.finished_B | stops_B,
            entropy_BN=entropy_BN,
        ),
        cache=cache,
    )
