"""Commands called in this process, and the small files that they are called on."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launch.cli import app, guarded

STORIES = Path(__file__).parents[2] / "experiments" / "assets" / "stories260k"
GOLDEN = np.load(STORIES / "golden.npz")  # what transformers says of 125 tokens
IDS, LOGITS = GOLDEN["input_ids"], GOLDEN["logits"].astype(np.float64)
VOCAB_SIZE, MAX_POSITIONS, BOS, EOS = 512, 512, 1, 2
THERE = 383  # the token of " there", which the model says second after "Once upon a time"

EXPERIMENT = '''
from pathlib import Path

from configs import curricula
from research.checkpoint import Checkpoints
from research.clock import Clock
from research.core.parts import part, vary
from research.core.records import Total
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.policies.top_fraction import TopFraction
from research.data.pool import Data
from research.data.sources import Jsonl
from research.evaluate.likelihood import Likelihood
from research.experiment import Experiment
from research.huggingface.pretrained import Pretrained
from research.objectives.cross_entropy import CrossEntropy
from research.optimizers.adamw import AdamW
from research.optimizers.schedules import Constant
from research.tuning.lora import Lora

HERE = Path(__file__).parent


@part
class Lengths:
    """A part of the file's own."""

    data: Data
    name: str = "lengths"
    slice_by: tuple[str, ...] = ()

    def measure(self, subject, pool):
        return [{"tokens": Total(sum=float(n), count=1)} for n in pool.lengths_X]


def rows(name, **settings):
    return Data(sources=(Jsonl(path=str(HERE / name)),), rows=4, row_tokens=32, **settings)


def get_config():
    test = rows("test.jsonl", pack=False)
    return Experiment(
        name="plain",
        model=Pretrained(folder="STORIES"),
        data=rows("train.jsonl"),
        tuning=Lora(rank=3),
        objective=CrossEntropy(),
        optimizer=AdamW(),
        schedule=Constant(peak_lr=3e-3),
        curriculum=curricula.round_wise(
            TeacherForcedLoss(), TopFraction(fraction=0.9), rounds=2
        ),
        clock=Clock(steps=4, cycle_steps=1, evaluate_every=1),
        evaluators=(Likelihood(name="test", data=test), Lengths(data=test)),
        checkpoints=Checkpoints(keep_last=1, keep_best=1, metric="test/loss_nats"),
    )


def sweep():
    yield get_config()
    yield vary(get_config(), {"name": "hot", "schedule.peak_lr": 3e-2})


def with_one_that_diverges():
    yield vary(get_config(), {"name": "diverges", "schedule.peak_lr": 1e38})
    yield get_config()
'''


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def maktab(*words: Any) -> Said:
    """Run `maktab WORDS` in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            code = guarded(lambda: app([str(word) for word in words]))
        except SystemExit as error:
            code = error.code or 0
    return Said(int(code), out.getvalue(), err.getvalue())


def write_rows(file: Path, *rows: Mapping[str, Any] | str) -> Path:
    """Write a row a line; texts as they are."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_experiment(folder: Path) -> Path:
    """Write an experiment file with its 23 rows to train on and 5 to test on."""
    for name, count in (("train", 23), ("test", 5)):
        said = ("a cat sat", "the dog ran home", "he saw a big red ball")
        rows = (
            {"id": f"{name}-{i}", "prompt": f"{name} {i}:", "completion": f" {said[i % 3]}"}
            for i in range(count)
        )
        write_rows(folder / f"{name}.jsonl", *rows)
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.replace("STORIES", str(STORIES)))
    return file


def model_folder(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Copy the small model, with some fields of its JSON files changed."""
    shutil.copytree(STORIES, folder, ignore=shutil.ignore_patterns("golden.npz", *without))
    changed = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer,
    }
    for name, fields in changed.items():
        if fields is not None:
            held = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**held, **fields}))
    return folder


def log_p(logits: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
