"""Write the golden files anew: python -m tests.golden.make (then say why in CHANGELOG.md)."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from launch.experiment_file import load_module
from research.core.parts import describe
from research.experiment import Experiment
from research.train.loop import train
from research.train.prepare import prepare
from tests.flow.runs import Silent, tiny_run

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / "experiments"
STEPS = 20


def configs() -> dict[str, dict]:
    """Describe what every experiment file gives: `get_config` whole, and what the runs of `sweep`
    and the like make different."""
    found = {}
    for file in sorted(EXPERIMENTS.rglob("*.py")):
        module = load_module(file)
        if not hasattr(module, "get_config"):
            continue  # a script that reads run directories
        whole = portable(module.get_config())
        told: dict[str, Any] = {"get_config": whole}
        for name, generator in generators(module):
            told[name] = list(runs_of(flattened(whole), generator()))
        found[str(file.relative_to(EXPERIMENTS))] = told
    return found


def runs_of(whole: dict[str, Any], runs: Iterable[Experiment]) -> Iterator[Any]:
    """Give what differs from `whole` in the first run of each name; a hash of its replicates."""
    seen = set()
    for run in runs:
        told = flattened(portable(run))
        if run.name in seen:
            digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
            yield f"{run.name}, seed {run.seed}: {digest[:16]}"
        else:
            yield changes(whole, told)
        seen.add(run.name)


def generators(module: ModuleType) -> list[tuple[str, Callable[[], Iterator[Experiment]]]]:
    """Give a file's functions that take nothing and yield experiments, in its order."""
    return [
        (name, function)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__annotations__ == {"return": "Iterator[Experiment]"}
        and not inspect.signature(function).parameters
    ]


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Give every number and word of a description by its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, held in items for k, v in flattened(held, f"{path}.{key}").items()}


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Give what is not in `old`, and "absent" for what is not in `new`."""
    gone = {path: "absent" for path in old if path not in new}
    return gone | {k: v for k, v in new.items() if k not in old or old[k] != v}


def portable(experiment: Experiment) -> dict:
    """Describe an experiment with the paths of this checkout left out."""
    text = json.dumps(describe(experiment), sort_keys=True)
    return json.loads(text.replace(str(EXPERIMENTS), "experiments"))


def curve(folder: Path) -> list[float]:
    """Give the losses of a tiny EDCO run, a number a step."""
    experiment = tiny_run(folder, {"clock.steps": STEPS, "clock.cycle_steps": 1})
    train(prepare(experiment), folder / "run", Silent())
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss_nats"] for line in lines]


def main() -> None:
    """Write both files."""
    (HERE / "configs.json").write_text(json.dumps(configs(), indent=1, sort_keys=True) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        losses = curve(Path(folder))
    (HERE / "curve.json").write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    main()
