"""Tables of E0 from its runs: `python experiments/edco/e0_table.py RUNS [TIMING_RUNS]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from research.report.runs import Run, read_arms

WHOLE, LIKELIEST = "sampled, L=256", "greedy, L=256"
FRACTION = 0.25


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Give the share of the highest quarter by `a` that is in the highest quarter by `b`."""
    count = int(FRACTION * len(a))
    top = [set(np.argsort(-np.round(x, 4), kind="stable")[:count].tolist()) for x in (a, b)]
    return len(top[0] & top[1]) / count


def milliseconds(run: Run) -> Mapping[str, float]:
    """Give what a row takes in the second scoring, in which nothing is compiled, by what it is."""
    lines = (run.path / "timing.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    parts = ("score_s", "score_prefill_s", "score_decode_s", "score_host_s")
    return {part: 1e3 * last[part] / last["scored_rows"] for part in parts}


def rankings(folder: Path) -> Iterator[str]:
    """Give a line an estimator: what it agrees with, and what it takes."""
    runs = {arm.name: arm.runs[0] for arm in read_arms([folder])}
    whole = [round_.scores for round_ in runs[WHOLE].rounds]
    likeliest = runs[LIKELIEST].rounds[1].scores
    yield "| estimator | Spearman | overlap | with the likeliest | its own retest | ms a row |"
    yield "|---|---|---|---|---|---|"
    for name in sorted(runs, key=_in_order):
        first, second = (round_.scores for round_ in runs[name].rounds)
        # Against the other draw of the whole answer, so that one arm is not compared with itself.
        agreed = f"{spearmanr(first, whole[1])[0]:.2f} | {overlap(first, whole[1]):.2f}"
        yield (
            f"| {name} | {agreed} | {overlap(first, likeliest):.2f} "
            f"| {overlap(first, second):.2f} | {milliseconds(runs[name])['score_s']:.1f} |"
        )
    yield f"\nCeiling (the whole answer against its own second draw): {overlap(*whole):.3f}"


def _in_order(name: str) -> tuple[str, int]:
    kind, _, length = name.partition("L=")
    return kind, int(length) if length.isdigit() else 0


def times(folder: Path) -> Iterator[str]:
    """Give a line a length and batch: milliseconds a row, split."""
    yield "| | ms a row | prefill | decode | host |"
    yield "|---|---|---|---|---|"
    for arm in read_arms([folder]):
        numbers = (f"{value:.1f}" for value in milliseconds(arm.runs[0]).values())
        yield f"| {arm.name} | {' | '.join(numbers)} |"


def main(folders: list[str]) -> None:
    """Print the table of rankings, and that of times where there are runs of it."""
    for folder, table in zip(folders, (rankings, times), strict=False):
        print("\n".join(table(Path(folder))), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
