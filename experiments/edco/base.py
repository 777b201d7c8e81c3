"""A small base model that knows a little of each domain: something for a curriculum to start from.

Question: stories260k has never seen a technical text, so no order of examples can be compared on
  it. What does a model of ten million parameters know after a few million tokens of a few domains?
Method: A Qwen3-shaped decoder of 10.4 million parameters, its own tokenizer of 8,192 pieces
  (`python experiments/edco/tokenizer.py`), plain text rows, Full fine-tuning from random weights
  with Muon; questions and answers of the general part of each domain (`configs/domains.py`), never
  of its pool or its test part; medical answers, stories and arithmetic for English.
Expectation: letters of nothing, but likelihoods of answers above chance.
Command: maktab train experiments/edco/base.py   (the data: experiments/edco/README.md)
Result: 1,200 steps of 4,096 tokens, 4.5 million of them trained on, two hours on two busy cores
  (one alone). Held-out O-RAN questions with their answers: 9.07 nats a token before training,
  4.02, 3.51, 3.22, 3.00, 2.86 and 2.82 after each 200 steps; 1.15 bits a byte at the end.
  `experiments/assets/edco_base/DATACARD.md`.
"""

from __future__ import annotations

from pathlib import Path

from configs import curricula, domains
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.protocols import Source
from research.data.pool import Data, Weighted
from research.data.rows import Rendering
from research.data.selection import Columns
from research.data.sources import Jsonl
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.models.architecture import Architecture
from research.models.rope import Rope
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.muon import Muon
from research.optimizers.schedules import Cosine
from research.tuning.full import Full

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DATA = "data"  # a folder of public sets beside which the command is run; see README.md
ASKED = "Question: {question}\nAnswer: "


def read(path: str, text: str) -> Columns:
    """Give the rows of one of the public sets as texts."""
    return Columns(source=Jsonl(path=f"{DATA}/{path}"), text=text)


def oran(part: domains.Part) -> Source:
    """Give questions about O-RAN specifications with their right answers."""
    rows = domains.cut(Jsonl(path=str(ASSETS / "oran_bench" / "train.jsonl.gz")), part)
    return Columns(source=rows, text=ASKED + "{answer_text}")


def general(path: str, answer: str = "{answer_text}") -> Columns:
    """Give the general part of a question set."""
    rows = domains.cut(Jsonl(path=f"{DATA}/{path}"), "general")
    return Columns(source=rows, text=ASKED + answer)


def sources() -> tuple[Weighted, ...]:
    """Give what the base reads, with the share of each among the texts that it sees."""
    return (
        Weighted(source=oran("general"), weight=0.20, name="oran"),
        Weighted(
            source=read("medquad/train.jsonl.gz", ASKED + "{answer}"), weight=0.27, name="medquad"
        ),
        Weighted(source=general("mmlu/test.jsonl.gz"), weight=0.15, name="mmlu"),
        Weighted(source=general("medmcqa/train.jsonl.gz"), weight=0.05, name="medmcqa"),
        Weighted(source=general("medqa/train.jsonl.gz"), weight=0.02, name="medqa"),
        Weighted(
            source=general("pubmedqa/train.jsonl.gz", "{long_answer}\n{context}"),
            weight=0.03,
            name="pubmedqa",
        ),
        Weighted(
            source=read("legalbench_train/train.jsonl.gz", "{instruction}\n{fields}\n{answer}"),
            weight=0.03,
            name="legalbench",
        ),
        Weighted(source=read("tinystories/train.jsonl.gz", "text"), weight=0.10, name="stories"),
        Weighted(
            source=read("gsm8k/train.jsonl.gz", ASKED + "{answer}"), weight=0.10, name="gsm8k"
        ),
        Weighted(
            source=read("instruct_1100/train.jsonl.gz", "{instruction}\n{input}\n{output}"),
            weight=0.05,
            name="instruct",
        ),
    )


def architecture() -> Architecture:
    """Give the shape: ten layers of width 256."""
    return Architecture(
        vocab_size=8192,
        model_dim=256,
        num_layers=10,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        ffw_dim=832,
        rope=Rope(),
        query_key_norm=True,
        tied_head=True,
        max_positions=1024,
    )


def get_config() -> Experiment:
    """Give the pretraining run."""
    rendering = Rendering(template=False, text_eos=True)
    held = Data(
        sources=(oran("test"),),
        rows=32,
        row_tokens=256,
        rendering=rendering,
        truncate=True,
        pack=False,
    )
    return Experiment(
        name="base",
        model=architecture(),
        tokenizer=str(ASSETS / "edco_base"),
        data=Data(
            sources=sources(),
            rows=16,
            row_tokens=256,
            rendering=rendering,
            truncate=True,
            distinct_ids=False,
        ),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=Muon(weight_decay=0.05, rest=AdamW(b2=0.95, weight_decay=0.01)),
        schedule=Cosine(peak_lr=4e-3, warmup_fraction=0.03, final_fraction=0.02),
        curriculum=curricula.random(),
        clock=Clock(steps=1200, cycle_steps=20, save_every=10, evaluate_every=10),
        max_leaked_fraction=1.0,
        evaluators=(Likelihood(name="oran", data=held),),
        checkpoints=Checkpoints(keep_last=10),
    )
