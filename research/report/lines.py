"""JSON lines on disk: written whole, read strictly, and cut back after a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def encode(value: Mapping[str, Any]) -> str:
    """Write one line of strict JSON: array scalars become numbers, what is not finite null."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append(path: Path, lines: Iterable[str]) -> None:
    """Append whole lines and wait until they are on the disk."""
    with path.open("ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Read a file of JSON objects: (objects, whether the last line was torn and left out).

    A last line without its newline is what a killed run leaves behind; every other line that is not
    a JSON object is an error.

    Raises:
      ValueError: naming file and line.
    """
    pieces = path.read_bytes().split(b"\n")
    torn = pieces.pop() != b""
    return [_decode(piece, path, number) for number, piece in enumerate(pieces, 1)], torn


def _decode(piece: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(piece)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}:{number}: not JSON ({error}): {piece[:60]!r}; expected one object a line; "
            "restore the file, or remove the line"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{number}: {piece[:60]!r} is no JSON object; expected one a line")
    return value


def cut_after(path: Path, step: int) -> None:
    """Drop, in place, a torn last line and all from the first line whose "step" exceeds `step`."""
    kept = 0
    with path.open("rb+") as file:
        for number, piece in enumerate(file, 1):
            if not piece.endswith(b"\n"):
                break
            line = _decode(piece, path, number)
            if "step" not in line:
                raise ValueError(f'{path}:{number}: has no "step"; expected one in every line')
            if line["step"] > step:
                break
            kept += len(piece)
        file.truncate(kept)
        file.flush()
        os.fsync(file.fileno())
