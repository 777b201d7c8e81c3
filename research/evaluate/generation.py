"""What the model says, greedily, against what it should have said."""

from __future__ import annotations

import re
from collections.abc import Sequence

from research.core.parts import part, require
from research.core.protocols import View
from research.core.records import Total
from research.data.examples import Example
from research.data.pool import Data, Pool
from research.evaluate.evaluate import Item, checks_of
from research.evaluate.subject import Subject


def squeezed(text: str) -> str:
    """Fold case, and turn every run of white space into one space."""
    return " ".join(text.casefold().split())


def spoken(subject: Subject, pool: Pool, max_new_tokens: int) -> list[str]:
    """Give the model's greedy answer to every prompt of a pool."""
    prompts = pool.views(range(len(pool)), View(content="prompt"))
    return subject.answers(prompts, max_new_tokens, pool.data.rows)


def field_of(example: Example, field: str) -> str:
    """Give a row's field as text.

    Raises:
      ValueError: the row lacks it.
    """
    if example.row.get(field) is None:
        raise ValueError(
            f"{example.where} has no {field!r} to compare with; it has {sorted(example.row)}"
        )
    return str(example.row[field])


@part
class ExactMatch:
    """The share of greedy answers that equal the reference, case and white space apart.

    Attributes:
      reference: the row's field to compare with.
      pattern: a regular expression; its last match in answer and reference is compared instead (its
        first group, where it has one), and an answer without a match is wrong.
    """

    data: Data
    name: str = "exact-match"
    slice_by: tuple[str, ...] = ()
    reference: str = "completion"
    pattern: str = ""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        require(
            self,
            *checks_of(self),
            (self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens} must be positive"),
            (_compiles(self.pattern), f"pattern={self.pattern!r} is no regular expression"),
        )

    def measure(self, subject: Subject, pool: Pool) -> list[Item]:
        """Measure each answer; "found" counts those in which the pattern was found.

        Raises:
          ValueError: a reference is missing, or the pattern is not in it.
        """
        wanted = [self._wanted(example) for example in pool.examples]
        items: list[Item] = []
        for answer, right in zip(spoken(subject, pool, self.max_new_tokens), wanted, strict=True):
            said = extract(self.pattern, answer)
            item = {"exact_match": Total(sum=float(said == right), count=1)}
            if self.pattern:
                item["found"] = Total(sum=float(said is not None), count=1)
            items.append({**item, "output": answer})
        return items

    def _wanted(self, example: Example) -> str:
        reference = extract(self.pattern, field_of(example, self.reference))
        if reference is None:
            raise ValueError(
                f"{example.where}: pattern {self.pattern!r} is not in its own "
                f"{self.reference!r}; correct the pattern or the row"
            )
        return reference


def extract(pattern: str, text: str) -> str | None:
    """Give the last match of a pattern, squeezed, or None; without a pattern, all of the text."""
    if not pattern:
        return squeezed(text)
    found: Sequence = list(re.finditer(pattern, text))
    if not found:
        return None
    return squeezed(found[-1].group(1) if found[-1].re.groups else found[-1].group(0))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@part
class SlotAccuracy:
    """The share of the values of a meaning representation that the greedy answer contains.

    A representation reads "name : Alimentum | area : city centre | family friendly : no". A value
    is found where it is a substring of the answer, case and white space apart. slot_accuracy counts
    all values, yes and no as well, although a text seldom holds these words: of the E2E references
    themselves it finds 0.80. slot_accuracy_text leaves yes and no out; the references reach 0.88.

    Attributes:
      field: the row's field with the representation.
    """

    data: Data
    name: str = "slots"
    slice_by: tuple[str, ...] = ()
    field: str = "mr"
    max_new_tokens: int = 96

    def __post_init__(self) -> None:
        require(
            self,
            *checks_of(self),
            (bool(self.field), "field is empty; name the field with the representation"),
            (self.max_new_tokens > 0, f"max_new_tokens={self.max_new_tokens} must be positive"),
        )

    def measure(self, subject: Subject, pool: Pool) -> list[Item]:
        """Measure each answer.

        Raises:
          ValueError: a row has no representation, or one that cannot be read.
        """
        wanted = [slot_values(example, self.field) for example in pool.examples]
        items: list[Item] = []
        for answer, values in zip(spoken(subject, pool, self.max_new_tokens), wanted, strict=True):
            texts = [value for value in values if value not in ("yes", "no")]
            item = {"slot_accuracy": share_found(values, answer)}
            if texts:
                item["slot_accuracy_text"] = share_found(texts, answer)
            items.append({**item, "output": answer})
        return items


def share_found(values: Sequence[str], text: str) -> Total:
    """Count the values that are substrings of a text, both squeezed."""
    said = squeezed(text)
    return Total(sum=float(sum(squeezed(value) in said for value in values)), count=len(values))


def slot_values(example: Example, field: str) -> list[str]:
    """Read the values of "slot : value | slot : value".

    Raises:
      ValueError: the text does not have that form.
    """
    text = field_of(example, field)
    values = [slot.partition(":")[2].strip() for slot in text.split("|")]
    if not all(values):
        raise ValueError(
            f"{example.where}: {field} is {text!r}; expected 'slot : value | slot : value'"
        )
    return values
