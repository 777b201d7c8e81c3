"""Continuous batching: a row that has ended makes room for a prompt that waits, in one program."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from research.core.generation import Decoding, Generated
from research.core.records import Batch, record
from research.models.decoder import Decoder, Progress


@record
class Flow:
    """What goes from one admission to the next; Z are the shards that rows are split over.

    Attributes:
      taken_Z: prompts of each shard that were given a place.
      prompt_B: which of its shard's prompts a row answers; beyond the last where it answers none.
      turn: steps made, which decides the slot that all rows write to.
      rows: the rows in flight.
      seen: what is given back, of every prompt.
    """

    taken_Z: Int[Array, " Z"]
    prompt_B: Int[Array, " B"]
    turn: Int[Array, ""]
    rows: Progress
    seen: Generated


def put_rows(index_ZR: Array, held: Array, rows: Array, axis: int = 0) -> Array:
    """Put new rows into places of an array, shard by shard of its axis of rows.

    Shapes: `held` has Z b rows on `axis`, `rows` has Z R; index b puts nothing.
    """

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:axis], len(index_ZR), -1, *x.shape[axis + 1 :])

    def one(x: Array, index: Array, new: Array) -> Array:
        return x.at[(slice(None),) * axis + (index,)].set(new, mode="drop")

    put = jax.vmap(one, (axis, 0, axis), axis)
    return put(split(held), index_ZR, split(rows)).reshape(held.shape)


def continuous(
    decoder: Decoder, prompts: Batch, key_X: Array | None, decoding: Decoding, shards: int
) -> Generated:
    """Answer X prompts with `decoding.rows` rows in flight, a part of both in each shard.

    New tokens are written to a ring of slots behind the prompt's: every row writes to the same slot
    in the same step, wherever its own answer began, and attention asks positions, not slots. A row
    writes once a step at most, so it never meets its own tokens again.

    Raises:
      ValueError: rows, prompts or admissions do not divide among the shards.
    """
    assert decoding.rows is not None
    num_prompts, prompt_tokens = prompts.tokens_BT.shape
    admitted = decoding.admitted
    for count, what in ((decoding.rows, "rows"), (num_prompts, "prompts"), (admitted, "admitted")):
        if count % shards:
            raise ValueError(f"{what}={count} is no multiple of the {shards} shards of rows")
    each, own_prompts = decoding.rows // shards, num_prompts // shards

    def by_shard(x: Array) -> Array:
        return x.reshape(shards, -1, *x.shape[1:])

    def flat(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    def take(tree: Any, index_ZR: Array) -> Any:
        """Take rows of each shard; -> [Z R, ...]."""
        pick = jax.vmap(lambda x, index: x[jnp.minimum(index, x.shape[0] - 1)])
        return jax.tree.map(lambda x: flat(pick(by_shard(x), index_ZR)), tree)

    def put(tree: Any, index_ZR: Array, new: Any) -> Any:
        """Put rows into each shard."""
        return jax.tree.map(functools.partial(put_rows, index_ZR), tree, new)

    there_ZX = by_shard(jnp.any(prompts.segments_BT > 0, axis=1))
    last_Z = jnp.max(jnp.where(there_ZX, jnp.arange(own_prompts) + 1, 0), axis=1)

    def waiting(flow: Flow) -> Array:
        """Count the prompts that have no place yet; empty ones behind the last need none."""
        return last_Z - flow.taken_Z

    def wants_rows(flow: Flow) -> Array:
        """Whether as many rows have ended as are to be replaced together."""
        ended_Z = jnp.sum(by_shard(~flow.rows.open_B), axis=1)
        wanted_Z = jnp.minimum(waiting(flow), admitted // shards)
        ready_Z = jnp.minimum(ended_Z, waiting(flow))
        return (jnp.sum(wanted_Z) > 0) & (jnp.sum(ready_Z) >= jnp.sum(wanted_Z))

    def admit(flow: Flow) -> Flow:
        """Give the places of ended rows to the prompts that wait the longest."""
        rows, count = flow.rows, admitted // shards
        place_ZR = jnp.argsort(by_shard(rows.open_B), axis=1, stable=True)[:, :count]
        prompt_ZR = flow.taken_Z[:, None] + jnp.arange(count)
        ended_ZR = ~take(rows.open_B, place_ZR).reshape(shards, count)
        allowed_ZR = ended_ZR & (prompt_ZR < last_Z[:, None])
        allowed_R = allowed_ZR.reshape(-1)
        new = take(prompts, prompt_ZR)
        segments_RT = jnp.where(allowed_R[:, None], new.segments_BT, 0)
        new = dataclasses.replace(new, segments_BT=segments_RT)
        key_R = None if key_X is None else take(key_X, prompt_ZR)
        read = decoder.read(new, key_R)
        place_ZR = jnp.where(allowed_ZR, place_ZR, each)
        cache = decoder.model.seat(rows.cache, place_ZR, read.cache)
        light = (rows.step_B, rows.token_B, rows.position_B, rows.open_B, rows.seen)
        read_light = (read.step_B, read.token_B, read.position_B, read.open_B, read.seen)
        step_B, token_B, position_B, open_B, own = put(light, place_ZR, read_light)
        return Flow(
            taken_Z=flow.taken_Z + jnp.sum(allowed_ZR, axis=1),
            prompt_B=put(flow.prompt_B, place_ZR, prompt_ZR.reshape(-1)),
            turn=flow.turn,
            rows=Progress(
                step_B=step_B,
                token_B=token_B,
                position_B=position_B,
                open_B=open_B,
                seen=own,
                cache=cache,
            ),
            seen=flush(flow, place_ZR),
        )

    def flush(flow: Flow, place_ZR: Array) -> Generated:
        """Hand over what the rows at some places have made."""
        prompt_ZR = take(flow.prompt_B, place_ZR).reshape(place_ZR.shape)
        into_ZR = jnp.where(place_ZR < each, prompt_ZR, own_prompts)
        return put(flow.seen, into_ZR, take(flow.rows.seen, place_ZR))

    def step(flow: Flow) -> Flow:
        slot = prompt_tokens + flow.turn % decoder.ring
        cache = dataclasses.replace(flow.rows.cache, slot=slot)
        key_B = None if key_X is None else take(key_X, by_shard(flow.prompt_B))
        rows = decoder.advance(dataclasses.replace(flow.rows, cache=cache), key_B)
        return dataclasses.replace(flow, turn=flow.turn + 1, rows=rows)

    def decode(flow: Flow) -> Flow:
        """Admit, then decode until enough rows have ended for the next admission."""
        return jax.lax.while_loop(
            lambda flow: jnp.any(flow.rows.open_B) & ~wants_rows(flow), step, admit(flow)
        )

    nobody_B = jnp.zeros(decoding.rows, jnp.int32)
    start = Flow(
        taken_Z=jnp.zeros(shards, jnp.int32),
        prompt_B=nobody_B + own_prompts,
        turn=jnp.int32(0),
        rows=Progress(
            step_B=nobody_B,
            token_B=nobody_B,
            position_B=nobody_B,
            open_B=nobody_B > 0,
            seen=decoder.blank(decoding.rows),
            cache=decoder.model.empty_cache(decoding.rows, prompt_tokens + decoder.ring),
        ),
        seen=decoder.blank(num_prompts),
    )
    flow = jax.lax.while_loop(
        lambda flow: jnp.any(flow.rows.open_B) | jnp.any(waiting(flow) > 0), decode, start
    )
    everyone = jnp.broadcast_to(jnp.arange(each), (shards, each))
    return flush(flow, everyone)
