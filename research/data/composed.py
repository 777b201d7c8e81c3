"""A text with trained spans, and how it becomes tokens with a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from research.core.protocols import View
from research.data.tokenizer import Spans, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed:
    """A row as a text, before tokenising.

    Attributes:
      text: everything but the specials that are added as ids; empty where `ids` are given.
      spans: characters [first, last) that are trained.
      bos, eos: whether BOS is put before the text and EOS after it; that EOS is trained.
      ids: the row's own tokens, fed as they are.
    """

    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    bos: bool = False
    eos: bool = False
    ids: tuple[int, ...] | None = None


def tokenize(
    composed: Sequence[Composed], tokenizer: Tokenizer | None, view: View
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Turn composed rows into (tokens, trained), in one call of the tokenizer.

    Each text is tokenised as one string. A token is trained if any character that it stands for is;
    masks are by position, so no token is left out for its id. The first token is never trained.
    """
    texts = [row.text for row in composed if row.ids is None]
    encoded = iter(tokenizer.encode_batch(texts) if tokenizer is not None else [])
    shown = []
    for row in composed:
        if row.ids is not None:
            tokens = np.asarray(row.ids, np.int32)
            trained = np.full(tokens.shape, view.content != "prompt")
        else:
            assert tokenizer is not None, "compose refuses text where there is no tokenizer"
            ids, spans = next(encoded)
            trained = trained_tokens(spans, row.spans, len(row.text))
            tokens, trained = _with_specials(row, ids, trained, tokenizer)
        trained[:1] = False
        if view.content == "answer":
            tokens, trained = answer_alone(tokens, trained, tokenizer)
        shown.append((tokens, trained))
    return shown


def trained_tokens(
    spans: Spans, trained: Sequence[tuple[int, int]], num_characters: int
) -> np.ndarray:
    """Mark the tokens that stand for a trained character.

    A token stands for everything since the end of the token before it: tokenizers leave white
    space out of offsets, and give the bytes of one character the same offsets or none.
    """
    if not spans:
        return np.zeros(0, bool)
    first_T, last_T = np.asarray(spans).T
    previous_T = np.concatenate([[0], np.maximum.accumulate(last_T)[:-1]])
    low_T = np.minimum(np.minimum(first_T, previous_T), num_characters)
    high_T = np.clip(last_T, low_T + 1, num_characters + 1)
    inside = np.zeros(num_characters + 2, np.int32)
    for first, last in trained:
        inside[first + 1 : last + 1] = 1
    before = np.cumsum(inside)
    return before[high_T] > before[low_T]


def _with_specials(
    row: Composed, ids: Sequence[int], trained: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    before = [tokenizer.bos_id] if row.bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if row.eos and tokenizer.eos_id is not None else []
    return _joined([*before, *ids, *after], [False] * len(before), trained, [True] * len(after))


def answer_alone(
    tokens: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer | None
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the trained tokens, after BOS.

    EOS stands in where the tokenizer has no BOS; without a tokenizer the row's first token does.
    """
    if tokenizer is None:
        before = tokens[:1].tolist()
    elif tokenizer.bos_id is not None:
        before = [tokenizer.bos_id]
    else:
        before = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    shown = [*before, *tokens[trained]]
    return _joined(shown, np.arange(len(shown)) > 0)


def _joined(
    tokens: Sequence[int], *marks: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(tokens, np.int32), np.concatenate(marks).astype(bool)
