"""Run a sweep in several processes of this machine, each with devices of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.devices import Share, divide
from launch.processes import Notice
from launch.sweep import WAIT_S, Scheduler, plainly
from launch.sweep_board import Board
from launch.sweep_task import Outcome, told
from launch.sweep_worker import LEFT
from research.core.parts import describe
from research.sweep.agenda import Task
from research.sweep.plan import Sweep
from research.train.loop import PreemptedError
from research.train.watchdog import Patience

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-P", "-m", "launch.sweep_worker")
COMPILED = "compiled"  # programs that one process compiled, for the others
LEAST_COMPILE_S = 0.3  # what took less is not kept
SAID_CHARS = 2_000  # of a log's end, in a message

Say = Callable[[str], None]


class Worker:
    """A process that is given tasks, and what it is doing."""

    def __init__(
        self,
        index: int,
        share: Share,
        settings: Mapping[str, Any],
        env: Mapping[str, str],
        program: Sequence[str],
    ):
        folder = Path(settings["folder"])
        self.index, self.name = index, f"worker {index} ({share.name})"
        self.log = folder / "workers" / f"{index}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.task: Task | None = None
        given = json.dumps({**settings, "cores": share.cores})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**env, **share.env},
                start_new_session=True,  # a Ctrl-C in the terminal comes through the parent
            )

    def give(self, task: Task | None) -> None:
        """Give a task, or None: there are no more."""
        self.task = task
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which its end will say
            self.process.stdin.write(json.dumps(task and told(task)) + "\n")
            self.process.stdin.flush()

    def outcomes(self) -> Iterator[Outcome]:
        """Give what came of each task, and at last how the process ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield Outcome(**json.loads(line))
        yield self._end(self.process.wait())

    def _end(self, code: int) -> Outcome:
        if code == LEFT:
            return Outcome("left", "it was asked to leave")
        if code >= 0:
            return Outcome("stopped", f"{self.name} ended with {code}; {self.tail()}")
        name = signal.Signals(-code).name
        return Outcome("lost", f"{self.name} was killed by {name}; its output is in {self.log}")

    def tail(self) -> str:
        """Give the end of what it has printed."""
        return f"{self.log} ends:\n{self.log.read_text(errors='replace')[-SAID_CHARS:].strip()}"


class Crew:
    """Workers, one a share of the machine, each started when it is first needed.

    A worker that is gone is replaced by another one with the next task.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        settings: Mapping[str, Any],
        program: Sequence[str] = PROGRAM,
    ):
        self._shares, self._settings, self._program = shares, settings, program
        self._env = environment(Path(settings["folder"]))
        self._workers: dict[int, Worker] = {}
        self._heard: queue.SimpleQueue[tuple[Worker, Outcome]] = queue.SimpleQueue()

    @property
    def idle(self) -> bool:
        """Whether a share of the machine has nothing to do."""
        return len(self.busy) < len(self._shares)

    @property
    def busy(self) -> list[Worker]:
        """The workers that have a task."""
        return [worker for worker in self._workers.values() if worker.task is not None]

    def give(self, task: Task) -> Worker:
        """Give a task to a worker that has none."""
        taken = {worker.index for worker in self.busy}
        index = next(x for x in range(len(self._shares)) if x not in taken)
        if index not in self._workers:
            share = self._shares[index]
            worker = Worker(index, share, self._settings, self._env, self._program)
            self._workers[index] = worker
            threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        self._workers[index].give(task)
        return self._workers[index]

    def hear(self, wait_s: float) -> tuple[Task, Outcome] | None:
        """Wait for what comes of a task."""
        try:
            worker, outcome = self._heard.get(timeout=wait_s)
        except queue.Empty:
            return None
        if worker.process.poll() is not None and self._workers.get(worker.index) is worker:
            del self._workers[worker.index]
        task, worker.task = worker.task, None
        return None if task is None else (task, outcome)

    def leave(self) -> None:
        """Ask all to save and leave."""
        for worker in self._workers.values():
            worker.process.terminate()

    def end(self) -> None:
        """Tell all that there are no more tasks, and wait for them.

        Those that are busy read it when their run has ended: it may come to its end by itself after
        it was asked to leave.
        """
        for worker in self._workers.values():
            worker.give(None)
        for worker in self._workers.values():
            worker.process.wait()

    def kill(self) -> None:
        """End all at once; nothing is lost that was saved."""
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.wait()

    def _listen(self, worker: Worker) -> None:
        for outcome in worker.outcomes():
            self._heard.put((worker, outcome))


def environment(folder: Path) -> dict[str, str]:
    """Give the environment of workers: this code, and compiled programs in the sweep's folder.

    Programs are kept by host: those of a CPU may not run on another one.
    """
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    cache = (folder / COMPILED / socket.gethostname()).absolute()
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    env.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_COMPILE_S))
    return env


def run_at_once(
    sweep: Sweep,
    folder: Path,
    console: Console,
    *,
    jobs: int,
    file: Path,
    settings: Sequence[str],
    generator: str,
    only: Sequence[str],
    command: Sequence[str],
    patience: Patience,
) -> None:
    """Run a sweep in `jobs` processes, each of which runs one run after the other.

    Args:
      file, settings, generator, only: where the sweep is from; workers read it themselves.

    Raises:
      ValueError: the input of the first run is wrong.
      PreemptedError: this process was asked to leave; all runs have saved.
      SweepError: naming the runs that stopped, at the end.
    """
    scheduler = Scheduler(sweep, folder, plainly(console))
    given = {"file": str(file), "set": list(settings), "generator": generator, "only": list(only)}
    given |= {"folder": str(folder), "command": list(command), "patience": describe(patience)}
    given["patience"].pop("type")
    crew = Crew(divide(jobs, os.environ), given)
    with Notice() as notice, Board(console, scheduler.rows) as board:
        try:
            work(scheduler, crew, board, lambda: notice.given)
        except KeyboardInterrupt:
            console.print("interrupted: runs save and leave; Ctrl-C again ends them at once")
            leave(crew)
            console.print("the same command goes on from the last checkpoints")
            raise
        except BaseException:
            leave(crew)
            raise
        crew.end()
    scheduler.conclude()


def work(scheduler: Scheduler, crew: Crew, board: Board, asked: Callable[[], bool]) -> None:
    """Give tasks to workers until all is settled.

    Raises:
      PreemptedError: this process was asked to leave, or one of the workers.
    """
    while True:
        waits = fill(scheduler, crew, board) if crew.idle else WAIT_S
        if waits is None and not crew.busy:
            return
        heard = crew.hear(WAIT_S)
        if asked() or (heard is not None and heard[1].kind == "left"):
            raise PreemptedError(
                "asked to leave, as by SIGTERM: its runs have saved; the same command goes on there"
            )
        if heard is not None:
            scheduler.ended(*heard)
            if heard[1].kind == "done":
                board.line(f"{scheduler.label(heard[0])}: {board.reached(heard[0].workdir)}")


def fill(scheduler: Scheduler, crew: Crew, board: Board) -> float | None:
    """Give every idle worker a task; give what `Scheduler.next` said at last, if not a task."""
    said: Task | float | None = WAIT_S
    while crew.idle and isinstance(said := scheduler.next(), Task):
        scheduler.begins(said)
        worker = crew.give(said)
        board.line(f"{scheduler.label(said)}: {worker.name}")
    return None if said is None else WAIT_S


def leave(crew: Crew) -> None:
    """Ask all to leave, and wait until they have; a Ctrl-C ends them at once."""
    try:
        crew.leave()
        crew.end()
    except KeyboardInterrupt:
        crew.kill()
        raise
