"""How a row of each kind is shown to the model: as a text with trained spans, then as tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from research.core.parts import part, require
from research.core.protocols import View
from research.data.chat import conversation, joined, last_answer
from research.data.examples import Example, RowError
from research.data.tokenizer import Spans, Tokenizer

KINDS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids",),
    "messages": ("messages",),
    "choice": ("question", "options"),
    "completion": ("prompt",),
    "text": ("text",),
}
ANSWERS: Mapping[str, str] = {"choice": "answer", "completion": "completion"}
KIND_FIELDS = frozenset(
    {field for fields in KINDS.values() for field in fields} | {*ANSWERS.values()}
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@part
class Rendering:
    """How rows become text, in training and in every other view.

    Attributes:
      template: rows of `prompt` and of `question` go through the tokenizer's chat template, where
        it has one; False: they are plain text.
      system: a system turn put before conversations that have none.
      text_eos: rows of `text` end in EOS, which is trained.
      answer: what is trained of a multiple-choice row.
      shuffle_options: a seed; each row's options are put in an order drawn from it and the row's
        id. None: the order of the data, whose gold index is often skewed.
    """

    template: bool = True
    system: str = ""
    text_eos: bool = True
    answer: Literal["letter", "text", "letter_and_text"] = "letter"
    shuffle_options: int | None = None

    def __post_init__(self) -> None:
        require(
            self,
            (
                self.answer in ("letter", "text", "letter_and_text"),
                f"answer={self.answer!r}; expected 'letter', 'text' or 'letter_and_text'",
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed:
    """A row as a text, before tokenising.

    Attributes:
      text: everything but the specials that are added as ids; unused where `ids` are given.
      spans: characters [first, last) that are trained.
      bos, eos: whether BOS is put before and EOS after; that EOS is trained.
      ids: the row's own tokens, fed as they are.
    """

    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    bos: bool = False
    eos: bool = False
    ids: tuple[int, ...] | None = None


def kind_of(row: Mapping[str, Any]) -> str:
    """Tell a row's kind from the names of its fields.

    Raises:
      RowError: no kind fits, or more than one does.
    """
    fits = [kind for kind, fields in KINDS.items() if all(row.get(f) is not None for f in fields)]
    if len(fits) == 1:
        return fits[0]
    known = "; ".join("+".join((*f, *ANSWERS.get(k, "").split())) for k, f in KINDS.items())
    problem = f"fits {' and '.join(fits)}" if fits else "fits no kind of row"
    raise RowError(
        "unknown kind",
        f"fields {sorted(row)}: {problem}; expected one of {known}. Name the fields with `Columns`",
    )


def identity(row: Mapping[str, Any], id_field: str) -> str:
    """Give a row's stable name: its own id where it has one, else a hash of its content."""
    own = row.get(id_field)
    if own is not None and not isinstance(own, (Mapping, list)):
        return str(own)
    content = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def compose(
    row: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    view: View,
    rendering: Rendering,
    id: str,
) -> Composed:
    """Show a row as a text with trained spans; `id` decides the order of shuffled options.

    Raises:
      RowError: the row is not what its kind asks for.
    """
    kind = kind_of(row)
    if kind == "input_ids":
        return Composed(ids=_given_ids(row["input_ids"]))
    if tokenizer is None:
        raise RowError("unknown kind", f"a row of kind {kind} needs a tokenizer, and there is none")
    if kind == "text":
        return _plain(_string(row, "text"), None, tokenizer, view, rendering)
    templated = view.template and rendering.template and tokenizer.template is not None
    if kind == "messages" or isinstance(row.get("prompt"), list):
        messages, first = last_answer(row)
        return _chat(messages, first, tokenizer, view, rendering)
    if kind == "choice":
        question, cue, answer = choice_texts(row, rendering, id)
    else:
        question, cue = _string(row, "prompt"), ""
        answer = None if row.get("completion") is None else _string(row, "completion")
    if not templated:
        answer = f" {answer}" if kind == "choice" and answer is not None else answer
        return _plain(question + cue, answer, tokenizer, view, rendering)
    messages = [{"role": "user", "content": question}]
    messages += [] if answer is None else [{"role": "assistant", "content": answer}]
    return _chat(messages, 0, tokenizer, view, rendering)


def _string(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise RowError("malformed", f"{field} is a {type(value).__name__}; expected a string")
    return value


def _given_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise RowError("malformed", f"input_ids is a {type(ids).__name__}; expected a list of ids")
    wrong = [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or i < 0]
    if wrong:
        raise RowError("malformed", f"input_ids holds {wrong[0]!r}; expected integers from 0")
    return tuple(ids)


def _plain(
    question: str, answer: str | None, tokenizer: Tokenizer, view: View, rendering: Rendering
) -> Composed:
    """Show plain text: without an answer (None) all of `question` is trained."""
    start = joined(view.instruction, question)
    if view.content == "prompt":
        return Composed(text=start, bos=tokenizer.adds_bos)
    spans = ((0, len(start)),) if answer is None else ((len(start), len(start) + len(answer)),)
    has_eos = tokenizer.eos_id is not None
    return Composed(
        text=start + (answer or ""),
        spans=spans,
        bos=tokenizer.adds_bos,
        eos=has_eos and (answer is not None or rendering.text_eos),
    )


def _chat(
    messages: Sequence[Mapping[str, Any]],
    first: int,
    tokenizer: Tokenizer,
    view: View,
    rendering: Rendering,
) -> Composed:
    """Show a conversation; assistant turns from message `first` on are trained."""
    shown = conversation(messages, view, rendering.system)
    text, spans, closes = shown.render(tokenizer, first + len(shown.messages) - len(messages))
    return Composed(text=text, spans=tuple(spans), eos=closes)


def choice_texts(
    row: Mapping[str, Any], rendering: Rendering, id: str
) -> tuple[str, str, str | None]:
    """Give a multiple-choice row's question with its options, the cue, and the answer (or None).

    Raises:
      RowError: there are no options, or the answer names none of them.
    """
    question, options = _string(row, "question"), row["options"]
    if not isinstance(options, list) or not 1 < len(options) <= len(LETTERS):
        raise RowError("malformed", f"options is {options!r}; expected a list of 2 to 26 texts")
    texts = [str(option) for option in options]
    order = option_order(len(texts), rendering.shuffle_options, id)
    lines = [f"{LETTERS[slot]}. {texts[option]}" for slot, option in enumerate(order)]
    shown = "\n".join((question, *lines))
    if row.get("answer") is None:
        return shown, "\nAnswer:", None
    gold = answer_index(row["answer"], texts)
    letter = LETTERS[order.index(gold)]
    answer = {
        "letter": letter,
        "text": texts[gold],
        "letter_and_text": f"{letter}. {texts[gold]}",
    }[rendering.answer]
    return shown, "\nAnswer:", answer


def option_order(num_options: int, seed: int | None, id: str) -> list[int]:
    """Give the option shown at each letter: a permutation drawn from (seed, id)."""
    options = list(range(num_options))
    if seed is None:
        return options
    return sorted(options, key=lambda k: hashlib.sha256(f"{seed}:{id}:{k}".encode()).digest())


def answer_index(answer: Any, options: Sequence[str]) -> int:
    """Read an answer: a 0-based index, a letter, or an option's text.

    Raises:
      RowError: it names no option, or two.
    """
    if isinstance(answer, int) and not isinstance(answer, bool):
        named = {answer} if 0 <= answer < len(options) else set()
    else:
        text = str(answer).strip()
        named = {k for k, option in enumerate(options) if option.strip() == text}
        if len(text) == 1 and text in LETTERS[: len(options)]:
            named.add(LETTERS.index(text))
    if len(named) != 1:
        raise RowError(
            "bad answer",
            f"answer {answer!r} names {len(named)} of the {len(options)} options; expected a "
            "0-based index, a letter or one option's text",
        )
    return named.pop()


def tokenize(
    composed: Sequence[Composed], tokenizer: Tokenizer | None, view: View
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Turn composed rows into (tokens, trained), in one call of the tokenizer.

    A token is trained if any character that it stands for is. Masks are by position: no token is
    left out for its id. The first token is never trained.
    """
    texts = [row.text for row in composed if row.ids is None]
    encoded = iter(tokenizer.encode_batch(texts) if tokenizer is not None else [])
    shown = []
    for row in composed:
        if row.ids is not None:
            tokens, trained = list(row.ids), [view.content != "prompt"] * len(row.ids)
        else:
            tokens, spans = next(encoded)
            trained = trained_tokens(spans, row.spans, len(row.text))
            tokens, trained = _with_specials(row, list(tokens), trained, tokenizer)
        if view.content == "answer" and row.ids is None:
            tokens, trained = _answer_alone(tokens, trained, tokenizer)
        trained_T = np.asarray(trained, bool)
        trained_T[:1] = False
        shown.append((np.asarray(tokens, np.int32), trained_T))
    return shown


def _with_specials(
    row: Composed, tokens: list[int], trained: list[bool], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    if row.bos:
        tokens, trained = [tokenizer.bos_id, *tokens], [False, *trained]
    if row.eos:
        tokens, trained = [*tokens, tokenizer.eos_id], [*trained, True]
    return tokens, trained


def _answer_alone(
    tokens: list[int], trained: list[bool], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    """Keep the trained tokens, after BOS; EOS stands in where the tokenizer has no BOS."""
    answer = [token for token, is_trained in zip(tokens, trained, strict=True) if is_trained]
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    first = [] if start is None else [start]
    return first + answer, [False] * len(first) + [True] * len(answer)


def trained_tokens(
    spans: Spans, trained: Sequence[tuple[int, int]], num_characters: int
) -> list[bool]:
    """Mark the tokens that stand for a trained character.

    A token stands for everything since the end of the token before it: tokenizers leave white
    space out of offsets, and give the bytes of one character the same offsets or none.
    """
    inside = np.zeros(num_characters + 1, np.int32)
    for first, last in trained:
        inside[first:last] = 1
    before = np.concatenate([[0], np.cumsum(inside)])
    marks, previous = [], 0
    for first, last in spans:
        low = min(first, previous)
        high = max(last, low + 1)
        marks.append(bool(before[min(high, num_characters)] > before[low]))
        previous = max(previous, last)
    return marks


def render(
    row: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    view: View,
    rendering: Rendering | None = None,
    *,
    where: str = "",
    id_field: str = "id",
    group: int = 0,
) -> Example:
    """Show one row in one view.

    Raises:
      RowError: the row is not what its kind asks for.
    """
    id = identity(row, id_field)
    composed = compose(row, tokenizer, view, rendering or Rendering(), id)
    ((tokens, trained),) = tokenize([composed], tokenizer, view)
    return Example(id=id, tokens=tokens, trained=trained, row=row, where=where, group=group)
