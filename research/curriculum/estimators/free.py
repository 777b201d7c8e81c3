"""Difficulty as training itself saw it: costs nothing, knows only what was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from research.core.parts import part, require


@part
class Free:
    """Score by the mean loss or entropy of an example's trained tokens, when it was last seen.

    Attributes:
      of: "loss" or "entropy", as the objective reports it for each example.

    Source: ranking by the last recorded loss: Loshchilov and Hutter 2015, arXiv 1511.06343.
    Law: the signal of an example that was never trained on is unknown, not 0.
    """

    of: Literal["loss", "entropy"] = "loss"

    views = ()

    def __post_init__(self) -> None:
        require(
            self, (self.of in ("loss", "entropy"), f"of={self.of!r}: choose 'loss' or 'entropy'")
        )

    def read(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Give (ids, mean nats a token), flat, in the order in which the rows were trained on.

        Raises:
          ValueError: the objective does not report the signal.
        """
        name = f"{self.of}_nats"
        if name not in rows:
            raise ValueError(
                f"Free(of={self.of!r}) reads {name!r}, but the objective reports {sorted(rows)}; "
                "turn its report on"
            )
        tokens = np.asarray(rows["tokens"], np.float64).ravel()
        sums = np.asarray(rows[name], np.float64).ravel()
        signal = np.divide(sums, tokens, out=np.full_like(sums, np.nan), where=tokens > 0)
        return np.asarray(rows["id"]).ravel(), signal
