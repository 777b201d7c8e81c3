"""One small sweep and two model folders, made once for all tests of the command line."""

from __future__ import annotations

import dataclasses
import unittest.mock
from pathlib import Path

import pytest

from launch.progress import LiveWatch
from tests.flow.commands import THERE, Said, maktab, model_folder, write_experiment


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Two LoRA runs that differ in their learning rates, and what the commands said that made them.

    Attributes:
      begun: `train`, interrupted after two of the first run's four steps.
      swept: `sweep`, which resumes the first run and runs the second.
    """

    file: Path
    folder: Path
    begun: Said
    swept: Said

    @property
    def plain(self) -> Path:
        return self.folder / "plain" / "seed-0"

    @property
    def hot(self) -> Path:
        return self.folder / "hot" / "seed-0"


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    file, runs = write_experiment(folder), folder / "runs"
    first = runs / "plain" / "seed-0"
    recorded = LiveWatch.recorded

    def interrupt(self, cycle, metrics, timing):
        recorded(self, cycle, metrics, timing)
        if cycle.last == 2:
            raise KeyboardInterrupt

    with unittest.mock.patch.object(LiveWatch, "recorded", interrupt):
        begun = maktab("train", file, "--workdir", first)
    return Sweep(file, runs, begun, maktab("sweep", file, "--workdir", runs))


@pytest.fixture(scope="session")
def stopping(tmp_path_factory) -> Path:
    """A model that also stops at " there"."""
    folder = tmp_path_factory.mktemp("models") / "stopping"
    return model_folder(folder, generation={"eos_token_id": [2, THERE]})


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    """The same without a tokenizer: config.json and weights alone."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    without = ("tokenizer*", "generation_config.json")
    return model_folder(folder, config={"eos_token_id": [2, THERE]}, without=without)
