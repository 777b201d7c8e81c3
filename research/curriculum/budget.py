"""What two arms have in common: the number of steps, or the compute with scoring charged."""

from __future__ import annotations

import math

from research.core.parts import part


@part
class EqualSteps:
    """Every arm makes the control's steps; what scoring costs comes on top and is reported."""

    def steps(
        self,
        control_steps: int,
        step_flops: float,
        scoring_flops: float,
        control_step_flops: float | None = None,
    ) -> int:
        """Give the control's steps."""
        del step_flops, scoring_flops, control_step_flops
        return control_steps


@part
class EqualCompute:
    """Every arm spends the control's FLOPs; scoring is paid for with steps.

    steps = floor((control_steps * control_step_flops - scoring_flops) / step_flops)
    """

    def steps(
        self,
        control_steps: int,
        step_flops: float,
        scoring_flops: float,
        control_step_flops: float | None = None,
    ) -> int:
        """Give the steps that are left when the scoring of the whole run is paid.

        Args:
          control_steps: steps of the arm that scores nothing.
          step_flops: analytic FLOPs of one training step of this arm.
          scoring_flops: analytic FLOPs of all scorings of this arm.
          control_step_flops: of one step of the control; None: the same as this arm's.

        Raises:
          ValueError: scoring alone costs the whole budget.
        """
        ratio = 1.0 if control_step_flops is None else control_step_flops / step_flops
        paid = scoring_flops / step_flops
        left = control_steps * ratio - paid
        steps = math.floor(left + 1e-9)  # 1e-9: float noise must not cost a step
        if steps < 1:
            raise ValueError(
                f"scoring costs as much as {paid:.1f} steps, the control has {control_steps}: "
                "nothing is left to train with; lower rounds, rescore_fraction or the prefix, or "
                "raise clock.steps"
            )
        return steps
