"""Measure what the loop adds to its steps: idle time, batches and saves, at the reference shape.

    python -m benchmarks.loop --out benchmarks/results/loop-cpu.json

The loop is that of `maktab train`, with data, records and checkpoints of a real run; the step is a
stub that waits 100 ms in a callback of its program, so that idle time can be told from work. Some
of that idle time is the stub's own, to enter and leave its callback: the same program called back
to back, with everything at hand, says how much. A device waits for no interpreter lock, a callback
does; threads are therefore switched every 0.1 ms here instead of every 5.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks.step import ROWS, TOKENS, VOCABULARY, architecture
from benchmarks.turns import summarise, write
from configs import curricula
from research.clock import Clock
from research.data.batches import pack_batch
from research.data.packing import pack
from research.data.pool import Data
from research.data.sources import Jsonl
from research.experiment import Experiment
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.train import loop
from research.train.prepare import Prepared, prepare
from research.train.step import step_program
from research.tuning.full import Full

STEP_S = 0.1
CYCLE, SAVED = 25, 100  # steps between looks of the host, and between saves
EXAMPLES = 512
SWITCH_S = 1e-4
UNSHOWN = ("batches", "laps_of_cycles")


class Nobody:
    """A watch that sees nothing."""

    def begins(self, prepared: Any, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None: ...
    def evaluating(self, name: str, done: int, total: int) -> None: ...


class Stub:
    """A step that does nothing for 100 ms, and notes when it began and ended."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._program: Any = None
        self._last: Any = None

    def compile(self, model: Any, place: Any, structure: Any) -> Any:
        """Stand in for `compile_step`."""
        del structure
        self._real = step_program(model, place)
        return self

    def __call__(self, learner: Any, frozen: Any, batch: Any, *others: Any) -> Any:
        if self._program is None:
            _, shapes = jax.eval_shape(self._real, learner, frozen, batch, *others)
            self._program = jax.jit(
                lambda learner, batch: self._step(shapes, learner, batch), donate_argnums=0
            )
        learner, report = self._program(learner, batch)
        self._last = learner, batch
        return learner, report

    def alone(self, count: int) -> list[float]:
        """Call the program again and again, with no loop around it; give the gaps between."""
        self.spans.clear()
        learner, batch = self._last
        for _ in range(count):
            learner, _ = self._program(learner, batch)
        jax.block_until_ready(learner)
        return gaps_of(self.spans)

    def _step(self, shapes: Any, learner: Any, batch: Any) -> Any:
        waited = jax.pure_callback(
            self._wait, jax.ShapeDtypeStruct((), jnp.float32), learner.step, batch.tokens_BT[0, 0]
        )
        report = jax.tree.map(lambda x: jnp.full(x.shape, waited).astype(x.dtype), shapes)
        totals = report.totals | {
            "withheld": jax.tree.map(jnp.zeros_like, report.totals["withheld"])
        }
        report = dataclasses.replace(report, totals=totals, rows=report.rows | {"id": batch.ids_BZ})
        return dataclasses.replace(learner, step=learner.step + waited.astype(jnp.int32)), report

    def _wait(self, *_: Any) -> np.float32:
        begun = time.perf_counter()
        time.sleep(STEP_S)
        self.spans.append((begun, time.perf_counter()))
        return np.float32(1)


def gaps_of(spans: list[tuple[float, float]]) -> list[float]:
    """Give the seconds between the end of each step and the beginning of the next."""
    return [later[0] - earlier[1] for earlier, later in itertools.pairwise(spans)]


def experiment(folder: Path, steps: int) -> Experiment:
    """Give full fine-tuning of the model of `benchmarks/step.py` on packed random tokens."""
    random, file = np.random.default_rng(0), folder / "rows.jsonl"
    lengths = random.integers(32, TOKENS, EXAMPLES)
    rows = [{"input_ids": random.integers(1, VOCABULARY, n).tolist()} for n in lengths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Experiment(
        name="loop",
        model=architecture(),
        data=Data(
            sources=(Jsonl(path=str(file)),), rows=ROWS, row_tokens=TOKENS, needs_no_text=True
        ),
        tuning=Full(),
        objective=CrossEntropy(),
        optimizer=AdamW(),
        schedule=Constant(peak_lr=1e-4),
        curriculum=curricula.random(),
        clock=Clock(steps=steps, cycle_steps=CYCLE, save_every=SAVED // CYCLE, evaluate_every=0),
    )


def run(made: Prepared, workdir: Path) -> tuple[Stub, list[dict[str, float]]]:
    """Train with the stub; give it, with when each step began and ended, and each cycle's laps."""
    stub = Stub()
    with mock.patch.object(loop, "compile_step", stub.compile):
        loop.train(made, workdir, Nobody())
    lines = (workdir / "timing.jsonl").read_text().splitlines()
    return stub, [json.loads(line) for line in lines]


def state_bytes(made: Prepared) -> int:
    """Add the bytes of what a checkpoint of the learner holds: weights and two moments."""
    return sum(3 * x.size * x.dtype.itemsize for x in jax.tree.leaves(made.model.abstract()))


def batches(made: Prepared, count: int) -> list[dict[str, float]]:
    """Time planning, packing, building and putting of a cycle's batches: seconds a batch."""
    pool, data, place = made.pool, made.experiment.data, made.place
    seen = []
    for turn in range(count):
        order = np.random.default_rng(turn).permutation(len(pool)).tolist()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        made_batches = 0
        while len(order) > data.rows * data.segments:
            rows, left = pack(
                order[: data.rows * data.segments],
                pool.lengths_X,
                data.rows,
                data.row_tokens,
                data.segments,
            )
            order = left + order[data.rows * data.segments :]
            filled = [[(x, pool.examples[x]) for x in row] for row in rows]
            build = functools.partial(_built, filled, data.row_tokens, data.segments)
            jax.block_until_ready(place.put_rows(len(rows), build))
            made_batches += 1
        seen.append(
            {
                "wall_s": (time.perf_counter() - wall_s) / made_batches,
                "cpu_s": (time.process_time() - cpu_s) / made_batches,
            }
        )
    return seen


def _built(filled: Any, row_tokens: int, segments: int, part: slice) -> Any:
    return pack_batch(filled[part], row_tokens, segments)


def measure(steps: int) -> dict[str, Any]:
    """Run with saves, then the stub alone, and time batches on their own.

    What a save stalls is the gap that it lies in, beyond the usual gap between two cycles.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = prepare(experiment(folder, steps))
        stub, timing = run(made, folder / "run")
        gaps = dict(enumerate(gaps_of(stub.spans), start=1))
        alone = stub.alone(steps)
        inside = [gap for i, gap in gaps.items() if i % CYCLE]
        between = [gap for i, gap in gaps.items() if i % CYCLE == 0 and i % SAVED]
        stalls = [gap - statistics.median(between) for i, gap in gaps.items() if i % SAVED == 0]
        added_s = statistics.median(inside) - statistics.median(alone)
        around_s = sum(inside + between) - statistics.median(alone) * len(inside + between)
        looped_s = around_s + STEP_S * len(inside + between)
        record = {
            "step_s": STEP_S,
            "steps_of_a_cycle": CYCLE,
            "state_bytes": state_bytes(made),
            "idle_inside_a_cycle_s": summarise(inside),
            "idle_between_cycles_s": summarise(between),
            "idle_of_the_stub_alone_s": summarise(alone),
            "idle_fraction_added_inside_a_cycle": added_s / STEP_S,
            "idle_fraction_added_in_all_but_saves": around_s / looped_s,
            "save_stalls_s": stalls,
            "save_stall_fraction_at_one_a_minute": statistics.median(stalls) / 60,
            "laps_of_cycles": timing,
            "batches": batches(made, 6),
        }
    fast = [line["cpu_s"] for line in record["batches"]]
    return record | {"batch_cpu_s": statistics.median(fast)}


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the run; a multiple of 100.")] = 500,
) -> None:
    """Measure the loop and write a record."""
    sys.setswitchinterval(SWITCH_S)
    record = measure(steps)
    typer.echo(json.dumps({k: v for k, v in record.items() if k not in UNSHOWN}, indent=1))
    if out is not None:
        write(out, record)


if __name__ == "__main__":
    typer.run(main)
