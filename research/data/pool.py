"""The pool: every example a run may train on, tokenised once, with its stable id."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from research.core.parts import part, require
from research.core.protocols import Rows, Source, View
from research.data.census import Census
from research.data.composed import Composed, answer_alone, tokenize
from research.data.examples import Example, RowError
from research.data.leakage import comparable, leaked
from research.data.rows import Rendering, compose, identity, letter_slot
from research.data.sources import notes_of
from research.data.tokenizer import Tokenizer

# Rows tokenised in one call: large enough for the tokenizer's threads, small enough for memory.
_CHUNK = 1_000

Watch = Callable[[int, int], None]


@part
class Weighted:
    """A source with its share of the examples that a run sees.

    Attributes:
      weight: relative to the other sources' weights.
      name: put before the ids of its rows (`name/id`), where sources share ids.
    """

    source: Source
    weight: float
    name: str = ""

    def __post_init__(self) -> None:
        require(self, (self.weight > 0, f"weight={self.weight} must be positive"))


@part
class Data:
    """What a run reads, and the shape of its batches.

    Attributes:
      sources: where rows come from; all weighted, or none (then every example counts alike).
      rows: rows of a global batch.
      row_tokens: tokens of a row (T).
      rendering: how rows become text.
      pack: several examples share a row, kept apart by segment ids; False: one each.
      max_segments: examples that a packed row may hold at most (Z).
      truncate: examples longer than a row are cut on the right; False: they are dropped.
      max_bad_fraction: share of rows that may be dropped before the run stops. 0.01: one bad row
        in a hundred cannot carry a comparison, and each is named in the table; more than that is
        a wrong setting rather than a bad row.
      id_field: the field that names a row; rows without it are named by their content's hash.
      held_out: sources whose rows must not be in the pool; a row of the pool that repeats one of
        theirs, by normalised text, is dropped and counted like any bad row. Rows that hold most
        of one of theirs are only noted: such a likeness may be the nature of the data.
      needs_no_text: every row is `input_ids`, so no tokenizer is opened.
      distinct_ids: rows that share an id are dropped but for the first; False: all are kept, as
        where a file is only read and never chosen from.
    """

    sources: tuple[Source | Weighted, ...]
    rows: int = 8
    row_tokens: int = 512
    rendering: Rendering = Rendering()
    pack: bool = True
    max_segments: int = 16
    truncate: bool = False
    max_bad_fraction: float = 0.01
    id_field: str = "id"
    held_out: tuple[Source, ...] = ()
    needs_no_text: bool = False
    distinct_ids: bool = True

    def __post_init__(self) -> None:
        weighted = sum(isinstance(source, Weighted) for source in self.sources)
        require(
            self,
            (bool(self.sources), "sources is empty; name at least one"),
            (
                weighted in (0, len(self.sources)),
                f"{weighted} of {len(self.sources)} sources are Weighted; weight all or none",
            ),
            (
                not any(isinstance(source, Weighted) for source in self.held_out),
                "held_out holds a Weighted source; name the source itself, nothing is drawn there",
            ),
            (self.rows > 0, f"rows={self.rows} must be positive"),
            (self.row_tokens > 1, f"row_tokens={self.row_tokens} must be at least 2"),
            (self.max_segments > 0, f"max_segments={self.max_segments} must be positive"),
            (
                0 <= self.max_bad_fraction < 1,
                f"max_bad_fraction={self.max_bad_fraction} must be in [0, 1)",
            ),
        )

    @property
    def weighted(self) -> bool:
        """Whether sources have weights; if not, every example counts alike, wherever it is from."""
        return isinstance(self.sources[0], Weighted)

    @property
    def segments(self) -> int:
        """Examples that a row has room for (Z): 1 unless packed."""
        return self.max_segments if self.pack else 1


class Pool:
    """Examples behind an index; order is decided elsewhere.

    Attributes:
      examples: in the order of the sources.
      ids: their stable ids.
      lengths_X: tokens of each.
      groups_X: number of the source each came from.
      group_weights: share of each source in what is seen (float64, sums to 1).
      census: what became of every row.
    """

    def __init__(
        self, examples: Sequence[Example], data: Data, tokenizer: Tokenizer | None, census: Census
    ):
        self.examples, self.data = tuple(examples), data
        self.tokenizer, self.census = tokenizer, census
        self.ids = tuple(example.id for example in self.examples)
        self.lengths_X = np.asarray([len(example.tokens) for example in self.examples], np.int32)
        self.groups_X = np.asarray([example.group for example in self.examples], np.int32)
        self.group_weights = _group_weights(data, self.groups_X)

    def __len__(self) -> int:
        return len(self.examples)

    def require_fit(self, longest_text: int | None) -> None:
        """Refuse examples that a model has no positions for; the last token is never fed.

        Raises:
          ValueError: there are some; it names the first.
        """
        if longest_text is None:
            return
        over = np.flatnonzero(self.lengths_X - 1 > longest_text)
        if len(over):
            first = self.examples[over[0]]
            raise ValueError(
                f"{first.where}: {first.id!r} has {len(first.tokens)} tokens, and {len(over) - 1} "
                f"more rows are too long; the model has a table of {longest_text} positions. Set "
                f"row_tokens={longest_text}, with truncate=True to cut what is longer"
            )

    def view(self, x: int, view: View) -> Example:
        """Show one example in a view; the training view is the example itself."""
        return self.views([x], view)[0]

    def views(self, indices: Sequence[int], view: View) -> list[Example]:
        """Show many examples in a view, in one call of the tokenizer."""
        chosen = [self.examples[x] for x in indices]
        if view == View():
            return chosen
        if view.content in ("slot", "letters"):
            return [self._lettered(example, view) for example in chosen]
        if view.content == "answer":
            shown = [answer_alone(e.tokens, e.trained, self.tokenizer) for e in chosen]
        else:
            composed = [self._composed(example, view) for example in chosen]
            shown = tokenize(composed, self.tokenizer, view)
        return [
            dataclasses.replace(example, tokens=tokens, trained=trained)
            for example, (tokens, trained) in zip(chosen, shown, strict=True)
        ]

    def read_by(self, tokenizer: Tokenizer) -> Pool:
        """Give the same examples, in the same places, in another tokenizer's tokens.

        Raises:
          ValueError: a row cannot be shown by it, and where that row is.
        """
        other = copy.copy(self)
        other.tokenizer = tokenizer
        composed = [other._composed(example, View()) for example in self.examples]
        most = self.data.row_tokens
        other.examples = tuple(
            dataclasses.replace(example, tokens=tokens[:most], trained=trained[:most])
            for example, (tokens, trained) in zip(
                self.examples, tokenize(composed, tokenizer, View()), strict=True
            )
        )
        sizes = [len(example.tokens) for example in other.examples]
        other.lengths_X = np.asarray(sizes, np.int32)
        return other

    def _lettered(self, example: Example, view: View) -> Example:
        if self.tokenizer is None:
            raise ValueError(f"{view} needs a tokenizer, and there is none")
        try:
            return letter_slot(example, self.tokenizer, view, self.data.rendering)
        except RowError as error:
            raise ValueError(f"{example.where}: cannot be shown as {view}: {error}") from error

    def _composed(self, example: Example, view: View) -> Composed:
        try:
            return compose(example.row, self.tokenizer, view, self.data.rendering, example.id)
        except RowError as error:
            raise ValueError(f"{example.where}: cannot be shown as {view}: {error}") from error


def _group_weights(data: Data, groups_X: np.ndarray) -> np.ndarray:
    sizes = np.bincount(groups_X, minlength=len(data.sources)).astype(np.float64)
    weights = np.asarray(
        [
            source.weight if isinstance(source, Weighted) else size
            for source, size in zip(data.sources, sizes, strict=True)
        ]
    )
    weights = np.where(sizes > 0, weights, 0.0)
    return weights / weights.sum()


def open_pool(
    data: Data,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int | None = None,
    watch: Watch | None = None,
) -> Pool:
    """Read all sources into a pool; every row is kept or named in the census.

    Args:
      vocab_size: the model's; a row with a token beyond it is dropped, where an embedding look-up
        would silently clamp.
      watch: called with (rows read, rows there are) of the source that is being read.

    Raises:
      ValueError: more than `data.max_bad_fraction` of the rows were dropped, or none is left.
    """
    census = Census()
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for group, source in enumerate(data.sources):
        weighted = isinstance(source, Weighted)
        rows = (source.source if weighted else source).open()
        prefix = f"{source.name}/" if weighted and source.name else ""
        for example in _examples(rows, data, tokenizer, census, group, prefix, watch):
            try:
                _check(example, data, tokenizer, vocab_size, seen)
            except RowError as error:
                census.drop(example.where, example.id, error)
                continue
            seen[example.id] = example.where
            examples.append(_cut(example, data, census))
        census.read.append(len(rows))
        census.notes += notes_of(rows)
    if tokenizer is not None and tokenizer.eos_id is None and not data.needs_no_text:
        census.notes.append(
            "the tokenizer has no EOS: answers in plain text are trained without end"
        )
    examples = _without_leaks(examples, data, census)
    groups = [example.group for example in examples]
    census.kept = [groups.count(group) for group in range(len(data.sources))]
    census.check(data.max_bad_fraction, ", ".join(map(str, data.sources)))
    return Pool(examples, data, tokenizer, census)


def _without_leaks(examples: list[Example], data: Data, census: Census) -> list[Example]:
    """Drop the examples that repeat a held-out row; those that nearly do are noted."""
    tests = []
    for source in data.held_out:
        rows = source.open()
        for index in range(len(rows)):
            try:
                tests.append((rows.where(index), comparable(rows[index])))
            except RowError as error:
                census.notes.append(f"{rows.where(index)} is held out but unreadable: {error}")
    where = {example.id: example.where for example in examples}
    leaks = leaked(((e.id, comparable(e.row)) for e in examples), tests) if tests else []
    for leak in leaks:
        error = RowError("held out", f"repeats the held-out row at {leak.test_id}")
        if leak.equal:
            census.drop(where[leak.pool_id], leak.pool_id, error)
            continue
        census.notes.append(
            f"{where[leak.pool_id]} holds {leak.share:.0%} of the held-out row at {leak.test_id}, "
            "and stays"
        )
    equal = {leak.pool_id for leak in leaks if leak.equal}
    return [example for example in examples if example.id not in equal]


def _examples(
    rows: Rows,
    data: Data,
    tokenizer: Tokenizer | None,
    census: Census,
    group: int,
    prefix: str,
    watch: Watch | None,
) -> Iterator[Example]:
    """Compose and tokenise the rows of one source, a chunk at a time, in order."""
    view, repeats = View(), Counter[str]()
    for start in range(0, len(rows), _CHUNK):
        pending: list[tuple[dict, Composed]] = []
        end = min(start + _CHUNK, len(rows))
        for index in range(start, end):
            where, id = rows.where(index), ""
            try:
                row = rows[index]
                id = prefix + _distinct(identity(row, data.id_field), row, data.id_field, repeats)
                composed = compose(row, tokenizer, view, data.rendering, id)
            except RowError as error:
                census.drop(where, id, error)
                continue
            pending.append(({"id": id, "row": row, "where": where}, composed))
        shown = tokenize([composed for _, composed in pending], tokenizer, view)
        for (named, _), (tokens, trained) in zip(pending, shown, strict=True):
            yield Example(tokens=tokens, trained=trained, group=group, **named)
        if watch is not None:
            watch(end, len(rows))
    if repeats and repeats.total() > len(repeats):
        number = repeats.total() - len(repeats)
        census.notes.append(f"{number:,} rows without an id repeat another row, and stay")


def _distinct(id: str, row: Mapping[str, Any], id_field: str, repeats: Counter[str]) -> str:
    """Number the repeats of a row that is named by its content; own ids are left as they are."""
    if row.get(id_field) is not None:
        return id
    repeats[id] += 1
    return id if repeats[id] == 1 else f"{id}-{repeats[id]}"


def _check(
    example: Example,
    data: Data,
    tokenizer: Tokenizer | None,
    vocab_size: int | None,
    seen: dict[str, str],
) -> None:
    """Refuse an example that training could not use, or would use wrongly."""
    tokens, bos = example.tokens, tokenizer.bos_id if tokenizer is not None else None
    if data.distinct_ids and example.id in seen:
        raise RowError("duplicate id", f"id {example.id!r} is also at {seen[example.id]}")
    if bos is not None and tokens[:2].tolist() == [bos, bos]:
        raise RowError("double BOS", "the text brings its own BOS; leave it out of the data")
    if len(tokens) > data.row_tokens and not data.truncate:
        raise RowError(
            "too long",
            f"{len(tokens)} tokens, row_tokens={data.row_tokens}; raise it or set truncate=True",
        )
    if vocab_size is not None and len(tokens) and tokens.max() >= vocab_size:
        raise RowError("unknown token", f"id {tokens.max()}; the model has {vocab_size} tokens")
    if not example.trained[: data.row_tokens].any():
        raise RowError(
            "empty after masking", "no token is left to train after masking and truncation"
        )


def _cut(example: Example, data: Data, census: Census) -> Example:
    if len(example.tokens) <= data.row_tokens:
        return example
    census.truncated += 1
    return dataclasses.replace(
        example,
        tokens=example.tokens[: data.row_tokens],
        trained=example.trained[: data.row_tokens],
    )
