"""What each kind of part promises: the seams along which a method is one new file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from research.core.generation import Generated, Sampling, Statistic
from research.core.parts import part
from research.core.records import Batch, Output, Report, Total

Tree = Any


@part
class View:
    """How a row is shown to the model.

    Attributes:
      content: "training" (all of it, with its trained tokens), "prompt" (up to where the answer
        starts, ready to be continued), "answer" (the trained tokens alone, after BOS), "slot" (a
        multiple-choice row up to where its letters differ) or "letters" (not a text: the token of
        each option's letter there).
      instruction: a quick-answer instruction, joined to the user's turn before templating.
      template: whether a chat template is applied (False: instruction and question as plain text).
    """

    content: Literal["training", "prompt", "answer", "slot", "letters"] = "training"
    instruction: str = ""
    template: bool = True

    @property
    def is_fed(self) -> bool:
        """Whether the model reads it; if not, it costs nothing."""
        return self.content != "letters"


@runtime_checkable
class Model(Protocol):
    """A language model as functions of a parameter tree."""

    def init(self, key: jax.Array) -> Tree:
        """Make random parameters."""
        ...

    def abstract(self) -> Tree:
        """Give shapes and dtypes of the parameters without touching a device."""
        ...

    def with_noise(self, params: Tree, key: Array) -> Tree:
        """Give parameters that carry the key of a noisy router's noise; others as they are."""
        ...

    def apply(self, params: Tree, batch: Batch) -> Output:
        """Run a whole batch at once."""
        ...

    @property
    def longest_text(self) -> int | None:
        """The most tokens of one text that can be fed; None: positions do not end."""
        ...

    def prefill(self, params: Tree, prompts: Batch, num_slots: int) -> tuple[Output, Any]:
        """Run whole prompts; give (Output, key/value cache with room for `num_slots` tokens)."""
        ...

    def extend(self, params: Tree, cache: Any, tokens_BT, positions_BT, segments_BT) -> tuple:
        """Feed more tokens; give (Output, cache)."""
        ...

    def empty_cache(self, num_rows: int, num_slots: int) -> Any:
        """Make a cache to which nothing was fed."""
        ...

    def spread(self, cache: Any, open_B: Array, num_slots: int) -> Any:
        """Give every row that is open what one row was fed, and room for more."""
        ...

    def seat(self, cache: Any, place_ZR: Array, new: Any) -> Any:
        """Put new rows into places of a cache, shard by shard of its rows."""
        ...

    def unstack(self, params: Tree) -> Tree:
        """Give the parameters in the form that a loop of `extend` reads fastest."""
        ...

    def generate(
        self,
        params: Tree,
        prompts: Batch,
        sampling: Sampling,
        stop_ids: tuple[int, ...],
        key_B: Array | None = None,
        statistic: Statistic | None = None,
    ) -> Generated:
        """Continue one right-padded prompt a row; give tokens, and a statistic of each step."""
        ...


class Tuning(Protocol):
    """How parameters divide into trained and frozen."""

    def split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """Give (trainable, frozen); new factors are drawn from `key`. Pure: works abstractly."""
        ...

    def join(self, trainable: Tree, frozen: Tree, key: jax.Array | None = None) -> Tree:
        """Give the parameter tree that the model is applied to; `key` turns dropout on."""
        ...

    def merge(self, trainable: Tree, frozen: Tree) -> Tree:
        """Give plain arrays: the adapted weights, added in float32 and cast once."""
        ...


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, model: Model, params: Tree, batch: Batch) -> tuple[Total, Report]:
        """Give the loss as a differentiable (sum, count) in nats, and what was seen."""
        ...


@runtime_checkable
class Selecting(Protocol):
    """An objective that trains on a part of each batch, after a forward pass over all of it."""

    def num_kept(self, num_rows: int) -> int:
        """Give how many of a (micro-)batch's rows are trained on."""
        ...


class Optimizer(Protocol):
    """How gradients become updates; every kernel is the 2-D matrix that its name declares."""

    def init(self, trainable: Tree) -> Tree:
        """Make the state for a trainable tree; moments keep its leaves' names."""
        ...

    def update(
        self, gradients: Tree, state: Tree, trainable: Tree, learning_rate: jax.Array
    ) -> tuple[Tree, Tree]:
        """Give (updates to add, new state)."""
        ...


class Schedule(Protocol):
    """Learning rate as a function of the fraction of its span (run or round) that is done."""

    def __call__(self, fraction: jax.Array) -> jax.Array:
        """Give the learning rate at `fraction` in [0, 1]."""
        ...


class Estimator(Protocol):
    """What is hard? A signal per example, in nats."""

    @property
    def views(self) -> tuple[View, ...]:
        """The views of a row that `score` needs, in order; never empty."""
        ...

    @property
    def new_tokens(self) -> int | None:
        """Tokens generated a row, charged whole; 0: one forward pass; None: no model is run."""
        ...

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: Array,
        stop_ids: tuple[int, ...],
    ) -> Float[Array, " B"]:
        """Score one example a row; `batches` holds the declared views, one example a row.

        Args:
          key_B: a key a row, which depends on the seed, the round and the example alone.
          stop_ids: tokens that end an answer; what the tokenizer or the model's folder declares.
        """
        ...


@runtime_checkable
class Differentiating(Protocol):
    """An estimator of gradients, a row at a time; it is charged a backward pass too."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the parameters that the gradient is taken for."""
        ...


@runtime_checkable
class Guided(Protocol):
    """An estimator that compares rows with others, such as a few of a validation set.

    Attributes:
      guide: the others, a `research.data.pool.Data`.
    """

    @property
    def views(self) -> tuple[View, ...]: ...

    @property
    def new_tokens(self) -> int | None: ...

    @property
    def guide(self) -> Any: ...

    def direction(self, model: Model, params: Tree, batch: Batch) -> Total:
        """Give what a batch of the others says, as a (sum, count) that adds over batches."""
        ...

    def score(
        self,
        model: Model,
        params: Tree,
        batches: tuple[Batch, ...],
        key_B: Array,
        stop_ids: tuple[int, ...],
        guide: Total,
    ) -> Float[Array, " B"]:
        """Score as `Estimator.score`, against the sum of `direction` over all of `guide`."""
        ...


class Weights(Protocol):
    """Where a model is found, such as a `research.huggingface.pretrained.Pretrained`."""

    def resolve(self) -> Any:
        """Give its folder, architecture and fingerprint."""
        ...


@runtime_checkable
class Delegating(Protocol):
    """An estimator that another model computes: a frozen one, so once a run is enough.

    Attributes:
      estimator: what is computed.
      model: whose weights, tokenizer and stop tokens it is computed with.
      same_tokens: whether that model must read the tokens that training feeds.
    """

    @property
    def estimator(self) -> Estimator | Guided: ...

    @property
    def model(self) -> Weights: ...

    @property
    def same_tokens(self) -> bool: ...


@runtime_checkable
class Stated(Protocol):
    """An estimator that costs nothing: the row itself says how hard it is."""

    def of_row(self, row: Mapping[str, Any]) -> float:
        """Read the signal of a row.

        Raises:
          ValueError: the row does not say, or not as a number.
        """
        ...


@runtime_checkable
class Combination(Protocol):
    """An expression of estimators, computed over the whole pool on the host."""

    @property
    def terms(self) -> tuple[Any, ...]:
        """The estimators it is made of, themselves combinations or not."""
        ...

    def combine(self, signal_YX: Float[Any, "Y X"]) -> Float[Any, " X"]:
        """Give its value from those of its terms, in float64; NaN where one is not known."""
        ...


@runtime_checkable
class Recorder(Protocol):
    """An estimator that costs nothing: it reads what training reported of each example."""

    @property
    def views(self) -> tuple[()]:
        """Empty: nothing is computed."""
        ...

    def read(self, rows: Mapping[str, Any]) -> tuple[Any, Any]:
        """Give (ids, signal in nats), flat and in the order of training; -1 marks no example."""
        ...


class Source(Protocol):
    """Where rows come from: a part that can be opened."""

    def open(self) -> Rows:
        """Open the rows.

        Raises:
          FileNotFoundError, ValueError: with what is missing and what to do.
        """
        ...


class Rows(Protocol):
    """Indexable raw rows; no state."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def where(self, index: int) -> str:
        """Name a row for people: `file:line`."""
        ...


class Evaluator(Protocol):
    """A question asked of a model at some steps: a part.

    Attributes:
      name: of the evaluation and of its files.
      data: the items, a `research.data.pool.Data`, evaluated one a row.
      slice_by: fields of a row whose values make slices.
    """

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> Any: ...

    @property
    def slice_by(self) -> tuple[str, ...]: ...

    def measure(self, subject: Any, pool: Any) -> Sequence[Mapping[str, Any]]:
        """Measure each item of an opened pool on a `research.evaluate.subject.Subject`.

        A metric of an item is a Total, its sum and its count; the first is the one that reports
        test. Anything else is a note, kept in the item's row.
        """
        ...
