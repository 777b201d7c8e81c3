"""The model that decoding and scoring are timed on: random weights in a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step import VOCABULARY, architecture


def write_folder(folder: Path) -> Path:
    """Write the reference shape (Qwen3-style, 9 million parameters) with random weights."""
    import jax

    from research.core.layout import Layout
    from research.huggingface.export import save
    from research.models.compute import Compute
    from research.models.transformer import Transformer

    model = Transformer(architecture(), Layout().on(jax.devices("cpu")[:1]), Compute())
    return save(folder, model, model.init(jax.random.key(0)))


def open_ours(folder: Path) -> tuple[Any, Any]:
    """Give (model, params) as maktab opens the folder."""
    import jax

    from research.core.layout import Layout
    from research.huggingface.folder import load, open_folder
    from research.models.compute import Compute
    from research.models.transformer import Transformer

    place = Layout().on(jax.devices("cpu")[:1])
    model = Transformer(open_folder(folder).architecture, place, Compute())
    return model, load(folder, model)


def open_theirs(folder: Path) -> Any:
    """Give the model as transformers opens the folder, with torch's threads as torch chooses."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompt_ids(rows: int, tokens: int) -> np.ndarray:
    """Draw the prompts, [B, T]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, tokens), dtype=np.int32)


def prompt_batch(ids_BT: np.ndarray) -> Any:
    """Give prompts without padding as maktab takes them."""
    from research.core.records import Batch

    ones_BT = np.ones_like(ids_BT)
    return Batch(
        tokens_BT=ids_BT,
        targets_BT=np.zeros_like(ids_BT),
        weights_BT=np.zeros_like(ids_BT, np.float32),
        positions_BT=np.cumsum(ones_BT, axis=1, dtype=np.int32) - 1,
        segments_BT=ones_BT,
        ids_BZ=np.arange(len(ids_BT), dtype=np.int32)[:, None],
    )
