"""A process that runs what a sweep gives it, one run after the other.

Tasks come as lines of JSON on standard input, and what came of each goes out on what was standard
output; all else that is printed goes to the log. The end of the input means that whoever gave the
tasks is gone: this process leaves as on SIGTERM, saving first.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

LEFT = 75  # the exit code of one that was asked to leave


def main() -> None:
    """Run tasks until there are no more."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who gives the tasks
    if settings["cores"]:
        os.sched_setaffinity(0, settings["cores"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(tasks,), daemon=True).start()
    work(settings, tasks, answers)


def listen(tasks: queue.SimpleQueue[Any]) -> None:
    """Take in tasks; null is the last one."""
    for line in sys.stdin:
        task = json.loads(line)
        tasks.put(task)
        if task is None:
            return
    os.kill(os.getpid(), signal.SIGTERM)


def work(settings: Mapping[str, Any], tasks: queue.SimpleQueue[Any], answers: TextIO) -> None:
    """Run task after task, and say what came of each."""
    from pathlib import Path

    from rich.console import Console

    from launch.experiment_file import load_sweep
    from launch.processes import Group
    from launch.sweep import adapted
    from launch.sweep_task import attempt, task_of
    from research.train.loop import PreemptedError
    from research.train.watchdog import Patience

    console = Console(stderr=True, highlight=False)
    loaded = load_sweep(Path(settings["file"]), settings["set"], settings["generator"])
    sweep = adapted(loaded, eta=0, rungs=1, metric="", only=settings["only"])
    group = Group(patience=Patience(**settings["patience"]))
    quiet = False
    while (told := tasks.get()) is not None:
        task = task_of(sweep, Path(settings["folder"]), told)
        console.print(f"{task.workdir}:", markup=False, soft_wrap=True)
        try:
            outcome = attempt(
                task, console, command=settings["command"], quiet=quiet, group=group, watch=None
            )
        except PreemptedError as error:
            say(answers, {"kind": "left", "says": str(error)})
            raise SystemExit(LEFT) from error
        quiet = True
        say(answers, {"kind": outcome.kind, "says": outcome.says})


def say(answers: TextIO, outcome: Mapping[str, Any]) -> None:
    """Say what came of a task."""
    answers.write(json.dumps(outcome) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
