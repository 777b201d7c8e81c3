"""Multiple choice: options behind letters, in the data's order or in one drawn for each row."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from research.data.examples import RowError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question as it is shown.

    Attributes:
      question: the question alone.
      options: the options' texts, in the order of their letters.
      order: the option of the row that stands at each letter.
      gold: which letter is right, as a number; None where the row does not say.
    """

    question: str
    options: tuple[str, ...]
    order: tuple[int, ...]
    gold: int | None

    @property
    def text(self) -> str:
        """The question with its options, a line each."""
        lines = (f"{LETTERS[k]}. {option}" for k, option in enumerate(self.options))
        return "\n".join((self.question, *lines))

    def answer(self, style: str) -> str | None:
        """Give the right answer as a letter, an option's text, or both."""
        if self.gold is None:
            return None
        letter, option = LETTERS[self.gold], self.options[self.gold]
        return {"letter": letter, "text": option, "letter_and_text": f"{letter}. {option}"}[style]


def choice_of(row: Mapping[str, Any], seed: int | None, id: str) -> Choice:
    """Read a multiple-choice row; `seed` and `id` decide the order of its options.

    Raises:
      RowError: there are no options, or the answer names none of them.
    """
    question, options = row["question"], row["options"]
    if not isinstance(question, str):
        raise RowError("malformed", f"question is a {type(question).__name__}; expected a string")
    if not isinstance(options, (list, tuple)) or not 1 < len(options) <= len(LETTERS):
        raise RowError("malformed", f"options is {options!r}; expected a list of 2 to 26 texts")
    texts = [str(option) for option in options]
    order = option_order(len(texts), seed, id)
    answer = row.get("answer")
    gold = None if answer is None else order.index(answer_index(answer, texts))
    return Choice(question, tuple(texts[k] for k in order), tuple(order), gold)


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
