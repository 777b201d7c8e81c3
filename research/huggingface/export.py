"""Write a model as a Hugging Face folder that other tools load."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from research.core.processes import require_here
from research.huggingface.family import (
    Family,
    Tensor,
    by_name,
    foreign_value,
    tensors_of,
    write_architecture,
)
from research.huggingface.folder import INDEX_NAME, SINGLE_NAME, family_of, read_json
from research.models.transformer import Params, Transformer

MAX_SHARD_BYTES = 4 * 10**9
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates",
)  # fmt: skip


def save(
    folder: str | Path,
    model: Transformer,
    params: Params,
    *,
    dtype: str | None = None,
    source: str | Path | None = None,
    family: Family | None = None,
    tokenizer_folder: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write `config.json`, `generation_config.json`, tokenizer files and safetensors weights.

    The folder appears whole or not at all: it is written beside itself and renamed.

    Args:
      params: plain arrays (merge adapters first).
      dtype: of the stored weights; None: the model's `param_dtype`.
      source: the folder that the model came from: its family, token ids and generation settings
        (and, unless `tokenizer_folder` is given, its tokenizer) are carried over.
      family: where it is another than the source's, as of an upcycled model.
      tokenizer_folder: a folder with tokenizer files, or one SentencePiece `.model`.
      max_shard_bytes: the host holds so many bytes of weights at once.

    Raises:
      FileExistsError: the folder is there and not empty.
      ValueError: no family can say this architecture, or a leaf is not a plain array.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; remove it or choose another place"
        )
    dtype = dtype or model.compute.param_dtype
    origin = {} if source is None else read_json(Path(source) / "config.json")
    family = family or family_of(model.arch, source)
    config = _config(family, model, origin, dtype)
    _require_plain(params)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        _write_json(temporary / "config.json", config)
        _write_generation(temporary, config, source)
        copy_tokenizer(tokenizer_folder or source, temporary)
        _write_weights(temporary, family, model, params, np.dtype(dtype), max_shard_bytes)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return folder


def _config(
    family: Family, model: Transformer, origin: dict[str, Any], dtype: str
) -> dict[str, Any]:
    ids = {name: origin[name] for name in TOKEN_IDS if name in origin}
    return write_architecture(family, model.arch) | ids | {"torch_dtype": dtype, "use_cache": True}


def _require_plain(params: Params) -> None:
    require_here(params, "a model folder")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda x: not isinstance(x, dict)
    ):
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise ValueError(
                f"{jax.tree_util.keystr(keys)} is a {type(leaf).__name__}, expected an array; "
                "merge adapters before saving"
            )


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_generation(folder: Path, config: dict[str, Any], source: Any) -> None:
    """Carry the generation settings over; without any, the token ids are what is known."""
    name = "generation_config.json"
    if source is not None and (Path(source) / name).is_file():
        shutil.copyfile(Path(source) / name, folder / name)
    else:
        _write_json(folder / name, {key: config[key] for key in TOKEN_IDS if key in config})


def copy_tokenizer(source: str | Path | None, folder: Path) -> None:
    """Copy a tokenizer's files from a folder (or a single SentencePiece file) into `folder`."""
    if source is None:
        return
    source = Path(source)
    if source.is_file():
        shutil.copyfile(source, folder / "tokenizer.model")
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_weights(
    folder: Path, family: Family, model: Transformer, params: Params, dtype: np.dtype, limit: int
) -> None:
    """Write one file, or shards with their index; a shard holds at least one tensor."""
    tensors = by_name(tensors_of(family, model.arch, params)).values()
    shards = tuple(_shards(tensors, dtype.itemsize, limit))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = SINGLE_NAME if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard, params, dtype)
        shutil.copymode(folder / "config.json", folder / name)  # the library makes it private
        weight_map |= dict.fromkeys((parts[0].name for parts in shard), name)
    if len(shards) > 1:
        count = sum(math.prod(parts[0].shape) for parts in tensors)
        metadata = {"total_parameters": count, "total_size": count * dtype.itemsize}
        _write_json(folder / INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})


def _write_shard(file: Path, shard: list[list[Tensor]], params: Params, dtype: np.dtype) -> None:
    """Write one file; its tensors are on the host no longer than this takes."""
    arrays = {parts[0].name: foreign_value(params, *parts, dtype=dtype) for parts in shard}
    save_file(arrays, file, metadata={"format": "pt"})


def _shards(
    tensors: Iterable[list[Tensor]], itemsize: int, limit: int
) -> Iterator[list[list[Tensor]]]:
    """Fill one shard after the other, in the order of layers; each tensor comes with its parts."""
    shard: list[list[Tensor]] = []
    held = 0
    for parts in sorted(tensors, key=lambda parts: (parts[0].entry, parts[0].path)):
        size = math.prod(parts[0].shape) * itemsize
        if shard and held + size > limit:
            yield shard
            shard, held = [], 0
        shard.append(parts)
        held += size
    yield shard
