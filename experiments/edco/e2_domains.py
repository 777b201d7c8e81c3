"""E2: does the answer depend on the domain, and what is forgotten?

Question: EDCO's gains are reported for telecommunication, medicine and law. Do the arms of E1
  differ in any of these domains, and do they forget different amounts of what the base knew?
Method: Questions of each domain as their authors publish them, asked with letters after the
  training chat template; a part of each set is only asked. Retention: accuracy on general
  questions (subjects of MMLU outside the domains).
Expectation: no arm ahead in all three; forgetting grows with the learning rate, not with the order.
Command: maktab sweep experiments/edco/e2_domains.py   (data: experiments/edco/README.md)
  On a laptop, closed-book with the small base: --generator small
Result: not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from configs import curricula, domains
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.parts import vary
from research.core.protocols import Source
from research.curriculum.curriculum import Curriculum
from research.data.pool import Data
from research.data.question_sets import Mmlu
from research.data.rows import Rendering
from research.data.selection import Deduplicated
from research.data.sources import Jsonl
from research.evaluate.choice import MultipleChoice
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.models.compute import Compute
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Linear
from research.tuning.full import Full

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DATA = "data"
SEEDS = 5
GENERAL = ("global_facts", "high_school_geography", "miscellaneous", "marketing", "sociology")


def get_config() -> Experiment:
    """Give the control arm on telecommunication."""
    return experiment("telecom", domains.telecom(DATA))


def experiment(domain: str, sets: Mapping[str, Source]) -> Experiment:
    """Give plain random order on a domain, with the authors' settings."""
    rendering = Rendering(answer="letter_and_text", shuffle_options=0)
    shape = {"row_tokens": 1024, "rendering": rendering, "pack": False, "truncate": True}

    def part(name: domains.Part) -> tuple[Source, ...]:
        return tuple(domains.cut(source, name) for source in sets.values())

    general = tuple(Mmlu(path=f"{DATA}/MMLU/data/test/{subject}_test.csv") for subject in GENERAL)
    return Experiment(
        name=f"{domain}: random",
        model=Pretrained(folder="Qwen/Qwen3-4B"),
        data=Data(sources=part("pool"), rows=8, **shape),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(b1=0.9, b2=0.95, weight_decay=0.1),
        schedule=Linear(peak_lr=2.5e-6, final_fraction=0.05),
        schedule_spans_round=True,
        curriculum=curricula.random(),
        clock=Clock(steps=8 * 218, cycle_steps=109, save_every=2, evaluate_every=0),
        compute=Compute(dtype="bfloat16", remat="full"),
        evaluators=(
            MultipleChoice(
                name="domain", data=Data(sources=part("test"), rows=32, **shape), by=("letter",)
            ),
            MultipleChoice(
                name="retention", data=Data(sources=general, rows=32, **shape), by=("letter",)
            ),
        ),
        checkpoints=Checkpoints(keep_last=1),
    )


def arms(fraction: float, rounds: int, prefix: int, instruction: str) -> dict[str, Curriculum]:
    """Give the controls and EDCO."""
    scored = {"prefix_tokens": prefix, "instruction": instruction}
    return {
        "random": curricula.random(),
        "round-wise random": curricula.round_wise_random(fraction=fraction, rounds=rounds),
        "EDCO": curricula.edco(fraction=fraction, rounds=rounds, **scored),
    }


def sweep() -> Iterator[Experiment]:
    """Yield each arm in each domain at each seed."""
    sets = {
        "telecom": domains.telecom(DATA),
        "medicine": domains.medicine(DATA),
        "law": domains.law(DATA),
    }
    for domain, there in sets.items():
        control = experiment(domain, there)
        yield from compare(control, domain, arms(0.25, 8, 64, curricula.QUICK_ANSWER))


def small() -> Iterator[Experiment]:
    """Yield the same for the small base, closed-book, on sets that are already converted."""
    mmlu = Jsonl(path=f"{DATA}/mmlu/test.jsonl.gz")
    sets: dict[str, tuple[Source, ...]] = {
        "telecom": (Jsonl(path=str(ASSETS / "oran_bench" / "train.jsonl.gz")),),
        "medicine": (
            Jsonl(path=f"{DATA}/medmcqa/train.jsonl.gz"),
            Jsonl(path=f"{DATA}/medqa/train.jsonl.gz"),
        ),
        "everything else": (mmlu,),
    }
    for domain, there in sets.items():
        yield from compare(small_experiment(domain, there), domain, arms(0.25, 4, 32, ""))


def small_experiment(domain: str, sets: tuple[Source, ...]) -> Experiment:
    """Give plain random order on a domain for the small base."""
    shape = {
        "row_tokens": 128,
        "rendering": Rendering(template=False),
        "pack": False,
        "truncate": True,
    }

    def part(name: domains.Part) -> tuple[Source, ...]:
        return tuple(
            domains.cut(Deduplicated(source=source, by="question"), name) for source in sets
        )

    def asked(sources: tuple[Source, ...], name: str) -> MultipleChoice:
        data = Data(sources=tuple(map(domains.cloze, sources)), rows=64, **shape)
        return MultipleChoice(name=name, data=data, by=("text",), cloze=" {option}")

    stories = Data(sources=(Jsonl(path=f"{DATA}/tinystories/dev.jsonl.gz"),), rows=32, **shape)
    return vary(
        experiment(domain, {"own": sets[0]}),
        {
            "model": Pretrained(folder=str(ASSETS / "edco_base")),
            "data": Data(sources=tuple(map(domains.closed_book, part("pool"))), rows=16, **shape),
            "schedule": Linear(peak_lr=3e-4, warmup_fraction=0.05, final_fraction=0.05),
            "clock": Clock(steps=184, cycle_steps=46, save_every=0, evaluate_every=0),
            "compute": Compute(),
            "max_leaked_fraction": 1.0,
            "evaluators": (
                asked(part("test"), "domain"),
                Likelihood(name="retention", data=stories),
            ),
        },
    )


def compare(
    control: Experiment, domain: str, curriculums: Mapping[str, Curriculum]
) -> Iterator[Experiment]:
    """Yield each arm at each seed."""
    for seed in range(SEEDS):
        for name, curriculum in curriculums.items():
            changes = {"name": f"{domain}: {name}", "seed": seed, "curriculum": curriculum}
            yield vary(control, changes)
