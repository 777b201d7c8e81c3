"""Optimisers and schedules by name, with settings that their authors or others found to work."""

from __future__ import annotations

from research.optimizers.adafactor import Adafactor
from research.optimizers.adamw import AdamW
from research.optimizers.lion import Lion
from research.optimizers.muon import Muon
from research.optimizers.schedules import Constant, Cosine, Linear, WarmupStableDecay
from research.optimizers.sgd import Sgd


def adamw(*, weight_decay: float = 0.01) -> AdamW:
    """AdamW with the defaults of PyTorch."""
    return AdamW(weight_decay=weight_decay)


def adamw_llm(*, weight_decay: float = 0.1) -> AdamW:
    """AdamW as language models are trained since GPT-3: a shorter memory of squares, more decay."""
    return AdamW(b1=0.9, b2=0.95, weight_decay=weight_decay)


def sgd(*, momentum: float | None = 0.9, nesterov: bool = False) -> Sgd:
    """SGD with heavy-ball momentum."""
    return Sgd(momentum=momentum, nesterov=nesterov)


def adafactor(*, weight_decay: float = 0.0) -> Adafactor:
    """Adafactor with steps relative to the weights: about 4 bytes of state a row and a column.

    A peak_lr of 1e-3 is usual (T5, arXiv 1910.10683).
    """
    return Adafactor(weight_decay=weight_decay)


def lion(*, weight_decay: float = 0.1) -> Lion:
    """Lion for language models: b1 0.95, b2 0.98; a third to a tenth of AdamW's learning rate.

    Source: Chen et al. 2023, arXiv 2302.06675, section 5.
    """
    return Lion(b1=0.95, b2=0.98, weight_decay=weight_decay)


def muon(*, weight_decay: float = 0.1) -> Muon:
    """Muon at AdamW's learning rate and decay, AdamW for vectors, embedding and head.

    Source: Liu et al. 2025, arXiv 2502.16982.
    """
    return Muon(weight_decay=weight_decay, rest=adamw_llm(weight_decay=weight_decay))


def constant(peak_lr: float, *, warmup_fraction: float = 0.03) -> Constant:
    """A short warm-up, then one learning rate."""
    return Constant(peak_lr=peak_lr, warmup_fraction=warmup_fraction)


def linear(peak_lr: float, *, warmup_fraction: float = 0.03) -> Linear:
    """A short warm-up, then a straight line to zero."""
    return Linear(peak_lr=peak_lr, warmup_fraction=warmup_fraction)


def cosine(peak_lr: float, *, warmup_fraction: float = 0.03) -> Cosine:
    """A short warm-up, then half a cosine to a tenth of the peak."""
    return Cosine(peak_lr=peak_lr, warmup_fraction=warmup_fraction, final_fraction=0.1)


def stable(peak_lr: float, *, warmup_fraction: float = 0.01) -> WarmupStableDecay:
    """One learning rate, brought to zero over the last tenth: continue from before it at will.

    Source: Hu et al. 2024, arXiv 2404.06395, which finds a tenth enough.
    """
    return WarmupStableDecay(peak_lr=peak_lr, warmup_fraction=warmup_fraction, decay_fraction=0.1)


def edco_release() -> tuple[AdamW, Linear]:
    """The optimiser and the schedule (one span a round) of EDCO's released fine-tuning code."""
    return adamw_llm(weight_decay=0.1), Linear(peak_lr=2.5e-6, final_fraction=0.05)
