"""Bayesian search on the quick start: which learning rate, and how much of the model to train?

Question: Full fine-tuning or LoRA, and at which learning rate, brings the small model (stories260k,
  E2E NLG) to the lowest test loss in 40 steps? And what does successive halving save?
Method: 12 trials over peak_lr (1e-4 to 1e-1, logarithmic) x {full, LoRA of rank 4, of rank 16}:
  four drawn, the others by Tpe, two at a time. Halving with eta = 2 at a quarter and a half of the
  run, by test loss on held-out data sheets. The same test sheets choose and judge, so the loss of
  the best trial is a little too good; a comparison of methods would need a third set.
Expectation: full fine-tuning near 3e-3; LoRA needs a rate several times higher and comes close.
Command: maktab sweep experiments/search_lr.py --jobs 2   (pip install 'maktab[search]')
Result: Full fine-tuning at 3.1e-3: 0.827 nats [0.757, 0.898] from 4.509 (8.1e-3: 0.859, 1.4e-3:
  0.946). The best LoRA, rank 16 at 8.3e-3, is 0.16 nats behind, though with few trials.
  Above 3e-2 and below 2e-4 everything was left behind. Halving made 280 of 480 steps and 2.65 of
  4.7 TFLOP; 8 of 12 trials were hopeless, 4 at the first rung.
"""

from __future__ import annotations

from pathlib import Path

from configs import curricula
from configs.e2e_nlg import POOL, TEST, sheets
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Cosine
from research.sweep.halving import Halving
from research.sweep.plan import Search
from research.sweep.space import Choice, LogUniform
from research.sweep.tpe import Tpe
from research.tuning.full import Full
from research.tuning.lora import Lora

ASSETS = str(Path(__file__).resolve().parent / "assets")


def get_config() -> Experiment:
    """Give what all trials have in common."""
    return Experiment(
        name="search",
        model=Pretrained(folder=f"{ASSETS}/stories260k"),
        data=sheets(ASSETS, POOL, rows=16),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(b2=0.95, weight_decay=0.01),
        schedule=Cosine(peak_lr=2e-3, warmup_fraction=0.1, final_fraction=0.1),
        curriculum=curricula.random(),
        clock=Clock(steps=40, cycle_steps=10, save_every=0, evaluate_every=1),
        evaluators=(Likelihood(name="test", data=sheets(ASSETS, TEST, rows=16)),),
        checkpoints=Checkpoints(keep_last=1),
    )


def search() -> Search:
    """Give the search."""
    tunings = (Full(), Lora(rank=4, alpha=8.0), Lora(rank=16, alpha=32.0))
    return Search(
        base=get_config(),
        space={
            "schedule.peak_lr": LogUniform(low=1e-4, high=1e-1),
            "tuning": Choice(values=tunings),
        },
        method=Tpe(trials=12, at_once=2, startup=4),
        metric="test/loss_nats",
        halving=Halving(eta=2, rungs=2),
    )
