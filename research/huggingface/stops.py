"""Which tokens end an answer, as a model's folder declares them."""

from __future__ import annotations

from pathlib import Path

from research.huggingface.folder import read_json


def stop_ids(folder: Path | None, eos_id: int | None) -> tuple[int, ...]:
    """Give the tokens that end a generated answer: the tokenizer's EOS, and the folder's.

    `generation_config.json` decides, and where it says nothing `config.json`; both may name one
    token or several (the end of turn and the end of text, say).

    Raises:
      ValueError: a file is not JSON, or what it declares are no token ids.
    """
    found = set() if eos_id is None else {eos_id}
    files = [] if folder is None else [folder / "generation_config.json", folder / "config.json"]
    for file in files:
        declared = _declared(file) if file.exists() else set()
        if declared:
            return tuple(sorted(found | declared))
    return tuple(sorted(found))


def _declared(file: Path) -> set[int]:
    value = read_json(file).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(id, int) for id in ids):
        raise ValueError(f"{file}: eos_token_id is {value!r}; expected a token id or a list of ids")
    return set(ids)
