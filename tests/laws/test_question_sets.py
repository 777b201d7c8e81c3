"""Question sets: the files that authors publish become rows whose answer is the right option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.data.examples import RowError
from research.data.question_sets import (
    LegalBench,
    MedMcQa,
    MedQa,
    Mmlu,
    OranBench,
    PubMedQa,
    TeleQna,
)

OPTIONS = ["ten", "twenty", "thirty", "forty"]


def answered(source) -> list[tuple[str, str]]:
    """Open a source and give (question, the right option's text)."""
    rows = source.open()
    return [
        (row["question"], row["options"][row["answer"]])
        for row in map(rows.__getitem__, range(len(rows)))
    ]


def write(file: Path, lines: list) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_oran_bench_counts_from_one_and_numbers_its_options(tmp_path):
    numbered = [f"{n}. {option}" for n, option in enumerate(OPTIONS, start=1)]
    path = write(tmp_path / "fin_H.json", [["How many?", numbered, "3"], ["More?", numbered, "1"]])
    assert answered(OranBench(path=path)) == [("How many?", "thirty"), ("More?", "ten")]
    rows = OranBench(path=path).open()
    assert (rows[0]["id"], rows[0]["difficulty"]) == ("oran-H-1", "H")
    assert rows.where(1).endswith("fin_H.json:2")


@pytest.mark.parametrize("answer", ["5", "0", "three", None])
def test_an_answer_that_is_no_option_is_a_bad_row(tmp_path, answer):
    path = write(tmp_path / "fin_E.json", [["How many?", OPTIONS, answer]])
    with pytest.raises(RowError, match="bad answer"):
        OranBench(path=path).open()[0]


def test_a_line_of_another_kind_is_malformed(tmp_path):
    path = write(tmp_path / "fin_E.json", [{"question": "How many?"}])
    with pytest.raises(RowError, match="expected a list"):
        OranBench(path=path).open()[0]
    with pytest.raises(RowError, match="KeyError"):
        MedQa(path=path).open()[0]


def test_teleqna_is_read_from_its_encrypted_zip(tmp_path):
    pyzipper = pytest.importorskip("pyzipper")
    asked = {
        "question 7": {
            "question": "How many?",
            **{f"option {n}": option for n, option in enumerate(OPTIONS, start=1)},
            "answer": "option 2: Twenty",  # in its own words, as some are
            "explanation": "counted",
            "category": "Lexicon",
        }
    }
    file = tmp_path / "TeleQnA.zip"
    with pyzipper.AESZipFile(file, "w", encryption=pyzipper.WZ_AES) as archive:
        archive.setpassword(b"teleqnadataset")
        archive.writestr("TeleQnA.txt", json.dumps(asked))
    source = TeleQna(path=str(file))
    assert answered(source) == [("How many?", "twenty")]
    assert source.open()[0]["category"] == "Lexicon"
    with pytest.raises(ValueError, match="cannot be decrypted"):
        TeleQna(path=str(file), password="another").open()


def test_mmlu_takes_the_subject_from_the_file(tmp_path):
    file = tmp_path / "professional_law_test.csv"
    file.write_text(
        '"How many, so to speak?",ten,twenty,"thirty\n(or so)",forty,C\nMore?,1,2,3,4,\n'
    )
    rows = Mmlu(path=str(tmp_path / "*_law_test.csv")).open()
    assert rows[0]["options"][rows[0]["answer"]] == "thirty\n(or so)"
    assert rows[0]["subject"] == "professional_law"
    with pytest.raises(RowError, match="bad answer"):
        rows[1]


def test_medqa_names_the_answer_by_letter(tmp_path):
    asked = {"question": "How many?", "options": dict(zip("ABCD", OPTIONS, strict=True))}
    path = write(tmp_path / "test.jsonl", [asked | {"answer": "forty", "answer_idx": "D"}])
    assert answered(MedQa(path=path)) == [("How many?", "forty")]


def test_medmcqa_counts_from_one_in_its_files_and_from_zero_on_the_hub(tmp_path):
    options = dict(zip(("opa", "opb", "opc", "opd"), OPTIONS, strict=True))
    path = write(tmp_path / "dev.json", [{"id": "x", "question": "How many?", "cop": 1} | options])
    assert answered(MedMcQa(path=path)) == [("How many?", "ten")]
    assert answered(MedMcQa(path=path, first=0)) == [("How many?", "twenty")]


def test_pubmedqa_keeps_the_test_ids_apart(tmp_path):
    row = {"QUESTION": "Does it?", "CONTEXTS": ["It does."], "LONG_ANSWER": "So it seems."}
    asked = {"11": row | {"final_decision": "yes"}, "12": row | {"final_decision": "maybe"}}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(asked))
    (tmp_path / "test_ground_truth.json").write_text(json.dumps({"12": "maybe"}))
    path, only = str(tmp_path / "ori_pqal.json"), str(tmp_path / "test_ground_truth.json")
    assert answered(PubMedQa(path=path)) == [("Does it?", "yes"), ("Does it?", "maybe")]
    assert answered(PubMedQa(path=path, only=only)) == [("Does it?", "maybe")]


def test_legalbench_asks_the_first_line_of_its_prompt(tmp_path):
    task = tmp_path / "hearsay"
    task.mkdir()
    (task / "base_prompt.txt").write_text("Is there hearsay?\n\nQ: {{text}}\nA:")
    (task / "train.tsv").write_text("index\tanswer\ttext\n0\tNo\tHe ran.\n1\tYes\tShe said so.\n")
    source = LegalBench(path=str(task / "train.tsv"))
    assert answered(source) == [
        ("Is there hearsay?\nHe ran.", "No"),
        ("Is there hearsay?\nShe said so.", "Yes"),
    ]
    (task / "train.tsv").write_text("index\tanswer\ttext\n0\tNo\tHe ran.\n")
    with pytest.raises(ValueError, match="1 different answers"):
        source.open()
