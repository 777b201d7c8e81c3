"""Where tensors lie in safetensors files, and parts of them by byte range."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from research.huggingface import mxfp4
from research.huggingface.family import Region


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a tensor lies: its file and name there, its safetensors dtype and its shape.

    Attributes:
      scales: where the scales of an MXFP4 tensor lie; it is then of the shape that it stands for.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: Stored | None = None


def stored_tensors(files: Iterable[Path], config: Mapping[str, Any]) -> dict[str, Stored]:
    """List where tensors lie; MXFP4 ones as the tensors that they stand for.

    Args:
      config: the `config.json` beside the files.

    Raises:
      ValueError: a file is cut off or is no safetensors file.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors |= _read_header(file)
    return _unpacked(tensors) if mxfp4.is_used(config) else tensors


def _read_header(file: Path) -> dict[str, Stored]:
    """List the tensors of one safetensors file.

    Raises:
      ValueError: the file is cut off or is no safetensors file.
    """
    try:
        with safe_open(file, framework="np") as held:
            slices = {name: held.get_slice(name) for name in held.keys()}  # noqa: SIM118
            return {
                name: Stored(
                    file=file, name=name, dtype=view.get_dtype(), shape=tuple(view.get_shape())
                )
                for name, view in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {_damage(file)} ({error})") from error


def _unpacked(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Present each pair of MXFP4 blocks and scales as the one tensor that it stands for."""
    found = dict(tensors)
    for name in tensors:
        plain = name.removesuffix(mxfp4.BLOCKS)
        if plain != name and plain + mxfp4.SCALES in tensors:
            blocks, scales = found.pop(name), found.pop(plain + mxfp4.SCALES)
            packed = {blocks.dtype, scales.dtype} == {"U8"}
            found[plain] = dataclasses.replace(
                blocks,
                dtype=mxfp4.DTYPE if packed else blocks.dtype,
                shape=mxfp4.unpacked_shape(plain, blocks.shape, scales.shape),
                scales=scales,
            )
    return found


def _damage(file: Path) -> str:
    """Say what is wrong with a safetensors file: 8 bytes of header size, JSON header, data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + header_bytes > size:
            return f"its header does not fit into its {size} bytes; it is cut off or another format"
        try:
            header = json.loads(stream.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header is not a safetensors header; it is damaged or another format"
    expected = 8 + header_bytes + max(ends, default=0)
    return f"it has {size} bytes, but its header describes {expected}; fetch it again"


class Reader(contextlib.ExitStack):
    """Ranges of stored tensors; each file is opened once."""

    def __init__(self, tensors: Mapping[str, Stored]):
        super().__init__()
        self._tensors, self._files = tensors, {}

    def read(self, name: str, region: Region) -> np.ndarray:
        """Give one part of one tensor, as the numbers that it stands for."""
        stored = self._tensors[name]
        if stored.scales is None:
            return self._stored(stored, region)
        return mxfp4.read(
            region,
            functools.partial(self._stored, stored),
            functools.partial(self._stored, stored.scales),
        )

    def _stored(self, stored: Stored, region: Region) -> np.ndarray:
        """Read from a file; a step of the last axis from its whole range, which is 40x faster."""
        if stored.file not in self._files:
            self._files[stored.file] = self.enter_context(safe_open(stored.file, framework="np"))
        view, last = self._files[stored.file].get_slice(stored.name), region[-1]
        if not isinstance(last, slice) or last.step in (None, 1):
            return view[region]
        return view[(*region[:-1], slice(last.start, last.stop))][..., :: last.step]
