"""A family of foreign checkpoints: its config fields, and one name table that is read both ways."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.axes import declared
from research.core.parts import describe, differences
from research.core.tree import Path, flatten
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

BLOCK_ROWS = 256  # of a foreign kernel that are read and turned at once
Region = tuple[int | slice, ...]


@dataclasses.dataclass(frozen=True)
class Foreign:
    """How a checkpoint holds one parameter of ours.

    A string in a family's table is a `Foreign` of that name: torch's (out, in), on its own.

    Attributes:
      name: of the tensor, with `{layer}` where there is one a layer and `{expert}` where there is
        one an expert.
      of: where several parameters lie side by side along the output axis, the letters of each:
        ("KGH", "KH", "KH").
      index: which of those this one is.
      conv: kernels lie as (in, out), as in GPT-2's Conv1D.
      stacked: one tensor holds all experts, on a leading axis.
      interleaved: the parameters of `of` alternate along the axis instead of following each other.
    """

    name: str
    _: dataclasses.KW_ONLY
    of: tuple[str, ...] = ()
    index: int = 0
    conv: bool = False
    stacked: bool = False
    interleaved: bool = False

    def tensors(
        self,
        path: Path,
        entry: tuple[int, ...],
        layer: int | None,
        sizes: Mapping[str, int],
    ) -> Iterator[Tensor]:
        """List the tensors of one layer of the parameter at `path`, one an expert if it has any.

        Args:
          entry: which entry of its L axis; empty for a parameter without one.
          sizes: of every letter of the module that holds the parameter.

        Raises:
          ValueError: `of` says other letters than the parameter's own.
        """
        axes = declared(path[-1])
        each = self.stacked or "{expert}" in self.name
        outputs = axes.outputs if axes.is_kernel or not each else axes.outputs.removeprefix("E")
        if (self.of or (outputs,))[self.index] != outputs:
            raise ValueError(f"{self} is not where {path[-1]!r} lies: its outputs are {outputs!r}")
        total, own = self._outputs([_size(part, sizes) for part in self.of or (outputs,)])
        num_inputs = _size(axes.inputs, sizes)
        sides = [(num_inputs, slice(0, num_inputs, 1)), (total, own)][not axes.is_kernel :]
        transposed = axes.is_kernel and not (axes.is_table or self.conv)
        for expert in range(sizes["E"]) if each else (None,):
            bank = [(sizes["E"], expert)] if self.stacked else []
            shape, region = zip(*bank, *(reversed(sides) if transposed else sides), strict=True)
            yield Tensor(
                name=self.name.format(layer=layer, expert=expert),
                shape=shape,
                path=path,
                entry=entry if expert is None else (*entry, expert),
                region=region,
                transposed=transposed,
            )

    def _outputs(self, widths: Sequence[int]) -> tuple[int, slice]:
        """Give the length of the output axis, and the part of it that is ours."""
        total, start = sum(widths), sum(widths[: self.index])
        if self.interleaved:
            return total, slice(self.index, total, len(widths))
        return total, slice(start, start + widths[self.index], 1)


Names = Mapping[str, str | Foreign]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Attributes:
      model_type: what `config.json` calls it.
      class_name: the reference class, the `architectures` entry of `config.json`.
      read: config fields -> Architecture.
      write: Architecture -> config fields.
      names: our path (without its stack) -> where it lies in what transformers saves.
      parameters: kernels that transformers holds as bare parameters, not as layers (routers and
        stacked experts), as they lie in memory and in the order of registration there. PEFT adapts
        these as `target_parameters`; folders that were saved so are read.
      alternatives: other spellings of some names, each read where a folder has its tensors.
      ignored: tensors that are passed over when read, as shell patterns; `{num_layers}` is filled.
    """

    model_type: str
    class_name: str
    read: Callable[[Fields], Architecture]
    write: Callable[[Architecture], dict[str, Any]]
    names: Names
    parameters: Names = dataclasses.field(default_factory=dict)
    alternatives: tuple[Names, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One matrix or vector of ours, and the place in the foreign checkpoint that it fills.

    Attributes:
      name: of the foreign tensor, `model.layers.3.self_attn.qkv_proj.weight`.
      shape: of the whole foreign tensor.
      path: the keys of our leaf, ("layers", "0", "attention", "query_D_KGH").
      entry: which entry of the leaf's leading axes: (), (slot of L,) or (slot of L, expert).
      region: what it fills of the foreign tensor: an expert, and ranges.
      transposed: whether it lies there as (out, in).
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    entry: tuple[int, ...]
    region: Region
    transposed: bool

    @property
    def whole(self) -> bool:
        """Whether nothing else lies in the same foreign tensor."""
        return self.region == tuple(slice(0, size, 1) for size in self.shape)

    @property
    def outputs(self) -> slice:
        """The part of the output axis that it fills."""
        side = self.region[-2 if self.transposed else -1]
        assert isinstance(side, slice)
        return side


def read_architecture(family: Family, config: Mapping[str, Any], where: str) -> Architecture:
    """Read a whole `config.json` with a family.

    Raises:
      ValueError: a field is missing, unknown, or has a value that is not supported.
    """
    classes = config.get("architectures") or [family.class_name]
    if family.class_name not in classes:
        raise ValueError(
            f"{where}: architectures={classes} is not supported; expected [{family.class_name!r}]. "
            "Load the checkpoint in that class of transformers and save it again"
        )
    fields = Fields(config, where)
    arch = family.read(fields)
    fields.finish()
    return arch


def write_architecture(family: Family, arch: Architecture) -> dict[str, Any]:
    """Write the fields of a `config.json`.

    Law: reading them back gives the same architecture.

    Raises:
      ValueError: the family has no words for this architecture; the error says what differs.
    """
    head = {"architectures": [family.class_name], "model_type": family.model_type}
    config = head | family.write(arch)
    back = read_architecture(family, config, f"a {family.model_type} config")
    lost = differences(describe(arch), describe(back))
    if lost:
        raise ValueError(
            f"a {family.model_type} config.json cannot say {'; '.join(lost)} (ours -> what it "
            "would be read as); choose another family or change the architecture"
        )
    return config


def tensors_of(
    family: Family, arch: Architecture, abstract: Any, names: Names | None = None
) -> tuple[Tensor, ...]:
    """List where every matrix and vector of a model lies, from the shapes of its parameter tree.

    Args:
      names: the table, or an alternative over it; None: the family's own.

    Raises:
      ValueError: a parameter has no name in the table.
    """
    names = family.names if names is None else names
    layers = {stack.name: stack.layers for stage in arch.stages() for stack in stage}
    leaves = flatten(abstract)
    sizes = _sizes_of_modules(leaves)
    found: list[Tensor] = []
    for path in leaves:
        inside = path[0] == "layers"
        ours = "/".join(("layers", *path[2:]) if inside else path)
        if ours not in names:
            raise ValueError(
                f"the {family.model_type} name table has no entry for parameter {ours!r}; this "
                "architecture belongs to another family"
            )
        foreign = foreign_of(names[ours])
        for slot, layer in enumerate(layers[path[1]] if inside else (None,)):
            found += foreign.tensors(path, (slot,) * inside, layer, sizes[path[:-1]])
    return tuple(found)


def foreign_of(spelling: str | Foreign) -> Foreign:
    """Read an entry of a table: a string is the name of a tensor of its own."""
    return Foreign(spelling) if isinstance(spelling, str) else spelling


def by_name(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Group the parts of each foreign tensor, which together fill it."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.name, []).append(tensor)
    return groups


def foreign_value(params: Any, *parts: Tensor, dtype: Any = None) -> np.ndarray:
    """Bring one foreign tensor to the host: one parameter of ours, or all that lie in it."""
    first = to_foreign(parts[0], _entry_on_host(params, parts[0]))
    if parts[0].whole:
        return np.ascontiguousarray(first, dtype)
    value = np.empty(parts[0].shape, dtype or first.dtype)
    value[parts[0].region] = first
    for part in parts[1:]:
        value[part.region] = to_foreign(part, _entry_on_host(params, part))
    return value


def _entry_on_host(params: Any, tensor: Tensor) -> np.ndarray:
    leaf = params
    for key in tensor.path:
        leaf = leaf[key]
    own = leaf[tensor.entry] if isinstance(leaf, np.ndarray) else _entry(leaf, tensor.entry)
    return np.asarray(own)


@jax.jit
def _entry(leaf: jax.Array, entry: tuple[jax.Array, ...]) -> jax.Array:
    """Copy one entry of the leading axes; compiled once a shape, not once a layer.

    A copy, because an array keeps what the host has once seen of it.
    """
    return jnp.copy(leaf[entry])


def to_foreign(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    """Turn one matrix or vector of ours (one entry of its leaf) into what fills its region.

    Letters are flattened: query heads go K-major, then G, which is the foreign head order.
    """
    lengths = [len(range(*ours.indices(size))) for ours, size in _ranges(tensor)]
    return value.reshape(lengths[::-1]).T if tensor.transposed else value.reshape(lengths)


def from_foreign(
    tensor: Tensor,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
    read: Callable[[str, Region], np.ndarray],
) -> np.ndarray:
    """Make `value[index]` of one matrix or vector of ours, reading only the range that it needs.

    Args:
      shape: of the whole value: one entry of its leaf.
      index: the wanted slice of each of its axes.
      read: gives a part of the foreign tensor that is called so, as NumPy would index it.

    Law: from_foreign(to_foreign(x)) = x, for any index.
    """
    num_inputs = len(declared(tensor.path[-1]).inputs)
    first, last = (
        _Range(shape[:num_inputs], index[:num_inputs]),
        _Range(shape[num_inputs:], index[num_inputs:]),
    )
    if not num_inputs:
        return read(tensor.name, _within(tensor, last.flat)).reshape(last.shape)[last.rest]
    if tensor.transposed:
        value = _read_transposed(tensor, last.flat, first.flat, read)
    else:
        value = read(tensor.name, _within(tensor, first.flat, last.flat))
    return value.reshape(*first.shape, *last.shape)[(*first.rest, *last.rest)]


def _read_transposed(
    tensor: Tensor, rows: slice, columns: slice, read: Callable[[str, Region], np.ndarray]
) -> np.ndarray:
    """Read a range block by block, each turned while in the cache: half the time of one piece."""
    starts = range(rows.start, rows.stop, BLOCK_ROWS)
    blocks = [slice(start, min(start + BLOCK_ROWS, rows.stop)) for start in starts] or [rows]
    parts = (read(tensor.name, _within(tensor, block, columns)) for block in blocks)
    first = next(parts)
    turned = np.empty((first.shape[1], rows.stop - rows.start), first.dtype)
    for block, part in zip(blocks, itertools.chain([first], parts), strict=True):
        turned[:, block.start - rows.start : block.stop - rows.start] = part.T
    return turned


def _ranges(tensor: Tensor) -> list[tuple[slice, int]]:
    """Give the ranges of a region with the sizes of their axes: all but the expert's."""
    sides = zip(tensor.region, tensor.shape, strict=True)
    return [(side, size) for side, size in sides if isinstance(side, slice)]


def _within(tensor: Tensor, *wanted: slice) -> Region:
    """Give ranges of a region as ranges of the whole tensor."""
    found: list[int | slice] = [side for side in tensor.region if isinstance(side, int)]
    for own, (side, size) in zip(wanted, _ranges(tensor), strict=True):
        start, stop = (side.start + side.step * end for end in (own.start, own.stop))
        found.append(slice(start, min(stop, size), side.step))
    return tuple(found)


class _Range:
    """Some axes that are one axis in the file: a flat range by the first, what is left after it."""

    def __init__(self, shape: tuple[int, ...], index: tuple[slice, ...]):
        if not shape:
            self.flat, self.shape, self.rest = slice(0, 1), (), ()
            return
        start, stop, _ = index[0].indices(shape[0])
        inner = math.prod(shape[1:])
        self.flat = slice(start * inner, stop * inner)
        self.shape = (stop - start, *shape[1:])
        self.rest = (slice(None), *index[1:])


def _sizes_of_modules(leaves: Mapping[Path, Any]) -> dict[Path, dict[str, int]]:
    """List the size of every letter that the parameters of a module use, by the module's path.

    A letter has one size in a module, and may have another in the next: F in a dense feed-forward,
    an expert and the shared expert.
    """
    sizes: dict[Path, dict[str, int]] = {}
    for path, leaf in leaves.items():
        letters = declared(path[-1]).letters
        own = leaf.shape[len(leaf.shape) - len(letters) :]
        sizes.setdefault(path[:-1], {}).update(zip(letters, own, strict=True))
    return sizes


def _size(letters: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[letter] for letter in letters)
