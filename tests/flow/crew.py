"""Real processes of one command: started together, looked at, and ended with the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.guard import STACKS_S
from research.train.watchdog import FOLDER, GRACE_S, Patience

ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0  # ends a hang; four processes on a busy machine take minutes to begin
SLACK_S = 120.0  # what a busy machine adds to the time that docs/processes.md states
ONE_DEVICE = "--xla_force_host_platform_device_count=1"


# Below the ports that systems give out by themselves, so that no connection takes one between the
# asking and the use; pytest's workers count from places of their own.
PORTS = itertools.count(20_000 + os.getpid() % 600 * 20)


def free_port() -> int:
    """Give a port that nobody listens on, another each time."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("ports never end")


def until(true: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until something is true."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, f"waited {limit_s:.0f} s in vain: {what}"
        time.sleep(0.02)


class Crew:
    """Processes that run together."""

    def __init__(self, commands: Sequence[Sequence[str]], logs: Path):
        logs.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ONE_DEVICE}
        self.logs = [logs / f"{index}.log" for index in range(len(commands))]
        self.running = []
        for command, log in zip(commands, self.logs, strict=True):
            with log.open("w") as out:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=ROOT,
                        env=env,
                    )
                )

    def said(self, index: int) -> str:
        """What a process has printed."""
        return self.logs[index].read_text()

    def says(self, index: int, words: str) -> None:
        """Wait until a process has printed some words; it may end meanwhile."""
        until(
            lambda: words in self.said(index) or self.running[index].poll() is not None,
            f"process {index} to say {words!r}; it said: {self.said(index)[-2000:]}",
        )
        assert words in self.said(index), self.said(index)[-3000:]

    def codes(self, limit_s: float = LIMIT_S) -> list[int]:
        """Wait until all have ended; give their exit codes."""
        end = time.monotonic() + limit_s
        return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.running]

    def codes_in_time(self, since: float, peer_s: float) -> list[int]:
        """Give the exit codes, once all have ended in the stated time after a loss.

        Args:
          since: when it was, by the monotonic clock.
        """
        within_s = stated_s(peer_s) + SLACK_S
        codes = self.codes(LIMIT_S)
        took_s = time.monotonic() - since
        assert took_s < within_s, (
            f"the last ended {took_s:.0f} s after the loss, not {within_s:.0f}"
        )
        return codes

    def end(self) -> None:
        """Kill what still runs; workers go with their guards."""
        for process in self.running:
            process.kill()
            process.wait()


def stated_s(peer_s: float) -> float:
    """Give in what time after a loss the last process has ended, as docs/processes.md states it."""
    return peer_s + 3 * Patience(peer_s=peer_s).beat_s + 2 * (GRACE_S + STACKS_S)


@contextmanager
def crew(commands: Sequence[Sequence[str]], logs: Path) -> Iterator[Crew]:
    """Start processes, and leave none behind."""
    together = Crew(commands, logs)
    try:
        yield together
    finally:
        together.end()


def training(
    file: Path, workdir: Path, count: int, logs: Path, *words: str
) -> contextmanager[Crew]:
    """Start `maktab train` in several processes."""
    port = free_port()
    shared = ("-m", "launch", "train", str(file), "--workdir", str(workdir), *words)
    meeting = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(count), "--process")
    return crew([(*shared, *meeting, str(index)) for index in range(count)], logs)


def pid_of(workdir: Path, index: int) -> int:
    """Give the process id of a worker, which its pulse says."""
    return json.loads((workdir / FOLDER / f"{index}.json").read_text())["pid"]
