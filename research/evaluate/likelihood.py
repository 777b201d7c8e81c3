"""How well the model predicts the trained tokens: loss, perplexity and bits per byte."""

from __future__ import annotations

import math

import numpy as np

from research.core.parts import part, require
from research.core.records import Total
from research.data.examples import Example
from research.data.pool import Data, Pool
from research.data.tokenizer import Tokenizer
from research.evaluate.evaluate import Item, checks_of
from research.evaluate.subject import Subject


@part
class Likelihood:
    """The mean loss over trained tokens, the masks being those of training.

    loss_nats = -sum log p / tokens; perplexity = exp(loss_nats);
    bits_per_byte = -sum log2 p / UTF-8 bytes of the text that the trained tokens stand for.
    """

    data: Data
    name: str = "likelihood"
    slice_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self, *checks_of(self))

    def measure(self, subject: Subject, pool: Pool) -> list[Item]:
        """Measure each example; without a tokenizer there are no bytes."""
        sum_X = subject.log_likelihood(pool.examples, self.data.rows)
        items: list[Item] = []
        for example, log_likelihood in zip(pool.examples, sum_X.tolist(), strict=True):
            item = {"loss_nats": Total(sum=-log_likelihood, count=int(example.trained.sum()))}
            if subject.tokenizer is not None:
                count = predicted_bytes(example, subject.tokenizer)
                if count:
                    bits = -log_likelihood / math.log(2)
                    item["bits_per_byte"] = Total(sum=bits, count=count)
            items.append(item)
        return items


def predicted_bytes(example: Example, tokenizer: Tokenizer) -> int:
    """Count the UTF-8 bytes that the trained tokens add to the decoded text; specials add none."""

    def decoded(num_tokens: int) -> int:
        return len(tokenizer.decode(example.tokens[:num_tokens].tolist()).encode())

    edges = np.flatnonzero(np.diff(example.trained.astype(np.int8), prepend=0, append=0))
    return sum(
        decoded(last) - decoded(first) for first, last in zip(edges[::2], edges[1::2], strict=True)
    )
