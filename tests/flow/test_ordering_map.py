"""The map of the orderings, from run directories that were written by the record of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launch.experiment_file import load_module
from research.evaluate.results import Evaluation
from research.evaluate.statistics import ratio_interval
from research.report.runs import read_arms
from research.report.writers import Record

FILE = Path(__file__).parents[2] / "experiments" / "ordering_map.py"
STEPS, ITEMS, SEEDS = 6, 83, 4
# How often each order answers rightly, by task and start.
RATES = {
    ("sums", "early"): {"random": 0.3, "easy first": 0.8, "hard first": 0.3},
    ("sums", "late"): {"random": 0.9, "easy first": 0.9, "hard first": 0.2},
    ("hops, many", "late"): {"random": 0.9, "easy first": 0.2, "hard first": 0.2},
}


@pytest.fixture(scope="module")
def map_of():
    return load_module(FILE)


@pytest.fixture
def runs(tmp_path):
    """Finished runs of every order in every cell, with an answer an item."""
    for (task, start), rates in RATES.items():
        for order, rate in rates.items():
            for seed in range(SEEDS):
                finished(tmp_path, f"{task}, {start}: {order}", seed, rate)
    return tmp_path


def answers(seed: int, rate: float) -> np.ndarray:
    """Draw which items are right: the same luck for every order."""
    return (np.random.default_rng([seed, ITEMS]).random(ITEMS) < rate).astype(float)


def rate(wanted: float) -> float:
    """Give the share that is right over all seeds."""
    return float(np.mean([answers(seed, wanted) for seed in range(SEEDS)]))


def finished(folder: Path, arm: str, seed: int, rate: float) -> None:
    workdir = folder / arm / f"seed-{seed}"
    record = Record(workdir)
    record.truncate_to(0)
    experiment = {"name": arm, "seed": seed, "clock": {"steps": STEPS}}
    (workdir / "experiment.json").write_text(json.dumps({"experiment": experiment}))
    (workdir / "run.json").write_text(json.dumps([{"started": "2026-01-01"}]))
    right = answers(seed, rate)
    rows = tuple({"id": f"item-{i}", "exact_match": r} for i, r in enumerate(right))
    metrics = {"exact_match": ratio_interval(right, np.ones(ITEMS))}
    record.metrics(STEPS, {"round": 0, "loss_nats": 1.0})
    record.evaluation(STEPS, Evaluation(name="test", metrics=metrics, rows=rows))
    record.commit()
    record.close()


def test_the_map_says_who_wins_where_and_what_could_be_chance(runs, map_of, capsys):
    map_of.main(runs)
    said = capsys.readouterr().out
    wins = said.rstrip().splitlines()[-1].removeprefix("Wins: ").split("; ")
    assert sorted(wins) == [
        "hops, many, late: random",
        "sums, early: easy first",
        "sums, late: easy first?",  # as good as random order
    ]
    (line,) = [line for line in said.splitlines() if "| sums | early | easy first |" in line]
    easy, random = (rate(value) for value in (0.8, 0.3))
    assert f"| {easy:.3f} | {easy - random:+.3f} [" in line
    assert (runs / "ordering_map.png").read_bytes().startswith(b"\x89PNG")


def test_p_values_are_corrected_over_all_cells(runs, map_of):
    cells = map_of.cells_of(read_arms([runs]))
    together = map_of.standings_of(cells)
    one = map_of.standings_of({cell: cells[cell] for cell in list(cells)[:1]})
    cell = next(iter(one))
    pairs = list(zip(one[cell], together[cell], strict=True))
    assert [a.difference for a, _ in pairs] == [b.difference for _, b in pairs]
    assert all(b.corrected >= a.corrected for a, b in pairs if a.difference)
    assert any(b.corrected > a.corrected for a, b in pairs if a.difference)


def test_a_cell_that_was_not_run_is_left_blank_and_other_runs_are_refused(
    runs, map_of, tmp_path_factory
):
    found = map_of.standings_of(map_of.cells_of(read_arms([runs])))
    assert ("hops, many", "early") not in found
    assert map_of.draw(found) == map_of.draw(found)
    other = tmp_path_factory.mktemp("other")
    finished(other, "EDCO", 0, 0.5)
    with pytest.raises(ValueError, match="arm 'EDCO' is no 'task, start: order'"):
        map_of.cells_of(read_arms([other]))
    with pytest.raises(ValueError, match="has no arm 'random' to compare with"):
        map_of.cells_of([arm for arm in read_arms([runs]) if not arm.name.endswith("random")])
