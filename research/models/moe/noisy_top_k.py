"""Softmax top-k over noisy logits while training."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.models.moe.routing import Routing, Tokens
from research.models.moe.softmax_top_k import SoftmaxTopK


@part
class NoisyTopK:
    """SoftmaxTopK on logits + std * normal noise, where there is a key; without one, no noise.

    Attributes:
      std: of the noise; None: 1 / num_experts.
      normalise: as in `SoftmaxTopK`.

    Source: Riquelme et al. 2021, arXiv 2106.05974, section 2.1 (the noise's fixed size); noise
    before top-k: Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 5.
    """

    breaks: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True

    std: float | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            (
                self.std is None or self.std > 0,
                f"std={self.std} must be positive, or None for 1 / num_experts; for no noise "
                "choose SoftmaxTopK",
            ),
        )

    def require(self, num_experts: int, experts_per_token: int) -> None:
        """Any sizes will do."""
        del num_experts, experts_per_token

    def route(
        self,
        logits_ME: jax.Array,
        experts_per_token: int,
        tokens: Tokens,
        correction_E: jax.Array | None = None,
    ) -> Routing:
        """Choose experts; see `Router`."""
        if tokens.key is not None:
            std = 1.0 / logits_ME.shape[1] if self.std is None else self.std
            noise_ME = jax.random.normal(tokens.key, logits_ME.shape, jnp.float32)
            logits_ME = logits_ME + std * noise_ME
        router = SoftmaxTopK(normalise=self.normalise)
        return router.route(logits_ME, experts_per_token, tokens, correction_E)
