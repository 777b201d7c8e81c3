"""How moments are kept between two steps: in float32, or rounded at random to 16 or 8 bits."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.core.axes import declared
from research.core.parts import part, require
from research.core.tree import Path, flatten, unflatten
from research.optimizers.matrices import factor_names, sides


class Moments(Protocol):
    """How moments are kept: a part. An update reads them, computes in float32, and keeps them."""

    def keep(self, moments: Any, seed: jax.Array, signed: bool) -> Any:
        """Give what is stored of float32 moments; `signed`: they may be negative."""
        ...

    def read(self, kept: Any, signed: bool) -> Any:
        """Give float32 moments."""
        ...


@part
class Float32:
    """Keep moments as they are: 4 bytes an element."""

    def keep(self, moments: Any, seed: jax.Array, signed: bool) -> Any:
        """Give them as they are."""
        del seed, signed
        return moments

    def read(self, kept: Any, signed: bool) -> Any:
        """Give them as they are."""
        del signed
        return kept


@part
class Bfloat16:
    """Keep moments in bfloat16, rounded at random: 2 bytes an element.

    A second moment changes by (1 - b2) of itself, 0.1 %, where bfloat16 has steps of 0.4 to 0.8 %:
    rounded to nearest it never falls. Rounded up with the probability of the remainder it is right
    on average.
    """

    def keep(self, moments: Any, seed: jax.Array, signed: bool) -> Any:
        """Round every leaf."""
        del signed

        def rounded(path: Path, x: jax.Array) -> jax.Array:
            bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (_noise(path, x, seed) >> 16)
            return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)

        return unflatten({path: rounded(path, x) for path, x in flatten(moments).items()})

    def read(self, kept: Any, signed: bool) -> Any:
        """Give float32."""
        del signed
        return jax.tree.map(lambda x: x.astype(jnp.float32), kept)


@part
class EightBit:
    """Keep moments of kernels as 8-bit codes: x = s (q / 127)^4, or s (q / 255)^8 where x >= 0.

    s_io = min(row_i, column_o), the largest magnitudes of its row and its column of the matrix that
    the kernel's name declares, float32. Codes lie where the kernel lies, row and column where its
    inputs and its outputs do: nothing is gathered, and what is stored does not depend on the mesh.
    A root is rounded because moments span many magnitudes; at random, so that the mean is right.
    Vectors and small matrices stay float32.

    Attributes:
      min_side: a matrix whose smaller side is shorter stays float32.

    Source: 8-bit states with a normalisation of their own for each part of a tensor and codes that
      are dense near zero: Dettmers et al. 2021, arXiv 2110.02861; the minimum of row and column in
      place of their blocks: Li et al. 2023, arXiv 2309.01507, section 4.2.
    """

    min_side: int = 16

    def __post_init__(self) -> None:
        require(self, (self.min_side > 0, f"min_side={self.min_side} must be positive"))

    def keep(self, moments: Any, seed: jax.Array, signed: bool) -> Any:
        """Give {"codes": a tree like the moments, "scales": row and column of those with codes}."""
        codes, scales = {}, {}
        for path, x in flatten(moments).items():
            axes = declared(path[-1])
            if not axes.is_kernel or min(axes.matrix(x.shape)[1:]) < self.min_side:
                codes[path] = x
                continue
            inputs, outputs = sides(axes)
            row, column = factor_names(axes)
            size = jnp.abs(x)
            scales[path] = {row: jnp.max(size, outputs), column: jnp.max(size, inputs)}
            codes[path] = _encode(x, _scale(path[-1], scales[path]), _noise(path, x, seed), signed)
        return {"codes": unflatten(codes), "scales": unflatten(scales)}

    def read(self, kept: Any, signed: bool) -> Any:
        """Give float32."""
        moments = {}
        for path, codes in flatten(kept["codes"]).items():
            if codes.dtype == jnp.float32:
                moments[path] = codes
                continue
            scales = kept["scales"]
            for name in path:
                scales = scales[name]
            moments[path] = _scale(path[-1], scales) * _decode(codes.astype(jnp.float32), signed)
        return unflatten(moments)


def seed_of(count: jax.Array, moment: int) -> jax.Array:
    """Give what rounds a moment after `count` updates: a resumed run rounds alike."""
    return _mixed(count.astype(jnp.uint32) * 4 + moment)


def _noise(path: Path, x: jax.Array, seed: jax.Array) -> jax.Array:
    """Give 32 bits an element, by its place in its matrix, its parameter's name and the seed.

    Rounding needs no better noise than a good hash, which is quicker to compile than a generator
    and needs nothing from another device. Layers of a stack share it, as if each were alone.
    """
    shape = x.shape[x.ndim - len(declared(path[-1]).letters) :]
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    name = jnp.uint32(zlib.crc32("/".join(path).encode()))
    return jnp.broadcast_to(_mixed(place ^ _mixed(seed ^ name)), x.shape)


def _mixed(h: jax.Array) -> jax.Array:
    """Spread 32 bits over 32 bits.

    Source: the finaliser of MurmurHash3 (Appleby, public domain), after a step of Weyl's sequence.
    """
    h = (h + 1) * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _scale(name: str, scales: Any) -> jax.Array:
    """Give min(row, column) of every element."""
    axes = declared(name)
    inputs, outputs = sides(axes)
    row, column = (scales[factor] for factor in factor_names(axes))
    return jnp.minimum(jnp.expand_dims(row, outputs), jnp.expand_dims(column, inputs))


def _encode(x: jax.Array, scale: jax.Array, noise: jax.Array, signed: bool) -> jax.Array:
    """Give the code below x, or the next one with the probability that makes the mean x."""
    most = 127 if signed else 255
    size = jnp.where(scale > 0, jnp.abs(x) / jnp.where(scale > 0, scale, 1.0), 0.0)
    below = jnp.floor(most * _root(size, signed))
    low, high = _power(below / most, signed), _power((below + 1) / most, signed)
    up = (noise >> 8).astype(jnp.float32) * 2.0**-24 * (high - low) < size - low
    code = jnp.minimum(below + up, most)
    return (jnp.sign(x) * code).astype(jnp.int8) if signed else code.astype(jnp.uint8)


def _decode(code: jax.Array, signed: bool) -> jax.Array:
    """Give the value of a code, as a share of its scale."""
    most = 127 if signed else 255
    size = _power(jnp.abs(code) / most, signed)
    return jnp.sign(code) * size if signed else size


def _power(y: jax.Array, signed: bool) -> jax.Array:
    """Give y^4, or y^8 of what is never negative and is used under a square root."""
    return jnp.square(jnp.square(y)) if signed else jnp.square(jnp.square(jnp.square(y)))


def _root(y: jax.Array, signed: bool) -> jax.Array:
    """Undo `_power`."""
    return jnp.sqrt(jnp.sqrt(y)) if signed else jnp.sqrt(jnp.sqrt(jnp.sqrt(y)))
