"""Another model as the scorer: a smaller one, a reference, a surrogate."""

from __future__ import annotations

from research.core.parts import part, require
from research.core.protocols import Estimator, Guided, Weights


@part
class ScoredBy:
    """Score by an estimator, computed with the weights of another model.

    That model never changes, so it is asked once a run: its scores of the first round stay, are in
    every checkpoint, and are charged once, at its own size. Its weights are on the devices only
    while it scores. Rows are shown to it in its own tokens and its own chat template.

    Attributes:
      estimator: what is computed, such as `PrefixEntropy(...)`.
      model: `Pretrained(folder=...)`.
      same_tokens: refuse a model that does not read the very tokens that training feeds, as where
        losses of two models are subtracted.

    Source: a small model chooses for a large one: Superfiltering, arXiv 2402.00530.
    Law: scored by its own starting weights, a model's first scores are the same bit for bit.
    """

    estimator: Estimator | Guided
    model: Weights
    same_tokens: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            (
                hasattr(self.estimator, "score"),
                f"estimator={self.estimator!r} asks no model; give one that does, and combine "
                "outside: standardised(ScoredBy(...)) + ...",
            ),
            (
                hasattr(self.model, "resolve"),
                f"model={self.model!r} cannot be found on disk; say Pretrained(folder=...)",
            ),
        )
