"""What a run writes down about itself, and the refusal to continue another one in its folder."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from research.checkpoint import write_atomically
from research.core.parts import describe, differences, rebuild
from research.data.pool import Pool
from research.experiment import Experiment
from research.train.prepare import Prepared

MAY_DIFFER = ("experiment.clock", "experiment.layout", "experiment.scoring_layout")
LAYOUTS = ("layout", "scoring_layout")
EXCERPT = 160  # characters
MOST_TEXTS = 200_000  # examples: 70 MB of excerpts
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


class OtherRunError(ValueError):
    """A work directory belongs to an experiment with other numbers."""


def open_workdir(prepared: Prepared, workdir: Path, command: list[str]) -> list[str]:
    """Claim a work directory: write what determines the run, or check that it is the same run.

    Returns:
      What differs from the run that was begun here, a line each: only clock and layouts may.

    Raises:
      OtherRunError: something else differs, or the folder is not a run's.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    described = describe_run(prepared)
    file, changed = workdir / "experiment.json", []
    if file.exists():
        changed = differences(completed(_read(file)), described)
        refused = [line for line in changed if not line.startswith(MAY_DIFFER)]
        if refused:
            raise OtherRunError(
                f"{workdir} holds another experiment:\n  "
                + "\n  ".join(refused)
                + "\nGive another "
                "--workdir, or the experiment as it was (clock and layouts may differ)"
            )
    write_atomically(file, json.dumps(described, indent=2) + "\n")
    if not (workdir / "pool.jsonl").exists():
        lines = (json.dumps(line, ensure_ascii=False) for line in describe_pool(prepared.pool))
        write_atomically(workdir / "pool.jsonl", "".join(f"{line}\n" for line in lines))
    log = workdir / "run.json"
    starts = json.loads(log.read_text()) if log.exists() else []
    write_atomically(log, json.dumps([*starts, describe_start(command)], indent=2) + "\n")
    return changed


def completed(described: dict[str, Any]) -> dict[str, Any]:
    """Give what an earlier version wrote, with the default of every field that it did not have."""
    try:
        return json.loads(json.dumps(describe(rebuild(described))))
    except ValueError:  # a part or a field that is no more: the comparison names it
        return described


def describe_run(prepared: Prepared) -> dict[str, Any]:
    """Give everything that determines a run, as JSON."""
    return json.loads(
        json.dumps(
            {
                "experiment": describe(prepared.experiment),
                "architecture": describe(prepared.model.arch),
                "source": dict(prepared.source),
                "pool": {"examples": len(prepared.pool), "digest": digest(prepared.pool)},
            }
        )
    )


def describe_pool(pool: Pool) -> Iterator[dict[str, Any]]:
    """Name every example, with as much of its text as lets a person know what it is about.

    So a run directory can be read where the data is not. Rows of `input_ids` in a pool without
    tokenizer have no text, and texts of pools larger than `MOST_TEXTS` are left out. Whether an
    answer was made wrong on purpose is kept where a row says so.
    """
    tokenizer = pool.tokenizer if len(pool) <= MOST_TEXTS else None
    for x, example in enumerate(pool.examples):
        line = {"index": x, "id": example.id, "tokens": len(example.tokens)}
        if "corrupted" in example.row:
            line |= {"corrupted": bool(example.row["corrupted"])}
        if tokenizer is not None:
            start = int(example.trained.argmax())  # an example has a trained token
            parts = {"prompt": example.tokens[:start], "answer": example.tokens[start:]}
            shown = {name: tokenizer.decode(ids.tolist()) for name, ids in parts.items()}
            line |= {name: excerpt(text) for name, text in shown.items()}
        yield line


def excerpt(text: str) -> str:
    """Give a text; of a long one, how it begins and ends."""
    if len(text) <= EXCERPT:
        return text
    half = EXCERPT // 2
    return f"{text[:half].rstrip()} \N{HORIZONTAL ELLIPSIS} {text[-half:].lstrip()}"


def digest(pool: Pool) -> str:
    """Hash every example's id, tokens and trained mask."""
    content = hashlib.sha256()
    for example in pool.examples:
        content.update(example.id.encode())
        content.update(example.tokens.tobytes())
        content.update(example.trained.tobytes())
    return content.hexdigest()


def describe_start(command: list[str]) -> dict[str, Any]:
    """Give what one start of a run happened to be: command, code, packages and machine."""
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("maktab", *PACKAGES)},
        "processes": jax.process_count(),
        "devices": [str(device) for device in jax.devices()],
        "git": describe_code(Path(__file__).parent),
    }


def describe_code(folder: Path) -> Mapping[str, str] | None:
    """Give the commit and the uncommitted diff of the code that runs, or None outside git.

    Code that `maktab launch` sent says so itself; a checkout around it is another one.
    """
    sent = folder.parents[1] / "snapshot.json"
    if sent.is_file():
        record = _read(sent)
        return {"commit": record["commit"], "diff": record["diff"]}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit.strip(), "diff": git("diff", "HEAD") or ""}


def finish(workdir: Path, step: int, experiment: Experiment) -> None:
    """Mark a run as finished, as it was asked for, so that a sweep passes over it."""
    content = {"step": step, "experiment": _asked(experiment)}
    write_atomically(workdir / "finished.json", json.dumps(content) + "\n")


def is_finished(workdir: Path, experiment: Experiment) -> bool:
    """Whether this very run, wherever its arrays lay, came to its end in a folder."""
    file = workdir / "finished.json"
    return file.exists() and _read(file).get("experiment") == _asked(experiment)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise OtherRunError(
            f"{file} is not JSON ({error}); restore it, or give another --workdir"
        ) from error


def _asked(experiment: Experiment) -> dict[str, Any]:
    described = json.loads(json.dumps(describe(experiment)))
    return {name: value for name, value in described.items() if name not in LAYOUTS}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
