"""A tiny mixture of experts from scratch: does its router collapse, and what keeps it from that?

Question: Sixteen experts, of which a token takes one, are trained from scratch on three domains
  (Shakespeare, Hafez in Persian, Wikipedia). Do all experts get tokens if nothing balances them?
Method: 0.9 M parameters, 4 layers, sigmoid top-1 router, AdamW at 1e-2, 240 steps; four arms over
  three seeds: no balance, the Switch balance loss at weights 0.01 and 0.1, and loss-free balancing
  (the selection bias moves by 0.01 a step). Load is what each expert gets in the last 20 steps; an
  expert is idle where that is less than a tenth of the mean.
Expectation: without balance a few experts take most tokens; either remedy prevents it, at little
  cost in loss.
Command: maktab sweep experiments/moe_balance.py --workdir runs/moe/balance (or make moe)
Result: without balance the loads vary by 1.51 of their mean [1.21, 1.81], the busiest of 16 experts
  takes 5.3 times its share and 36 % of the experts are idle. Switch 0.01: 0.56, 2.4 times, 2 %;
  Switch 0.1: 0.26, 1.7 times, none; loss-free: 0.08, 1.2 times, none. Test loss 2.804, 2.826, 2.848
  and 2.833 nats: the differences could be chance (docs/moe.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs import curricula
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.parts import vary
from research.data.pool import Data
from research.data.selection import Split
from research.data.sources import Jsonl
from research.evaluate.likelihood import Likelihood
from research.evaluate.routing import RouterDrift
from research.experiment import Experiment
from research.models.architecture import Architecture, Moe
from research.models.moe.balancing import LossFree
from research.models.moe.sigmoid_top_k import SigmoidTopK
from research.objectives.balance import Balanced, SwitchBalance
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Cosine
from research.tuning.full import Full

ASSETS = Path(__file__).resolve().parent / "assets"
STEPS, SEEDS = 240, 3
ARCHITECTURE = Architecture(
    vocab_size=512,
    model_dim=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffw_dim=64,
    tied_head=True,
    max_positions=512,
    moe=Moe(
        num_experts=16,
        experts_per_token=1,
        expert_dim=64,
        router=SigmoidTopK(normalise=False),
    ),
)


def domains(first: float, last: float) -> Data:
    """Give a part of the rows of three domains, one a row, 16 in a batch."""
    source = Jsonl(path=str(ASSETS / "domains" / "rows.jsonl.gz"))
    part = Split(source=source, by="id", fraction=(first, last), salt="domains")
    return Data(sources=(part,), rows=16, row_tokens=128, pack=False)


def get_config() -> Experiment:
    """Give the control: nothing balances the router."""
    held_out = domains(0.9, 1.0)
    return Experiment(
        name="no balance",
        model=ARCHITECTURE,
        tokenizer=str(ASSETS / "stories260k"),
        data=domains(0.0, 0.9),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(b2=0.95, weight_decay=0.01),
        schedule=Cosine(peak_lr=1e-2, warmup_fraction=0.1, final_fraction=0.1),
        curriculum=curricula.random(),
        clock=Clock(steps=STEPS, cycle_steps=20, save_every=0, evaluate_every=3),
        evaluators=(
            Likelihood(name="test", data=held_out, slice_by=("domain",)),
            RouterDrift(name="routes", data=held_out, slice_by=("domain",)),
        ),
        checkpoints=Checkpoints(keep_last=1),
    )


def sweep() -> Iterator[Experiment]:
    """Yield every arm at every seed."""

    def switch(weight: float) -> dict:
        loss = SwitchBalance(weight=weight)
        return {"objective": Balanced(objective=CrossEntropy(), losses=(loss,))}

    arms = {
        "no balance": {},
        "switch": switch(0.01),
        "switch x10": switch(0.1),
        "loss-free": {"balancing": LossFree(rate=0.01)},
    }
    for seed in range(SEEDS):
        for name, changes in arms.items():
            yield vary(get_config(), {"name": name, "seed": seed, **changes})
