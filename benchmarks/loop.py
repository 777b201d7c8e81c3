"""Measure what the loop adds to its steps: idle time, batches and saves, at the reference shape.

    python -m benchmarks.loop --out benchmarks/results/loop-cpu.json

The loop is that of `maktab train`, with data, records and checkpoints of a real run; the step is a
stub, run by a thread that stands for a device: it takes steps in the order of their dispatch,
sleeps 100 ms for each, and notes when it began and ended. What a step would return is there at once
but for the report, which waits for the thread. (A program that sleeps in a callback would not do: a
CPU's programs with callbacks are not dispatched ahead, and an accelerator's steps are.)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import jax
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
SWITCH_S = 1e-4  # between threads: a device does not wait for the interpreter's lock, a thread does
UNSHOWN = ("batches", "laps_of_cycles")


class Nobody:
    """A watch that sees nothing."""

    def begins(self, prepared: Any, step: int) -> None: ...
    def scoring(self, done: int, total: int) -> None: ...
    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None: ...
    def evaluating(self, name: str, done: int, total: int) -> None: ...


class Device(threading.Thread):
    """A thread that is busy for 100 ms with each step that it is handed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.queue: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self.spans: list[tuple[float, float]] = []

    def run(self) -> None:
        while True:
            done = self.queue.get()
            begun = time.perf_counter()
            time.sleep(STEP_S)
            self.spans.append((begun, time.perf_counter()))
            done.set()


@dataclasses.dataclass(frozen=True)
class Awaited:
    """An array that a step gives: whoever wants its numbers waits for the step."""

    value: np.ndarray
    done: threading.Event

    def __array__(self, *_: Any) -> np.ndarray:
        self.done.wait()
        return self.value


class Stub:
    """A step that learns nothing, on a device that is a thread."""

    def __init__(self) -> None:
        self.device = Device()
        self.device.start()
        self._shapes: Any = None

    def compile(self, model: Any, place: Any, structure: Any) -> Any:
        """Stand in for `compile_step`."""
        del structure
        self._real = step_program(model, place)
        return self

    def __call__(self, learner: Any, frozen: Any, batch: Any, *others: Any) -> Any:
        if self._shapes is None:
            _, self._shapes = jax.eval_shape(self._real, learner, frozen, batch, *others)
        done = threading.Event()
        report = jax.tree.map(lambda x: Awaited(np.ones(x.shape, x.dtype), done), self._shapes)
        withheld = jax.tree.map(
            lambda x: Awaited(np.zeros(x.shape, x.dtype), done), self._shapes.totals["withheld"]
        )
        report = dataclasses.replace(
            report,
            totals=report.totals | {"withheld": withheld},
            rows=report.rows | {"id": batch.ids_BZ},
        )
        self.device.queue.put(done)
        return dataclasses.replace(learner, step=learner.step + 1), report


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


def run(made: Prepared, workdir: Path) -> tuple[list[float], list[dict[str, float]]]:
    """Train with the stub; give the gaps between its steps, and the laps of each cycle."""
    stub = Stub()
    with mock.patch.object(loop, "compile_step", stub.compile):
        loop.train(made, workdir, Nobody())
    lines = (workdir / "timing.jsonl").read_text().splitlines()
    return gaps_of(stub.device.spans), [json.loads(line) for line in lines]


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
    """Run with saves, and time batches on their own.

    What a save stalls is the gap that it lies in, beyond the usual gap between two cycles. The
    first gap of a run holds what is made once.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = prepare(experiment(folder, steps))
        found, timing = run(made, folder / "run")
        gaps = dict(enumerate(found, start=1))
        inside = [gap for i, gap in gaps.items() if i % CYCLE]
        between = [gap for i, gap in gaps.items() if i % CYCLE == 0 and i % SAVED]
        stalls = [gap - statistics.median(between) for i, gap in gaps.items() if i % SAVED == 0]
        a_cycle_s = statistics.fmean(inside) * (CYCLE - 1) + statistics.fmean(between)
        record = {
            "step_s": STEP_S,
            "steps_of_a_cycle": CYCLE,
            "state_bytes": state_bytes(made),
            "idle_inside_a_cycle_s": summarise(inside),
            "idle_between_cycles_s": summarise(between),
            "idle_fraction_inside_a_cycle": statistics.median(inside) / STEP_S,
            "idle_fraction_in_all_but_saves": a_cycle_s / (a_cycle_s + STEP_S * CYCLE),
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
