"""Where else a run's numbers go: TensorBoard always, Weights & Biases and MLflow when asked for."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from research.core.parts import part, require
from research.report.lines import write_whole


class Writer(Protocol):
    """An open sink."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        ...

    def commit(self) -> None:
        """Hand over what was taken."""
        ...

    def close(self) -> None:
        """End the run there."""
        ...


class Sink(Protocol):
    """A part that names a place for numbers."""

    def open(self, workdir: Path, step: int) -> Writer:
        """Open it for a run that has made `step` updates so far."""
        ...


@part
class TensorBoard:
    """Event files under `<workdir>/tensorboard`, written without TensorFlow."""

    def open(self, workdir: Path, step: int) -> EventFile:
        """Start a new event file; TensorBoard forgets what older files say after `step`."""
        return EventFile(workdir / "tensorboard", step)


class EventFile:
    """One event file; a resumed run starts another, named by its first step."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("events.out.tfevents.*.maktab"):
            if int(stale.name.split(".")[3]) >= step:
                stale.unlink()
        self._path = folder / f"events.out.tfevents.{step:010d}.maktab"
        self._pending: list[bytes] = []
        self._event(file_version="brain.Event:2")
        self._event(step=step + 1, session_log={"status": "START"})
        self.commit()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        values = [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]
        self._event(step=step, summary={"value": values})

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue]  (made at import)
            wall_time=time.time(), **fields
        )
        self._pending.append(event.SerializeToString())

    def commit(self) -> None:
        """Append what was taken to the file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in self._pending:
                writer.write(event)
        self._pending.clear()

    def close(self) -> None:
        """Append what is left."""
        self.commit()


@part
class WeightsAndBiases:
    """A run of a Weights & Biases project; a resumed run continues it.

    Its server keeps the first value of a step that is sent twice.

    Attributes:
      mode: "online", or "offline" (files under the run directory, for `wandb sync`).
    """

    project: str
    mode: str = "online"

    def __post_init__(self) -> None:
        require(
            self,
            (bool(self.project), "project is empty; name the project"),
            (
                self.mode in ("online", "offline"),
                f"mode={self.mode!r} is unknown; choose online or offline",
            ),
        )

    def open(self, workdir: Path, step: int) -> WandbRun:
        """Start or continue the run of this directory.

        Raises:
          ModuleNotFoundError: wandb is not installed.
        """
        return WandbRun(self, workdir)


class WandbRun:
    """An open Weights & Biases run."""

    def __init__(self, sink: WeightsAndBiases, workdir: Path):
        wandb = _installed("wandb", "Weights & Biases")
        note = workdir / "wandb.json"
        known = json.loads(note.read_text()) if note.exists() else {}
        self._run = wandb.init(
            project=sink.project,
            mode=sink.mode,
            dir=str(workdir),
            name=f"{workdir.parent.name}/{workdir.name}",
            group=workdir.parent.name,
            id=known.get("run"),
            resume="allow",
            reinit="create_new",
        )
        write_whole(note, json.dumps({"run": self._run.id}).encode())

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        self._run.log(dict(scalars), step=step)

    def commit(self) -> None:
        """Do nothing: wandb sends by itself."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


@part
class MlFlow:
    """A run of an MLflow experiment; a resumed run continues it.

    Attributes:
      tracking: the tracking server's address, or a folder or database address.
    """

    experiment: str
    tracking: str

    def __post_init__(self) -> None:
        require(
            self,
            (bool(self.experiment), "experiment is empty; name the MLflow experiment"),
            (bool(self.tracking), "tracking is empty; give a server, or sqlite:///FILE"),
        )

    def open(self, workdir: Path, step: int) -> MlFlowRun:
        """Start or continue the run of this directory.

        Raises:
          ModuleNotFoundError: mlflow is not installed.
        """
        return MlFlowRun(self, workdir)


class MlFlowRun:
    """An open MLflow run."""

    def __init__(self, sink: MlFlow, workdir: Path):
        mlflow = _installed("mlflow", "MLflow")
        self._metric = mlflow.entities.Metric
        self._client = mlflow.tracking.MlflowClient(tracking_uri=sink.tracking)
        note = workdir / "mlflow.json"
        if note.exists():
            self._run = json.loads(note.read_text())["run"]
        else:
            found = self._client.get_experiment_by_name(sink.experiment)
            experiment = (
                found.experiment_id if found else self._client.create_experiment(sink.experiment)
            )
            name = f"{workdir.parent.name}/{workdir.name}"
            self._run = self._client.create_run(experiment, run_name=name).info.run_id
            write_whole(note, json.dumps({"run": self._run}).encode())
        self._pending: list[Any] = []

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        now = int(time.time() * 1000)
        self._pending += [self._metric(tag, value, now, step) for tag, value in scalars.items()]

    def commit(self) -> None:
        """Send what was taken, a thousand numbers at once (MLflow's limit)."""
        for first in range(0, len(self._pending), 1000):
            self._client.log_batch(self._run, metrics=self._pending[first : first + 1000])
        self._pending.clear()

    def close(self) -> None:
        """Send what is left and end the run."""
        self.commit()
        self._client.set_terminated(self._run)


def _installed(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the experiment records to {what}, but the package {name!r} is not installed; "
            f"pip install {name}, or take the sink out of the experiment"
        ) from error
