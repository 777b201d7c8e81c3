"""Time LoRA arms stacked in one program against the same arms one after the other.

    python -m benchmarks.stacked --out benchmarks/results/stacked-cpu.json

Both live in this process and take turns: a step of every arm, by one compiled step that is called
for each, or by one call of its vmapped form (`research/train/stacked.py`). Arms differ in learning
rate, weight decay, dropout rate, dropout key and data; rank 16 on every linear layer, AdamW.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.step import architecture
from benchmarks.turns import spread, summarise, write
from launch.memory import keep_freed_memory
from research.core.layout import Layout
from research.core.records import Batch
from research.experiment import Update
from research.models.architecture import Architecture
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.train.stacked import compile_stacked
from research.train.step import compile_step, initialise, structure_of
from research.tuning.lora import Lora

RANK = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """A shape, and the rows and tokens of one arm's batch."""

    architecture: Architecture
    rows: int
    tokens: int


STORIES = Architecture(
    vocab_size=512, model_dim=64, num_layers=5, num_heads=8, num_kv_heads=4, head_dim=8, ffw_dim=172
)
MIDDLE = Architecture(
    vocab_size=2048,
    model_dim=128,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    ffw_dim=384,
)
REFERENCE = architecture()
SIZES = {
    "stories260k, 1 x 8": Size(STORIES, 1, 8),
    "stories260k, 8 x 64": Size(STORIES, 8, 64),
    "middle, 1 x 16": Size(MIDDLE, 1, 16),
    "reference, 1 x 16": Size(REFERENCE, 1, 16),
    "reference, 2 x 256": Size(REFERENCE, 2, 256),  # 8 x 256 of 8 arms would need 12 GB
}


def batch_of(size: Size, seed: int) -> Batch:
    """Draw a batch whose rows are one example each."""
    shape = (size.rows, size.tokens)
    ids_BT = np.random.default_rng(seed).integers(0, size.architecture.vocab_size, shape, np.int32)
    ones_BT = np.ones_like(ids_BT)
    weights_BT = ones_BT.astype(np.float32)
    weights_BT[:, -1] = 0.0
    return Batch(
        tokens_BT=ids_BT,
        targets_BT=np.roll(ids_BT, -1, axis=1),
        weights_BT=weights_BT,
        positions_BT=np.cumsum(ones_BT, axis=1, dtype=np.int32) - 1,
        segments_BT=ones_BT,
        ids_BZ=np.arange(size.rows, dtype=np.int32)[:, None],
    )


def update_of(arm: int) -> Update:
    """Give an arm's numbers."""
    return Update(
        tuning=Lora(rank=RANK, alpha=2.0 * RANK, dropout=0.05 + 0.01 * arm),
        objective=CrossEntropy(),
        optimizer=AdamW(weight_decay=0.01 * (1 + arm)),
        schedule=Constant(peak_lr=1e-4 * (1 + arm)),
        max_gradient_norm=1.0,
        micro_batches=1,
    )


def contestants(size: Size, arms: int, device: Any) -> dict[str, Callable[[], Any]]:
    """Give a step of all arms, one after the other and stacked, each with states of its own."""
    place = Layout().on([device])
    model = Transformer(size.architecture, place, Compute())
    learner, frozen = initialise(place, update_of(0), model.init(jax.random.key(0)), seed=0)
    structure, span = structure_of(learner), (np.int32(0), np.int32(1000))
    items = [(batch_of(size, x), update_of(x), span, jax.random.key(x)) for x in range(arms)]
    each = [place.put_everywhere(item) for item in items]
    together = place.put_everywhere(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    step, programs = (
        compile_step(model, place, structure),
        compile_stacked(model, place, structure, arms),
    )
    apart = [jax.tree.map(jnp.copy, learner) for _ in range(arms)]
    stacked = [programs.stack(apart)]

    def one_after_the_other() -> None:
        for arm, item in enumerate(each):
            apart[arm], _ = step(apart[arm], frozen, *item)
        jax.block_until_ready(apart)

    def all_at_once() -> None:
        stacked[0], _ = programs.step(stacked[0], frozen, *together)
        jax.block_until_ready(stacked)

    return {"one after the other": one_after_the_other, "stacked": all_at_once}


def compare(size: Size, arms: int, turns: int, seconds: float, device: Any) -> dict[str, Any]:
    """Let both work in turns, the order reversed every other turn.

    Args:
      seconds: how long a turn is meant to be; it has as many steps as that takes.
    """
    runs = contestants(size, arms, device)
    rows: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        begun = time.perf_counter()
        run()
        first_s, begun = time.perf_counter() - begun, time.perf_counter()
        run()
        steps = max(1, round(seconds / (time.perf_counter() - begun)))
        rows[name] = {"first_s": first_s, "steps": min(steps, 200), "wall_s": [], "cpu_s": []}
    for turn in range(turns):
        for name in list(runs) if turn % 2 == 0 else reversed(runs):
            steps, wall_s, cpu_s = rows[name]["steps"], time.perf_counter(), time.process_time()
            for _ in range(steps):
                runs[name]()
            rows[name]["wall_s"].append((time.perf_counter() - wall_s) / steps)
            rows[name]["cpu_s"].append((time.process_time() - cpu_s) / steps)
    for row in rows.values():
        row["times"] = {clock: row.pop(clock) for clock in ("wall_s", "cpu_s")}
        row |= {clock: summarise(times) for clock, times in row["times"].items()}
    apart, stacked = rows.values()
    speed = {
        clock: {at: apart[clock][at] / stacked[clock][at] for at in ("min", "median")}
        for clock in ("wall_s", "cpu_s")
    }
    return {"rows": size.rows, "tokens": size.tokens, "arms": arms, "ways": rows, "speed": speed}


def show(console: Console, records: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="A step of every arm: wall seconds, median (q1 - q3)")
    for column in ("", "one after the other", "stacked", "speed (wall)", "least wall", "cpu"):
        table.add_column(column, justify="right" if column else "left")
    for name, record in records.items():
        speed = record["speed"]
        table.add_row(
            f"{record['arms']} arms, {name}",
            *(spread(way["wall_s"]) for way in record["ways"].values()),
            *(
                f"{speed[clock][at]:.2f}"
                for clock, at in (("wall_s", "median"), ("wall_s", "min"), ("cpu_s", "median"))
            ),
        )
    console.print(table)


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    arms: Annotated[int, typer.Option(help="How many.")] = 8,
    turns: Annotated[int, typer.Option(help="Of each way.")] = 8,
    seconds: Annotated[float, typer.Option(help="Of a turn, about.")] = 1.0,
    only: Annotated[str, typer.Option(help="A size; all whose names begin so.")] = "",
) -> None:
    """Time 8 arms stacked against one after the other at several sizes."""
    load, device = os.getloadavg(), jax.devices()[0]
    if device.platform == "cpu":
        keep_freed_memory()
    records: dict[str, dict[str, Any]] = {}
    for name, size in SIZES.items():
        if not name.startswith(only):
            continue
        records[name] = compare(size, arms, turns, seconds, device)
        show(Console(), {name: records[name]})
        if out is not None:
            write(out, {"device": device.device_kind, "load_before": load, "sizes": records})


if __name__ == "__main__":
    typer.run(main)
