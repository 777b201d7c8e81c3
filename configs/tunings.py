"""Tunings by name: what is trained."""

from __future__ import annotations

from research.tuning.full import Full
from research.tuning.lora import Lora


def full() -> Full:
    """Train every parameter."""
    return Full()


def lora(rank: int = 16, *, alpha: float | None = None, dropout: float | None = None) -> Lora:
    """Adapt every kernel of the layers; alpha is twice the rank unless it is given.

    Adapting all linear layers matters more than the rank (Dettmers et al. 2023, arXiv 2305.14314,
    section 4). Its learning rate is about ten times that of full fine-tuning.
    """
    return Lora(rank=rank, alpha=2.0 * rank if alpha is None else alpha, dropout=dropout)


def rslora(rank: int = 64, *, alpha: float = 16.0, dropout: float | None = None) -> Lora:
    """Adapt every kernel of the layers with a scale of alpha / sqrt(rank), for large ranks."""
    return Lora(rank=rank, alpha=alpha, rslora=True, dropout=dropout)


def lora_query_value(rank: int = 8, *, alpha: float = 16.0) -> Lora:
    """Adapt queries and values alone, as the LoRA paper does and PEFT by default."""
    return Lora(rank=rank, alpha=alpha, targets=("query_D_KGH", "value_D_KH"))


def lora_with_vocabulary(rank: int = 16, *, alpha: float | None = None, tied: bool) -> Lora:
    """Adapt every kernel, embedding and head included: for a new language or domain.

    Args:
      tied: whether the model's head is its embedding; then one adapter serves both.
    """
    ends = ("embed_V_D",) if tied else ("embed_V_D", "head_D_V")
    alpha = 2.0 * rank if alpha is None else alpha
    return Lora(rank=rank, alpha=alpha, targets=("all_linear", *ends))
