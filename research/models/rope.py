"""Rotary position embeddings and the scalings that stretch them to longer contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.core.parts import part


@part
class LinearScaling:
    """Divide every frequency by `factor`. Source: Chen et al. 2023, arXiv 2306.15595."""

    factor: float

    def frequencies(self, inverse_H2: np.ndarray, theta: float, head_dim: int) -> np.ndarray:
        del theta, head_dim
        return inverse_H2 / self.factor

    @property
    def amplitude(self) -> float:
        return 1.0


@part
class Llama3Scaling:
    """Stretch long wavelengths, keep short ones, blend between. Source: Llama 3.1 release code."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def frequencies(self, inverse_H2: np.ndarray, theta: float, head_dim: int) -> np.ndarray:
        del theta, head_dim
        wavelength = 2 * math.pi / inverse_H2
        low = self.original_max_positions / self.low_freq_factor
        high = self.original_max_positions / self.high_freq_factor
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * inverse_H2 / self.factor + smooth * inverse_H2
        scaled = np.where(wavelength > low, inverse_H2 / self.factor, inverse_H2)
        return np.where((wavelength <= low) & (wavelength >= high), blended, scaled)

    @property
    def amplitude(self) -> float:
        return 1.0


@part
class YarnScaling:
    """Interpolate by parts and heat the attention. Source: Peng et al. 2023, arXiv 2309.00071."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def frequencies(self, inverse_H2: np.ndarray, theta: float, head_dim: int) -> np.ndarray:
        def dimension(rotations: float) -> float:
            turns = self.original_max_positions / (rotations * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high = high + 0.001 if low == high else high
        ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
        return inverse_H2 / self.factor * ramp + inverse_H2 * (1 - ramp)

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin (attention temperature)."""
        if self.attention_factor is not None:
            return self.attention_factor

        def heat(mscale: float) -> float:
            return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        if self.mscale and self.mscale_all_dim:
            return heat(self.mscale) / heat(self.mscale_all_dim)
        return heat(1.0)


@part
class Rope:
    """Rotary embedding of base `theta`, half-split. Source: Su et al. 2021, arXiv 2104.09864."""

    theta: float = 10000.0
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None

    def cos_sin(
        self, positions_BT: Int[Array, "B T"], head_dim: int
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
        """Give cos and sin for each position, float32, both halves filled."""
        inverse = 1.0 / self.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        amplitude = 1.0
        if self.scaling is not None:
            inverse = self.scaling.frequencies(inverse, self.theta, head_dim)
            amplitude = self.scaling.amplitude
        angle = positions_BT[..., None].astype(jnp.float32) * np.asarray(inverse, np.float32)
        angle = jnp.concatenate([angle, angle], axis=-1)
        return jnp.cos(angle) * amplitude, jnp.sin(angle) * amplitude


def rotate(
    x_BTKH: Float[Array, "B T *heads H"], cos_BTH: jax.Array, sin_BTH: jax.Array
) -> Float[Array, "B T *heads H"]:
    """Rotate each head by its position, in float32, and return at the input's dtype."""
    lift = (slice(None), slice(None), *([None] * (x_BTKH.ndim - 3)))
    x = x_BTKH.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos_BTH[lift] + turned * sin_BTH[lift]).astype(x_BTKH.dtype)
