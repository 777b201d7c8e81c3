"""Keep a job going from here: start its workers, and start them again when they were preempted."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.on.job import LaunchError, Say
from launch.on.worker import AGAIN, decide, tail

BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0
GRACE_S = 300.0  # what the other workers have to end, once one has; a save may take minutes
POLL_S = 0.2


def supervise(
    begin: Callable[[], Sequence[Sequence[str]]],
    home: Path,
    *,
    max_restarts: int,
    say: Say,
    backoff_s: float = BACKOFF_S,
    lost: Callable[[], bool] = lambda: False,
) -> int:
    """Run the commands that `begin` gives, one a worker, until they end for good.

    The first worker that ends with a code other than 0 decides. 75 and signals start all again,
    after a pause that doubles, and so does any code once the machines are `lost`; else it stops
    them. Output goes to `worker-N.log` in `home`.

    Raises:
      LaunchError: a worker failed, or was preempted too often; the message has its last lines.
      KeyboardInterrupt: Ctrl-C, once the workers have ended.
    """
    for start in range(1, max_restarts + 2):
        ended, stopped = Crew(begin(), home).wait()
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt
        code = decide([code for _, code in ended])
        if stopped or not code:
            return code
        worker, first = next((worker, code) for worker, code in ended if code)
        what, end = (
            f"worker {worker} ended first, with {first}",
            tail(home / f"worker-{worker}.log"),
        )
        if code != AGAIN and not lost():
            raise LaunchError(f"{what}; {end}")
        if start > max_restarts:
            break
        pause = min(backoff_s * 2 ** (start - 1), LONGEST_BACKOFF_S)
        say(f"{what}: start {start + 1} of at most {max_restarts + 1} in {pause:.0f} s")
        time.sleep(pause)
    raise LaunchError(
        f"{what}; that was start {start}, and --max-restarts allows no more. The same command goes "
        f"on from the last checkpoint; {end}"
    )


class Crew:
    """The workers of one start: a process and a log each."""

    def __init__(self, commands: Sequence[Sequence[str]], home: Path) -> None:
        self.stopped = 0
        self.running: dict[int, subprocess.Popen] = {}
        for worker, words in enumerate(commands):
            with (home / f"worker-{worker}.log").open("ab") as log:
                self.running[worker] = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def wait(self) -> tuple[list[tuple[int, int]], int]:
        """Wait for all; give (worker, code) in the order of their ends, and a signal, if any.

        When one fails, the others have a while to end by themselves, then a SIGTERM, then SIGKILL.
        SIGTERM and SIGINT are passed on.
        """
        passed = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._pass_on) for number in passed}
        ended: list[tuple[int, int]] = []
        patience = [signal.SIGKILL, signal.SIGTERM]
        until = float("inf")
        try:
            while self.running:
                time.sleep(POLL_S)
                ended += self._reap()
                if until == float("inf") and any(code for _, code in ended):
                    until = time.monotonic() + GRACE_S
                if time.monotonic() > until and patience:
                    self._signal(patience.pop())
                    until = time.monotonic() + GRACE_S
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return ended, self.stopped

    def _reap(self) -> list[tuple[int, int]]:
        codes = {worker: process.poll() for worker, process in self.running.items()}
        done = [(worker, code) for worker, code in codes.items() if code is not None]
        for worker, _ in done:
            del self.running[worker]
        return [(worker, code if code >= 0 else 128 - code) for worker, code in done]

    def _pass_on(self, number: int, _frame: object) -> None:
        self.stopped = number
        self._signal(number)

    def _signal(self, number: int) -> None:
        for process in self.running.values():
            process.send_signal(number)
