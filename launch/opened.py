"""A model folder, from its files to arrays on the devices that are here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from rich.console import Console

from configs import layouts
from research.core.layout import Placement
from research.core.protocols import Tree
from research.data.tokenizer import Tokenizer, open_tokenizer
from research.huggingface.folder import match, open_folder
from research.huggingface.open import open_model, tokenizer_folder
from research.huggingface.peft import separates_head
from research.huggingface.pretrained import locate
from research.huggingface.stops import stop_ids
from research.models.compute import Compute
from research.models.transformer import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that can be asked."""

    model: Transformer
    params: Tree
    place: Placement
    tokenizer: Tokenizer | None
    stop_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A model folder whose files are known to fit together; no weight has been read.

    Attributes:
      model: the folder's own, before an adapter parts embedding and head.
      stop_ids: tokens that end an answer, as the tokenizer and the folder declare them.
    """

    path: Path
    adapter: str | None
    model: Transformer
    tokenizer: Tokenizer | None
    stop_ids: tuple[int, ...]

    def load(self, console: Console) -> Opened:
        """Read the weights onto the devices that are here, each of which holds all of them."""
        with console.status(f"loading {self.path}"):
            model, params, _ = open_model(
                self.path,
                adapter=self.adapter,
                compute=self.model.compute,
                place=self.model.place,
            )
            jax.block_until_ready(params)
        return Opened(
            model=model,
            params=params,
            place=model.place,
            tokenizer=self.tokenizer,
            stop_ids=self.stop_ids,
        )


def find(folder: str, adapter: str | None, dtype: str) -> Found:
    """Open a model folder and an adapter's, and see that everything a model needs is there.

    Args:
      dtype: in which the model is computed and its weights are held.

    Raises:
      FileNotFoundError, ValueError: what is missing, damaged or not supported, and the remedy.
    """
    compute = Compute(dtype=dtype, param_dtype=dtype)
    opened = open_folder(locate(folder))
    model = Transformer(opened.architecture, layouts.data().on(jax.devices()), compute)
    match(opened, model)
    if adapter is not None:
        separates_head(adapter, model, source=opened.path)
    texts = tokenizer_folder(opened.path)
    tokenizer = None if texts is None else open_tokenizer(str(texts))
    return Found(
        path=opened.path,
        adapter=adapter,
        model=model,
        tokenizer=tokenizer,
        stop_ids=stop_ids(opened.path, None if tokenizer is None else tokenizer.eos_id),
    )
