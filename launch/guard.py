"""The guard of one process of several: its parent, which says why it ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.train.watchdog import (
    AGAIN,
    GRACE_S,
    SIGNALLED,
    STOPPED,
    Finding,
    Lookout,
    Patience,
    described,
    file_of,
    leaving,
    read,
    stacks_of,
    write,
)

POLL_S = 0.05  # how soon a guard sees that its process has ended
SEARCH_S = 5.0  # more than twice peer_s, to look for a process that this one may have lost
STACKS_S = 5.0  # in which even a busy process has written its stacks
PR_SET_PDEATHSIG = 1  # prctl(2)
GOES_ON = "the same command goes on from the last checkpoint"
LOST = "jax lost another process before the run began; its message above names the task"

Tell = Callable[[Mapping[str, Any]], None]


def guarded_by_parent(patience: Patience, advice: str) -> Tell:
    """Fork: the child goes on, the parent guards it and never returns.

    Args:
      advice: what to say where jax ends the process before it has joined the others.

    Returns:
      A function by which the child tells its guard something.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writing)
        os._exit(Guard(child, reading, patience, advice).wait())
    os.close(reading)
    os.setpgid(0, 0)  # a Ctrl-C in the terminal comes once, through the guard
    if sys.platform == "linux":  # a guard that is killed takes its process along
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(STOPPED)

    def tell(said: Mapping[str, Any]) -> None:
        os.write(writing, json.dumps(said).encode() + b"\n")

    return tell


class Guard:
    """The parent of a process of several: passes signals on, and says why the process ended.

    It has no jax: losing the process that coordinates, jax aborts all others within moments, and a
    thread of theirs would be gone before it could say so.
    """

    def __init__(self, child: int, reading: int, patience: Patience, advice: str):
        self._child, self._reading = child, reading
        self._patience, self._advice = patience, advice
        self._heard, self._joined = b"", False
        self._lookout: Lookout | None = None
        self._code: int | None = None
        os.set_blocking(reading, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._pass_on)

    def wait(self) -> int:
        """Wait for the process to end, or end it; give the exit code."""
        looked = time.monotonic()
        while not self._ended():
            time.sleep(POLL_S)
            self._hear()
            if self._lookout and time.monotonic() - looked >= self._patience.beat_s:
                looked = time.monotonic()
                finding = self._lookout.look()
                if finding is not None:
                    return self._stop(finding)
        self._hear()
        return self._why(self._code or 0)

    def _pass_on(self, number: int, _frame: object) -> None:
        if self._code is None:  # not reaped, so that its number is still its own
            os.kill(self._child, number)

    def _ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else SIGNALLED - code
        return self._code is not None

    def _hear(self) -> None:
        """Take in what the process tells: that it has joined, and which run it is in."""
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self._reading, 4096):
                self._heard += block
        *lines, self._heard = self._heard.split(b"\n")
        for said in map(json.loads, lines):
            self._joined = True
            if "folder" in said:
                self._lookout = Lookout(
                    Path(said["folder"]),
                    said["index"],
                    said["count"],
                    said["start"],
                    self._patience,
                )

    def _why(self, code: int) -> int:
        """Find out why the process ended, say it, and give the exit code."""
        lookout = self._lookout
        if code == 0:
            return 0
        if lookout is None:
            if code == SIGNALLED + signal.SIGABRT:
                _say(LOST if self._joined else self._advice)
                return AGAIN if self._joined else STOPPED
            return code
        own = read(file_of(lookout.folder, lookout.index))
        if own.get("left", {}).get("sure"):
            return code
        if code > SIGNALLED and code != SIGNALLED + signal.SIGABRT:
            name = signal.Signals(code - SIGNALLED).name
            self._leave(own, code, f"it was killed by {name}")
            _say(f"{described(own)} was killed by {name}; {GOES_ON}")
            return code
        return self._investigate(lookout, own, code)

    def _investigate(self, lookout: Lookout, own: dict[str, Any], code: int) -> int:
        """Learn whether the process ended because another had gone: that takes a while to show."""
        until = time.monotonic() + 2 * self._patience.peer_s + SEARCH_S
        while own and time.monotonic() < until:
            finding = lookout.look()
            if finding is not None:
                self._leave(own, finding.code, finding.says, other=True)
                _say(f"{finding.says}; {GOES_ON}")
                return finding.code
            own = own | {"beat": own["beat"] + 1}
            write(file_of(lookout.folder, lookout.index), own)
            time.sleep(self._patience.beat_s)
        self._leave(own, code, f"it ended with code {code}; its own output says why")
        return code

    def _stop(self, finding: Finding) -> int:
        """End the process, after its stacks are written, unless it ends by itself in time."""
        lookout = self._lookout
        assert lookout is not None
        leaves = bool(lookout.own.get("left"))
        until = time.monotonic() + (GRACE_S if leaves else finding.grace_s)
        while time.monotonic() < until and not self._ended():
            time.sleep(POLL_S)
        if not self._ended():
            os.kill(self._child, signal.SIGUSR1)
            _wait_for_stacks(stacks_of(lookout.folder, lookout.index))
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        own = read(file_of(lookout.folder, lookout.index)) or lookout.own
        if self._code is not None and (self._code == 0 or own.get("left", {}).get("sure")):
            return self._code
        self._leave(own, finding.code, finding.says, other=True)  # a pulse would write over it
        _say(f"{finding.says}; {GOES_ON}. Stacks of every process: {lookout.folder}/*.stacks.txt")
        return finding.code

    def _leave(self, own: Mapping[str, Any], code: int, why: str, *, other: bool = False) -> None:
        """Tell the other guards why this process has left."""
        lookout = self._lookout
        if own and lookout and own["start"] == lookout.start:
            write(
                file_of(lookout.folder, lookout.index), {**own, **leaving(code, why, other=other)}
            )


def _wait_for_stacks(file: Path) -> None:
    """Wait until a file has grown and then grows no more, or a process had time enough for it."""
    until, seen = time.monotonic() + STACKS_S, 0
    while time.monotonic() < until:
        time.sleep(4 * POLL_S)
        size = file.stat().st_size if file.exists() else 0
        if 0 < size == seen:
            return
        seen = size


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
