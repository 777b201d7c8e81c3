"""What there is still to learn: the loss beyond that of a reference model."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from research.core.parts import part
from research.core.protocols import Weights
from research.curriculum.estimators.scored_by import ScoredBy
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss


@part
class ExcessLoss:
    """Score by L(x; theta) - L(x; reference), both mean losses over the trained targets, in nats.

    What the reference makes of it decides the name. Trained on clean data of the target domain it
    is the excess loss of Rho-1, taken over examples where Rho-1 takes it over tokens. Trained on
    rows held out from the pool it is the reducible holdout loss: L(x; reference) is then the
    irreducible loss, high where an answer is noise that nobody can learn. RHO-LOSS chooses inside
    large batches at every step; here a policy chooses once a round.

    Attributes:
      reference: `Pretrained(folder=...)`; it must read the same tokens.

    Source: Mindermann et al. 2022 (RHO-LOSS), arXiv 2206.07137; Lin et al. 2024 (Rho-1),
    arXiv 2404.07965.
    Law: 0 where the reference is the model itself; the reference is asked once a run.
    """

    reference: Weights

    @property
    def terms(self) -> tuple[Any, Any]:
        loss = TeacherForcedLoss()
        return (loss, ScoredBy(estimator=loss, model=self.reference, same_tokens=True))

    def combine(self, signal_YX: Float[np.ndarray, "Y X"]) -> np.ndarray:
        """Subtract."""
        return signal_YX[0] - signal_YX[1]
