"""Scores taken ahead: the same whoever stops and goes on, and old by what the record says."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from configs import layouts
from research.core.layout import Layout
from research.core.parts import vary
from research.score import pool as scorer
from research.train.loop import PreemptedError, train
from research.train.prepare import prepare
from tests.flow.runs import NUM_EXAMPLES, Silent, tiny_run
from tests.flow.test_processes import experiment_in, same_but_for_sums, small_run, trained

AHEAD = {"curriculum.score_ahead": True, "compute.scoring_rows": 4}
FILES = ("metrics.jsonl", "order.jsonl", "rounds/0000.npz", "rounds/0001.npz")
NOISE_NATS = 2e-5  # rows lie in other batches: float32 sums come in another order


def run(folder: Path, name: str, changes: dict, watch=None, **options):
    prepared = prepare(tiny_run(folder, changes))
    return train(prepared, folder / name, watch or Silent(), **options)


def round_of(workdir: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(workdir / "rounds" / f"{number:04d}.npz") as arrays:
        return dict(arrays)


class Counting(Silent):
    """Counts the examples that are scored while nobody trains."""

    def __init__(self) -> None:
        self.waited_for: list[int] = []

    def scoring(self, done: int, total: int) -> None:
        if done == total:
            self.waited_for.append(total)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory) -> Path:
    """A run of two rounds of two cycles each; only the first round begins with a scoring."""
    folder, watch = tmp_path_factory.mktemp("ahead"), Counting()
    run(folder, "whole", AHEAD, watch)
    assert watch.waited_for == [NUM_EXAMPLES]
    return folder / "whole"


def test_a_part_of_the_pool_is_scored_before_each_cycle_of_the_round_before(ahead):
    first, second = round_of(ahead, 0), round_of(ahead, 1)
    assert set(first["scored_step_X"]) == {0}
    steps, counts = np.unique(second["scored_step_X"], return_counts=True)
    assert steps.tolist() == [0, 2]
    assert counts.tolist() == [12, NUM_EXAMPLES - 12]  # half of 29, in whole batches of 4
    assert set(second["scored_round_X"]) == {1}
    early = second["scored_step_X"] == 0  # greedy paths of the weights that round 0 asked
    np.testing.assert_allclose(second["score_X"][early], first["score_X"][early], atol=NOISE_NATS)
    assert (np.abs(second["score_X"] - first["score_X"])[~early] > NOISE_NATS).all()


@pytest.mark.parametrize("cut", [2, 4])  # with a half of the scores taken, and with all of them
def test_a_run_that_left_goes_on_bit_for_bit(ahead, tmp_path, cut):
    looks = iter(range(0, 100, 2))
    with pytest.raises(PreemptedError, match=f"saved at step {cut} "):
        run(tmp_path, "cut", AHEAD, asked_to_leave=lambda: next(looks) == cut)
    resumed = run(tmp_path, "cut", AHEAD)
    for file in FILES:
        assert (tmp_path / "cut" / file).read_bytes() == (ahead / file).read_bytes(), file
    again = run(ahead.parent, "whole", AHEAD)  # already at its end: restores the last checkpoint
    same = jax.tree.map(
        lambda a, b: np.array_equal(a, b, equal_nan=True),
        (resumed.learner, resumed.curriculum.arrays()),
        (again.learner, again.curriculum.arrays()),
    )
    assert all(jax.tree.leaves(same))


def test_where_weights_stand_still_scores_taken_ahead_are_the_fresh_ones(tmp_path):
    still = {"schedule.peak_lr": 1e-30}
    run(tmp_path, "ahead", AHEAD | still)
    run(tmp_path, "fresh", still)
    scores = [round_of(tmp_path / name, 1)["score_X"] for name in ("ahead", "fresh")]
    np.testing.assert_allclose(*scores, atol=NOISE_NATS)
    orders = [(tmp_path / name / "order.jsonl").read_bytes() for name in ("ahead", "fresh")]
    assert orders[0] == orders[1]


def test_reading_is_measured_once_a_program_and_the_split_adds_up(tmp_path, monkeypatch):
    measured = []
    measure = scorer.Gauge.measure

    def note(self, program, rows, read):
        measured.append(program)
        return measure(self, program, rows, read)

    monkeypatch.setattr(scorer.Gauge, "measure", note)
    timings = []

    class Look(Silent):
        def recorded(self, cycle, metrics, timing):
            timings.append(timing)

    run(tmp_path, "run", AHEAD, Look())
    assert len(measured) == len(set(measured)) == 1  # prompts of 5 to 13 tokens: one bucket
    parts = ("prefill", "decode", "reshard", "host")
    for timing in timings:
        split = [timing[f"score_{part}_s"] for part in parts]
        assert min(split) >= 0
        assert sum(split) == pytest.approx(timing["score_s"])
    assert [timing["scored_rows"] for timing in timings] == [NUM_EXAMPLES + 12, 17, 0, 0]
    assert timings[0]["score_prefill_s"] > 0
    assert "score_s" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("changes", [{}, AHEAD], ids=["fresh", "ahead"])
def test_a_run_may_score_and_be_evaluated_on_weights_laid_out_otherwise(tmp_path, ahead, changes):
    two, one = layouts.data(2), Layout()
    timings, devices = [], jax.devices()[:2]

    class Look(Silent):
        def recorded(self, cycle, metrics, timing):
            timings.append(timing)

    elsewhere = {"layout": two, "scoring_layout": one, **changes}
    prepared = prepare(tiny_run(tmp_path, elsewhere), devices)
    train(prepared, tmp_path / "run", Look())
    first = round_of(tmp_path / "run", 0)["score_X"]
    np.testing.assert_allclose(first, round_of(ahead, 0)["score_X"], atol=NOISE_NATS)
    moved = [timing["score_reshard_s"] > 0 for timing in timings]
    assert moved == ([True, True, False, False] if changes else [True, False, True, False])


SHARDED = """
from pathlib import Path
from research.core.parts import vary
from tests.flow.test_ahead import SPLIT
from tests.flow.test_processes import small_run

def get_config():
    return vary(small_run(Path(__file__).parent), SPLIT)
"""
SPLIT = AHEAD | {
    "layout": Layout(
        axes=(("fsdp", -1),),
        weights=(("D", ("fsdp",)),),
        activations=(("B", ("fsdp",)),),
        overrides=(("embed_V_D", (("V", ()), ("D", ("fsdp",)))),),
    ),
    "scoring_layout": layouts.data(),
}


@pytest.mark.slow
def test_two_processes_score_ahead_and_move_weights_as_one_does(tmp_path):
    experiment_in(tmp_path, SHARDED)
    trained(tmp_path, tmp_path / "two", 2)
    one = prepare(vary(small_run(tmp_path), SPLIT), jax.devices()[:1])
    train(one, tmp_path / "one", Silent())
    same_but_for_sums(tmp_path / "two", tmp_path / "one")
    for number in (0, 1):
        steps = [round_of(tmp_path / name, number)["scored_step_X"] for name in ("one", "two")]
        np.testing.assert_array_equal(*steps)
