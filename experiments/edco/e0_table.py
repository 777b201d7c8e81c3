"""Tables of E0 from its run directories: `python experiments/edco/e0_table.py runs/e0`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from research.report.runs import Run, read_arms

WHOLE = "sampled, L=256"
FRACTION = 0.25


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Give the share of the highest quarter by `a` that is in the highest quarter by `b`."""
    count = int(FRACTION * len(a))
    top = [set(np.argsort(-np.round(x, 4), kind="stable")[:count].tolist()) for x in (a, b)]
    return len(top[0] & top[1]) / count


def seconds(run: Run) -> float:
    """Give the time of the second scoring, in which nothing is compiled."""
    lines = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    return lines[-1]["score_s"]


def main(folder: Path) -> None:
    """Print one line an arm."""
    runs = {arm.name: arm.runs[0] for arm in read_arms([folder])}
    whole = [round_.scores for round_ in runs[WHOLE].rounds]
    print("| estimator | Spearman with the whole answer | overlap at 25 % | retest | ms a row |")
    print("|---|---|---|---|---|")
    for name, run in runs.items():
        first, second = (round_.scores for round_ in run.rounds)
        retest = overlap(first, second)
        # Against the other draw of the whole answer, so that one arm is not compared with itself.
        print(
            f"| {name} | {spearmanr(first, whole[1])[0]:.3f} | {overlap(first, whole[1]):.3f} "
            f"| {retest:.3f} | {seconds(run) / len(first) * 1e3:.1f} |"
        )
    ceiling = overlap(*whole)
    print(f"\nCeiling (the whole answer against its own second draw): {ceiling:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
