"""Learning rates as functions of the fraction of a span (run or round) that is done."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from research.core.parts import part, require


def _warmed(schedule: Any, fraction: jax.Array, after: jax.Array) -> jax.Array:
    """Rise linearly from 0 to the peak over the warm-up, then follow `after` (a factor)."""
    warmup = schedule.warmup_fraction
    rise = fraction / jnp.maximum(warmup, jnp.finfo(jnp.float32).tiny)
    return schedule.peak_lr * jnp.where(fraction < warmup, rise, after)


def _done(fraction: jax.Array, start: Any) -> jax.Array:
    """Give how much of the stretch from `start` to the end is done, in [0, 1]."""
    return jnp.clip((fraction - start) / (1.0 - start), 0.0, 1.0)


def _require_shape(schedule: Any, *more: tuple[bool, str]) -> None:
    final = getattr(schedule, "final_fraction", 0.0)
    warmup = schedule.warmup_fraction
    require(
        schedule,
        (schedule.peak_lr > 0, f"peak_lr={schedule.peak_lr} must be positive"),
        (0 <= warmup < 1, f"warmup_fraction={warmup} must lie in [0, 1)"),
        (0 <= final <= 1, f"final_fraction={final} must lie in [0, 1]: it is end / peak"),
        *more,
    )


@part
class Constant:
    """Stay at the peak after the warm-up."""

    peak_lr: float
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require_shape(self)

    def __call__(self, fraction: jax.Array) -> jax.Array:
        """Give the learning rate at `fraction` in [0, 1]."""
        return _warmed(self, fraction, jnp.float32(1.0))


@part
class Linear:
    """Fall on a straight line from the peak to final_fraction x peak."""

    peak_lr: float
    warmup_fraction: float = 0.0
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require_shape(self)

    def __call__(self, fraction: jax.Array) -> jax.Array:
        """Give the learning rate at `fraction` in [0, 1]."""
        done = _done(fraction, self.warmup_fraction)
        return _warmed(self, fraction, 1.0 - (1.0 - self.final_fraction) * done)


@part
class Cosine:
    """Fall on half a cosine from the peak to final_fraction x peak.

    Source: Loshchilov & Hutter 2016, arXiv 1608.03983 (without restarts).
    """

    peak_lr: float
    warmup_fraction: float = 0.0
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require_shape(self)

    def __call__(self, fraction: jax.Array) -> jax.Array:
        """Give the learning rate at `fraction` in [0, 1]."""
        fall = 0.5 * (1.0 - jnp.cos(jnp.pi * _done(fraction, self.warmup_fraction)))
        return _warmed(self, fraction, 1.0 - (1.0 - self.final_fraction) * fall)


@part
class WarmupStableDecay:
    """Stay at the peak, then fall on a straight line over the last decay_fraction of the span.

    Source: Hu et al. 2024, arXiv 2404.06395.
    """

    peak_lr: float
    warmup_fraction: float = 0.0
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        decay = self.decay_fraction
        _require_shape(
            self,
            (
                0 < decay <= 1 - self.warmup_fraction,
                f"decay_fraction={decay} must be positive and leave room for warmup_fraction="
                f"{self.warmup_fraction}; without a decay take Constant",
            ),
        )

    def __call__(self, fraction: jax.Array) -> jax.Array:
        """Give the learning rate at `fraction` in [0, 1]."""
        done = _done(fraction, 1.0 - self.decay_fraction)
        return _warmed(self, fraction, 1.0 - (1.0 - self.final_fraction) * done)
