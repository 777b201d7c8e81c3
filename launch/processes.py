"""One command in several processes: how they join, hold a work directory, and leave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launch.guard import Tell, guarded_by_parent
from launch.rollcall import JoinError, host_and_port, roll_call
from research.train.watchdog import FOLDER, STOPPED, Patience, Pulse, claim

JAX_START_S = 60.0  # for jax to connect processes that have met
LATER = 4  # jax's own patience, in ours: it ends processes without a word that helps
PATIENCE = Patience()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """How the processes of a command find one another.

    Attributes:
      automatic: jax finds the others by itself: Slurm, GKE, TPU VM, Open MPI.
      coordinator: HOST:PORT of process 0, for all the same; empty: automatic, or alone.
      processes: how many there are.
      process: which one this is, from 0.
      join_s: how long to wait for the others.
    """

    automatic: bool = False
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    join_s: float = 300.0
    patience: Patience = PATIENCE

    def __post_init__(self) -> None:
        numbers = self.processes is not None and self.process is not None
        if self.automatic and (self.coordinator or self.processes is not None):
            raise ValueError(
                "--distributed finds the others by itself; give it, or --coordinator HOST:PORT "
                "--processes N --process I, not both"
            )
        if bool(self.coordinator) != numbers or (self.process is None) != (self.processes is None):
            raise ValueError(
                f"--coordinator {self.coordinator or '(not given)'} --processes {self.processes} "
                f"--process {self.process}: give all three, or --distributed, or none"
            )
        if self.processes is not None and not 0 <= (self.process or 0) < self.processes:
            raise ValueError(
                f"--process {self.process} of --processes {self.processes}: number them from 0 to "
                f"{self.processes - 1}"
            )
        if self.coordinator:
            host_and_port(self.coordinator)
        slowest = (self.join_s, self.patience.peer_s)
        if min(slowest) <= 0 or self.patience.hang_s < 0:
            raise ValueError(
                f"--join-s {self.join_s}, --peer-s {self.patience.peer_s}: must be positive; "
                f"--hang-s {self.patience.hang_s}: positive, or 0 for never"
            )

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return not self.automatic and not self.coordinator


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes that run a command together, as one of them sees it.

    Attributes:
      tell: tells the guard of this process which run is watched; alone there is none.
    """

    index: int = 0
    count: int = 1
    patience: Patience = PATIENCE
    tell: Tell = lambda _: None

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that people listen to."""
        return self.index == 0


ALONE = Group()


def join(meeting: Meeting, say: Callable[[str], None]) -> Group:
    """Come together with the other processes; nothing is done by one that is alone.

    From here on this process has a guard: a parent without jax, which outlives what jax does to a
    process that has lost another, and says whom. Signals reach this process through it.

    Raises:
      JoinError: not all came; the message says who is missing, or what to check.
    """
    if meeting.alone:
        return Group(patience=meeting.patience)
    if "jax" in sys.modules:
        raise RuntimeError("jax is imported already; processes join before it is")
    tell = guarded_by_parent(meeting.patience, advice(meeting))
    if meeting.coordinator and meeting.processes and meeting.process is not None:
        roll_call(meeting.coordinator, meeting.processes, meeting.process, meeting.join_s)
    members = connect(meeting)
    index = next(x for x, member in enumerate(members) if member["me"])
    for number, member in enumerate(members):
        who = f"process {number} of {len(members)}: host {member['host']}, pid {member['pid']}"
        say(f"joined: {who}, {member['devices']}{' (this one)' if number == index else ''}")
    tell({"joined": len(members)})
    return Group(index=index, count=len(members), patience=meeting.patience, tell=tell)


def connect(meeting: Meeting) -> list[dict[str, Any]]:
    """Let jax connect the processes; give what each of them is, in order.

    Raises:
      JoinError: jax was to find the others, and there is nothing by which it could.
    """
    import jax

    from research.core.processes import from_all

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    wait_s = meeting.join_s if meeting.automatic else JAX_START_S
    try:
        jax.distributed.initialize(
            meeting.coordinator or None,
            meeting.processes,
            meeting.process,
            initialization_timeout=int(wait_s) or 1,
            heartbeat_timeout_seconds=int(LATER * meeting.patience.peer_s) + 1,
        )
    except ValueError as error:  # an address or a number that nothing here says
        if not meeting.automatic:
            raise
        raise JoinError(
            f"--distributed: jax finds no cluster here ({error}) Start the command where there is "
            "one: by srun or mpirun, on every worker of a TPU slice, in every pod; or name the "
            "processes: --coordinator HOST:PORT --processes N --process I"
        ) from error
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    members = from_all(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "devices": f"{jax.local_device_count()} x {', '.join(kinds)}",
        }
    )
    return [member | {"me": x == jax.process_index()} for x, member in enumerate(members)]


@contextlib.contextmanager
def held(workdir: Path, group: Group, say: Callable[[str], None]) -> Iterator[Pulse]:
    """Hold a work directory for a run of a group, and keep the pulse of this process there.

    Raises:
      HeldError: another run holds it.
    """
    from research.core.processes import told_by_first

    start = told_by_first(lambda: claim(workdir, group.patience, say))
    folder, alone = (workdir / FOLDER).absolute(), group.count == 1
    pulse = Pulse(folder, group.index, start, group.patience, alone=alone)
    group.tell({"folder": str(folder), "start": start, "index": group.index, "count": group.count})
    try:
        yield pulse
    except BaseException as error:
        pulse.close(code_of(error), reason_of(error), sure=alone or is_own(error))
        raise
    pulse.close()


def code_of(error: BaseException) -> int:
    """Give the exit code that an error will lead to, as far as other processes must know it."""
    return int(getattr(error, "exit_code", STOPPED))


def reason_of(error: BaseException) -> str:
    """Say an error in one line."""
    said = str(error).strip() or type(error).__name__
    return said if len(said) < 500 else f"{said[:500]} ..."


def is_own(error: BaseException | None) -> bool:
    """Whether an error arose here; what jax raises may be the loss of another process."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = str(frames[-1].f_globals.get("__name__")) if frames else ""
    lost = "Gloo" in str(error) or type(error).__name__ == "JaxRuntimeError"
    here = not lost and not raised_in.startswith(("jax", "orbax"))
    return here and is_own(error.__cause__)


class Notice:
    """Whether this process has been asked to leave by SIGTERM, as before a preemption."""

    def __init__(self) -> None:
        self.given = False

    def __enter__(self) -> Notice:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.given = True

    def __call__(self) -> bool:
        """Whether any process of the run was asked; all of them ask, and hear the same."""
        from research.core.processes import any_of_all

        return any_of_all(self.given)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """End a process that has joined others without ado when it fails.

    At its exit jax would wait for the others, who wait for this one.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not code or not joined():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def joined() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def advice(meeting: Meeting) -> str:
    """Say what to check where processes did not come together and jax does not say why."""
    if meeting.automatic:
        return (
            f"the processes did not come together in {meeting.join_s:.0f} s. Check that every one "
            "was started (all tasks of the step, all workers of the slice, all pods of the job), "
            "that hosts reach one another, and that no proxy variable (http_proxy) is set; or name "
            "them yourself: --coordinator HOST:PORT --processes N --process I"
        )
    return (
        f"the processes met at {meeting.coordinator}, but jax could not connect them in "
        f"{JAX_START_S:.0f} s: is a proxy variable (http_proxy) set, or the port in use elsewhere?"
    )
