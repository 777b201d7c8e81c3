"""The foreign modules that an adapter lies in, and how the factors of our parameters lie there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from research.core.axes import declared
from research.core.tree import Path
from research.huggingface.family import Family, Tensor, by_name, foreign_of, tensors_of
from research.models.transformer import Transformer
from research.tuning.lora import Lora, factor_names

PREFIX = "base_model.model."
TABLE = ("embed_V_D",)
Factors = Mapping[Path, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of our matrices in a foreign module (or one an expert, where it holds all of them).

    Attributes:
      path: of our parameter.
      entry: which entry of the leading axes of its factors.
      rows: which of the module's outputs are its own.
    """

    path: Path
    entry: tuple[int, ...]
    rows: slice

    @property
    def factors(self) -> tuple[Path, Path]:
        """Where our factors lie in the trainable tree."""
        a_name, b_name = factor_names(declared(self.path[-1]))
        return (*self.path, a_name), (*self.path, b_name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankPair:
    """The adapter of a module, scale A B: a_ERI (experts, rank, inputs) and b_EOR; E = 1 if none.

    Attributes:
      rank: R, to which alpha relates.
    """

    rank: int
    alpha: float
    a_ERI: np.ndarray
    b_EOR: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """One foreign layer, or bare parameter, that can carry an adapter.

    Attributes:
      name: `model.layers.3.self_attn.q_proj`, or `model.layers.3.mlp.experts.down_proj`.
      parts: our matrices, side by side along its outputs.
      inputs, outputs: its sizes.
      experts: how many lie in it; 0: it holds none, or is one.
      parameter: whether PEFT wraps a bare parameter.
      conv: whether its kernel lies as (in, out).
      table: whether it is looked up: PEFT keeps other keys for these.
      mirrored: whether it is the tied head, which holds the table's factors the other way round;
        parts and sizes are the table's.
    """

    name: str
    parts: tuple[Part, ...]
    inputs: int
    outputs: int
    experts: int = 0
    parameter: bool = False
    conv: bool = False
    table: bool = False
    mirrored: bool = False

    def as_parameter(self) -> Module:
        """Give it as PEFT names its weight: the same tensors under the same keys."""
        return dataclasses.replace(self, name=f"{self.name}.weight", parameter=True)

    def gather(self, factors: Factors, tuning: Lora) -> LowRankPair:
        """Make the module's adapter of those of its parts: ranks add up, each keeps its own rows.

        Law: each part's rows of scale A B are that part's own scale A B.
        """
        parts = [part for part in self.parts if part.factors[0] in factors]
        pairs = [self._own(part, factors, tuning) for part in parts]
        first, rank = pairs[0], sum(pair.rank for pair in pairs)
        b_EOR = np.zeros((len(first.b_EOR), self.outputs, rank), np.float32)
        start = 0
        for part, pair in zip(parts, pairs, strict=True):
            ratio = tuning.scale(pair.rank, pair.alpha) / tuning.scale(first.rank, first.alpha)
            columns = slice(start, start + pair.rank)
            b_EOR[:, part.rows, columns] = pair.b_EOR * np.float32(ratio)
            start += pair.rank
        return LowRankPair(
            rank=rank,
            alpha=_same_scale(first.alpha, rank / first.rank, tuning.rslora),
            a_ERI=np.concatenate([pair.a_ERI for pair in pairs], axis=1),
            b_EOR=b_EOR,
        )

    def _own(self, part: Part, factors: Factors, tuning: Lora) -> LowRankPair:
        a, b = (factors[path][part.entry] for path in part.factors)
        rank, alpha = tuning.rank_and_alpha(part.path)
        experts = max(self.experts, 1)
        return LowRankPair(
            rank=rank,
            alpha=float(alpha),
            a_ERI=a.reshape(experts, -1, rank).swapaxes(1, 2),
            b_EOR=b.reshape(experts, rank, -1).swapaxes(1, 2),
        )

    def scatter(self, pair: LowRankPair, rslora: bool) -> list[tuple[Part, LowRankPair]]:
        """Give each part its own adapter.

        Where each part uses columns of its own, as `gather` makes them, it gets those; otherwise
        the parts share A. A part that alone has no effect is left out.
        """
        parts = [part for part in self.parts if pair.b_EOR[:, part.rows].any()] or self.parts
        width = pair.rank // len(parts)
        blocks = [slice(i * width, (i + 1) * width) for i in range(len(parts))]
        own = sum(
            np.count_nonzero(pair.b_EOR[:, part.rows, block])
            for part, block in zip(parts, blocks, strict=True)
        )
        if width * len(parts) != pair.rank or own != np.count_nonzero(pair.b_EOR):
            blocks = [slice(0, pair.rank)] * len(parts)
        return [
            (
                part,
                LowRankPair(
                    rank=block.stop - block.start,
                    alpha=_same_scale(pair.alpha, (block.stop - block.start) / pair.rank, rslora),
                    a_ERI=pair.a_ERI[:, block],
                    b_EOR=pair.b_EOR[:, part.rows, block],
                ),
            )
            for part, block in zip(parts, blocks, strict=True)
        ]

    def pack(self, pair: LowRankPair) -> tuple[np.ndarray, np.ndarray]:
        """Give PEFT's tensors: A's rows expert by expert, B's columns rank by rank."""
        if self.mirrored:
            return pair.b_EOR[0].T, pair.a_ERI[0].T
        columns = pair.b_EOR.transpose(1, 2, 0).reshape(self.outputs, -1)
        return pair.a_ERI.reshape(-1, self.inputs), columns

    def unpack(self, tensors: Sequence[np.ndarray], rank: int, alpha: float) -> LowRankPair:
        """Read what `pack` gives, as float32."""
        a, b = (tensor.astype(np.float32) for tensor in tensors)
        if self.mirrored:
            a, b = b.T, a.T
        experts = max(self.experts, 1)
        return LowRankPair(
            rank=rank,
            alpha=alpha,
            a_ERI=a.reshape(experts, rank, -1),
            b_EOR=b.reshape(-1, rank, experts).transpose(2, 0, 1),
        )

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Give the shapes of PEFT's A and B."""
        ranks = rank * max(self.experts, 1)
        inputs, outputs = self.inputs, self.outputs
        if self.mirrored:
            inputs, outputs = outputs, inputs
        return (ranks, inputs), (outputs, ranks)


def _same_scale(alpha: float, ratio: float, rslora: bool) -> float:
    """Give the alpha that keeps the scale when the rank is multiplied by `ratio`."""
    return float(f"{alpha * (math.sqrt(ratio) if rslora else ratio):.12g}")


def keys_of(modules: Sequence[Module]) -> dict[str, tuple[str, str]]:
    """Name the tensors A and B of each module: module -> keys.

    Wrappers of several parameters of one layer are nested: the first lies innermost.
    """
    held = [module.name.rpartition(".")[0] for module in modules if module.parameter]
    keys = {}
    for module in modules:
        place = module.name
        if module.parameter:
            place = held.pop(0)
            place += ".base_layer" * held.count(place)
        if module.table:
            names = (f"{place}.lora_embedding_A", f"{place}.lora_embedding_B")
        else:
            names = (f"{place}.lora_A.weight", f"{place}.lora_B.weight")
        keys[module.name] = (PREFIX + names[0], PREFIX + names[1])
    return keys


def layers_of(model: Transformer, family: Family) -> tuple[Module, ...]:
    """List the layers that can carry an adapter, under the names that are saved; a tied head too.

    One an expert where a checkpoint holds them so.
    """
    modules = _modules(tensors_of(family, model.arch, model.abstract()), parameter=False)
    if model.arch.tied_head:
        table = next(module for module in modules if module.parts[0].path == TABLE)
        name = foreign_of(family.names["head_D_V"]).name.removesuffix(".weight")
        modules.append(dataclasses.replace(table, name=name, table=False, mirrored=True))
    return tuple(module for module in modules if not module.experts)


def parameters_of(model: Transformer, family: Family) -> tuple[Module, ...]:
    """List the bare parameters that can carry an adapter, in the order of registration."""
    order = {name: number for number, name in enumerate(family.parameters)}
    names = {**family.names, **family.parameters}
    tensors = [
        tensor
        for tensor in tensors_of(family, model.arch, model.abstract(), names)
        if "/".join(("layers", *tensor.path[2:])) in order
    ]
    tensors.sort(key=lambda tensor: order["/".join(("layers", *tensor.path[2:]))])
    return tuple(_modules(tensors, parameter=True))


def _modules(tensors: Iterable[Tensor], *, parameter: bool) -> list[Module]:
    kernels = (tensor for tensor in tensors if declared(tensor.path[-1]).is_kernel)
    return [_module(name, parts, parameter) for name, parts in by_name(kernels).items()]


def _module(name: str, tensors: list[Tensor], parameter: bool) -> Module:
    """Describe the module that a foreign tensor is the kernel of."""
    first = tensors[0]
    stacked = len(first.shape) == 3
    sides = first.shape[-2:] if not first.transposed else first.shape[:-3:-1]
    table = declared(first.path[-1]).is_table
    parts = {}
    for tensor in tensors:
        entry = tensor.entry[:-1] if stacked else tensor.entry
        parts[tensor.path] = Part(path=tensor.path, entry=entry, rows=tensor.outputs)
    return Module(
        name=name if parameter else name.removesuffix(".weight"),
        parts=tuple(sorted(parts.values(), key=lambda part: part.rows.start)),
        inputs=sides[0],
        outputs=sides[1],
        experts=first.shape[0] if stacked else 0,
        parameter=parameter,
        conv=not (first.transposed or table),
        table=table,
    )
