"""`maktab launch`: from what the user typed to a snapshot, a rendering, and a job that runs."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.experiment_file import load_config, load_sweep
from launch.on.each import launch_each
from launch.on.gke import Gke
from launch.on.job import NAME, NAME_LENGTH, Job, Place, Say, require_tools, write
from launch.on.local import Local
from launch.on.slurm import Slurm
from launch.on.snapshot import checkout_of, left_behind, take
from launch.on.tpu_vm import TpuVm
from launch.sweep import known
from research.core.parts import describe
from research.experiment import Experiment
from research.sweep.plan import Search

PLACES: Mapping[str, Any] = {"local": Local, "tpu-vm": TpuVm, "gke": Gke, "slurm": Slurm}
READ = ("path", "folder", "tokenizer")  # fields of an experiment that name files
RUNS = "runs"


def place_of(on: str, options: Mapping[str, Any]) -> Place:
    """Make a place of the options that were given.

    Raises:
      ValueError: there is no such place, or an option has no effect there or a wrong value.
    """
    if on not in PLACES:
        raise ValueError(f"--on {on!r} is unknown; choose from {', '.join(PLACES)}")
    takes = [field.name for field in dataclasses.fields(PLACES[on])]
    idle = [option(name) for name in options if name not in takes]
    if idle:
        raise ValueError(
            f"{', '.join(idle)} has no effect with --on {on}, which takes "
            f"{', '.join(map(option, takes))}"
        )
    tuples = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    return PLACES[on](**{**options, **tuples})


def option(name: str) -> str:
    """Write a field's name as the command line has it."""
    return f"--{name.replace('_', '-')}"


def verb_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """Take `train` or `sweep` from what follows the experiment; without either it is train."""
    if words and words[0] in ("train", "sweep"):
        return words[0], list(words[1:])
    return "train", list(words)


def launch(
    place: Place,
    experiment: Path,
    verb: str,
    words: Sequence[str],
    parsed: Mapping[str, Any],
    *,
    name: str | None,
    packages: Sequence[str],
    interpreter: str | None,
    max_restarts: int,
    dry_run: bool,
    each: bool,
    say: Say,
) -> int:
    """Check everything that can be checked here, then write the launch folder and run the job.

    Args:
      words: what follows the experiment and the verb, to be passed on.
      parsed: the same, read.
      each: every run of a sweep is a job of its own.

    Raises:
      ValueError: something cannot run, or would be lost; nothing has been created.
      LaunchError: what ended it.
    """
    checkout, here = checkout_of(experiment), Path.cwd().resolve()
    if not here.is_relative_to(checkout):
        raise ValueError(f"{here} is not in {checkout}, the experiment's checkout; launch there")
    check_workdir(parsed["workdir"], place.installs)
    found, needed = runs_of(experiment, verb, parsed)
    ends = ends_of(place, experiment, verb, parsed) if each else []
    snapshot = take(
        checkout,
        also=[experiment],
        packages=[*packages, *needed],
        jax_extra=place.jax_extra,
        fetched=place.installs and interpreter is None,
    )
    named = [*named_files(describe(found)), *loaded_files(checkout)]
    check_files(named, here, checkout, snapshot.files)
    job = Job(
        title=title_of(name, experiment),
        words=(verb, os.path.relpath(experiment.resolve(), here), *words),
        folder=here.relative_to(checkout).as_posix(),
        snapshot=snapshot,
        interpreter=interpreter or (None if place.installs else sys.executable),
        max_restarts=max_restarts,
        place=describe(place),
    )
    jobs = [dataclasses.replace(job, words=(*job.words, *end)) for end in ends] or [job]
    if each and place.stays and not dry_run:
        return launch_each([key for _, key in ends], job.title, sys.argv[1:], say)
    return max(begin(place, job, dry_run=dry_run, say=say) for job in jobs)


def begin(place: Place, job: Job, *, dry_run: bool, say: Say) -> int:
    """Write the launch folder and run the job, or say how."""
    rendering = place.render(job)
    if dry_run:
        say(rendering.text(job))
        return 0
    require_tools(place.tools)
    write(job, rendering)
    snapshot = job.snapshot
    state = f"{len(snapshot.changed)} files changed" if snapshot.changed else "unchanged"
    say(f"{job.home}: {len(snapshot.files)} files of {snapshot.commit[:12]}, {state}")
    return place.start(job, say)


def runs_of(
    experiment: Path, verb: str, parsed: Mapping[str, Any]
) -> tuple[list[Experiment], list[str]]:
    """Give the experiments that are known beforehand, and packages that finding others takes."""
    if verb == "train":
        return [load_config(experiment, parsed["set_"])], []
    sweep = load_sweep(experiment, parsed["set_"], parsed["generator"])
    learns = isinstance(sweep, Search) and not sweep.method.knows_all
    runs = [run for arm in sweep.batch((), nothing) for run in arm.runs]
    return runs, ["optuna"] if learns else []


def ends_of(
    place: Place, experiment: Path, verb: str, parsed: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Give what ends the command of each run of a sweep.

    Raises:
      ValueError: it is no sweep, its runs depend on one another, or the place is this machine.
    """
    if verb != "sweep":
        raise ValueError("--each is for a sweep: maktab launch --on PLACE --each FILE.py sweep")
    if isinstance(place, Local):
        raise ValueError(
            "--each is for places with machines for every run; on this one: maktab sweep --jobs N"
        )
    sweep = load_sweep(experiment, parsed["set_"], parsed["generator"])
    return [("--only", key) for key in known(sweep)]


def nothing(_: str) -> None:
    """No arm has been begun, as far as this machine knows."""


def title_of(name: str | None, experiment: Path) -> str:
    """Give a name that is a host's name too.

    Raises:
      ValueError: the one that was chosen is not.
    """
    if name is None:
        plain = re.sub("[^a-z0-9]+", "-", experiment.stem.lower()).strip("-")
        return (plain if plain[:1].isalpha() else f"x-{plain}")[:NAME_LENGTH].strip("-")
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        raise ValueError(
            f"--name {name!r}: expected up to {NAME_LENGTH} of a-z, 0-9 and -, a letter first: it "
            "names machines"
        )
    return name


def check_workdir(workdir: Path | None, away: bool) -> None:
    """Check that the run's folder outlives its worker.

    Raises:
      ValueError: it would not.
    """
    if workdir is None:
        return
    if workdir.parts[:1] == (RUNS,) and ".." not in workdir.parts:
        return
    if away or not workdir.is_absolute():
        raise ValueError(
            f"--workdir {workdir} would be lost with the worker: only {RUNS}/ outlives it; give "
            f"{RUNS}/{workdir.name}" + ("" if away else ", or a path from the root")
        )


def check_files(named: Iterable[str], here: Path, checkout: Path, files: Sequence[str]) -> None:
    """Check that what a run needs of the checkout travels with it.

    Raises:
      ValueError: some does not.
    """
    paths = [path for path in named if not path.startswith(f"{RUNS}/")]
    left = left_behind(paths, here, checkout, files)
    if left:
        raise ValueError(
            f"{', '.join(sorted(set(left)))}: git does not know it, so workers would not have it; "
            "git add it, or give a path that workers have, or a hub id"
        )


def loaded_files(checkout: Path) -> list[str]:
    """List the modules of the checkout that the experiment needed so far, not those installed."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    inside = [file for file in files if file and Path(file).is_relative_to(checkout)]
    return [file for file in inside if not Path(file).is_relative_to(sys.prefix)]


def named_files(described: Any) -> Iterator[str]:
    """Walk the paths in a described experiment."""
    if isinstance(described, Mapping):
        for name, value in described.items():
            if name in READ and isinstance(value, str) and value:
                yield value
            else:
                yield from named_files(value)
    elif isinstance(described, list):
        for item in described:
            yield from named_files(item)
