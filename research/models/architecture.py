"""The numbers that describe a decoder: what a `config.json` says, in our words."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.core.parts import part, require
from research.models.activations import Activation, Silu
from research.models.rope import LongScaling, Rope


@part
class Stack:
    """Layers `first, first + stride, ...` (`count` of them), whose parameters are stacked on L."""

    first: int
    stride: int
    count: int

    @property
    def name(self) -> str:
        """The key of this stack in the parameter tree: its first layer."""
        return str(self.first)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers, in the order of the L axis."""
        return tuple(range(self.first, self.first + self.stride * self.count, self.stride))


@part
class Latent:
    """Keys and values from one low-rank latent, positions on a part of each head (MLA).

    A head's query and key are `nope_dim` numbers without position and `rotary_dim` rotated ones;
    the rotated part of the key is shared by all heads.

    Attributes:
      query_rank: width of the queries' latent; None: queries come straight from the residual.
      kv_rank: width of the latent of keys and values.
      value_dim: head width of the values.
      norm_eps: of the norms over the latents, which is not the model's.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.
    """

    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rotary_dim: int
    value_dim: int
    norm_eps: float = 1e-6


@part
class Moe:
    """Experts in place of the feed-forward.

    Attributes:
      expert_dim: feed-forward width of one expert.
      router: which experts a token takes, a part of `research/models/moe/`.
      shared_dim: feed-forward width of the expert that every token takes; 0: there is none.
      dense_layers: layers that keep the dense feed-forward.
      router_bias: the router's logits carry a bias.
      expert_bias: the experts' products carry biases.
    """

    num_experts: int
    experts_per_token: int
    expert_dim: int
    router: Any
    shared_dim: int = 0
    dense_layers: tuple[int, ...] = ()
    router_bias: bool = False
    expert_bias: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            (
                min(self.num_experts, self.expert_dim) > 0 and self.shared_dim >= 0,
                "every size must be positive",
            ),
            (
                0 < self.experts_per_token <= self.num_experts,
                f"experts_per_token={self.experts_per_token} must lie in 1..{self.num_experts}, "
                "the number of experts",
            ),
        )
        self.router.require(self.num_experts, self.experts_per_token)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What tells one layer from another: its window, its rotation, whether it has experts."""

    window: int | None
    rope: Rope | None
    sparse: bool


@part
class Architecture:
    """A decoder-only transformer: what a family's `config.json` says.

    Attributes:
      windows: for each layer its sliding window in tokens, or None; empty: no layer has one.
      rope: rotary positions; None: there are none.
      local_rope: those of layers with a window, where they differ (Gemma 3).
      unrotated: layers without rotary positions (SmolLM3).
      learned_positions: a table of positions is added to the embedding (GPT-2).
      norm_offset: added to the scale of every RMS norm (Gemma: 1).
      layer_norm: norms subtract the mean and carry a bias (GPT-2).
      pre_norm, post_norm: whether a branch's input, and its output, is normalised.
      query_key_norm: RMS norm over H on queries and keys (Qwen3).
      projection_norm: RMS norm over all heads of queries and of keys at once (OLMo 2).
      qkv_bias, out_bias, ffw_bias: which projections carry a bias.
      qkv_clip: queries, keys and values are clamped to +-this (OLMoE).
      attention_scale: factor on the scores; None: head_dim ** -0.5.
      attention_cap, logit_cap: c in c tanh(x / c), on scores and on logits (Gemma 2).
      sinks: a learned score a head that takes attention and gives no value (GPT-OSS).
      latent: keys and values from a latent (DeepSeek); None: plain projections.
      activation, ffw_gated: of the feed-forward, dense or expert.
      embed_scale, residual_scale, logit_scale: factors on embeddings, branches and logits.
      moe: experts; None: a dense model.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffw_dim: int
    rope: Rope | None = Rope()
    local_rope: Rope | None = None
    unrotated: tuple[int, ...] = ()
    learned_positions: bool = False
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    layer_norm: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    query_key_norm: bool = False
    projection_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffw_bias: bool = False
    qkv_clip: float | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    sinks: bool = False
    latent: Latent | None = None
    activation: Activation = Silu()
    ffw_gated: bool = True
    moe: Moe | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    tied_head: bool = False
    windows: tuple[int | None, ...] = ()
    max_positions: int = 4096
    init_std: float | None = None

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.model_dim, self.num_layers, self.num_heads)
        latent, layers = self.latent, range(self.num_layers)
        named = (*self.unrotated, *(self.moe.dense_layers if self.moe else ()))
        require(
            self,
            (min(*sizes, self.num_kv_heads, self.ffw_dim) > 0, "every size must be positive"),
            (
                self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0,
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}",
            ),
            (
                not self.rope or self.rotary_dim % 2 == 0,
                f"{self.rotary_dim} numbers of a head are rotated; expected an even number "
                f"(head_dim={self.head_dim})",
            ),
            (
                all(len(factors) == self.rotary_dim // 2 for factors in self._factors()),
                f"LongScaling has {[len(factors) for factors in self._factors()]} factors; "
                f"expected {self.rotary_dim // 2}, one for every two of the "
                f"{self.rotary_dim} rotated numbers of a head",
            ),
            (
                latent is None
                or (
                    self.head_dim == latent.nope_dim + latent.rotary_dim
                    and self.num_kv_heads == self.num_heads
                ),
                "latent attention needs head_dim = nope_dim + rotary_dim and as many key/value "
                f"heads as heads; there are {self.head_dim} and {self.num_kv_heads}",
            ),
            (self.pre_norm or self.post_norm, "pre_norm and post_norm are both False; set one"),
            (
                not (self.query_key_norm and self.projection_norm),
                "query_key_norm and projection_norm exclude each other; set one of them",
            ),
            (
                len(self.windows) in (0, self.num_layers),
                f"windows has {len(self.windows)} entries; expected {self.num_layers}, one a layer",
            ),
            (
                not self.windows or any(self.windows),
                "windows holds only None; leave it empty where no layer slides",
            ),
            (
                all(window is None or window > 0 for window in self.windows),
                f"windows={self.windows}: a window must be positive, or None",
            ),
            (
                all(layer in layers for layer in named),
                f"unrotated and moe.dense_layers name layers {sorted(set(named) - set(layers))}; "
                f"there are 0..{self.num_layers - 1}",
            ),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every letter that a parameter's name may use, experts' own widths apart."""
        sizes = {
            "V": self.vocab_size,
            "S": self.max_positions,
            "D": self.model_dim,
            "K": self.num_kv_heads,
            "G": self.num_heads // self.num_kv_heads,
            "H": self.head_dim,
            "W": self.value_dim,
            "F": self.ffw_dim,
        }
        if self.latent is not None:
            sizes |= {
                "I": self.latent.query_rank or 0,
                "J": self.latent.kv_rank,
                "Q": self.latent.kv_rank + self.latent.rotary_dim,
                "U": self.latent.nope_dim + self.latent.value_dim,
            }
        return sizes

    @property
    def value_dim(self) -> int:
        """The head width of the values."""
        return self.latent.value_dim if self.latent is not None else self.head_dim

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head are rotated."""
        if self.latent is not None:
            return self.latent.rotary_dim
        return int(self.head_dim * self.rope.fraction) if self.rope else 0

    def _factors(self) -> tuple[tuple[float, ...], ...]:
        scaling = self.rope.scaling if self.rope else None
        long = isinstance(scaling, LongScaling)
        return (scaling.short_factors, scaling.long_factors) if long else ()

    @property
    def longest_text(self) -> int | None:
        """The most tokens of one text that can be fed; None: positions do not end."""
        return self.max_positions if self.learned_positions else None

    @property
    def score_scale(self) -> float:
        """The factor on the scores of attention."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def kind(self, layer: int) -> Kind:
        """Give what tells a layer from others."""
        window = self.windows[layer] if self.windows else None
        rope = self.local_rope if window is not None and self.local_rope else self.rope
        return Kind(
            window=window,
            rope=None if layer in self.unrotated else rope,
            sparse=self.moe is not None and layer not in self.moe.dense_layers,
        )

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer in tokens, or None."""
        return self.kind(layer).window

    def stages(self) -> tuple[tuple[Stack, ...], ...]:
        """Group layers into stages; each is a scan over a period of stacks with equal counts.

        A homogeneous model is one stage of one stack; alternating local and global layers are one
        stage of two stacks; what is left over at the end is a stage of its own.
        """
        kinds = tuple(self.kind(layer) for layer in range(self.num_layers))
        stages, start = [], 0
        while start < len(kinds):
            period, count = min(
                ((p, _repeats(kinds, start, p)) for p in range(1, len(kinds) - start + 1)),
                key=lambda pair: (-pair[0] * pair[1] if pair[1] > 1 else -1, pair[0]),
            )
            stages.append(
                tuple(Stack(first=start + i, stride=period, count=count) for i in range(period))
            )
            start += period * count
        return tuple(stages)


def _repeats(kinds: tuple[Kind, ...], start: int, period: int) -> int:
    """How many times the `period` kinds from `start` repeat without a break."""
    count = 1
    unit = kinds[start : start + period]
    while kinds[start + count * period : start + (count + 1) * period] == unit:
        count += 1
    return count
