"""Which tokens end an answer, as a model's folder declares them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def stop_ids(folder: Path | None, eos_id: int | None) -> tuple[int, ...]:
    """Give the tokens that end a generated answer: the tokenizer's EOS, and the folder's.

    `generation_config.json` decides, and where it says nothing `config.json`; both may name one
    token or several (the end of turn and the end of text, say).
    """
    found = set() if eos_id is None else {eos_id}
    for name in () if folder is None else ("generation_config.json", "config.json"):
        declared = _eos((folder / name)) if (folder / name).exists() else set()
        if declared:
            return tuple(sorted(found | declared))
    return tuple(sorted(found))


def _eos(file: Path) -> set[int]:
    config: Mapping[str, Any] = json.loads(file.read_text())
    value = config.get("eos_token_id")
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}
