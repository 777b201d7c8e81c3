"""Look a step of a run up: which examples, in which rows, with which scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from research.report.lines import read_lines


def replay(workdir: Path, step: int, console: Console) -> None:
    """Print the rows of update number `step` from the run directory.

    Raises:
      FileNotFoundError: this is no run directory.
      ValueError: the run has no such step.
    """
    for name in ("order.jsonl", "pool.jsonl"):
        if not (workdir / name).exists():
            raise FileNotFoundError(f"{workdir / name} is missing; give a run directory")
    steps = {line["step"]: line for line in read_lines(workdir / "order.jsonl")[0]}
    if step not in steps:
        raise ValueError(f"{workdir} has no step {step}; it has 1 to {max(steps, default=0)}")
    names = {line["index"]: line["id"] for line in read_lines(workdir / "pool.jsonl")[0]}
    number = steps[step]["round"]
    with np.load(workdir / "rounds" / f"{number:04d}.npz") as arrays:
        scores, scored = arrays["score_X"], arrays["scored_round_X"]
    table = Table("row", "index", "id", "score (nats)", "scored in round", title=f"step {step}")
    for b, row in enumerate(steps[step]["rows"]):
        for x in row:
            known = np.isfinite(scores[x])
            table.add_row(
                str(b),
                str(x),
                names[x],
                f"{scores[x]:.4f}" if known else "-",
                str(scored[x]) if known else "-",
            )
    console.print(table)
    console.print(f"round {number}, scores as they were when it opened")
