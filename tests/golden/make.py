"""Write the golden files anew: python -m tests.golden.make (then say why in CHANGELOG.md)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

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
    """Describe every experiment that `get_config`, `sweep` and the like of every file give."""
    found = {}
    for file in sorted(EXPERIMENTS.glob("*.py")):
        module = load_module(file)
        runs = [module.get_config(), *getattr(module, "sweep", tuple)()]
        found[file.name] = [portable(run) for run in runs]
    return found


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
