"""Time what scoring adds to fine-tuning on a quarter of the pool: a quarter scored anew, or all.

    python -m benchmarks.refresh --out benchmarks/results/refresh-cpu.json

Whole runs of `train` in turns: EDCO's rounds on questions of about 100 tokens with answers of 130.
What counts are the laps of `timing.jsonl` in the rounds between the first, which scores the whole
pool in every arm and compiles, and the last, during which nothing is scored ahead.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.turns import Run, race, summarise, write

ROOT = Path(__file__).parents[1]
WIDTH, LAYERS, ROW_TOKENS, PREFIX_TOKENS = 128, 4, 256, 32
ROWS, STEPS_A_ROUND, ROUNDS = 8, 4, 4
POOL = 4 * STEPS_A_ROUND * ROWS  # of which a round trains on a quarter, once
QUESTION_WORDS, ANSWER_WORDS = 60, 80
WORDS = ("the", "dog", "saw", "a", "big", "red", "ball", "and", "Lily", "went", "to", "play")
PART, AHEAD = {"curriculum.rescore_fraction": 0.25}, {"curriculum.score_ahead": True}
ARMS: dict[str, dict[str, Any]] = {
    "a quarter scored anew": PART,
    "a quarter, ahead": PART | AHEAD,
    "all scored anew": {},
    "all, ahead": AHEAD,
}
TRAINING, SCORING = ("plan_s", "steps_s"), "score_s"
SPLIT = ("score_prefill_s", "score_decode_s", "score_host_s")


def experiment(folder: Path) -> Any:
    """Give a run that scores all of its pool in each round."""
    from configs import curricula
    from research.clock import Clock
    from research.data.pool import Data
    from research.data.sources import Jsonl
    from research.experiment import Experiment
    from research.models.architecture import Architecture
    from research.objectives.cross_entropy import CrossEntropy
    from research.optimizers.adamw import AdamW
    from research.optimizers.schedules import Constant
    from research.tuning.full import Full

    draw, file = np.random.default_rng(0), folder / "rows.jsonl"

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS, count).tolist())

    rows = [
        {"id": str(x), "prompt": words(QUESTION_WORDS), "completion": f" {words(ANSWER_WORDS)}."}
        for x in range(POOL)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Experiment(
        name="refresh",
        model=Architecture(
            vocab_size=512,
            model_dim=WIDTH,
            num_layers=LAYERS,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            ffw_dim=3 * WIDTH,
        ),
        tokenizer=str(ROOT / "experiments/assets/stories260k"),
        data=Data(sources=(Jsonl(path=str(file)),), rows=ROWS, row_tokens=ROW_TOKENS, pack=False),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(),
        schedule=Constant(peak_lr=1e-4),
        curriculum=curricula.edco(
            fraction=0.25, rounds=ROUNDS, prefix_tokens=PREFIX_TOKENS, instruction=""
        ),
        clock=Clock(steps=ROUNDS * STEPS_A_ROUND, cycle_steps=STEPS_A_ROUND // 2),
    )


class Silent:
    """A watch that sees nothing."""

    def begins(self, prepared: Any, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None: ...
    def evaluating(self, name: str, done: int, total: int) -> None: ...


def build(folder: Path, changes: dict[str, Any]) -> Run:
    """Give whole runs; each leaves its laps in a folder of its own."""
    from research.core.parts import vary
    from research.train.loop import train
    from research.train.prepare import prepare

    folder.mkdir()
    prepared, number = prepare(vary(experiment(folder), changes)), itertools.count()

    def run() -> None:
        train(prepared, folder / f"run-{next(number)}", Silent())

    return run


def laps(folder: Path) -> list[dict[str, float]]:
    """Add up the laps of the rounds that count, of every run but the two that warm up."""
    found, first, last = [], STEPS_A_ROUND, STEPS_A_ROUND * (ROUNDS - 1)
    for number in range(2, len(list(folder.glob("run-*")))):
        text = (folder / f"run-{number}" / "timing.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        counted = [line for line in lines if first < line["step"] <= last]
        names = (*TRAINING, SCORING, *SPLIT)
        found.append({name: sum(line[name] for line in counted) for name in names})
    return found


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
) -> None:
    """Time runs of four rounds; print scoring as a part of training, write a record."""
    with tempfile.TemporaryDirectory() as parent:
        folders = {name: Path(parent) / str(index) for index, name in enumerate(ARMS)}
        builds = {
            name: functools.partial(build, folders[name], changes) for name, changes in ARMS.items()
        }
        seen = race(builds, rounds, runs=1)
        for name, row in seen.items():
            row.pop("result")
            row["laps"] = laps(folders[name])
    table = Table(title=f"{POOL} rows, a quarter trained on a round: scoring as a part of training")
    for column in ("", "overhead", "(q1 - q3)", "prefill", "decode", "host", "run, wall s"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in seen.items():
        overhead = [lap[SCORING] / sum(lap[part] for part in TRAINING) for lap in row["laps"]]
        row["overhead"] = summarise(overhead)
        total = sum(lap[SCORING] for lap in row["laps"])
        table.add_row(
            name,
            f"{row['overhead']['median']:.0%}",
            f"{row['overhead']['q1']:.0%} - {row['overhead']['q3']:.0%}",
            *(f"{sum(lap[part] for lap in row['laps']) / total:.0%}" for part in SPLIT),
            f"{summarise(row['wall_s'])['median']:.1f}",
        )
    Console(width=120).print(table)
    if out is not None:
        shape = {"pool": POOL, "row_tokens": ROW_TOKENS, "prefix_tokens": PREFIX_TOKENS}
        write(out, {"shape": shape, "contestants": seen})


if __name__ == "__main__":
    typer.run(main)
