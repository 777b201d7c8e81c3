"""Sigmoid top-k whose correction is solved from a quantile, so that loads balance in a step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from research.core.parts import part, require
from research.models.moe.routing import Routing, Tokens, best
from research.models.moe.sigmoid_top_k import weigh


@part
class QuantileBalanced:
    """s = sigmoid(logits); a token takes the k experts of largest s + correction, and says what
    each of the others lacked.

    A token's cutoff is its (k+1)-th largest corrected score; an expert's shortfall is that cutoff
    minus its own s: the correction from which on the token takes it, the others' standing still.
    So the k/E quantile of an expert's shortfalls over the tokens is the correction that gives it
    its share of k/E. `research/models/moe/balancing.py: QuantileBalance` sets the correction to it
    between steps, outside the gradient; a token is routed with the correction that was there
    before it came, so no law is broken.

    Attributes:
      normalise, scale: of the weights, as in `SigmoidTopK`.

    Source: J. Su, "MoE Odyssey 6: Optimal allocation for equilibrium" (kexue.fm/archives/11619),
    where cutoffs and quantiles are the two alternating steps of the dual of the balanced assignment
    problem; Kimi K3 technical report, section 2.3.3, equations 13 and 14, appendices C and D.
    """

    breaks: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = True
    needs_correction: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = False

    normalise: bool = True
    scale: float = 1.0

    def require(self, num_experts: int, experts_per_token: int) -> None:
        """Refuse to choose all experts: there is no cutoff."""
        require(
            self,
            (
                experts_per_token < num_experts,
                f"experts_per_token={experts_per_token} leaves none of num_experts={num_experts} "
                "out, so that there is no cutoff; choose fewer, or SoftmaxTopK",
            ),
        )

    def route(
        self,
        logits_ME: jax.Array,
        experts_per_token: int,
        tokens: Tokens,
        correction_E: jax.Array | None = None,
    ) -> Routing:
        """Choose experts; see `Router`."""
        s_ME = jax.nn.sigmoid(logits_ME)
        corrected_ME = s_ME if correction_E is None else s_ME + correction_E
        experts_MA = best(corrected_ME, experts_per_token + 1)
        cutoff_M1 = jnp.take_along_axis(corrected_ME, experts_MA[:, -1:], axis=1)
        routing = weigh(s_ME, experts_MA[:, :-1], tokens, self.normalise, self.scale)
        return dataclasses.replace(routing, shortfall_ME=jax.lax.stop_gradient(cutoff_M1 - s_ME))
