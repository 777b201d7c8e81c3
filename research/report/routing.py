"""What the routers of runs did, as the runs recorded it: load, entropy, drops, drift, slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from research.evaluate.routing import AGREEMENT
from research.evaluate.specialisation import Specialisation, specialisation
from research.report.runs import Arm, Line, Run

LOAD, ENTROPY, DROPPED = "router_load", "router_entropy_nats", "router_dropped_fraction"
IDLE = 0.1  # of its share: an expert that gets less learns next to nothing


def routed(arms: Sequence[Arm]) -> list[Arm]:
    """Give the runs that recorded what their routers do, those with experts, by arm."""
    return _with(arms, lambda run: any(LOAD in line for line in run.metrics))


def evaluated(arms: Sequence[Arm], evaluation: str) -> list[Arm]:
    """Give the runs that compared their routes with the starting weights', by arm."""
    return _with(arms, lambda run: bool(_compared(run, evaluation)))


def _with(arms: Sequence[Arm], wanted: Callable[[Run], bool]) -> list[Arm]:
    kept = [Arm(arm.name, tuple(run for run in arm.runs if wanted(run))) for arm in arms]
    return [arm for arm in kept if arm.runs]


def _compared(run: Run, evaluation: str) -> list[Line]:
    """Give a run's lines of an evaluation that compares routes."""
    return [
        line
        for line in run.evaluations
        if line["name"] == evaluation and AGREEMENT in line["metrics"]
    ]


def layers_of(run: Run) -> tuple[int, ...]:
    """Number the layers with experts, first to last."""
    dense = (run.architecture.get("moe") or {}).get("dense_layers", ())
    count = next(len(line[LOAD]) for line in run.metrics if LOAD in line)
    layers = [layer for layer in range(count + len(dense)) if layer not in dense]
    return tuple(layers)


def recorded(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give (steps, values with a leading axis of steps) of what every layer's router did."""
    lines = [line for line in run.metrics if name in line]
    return np.asarray([line["step"] for line in lines]), np.asarray([line[name] for line in lines])


def busiest(load_LE: np.ndarray) -> np.ndarray:
    """Give the largest load of a layer's experts over their mean: 1 is balance, E collapse."""
    return load_LE.max(axis=-1) * load_LE.shape[-1]


def variation(load_LE: np.ndarray) -> np.ndarray:
    """Give the coefficient of variation of a layer's loads: their deviation over their mean."""
    return load_LE.std(axis=-1) * load_LE.shape[-1]


def idle(load_LE: np.ndarray) -> np.ndarray:
    """Give the share of a layer's experts that get less than a tenth of their share."""
    return np.mean(load_LE < IDLE / load_LE.shape[-1], axis=-1)


def final_load(run: Run) -> np.ndarray:
    """Give the loads [L, E] of a run's last cycle."""
    return recorded(run, LOAD)[1][-1]


def drifts(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Name the evaluations that compare routes with those of the starting weights."""
    return _distinct(
        line["name"]
        for arm in arms
        for run in arm.runs
        for line in run.evaluations
        if AGREEMENT in line["metrics"]
    )


def drift(run: Run, evaluation: str) -> tuple[np.ndarray, np.ndarray]:
    """Give (steps, agreement with the start [steps, layers])."""
    names, lines = [f"{AGREEMENT}_layer_{n}" for n in layers_of(run)], _compared(run, evaluation)
    steps = np.asarray([line["step"] for line in lines])
    return steps, np.asarray([[line["metrics"][n]["value"] for n in names] for line in lines])


def fields(arms: Sequence[Arm], evaluation: str) -> tuple[str, ...]:
    """Name the fields that an evaluation slices by."""
    return _distinct(
        name
        for arm in arms
        for run in arm.runs
        for line in _compared(run, evaluation)[:1]
        for row in run.items(evaluation, line["step"]).values()
        for name in row["slices"]
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sliced:
    """How far the experts of one run specialise by a field, before training and at the end."""

    run: Run
    start: Specialisation
    end: Specialisation

    @property
    def place(self) -> int:
        """Where on L the layer stands that specialised most."""
        return int(np.argmax(self.end.above_chance_L))

    @property
    def layer(self) -> int:
        """The number of that layer."""
        return layers_of(self.run)[self.place]


def sliced(arm: Arm, evaluation: str, field: str) -> list[Sliced]:
    """Measure how far the experts of an arm's runs specialise by a field, where rows were kept."""
    found = []
    for run in arm.runs:
        steps = sorted(line["step"] for line in _compared(run, evaluation))
        start, end = (_specialised(run, evaluation, field, step) for step in (steps[0], steps[-1]))
        if start is not None and end is not None:
            found.append(Sliced(run=run, start=start, end=end))
    return found


def _specialised(run: Run, evaluation: str, field: str, step: int) -> Specialisation | None:
    rows = [row for row in run.items(evaluation, step).values() if field in row["slices"]]
    if not rows:
        return None
    load_XLE = np.asarray([row["load"] for row in rows])
    return specialisation(load_XLE, [row["slices"][field] for row in rows])


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
