"""The model that is asked, and the three questions that every metric is made of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.core.generation import Sampling
from research.core.layout import Placement
from research.core.protocols import Tree
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.data.batches import single_rows
from research.data.examples import Example
from research.data.tokenizer import Tokenizer
from research.models.moe.layers import in_order, sparse_layers
from research.models.transformer import Transformer
from research.score.pool import IN_FLIGHT, batches_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """Which experts the tokens of each example take, padding left out.

    Attributes:
      layers: the numbers of the layers with experts; L runs over them.
      load_XLE: assignments to each expert.
      kept_XL: assignments of which the starting weights make the same one for the same token.
    """

    layers: tuple[int, ...]
    load_XLE: Int[np.ndarray, "X L E"]
    kept_XL: Int[np.ndarray, "X L"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation.

    Attributes:
      params: the tree the model is applied to: adapters joined, dropout off.
      tokenizer: None where all rows are token ids.
      stop_ids: tokens that end a generated answer.
      progress: called with (rows done, rows in all).
      start: makes the weights that training started from; None where there was no training.
    """

    model: Transformer
    params: Tree
    tokenizer: Tokenizer | None
    place: Placement
    stop_ids: tuple[int, ...]
    progress: Callable[[int, int], None] | None
    start: Callable[[], Tree] | None = None

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

    def routes(self, examples: Sequence[Example], rows: int) -> Routes:
        """Give the experts that each example's tokens take now, and took when training started.

        Raises:
          ValueError: the model is dense, or nobody knows what it started from.
        """
        layers = sparse_layers(self.model.arch)
        if not layers or self.start is None:
            missing = "experts: it is dense" if not layers else "a start: it is not being trained"
            raise ValueError(
                f"routes were asked of a model that has not {missing}; leave this evaluator out"
            )
        start = self.start()

        def ask(batch: Batch) -> tuple[Array, Array]:
            return _routes(self.model, self.place, self.params, start, batch)

        moe = self.model.arch.moe
        assert moe is not None
        load_XLE = np.zeros((len(examples), len(layers), moe.num_experts), np.int64)
        kept_XL = np.zeros(load_XLE.shape[:2], np.int64)
        for batch_ids, (load_BLE, kept_BL) in self._ask(ask, examples, rows):
            load_XLE[batch_ids] = load_BLE[: len(batch_ids)]
            kept_XL[batch_ids] = kept_BL[: len(batch_ids)]
        return Routes(layers=layers, load_XLE=load_XLE, kept_XL=kept_XL)

    def _ask(self, ask: Callable, examples: Sequence[Example], rows: int):
        """Put every example in exactly one batch; yield (its indices, what `ask` gave)."""
        rows = self.place.divisible(rows)
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _routes(
    model: Transformer, place: Placement, params: Tree, start: Tree, batch: Batch
) -> tuple[Int[Array, "B L E"], Int[Array, "B L"]]:
    seen, before = (in_order(model.arch, model.apply(p, batch).router) for p in (params, start))
    chosen_LBTA, before_LBTA = seen.chosen_BTA, before.chosen_BTA
    same_LBTAA = chosen_LBTA[..., :, None] == before_LBTA[..., None, :]
    kept_LB = jnp.sum(same_LBTAA & (chosen_LBTA[..., :, None] >= 0), axis=(-3, -2, -1))
    load_BLE = jnp.round(seen.load_BE).astype(jnp.int32).swapaxes(0, 1)
    everywhere = functools.partial(jax.lax.with_sharding_constraint, shardings=place.replicated)
    return everywhere(load_BLE), everywhere(kept_LB.swapaxes(0, 1))


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
