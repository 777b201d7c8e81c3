"""Turn a run into what other tools load: a merged model folder, or an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from launch.experiment_file import load_module
from research.checkpoint import Store
from research.core.layout import Layout, Placement
from research.core.parts import rebuild
from research.core.protocols import Tree, Tuning
from research.core.records import Batch
from research.evaluate.results import LOWER_IS_BETTER
from research.experiment import Experiment
from research.huggingface.export import save
from research.huggingface.folder import load, read_json
from research.huggingface.peft import write_adapter
from research.models.compute import Compute
from research.models.transformer import Transformer
from research.report.runs import read_run
from research.train.prepare import describe_source, resolve_model
from research.train.step import abstractly, initialise
from research.tuning.lora import Lora

# Largest difference of float32 logits between a merged model and base plus adapter. Two orders of
# reduction of the same sums differ by about 1e-5; a lost scale or a wrong target by more than 1e-1.
MERGE_TOLERANCE = 1e-3
PROBE_SHAPE = (2, 64)  # rows and tokens of the batch on which logits are compared


def export(
    workdir: Path, to: Path, form: str, step: str, file: Path | None, console: Console
) -> None:
    """Write checkpoint `step` ("last", "best" or a number) of a run to the folder `to`.

    Args:
      form: "merged" or "adapter".
      file: the experiment file, where the run has parts that are defined there.

    Raises:
      ValueError: the form or step is unknown, does not fit the run's tuning, or merging is inexact.
      FileExistsError: the folder is not empty.
      CheckpointError: the checkpoint cannot be used.
    """
    if form not in ("merged", "adapter"):
        raise ValueError(f"--as {form!r}: expected merged or adapter")
    to = to.absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FileExistsError(f"{to} is there and not an empty folder; give a new one")
    if file is not None:
        load_module(file)
    experiment = read_experiment(workdir)
    tuning = experiment.tuning
    if form == "adapter" and not isinstance(tuning, Lora):
        raise ValueError(
            f"{workdir} trained with {type(tuning).__name__}, which has no adapter; use --as merged"
        )
    with console.status(f"reading {workdir}"):
        chosen, model, folder, trainable, frozen = restore(experiment, workdir, step)
    draft = to.with_name(f".{to.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with console.status(f"writing {to}"):
            if isinstance(tuning, Lora) and form == "adapter":
                write_adapter(draft, model, tuning, trainable, str(folder or ""), source=folder)
            else:
                merged = merge(tuning, model, trainable, frozen, console)
                tokenizer = experiment.tokenizer or None
                save(draft, model, merged, source=folder, tokenizer_folder=tokenizer)
        to.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    done = f"written: step {chosen} of {workdir} as {form} to {to}"
    console.print(done, markup=False, highlight=False, soft_wrap=True)


def merge(
    tuning: Tuning, model: Transformer, trainable: Tree, frozen: Tree, console: Console
) -> Tree:
    """Give plain weights, and see on a batch that they are the model that was trained.

    Raises:
      ValueError: they are not.
    """
    merged = tuning.merge(trainable, frozen)
    difference = largest_difference(model, tuning.join(trainable, frozen), merged)
    console.print(f"largest logit difference, merged against unmerged: {difference:.2e}")
    if not difference <= MERGE_TOLERANCE:
        raise ValueError(
            f"merged and unmerged logits differ by {difference:.2e}, above {MERGE_TOLERANCE}; "
            "nothing was written. Export the adapter instead"
        )
    return merged


def restore(
    experiment: Experiment, workdir: Path, step: str
) -> tuple[int, Transformer, Path | None, Any, Any]:
    """Give (step, model, folder of the base, trainable, frozen) of a checkpoint."""
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir} holds no checkpoint; train first")
    weights, architecture = resolve_model(experiment.model)
    place = place_on(experiment.layout, jax.devices())
    compute = Compute(param_dtype=experiment.compute.param_dtype)
    model = Transformer(architecture, place, compute)
    seed = experiment.seed_of("initialisation")
    params = load(weights.folder, model) if weights else model.init(jax.random.key(seed))
    learner, frozen = initialise(place, experiment.update(), params, seed)
    source = describe_source(experiment, weights, architecture)
    with Store(workdir / "checkpoints", experiment.checkpoints, reading=True) as store:
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
      ValueError: it was written by another version, or has parts of an experiment file.
    """
    file = workdir / "experiment.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing; give a run directory, or one of a sweep with --best-by"
        )
    written = read_json(file)
    try:
        return rebuild(written["experiment"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{file}: {error}. Parts that an experiment file defines are found with "
            "--experiment FILE.py"
        ) from error


def choose_step(store: Store, step: str) -> int:
    """Give the step that "last", "best" or a number names.

    Raises:
      ValueError: there is no such checkpoint, or the word is unknown.
    """
    best = store.best() if store.steps else None
    if step == "last" and store.steps:
        return store.steps[-1]
    if step == "best" and best is not None:
        return best
    if step.isdigit() and int(step) in store.steps:
        return int(step)
    raise ValueError(
        f"--step {step!r}: {store.folder} has checkpoints of steps {store.steps}, of which "
        f"{best or 'none'} is best by {store.keep.metric or 'checkpoints.metric, which is not set'}"
        "; expected last, best or one of these numbers"
    )


def best_run(folder: Path, metric: str, lower_is_better: bool) -> Path:
    """Give the run below `folder` whose last evaluation is best by `evaluator/metric`.

    Args:
      lower_is_better: the direction, where the metric's name does not say it (a loss does).

    Raises:
      FileNotFoundError: no run below the folder carries the metric.
    """
    name, _, key = metric.partition("/")
    values: dict[Path, float] = {}
    for file in sorted(folder.rglob("experiment.json")):
        last = read_run(file.parent).final(name)
        value = None if last is None else last["metrics"].get(key, {}).get("value")
        if value is not None:
            values[file.parent] = value
    if not values:
        raise FileNotFoundError(
            f"no run below {folder} has an evaluation {metric!r}; expected evaluator/metric, such "
            "as test/loss_nats"
        )
    lower = lower_is_better or key in LOWER_IS_BETTER
    return (min if lower else max)(values, key=values.__getitem__)


def largest_difference(model: Transformer, one: Any, other: Any) -> float:
    """Give max |logits of one - logits of other| over a batch of random tokens."""
    batch = probe(model)
    logits = jax.jit(lambda params: model.apply(params, batch).logits())
    return float(jnp.max(jnp.abs(logits(one) - logits(other))))


def probe(model: Transformer) -> Batch:
    """Make a batch of random tokens, on which logits are compared."""
    rows, length = PROBE_SHAPE[0] * model.place.num_row_shards, PROBE_SHAPE[1]
    tokens_BT = jax.random.randint(jax.random.key(0), (rows, length), 0, model.arch.vocab_size)
    zeros_BT = jnp.zeros_like(tokens_BT)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=zeros_BT,
        weights_BT=zeros_BT.astype(jnp.float32),
        positions_BT=zeros_BT + jnp.arange(length),
        segments_BT=zeros_BT + 1,
        ids_BZ=jnp.zeros((rows, 1), jnp.int32),
    )
