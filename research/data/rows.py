"""How a row of each kind is shown to the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from research.core.parts import part, require
from research.core.protocols import View
from research.data.chat import compose_chat, joined, messages_of, plain_turns
from research.data.choice import LETTERS, choice_of
from research.data.composed import Composed, tokenize
from research.data.examples import Example, RowError
from research.data.tokenizer import Tokenizer

# What a row must have to be of a kind, and the field of its answer.
KINDS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids",),
    "messages": ("messages",),
    "choice": ("question", "options"),
    "completion": ("prompt",),
    "text": ("text",),
}
ANSWERS: Mapping[str, str] = {"choice": "answer", "completion": "completion"}
KIND_FIELDS = frozenset({field for fields in KINDS.values() for field in fields}) | {
    *ANSWERS.values()
}


@part
class Rendering:
    """How rows become text, in training and in every other view.

    Attributes:
      template: rows of `prompt` and of `question` go through the tokenizer's chat template, where
        it has one; False: they are plain text. Rows of `messages` always need a template.
      system: a system turn put before conversations that have none.
      text_eos: rows of `text` end in EOS, which is trained. False, as elsewhere: a text may be a
        piece of a longer one, and losses compare with what others report of it.
      answer: what is trained of a multiple-choice row.
      shuffle_options: a seed; each row's options are put in an order drawn from it and the row's
        id. None: the order of the data, whose gold index is often skewed.
    """

    template: bool = True
    system: str = ""
    text_eos: bool = False
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

    Rows of `text` and `input_ids` are all answer in the training view and all prompt in the prompt
    view. The answer view is cut out of the training view (`tokenize`).

    Raises:
      RowError: the row is not what its kind asks for, or has no answer where one is needed.
    """
    kind = kind_of(row)
    if kind == "input_ids":
        return Composed(ids=_given_ids(row["input_ids"]))
    if tokenizer is None:
        raise RowError("unknown kind", f"a row of kind {kind} needs a tokenizer, and there is none")
    if kind == "text":
        return _compose_text(_string(row, "text"), tokenizer, view, rendering)
    if kind == "messages" or isinstance(row.get("prompt"), (list, tuple)):
        messages, first = messages_of(row)
        if view.template:
            return compose_chat(messages, first, tokenizer, view, rendering.system)
        return _compose_plain(*plain_turns(messages), tokenizer, view)
    templated = view.template and rendering.template and tokenizer.template is not None
    question, answer = _question_and_answer(kind, row, rendering, id, templated)
    if not templated:
        return _compose_plain(question, answer, tokenizer, view)
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return compose_chat(turns, 0, tokenizer, view, rendering.system)


def _question_and_answer(
    kind: str, row: Mapping[str, Any], rendering: Rendering, id: str, templated: bool
) -> tuple[str, str | None]:
    """Give what is asked and what is to be answered, for a user's turn or as plain text."""
    if kind == "completion":
        answer = None if row.get("completion") is None else _string(row, "completion")
        return _string(row, "prompt"), answer
    choice = choice_of(row, rendering.shuffle_options, id)
    answer = choice.answer(rendering.answer)
    if templated:
        return choice.text, answer
    return f"{choice.text}\nAnswer:", None if answer is None else f" {answer}"


def _compose_text(text: str, tokenizer: Tokenizer, view: View, rendering: Rendering) -> Composed:
    shown = joined(view.instruction, text)
    if view.content == "prompt":
        return Composed(text=shown, bos=tokenizer.adds_bos)
    if not text.strip():
        raise RowError("empty after masking", "the text is empty")
    return Composed(
        text=shown,
        spans=((len(shown) - len(text), len(shown)),),
        bos=tokenizer.adds_bos,
        eos=rendering.text_eos and tokenizer.eos_id is not None,
    )


def _compose_plain(question: str, answer: str | None, tokenizer: Tokenizer, view: View) -> Composed:
    start = joined(view.instruction, question)
    if view.content == "prompt":
        return Composed(text=start, bos=tokenizer.adds_bos)
    if answer is None or not answer.strip():
        raise RowError("empty after masking", "the answer is missing or empty")
    return Composed(
        text=start + answer,
        spans=((len(start), len(start) + len(answer)),),
        bos=tokenizer.adds_bos,
        eos=tokenizer.eos_id is not None,
    )


def _string(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise RowError("malformed", f"{field} is a {type(value).__name__}; expected a string")
    return value


def _given_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise RowError("malformed", f"input_ids is a {type(ids).__name__}; expected a list of ids")
    wrong = [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < 2**31]
    if wrong:
        raise RowError("malformed", f"input_ids holds {wrong[0]!r}; expected integers from 0")
    return tuple(ids)


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


def option_examples(
    example: Example, tokenizer: Tokenizer, view: View, rendering: Rendering
) -> tuple[list[Example], int | None]:
    """Show a multiple-choice example once with each option as its answer, in the letters' order.

    Returns:
      The examples, and which of them is right (None where the row does not say).
    """
    choice = choice_of(example.row, rendering.shuffle_options, example.id)
    composed = [
        compose({**example.row, "answer": option}, tokenizer, view, rendering, example.id)
        for option in choice.order
    ]
    return [
        dataclasses.replace(example, tokens=tokens, trained=trained)
        for tokens, trained in tokenize(composed, tokenizer, view)
    ], choice.gold


def letter_slot(
    example: Example, tokenizer: Tokenizer, view: View, rendering: Rendering
) -> Example:
    """Show a multiple-choice example up to where its letters differ, or the letters found there.

    Raises:
      RowError: it is no multiple-choice row, or two letters begin with the same token.
    """
    if (kind := kind_of(example.row)) != "choice":
        raise RowError("unknown kind", f"a row of kind {kind} has no letters to choose from")
    lettered = dataclasses.replace(rendering, answer="letter")
    options, _ = option_examples(example, tokenizer, view, lettered)
    shortest = min(len(option.tokens) for option in options)
    tokens_OT = np.stack([option.tokens[:shortest] for option in options])
    differs = np.flatnonzero((tokens_OT != tokens_OT[0]).any(axis=0))
    slot = int(differs[0]) if len(differs) else shortest
    letters = tokens_OT[:, slot] if slot < shortest else tokens_OT[:, -1]
    if not 0 < slot < shortest or len(set(letters.tolist())) < len(letters):
        shared = [LETTERS[k] for k, token in enumerate(letters) if (letters == token).sum() > 1]
        raise RowError(
            "bad answer",
            f"its {len(letters)} letters do not each begin with a token of their own: this "
            f"tokenizer writes {', '.join(shared)} with several, of which the first is the same "
            f"({tokenizer.decode(letters[:1].tolist())!r}). Measure another way, such as by "
            "FirstTokenEntropy or TeacherForcedEntropy, or ask with fewer options",
        )
    tokens = letters if view.content == "letters" else tokens_OT[0, :slot]
    return dataclasses.replace(example, tokens=tokens, trained=np.zeros(len(tokens), bool))
