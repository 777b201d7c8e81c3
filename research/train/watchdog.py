"""The pulse of a process, and the eye that others keep on it: files in the work directory.

Nothing here touches jax: the guard of a process (`launch/processes.py`) reads pulses without it.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = "processes"
BEATS = 12  # in the time after which a process counts as missing; some may be late
LONGEST_BEAT_S = 5.0
GRACE_S = 10.0  # for a process to end by itself, once another has left
SETTLE_S = 0.1  # in which a claim of a folder, begun at this moment, is on the disk
AGAIN, STOPPED = 75, 3  # exit codes: start me again (EX_TEMPFAIL), and a run that stopped
SIGNALLED = 128  # an exit code above it is a signal's
REQUIRED = {"start", "index", "host", "pid", "machine", "born", "beat", "beat_s"}

Say = Callable[[str], None]


class HeldError(ValueError):
    """Another process runs in the work directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """After which time something is wrong.

    Attributes:
      peer_s: a process that is not heard of for so long is missing.
      hang_s: a run that gets no further for so long hangs; 0: never.
    """

    peer_s: float = 60.0
    hang_s: float = 1800.0

    @property
    def beat_s(self) -> float:
        """How often a process says that it lives."""
        return min(self.peer_s / BEATS, LONGEST_BEAT_S)


class Unchanged:
    """For how long a value has stayed as it is, by this process's own monotonic clock.

    A stretch in which nobody looked counts as `longest_s` at most: who was stopped himself, or
    whose machine slept, has not seen that the others stood still.
    """

    def __init__(self, longest_s: float):
        self._longest_s, self._last = longest_s, time.monotonic()
        self._value: Any = None
        self.for_s = 0.0

    def see(self, value: Any) -> float:
        """Look once more; give the seconds since the value changed."""
        now = time.monotonic()
        passed = min(now - self._last, self._longest_s)
        self.for_s = self.for_s + passed if value == self._value else 0.0
        self._last, self._value = now, value
        return self.for_s


def file_of(folder: Path, index: int) -> Path:
    """Where process `index` keeps its pulse."""
    return folder / f"{index}.json"


def stacks_of(folder: Path, index: int) -> Path:
    """Where the stacks of process `index` go."""
    return folder / f"{index}.stacks.txt"


def read(file: Path) -> dict[str, Any]:
    """Read a pulse; {} where there is none, or none that is whole."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) and value.keys() >= REQUIRED else {}


def write(file: Path, pulse: Mapping[str, Any]) -> None:
    """Replace a pulse at once; it need not outlive a power cut."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    draft.write_text(json.dumps(pulse))
    draft.replace(file)


def create(file: Path, pulse: Mapping[str, Any]) -> bool:
    """Write a file where there is none yet, whole from the first moment on; say whether it is new.

    A file that is created and then written is empty for a while, in which another process would
    take it for one that a dead process left.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.{pulse['start']}.draft")
    draft.write_text(json.dumps(pulse))
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without links, such as Cloud Storage FUSE
        try:
            with file.open("x") as new:
                new.write(json.dumps(pulse))
        except FileExistsError:
            return False
    finally:
        draft.unlink()
    return True


def myself(index: int, start: str) -> dict[str, Any]:
    """Say who this process is, so that others on its machine can tell whether it still is."""
    return {
        "start": start,
        "index": index,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": machine(),
        "born": born(os.getpid()),
    }


def machine() -> str:
    """Name what a process id means something in: a boot and a pid namespace; "": unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str | None:
    """Give when a process began, in the kernel's ticks; None: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def described(pulse: Mapping[str, Any]) -> str:
    """Name a process to people."""
    where = f"host {pulse['host']}, pid {pulse['pid']}"
    step = f", last at step {pulse['step']}" if pulse.get("step") is not None else ""
    doing = f", {pulse['doing']}" if pulse.get("doing") else ""
    return f"process {pulse['index']} ({where}{step}{doing})"


def claim(workdir: Path, patience: Patience, say: Say) -> str:
    """Take a work directory for this process, and give the name of this start.

    What was left by a process that is gone is taken over: at once where that can be seen (it ran on
    this machine), else after the time in which it would have been heard of. Starts are numbered,
    and only one process can create the file of a number: who pauses between looking and taking,
    however long, finds it there.

    Raises:
      HeldError: another process runs there.
      ValueError: it is no folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir} is a file; give a folder, new or a run's own")
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, start = _claim_of(folder, _claims(folder) + 1), secrets.token_hex(8)
    _refuse_if_held(workdir, folder, say)
    mine = myself(0, start) | {"beat": 0, "beat_s": patience.beat_s}
    if not create(file, mine):
        raise HeldError(_held(workdir, _owner(folder)))
    write(file_of(folder, 0), mine)
    time.sleep(SETTLE_S)
    owner = _owner(folder)
    if owner.get("start") != start:
        raise HeldError(_held(workdir, owner))
    return start


def _claims(folder: Path) -> int:
    """Count the starts that there were: the number of the last."""
    files = folder.glob("claim-*.json")
    return max((int(file.stem.removeprefix("claim-")) for file in files), default=0)


def _claim_of(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"


def _owner(folder: Path) -> dict[str, Any]:
    """Give the last start of a folder: its pulse, or its claim, if it has no pulse yet."""
    file = _claim_of(folder, _claims(folder))
    claimed = read(file)
    if not claimed and file.exists():  # it is being written, or its writer died over it
        time.sleep(SETTLE_S)
        claimed = read(file)
    pulse = read(file_of(folder, 0))
    return pulse if not claimed or pulse.get("start") == claimed["start"] else claimed


def _refuse_if_held(workdir: Path, folder: Path, say: Say) -> None:
    """Find out whether the process that holds a folder still runs."""
    owner = _owner(folder)
    if not owner or owner.get("left"):
        return
    here = machine()
    if here and owner["machine"] == here:
        if born(owner["pid"]) == owner["born"]:
            raise HeldError(_held(workdir, owner))
        return
    wait_s = BEATS * owner["beat_s"]
    say(f"{workdir} was left by {described(owner)}: waiting {wait_s:.0f} s to hear whether it runs")
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        time.sleep(owner["beat_s"] / 2)
        now = _owner(folder)
        if now.get("left"):
            return
        if (now.get("start"), now.get("beat")) != (owner["start"], owner["beat"]):
            raise HeldError(_held(workdir, now or owner))


def _held(workdir: Path, owner: Mapping[str, Any]) -> str:
    who = described(owner) if owner else "a process that has only begun"
    return (
        f"{workdir} is held by {who}, which runs there; wait for it, end it, or give "
        "another --workdir"
    )


class Pulse:
    """Says from a thread that this process lives and what it does; it is a watch of the loop.

    A file that another start has taken over ends this process at its next beat: two must not write
    to one work directory. Where the process is alone, the thread also reports a run that hangs; one
    that has a guard writes its stacks when that asks for them by SIGUSR1.
    """

    def __init__(self, folder: Path, index: int, start: str, patience: Patience, *, alone: bool):
        self._file, self._patience, self._alone = file_of(folder, index), patience, alone
        self._held = myself(index, start) | {"beat": 0, "beat_s": patience.beat_s}
        self._held |= {"moves": 0, "step": None, "doing": "beginning"}
        self._stacks, self._still = stacks_of(folder, index), Unchanged(2 * patience.beat_s)
        self._over, self._reported = threading.Event(), False
        if not alone:
            self._stacks.touch()
            faulthandler.register(signal.SIGUSR1, self._stacks.open("w"), all_threads=True)
        write(self._file, self._held)
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def close(self, code: int = 0, why: str = "", *, sure: bool = True) -> None:
        """Say how this process leaves.

        Args:
          sure: the reason lies here; if not, as where a connection broke, it may lie elsewhere.
        """
        self._over.set()
        self._thread.join()
        write(self._file, self._held | leaving(code, why, sure=sure))

    def begins(self, prepared: Any, step: int) -> None:
        """The run starts or resumes at `step`."""
        self._moves("training", step)

    def scoring(self, done: int, total: int) -> None:
        """So many examples of the pool are scored."""
        self._moves("scoring the pool")

    def recorded(self, cycle: Any, metrics: Any, timing: Any) -> None:
        """A cycle has ended."""
        self._moves("training", cycle.last)

    def evaluating(self, name: str, done: int, total: int) -> None:
        """So many items are evaluated."""
        self._moves(f"evaluating {name}")

    def _moves(self, doing: str, step: int | None = None) -> None:
        step = self._held["step"] if step is None else step
        moves = self._held["moves"] + 1
        self._held = self._held | {"moves": moves, "step": step, "doing": doing}

    def _beat(self) -> None:
        while not self._over.wait(self._patience.beat_s):
            self._held = self._held | {"beat": self._held["beat"] + 1}
            try:
                self._write()
            except OSError as error:  # a full disk, say, which the run itself will meet
                _complain(f"{self._file} cannot be written ({error}); others may think I am gone")
            if self._alone:
                self._report_hang()

    def _write(self) -> None:
        other = read(self._file)
        if other.get("start", self._held["start"]) != self._held["start"]:
            _complain(
                f"{self._file.parent.parent} was taken over by {described(other)}, since "
                f"{described(self._held)} was not heard of; this process ends and writes no more"
            )
            os._exit(STOPPED)
        write(self._file, self._held)

    def _report_hang(self) -> None:
        still_s, limit_s = self._still.see(self._held["moves"]), self._patience.hang_s
        if still_s == 0.0:
            self._reported = False
        if 0 < limit_s < still_s and not self._reported:
            self._reported = True
            with self._stacks.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            _complain(f"{hang(self._held, still_s)}; its stacks are in {self._stacks}")


def hang(pulse: Mapping[str, Any], still_s: float) -> str:
    """Say that a run gets no further."""
    return (
        f"no progress for {still_s:.0f} s: {described(pulse)}; where a cycle of steps takes so "
        "long, raise --hang-s or lower clock.cycle_steps"
    )


def leaving(code: int, why: str, *, sure: bool = True, other: bool = False) -> dict[str, Any]:
    """Give the field of a pulse that says how its process left.

    Args:
      sure: the reason lies there, as far as is known.
      other: `why` is a sentence about another process, which made this one leave.
    """
    return {"left": {"code": code, "why": why, "sure": sure, "other": other}}


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with a run of several processes.

    Attributes:
      says: a sentence for people.
      code: the exit code that it asks for.
      grace_s: how long this process may still take to end by itself.
    """

    says: str
    code: int
    grace_s: float = 0.0


class Lookout:
    """Reads the pulses of a run's processes, again and again.

    Process 0 is looked at by all, the others by process 0, which says of whom it was that it left:
    so files are read N times a beat by N processes, not N^2 times. Counters are compared with
    themselves, by this process's own monotonic clock: what any wall clock says does not matter.
    """

    def __init__(self, folder: Path, index: int, count: int, start: str, patience: Patience):
        self.folder, self.index, self.start = folder, index, start
        self._patience = patience
        longest_s = 2 * patience.beat_s
        self._moves = Unchanged(longest_s)
        watched = range(count) if index == 0 else (0, index)
        self._beats = {number: Unchanged(longest_s) for number in watched}
        self._last: dict[int, dict[str, Any]] = {}

    @property
    def own(self) -> dict[str, Any]:
        """The last pulse of the process that this one guards; {} before its first."""
        return self._last.get(self.index, {})

    def look(self) -> Finding | None:
        """Look at the pulses once; give what is wrong, the most telling first."""
        for index, beat in self._beats.items():
            pulse = read(file_of(self.folder, index))
            if pulse.get("start") == self.start:
                self._last[index] = pulse
            beat.see(self._last.get(index, {}).get("beat"))
        left = [self._gone(index) for index in self._beats if index != self.index]
        return next(filter(None, left), None) or self._missing() or self._hanging()

    def _left(self, index: int) -> Mapping[str, Any] | None:
        """How a process left, where it has and is sure of the reason."""
        left = self._last.get(index, {}).get("left")
        return left if left and left["sure"] else None

    def _gone(self, index: int) -> Finding | None:
        left = self._left(index)
        if left is None or left["code"] == 0:
            return None
        code, why = left["code"], left["why"]
        ending = code <= SIGNALLED and not left["other"]  # this process has the same error soon
        return Finding(
            says=why if left["other"] else f"{described(self._last[index])} has left: {why}",
            code=AGAIN if code == AGAIN or code > SIGNALLED else STOPPED,
            grace_s=min(GRACE_S, self._patience.peer_s) if ending else 0.0,
        )

    def _missing(self) -> Finding | None:
        """Name the process that has been silent for the longest, if that is too long."""
        silent = {x: beat.for_s for x, beat in self._beats.items() if not self._left(x)}
        index = max(silent, key=silent.__getitem__, default=self.index)
        for_s = silent.get(index, 0.0)
        if for_s <= self._patience.peer_s:
            return None
        if index in self._last:
            says = f"{described(self._last[index])} is missing: not heard of for {for_s:.0f} s"
        else:
            says = (
                f"process {index} is missing: in {for_s:.0f} s it has written nothing to "
                f"{self.folder}; do all processes share this folder?"
            )
        return Finding(says=says, code=AGAIN)

    def _hanging(self) -> Finding | None:
        still_s = self._moves.see(self.own.get("moves"))
        if self.own and 0 < self._patience.hang_s < still_s:
            return Finding(says=hang(self.own, still_s), code=STOPPED)
        return None
