"""The model that is asked, and the two questions that every metric is made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.core.generation import Sampling
from research.core.layout import Placement
from research.core.protocols import Tree
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.data.batches import single_rows
from research.data.examples import Example
from research.data.tokenizer import Tokenizer
from research.models.transformer import Transformer
from research.score.pool import IN_FLIGHT, batches_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation.

    Attributes:
      params: the tree the model is applied to: adapters joined, dropout off.
      tokenizer: None where all rows are token ids.
      stop_ids: tokens that end a generated answer.
      progress: called with (rows done, rows in all).
    """

    model: Transformer
    params: Tree
    tokenizer: Tokenizer | None
    place: Placement
    stop_ids: tuple[int, ...]
    progress: Callable[[int, int], None] | None

    def log_likelihood(self, examples: Sequence[Example], rows: int) -> Float[np.ndarray, " X"]:
        """Give the sum of log p over the trained tokens of each example, in nats.

        One example a row, unpacked; only sums leave the devices.

        Law: invariant to `rows`, order and padding, within float noise.
        """

        def ask(batch: Batch) -> Array:
            return _log_likelihood(self.model, self.place, self.params, batch)

        sum_X = np.zeros(len(examples), np.float64)
        for batch_ids, sum_B in self._ask(ask, examples, rows):
            sum_X[batch_ids] = sum_B[: len(batch_ids)]
        return sum_X

    def answers(self, prompts: Sequence[Example], max_new_tokens: int, rows: int) -> list[str]:
        """Continue each prompt greedily, and give the new text up to the stop token."""
        if self.tokenizer is None:
            raise ValueError("answers were asked for as text, but there is no tokenizer; name one")
        sampling = Sampling(max_new_tokens=max_new_tokens)

        def ask(batch: Batch) -> tuple[Array, Array]:
            return _continue(self.model, self.place, sampling, self.stop_ids, self.params, batch)

        texts = [""] * len(prompts)
        for batch_ids, (tokens_BN, lengths_B) in self._ask(ask, prompts, rows):
            for b, x in enumerate(batch_ids):
                tokens = tokens_BN[b, : lengths_B[b]].tolist()
                kept = [token for token in tokens if token not in self.stop_ids]
                texts[x] = self.tokenizer.decode(kept)
        return texts

    def _ask(self, ask: Callable, examples: Sequence[Example], rows: int):
        """Put every example in exactly one batch; yield (its indices, what `ask` gave)."""
        rows = -(-rows // self.place.num_row_shards) * self.place.num_row_shards
        lengths_X = np.asarray([len(example.tokens) for example in examples], np.int64)
        pending, done = [], 0
        batches = list(batches_of(lengths_X, np.arange(len(examples)), rows, None))
        for number, (ids, bucket) in enumerate(batches):
            asked = [examples[x] for x in ids]
            build = functools.partial(single_rows, asked, ids.tolist(), bucket)
            pending.append((ids, ask(self.place.put_rows(rows, build))))
            while len(pending) > (IN_FLIGHT if number + 1 < len(batches) else 0):
                ids, answer = pending.pop(0)
                yield ids, jax.device_get(answer)
                done += len(ids)
                if self.progress is not None:
                    self.progress(done, len(examples))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(
    model: Transformer, place: Placement, params: Tree, batch: Batch
) -> Float[Array, " B"]:
    logprob_BT, _ = token_statistics(model.apply(params, batch), batch.targets_BT)
    sum_B = jnp.sum(jnp.where(batch.weights_BT > 0, logprob_BT, 0.0), axis=1)
    return jax.lax.with_sharding_constraint(sum_B, place.replicated)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _continue(
    model: Transformer,
    place: Placement,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    params: Tree,
    batch: Batch,
) -> tuple[Array, Array]:
    made = model.generate(params, batch, sampling, stop_ids)
    everywhere = functools.partial(jax.lax.with_sharding_constraint, shardings=place.replicated)
    return everywhere(made.tokens_BN), everywhere(made.lengths_B)
