"""Time scoring of answers of uneven length: rows that have ended make room for others, or do not.

    python -m benchmarks.refill --out benchmarks/results/refill-cpu.json

The same scorer, rows and keys; `Compute.scoring_refill` on and off. Answers are sampled, and end at
one of many stop tokens, so that their lengths are nearly geometric.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.reference import open_ours, prompt_ids, write_folder
from benchmarks.score import NEAR_NATS, views_of
from benchmarks.step import VOCABULARY
from benchmarks.turns import Run, race, spread, summarise, write

PROMPT_TOKENS, MOST_TOKENS, ROWS, MEAN_TOKENS = 32, 128, 32, 24
STOPS = tuple(range(0, VOCABULARY, MEAN_TOKENS))  # random weights choose nearly evenly


def build(folder: Path, prompts: int, refill: bool) -> Run:
    """Give a scoring of sampled answers."""
    import jax

    from research.curriculum.estimators.prefix_entropy import PrefixEntropy
    from research.score.pool import Gauge, ask_pool

    model, params = open_ours(folder)
    compute = dataclasses.replace(model.compute, scoring_refill=refill)
    model = dataclasses.replace(model, compute=compute)
    ask = functools.partial(
        ask_pool,
        PrefixEntropy(prefix_tokens=MOST_TOKENS, temperature=1.0),
        model,
        params,
        views_of(prompt_ids(prompts, PROMPT_TOKENS)),
        range(prompts),
        round_=0,
        key=jax.random.key(0),
        place=model.place,
        stop_ids=STOPS,
        rows_per_batch=ROWS,
        gauge=Gauge(),
    )
    return lambda: ask().finish().score_N


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    prompts: Annotated[int, typer.Option(help="Of 32 tokens.")] = 512,
) -> None:
    """Time answers of 24 tokens in the mean and 128 at most; print a table, write a record."""
    with tempfile.TemporaryDirectory() as parent:
        folder = write_folder(Path(parent) / "model")
        seen = race(
            {
                "refill": functools.partial(build, folder, prompts, True),
                "batch by batch": functools.partial(build, folder, prompts, False),
            },
            rounds,
            runs=1,
        )
    table = Table(title=f"{prompts} answers of uneven length, {ROWS} rows in flight: seconds")
    for column in ("", "wall", "cpu", "x (wall)", "x (cpu)", "equal"):
        table.add_column(column, justify="right" if column else "left")
    scores = seen["refill"]["result"]
    for row in seen.values():
        row["equal_scores_fraction"] = float(
            np.mean(np.abs(row.pop("result") - scores) < NEAR_NATS)
        )
        row |= {f"{clock}_summary": summarise(row[clock]) for clock in ("wall_s", "cpu_s")}
    for name, row in seen.items():
        for clock in ("wall_s", "cpu_s"):
            fast = seen["refill"][f"{clock}_summary"]["median"]
            row[f"times_slower_by_{clock}"] = row[f"{clock}_summary"]["median"] / fast
        table.add_row(
            name,
            spread(row["wall_s_summary"]),
            spread(row["cpu_s_summary"]),
            f"{row['times_slower_by_wall_s']:.2f}",
            f"{row['times_slower_by_cpu_s']:.2f}",
            f"{row['equal_scores_fraction']:.3f}",
        )
    Console(width=120).print(table)
    if out is not None:
        shape = {"prompts": prompts, "prompt_tokens": PROMPT_TOKENS, "most_new_tokens": MOST_TOKENS}
        write(out, {"shape": shape | {"rows": ROWS}, "contestants": seen})


if __name__ == "__main__":
    typer.run(main)
