"""A family of foreign checkpoints: its config fields, and one name table that is read both ways."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research.core.axes import axes_of
from research.core.parts import describe, differences
from research.huggingface.fields import Fields
from research.models.architecture import Architecture

BLOCK_ROWS = 256  # of a foreign kernel that are read and turned at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Attributes:
      model_type: what `config.json` calls it.
      class_name: the reference class, the `architectures` entry of `config.json`.
      read: config fields -> Architecture.
      write: Architecture -> config fields.
      names: our path (without its stack) -> foreign tensor, with `{layer}` where there is one each.
    """

    model_type: str
    class_name: str
    read: Callable[[Fields], Architecture]
    write: Callable[[Architecture], dict[str, Any]]
    names: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One foreign tensor, and the place in our tree that it fills.

    Attributes:
      name: the foreign name, `model.layers.3.self_attn.q_proj.weight`.
      shape: the foreign shape, (out, in) for a kernel.
      path: the keys of our leaf, ("layers", "0", "attention", "query_D_KGH").
      slot: which entry of the leaf's L axis; None for a leaf without one.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    slot: int | None


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


def tensors_of(family: Family, arch: Architecture, abstract: Any) -> tuple[Tensor, ...]:
    """List every foreign tensor of a model, from the shapes of its parameter tree.

    Raises:
      ValueError: a parameter has no name in the family's table.
    """
    layers = {stack.name: stack.layers for stage in arch.stages() for stack in stage}
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = tuple(str(key.key) for key in keys)
        inside = path[0] == "layers"
        ours = "/".join(("layers", *path[2:]) if inside else path)
        if ours not in family.names:
            raise ValueError(
                f"the {family.model_type} name table has no entry for parameter {ours!r}; this "
                "architecture belongs to another family"
            )
        foreign, shape = family.names[ours], foreign_shape(path[-1], leaf.shape[inside:])
        for slot, layer in enumerate(layers[path[1]]) if inside else ((None, None),):
            name = foreign.format(layer=layer)
            found.append(Tensor(name=name, shape=shape, path=path, slot=slot))
    return tuple(found)


def foreign_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the torch shape of the parameter called `name`: (out, in), or (size,) for a vector."""
    _, num_inputs, num_outputs = _declared(name).matrix(shape)
    if not _declared(name).is_kernel:
        return (num_outputs,)
    return (num_inputs, num_outputs) if _is_table(name) else (num_outputs, num_inputs)


def to_foreign(name: str, value: Any) -> Any:
    """Turn one matrix or vector of ours (no L axis) into torch's orientation.

    A kernel is `W.T` of torch's (out, in) with its letters flattened: query heads go K-major, then
    G, which is the foreign head order. A table looked up by token (`embed_V_D`) is not transposed.
    """
    shape = foreign_shape(name, value.shape)
    if not _declared(name).is_kernel or _is_table(name):
        return value.reshape(shape)
    return value.reshape(shape[::-1]).T


def foreign_value(params: Any, tensor: Tensor) -> np.ndarray:
    """Bring one foreign tensor's value to the host from a parameter-like tree of arrays."""
    leaf = params
    for key in tensor.path:
        leaf = leaf[key]
    if tensor.slot is not None:
        leaf = leaf[tensor.slot] if isinstance(leaf, np.ndarray) else _entry(leaf, tensor.slot)
    return to_foreign(tensor.path[-1], np.asarray(leaf))


@jax.jit
def _entry(leaf: jax.Array, slot: jax.Array) -> jax.Array:
    """Take one entry of the L axis; compiled once a shape, not once a layer."""
    return leaf[slot]


def from_foreign(
    name: str,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> np.ndarray:
    """Make `value[index]` of one matrix or vector of ours, reading only the range that it needs.

    Args:
      shape: of the whole parameter (no L axis).
      index: the wanted slice of each of its axes.
      read: gives a range of the foreign tensor, as (rows, columns) or (rows,).

    Law: from_foreign(to_foreign(x)) = x, for any index.
    """
    num_inputs = len(_declared(name).inputs)
    first, last = (
        _Range(shape[:num_inputs], index[:num_inputs]),
        _Range(shape[num_inputs:], index[num_inputs:]),
    )
    if not num_inputs:
        return read((last.flat,)).reshape(last.shape)[last.rest]
    if _is_table(name):
        value = read((first.flat, last.flat))
    else:
        value = _read_transposed(read, last.flat, first.flat)
    return value.reshape(*first.shape, *last.shape)[(*first.rest, *last.rest)]


def _read_transposed(
    read: Callable[[tuple[slice, ...]], np.ndarray], rows: slice, columns: slice
) -> np.ndarray:
    """Read a range block by block, each turned while in the cache: half the time of one piece."""
    starts = range(rows.start, rows.stop, BLOCK_ROWS)
    blocks = [slice(start, min(start + BLOCK_ROWS, rows.stop)) for start in starts] or [rows]
    parts = (read((block, columns)) for block in blocks)
    first = next(parts)
    turned = np.empty((first.shape[1], rows.stop - rows.start), first.dtype)
    for block, part in zip(blocks, itertools.chain([first], parts), strict=True):
        turned[:, block.start - rows.start : block.stop - rows.start] = part.T
    return turned


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


def _declared(name: str) -> Any:
    axes = axes_of(name)
    if axes is None:
        raise ValueError(f"parameter {name!r} declares no axes; expected a name like gate_D_F")
    return axes


def _is_table(name: str) -> bool:
    """Whether torch keeps it as an embedding, (in, out): its input is a token id."""
    return _declared(name).inputs == "V"
