"""Read a Hugging Face model folder: its config, its tensor index, its weights by byte range."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.huggingface import mxfp4
from research.huggingface.families.known import family_for, family_named
from research.huggingface.family import (
    Family,
    Names,
    Tensor,
    foreign_of,
    from_foreign,
    read_architecture,
    tensors_of,
)
from research.huggingface.stored import Reader, Stored, stored_tensors
from research.models.architecture import Architecture
from research.models.transformer import Params, Transformer

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16", mxfp4.DTYPE)
DERIVED = ("*rotary_emb.inv_freq",)
"""Tensors that old checkpoints store although they follow from the config."""
HOST_BYTES = 2**28
"""How much of a shard is on the host at once: a quarter of a GiB keeps a disk and a link busy."""
_SHOWN = 5
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """An opened model folder: everything but the weights themselves.

    Attributes:
      config: `config.json` as it is.
      tensors: foreign name -> where it lies.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    architecture: Architecture
    tensors: Mapping[str, Stored]


def open_folder(path: str | Path) -> Folder:
    """Open a folder: read its config and the headers of its weight files.

    Raises:
      FileNotFoundError: there is no folder, config or weight file.
      ValueError: the model is not supported, or a file is damaged; with the remedy.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    where = str(path / "config.json")
    family = family_named(config.get("model_type"), where)
    architecture = read_architecture(family, config, where)
    return Folder(
        path=path,
        config=config,
        family=family,
        architecture=architecture,
        tensors=stored_tensors(weight_files(path), config),
    )


def family_of(arch: Architecture, source: str | Path | None) -> Family:
    """Give the family of the folder that a model came from; without one, the first that fits it.

    Raises:
      FileNotFoundError, ValueError: the folder has no config, or no family is known for it.
    """
    if source is None:
        return family_for(arch)
    file = Path(source) / "config.json"
    return family_named(read_json(file).get("model_type"), str(file))


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
      FileNotFoundError, ValueError: the file is not there, or is not a JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; expected a Hugging Face model folder there"
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}; expected an object")
    return value


def weight_files(path: Path) -> tuple[Path, ...]:
    """Give the safetensors files of a folder, in order: the shards of the index, or the single one.

    Raises:
      FileNotFoundError: a file is missing, or there are only pickles, which are never opened.
      ValueError: the index names something else than files of the folder.
    """
    if (path / INDEX_NAME).is_file():
        names = sorted(set(map(str, read_json(path / INDEX_NAME).get("weight_map", {}).values())))
        strange = [name for name in names if not _is_inside(name)]
        if strange:
            raise ValueError(
                f"{path / INDEX_NAME} names {strange[:_SHOWN]}, expected .safetensors files of its "
                "own folder; nothing was opened. Do not use this model folder"
            )
        missing = [name for name in names if not (path / name).is_file()]
        if missing or not names:
            raise FileNotFoundError(
                f"{path / INDEX_NAME} names {len(names)} files, of which {missing} are missing; "
                "fetch the folder again"
            )
        return tuple(path / name for name in names)
    if (path / SINGLE_NAME).is_file():
        return (path / SINGLE_NAME,)
    pickles = sorted(file.name for file in path.glob("*.bin"))
    if pickles:
        raise FileNotFoundError(
            f"{path} has only {pickles}: pickled weights can run code when they are opened and are "
            "refused; convert them with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise FileNotFoundError(f"{path} has neither {SINGLE_NAME} nor {INDEX_NAME}")


def _is_inside(name: str) -> bool:
    """Whether a name can only be that of a weight file in the folder or below it."""
    file = PurePosixPath(name)
    plain = not file.is_absolute() and ".." not in file.parts and "\\" not in name
    return plain and file.suffix == ".safetensors"


def match(folder: Folder, model: Transformer) -> tuple[Tensor, ...]:
    """Pair every parameter of a model with a stored tensor, strictly.

    Raises:
      ValueError: naming tensors that are missing, left over, of another shape or quantised.
    """
    names, wanted = _spelling(folder, model)
    extra = folder.tensors.keys() - {tensor.name for tensor in wanted}
    for pattern in (*DERIVED, *folder.family.ignored):
        filled = pattern.format(num_layers=model.arch.num_layers)
        extra -= set(fnmatch.filter(extra, filled))
    if model.arch.tied_head and "head_D_V" in names:
        extra -= {_tied_copy(folder, names)}
    problems = [
        *_missing(wanted, folder.tensors, extra),
        *_left_over(extra, wanted),
        *_misfits(wanted, folder.tensors),
    ]
    if problems:
        raise ValueError(
            f"{folder.path} does not hold the {folder.family.model_type} model that its "
            "config.json describes: " + "; ".join(problems)
        )
    return wanted


def _spelling(folder: Folder, model: Transformer) -> tuple[Names, tuple[Tensor, ...]]:
    """Choose the family's names or another spelling: that of which the folder lacks least."""
    family, abstract = folder.family, model.abstract()
    others = (family.parameters, *family.alternatives)
    tables = [family.names, *({**family.names, **other} for other in others if other)]
    found = [(names, tensors_of(family, model.arch, abstract, names)) for names in tables]
    return min(found, key=lambda pair: sum(t.name not in folder.tensors for t in pair[1]))


def _compact(names: Iterable[str]) -> dict[str, str]:
    """Name the tensors of several experts once, `mlp.experts.{0..127}.up_proj.weight`: -> one."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(_EXPERT.sub("{}", name), []).append(name)
    return {
        kind.replace("{}", _numbers([int(_EXPERT.findall(name)[0]) for name in group]))
        if "{}" in kind
        else kind: group[0]
        for kind, group in kinds.items()
    }


def _numbers(numbers: list[int]) -> str:
    """Say numbers shortly: 4, {0..7}, or the first of them with their count."""
    low, high = min(numbers), max(numbers)
    if low == high:
        return str(low)
    gaps = high - low + 1 != len(set(numbers))
    return f"{{{len(set(numbers))} of {low}..{high}}}" if gaps else f"{{{low}..{high}}}"


def _missing(
    wanted: tuple[Tensor, ...], stored: Mapping[str, Stored], extra: Collection[str]
) -> list[str]:
    lacking = {tensor.name: tensor for tensor in wanted if tensor.name not in stored}
    names, others, problems = _compact(lacking), list(_compact(extra)), []
    for name, one in itertools.islice(names.items(), _SHOWN):
        near = difflib.get_close_matches(name, others, n=2)
        hint = f" (nearest there: {', '.join(near)})" if near else ""
        if lacking[one].path == ("head_D_V",):
            hint += " (if the head is the embedding, set tie_word_embeddings to true)"
        problems.append(f"missing {name} {lacking[one].shape}{hint}")
    return problems + _rest("missing", len(names))


def _left_over(extra: Collection[str], wanted: tuple[Tensor, ...]) -> list[str]:
    if not extra:
        return []
    names, others, problems = list(_compact(extra)), _compact(t.name for t in wanted), []
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, others, n=2)
        hint = f" (nearest expected: {', '.join(near)})" if near else ""
        problems.append(f"unexpected {name}{hint}")
    problems.append(
        "tensors that the model has no place for would be lost in silence: remove them, or "
        "correct the field of config.json that should have asked for them"
    )
    return problems + _rest("unexpected", len(names))


def _misfits(wanted: tuple[Tensor, ...], stored: Mapping[str, Stored]) -> list[str]:
    shapes: dict[str, list[str]] = {}
    dtypes: dict[str, list[str]] = {}
    for name, shape in {tensor.name: tensor.shape for tensor in wanted}.items():
        held = stored.get(name)
        if held is not None and held.shape != shape:
            said = f"is {held.shape} in {held.file.name}, config.json asks for {shape}"
            shapes.setdefault(said, []).append(name)
        elif held is not None and held.dtype not in FLOATS:
            said = f"has dtype {held.dtype}, expected one of {', '.join(FLOATS)}; use the "
            dtypes.setdefault(said + "unquantised checkpoint", []).append(name)
    groups = (shapes | dtypes).items()
    problems = [f"{name} {said}" for said, names in groups for name in _compact(names)]
    return problems[:_SHOWN] + _rest("of another shape or dtype", len(problems))


def _rest(what: str, count: int) -> list[str]:
    return [f"and {count - _SHOWN} more {what}"] if count > _SHOWN else []


def _tied_copy(folder: Folder, names: Names) -> str | None:
    """Name the stored head of a tied model where it is the embedding's copy, as some writers leave.

    Raises:
      ValueError: it is there and differs.
    """
    head, table = (foreign_of(names[name]).name for name in ("head_D_V", "embed_V_D"))
    if head not in folder.tensors or table not in folder.tensors:
        return None
    with Reader(folder.tensors) as reader:
        rows = folder.tensors[table].shape[0]
        some = [slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096)]
        same = folder.tensors[head].shape == folder.tensors[table].shape and all(
            reader.read(head, (part,)).tobytes() == reader.read(table, (part,)).tobytes()
            for part in some
        )
    if not same:
        raise ValueError(
            f"{folder.path}: config.json ties the head to the embedding, but {head} differs from "
            f"{table}; set tie_word_embeddings to false to use it, or remove the tensor"
        )
    return head


def load(
    folder: Folder | str | Path,
    model: Transformer,
    held: Mapping[tuple[str, ...], jax.Array] = MappingProxyType({}),
) -> Params:
    """Read the weights of a folder straight into the shards of a model's placement.

    Every shard of every leaf is read by byte range, stacked over L and cast to
    `compute.param_dtype`; the host holds `HOST_BYTES` of one shard at a time.

    Args:
      held: leaves by their path that are there already, and are not read.

    Raises:
      FileNotFoundError, ValueError: as `open_folder` and `match`, before any device is touched.
    """
    folder = folder if isinstance(folder, Folder) else open_folder(folder)
    sources: dict[tuple[str, ...], list[Tensor]] = {}
    for tensor in match(folder, model):
        sources.setdefault(tensor.path, []).append(tensor)
    abstract = model.abstract()
    with Reader(folder.tensors) as reader:

        def place(keys: tuple, leaf: Any, sharding: Any) -> jax.Array:
            path = tuple(str(key.key) for key in keys)
            if path in held:
                return held[path]
            tensors = sources[path]
            return _assemble(
                leaf, sharding, lambda index: _read_range(reader, tensors, leaf, index)
            )

        shardings = model.place.weights(abstract)
        return jax.tree_util.tree_map_with_path(place, abstract, shardings)


def _read_range(
    reader: Reader, tensors: list[Tensor], leaf: Any, index: tuple[slice, ...]
) -> np.ndarray:
    """Read one range of one leaf: that of each matrix that lies in it."""
    depth = len(tensors[0].entry)
    if not depth:
        value = from_foreign(tensors[0], leaf.shape, index, reader.read)
        return np.ascontiguousarray(value, leaf.dtype)
    ranges = [range(*own.indices(size)) for own, size in zip(index, leaf.shape, strict=True)]
    value = np.empty([len(own) for own in ranges], leaf.dtype)
    for tensor in tensors:
        if all(number in own for number, own in zip(tensor.entry, ranges, strict=False)):
            place = tuple(n - own.start for n, own in zip(tensor.entry, ranges, strict=False))
            value[place] = from_foreign(tensor, leaf.shape[depth:], index[depth:], reader.read)
    return value


def _assemble(
    leaf: Any, sharding: Any, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """Put each distinct shard on its devices, one after another; shared shards are read once."""
    devices: dict[tuple, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        shard = tuple(own.indices(size)[:2] for own, size in zip(index, leaf.shape, strict=True))
        devices.setdefault(shard, []).append(device)
    placed = []
    for shard, own in devices.items():
        placed += _place([slice(*side) for side in shard], leaf.dtype, own, read)
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)


def _place(
    shard: Sequence[slice],
    dtype: Any,
    devices: Sequence[Any],
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> list[jax.Array]:
    """Put one shard on devices, in pieces along its first axis where it exceeds `HOST_BYTES`."""
    rows, *rest = shard
    shape = [side.stop - side.start for side in shard]
    row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    step = max(HOST_BYTES // max(row_bytes, 1), 1)
    if shape[0] <= step:
        whole = read((rows, *rest))
        return jax.block_until_ready([jax.device_put(whole, device) for device in devices])
    held = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for start in range(0, shape[0], step):
        first = rows.start + start
        held = _fill(
            held, devices, read((slice(first, min(first + step, rows.stop)), *rest)), start
        )
    return held


def _fill(
    held: list[jax.Array], devices: Sequence[Any], piece: np.ndarray, start: int
) -> list[jax.Array]:
    """Write a piece into each device's array; nothing of it is on the host afterwards."""
    pieces = [jax.device_put(piece, device) for device in devices]
    return jax.block_until_ready(
        [_filled(whole, part, start) for whole, part in zip(held, pieces, strict=True)]
    )


@functools.partial(jax.jit, donate_argnums=0)
def _filled(held: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    """Write a piece into an array in place."""
    return jax.lax.dynamic_update_slice_in_dim(held, piece, start, axis=0)
