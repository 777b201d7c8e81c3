"""Run directories as they are found on disk, also while a run goes on or after it was killed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core.parts import rebuild
from research.report.lines import read_lines

Line = Mapping[str, Any]
HOPELESS = "hopeless.json"  # there while a run is not gone on with, since others did better


@dataclasses.dataclass(frozen=True)
class Round:
    """What the curriculum knew and chose when a round opened.

    Attributes:
      step: updates made before.
      arrays: "score_X", "selected" and whatever else the run kept.
    """

    number: int
    step: int
    arrays: Mapping[str, np.ndarray]

    @property
    def scores(self) -> np.ndarray:
        """Scores over the pool, NaN where there is none."""
        return np.asarray(self.arrays.get("score_X", np.zeros(0)), np.float64)

    @property
    def selected(self) -> np.ndarray:
        """Pool indices that the round trains on, in order."""
        return np.asarray(self.arrays.get("selected", np.zeros(0)), np.int64)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
      experiment: the described experiment.
      architecture: the described architecture that it resolved to; empty where none was written.
      starts: for each time it was started, command, code, versions and devices.
      torn: files whose last line a kill cut off; that line is left out.
      hopeless: at which rung it was left behind, and by how much; None: it was not.
    """

    path: Path
    experiment: Mapping[str, Any]
    architecture: Mapping[str, Any]
    starts: tuple[Mapping[str, Any], ...]
    metrics: tuple[Line, ...]
    timing: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    torn: tuple[str, ...]
    hopeless: Mapping[str, Any] | None = None

    @property
    def arm(self) -> str:
        """The arm that this run is a replicate of."""
        return str(self.experiment["name"])

    @property
    def seed(self) -> int:
        """The replicate's seed."""
        return int(self.experiment["seed"])

    @property
    def begun(self) -> str:
        """When it was started first, as ISO text; empty where that was not written."""
        return str(self.starts[0].get("started", "")) if self.starts else ""

    @property
    def planned_steps(self) -> int | None:
        """How many updates were asked for."""
        return self.experiment.get("clock", {}).get("steps")

    @property
    def folds(self) -> int:
        """How many folds the pool's rows fall into, of which the run leaves out one; 0: none."""
        sources = (self.experiment.get("data") or {}).get("sources") or [{}]
        first = sources[0].get("source") if "weight" in sources[0] else sources[0]
        return int((first or {}).get("folds", 0))

    @property
    def last_step(self) -> int:
        """Updates made, as far as they were recorded."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run came to its planned end."""
        return self.planned_steps is not None and self.last_step >= self.planned_steps

    def total(self, name: str) -> float | None:
        """Add a number over all cycles; None where no cycle recorded it."""
        values = [line[name] for line in (*self.metrics, *self.timing) if _is_number(line, name)]
        return float(sum(values)) if values else None

    @functools.cached_property
    def chooses_by_scores(self) -> bool:
        """Whether scores decide anything; if not, they were measured for the record alone.

        A policy that is not maktab's own counts as one that does.
        """
        policy = (self.experiment.get("curriculum") or {}).get("policy")
        if policy is None:
            return True
        try:
            return bool(rebuild(policy).uses_scores)
        except ValueError:
            return True

    def flops(self, step: int | None = None) -> tuple[float, float]:
        """Give the FLOPs of (the updates, the scoring) up to a step; 0 where none were recorded.

        Scoring for the record alone is not charged: the method does without it.
        """
        lines = [line for line in self.metrics if step is None or line["step"] <= step]
        scoring = [line["scoring_flops"] for line in lines if _is_number(line, "scoring_flops")]
        updates = [line["flops"] for line in lines if _is_number(line, "flops")]
        charged = float(max(scoring, default=0.0)) if self.chooses_by_scores else 0.0
        return float(sum(updates)), charged

    def tokens(self, step: int | None = None) -> float:
        """Give the tokens trained on up to a step; 0 where they were not recorded."""
        lines = [line for line in self.metrics if step is None or line["step"] <= step]
        return float(sum(line["tokens"] for line in lines if _is_number(line, "tokens")))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Give (steps, values) of a cycle's number, where it is finite."""
        lines = [line for line in (*self.metrics, *self.timing) if _is_number(line, name)]
        return (
            np.asarray([line["step"] for line in lines], np.float64),
            np.asarray([line[name] for line in lines], np.float64),
        )

    def final(self, evaluation: str) -> Line | None:
        """Give the last recorded evaluation of a name."""
        found = [line for line in self.evaluations if line["name"] == evaluation]
        return max(found, key=lambda line: line["step"]) if found else None

    def items(self, evaluation: str, step: int) -> dict[str, Line]:
        """Give an evaluation's rows by item id; empty where they were not kept."""
        path = self.path / "evaluations" / f"{evaluation}-{step}.jsonl"
        return {line["id"]: line for line in _lines(path)[0]}

    @functools.cached_property
    def rounds(self) -> tuple[Round, ...]:
        """Every round that has been opened."""
        return tuple(_round(path) for path in sorted((self.path / "rounds").glob("[0-9]*.npz")))

    @functools.cached_property
    def pool(self) -> Mapping[int, Line]:
        """The pool's examples by index: "id", "tokens" and what was kept of their text."""
        return {line["index"]: line for line in _lines(self.path / "pool.jsonl")[0]}

    @functools.cached_property
    def losses(self) -> tuple[Line, ...]:
        """The losses of single examples, for the updates for which they were recorded."""
        return tuple(_lines(self.path / "losses.jsonl")[0])

    @functools.cached_property
    def order(self) -> tuple[Line, ...]:
        """The recorded updates: which pool indices each trained on."""
        return tuple(_lines(self.path / "order.jsonl")[0])


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that may be compared."""
        return tuple(run for run in self.runs if run.finished)


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """Read every run directory at or under `paths`, grouped by arm.

    Arms come in the order of `paths`, and under one path in the order in which they were begun.

    Raises:
      ValueError: there is none, a file is malformed, or an arm has the same seed twice.
    """
    arms: dict[str, dict[int, Run]] = {}
    for run in _runs(paths):
        seeds = arms.setdefault(run.arm, {})
        if run.seed in seeds:
            raise ValueError(
                f"arm {run.arm!r} has seed {run.seed} twice: {seeds[run.seed].path} and "
                f"{run.path}; leave one out, or give the arms different names"
            )
        seeds[run.seed] = run
    return [Arm(name, tuple(seeds[seed] for seed in sorted(seeds))) for name, seeds in arms.items()]


def _runs(paths: Sequence[Path]) -> Iterator[Run]:
    """Read each run directory once."""
    seen: set[Path] = set()
    for path in paths:
        folders = [file.parent.resolve() for file in sorted(path.glob("**/experiment.json"))]
        if not folders:
            raise ValueError(
                f"{path}: no run directory is there or below it; expected an experiment.json"
            )
        runs = [read_run(folder) for folder in folders if folder not in seen]
        seen.update(folders)
        yield from sorted(runs, key=lambda run: (run.begun, str(run.path)))


def read_run(folder: Path) -> Run:
    """Read one run directory; files that are not there yet count as empty.

    Raises:
      ValueError: a file is malformed, with its name and line.
    """
    described = _document(folder / "experiment.json")
    experiment = described.get("experiment", {})
    if not {"name", "seed"} <= experiment.keys():
        raise ValueError(
            f"{folder / 'experiment.json'}: expected an experiment with name and seed in it"
        )
    run_json = folder / "run.json"
    names = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")
    (metrics, _), (timing, _), (evaluations, _) = files = [_lines(folder / name) for name in names]
    return Run(
        path=folder,
        experiment=experiment,
        architecture=described.get("architecture", {}),
        starts=tuple(_document(run_json)) if run_json.exists() else (),
        metrics=tuple(metrics),
        timing=tuple(timing),
        evaluations=tuple(evaluations),
        torn=tuple(name for name, (_, torn) in zip(names, files, strict=True) if torn),
        hopeless=_document(folder / HOPELESS) if (folder / HOPELESS).exists() else None,
    )


def _lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    return read_lines(path) if path.exists() else ([], False)


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore it") from error


def _round(path: Path) -> Round:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no NumPy archive ({error}); restore or remove it") from error
    return Round(number=int(path.stem), step=int(arrays.get("step", 0)), arrays=arrays)


def _is_number(line: Line, name: str) -> bool:
    value = line.get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
