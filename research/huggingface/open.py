"""Open a model folder, with an adapter where there is one, ready to be applied."""

from __future__ import annotations

from pathlib import Path

from research.core.layout import Placement
from research.huggingface.folder import load, open_folder
from research.huggingface.peft import read_adapter, separates_head, untie
from research.huggingface.pretrained import locate
from research.models.compute import Compute
from research.models.transformer import Params, Transformer

TOKENIZER_ALONE = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which one is enough to make a tokenizer."""


def open_model(
    folder: str | Path, *, adapter: str | Path | None = None, compute: Compute, place: Placement
) -> tuple[Transformer, Params, Path | None]:
    """Give (model, parameters, the folder's tokenizer or None where it has none).

    An adapter stays what it is, low-rank leaves over the folder's weights: nothing is merged. Where
    it adapts embedding and head of a tied model differently, the model gets a head of its own.

    Raises:
      FileNotFoundError, ValueError: as `open_folder`, `load` and `read_adapter`.
    """
    opened = open_folder(locate(folder))
    model = Transformer(opened.architecture, place, compute)
    params = load(opened, model)
    if adapter is not None:
        if separates_head(adapter, model, source=opened.path):
            model, params = untie(model, params)
        tuning, trainable = read_adapter(adapter, model, params, source=opened.path)
        params = tuning.join(trainable, params)
    return model, params, tokenizer_folder(opened.path)


def tokenizer_folder(folder: Path) -> Path | None:
    """Give the folder itself where it holds a tokenizer."""
    return folder if any((folder / name).is_file() for name in TOKENIZER_ALONE) else None
