"""What flows: Batch, Output, Report and the State that is threaded through a run."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.core.axes import declared
from research.core.layout import Placement
from research.core.weights import contract


def record(cls: type) -> type:
    """Make a frozen dataclass that is a pytree of all its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@record
class Batch:
    """Rows of packed examples, with everything that an objective needs.

    Attributes:
      tokens_BT: token ids that are fed.
      targets_BT: the token that follows each fed token inside its own example (0 where none does).
      weights_BT: loss weight of each target; 0 for prompts, padding and an example's last token.
      positions_BT: position inside the example, from 0.
      segments_BT: which of the row's examples a token belongs to, from 1; 0 is padding.
      ids_BZ: pool index of each of the row's examples; -1 where there is none.
    """

    tokens_BT: Int[Array, "B T"]
    targets_BT: Int[Array, "B T"]
    weights_BT: Float[Array, "B T"]
    positions_BT: Int[Array, "B T"]
    segments_BT: Int[Array, "B T"]
    ids_BZ: Int[Array, "B Z"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a model returns for a batch: hidden states, and the head as a leaf.

    Full logits are never made here: objectives call `research.core.vocabulary.token_statistics`.

    Attributes:
      hidden_BTD: final hidden states, after the last norm.
      head: the output matrix, possibly a low-rank leaf.
      head_name: its name: `head_D_V`, or the tied `embed_V_D`.
      logit_scale: factor on the logits.
      soft_cap: c in c * tanh(logits / c), or None.
      chunk_tokens: positions a row whose logits `token_statistics` may hold at once; None: all.
      place: where the rows lie; None: on one device.
      router: stack name -> RouterStatistics with a leading L, or None for a dense model.
    """

    hidden_BTD: Float[Array, "B T D"]
    head: Any
    router: Any = None
    head_name: str = dataclasses.field(default="head_D_V", metadata={"static": True})
    logit_scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})
    chunk_tokens: int | None = dataclasses.field(default=None, metadata={"static": True})
    place: Placement | None = dataclasses.field(default=None, metadata={"static": True})

    def logits(self) -> Float[Array, "B T V"]:
        """Make the full float32 logits: for decoding and tests only."""
        return self.project(self.hidden_BTD)

    def project(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Give the float32 logits of some hidden states."""
        equation = f"BTD,{declared(self.head_name).letters}->BTV"
        logits_BTV = contract(equation, hidden_BTD, self.head).astype(jnp.float32)
        logits_BTV = logits_BTV * self.logit_scale if self.logit_scale != 1.0 else logits_BTV
        if self.soft_cap is None:
            return logits_BTV
        return self.soft_cap * jnp.tanh(logits_BTV / self.soft_cap)


@record
class RouterStatistics:
    """What a layer's router did, row by row, of real tokens only; sums, so rows and batches add.

    A scan over layers stacks every field on a leading L.

    Attributes:
      load_BE: assignments as they were routed, before any was dropped.
      probability_BE: sum over tokens of the router's distribution (differentiable).
      z_B: sum over tokens of logsumexp(logits)^2 (differentiable).
      entropy_B: sum over tokens of the distribution's entropy, nats.
      dropped_B: assignments that the dispatch dropped.
      tokens_B: real tokens.
      chosen_BTA: the experts of each token, -1 where none; None once rows were added up.
      balanced_BE: tokens times the selection bias that would have balanced this row, for the
        router that says so (`QuantileBalanced`), or None.
    """

    load_BE: Float[Array, "*L B E"]
    probability_BE: Float[Array, "*L B E"]
    z_B: Float[Array, "*L B"]
    entropy_B: Float[Array, "*L B"]
    dropped_B: Float[Array, "*L B"]
    tokens_B: Float[Array, "*L B"]
    chosen_BTA: Int[Array, "*L B T A"] | None = None
    balanced_BE: Float[Array, "*L B E"] | None = None

    def summed(self) -> RouterStatistics:
        """Add the rows up: the same sums with one row, which add over micro-batches by leaf."""
        by_expert = {"load_BE", "probability_BE", "balanced_BE"}
        held = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(cast(Any, self))
        }
        return RouterStatistics(
            **{
                name: value
                if value is None
                else value.sum(-2 if name in by_expert else -1, keepdims=True)
                for name, value in (held | {"chosen_BTA": None}).items()
            }
        )


def summed(router: dict[str, RouterStatistics] | None) -> dict[str, RouterStatistics] | None:
    """Add up the rows of every stack's statistics; None for a dense model."""
    return None if router is None else {name: seen.summed() for name, seen in router.items()}


@record
class Total:
    """A (sum, count) pair: the only reduction there is. Totals add; means of means do not exist."""

    sum: Any
    count: Any

    def __add__(self, other: Total) -> Total:
        return Total(sum=self.sum + other.sum, count=self.count + other.count)

    @property
    def mean(self) -> Any:
        """The quotient; NaN where nothing was counted."""
        return self.sum / self.count if self.count else float("nan")


@record
class Report:
    """What a step saw.

    Attributes:
      totals: name -> Total, to be added over micro-batches, steps and devices.
      rows: name -> [B, Z] per-example sums ("id", "tokens", "loss_nats", ...), to be concatenated.
      router: stack name -> what its routers did, summed over rows; None for a dense model.
    """

    totals: dict[str, Total]
    rows: dict[str, Any]
    router: dict[str, RouterStatistics] | None = None

    def __add__(self, other: Report) -> Report:
        totals = {
            key: self.totals[key] + other.totals[key]
            if key in self.totals and key in other.totals
            else (self.totals | other.totals)[key]
            for key in self.totals | other.totals
        }
        router = self.router or other.router
        if self.router and other.router:
            router = jax.tree.map(operator.add, self.router, other.router)
        if not self.rows or not other.rows:
            return Report(totals=totals, rows=self.rows or other.rows, router=router)
        xp = np if isinstance(next(iter(self.rows.values())), np.ndarray) else jnp
        rows = {key: xp.concatenate([self.rows[key], other.rows[key]]) for key in self.rows}
        return Report(totals=totals, rows=rows, router=router)


@record
class Learner:
    """The part of the state that lives on devices and that one step replaces.

    Attributes:
      step: updates asked for so far (scalar int32); withheld updates count as steps.
      withheld: updates that were not finite and changed nothing (scalar int32).
      trainable: the tree that the tuning trains.
      optimizer: the optimiser's state for that tree, sharded like it.
    """

    step: Any
    withheld: Any
    trainable: Any
    optimizer: Any


@record
class State:
    """All that changes in a run.

    Attributes:
      learner: step, trainable parameters and optimiser state (on devices).
      frozen: parameters that never change (on devices; not in checkpoints).
      curriculum: scores, counts, the round's queue and its cursor (NumPy, on the host).
    """

    learner: Learner
    frozen: Any
    curriculum: Any


def sum_by_example(values_BT: Float[Array, "B T"], batch: Batch) -> Float[Array, "B Z"]:
    """Add per-token values over each example of each row; padding counts for none."""
    numbers_Z = jnp.arange(1, batch.ids_BZ.shape[1] + 1, dtype=batch.segments_BT.dtype)
    member_BTZ = batch.segments_BT[:, :, None] == numbers_Z
    return jnp.sum(jnp.where(member_BTZ, values_BT[:, :, None], 0.0), axis=1)
