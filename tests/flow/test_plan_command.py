"""`maktab plan` as a command: what it prints and writes, and what it says of a wrong question."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from launch import plan as command
from research.plan import plan
from tests.flow.commands import maktab, write_experiment

REPOSITORY = Path(__file__).parents[2]
REFUSED = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G."
)


def test_a_plan_for_simulated_devices_prints_its_tables_and_writes_them(tmp_path):
    """In a process of its own, since it says how many devices jax simulates."""
    file, out = write_experiment(tmp_path), tmp_path / "made" / "plan.json"
    (tmp_path / "train.jsonl").unlink()  # no data is read
    words = ["--topology", "cpu:4", "--set", "layout.axes=(('data',-1),)", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "plan", str(file), *words],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in ("training", "scoring", "decoding", "optimiser state", "peak", "all-reduce"):
        assert words in done.stdout
    told = json.loads(out.read_text())
    assert told["topology"] == "cpu:4"
    assert told["mesh"] == {"data": 4}
    assert told["fits"]
    training, scoring, decoding = told["programs"]
    assert set(training["sent_bytes"]) == {"data"}
    for program in (training, scoring, decoding):
        assert program["compiled"]["flops"] > 0
        assert program["compiled"]["peak_bytes"] > told["parameter_bytes"]
    assert decoding["compiled"]["unknown_loops"] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--topology", "v9:2x2"), 2, "'v9' is no kind of device; there are ['v4', 'v5e'"),
        (("--topology", "v5e"), 2, "expected KIND:SHAPE"),
        (("--topology", "v5p-100"), 2, "there are v5p-8, v5p-16"),
        (("--topology", "v5e:2x4", "--program", "sleeping"), 2, "['training', 'scoring'"),
    ],
)
def test_a_wrong_question_is_one_message(tmp_path, words, code, said):
    told = maktab("plan", write_experiment(tmp_path), *words)
    assert told.code == code
    assert said in told.err.replace("\n", " ")


@pytest.mark.parametrize(("topology", "extra"), [("v5e:2x4", "tpu"), ("h200:8", "cuda13")])
def test_a_compiler_that_is_not_installed_is_named(tmp_path, monkeypatch, topology, extra):
    def missing(**_):
        raise NotImplementedError("topology not implemented")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    told = maktab("plan", write_experiment(tmp_path), "--topology", topology)
    assert told.code == 2
    assert f"pip install 'maktab[{extra}]'" in told.err


@pytest.fixture
def simulated(monkeypatch):
    """Let the command run in this process, whose eight devices are there already."""
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


def test_a_mesh_that_does_not_divide_is_refused_with_the_axis(tmp_path, simulated):
    file = write_experiment(tmp_path)
    three = "layout.axes=(('data',3),)"
    told = maktab("plan", file, "--topology", "cpu:3", "--set", three)
    assert told.code == 2
    assert "data.rows=4 is no multiple of 3 row shards" in told.err
    both = "layout.axes=(('data',3),('rest',-1))"
    told = maktab("plan", file, "--topology", "cpu:8", "--set", both)
    assert told.code == 2
    assert "does not fit 8 devices" in told.err


def test_what_the_compiler_refuses_does_not_fit_and_says_by_how_much(
    tmp_path, monkeypatch, simulated
):
    class Refusing:
        def trace(self, *_):
            raise jax.errors.JaxRuntimeError(REFUSED)

    monkeypatch.setattr(plan, "compile_step", lambda *_: Refusing())
    out = tmp_path / "plan.json"
    told = maktab("plan", write_experiment(tmp_path), "--topology", "cpu:1", "--out", out)
    assert told.code == 3
    for words in ("plain on cpu:1: training does not fit", "Used 20.12G of 15.75G", "--search"):
        assert words in told.err.replace("\n", " ")
    assert "Used 20.12G" in json.loads(out.read_text())["refused"]


def test_a_peak_above_the_memory_does_not_fit_where_the_compiler_says_nothing(
    tmp_path, monkeypatch, simulated
):
    """As on GPUs, whose compiler refuses nothing."""

    def small(*words):
        return dataclasses.replace(plan.plan(*words), usable_bytes=1000)

    monkeypatch.setattr(command, "plan", small)
    words = ("--topology", "cpu:1", "--program", "decoding")
    told = maktab("plan", write_experiment(tmp_path), *words)
    assert told.code == 3
    assert "does not fit: peak" in told.out
