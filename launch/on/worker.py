"""What a worker does, in Python alone: verify what was launched, make its environment, run it.

This file travels beside `launch.json`, the code and the requirements, and runs before any of them
is trusted; it imports the standard library only, from Python 3.10 on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

AGAIN = 75  # EX_TEMPFAIL: preempted, saved, start me again
WRONG = 2  # what was launched cannot run here
KILLED = 128 + signal.SIGKILL
INTERRUPTED = 128 + signal.SIGINT
LOST = 255  # ssh has no connection any more
UV = "uv==0.13.9"  # makes environments, and fetches the Python that a worker lacks
FLUSH_S = 10.0  # how old a line may be before it is in the log; a bucket takes whole files
FREE_S = 600.0  # how long a start waits for the one before it, which may be saving
TAIL_LINES = 20

CHECK = """
import importlib.metadata, sys
wrong = []
if "%d.%d" % sys.version_info[:2] != sys.argv[2]:
    wrong.append("Python %s is here, %s was pinned" % (sys.version.split()[0], sys.argv[2]))
for line in open(sys.argv[1]):
    name, _, version = line.strip().partition("==")
    if not version or line.startswith("#"):
        continue
    try:
        found = importlib.metadata.version(name.partition("[")[0])
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != version:
        wrong.append("%s %s is here, %s was pinned" % (name, found or "(none)", version))
sys.exit("; ".join(wrong) or 0)
"""


class WorkerError(Exception):
    """Why a worker cannot run what was launched."""


def starts_again(code: int) -> bool:
    """Whether an exit code asks for another start: 75, a signal but Ctrl-C, or a lost ssh."""
    return code in (AGAIN, LOST) or (128 < code < 160 and code != INTERRUPTED)


def decide(codes: list[int]) -> int:
    """Give one code for all workers, from their codes in the order in which they ended.

    The first that is not 0 decides: what the others do after it is its consequence.
    """
    first = next((code for code in codes if code), 0)
    return AGAIN if starts_again(first) else first


def verified(folder: Path, name: str) -> Path:
    """Give a file of the launch whose content has the SHA-256 that its name carries.

    Raises:
      WorkerError: it is missing, or it is not what was launched.
    """
    file, wanted = folder / name, re.findall("[0-9a-f]{64}", name)[-1]
    if not file.is_file():
        raise WorkerError(f"{file} is missing; copy the launch folder whole, or launch again")
    content = hashlib.sha256()
    with file.open("rb") as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            content.update(block)
    if content.hexdigest() != wanted:
        raise WorkerError(
            f"{file} is not what was launched: its sha256 is {content.hexdigest()}; "
            "delete it and launch again"
        )
    return file


def unpack(archive: Path, code: Path) -> None:
    """Unpack the code, unless each of its files is there as it was launched."""
    with tarfile.open(archive) as packed:
        if all(_same(packed, member, code / member.name) for member in packed):
            return
        draft = code.with_name(code.name + ".draft")
        for folder in (draft, code):
            shutil.rmtree(folder, ignore_errors=True)
        packed.extractall(draft, filter="data")
    draft.rename(code)


def _same(packed: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> bool:
    if member.issym():
        return file.is_symlink() and os.readlink(file) == member.linkname
    content = packed.extractfile(member)
    return content is not None and file.is_file() and file.read_bytes() == content.read()


def environment(launch: dict[str, Any], here: Path, scratch: Path) -> str:
    """Give an interpreter that has the pinned requirements: the one named, or a new one.

    Raises:
      WorkerError: what the interpreter has is not what was pinned.
    """
    requirements, python = verified(here, launch["requirements"]), launch["python"]
    interpreter = launch["interpreter"]
    if interpreter is None:
        digest = hashlib.sha256(f"{python}\n{requirements.name}".encode()).hexdigest()[:16]
        interpreter = install(scratch.parent / f"environment-{digest}", python, requirements)
    check = [interpreter, "-c", CHECK, str(requirements), python]
    try:
        done = subprocess.run(check, capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorkerError(f"{interpreter} does not run here ({error.strerror})") from error
    if done.returncode:
        raise WorkerError(
            f"{interpreter} is not the environment that was launched: {done.stderr.strip()}; "
            "install the pinned versions there, or launch again from the environment you mean"
        )
    return interpreter


def install(folder: Path, python: str, requirements: Path) -> str:
    """Make a virtual environment of pinned requirements, once a worker; give its interpreter."""
    interpreter, whole = folder / "bin" / "python", folder / "complete"
    if whole.exists():
        return str(interpreter)
    uv, own = shutil.which("uv"), folder.with_name("uv")
    if uv is None:
        uv = str(own / "bin" / "uv")
        _call(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(own), UV)
    shutil.rmtree(folder, ignore_errors=True)
    _call(uv, "venv", "--quiet", "--python", python, str(folder))
    _call(uv, "pip", "install", "--python", str(interpreter), "--requirements", str(requirements))
    whole.touch()
    return str(interpreter)


def _call(*words: str) -> None:
    done = subprocess.run(words, check=False)
    if done.returncode:
        raise WorkerError(f"{' '.join(words)} ended with {done.returncode}; its output is above")


def prepare(launch: dict[str, Any], here: Path, scratch: Path, runs: Path) -> None:
    """Verify and unpack the code, see to its environment, and join it to the folder of runs."""
    scratch.mkdir(parents=True, exist_ok=True)
    for stale in here.glob("exit-*"):
        stale.unlink()
    unpack(verified(here, launch["code"]), scratch / "code")
    link_runs(scratch / "code" / launch["folder"] / "runs", runs.absolute())
    print(f"{launch['name']}: verified; Python {environment(launch, here, scratch)}", flush=True)


def run(
    launch: dict[str, Any], here: Path, scratch: Path, log: Path | None, more: list[str]
) -> int:
    """Run the command in the prepared code and give its exit code, a signal as 128 + its number.

    SIGTERM and SIGINT are passed on; a SIGHUP becomes a SIGTERM, so that the command saves.
    """
    code = scratch / "code"
    words = [environment(launch, here, scratch), "-m", "launch", *launch["command"], *more]
    own = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        words,
        cwd=code / launch["folder"],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for number, passed in ((signal.SIGTERM,) * 2, (signal.SIGINT,) * 2, (signal.SIGHUP, 15)):
        signal.signal(number, lambda *_, passed=passed: child.send_signal(passed))
    relay(child, Log(log))
    ended = child.wait()
    return ended if ended >= 0 else 128 - ended


def link_runs(link: Path, runs: Path) -> None:
    """Make `runs/`, as the code sees it, the folder that outlives the worker."""
    runs.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise WorkerError(f"{link} is part of the code; runs/ must not be in git")
    link.symlink_to(runs)


class Log:
    """A file that is opened only to be added to: a bucket shows a file when it is closed."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.kept, self.written = file, b"", time.monotonic()

    def add(self, block: bytes, *, now: bool = False) -> None:
        """Keep a block, and write what is kept if that was long ago or has to be now."""
        if self.file is None:
            return
        self.kept += block
        if self.kept and (now or time.monotonic() - self.written > FLUSH_S):
            with self.file.open("ab") as file:
                file.write(self.kept)
            self.kept, self.written = b"", time.monotonic()


def relay(child: subprocess.Popen, log: Log) -> None:
    """Pass a command's output on until it ends, and keep it in a log.

    Who reads it may go away, as when ssh loses its connection: then the command gets a SIGTERM.
    """
    assert child.stdout is not None
    pipe, heard = child.stdout.fileno(), True
    while True:
        ready, _, _ = select.select([pipe], [], [], FLUSH_S)
        block = os.read(pipe, 1 << 16) if ready else b""
        ended = not block if ready else child.poll() is not None
        log.add(block, now=ended)
        if heard and not _say(block):
            heard = False
            child.terminate()
        if ended:
            return


def _say(block: bytes) -> bool:
    """Print a block; false if nobody reads any more, which shows in an empty block too."""
    reader = select.poll()
    reader.register(sys.stdout, 0)
    try:
        if any(reader.poll(0)):
            raise BrokenPipeError
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextlib.contextmanager
def alone(file: Path):
    """Wait until no other start of this worker runs on this machine.

    Raises:
      WorkerError: it still does after ten minutes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + FREE_S
    with file.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise WorkerError(
                        f"an earlier start still runs here (it holds {file}); end it first"
                    ) from error
                time.sleep(1)
        yield


def verdict(here: Path, workers: int) -> int:
    """Say how the workers ended, and give the code of them all.

    A worker that wrote no exit code was killed together with this file; it counts as the last.
    """
    written = sorted(here.glob("exit-*"), key=lambda file: file.stat().st_mtime_ns)
    ended = [(int(file.name.split("-")[1]), int(file.read_text())) for file in written]
    ended += [(n, KILLED) for n in range(workers) if n not in dict(ended)]
    code = decide([code for _, code in ended])
    first = next(((n, code) for n, code in ended if code), None)
    if first is not None:
        print(f"worker {first[0]} ended first, with {first[1]}", flush=True)
    if first is not None and code != AGAIN:
        print(tail(here / f"worker-{first[0]}.log"), flush=True)
    return code


def tail(log: Path) -> str:
    """Give a log's last lines."""
    if not log.exists():
        return f"{log} is not there"
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"the end of {log}:", *(f"  {line}" for line in lines)])


def main(words: list[str]) -> int:
    """Do what the command line says; errors are one message and exit code 2."""
    ours, more = words, []
    if "--" in words:
        ours, more = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("prepare", "run", "verdict"))
    parser.add_argument("--scratch", type=Path, help="where code and environment go")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of runs")
    parser.add_argument("--workers", type=int, default=1, help="how many there are, for verdict")
    parser.add_argument("--alone", action="store_true", help="wait for the start before this one")
    parser.add_argument("--log", type=Path, help="also keep the output here")
    parser.add_argument("--exit", type=Path, help="also keep the exit code here")
    given = parser.parse_args(ours)
    here = Path(__file__).absolute().parent
    scratch = (given.scratch or here).absolute()
    if given.what == "verdict":
        return verdict(here, given.workers)
    code = 1
    try:
        launch = json.loads((here / "launch.json").read_text())
        with alone(scratch / "lock") if given.alone else contextlib.nullcontext():
            if given.what == "prepare":
                prepare(launch, here, scratch, given.runs)
                code = 0
            else:
                code = run(launch, here, scratch, given.log, more)
    except WorkerError as error:
        print(f"cannot run here: {error}", file=sys.stderr, flush=True)
        code = WRONG
    finally:
        if given.exit is not None:
            given.exit.write_text(str(code))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
