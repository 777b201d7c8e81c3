"""Rows in flight: prompts that were read, and the tokens that are added to each of them."""

from __future__ import annotations

import dataclasses
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
    """Rows in flight: what a decoding step hands to the next.

    Attributes:
      step_B: tokens that each row has.
      token_B: the last of them, not yet fed.
      position_B: its position.
      open_B: whether the row goes on.
      seen: what is given back, filled up to `step_B`.
      cache: keys and values of all that was fed.
    """

    step_B: Array
    token_B: Array
    position_B: Array
    open_B: Array
    seen: Generated
    cache: Any


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model, its parameters taken apart for decoding, and what is asked of them.

    Attributes:
      shared: keys and values of the tokens that all prompts begin with; None: there are none.
    """

    model: Model
    params: Any
    sampling: Sampling
    stop_ids: tuple[int, ...]
    statistic: Statistic | None
    shared: Any = None

    @property
    def ring(self) -> int:
        """How many slots new tokens need: the last one is never fed."""
        return max(self.sampling.max_new_tokens - 1, 1)

    def read(self, prompts: Batch, key_B: Array | None) -> Progress:
        """Feed prompts, with room for what follows, and choose the first token of each."""
        num_rows, prompt_tokens = prompts.tokens_BT.shape
        num_slots = prompt_tokens + self.ring
        fed_B = jnp.any(prompts.segments_BT > 0, axis=1)
        if self.shared is None:
            output, cache = self.model.prefill(self.params, prompts, num_slots)
        else:
            cache = self.model.spread(self.shared, fed_B, num_slots)
            prompts = _after(prompts, self.shared.positions_BS.shape[1])
            fed = prompts.tokens_BT, prompts.positions_BT, prompts.segments_BT
            output, cache = self.model.extend(self.params, cache, *fed)
        position_BT = jnp.where(prompts.segments_BT > 0, prompts.positions_BT, -1)
        last_B = jnp.argmax(position_BT, axis=1)
        hidden_BTD = jnp.take_along_axis(output.hidden_BTD, last_B[:, None, None], axis=1)
        none_B = jnp.zeros(num_rows, jnp.int32)
        progress = Progress(
            step_B=none_B,
            token_B=none_B,
            position_B=jnp.max(position_BT, axis=1),
            open_B=fed_B & (prompts.ids_BZ[:, 0] >= 0),
            seen=self.blank(num_rows),
            cache=cache,
        )
        return self._add_token(progress, output.project(hidden_BTD)[:, 0], cache, key_B)

    def blank(self, num_rows: int) -> Generated:
        """Give the record of rows of which nothing was generated."""
        blank = jnp.zeros((num_rows, self.sampling.max_new_tokens))
        return Generated(
            tokens_BN=blank.astype(jnp.int32),
            lengths_B=jnp.zeros(num_rows, jnp.int32),
            finished_B=jnp.zeros(num_rows, bool),
            entropy_BN=None if self.statistic is None else blank,
        )

    def advance(self, progress: Progress, key_B: Array | None) -> Progress:
        """Feed the last token of every row, and choose the next one of those that go on."""
        output, cache = self.model.extend(
            self.params,
            progress.cache,
            progress.token_B[:, None],
            progress.position_B[:, None],
            jnp.ones_like(progress.token_B)[:, None],
        )
        return self._add_token(progress, output.logits()[:, 0], cache, key_B)

    def _add_token(
        self, progress: Progress, logits_BV: Array, cache: Any, key_B: Array | None
    ) -> Progress:
        """Choose the next token of every open row and note it, with the statistic of its
        prediction."""
        step_B, open_B, seen = progress.step_B, progress.open_B, progress.seen
        token_B = jnp.where(open_B, choose(logits_BV, self.sampling, key_B, step_B), 0)
        stops_B = open_B & jnp.isin(token_B, jnp.asarray(self.stop_ids, jnp.int32))
        num_steps, longest = self.sampling.max_new_tokens, self.model.longest_text
        goes_on_B = ~stops_B & (step_B + 1 < num_steps)
        if longest is not None:
            goes_on_B &= progress.position_B + 1 < longest
        here_BN = open_B[:, None] & (jnp.arange(num_steps) == step_B[:, None])

        def note(noted_BN: Array, value_B: Array) -> Array:
            return jnp.where(here_BN, value_B[:, None], noted_BN)

        entropy_BN = seen.entropy_BN
        if self.statistic is not None:
            entropy_BN = note(entropy_BN, self.statistic(logits_BV))
        return Progress(
            step_B=step_B + open_B,
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


def _after(prompts: Batch, count: int) -> Batch:
    """Give prompts without their first `count` tokens."""
    ids_BZ = prompts.ids_BZ
    cut = jax.tree.map(lambda x: x[:, count:], dataclasses.replace(prompts, ids_BZ=ids_BZ[:, :0]))
    return dataclasses.replace(cut, ids_BZ=ids_BZ)
