"""What to do with the router when a mixture of experts is fine-tuned on something new?

Question: A small mixture whose experts know three domains learns to put a restaurant's data sheet
  into words (E2E NLG). Should its router stay frozen, be trained, or be adapted by LoRA; and does
  balancing its load, by a loss or without one, help or harm?
Method: stories260k is upcycled to 8 experts of which a token takes 2 (sigmoid router), and trained
  on Shakespeare, Hafez and Wikipedia for 200 steps with a balance loss (`base`): that is the
  mixture. It is then fine-tuned with LoRA of rank 8 on everything but the router, in six arms over
  three seeds: the router frozen, trained whole, or with LoRA of rank 8; the trained one also with
  the Switch loss (weight 0.1) and with loss-free balancing (rate 0.01), the frozen one with the
  latter. Measured: loss on kept-back sheets and, for what is forgotten, on kept-back rows of the
  domains; and on both of them the agreement of the chosen experts with those of the mixture before
  fine-tuning.
Expectation: a router that may move moves, and fits the sheets better; what it gains there it loses
  on the domains. Balance is not worth its price where all rows are of one kind.
Command: make moe (upcycles, trains `base`, exports it, and sweeps)
Result: on the sheets the router does not matter: 0.987 (frozen), 0.985 (trained) and 0.992 (LoRA)
  nats. A frozen router's choices drift all the same (69 % of assignments stay), a trained one's
  more (45 %; LoRA 53 %). A trained router leaves 16 % of experts idle; the Switch loss and
  loss-free balancing leave none, at no visible price. On the domains the loss goes from 2.26 to
  3.50 (frozen) and 3.9 to 4.1 (moved), a difference that three seeds do not carry after correction.
  Loss-free balancing of a frozen router costs 0.027 nats on the sheets (docs/moe.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from configs import curricula
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.parts import vary
from research.data.pool import Data
from research.data.selection import Columns, Deduplicated, Split
from research.data.sources import Jsonl
from research.evaluate.likelihood import Likelihood
from research.evaluate.routing import RouterDrift
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.models.moe.balancing import LossFree
from research.objectives.balance import Balanced, SwitchBalance
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Cosine
from research.tuning.full import Full
from research.tuning.lora import Lora

ASSETS = Path(__file__).resolve().parent / "assets"
RUNS = "runs/moe"  # from the repository's root, where `make moe` works
UPCYCLED, BASE = f"{RUNS}/upcycled", f"{RUNS}/base"
STEPS, SEEDS = 60, 3
SWITCH = 0.1  # of a sigmoid router: `moe_balance.py`, where 0.01 balances less
ROUTER, CORRECTION = "router_D_E", "router_correction_E"


def sheets(first: float, last: float, *, pack: bool = False) -> Data:
    """Give the rows of some of the data sheets, one row a sheet."""
    source = Jsonl(path=str(ASSETS / "e2e_nlg" / "valid.jsonl.gz"))
    distinct = Deduplicated(source=source, by="mr")
    part = Split(source=distinct, by="mr", fraction=(first, last), salt="quickstart")
    rows = Columns(source=part, prompt="{mr} =>", completion=" {text}")
    return Data(sources=(rows,), rows=8, row_tokens=288, pack=pack)


def domains(first: float, last: float) -> Data:
    """Give a part of the rows of three domains, one a row."""
    source = Jsonl(path=str(ASSETS / "domains" / "rows.jsonl.gz"))
    part = Split(source=source, by="id", fraction=(first, last), salt="domains")
    return Data(sources=(part,), rows=16, row_tokens=128, pack=False)


def balanced(weight: float) -> Balanced:
    """Give cross-entropy with the Switch balance loss."""
    return Balanced(objective=CrossEntropy(), losses=(SwitchBalance(weight=weight),))


def base() -> Iterator[Experiment]:
    """Yield the training that makes a mixture of specialists of an upcycled model."""
    yield vary(
        get_config(),
        {
            "name": "base",
            "model.folder": UPCYCLED,
            "data": domains(0.0, 0.94),
            "tuning": Full(),
            "objective": balanced(SWITCH),
            "schedule.peak_lr": 3e-3,
            "clock": Clock(steps=200, cycle_steps=25, save_every=0, evaluate_every=4),
            "evaluators": (
                Likelihood(name="domains", data=domains(0.94, 1.0), slice_by=("domain",)),
                RouterDrift(name="routes", data=domains(0.94, 1.0), slice_by=("domain",)),
            ),
        },
    )


def get_config() -> Experiment:
    """Give the control: the router is frozen, and nothing balances it."""
    return Experiment(
        name="frozen",
        model=Pretrained(folder=BASE),
        data=sheets(0.0, 0.8, pack=True),
        tuning=Lora(rank=8, alpha=16.0),
        objective=CrossEntropy(),
        optimizer=AdamW(b2=0.95, weight_decay=0.01),
        schedule=Cosine(peak_lr=1e-2, warmup_fraction=0.1, final_fraction=0.1),
        curriculum=curricula.random(),
        clock=Clock(steps=STEPS, cycle_steps=15, save_every=0, evaluate_every=2),
        evaluators=(
            Likelihood(name="sheets", data=sheets(0.8, 1.0)),
            Likelihood(name="domains", data=domains(0.94, 1.0), slice_by=("domain",)),
            RouterDrift(name="routes-sheets", data=sheets(0.8, 1.0)),
            RouterDrift(name="routes-domains", data=domains(0.94, 1.0), slice_by=("domain",)),
        ),
        checkpoints=Checkpoints(keep_last=1),
    )


def arms() -> dict[str, dict]:
    """Give what each arm changes of the control: the router at no balance, then the balance."""
    trained = {"tuning.trained": (ROUTER,)}
    loss_free = {"balancing": LossFree(rate=0.01)}
    return {
        "frozen": {},
        "trained": trained,
        "LoRA": {"tuning.targets": ("all_linear", ROUTER)},
        "trained, switch": {**trained, "objective": balanced(SWITCH)},
        "trained, loss-free": {"tuning.trained": (ROUTER, CORRECTION), **loss_free},
        "frozen, loss-free": {"tuning.trained": (CORRECTION,), **loss_free},
    }


def sweep() -> Iterator[Experiment]:
    """Yield every arm at every seed."""
    for seed in range(SEEDS):
        for name, changes in arms().items():
            yield vary(get_config(), {"name": name, "seed": seed, **changes})
