"""Multiple choice: the option that the model finds likelier, by its letter or by its text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from research.core.parts import part, require
from research.core.protocols import View
from research.core.records import Total
from research.data.choice import answer_index
from research.data.composed import tokenize
from research.data.examples import Example
from research.data.pool import Data, Pool
from research.data.rows import compose, kind_of
from research.evaluate.evaluate import Item, checks_of
from research.evaluate.subject import Subject

KINDS = ("letter", "text", "text_per_byte")


@part
class MultipleChoice:
    """The share of questions whose right option gets the highest likelihood; ties go to the first.

    The question is shown with all its options, as in training, or (`cloze`) alone; the model is
    never asked to speak.
    accuracy_letter compares log p of the letters, accuracy_text of the options' texts, and
    accuracy_text_per_byte divides the latter by the text's UTF-8 bytes. The end of the turn is left
    out of all of them.

    Attributes:
      by: what is compared; the first is the main metric. Text costs a longer pass an option, and
        gives both of its accuracies: "text_per_byte" the latter first.
      cloze: how an option completes a question that is shown without options, such as
        " {option}"; None: the options are shown. What a base model can be asked that has not
        learned what letters stand for.

    Source: letters as in MMLU, Hendrycks et al. 2020, arXiv 2009.03300; texts as `acc` and
      `acc_norm` of lm-evaluation-harness; cloze as OLMES' CF, Gu et al. 2024, arXiv 2406.08446.
    """

    data: Data
    name: str = "choice"
    slice_by: tuple[str, ...] = ()
    by: tuple[Literal["letter", "text", "text_per_byte"], ...] = ("letter", "text")
    cloze: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            *checks_of(self),
            (
                bool(self.by) and set(self.by) <= set(KINDS),
                f"by={self.by}: expected some of {KINDS}",
            ),
            (
                self.cloze is None or "{option}" in self.cloze,
                f"cloze={self.cloze!r}: expected a completion that has {{option}} in it",
            ),
            (
                self.cloze is None or "letter" not in self.by,
                f"cloze shows no letters: by={self.by} must be ('text',) or ('text_per_byte',)",
            ),
        )

    def measure(self, subject: Subject, pool: Pool) -> list[Item]:
        """Measure each question.

        Raises:
          ValueError: a row is not multiple choice, or too long; the error names it.
        """
        gold_X = [_gold(example) for example in pool.examples]
        items: list[dict[str, Any]] = [{} for _ in gold_X]
        for by in self.by:
            shown = "letter" if by == "letter" else "text"
            asked = [_options(e, pool, shown, self.cloze, subject) for e in pool.examples]
            flat = [option for options in asked for option in options]
            sums = iter(subject.log_likelihood(flat, self.data.rows).tolist())
            for item, example, gold, options in zip(
                items, pool.examples, gold_X, asked, strict=True
            ):
                log_p = np.asarray([next(sums) for _ in options])
                if by == "letter":
                    item |= _verdict("accuracy_letter", log_p, gold)
                    continue
                widths = [len(str(text).encode()) for text in example.row["options"]]
                scores = {"text": log_p, "text_per_byte": log_p / np.maximum(widths, 1)}
                for kind in sorted(scores, key=by.__ne__):  # the one that was asked for first
                    item |= _verdict(f"accuracy_{kind}", scores[kind], gold)
        return [*items]


def _verdict(name: str, score: np.ndarray, gold: int) -> Item:
    chosen = int(np.argmax(score))
    return {name: Total(sum=float(chosen == gold), count=1), f"{name}_chosen": chosen}


def _gold(example: Example) -> int:
    if kind_of(example.row) != "choice":
        raise ValueError(
            f"{example.where}: is no multiple-choice row; expected question, options and answer"
        )
    options = [str(option) for option in example.row["options"]]
    return answer_index(example.row["answer"], options)


def _options(
    example: Example, pool: Pool, by: str, cloze: str | None, subject: Subject
) -> list[Example]:
    """Give the question once with each option as its answer; what is scored is the option alone."""
    rendering = dataclasses.replace(pool.data.rendering, answer=by)
    view = View()
    composed = [
        compose(row, subject.tokenizer, view, rendering, example.id)
        for row in _answered(example.row, cloze)
    ]
    eos = None if subject.tokenizer is None else subject.tokenizer.eos_id
    ends = [*subject.stop_ids, *([] if eos is None else [eos])]
    made = []
    for tokens, trained in tokenize(composed, subject.tokenizer, view):
        if len(tokens) > pool.data.row_tokens:
            raise ValueError(
                f"{example.where}: {len(tokens)} tokens with an option, more than row_tokens="
                f"{pool.data.row_tokens}; raise it"
            )
        scored = trained & ~np.isin(tokens, ends)
        made.append(dataclasses.replace(example, tokens=tokens, trained=scored))
    return made


def _answered(row: Mapping[str, Any], cloze: str | None) -> list[Mapping[str, Any]]:
    """Give the row answered with each of its options."""
    if cloze is None:
        return [{**row, "answer": k} for k in range(len(row["options"]))]
    return [
        {"prompt": row["question"], "completion": cloze.replace("{option}", str(option))}
        for option in row["options"]
    ]
