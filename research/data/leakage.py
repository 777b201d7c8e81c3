"""Rows of the pool that a test set holds too, found by normalised text."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from research.data.rows import kind_of

# A word, or one character of a script that writes none of its words apart.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak:
    """A row of the pool that tells about a row of the test set.

    Attributes:
      pool_id, test_id: names of the two rows.
      share: the part of the test row's word n-grams that the pool row holds; 1.0: the same text.
      equal: whether the texts are equal, apart from case, punctuation and spacing.
    """

    pool_id: str
    test_id: str
    share: float
    equal: bool


def normalised(text: str) -> str:
    """Give the words of a text alone: NFKC, lower case, no marks, punctuation or spacing."""
    if not text.isascii():
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text))
        text = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(_WORD.findall(text.casefold()))


def comparable(row: Mapping[str, Any]) -> str:
    """Give what must not be in both sets: what is asked, or the whole text where nothing is.

    Multiple choice: the question with its options in alphabetical order, so that short questions
    asked of different options differ. Conversations: all user turns.
    """
    kind = kind_of(row)
    if kind == "input_ids":
        return " ".join(str(i) for i in row["input_ids"])
    if kind == "choice":
        return "\n".join((str(row["question"]), *sorted(str(o) for o in row["options"])))
    turns = row["messages"] if kind == "messages" else row.get("prompt", row.get("text"))
    if isinstance(turns, str):
        return turns
    users = (turn for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "user")
    return "\n".join(str(turn.get("content")) for turn in users)


def leaked(
    pool_texts: Iterable[tuple[str, str]],
    test_texts: Iterable[tuple[str, str]],
    *,
    ngram_words: int = 13,
    min_share: float = 0.8,
) -> list[Leak]:
    """Find rows of the pool whose text a test row repeats; both are pairs of (id, text).

    A pool row leaks if the two normalised texts are equal, or if it holds at least `min_share` of a
    test row's n-grams of `ngram_words` words. Test rows shorter than that are compared as a whole.

    Source: 13-gram overlap as in Brown et al. 2020, "Language Models are Few-Shot Learners",
    appendix C; a share of them rather than one, because questions share phrases.
    """
    tests = [(id, normalised(text)) for id, text in test_texts]
    whole: dict[str, str] = {text: id for id, text in reversed(tests) if text}
    holders: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for number, (_, text) in enumerate(tests):
        grams = _ngrams(text, ngram_words)
        sizes.append(len(grams))
        for gram in grams:
            holders[gram].append(number)
    found = []
    for pool_id, text in ((id, normalised(text)) for id, text in pool_texts):
        if text in whole:
            found.append(Leak(pool_id=pool_id, test_id=whole[text], share=1.0, equal=True))
            continue
        counts: dict[int, int] = defaultdict(int)
        for gram in _ngrams(text, ngram_words):
            for number in holders.get(gram, ()):
                counts[number] += 1
        best = max(counts, key=lambda n: (counts[n] / sizes[n], -n), default=None)
        if best is not None and counts[best] >= min_share * sizes[best]:
            share = counts[best] / sizes[best]
            found.append(Leak(pool_id=pool_id, test_id=tests[best][0], share=share, equal=False))
    return found


def _ngrams(text: str, size: int) -> set[str]:
    words = text.split(" ")
    return {" ".join(words[k : k + size]) for k in range(len(words) - size + 1)}
