"""The only place where a run speaks: its record on disk, and the same numbers to every sink."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core.processes import is_first
from research.evaluate.results import Evaluation
from research.report.lines import append, cut_after, encode, write_whole
from research.report.sinks import Sink, TensorBoard, Writer

FILES = ("metrics.jsonl", "timing.jsonl", "order.jsonl", "losses.jsonl", "evaluations.jsonl")


class Record:
    """The record of one run directory, appended cycle by cycle.

    "step" always counts the updates made when a line was written: the first update's line in
    order.jsonl has step 1, and a checkpoint of step n owns exactly the lines with step <= n. Lines
    wait in memory until `commit`, which the loop calls once a cycle, before it saves: so what a
    checkpoint owns is on the disk before the checkpoint is.

    Law: a run that is killed at any moment and resumed leaves the same bytes in metrics.jsonl,
      order.jsonl, losses.jsonl, evaluations.jsonl, evaluations/ and rounds/ as one that never was.
    """

    def __init__(self, workdir: Path, sinks: Sequence[Sink] = ()):
        self._workdir = workdir
        self._sinks = (TensorBoard(), *sinks)
        self._writers: list[Writer] = []
        self._pending: dict[str, list[str]] = {}
        self._step = 0
        workdir.mkdir(parents=True, exist_ok=True)

    def truncate_to(self, step: int) -> None:
        """Take back everything that was recorded after `step`, and a torn last line.

        Called once, before anything is recorded, with the step that the run starts from.
        """
        self._step = step
        for name in FILES:
            if (self._workdir / name).exists():
                cut_after(self._workdir / name, step)
        for path in (self._workdir / "evaluations").glob("*.jsonl*"):
            if path.suffix == ".partial" or int(path.stem.rpartition("-")[2]) > step:
                path.unlink()
        for path in (self._workdir / "rounds").glob("*.npz*"):
            if path.suffix == ".partial" or _round_step(path) > step:
                path.unlink()

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Record a cycle's numbers; only what is the same in every run of the same experiment.

        A report draws "loss_nats", a mean over the cycle's trained tokens, and adds up, over
        cycles, "tokens" (trained on) and "examples".
        """
        self._line("metrics.jsonl", {"step": step, **values})
        self._scalars(step, "train", values)

    def timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Record a cycle's seconds, rates and FLOPs.

        A report adds up, over cycles, "wall_s" (with scoring, saving and evaluating) and "flops"
        (of the updates); "scoring_flops" is what scoring has cost since the run began.
        """
        self._line("timing.jsonl", {"step": step, **values})
        self._scalars(step, "timing", values)

    def order(self, step: int, round: int, rows: Sequence[Sequence[int]]) -> None:
        """Record which pool indices update number `step` (from 1) trained on, row by row."""
        self._line("order.jsonl", {"step": step, "round": round, "rows": rows})

    def losses(self, step: int, loss_nats: Sequence[Sequence[float]]) -> None:
        """Record each example's loss in update number `step`, in nats a trained token.

        Shapes: as the rows of `order`; in a file of its own, since orders are exact, losses not.
        """
        rounded = [[float(f"{loss:.6g}") for loss in row] for row in loss_nats]
        self._line("losses.jsonl", {"step": step, "loss_nats": rounded})

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Record an evaluation of the model after `step` updates; its rows get their own file."""
        rows = "".join(encode(row) for row in evaluation.rows)
        write_whole(
            self._workdir / "evaluations" / f"{evaluation.name}-{step}.jsonl", rows.encode()
        )
        self._line("evaluations.jsonl", {"step": step, **evaluation.summary()})
        values = {name: estimate.value for name, estimate in evaluation.metrics.items()}
        self._scalars(step, f"evaluate/{evaluation.name}", values)

    def round(self, number: int, step: int, **arrays: Any) -> None:
        """Record what the curriculum knew and chose when a round opened, after `step` updates.

        Shapes: `score_X`, `scored_round_X`, `times_used_X` over the pool, `selected` in order; any
        other array is kept as it is.
        """
        content = io.BytesIO()
        held: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(content, step=np.int64(step), **held)
        write_whole(self._workdir / "rounds" / f"{number:04d}.npz", content.getvalue())

    def commit(self) -> None:
        """Bring everything recorded so far to the disk and to the sinks."""
        for name, lines in self._pending.items():
            append(self._workdir / name, lines)
        self._pending.clear()
        for writer in self._writers:
            writer.commit()

    def close(self) -> None:
        """Commit, and end the sinks."""
        self.commit()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def _line(self, name: str, values: Mapping[str, Any]) -> None:
        self._pending.setdefault(name, []).append(encode(values))

    def _scalars(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        if not self._writers:
            self._writers = [sink.open(self._workdir, self._step) for sink in self._sinks]
        numbers = {f"{group}/{k}": float(v) for k, v in values.items() if _is_number(v)}
        for writer in self._writers:
            writer.write(step, numbers)


class Quiet:
    """The record of a process that does not speak: what `Record` can, with nothing written."""

    def truncate_to(self, step: int) -> None: ...
    def metrics(self, step: int, values: Mapping[str, Any]) -> None: ...
    def timing(self, step: int, values: Mapping[str, Any]) -> None: ...
    def order(self, step: int, round: int, rows: Sequence[Sequence[int]]) -> None: ...
    def losses(self, step: int, loss_nats: Sequence[Sequence[float]]) -> None: ...
    def evaluation(self, step: int, evaluation: Evaluation) -> None: ...
    def round(self, number: int, step: int, **arrays: Any) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


AnyRecord = Record | Quiet


def open_record(workdir: Path, sinks: Sequence[Sink] = ()) -> AnyRecord:
    """Open the record of a run; of several processes only the first writes one."""
    return Record(workdir, sinks) if is_first() else Quiet()


def _round_step(path: Path) -> int:
    with np.load(path) as arrays:
        return int(arrays["step"])


def _is_number(value: Any) -> bool:
    if isinstance(value, (str, bool)) or value is None or np.ndim(value) > 0:
        return False
    return math.isfinite(float(value))
