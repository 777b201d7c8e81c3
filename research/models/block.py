"""One layer: attention and a feed-forward, each a branch that is added to the residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from research.core.layout import Placement
from research.core.weights import contract, value_of
from research.models.architecture import Architecture
from research.models.feedforward import FeedForward, biased
from research.models.moe.experts import MixtureOfExperts
from research.models.norms import layer_norm, rms_norm
from research.models.parameters import parameter

CosSin = tuple[jax.Array, jax.Array] | None


class Attention(nnx.Module):
    """Grouped-query attention: what comes before the scores, and what comes after the mixture."""

    query_D_KGH: nnx.Param
    key_D_KH: nnx.Param
    value_D_KH: nnx.Param
    out_KGH_D: nnx.Param
    query_bias_KGH: nnx.Param
    key_bias_KH: nnx.Param
    value_bias_KH: nnx.Param
    out_bias_D: nnx.Param
    query_norm_H: nnx.Param
    key_norm_H: nnx.Param
    query_norm_KGH: nnx.Param
    key_norm_KH: nnx.Param
    sinks_KG: nnx.Param

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        self.arch, self.place = arch, place
        names = ["query_D_KGH", "key_D_KH", "value_D_KH", "out_KGH_D"]
        names += ["query_bias_KGH", "key_bias_KH", "value_bias_KH"] if arch.qkv_bias else []
        names += ["out_bias_D"] if arch.out_bias else []
        names += ["query_norm_H", "key_norm_H"] if arch.query_key_norm else []
        names += ["query_norm_KGH", "key_norm_KH"] if arch.projection_norm else []
        names += ["sinks_KG"] if arch.sinks else []
        for name in names:
            drawn = parameter(name, key, arch.sizes, arch.init_std, arch.norm_offset)
            setattr(self, name, drawn)

    def project(
        self, x_BTD: jax.Array, rotate: Callable[[jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Give rotated queries [B, T, K, G, H] and keys, and values, both [B, T, K, H]."""
        arch = self.arch
        query = contract("BTD,DKGH->BTKGH", x_BTD, self.query_D_KGH)
        key = contract("BTD,DKH->BTKH", x_BTD, self.key_D_KH)
        value = contract("BTD,DKH->BTKH", x_BTD, self.value_D_KH)
        if arch.qkv_bias:
            query = biased(query, self.query_bias_KGH)
            key, value = biased(key, self.key_bias_KH), biased(value, self.value_bias_KH)
        if arch.query_key_norm:
            query = rms_norm(query, self.query_norm_H, arch.norm_eps, arch.norm_offset)
            key = rms_norm(key, self.key_norm_H, arch.norm_eps, arch.norm_offset)
        if arch.projection_norm:
            query = rms_norm(query, self.query_norm_KGH, arch.norm_eps, arch.norm_offset)
            key = rms_norm(key, self.key_norm_KH, arch.norm_eps, arch.norm_offset)
        if arch.qkv_clip is not None:
            query, key, value = (
                jnp.clip(x, -arch.qkv_clip, arch.qkv_clip) for x in (query, key, value)
            )
        query, key = rotate(query), rotate(key)
        return self.place.constrain(query, "BTKGH"), self.place.constrain(key, "BTKH"), value

    def close(self, mixed_BTKGH: jax.Array) -> jax.Array:
        """Bring the heads back to the residual width."""
        out_BTD = contract("BTKGH,KGHD->BTD", mixed_BTKGH, self.out_KGH_D)
        return biased(out_BTD, self.out_bias_D) if self.arch.out_bias else out_BTD

    @property
    def sinks(self) -> jax.Array | None:
        """The score of each head's sink, float32, or None."""
        return value_of(self.sinks_KG).astype(jnp.float32) if self.arch.sinks else None


class LatentAttention(nnx.Module):
    """Multi-head latent attention: keys and values grow from one latent a token.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1, equations 9 to 19.
    """

    query_D_KGH: nnx.Param
    query_down_D_I: nnx.Param
    query_norm_I: nnx.Param
    query_up_I_KGH: nnx.Param
    latent_D_Q: nnx.Param
    latent_norm_J: nnx.Param
    key_value_J_KU: nnx.Param
    out_KW_D: nnx.Param
    latent_bias_Q: nnx.Param
    query_down_bias_I: nnx.Param
    out_bias_D: nnx.Param

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement):
        self.arch, self.place = arch, place
        latent = arch.latent
        direct = latent is not None and latent.query_rank is None
        names = ["query_D_KGH"] if direct else ["query_down_D_I", "query_norm_I", "query_up_I_KGH"]
        names += ["latent_D_Q", "latent_norm_J", "key_value_J_KU", "out_KW_D"]
        if arch.qkv_bias:
            names += ["latent_bias_Q"] + ([] if direct else ["query_down_bias_I"])
        names += ["out_bias_D"] if arch.out_bias else []
        for name in names:
            setattr(self, name, parameter(name, key, arch.sizes, arch.init_std))

    def project(
        self, x_BTD: jax.Array, rotate: Callable[[jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Give queries [B, T, K, 1, H], keys [B, T, K, H] and values [B, T, K, W]."""
        arch, latent = self.arch, self.arch.latent
        assert latent is not None
        nope = latent.nope_dim
        if latent.query_rank is None:
            query = contract("BTD,DKGH->BTKGH", x_BTD, self.query_D_KGH)
        else:
            down = contract("BTD,DI->BTI", x_BTD, self.query_down_D_I)
            down = biased(down, self.query_down_bias_I) if arch.qkv_bias else down
            down = rms_norm(down, self.query_norm_I, latent.norm_eps)
            query = contract("BTI,IKGH->BTKGH", down, self.query_up_I_KGH)
        query = jnp.concatenate([query[..., :nope], rotate(query[..., nope:])], axis=-1)
        both = contract("BTD,DQ->BTQ", x_BTD, self.latent_D_Q)
        both = biased(both, self.latent_bias_Q) if arch.qkv_bias else both
        low = rms_norm(both[..., : latent.kv_rank], self.latent_norm_J, latent.norm_eps)
        shared = rotate(both[..., None, latent.kv_rank :])
        up = contract("BTJ,JKU->BTKU", low, self.key_value_J_KU)
        shared = jnp.broadcast_to(shared, (*up.shape[:-1], latent.rotary_dim))
        key = jnp.concatenate([up[..., :nope], shared], axis=-1)
        query, key = self.place.constrain(query, "BTKGH"), self.place.constrain(key, "BTKH")
        return query, key, up[..., nope:]

    def close(self, mixed_BTKGW: jax.Array) -> jax.Array:
        """Bring the heads back to the residual width."""
        out_BTD = contract("BTKW,KWD->BTD", mixed_BTKGW[:, :, :, 0], self.out_KW_D)
        return biased(out_BTD, self.out_bias_D) if self.arch.out_bias else out_BTD

    @property
    def sinks(self) -> None:
        """There are none."""
        return None


class Block(nnx.Module):
    """One layer; `sparse` ones have experts in place of the feed-forward."""

    def __init__(self, key: jax.Array, arch: Architecture, place: Placement, sparse: bool = False):
        self.arch, self.place, self.sparse = arch, place, sparse
        attention = Attention if arch.latent is None else LatentAttention
        self.attention = attention(jax.random.fold_in(key, 0), arch, place)
        feed_forward = MixtureOfExperts if sparse else FeedForward
        self.ffw = feed_forward(jax.random.fold_in(key, 1), arch, place)
        for branch in ("attention", "ffw"):
            for name in norm_names(arch, branch):
                drawn = parameter(name, key, arch.sizes, norm_offset=arch.norm_offset)
                setattr(self, name, drawn)

    def __call__(
        self,
        x_BTD: jax.Array,
        rotate: Callable[[jax.Array], jax.Array],
        mix: Callable[..., tuple[jax.Array, Any]],
        feed: Callable[..., tuple[jax.Array, Any]],
    ) -> tuple[jax.Array, Any, Any]:
        """Run the layer.

        Args:
          rotate: turns heads by their positions.
          mix: `mix(query, key, value, sinks)` attends and may hand something back.
          feed: `feed(ffw, x_BTD)` runs the feed-forward and may hand something back.
        """
        query, key, value = self.attention.project(self._before("attention", x_BTD), rotate)
        mixed, kept = mix(query, key, value, self.attention.sinks)
        x_BTD = self._after("attention", x_BTD, self.attention.close(mixed))
        out_BTD, seen = feed(self.ffw, self._before("ffw", x_BTD))
        return self._after("ffw", x_BTD, out_BTD), kept, seen

    def _before(self, branch: str, x_BTD: jax.Array) -> jax.Array:
        return self._norm(f"{branch}_norm", x_BTD) if self.arch.pre_norm else x_BTD

    def _after(self, branch: str, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        arch = self.arch
        y_BTD = self._norm(f"{branch}_post_norm", y_BTD) if arch.post_norm else y_BTD
        y_BTD = y_BTD * arch.residual_scale if arch.residual_scale != 1.0 else y_BTD
        return self.place.constrain(x_BTD + y_BTD, "BTD")

    def _norm(self, place: str, x_BTD: jax.Array) -> jax.Array:
        bias = getattr(self, f"{place}_bias_D", None)
        return normalise(self.arch, x_BTD, getattr(self, f"{place}_D"), bias)


def norm_names(arch: Architecture, branch: str) -> list[str]:
    """Name the norm parameters of one branch, or of the end ("final")."""
    places = ["_norm"] if arch.pre_norm or branch == "final" else []
    places += ["_post_norm"] if arch.post_norm and branch != "final" else []
    ends = ("_D", "_bias_D") if arch.layer_norm else ("_D",)
    return [f"{branch}{place}{end}" for place in places for end in ends]


def normalise(arch: Architecture, x: jax.Array, scale: Any, bias: Any = None) -> jax.Array:
    """Normalise the residual stream as an architecture does."""
    if arch.layer_norm:
        return layer_norm(x, scale, bias, arch.norm_eps)
    return rms_norm(x, scale, arch.norm_eps, arch.norm_offset)
