"""The numbers that describe a decoder: what a `config.json` says, in our words."""

from __future__ import annotations

from research.core.parts import part, require
from research.models.rope import Rope


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
class Architecture:
    """A decoder-only transformer.

    Attributes:
      windows: for each layer its sliding window in tokens, or None; empty: no layer has one.
      query_key_norm: RMS norm over H on queries and keys (Qwen3).
      qkv_bias, out_bias, ffw_bias: which projections carry a bias.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffw_dim: int
    rope: Rope = Rope()
    norm_eps: float = 1e-6
    query_key_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffw_bias: bool = False
    tied_head: bool = False
    windows: tuple[int | None, ...] = ()
    max_positions: int = 4096
    init_std: float | None = None

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.model_dim, self.num_layers, self.num_heads)
        require(
            self,
            (min(*sizes, self.num_kv_heads, self.ffw_dim) > 0, "every size must be positive"),
            (
                self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0,
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}",
            ),
            (self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even (rotary halves)"),
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
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every letter that a parameter's name may use."""
        return {
            "V": self.vocab_size,
            "D": self.model_dim,
            "K": self.num_kv_heads,
            "G": self.num_heads // self.num_kv_heads,
            "H": self.head_dim,
            "F": self.ffw_dim,
        }

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer in tokens, or None."""
        return self.windows[layer] if self.windows else None

    def stages(self) -> tuple[tuple[Stack, ...], ...]:
        """Group layers into stages; each is a scan over a period of stacks with equal counts.

        A homogeneous model is one stage of one stack; alternating local and global layers are one
        stage of two stacks; what is left over at the end is a stage of its own.
        """
        kinds = self.windows or (None,) * self.num_layers
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


def _repeats(kinds: tuple[int | None, ...], start: int, period: int) -> int:
    """How many times the `period` kinds from `start` repeat without a break."""
    count = 1
    unit = kinds[start : start + period]
    while kinds[start + count * period : start + (count + 1) * period] == unit:
        count += 1
    return count
