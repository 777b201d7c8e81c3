"""E2: does the answer depend on the domain, and what is forgotten?

Question: EDCO's gains are reported for telecommunication, medicine and law. Do the arms of E1
  differ in any of these domains, and do they forget different amounts of what the base knew?
Method: Questions of each domain as their authors publish them, asked with letters after the
  training chat template; a part of each set is only asked. Retention: accuracy on general
  questions (subjects of MMLU outside the domains); for the small base, loss of stories, before
  training too. Its pool leaves out questions of more than 128 tokens (law: 512).
Expectation: no arm ahead in all three; forgetting grows with the learning rate, not with the order.
Command: maktab sweep experiments/edco/e2_domains.py   (data: experiments/edco/README.md)
  On a laptop, closed-book with the small base: --generator small
Result: not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from configs import curricula, domains, edco
from research.core.parts import vary
from research.core.protocols import Source
from research.curriculum.curriculum import Curriculum
from research.data.question_sets import Mmlu, TeleQna
from research.data.selection import Deduplicated, Where
from research.data.sources import Jsonl
from research.evaluate.choice import MultipleChoice
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment

ASSETS = str(Path(__file__).resolve().parent.parent / "assets")
DATA = "data"
LEFT_OUT = 0.25
GENERAL = ("global_facts", "high_school_geography", "miscellaneous", "marketing", "sociology")


def get_config() -> Experiment:
    """Give the control arm on telecommunication."""
    return experiment("telecom", domains.telecom(DATA))


def experiment(domain: str, sets: Mapping[str, Source], hub: str = edco.QWEN3) -> Experiment:
    """Give plain random order on a domain, with the authors' settings."""

    def part(name: domains.Part) -> tuple[Source, ...]:
        return tuple(domains.cut(source, name) for source in sets.values())

    def letters(name: str, *sources: Source) -> MultipleChoice:
        data = edco.lettered(*sources, rows=32, truncate=True)
        return MultipleChoice(name=name, data=data, by=("letter",))

    general = tuple(Mmlu(path=f"{DATA}/MMLU/data/test/{subject}_test.csv") for subject in GENERAL)
    return vary(
        edco.released(ASSETS, hub),
        {
            "name": f"{domain}: random",
            "data": edco.lettered(*part("pool"), rows=8, truncate=True, held_out=part("test")),
            "evaluators": (letters("domain", *part("test")), letters("retention", *general)),
        },
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
    """Yield each arm in each domain at each seed, on Qwen3-4B."""
    yield from study(edco.QWEN3)


def llama() -> Iterator[Experiment]:
    """Yield the same on Llama-3.2-3B."""
    yield from study(edco.LLAMA)


def study(hub: str) -> Iterator[Experiment]:
    """Yield each arm in each domain at each seed."""
    sets = {
        "telecom": domains.telecom(DATA),
        "medicine": domains.medicine(DATA),
        "law": domains.law(DATA),
    }
    for domain, there in sets.items():
        control = experiment(domain, there, hub)
        yield from compare(control, domain, arms(0.25, 8, 64, curricula.QUICK_ANSWER))


def small() -> Iterator[Experiment]:
    """Yield the same for the small base, closed-book, on sets that are already converted.

    Professional law has a larger test, four tenths, for lack of rows, 640 questions, and long ones.
    """
    mmlu = Jsonl(path=f"{DATA}/mmlu/test.jsonl.gz")
    oran = Jsonl(path=f"{ASSETS}/oran_bench/train.jsonl.gz")
    sets: dict[str, tuple[Source, ...]] = {
        "telecom": (oran, TeleQna(path=f"{DATA}/teleqna/TeleQnA.zip")),
        "medicine": (
            Jsonl(path=f"{DATA}/medmcqa/train.jsonl.gz"),
            Jsonl(path=f"{DATA}/medqa/train.jsonl.gz"),
        ),
        "law": (Where(source=mmlu, by="subject", values=("professional_law",)),),
    }
    for domain, there in sets.items():
        shape = {"tested_from": 0.6, "row_tokens": 512} if domain == "law" else {}
        control = small_experiment(there, **shape)
        yield from compare(control, domain, arms(0.25, 4, 32, ""))


def small_experiment(
    sets: tuple[Source, ...], tested_from: float = 0.9, row_tokens: int = 128
) -> Experiment:
    """Give plain random order on a domain for the small base.

    Args:
      tested_from: where in [0, 1) the hashes of tested questions begin; the pool's end there.
      row_tokens: of the pool; longer questions are left out.
    """
    low, _ = domains.PARTS["pool"]

    def part(fraction: tuple[float, float]) -> tuple[Source, ...]:
        return tuple(
            domains.between(Deduplicated(source=source, by="question"), fraction) for source in sets
        )

    learnt, tested = part((low, tested_from)), part((tested_from, 1.0))
    pool = edco.closed_book(
        *map(domains.closed_book, learnt),
        rows=16,
        row_tokens=row_tokens,
        held_out=tuple(map(domains.closed_book, tested)),
        left_out=LEFT_OUT,
    )
    told = Jsonl(path=f"{DATA}/tinystories/dev.jsonl.gz")
    stories = edco.closed_book(told, rows=32, row_tokens=128)
    return vary(
        edco.small(ASSETS),
        {
            "data": pool,
            "clock.evaluate_first": True,
            "evaluators": (
                edco.asked(*tested, name="domain", row_tokens=1024),
                Likelihood(name="retention", data=stories),
            ),
        },
    )


def compare(
    control: Experiment, domain: str, curriculums: Mapping[str, Curriculum]
) -> Iterator[Experiment]:
    """Yield each arm at each seed."""
    named = {f"{domain}: {name}": curriculum for name, curriculum in curriculums.items()}
    yield from edco.compare(control, named)
