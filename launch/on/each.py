"""A launch for every run of a sweep, on a place where a launch stays until its job is over."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.on.job import LAUNCHES, LaunchError, Say

EACH = "--each"


def launch_each(keys: Sequence[str], title: str, words: Sequence[str], say: Say) -> int:
    """Run `maktab WORDS --only KEY` for every key at the same time, and wait for all.

    One that fails does not end the others. SIGTERM is passed on; a Ctrl-C reaches all by itself.

    Args:
      words: the command as it was typed, from `launch` on.

    Raises:
      LaunchError: naming the runs whose launch failed.
    """
    folder = Path(LAUNCHES) / f"{title}-each"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launch", *(word for word in words if word != EACH)]
    running: dict[str, subprocess.Popen] = {}
    for key in keys:
        log = folder / f"{key.replace('/', ' ')}.log"
        with log.open("ab") as out:
            running[key] = subprocess.Popen(
                [*command, "--only", key], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        say(f"{key}: {log}")

    def pass_on(number: int, _frame: object) -> None:
        for process in running.values():
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        codes = {key: process.wait() for key, process in running.items()}
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [f"{key} ({code})" for key, code in codes.items() if code]
    if failed:
        raise LaunchError(
            f"{len(failed)} of {len(keys)} launches failed: {', '.join(failed)}; their logs in "
            f"{folder} say why, and the same command goes on with them"
        )
    return 0
