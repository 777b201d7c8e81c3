"""Save and restore what changes in a run, and refuse what is damaged or foreign."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from research.core.parts import part, require
from research.core.processes import is_first, told_by_first, wait_for_all
from research.core.records import Learner

FORMAT = "maktab-checkpoint/1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the last good one."""


@part
class Checkpoints:
    """Which checkpoints are kept.

    Attributes:
      keep_last: how many of the newest.
      keep_best: how many of the best by `metric`, besides.
      metric: `evaluator/metric` as recorded, for example "valid/loss_nats"; empty: none is best.
      higher_is_better: the direction of `metric`.
    """

    keep_last: int = 2
    keep_best: int = 0
    metric: str = ""
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            (self.keep_last >= 1, f"keep_last={self.keep_last} must be at least 1"),
            (self.keep_best >= 0, f"keep_best={self.keep_best} must not be negative"),
            (
                (self.keep_best > 0) == bool(self.metric),
                f"keep_best={self.keep_best} and metric={self.metric!r} need one another",
            ),
        )

    def policy(self) -> Any:
        """Give Orbax's preservation policy."""
        policies = ocp.training.preservation_policies
        sign = 1.0 if self.higher_is_better else -1.0
        best = policies.BestN(
            get_metric_fn=lambda metrics: sign * metrics[self.metric],
            n=self.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        return policies.AnyPreservationPolicy([policies.LatestN(self.keep_last), best])


class Store:
    """The checkpoints of one run, in one folder.

    A checkpoint holds the learner and the curriculum; it exists once Orbax has committed it. When
    the commit is seen, sizes and digests of its files are written beside it, so that damage done
    later is told from a save that was cut short.

    Args:
      reading: another process may be saving here; what it has begun is left alone.
    """

    def __init__(self, folder: Path, keep: Checkpoints, *, reading: bool = False):
        self.folder, self.keep = folder.absolute(), keep
        self._saving: tuple[int, Future[None]] | None = None
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="digests")
        self._orbax: Any = ocp.training.Checkpointer(
            str(self.folder),
            preservation_policy=keep.policy(),
            cleanup_tmp_directories=not reading,
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        said = contextlib.nullcontext() if error is None else contextlib.suppress(Exception)
        with said:  # Orbax raises what failed once more; the error that is under way comes first
            try:
                self.wait() if error else self.wait_for_all()
            finally:
                self._finisher.shutdown()
                self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps of committed checkpoints, oldest first."""
        return [found.step for found in self._orbax.checkpoints]

    def best(self) -> int | None:
        """The step of the best checkpoint by the metric, or None where none carries it."""
        sign = 1.0 if self.keep.higher_is_better else -1.0
        scored = [
            (sign * found.metrics[self.keep.metric], found.step)
            for found in self._orbax.checkpoints
            if found.metrics and self.keep.metric in found.metrics
        ]
        return max(scored)[1] if scored else None

    def save(
        self,
        step: int,
        learner: Learner,
        curriculum: Mapping[str, np.ndarray],
        *,
        source: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Start saving; the loop goes on while files are written.

        Args:
          source: what the frozen weights are and their fingerprint; compared when restoring.

        Raises:
          CheckpointError: this one, or the one before it, could not be written.
        """
        self.wait()
        if is_first():
            self._digest_file(step).unlink(missing_ok=True)  # of a checkpoint that was taken back
        empty = {k: [list(v.shape), str(v.dtype)] for k, v in curriculum.items() if v.size == 0}
        known = dict(metrics) if self.keep.metric in metrics else None
        with self._written(step):
            response = self._orbax.save_checkpointables_async(
                step,
                {
                    "learner": _as_tree(learner),
                    "curriculum": {k: np.asarray(v) for k, v in curriculum.items() if v.size},
                },
                metrics=known,
                custom_metadata={"format": FORMAT, "source": dict(source), "empty": empty},
                overwrite=True,
            )
        self._saving = (step, self._finisher.submit(self._finish, step, response))

    def _finish(self, step: int, response: Any) -> None:
        """Wait until a checkpoint is committed, and digest it; the loop goes on meanwhile."""
        if response is not None:
            response.result()
        if is_first():
            digests = json.dumps(_digests(self.folder / str(step)))
            write_atomically(self._digest_file(step), digests)

    def wait(self) -> None:
        """Wait until a save that is under way is committed and digested, and drop stale digests.

        Raises:
          CheckpointError: it could not be written; names the last good one.
        """
        if self._saving is None:
            return
        (step, finished), self._saving = self._saving, None
        with self._written(step):
            finished.result()
        if is_first():
            for stale in self.folder.glob("*.digests.json"):
                if int(stale.name.split(".")[0]) not in self.steps:
                    stale.unlink()

    def wait_for_all(self) -> None:
        """Wait until every process has come here with its saves done: then all may leave.

        The first one digests alone; were the others to leave meanwhile, their guards would stop it.
        """
        self.wait()
        wait_for_all("saved")

    @contextlib.contextmanager
    def _written(self, step: int) -> Iterator[None]:
        """Name the last good checkpoint where this one cannot be written."""
        try:
            yield
        except Exception as error:  # whatever Orbax raises
            good = [found for found in self.steps if found != step]
            remains = (
                f"The last good one is step {good[-1]}" if good else "There is no good one yet"
            )
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} could not be written "
                f"({type(error).__name__}: {str(error)[:300]}). {remains}; make room, and the same "
                "command goes on there"
            ) from error

    def restore(
        self, abstract: Learner, *, source: Mapping[str, Any], step: int | None = None
    ) -> tuple[Learner, dict[str, np.ndarray]]:
        """Read a checkpoint (the newest by default) into the shardings of `abstract`.

        Raises:
          CheckpointError: it is damaged, foreign, or of other frozen weights; names the last good.
        """
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise CheckpointError(
                f"{self.folder}: no checkpoint of step {step}; there are {self.steps or 'none'}"
            )
        problem = self._problem(step, abstract, source)
        if problem is None:
            try:
                return self._read(step, abstract)
            except Exception as error:  # whatever Orbax raises for unreadable files
                problem = f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
                raise CheckpointError(self._advice(step, problem, abstract, source)) from error
        raise CheckpointError(self._advice(step, problem, abstract, source))

    def _read(self, step: int, abstract: Learner) -> tuple[Learner, dict[str, np.ndarray]]:
        loaded = self._orbax.load_checkpointables(
            step, {"learner": _as_tree(abstract), "curriculum": None}
        )
        empty = self._orbax.metadata(step).custom_metadata["empty"]
        curriculum = {k: np.asarray(v) for k, v in loaded["curriculum"].items()}
        curriculum |= {k: np.zeros(shape, dtype) for k, (shape, dtype) in empty.items()}
        return Learner(**loaded["learner"]), curriculum

    def _problem(self, step: int, abstract: Learner, source: Mapping[str, Any]) -> str | None:
        """Say what is wrong with a checkpoint, as far as can be seen without reading arrays."""
        damaged = told_by_first(lambda: self._damage(step))
        if damaged:
            return f"is damaged: {damaged}"
        try:
            metadata = self._orbax.checkpointables_metadata(step)
        except Exception as error:  # whatever Orbax raises for files that are not its own
            return f"is foreign or unreadable ({type(error).__name__}: {str(error)[:200]})"
        custom = metadata.custom_metadata or {}
        if custom.get("format") != FORMAT:
            return f"is foreign: format {custom.get('format')!r}, expected {FORMAT!r}"
        if custom["source"] != dict(source):
            return (
                f"was trained on frozen weights {custom['source']}, but the experiment now gives "
                f"{dict(source)}; restore those weights, or start in a new folder"
            )
        held = _shapes(metadata.metadata["learner"])
        wanted = _shapes(_as_tree(abstract))
        wrong = sorted(name for name in held | wanted if held.get(name) != wanted.get(name))
        if wrong:
            name = wrong[0]
            return (
                f"is foreign: {len(wrong)} arrays differ, first {name}: stored {held.get(name)}, "
                f"expected {wanted.get(name)}; the experiment's model, tuning or optimizer changed"
            )
        return None

    def _damage(self, step: int) -> str | None:
        if not self._digest_file(step).exists():
            return None
        written = json.loads(self._digest_file(step).read_text())
        for name, (size, digest) in written.items():
            file = self.folder / str(step) / name
            if ".." in file.parts or self.folder not in file.parents:
                return f"its digests name {name}, which is no file of it"
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, {size} were written"
            if _digest(file) != digest:
                return f"{name} has other bytes than were written"
        return None

    def _advice(self, step: int, problem: str, abstract: Learner, source: Mapping[str, Any]) -> str:
        good = [s for s in self.steps if s != step and not self._problem(s, abstract, source)]
        remedy = (
            f"the last good one is step {good[-1]}: delete {self.folder / str(step)} to go on there"
            if good
            else "there is no other good one: start in a new folder"
        )
        return f"checkpoint {self.folder / str(step)} {problem}; {remedy}"

    def _digest_file(self, step: int) -> Path:
        return self.folder / f"{step}.digests.json"


def write_atomically(file: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the old one, also after a power cut."""
    draft = file.with_name(f".{file.name}.draft")
    with draft.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)


def _as_tree(learner: Learner) -> dict[str, Any]:
    return {field.name: getattr(learner, field.name) for field in dataclasses.fields(learner)}


def _shapes(tree: Any) -> dict[str, tuple]:
    """Map each leaf's path to (shape, dtype), alike for arrays and for stored metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {
        "/".join(_key(entry) for entry in path): (tuple(leaf.shape), str(np.dtype(leaf.dtype)))
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(file.relative_to(folder)): (file.stat().st_size, _digest(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
