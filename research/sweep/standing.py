"""Where a run stands, as the files in its folder say: also one of another process or machine."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from research.checkpoint import write_atomically
from research.core.parts import rebuild
from research.report.lines import read_lines
from research.report.runs import HOPELESS
from research.sweep.halving import rung_step
from research.train.watchdog import FOLDER, STOPPED, born, file_of, machine, read

FINISHED = "finished.json"
TAIL_BYTES = 65_536  # of a file whose last lines are wanted

State = Literal["waiting", "held", "left", "stopped", "hopeless", "finished"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run has come.

    Attributes:
      state: "held": a process runs it, as far as can be seen; "left": begun, and nobody runs it;
        "stopped": so is this one, and it ended by an error.
      doing: what the process that holds it does.
      left_s: the time it will take, if it goes on as it went.
      evaluation: what its first evaluator said last.
    """

    state: State
    doing: str = ""
    step: int = 0
    steps: int | None = None
    loss_nats: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    evaluation: Mapping[str, Any] | None = None


def stand(workdir: Path) -> Standing:
    """Read where a run stands."""
    pulse = read(file_of(workdir / FOLDER, 0))
    described = described_in(workdir)
    doing = str(pulse.get("doing", ""))
    if described is None:
        return Standing(state="held" if _holds(pulse) else "waiting", doing=doing)
    steps = described["experiment"]["clock"]["steps"]
    metrics, timing = tail(workdir / "metrics.jsonl"), tail(workdir / "timing.jsonl")
    step = int(metrics[-1]["step"]) if metrics else 0
    return Standing(
        state=_state(workdir, pulse),
        step=step,
        steps=steps,
        loss_nats=metrics[-1].get("loss_nats") if metrics else None,
        tokens_per_s=timing[-1].get("tokens_per_s") if timing else None,
        left_s=_left_s(timing, steps),
        evaluation=_last_evaluation(workdir),
        doing=doing,
    )


def holder(workdir: Path) -> Literal["nobody", "here", "elsewhere"]:
    """Say who runs in a folder: a process of this machine that lives, or perhaps one of another."""
    pulse = read(file_of(workdir / FOLDER, 0))
    if not _holds(pulse):
        return "nobody"
    return "here" if _lives(pulse) else "elsewhere"


def stop(workdir: Path) -> tuple[str, str] | None:
    """Give (start, why) of the last start of a run, if it ended by an error."""
    pulse = read(file_of(workdir / FOLDER, 0))
    left = pulse.get("left") or {}
    return (pulse["start"], left["why"]) if left.get("code") == STOPPED else None


def _state(workdir: Path, pulse: Mapping[str, Any]) -> State:
    if _holds(pulse):
        return "held"
    if (workdir / FINISHED).exists():
        return "finished"
    if (workdir / HOPELESS).exists():
        return "hopeless"
    return "stopped" if pulse.get("left", {}).get("code") == STOPPED else "left"


def _holds(pulse: Mapping[str, Any]) -> bool:
    """Whether a process has not left, and is not known to be gone."""
    if not pulse or pulse.get("left"):
        return False
    return pulse["machine"] != machine() or _lives(pulse)


def _lives(pulse: Mapping[str, Any]) -> bool:
    """Whether the process is on this machine, and lives."""
    here = bool(pulse) and pulse["machine"] and pulse["machine"] == machine()
    return bool(here) and not pulse.get("left") and born(pulse["pid"]) == pulse["born"]


def _last_evaluation(workdir: Path) -> Mapping[str, Any] | None:
    """Give what the first evaluator said last."""
    lines = tail(workdir / "evaluations.jsonl")
    return next((line for line in lines if line["step"] == lines[-1]["step"]), None)


def _left_s(timing: Sequence[Mapping[str, Any]], steps: int) -> float | None:
    """Give the time that the steps to come take at the pace of the last cycles.

    Of those, the first may have compiled; it is left out.
    """
    if len(timing) < 2:
        return None
    made = timing[-1]["step"] - timing[0]["step"]
    return (steps - timing[-1]["step"]) * sum(line["wall_s"] for line in timing[1:]) / made


def described_in(workdir: Path) -> Mapping[str, Any] | None:
    """Give what `experiment.json` says, or None where no run was begun."""
    try:
        return json.loads((workdir / "experiment.json").read_bytes())
    except FileNotFoundError:
        return None


def tail(file: Path) -> list[Mapping[str, Any]]:
    """Give the last whole lines of a file of JSON objects; [] where there is none."""
    try:
        with file.open("rb") as opened:
            begins = max(0, opened.seek(0, 2) - TAIL_BYTES)
            opened.seek(begins)
            lines = opened.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in (lines[1:] if begins else lines)]


def value_at(workdir: Path, fraction: float, metric: str) -> tuple[int, float] | None:
    """Give (step, value) of a metric at a rung; None: the run has not come there.

    Units: NaN where the evaluation has no such number.
    """
    described = described_in(workdir)
    if described is None:
        return None
    experiment = described["experiment"]
    clock = rebuild(experiment["clock"])
    step = rung_step(clock, experiment["curriculum"]["rounds"], fraction)
    return (step, value) if (value := _evaluated(workdir, step, metric)) is not None else None


def _evaluated(workdir: Path, step: int, metric: str) -> float | None:
    evaluator, _, name = metric.partition("/")
    file = workdir / "evaluations.jsonl"
    lines = read_lines(file)[0] if file.exists() else []
    found = [line for line in lines if line["step"] == step and line["name"] == evaluator]
    if not found:
        return None
    metrics = found[-1]["metrics"]
    if name not in metrics:
        raise ValueError(
            f"{file}: {evaluator} has no metric {name!r} at step {step}; it has "
            f"{', '.join(metrics)}"
        )
    value = metrics[name]["value"]
    return math.nan if value is None else float(value)


def mark_hopeless(workdir: Path, said: Mapping[str, Any]) -> None:
    """Write down why a run was not gone on with; who goes on with it takes it away again."""
    text = json.dumps(said) + "\n"
    file = workdir / HOPELESS
    if not file.exists() or file.read_text() != text:
        write_atomically(file, text)


def unmark_hopeless(workdir: Path) -> None:
    """A run goes on: nothing is known against it any more."""
    (workdir / HOPELESS).unlink(missing_ok=True)
