"""Corrupted answers: the share that was asked for, wrong for certain, the same for every arm."""

from __future__ import annotations

import json

import pytest

from research.data.corruption import Corrupted
from research.data.examples import RowError
from research.data.sources import Jsonl

ROWS = [
    {
        "id": f"q{n}",
        "question": f"{n}?",
        "options": [f"a{n}", f"b{n}", f"c{n}"],
        "answer": n % 3,
        "answer_text": f"{'abc'[n % 3]}{n}",
    }
    for n in range(400)
]


def opened(tmp_path, fraction: float, rows=ROWS, **settings) -> list[dict]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = Corrupted(source=Jsonl(path=str(file)), fraction=fraction, **settings).open()
    return [dict(rows[index]) for index in range(len(rows))]


def wrong(rows: list[dict]) -> set[str]:
    return {row["id"] for row in rows if row["corrupted"]}


def test_every_corrupted_answer_is_wrong_and_no_other_changes(tmp_path):
    for row, clean in zip(opened(tmp_path, 0.2), ROWS, strict=True):
        assert (row["answer"] != clean["answer"]) == row["corrupted"]
        assert row["answer_text"] == row["options"][row["answer"]]
        assert row["options"] == clean["options"]


def test_the_share_is_what_was_asked_for_and_grows_by_the_same_rows(tmp_path):
    some, more = wrong(opened(tmp_path, 0.05)), wrong(opened(tmp_path, 0.2))
    assert some < more
    # four standard deviations of a binomial draw of 400
    assert abs(len(more) - 80) < 4 * (400 * 0.2 * 0.8) ** 0.5
    assert wrong(opened(tmp_path, 0.2, seed=1)) != more
    assert len(wrong(opened(tmp_path, 1.0))) == len(ROWS)


def test_all_wrong_options_are_chosen(tmp_path):
    rows = opened(tmp_path, 1.0)
    steps = [(row["answer"] - clean["answer"]) % 3 for row, clean in zip(rows, ROWS, strict=True)]
    assert min(steps.count(1), steps.count(2)) > len(ROWS) // 3


def test_rows_without_a_wrong_option_are_malformed(tmp_path):
    same = {"id": "x", "question": "?", "options": ["a", "a "], "answer": 0}
    with pytest.raises(RowError, match="none is wrong"):
        opened(tmp_path, 1.0, [same])
    with pytest.raises(RowError, match="options"):
        opened(tmp_path, 1.0, [{"id": "x", "text": "?"}])
