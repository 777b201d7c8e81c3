"""Tasks with a dial: answers are right, and the dial says what the task needs."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from research.data.synthetic import Addition, Lookup


def rows_of(source) -> list[dict]:
    rows = source.open()
    return [dict(rows[index]) for index in range(len(rows))]


def carries(left: int, right: int) -> list[int]:
    """Add as on paper; give the positions at which a carry is made."""
    made, carry, position = [], 0, 0
    while left or right or carry:
        carry = (left % 10 + right % 10 + carry) // 10
        made += [position] if carry else []
        left, right, position = left // 10, right // 10, position + 1
    return made


@pytest.mark.parametrize("digits", [1, 4, 7])
def test_sums_are_right_and_their_carries_are_counted(digits):
    rows = rows_of(Addition(digits=digits, count=200, seed=3))
    for row in rows:
        left, right = map(int, re.findall(r"\d+", row["prompt"]))
        assert int(row["completion"]) == left + right
        made = carries(left, right)
        assert len(made) == row["difficulty"]
        assert made == list(range(made[0], made[0] + len(made))) if made else True
    counts = Counter(row["difficulty"] for row in rows)
    assert set(counts) == set(range(digits + 1))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("letters", "hops"), [(2, 1), (9, 6)])
def test_hops_lead_to_the_answer_and_no_fewer_do(letters, hops):
    for row in rows_of(Lookup(letters=letters, most_hops=hops, count=60)):
        following = dict(re.findall(r"(\w)>(\w)", row["prompt"]))
        assert len(following) == letters
        at, walked = re.search(r"\. (\w) \d+\n", row["prompt"])[1], []
        for _ in range(row["difficulty"]):
            at = following[at]
            walked.append(at)
        assert row["completion"] == f" {at}"
        assert walked.index(at) == row["difficulty"] - 1


def test_a_row_depends_on_its_seed_and_number_alone():
    few, many = rows_of(Addition(digits=5, count=10)), rows_of(Addition(digits=5, count=40))
    assert many[:10] == few
    assert rows_of(Addition(digits=5, count=10, seed=1)) != few
    assert len({row["prompt"] for row in rows_of(Addition(digits=5, count=500))}) > 495
    assert len({row["id"] for row in many}) == 40
    assert few[7]["prompt"] == "Question: 19223 + 29340\nAnswer:"  # the same on every machine


def test_impossible_dials_are_errors():
    with pytest.raises(ValueError, match="most_hops=9: expected 1 to letters - 1 = 8"):
        Lookup(letters=9, most_hops=9, count=1)
    with pytest.raises(ValueError, match="digits=0"):
        Addition(digits=0, count=1)
