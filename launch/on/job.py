"""What is to run somewhere, and what running it there comes down to: files and commands."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launch.on.snapshot import Snapshot

LAUNCHES = "launches"  # beside runs/, where the user stands
PROGRAM = Path(__file__).with_name("worker.py")
NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
NAME_LENGTH = 30  # xpk takes 40 with the hash; a pod's whole name must stay within 63
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Say = Callable[[str], None]


class LaunchError(RuntimeError):
    """A launch that stopped; its message says what ended it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One `maktab train` or `maktab sweep`, bound for workers.

    Attributes:
      title: what its name begins with.
      words: the command as the user gave it, `train` or `sweep` first.
      folder: where the user stands in the checkout; the command runs there.
      interpreter: an environment that workers have; None: they make one of the pins.
      max_restarts: how often it is started again after a preemption.
      place: where, described.
    """

    title: str
    words: tuple[str, ...]
    folder: str
    snapshot: Snapshot
    interpreter: str | None
    max_restarts: int
    place: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The title and a hash of all that decides what runs."""
        decisive = (self.words, self.folder, self.interpreter, self.place)
        hashes = (self.snapshot.code_name, self.snapshot.requirements_name)
        content = json.dumps([decisive, hashes], sort_keys=True)
        return f"{self.title}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    @property
    def home(self) -> str:
        """The launch folder, as seen from where the user stands."""
        return f"{LAUNCHES}/{self.name}"

    def spec(self, *more: str) -> str:
        """Write `launch.json`, what `worker.py` needs to know; `more` ends the command."""
        content = {
            "name": self.name,
            "command": [*self.words, *more],
            "folder": self.folder,
            "code": self.snapshot.code_name,
            "requirements": self.snapshot.requirements_name,
            "python": self.snapshot.python,
            "interpreter": self.interpreter,
            "commit": self.snapshot.commit,
            "changed": list(self.snapshot.changed),
            "place": self.place,
        }
        return json.dumps(content, indent=2) + "\n"

    def copied(self) -> dict[str, bytes]:
        """Give the files of the launch folder that are copied as they are."""
        return {
            "worker.py": PROGRAM.read_bytes(),
            self.snapshot.code_name: self.snapshot.code,
            self.snapshot.requirements_name: self.snapshot.requirements.encode(),
        }


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, and why it is run."""

    why: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"# {self.why}\n{shlex.join(self.words)}"


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A launch, spelled out.

    Attributes:
      files: texts by name, written into the launch folder.
      commands: what is run, in order.
      later: what the user may type then: to follow, to fetch, to stop.
    """

    files: Mapping[str, str]
    commands: tuple[Command, ...]
    later: tuple[Command, ...]

    def text(self, job: Job) -> str:
        """Spell the launch out, as `--dry-run` prints it."""
        parts = [f"# {job.home}/{name}\n{text}" for name, text in self.files.items()]
        parts += ["\n".join(f"# {job.home}/{name}" for name in job.copied())]
        parts += ["# The commands:", *map(str, self.commands)]
        parts += ["# Then, by hand:", *map(str, self.later)]
        return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


class Place(Protocol):
    """Somewhere to run: a frozen dataclass of its options.

    `installs` says whether workers make the environment themselves; if not, they share this
    machine's files, and the interpreter here is theirs. `tools` are the programs that are called.
    `stays` says that `start` returns when the job is over, not when it is queued.
    """

    @property
    def installs(self) -> bool: ...

    @property
    def jax_extra(self) -> str: ...

    @property
    def tools(self) -> tuple[str, ...]: ...

    @property
    def stays(self) -> bool: ...

    def render(self, job: Job) -> Rendering:
        """Spell out what running `job` here comes down to."""
        ...

    def start(self, job: Job, say: Say) -> int:
        """Run it, once its files are written; give the exit code."""
        ...


def write(job: Job, rendering: Rendering) -> Path:
    """Write the launch folder; logs that are there stay."""
    home = Path(job.home)
    home.mkdir(parents=True, exist_ok=True)
    for name, content in job.copied().items():
        (home / name).write_bytes(content)
    for name, text in rendering.files.items():
        (home / name).write_text(text)
    return home


def call(command: Command, say: Say) -> str:
    """Run a command to its end, and give what it prints.

    Raises:
      LaunchError: it failed; the message is what it said.
    """
    say(f"{command.why}: {shlex.join(command.words)}")
    done = subprocess.run(command.words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LaunchError(f"{shlex.join(command.words)}\nended with {done.returncode}: {said}")
    return done.stdout.strip()


def require_tools(tools: Sequence[str]) -> None:
    """Check that programs are there.

    Raises:
      LaunchError: one is not.
    """
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise LaunchError(
            f"{', '.join(missing)}: not on PATH; launch where it is installed, or see what would "
            "be run with --dry-run"
        )


def flags(**given: Any) -> tuple[str, ...]:
    """Write `--some-name=value` for every value that is given; true alone is `--some-name`."""
    words = []
    for name, value in given.items():
        option = f"--{name.strip('_').replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value not in (None, False, ""):
            words.append(f"{option}={value}")
    return tuple(words)


def is_duration(text: str) -> bool:
    """Whether a text is a duration: 90m, 12h, 1d12h; or empty."""
    return re.fullmatch(r"(\d+[smhd])*", text) is not None and seconds(text) >= 0


def seconds(text: str) -> int:
    """Read a duration such as 90m or 1d12h."""
    return sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))


def minutes(text: str) -> int:
    """Read a duration in whole minutes, rounded up."""
    return math.ceil(seconds(text) / 60)
