"""Domains by name: public question sets, and one way of cutting and asking them for all arms.

A set is cut by the hash of its question: the *general* part is what a base model may be pretrained
on, the *pool* is what a curriculum chooses from, the *test* part is only ever asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from research.core.protocols import Source
from research.data.question_sets import (
    LegalBench,
    MedMcQa,
    MedQa,
    Mmlu,
    OranBench,
    PubMedQa,
    TeleQna,
)
from research.data.selection import Columns, Deduplicated, Split

Part = Literal["general", "pool", "test"]

# Shares of a question set. The general part is small: a base should know something of the domain
# without knowing what is asked of it later. Of O-RAN's 11,921 questions the pool is then about as
# large as the one of EDCO's authors, 7,000.
PARTS: Mapping[Part, tuple[float, float]] = {
    "general": (0.0, 0.3),
    "pool": (0.3, 0.9),
    "test": (0.9, 1.0),
}
SALT = "edco"

MEDICAL_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_medicine",
    "professional_medicine",
    "virology",
    "college_biology",
    "nutrition",
)

# LegalBench's tasks whose answers are a closed set, from several of its kinds of reasoning.
LEGAL_TASKS = (
    "corporate_lobbying",
    "definition_classification",
    "function_of_decision_section",
    "hearsay",
    "international_citizenship_questions",
    "nys_judicial_ethics",
    "overruling",
    "personal_jurisdiction",
    "proa",
    "unfair_tos",
)


def cut(source: Source, part: Part) -> Split:
    """Give one part of a question set; rows that share a question stay together."""
    return between(source, PARTS[part])


def between(source: Source, fraction: tuple[float, float]) -> Split:
    """Give the questions whose hash lies there."""
    return Split(source=source, by="question", fraction=fraction, salt=SALT)


def closed_book(source: Source) -> Columns:
    """Ask without options, as prompt and completion: what a small base model is trained on."""
    return Columns(
        source=source, prompt="Question: {question}\nAnswer:", completion=" {answer_text}"
    )


def cloze(source: Source) -> Columns:
    """Ask the same question of `MultipleChoice(by=("text",), cloze=" {option}")`."""
    return Columns(
        source=source,
        question="Question: {question}\nAnswer:",
        options="options",
        answer="answer",
    )


def telecom(folder: str) -> dict[str, Source]:
    """Give the telecommunication sets that lie in a folder as their authors publish them."""
    oran = OranBench(path=f"{folder}/ORAN-Bench-13K/Benchmark/fin_*.json")
    return {
        "oran": Deduplicated(source=oran, by="question"),
        "teleqna": Deduplicated(
            source=TeleQna(path=f"{folder}/TeleQnA/TeleQnA.zip"), by="question"
        ),
    }


def medicine(folder: str) -> dict[str, Source]:
    """Give the medical sets; PubMedQA's question stands below its abstract."""
    pubmed = PubMedQa(path=f"{folder}/pubmedqa/data/ori_pqal.json")
    with_abstract = Columns(
        source=pubmed,
        question="{context}\n\n{question}",
        options="options",
        answer="answer",
    )
    subjects = {
        subject: Mmlu(path=f"{folder}/MMLU/data/test/{subject}_test.csv")
        for subject in MEDICAL_SUBJECTS
    }
    return {
        "medmcqa": Deduplicated(source=MedMcQa(path=f"{folder}/MedMCQA/train.json"), by="question"),
        "medqa": Deduplicated(
            source=MedQa(path=f"{folder}/MedQA/questions/US/train.jsonl"), by="question"
        ),
        "pubmedqa": with_abstract,
        **subjects,
    }


def law(folder: str) -> dict[str, Source]:
    """Give the legal sets: MMLU's professional law, and tasks of LegalBench with closed answers."""
    tasks = {
        task: LegalBench(path=f"{folder}/legalbench/tasks/{task}/*.tsv") for task in LEGAL_TASKS
    }
    law = Mmlu(path=f"{folder}/MMLU/data/test/professional_law_test.csv")
    return {"professional_law": law, **tasks}
