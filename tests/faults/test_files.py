"""What fails under a run: a full disk, a flipped byte, a lost shard, a row that is no number."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.checkpoint import CheckpointError, Store
from research.core.parts import part
from research.core.records import Report, Total
from research.data.sources import Jsonl
from research.objectives.cross_entropy import CrossEntropy
from research.train.loop import NonFiniteError, train
from research.train.prepare import prepare
from research.train.provenance import OtherRunError, open_workdir
from tests.flow.crew import ROOT
from tests.flow.runs import Silent, tiny_run, write_rows


def small(folder: Path, changes: dict | None = None):
    return tiny_run(folder, {"model.num_layers": 1, **(changes or {})})


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run to its end."""
    folder = tmp_path_factory.mktemp("files")
    train(prepare(small(folder)), folder / "whole", Silent())
    return folder / "whole"


def stopped_at(step: int, folder: Path, workdir: Path, changes: dict | None = None) -> None:
    """Run until a step is recorded, and stop there."""

    class Stop(Silent):
        def recorded(self, cycle, metrics, timing):
            if cycle.last == step:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(prepare(small(folder, changes)), workdir, Stop())


# A disk that is full

FULL = """
import resource, sys
from pathlib import Path
from rich.console import Console
from launch.cli import guarded
from launch.runs import run
from research.checkpoint import Store
from tests.faults.test_files import small

save = Store.save

def save_onto_a_full_disk(self, step, *rest, **more):
    if step == 6:  # nothing can grow beyond so many bytes, and step 4 is on the disk by then
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST, resource.RLIM_INFINITY))
    save(self, step, *rest, **more)

Store.save = save_onto_a_full_disk
folder = Path(sys.argv[1])
sys.exit(guarded(lambda: run(small(folder), folder / "run", Console(), command=[], quiet=True)))
"""


def test_a_disk_that_is_full_during_a_save_costs_only_that_save(whole, tmp_path):
    write_rows(tmp_path)
    program = FULL.replace("MOST", "12_000")  # a checkpoint is larger, a line of a record is not
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 3, done.stderr[-3000:]
    assert re.search(r"checkpoint .*/6 could not be written", done.stderr)
    assert "The last good one is step 4; make room, and the same command goes on there" in (
        done.stderr
    )
    train(prepare(small(tmp_path)), tmp_path / "run", Silent())
    for name in ("metrics.jsonl", "order.jsonl", "losses.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


# Bytes that changed


def test_one_flipped_byte_in_any_file_of_a_checkpoint_is_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    files = sorted(f for f in (workdir / "checkpoints/8").rglob("*") if f.is_file())
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        with pytest.raises(CheckpointError, match=r"other bytes.*the last good one is step 6"):
            train(prepare(small(whole.parent)), workdir, Silent())
        file.write_bytes(content)
    train(prepare(small(whole.parent)), workdir, Silent())


def test_digests_of_files_elsewhere_are_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    digests = workdir / "checkpoints/8.digests.json"
    held = json.loads(digests.read_text())
    for name in ("../../experiment.json", "/etc/hostname"):
        digests.write_text(json.dumps(held | {name: [1, "0"]}))
        with pytest.raises(CheckpointError, match="which is no file of it"):
            train(prepare(small(whole.parent)), workdir, Silent())


def test_a_torn_last_line_is_taken_back(whole, tmp_path):
    stopped_at(4, whole.parent, tmp_path / "run")
    for name in ("metrics.jsonl", "order.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"step": 5, "rou')
    train(prepare(small(whole.parent)), tmp_path / "run", Silent())
    for name in ("metrics.jsonl", "order.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


# Data that goes away


def in_shards(folder: Path) -> dict:
    """Write the rows in two files, and give the setting that reads both."""
    rows = write_rows(folder).read_text().splitlines(keepends=True)
    for name, part_ in (("shard-0.jsonl", rows[:15]), ("shard-1.jsonl", rows[15:])):
        (folder / name).write_text("".join(part_))
    return {"data.sources": (Jsonl(path=str(folder / "shard-*.jsonl")),)}


def test_a_shard_that_vanishes_changes_nothing_of_a_run_and_stops_its_resumption(tmp_path):
    shards = in_shards(tmp_path)
    train(prepare(small(tmp_path, shards)), tmp_path / "whole", Silent())

    class Vanish(Silent):
        def recorded(self, cycle, metrics, timing):
            (tmp_path / "shard-1.jsonl").unlink(missing_ok=True)
            if cycle.last == 6 and self.stops:
                raise KeyboardInterrupt

        stops = False

    train(prepare(small(tmp_path, shards)), tmp_path / "run", Vanish())
    for name in ("metrics.jsonl", "order.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    in_shards(tmp_path)
    stops = Vanish()
    stops.stops = True
    prepared = prepare(small(tmp_path, shards))
    open_workdir(prepared, tmp_path / "cut", [])
    with pytest.raises(KeyboardInterrupt):
        train(prepared, tmp_path / "cut", stops)
    with pytest.raises(OtherRunError, match=r"pool\.examples: 29 -> 15"):
        open_workdir(prepare(small(tmp_path, shards)), tmp_path / "cut", [])
    (tmp_path / "shard-0.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing at .*shard-\*\.jsonl"):
        prepare(small(tmp_path, shards))


# A row that is not a number


@part
class Poisoned:
    """Cross entropy that is not a number for one example."""

    example: int

    def __call__(self, model, params, batch) -> tuple[Total, Report]:
        total, report = CrossEntropy()(model, params, batch)
        is_it_BZ = batch.ids_BZ == self.example
        loss_BZ = jnp.where(is_it_BZ, jnp.nan, report.rows["loss_nats"])
        poison = jnp.where(is_it_BZ.any(), jnp.nan, 0.0)
        rows = report.rows | {"loss_nats": loss_BZ}
        return Total(sum=total.sum + poison, count=total.count), Report(
            totals=report.totals, rows=rows
        )


def first_seen_in_round_1(run: Path) -> int:
    """Give an example that the updates 5 to 8 see, and those before them do not."""
    seen = [{x for row in line["rows"] for x in row} for line in lines(run / "order.jsonl")]
    return min(set.union(*seen[4:]) - set.union(*seen[:4]))


def test_a_row_that_is_not_a_number_is_named_and_changes_nothing(whole, tmp_path):
    bad = first_seen_in_round_1(whole)
    poisoned = {"objective": Poisoned(example=bad)}
    with pytest.raises(NonFiniteError, match=rf"the loss of row-{bad}\b.*good checkpoint: step 4"):
        train(prepare(small(whole.parent, poisoned)), tmp_path / "run", Silent())
    assert [m["step"] for m in lines(tmp_path / "run" / "metrics.jsonl")] == [2, 4]
    with Store(tmp_path / "run" / "checkpoints", small(whole.parent).checkpoints) as store:
        assert store.steps == [2, 4]


def test_a_tolerated_row_is_withheld_and_counted(whole, tmp_path):
    bad = first_seen_in_round_1(whole)
    changes = {"objective": Poisoned(example=bad), "max_withheld": 8}
    state = train(prepare(small(whole.parent, changes)), tmp_path / "run", Silent())
    order = lines(tmp_path / "run" / "order.jsonl")
    times = sum(any(bad in row for row in line["rows"]) for line in order)
    assert 0 < times == int(state.learner.withheld)
    assert times == sum(m["withheld"] for m in lines(tmp_path / "run" / "metrics.jsonl"))
    assert all(np.isfinite(x).all() for x in map(np.asarray, jax.tree.leaves(state.learner)))
    assert order == lines(whole / "order.jsonl")
