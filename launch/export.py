"""Turn a run into what other tools load: a merged model folder, or an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from research.checkpoint import CheckpointError, Store
from research.core.layout import Layout, Placement
from research.core.parts import rebuild
from research.core.records import Batch
from research.experiment import Experiment
from research.huggingface.export import save
from research.huggingface.folder import load
from research.huggingface.peft import write_adapter
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.train.prepare import describe_source, resolve_model
from research.train.step import abstractly, initialise
from research.tuning.lora import Lora

# Largest difference of float32 logits between a merged model and base plus adapter. Two orders of
# reduction of the same sums differ by about 1e-5; a lost scale or a wrong target by more than 1e-1.
MERGE_TOLERANCE = 1e-3
PROBE_SHAPE = (2, 64)  # rows and tokens of the batch on which logits are compared


def export(workdir: Path, to: Path, form: str, step: str, console: Console) -> None:
    """Write checkpoint `step` ("last", "best" or a number) of a run to the folder `to`.

    Raises:
      ValueError: the form or step is unknown, does not fit the run's tuning, or merging is inexact.
      FileExistsError: the folder is not empty.
      CheckpointError: the checkpoint cannot be used.
    """
    if form not in ("merged", "adapter"):
        raise ValueError(f"--as {form!r}: expected merged or adapter")
    if to.exists() and any(to.iterdir()):
        raise FileExistsError(f"{to} is not empty; give a new folder")
    experiment = read_experiment(workdir)
    tuning = experiment.tuning
    if form == "adapter" and not isinstance(tuning, Lora):
        raise ValueError(
            f"{workdir} trained with {type(tuning).__name__}, which has no adapter; "
            "use --as merged"
        )
    chosen, model, folder, trainable, frozen = restore(experiment, workdir, step)
    draft = to.with_name(f".{to.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    if isinstance(tuning, Lora) and form == "adapter":
        write_adapter(draft, model, tuning, trainable, str(folder or ""))
    else:
        merged = tuning.merge(trainable, frozen)
        difference = largest_difference(model, tuning.join(trainable, frozen), merged)
        console.print(f"largest logit difference, merged against unmerged: {difference:.2e}")
        if difference > MERGE_TOLERANCE:
            raise ValueError(
                f"merged and unmerged logits differ by {difference:.2e}, above {MERGE_TOLERANCE}; "
                "nothing was written. Export the adapter instead"
            )
        save(draft, model, merged, source=folder, tokenizer_folder=experiment.tokenizer or None)
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.exists():
        to.rmdir()
    draft.rename(to)
    console.print(f"written: step {chosen} of {workdir} as {form} to {to}")


def restore(
    experiment: Experiment, workdir: Path, step: str
) -> tuple[int, Transformer, Path | None, Any, Any]:
    """Give (step, model, folder of the base, trainable, frozen) of a checkpoint."""
    weights, architecture = resolve_model(experiment.model)
    place = place_on(experiment.layout, jax.devices())
    compute = Compute(param_dtype=experiment.compute.param_dtype)
    model = Transformer(architecture, place, compute)
    seed = experiment.seed_of("initialisation")
    params = load(weights.folder, model) if weights else model.init(jax.random.key(seed))
    learner, frozen = initialise(place, experiment.update(), params, seed)
    source = describe_source(experiment, weights, architecture)
    with Store(workdir / "checkpoints", experiment.checkpoints) as store:
        chosen = choose_step(store, step)
        learner, _ = store.restore(abstractly(learner), source=source, step=chosen)
    return chosen, model, weights and weights.folder, learner.trainable, frozen


def place_on(layout: Layout, devices: Sequence[Any]) -> Placement:
    """Use the run's own layout where it fits the devices that are here, else one device."""
    try:
        return layout.on(devices)
    except ValueError:
        return Layout().on(devices)


def read_experiment(workdir: Path) -> Experiment:
    """Read the experiment that a run directory was made by.

    Raises:
      FileNotFoundError: this is no run directory.
    """
    file = workdir / "experiment.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; give a run directory")
    return rebuild(json.loads(file.read_text())["experiment"])


def choose_step(store: Store, step: str) -> int:
    """Give the step that "last", "best" or a number names.

    Raises:
      CheckpointError: there is no such checkpoint.
      ValueError: the word is unknown.
    """
    if not store.steps:
        raise CheckpointError(f"{store.folder} holds no checkpoint; train first")
    if step == "last":
        return store.steps[-1]
    if step == "best":
        best = store.best()
        if best is None:
            raise CheckpointError(
                f"{store.folder}: no checkpoint carries the metric {store.keep.metric!r}; set "
                "checkpoints.metric and keep_best, or export --step last"
            )
        return best
    if not step.isdigit():
        raise ValueError(f"--step {step!r}: expected last, best or a number")
    return int(step)


def best_run(folder: Path, metric: str, lower_is_better: bool) -> Path:
    """Give the run below `folder` whose last evaluation is best by `evaluator/metric`.

    Raises:
      FileNotFoundError: no run below the folder carries the metric.
    """
    name, _, key = metric.partition("/")
    values: dict[Path, float] = {}
    for file in sorted(folder.rglob("evaluations.jsonl")):
        for line in file.read_text().splitlines():
            evaluation = json.loads(line)
            if evaluation["name"] == name and key in evaluation["metrics"]:
                values[file.parent] = evaluation["metrics"][key]["value"]
    if not values:
        raise FileNotFoundError(f"no run below {folder} has an evaluation {metric!r}")
    return (min if lower_is_better else max)(values, key=values.__getitem__)


def largest_difference(model: Transformer, one: Any, other: Any) -> float:
    """Give max |logits of one - logits of other| over a batch of random tokens."""
    rows, length = PROBE_SHAPE[0] * model.place.num_row_shards, PROBE_SHAPE[1]
    tokens_BT = jax.random.randint(jax.random.key(0), (rows, length), 0, model.arch.vocab_size)
    zeros_BT = jnp.zeros_like(tokens_BT)
    batch = Batch(
        tokens_BT=tokens_BT,
        targets_BT=zeros_BT,
        weights_BT=zeros_BT.astype(jnp.float32),
        positions_BT=zeros_BT + jnp.arange(length),
        segments_BT=zeros_BT + 1,
        ids_BZ=jnp.zeros((rows, 1), jnp.int32),
    )
    logits = jax.jit(lambda params: model.apply(params, batch).logits())
    return float(jnp.max(jnp.abs(logits(one) - logits(other))))
