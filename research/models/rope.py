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

    def frequencies(self, inverse_H2: np.ndarray, rope: Rope, length: jax.Array) -> np.ndarray:
        del rope, length
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

    def frequencies(self, inverse_H2: np.ndarray, rope: Rope, length: jax.Array) -> np.ndarray:
        del rope, length
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

    def frequencies(self, inverse_H2: np.ndarray, rope: Rope, length: jax.Array) -> np.ndarray:
        del length
        dim = 2 * inverse_H2.size

        def dimension(rotations: float) -> float:
            turns = self.original_max_positions / (rotations * 2 * math.pi)
            return dim * math.log(turns) / (2 * math.log(rope.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high = high + 0.001 if low == high else high
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        return inverse_H2 / self.factor * ramp + inverse_H2 * (1 - ramp)

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin (attention temperature)."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.heat(self.mscale) / self.heat(self.mscale_all_dim)
        return self.heat(1.0)

    def heat(self, mscale: float) -> float:
        """0.1 mscale ln(factor) + 1, or 1 where nothing is stretched."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@part
class DynamicScaling:
    """Raise the base with the length of a sequence, once it exceeds what the model was trained on.

    base = theta (factor length / original - (factor - 1)) ^ (dim / (dim - 2)), length the largest
    position of the sequence + 1. Cached decoding beyond the original length keeps the keys it has,
    rotated for the length they had, and so is not the full forward pass (as in transformers).

    Source: "dynamic NTK" in transformers' `_compute_dynamic_ntk_parameters`.
    """

    factor: float
    original_max_positions: int

    def frequencies(self, inverse_H2: np.ndarray, rope: Rope, length: jax.Array) -> jax.Array:
        dim = 2 * inverse_H2.size
        long = jnp.maximum(length, self.original_max_positions).astype(jnp.float32)
        stretch = self.factor * long / self.original_max_positions - (self.factor - 1)
        base = rope.theta * stretch ** (dim / (dim - 2))
        return base ** (-np.arange(0, dim, 2, dtype=np.float32) / dim)

    @property
    def amplitude(self) -> float:
        return 1.0


@part
class LongScaling:
    """Divide each frequency by its own factor, one list for short sequences and one for long ones.

    A sequence is long when its largest position + 1 exceeds `original_max_positions`; one that
    grows over it while decoding keeps the keys it has (as in transformers).

    Attributes:
      short_factors, long_factors: one a frequency.
      attention_factor: the factor on cos and sin.

    Source: LongRoPE, Ding et al. 2024, arXiv 2402.13753; the values are Phi-3's.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float

    def frequencies(self, inverse_H2: np.ndarray, rope: Rope, length: jax.Array) -> jax.Array:
        del rope
        short, long = (
            np.asarray(inverse_H2 / np.asarray(factors, np.float32), np.float32)
            for factors in (self.short_factors, self.long_factors)
        )
        return jnp.where(length > self.original_max_positions, long, short)

    @property
    def amplitude(self) -> float:
        return self.attention_factor


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongScaling


@part
class Rope:
    """Rotary embedding of base `theta`. Source: Su et al. 2021, arXiv 2104.09864.

    Attributes:
      fraction: share of each head that is rotated, its first numbers.
      interleaved: pairs are neighbours (2i, 2i + 1); False: halves, (i, i + dim / 2).
    """

    theta: float = 10000.0
    scaling: Scaling | None = None
    fraction: float = 1.0
    interleaved: bool = False

    def cos_sin(
        self, positions_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"], dim: int
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
        """Give cos and sin for each position, float32, both halves filled.

        Args:
          segments_BT: which sequence a position belongs to; a scaling may go by its length.
          dim: how many numbers of a head are rotated.
        """
        inverse = 1.0 / self.theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
        amplitude = 1.0
        if self.scaling is not None:
            length_BT1 = sequence_lengths(positions_BT, segments_BT)[..., None]
            inverse = self.scaling.frequencies(inverse, self, length_BT1)
            amplitude = self.scaling.amplitude
        angle = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(inverse, jnp.float32)
        angle = jnp.concatenate([angle, angle], axis=-1)
        return jnp.cos(angle) * amplitude, jnp.sin(angle) * amplitude

    def rotate(
        self, x_BTKH: Float[Array, "B T *heads H"], cos_sin: tuple[jax.Array, jax.Array]
    ) -> Float[Array, "B T *heads H"]:
        """Rotate each head by its position, in float32, and return at the input's dtype.

        Interleaved pairs come out as halves: queries and keys alike, so that scores are the same.
        """
        cos, sin = cos_sin
        dim = cos.shape[-1]
        lift = (slice(None), slice(None), *([None] * (x_BTKH.ndim - 3)))
        x = x_BTKH[..., :dim].astype(jnp.float32)
        if self.interleaved:
            x = jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
        first, second = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
        x = (x * cos[lift] + turned * sin[lift]).astype(x_BTKH.dtype)
        rest = x_BTKH[..., dim:]
        return jnp.concatenate([x, rest], axis=-1) if rest.shape[-1] else x


def sequence_lengths(
    positions_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Give, for each token, the largest position of its sequence + 1."""
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jnp.max(jnp.where(same, positions_BT[:, None, :], 0), axis=-1) + 1
