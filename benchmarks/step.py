"""Time one training step of maktab against transformers + peft on torch, in turns, on this machine.

    python -m benchmarks.step --out benchmarks/results/step-cpu.json

Every contestant lives in a process of its own (thread pools do not meet) and works only in its
turn. All train the same Qwen3-style decoder on the same batch: float32, causal, loss over every
token, AdamW; LoRA has rank 16 on every linear layer of the blocks. Ours is the step of
`research/train/step.py` as `maktab train` compiles it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from launch.memory import keep_freed_memory

ROWS, TOKENS, VOCABULARY = 8, 256, 8192
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, FFW, RANK = 256, 6, 8, 4, 32, 768, 16
LEARNING_RATE = 1e-4
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft", "numpy")
Step = Callable[[], float]


def batch_ids() -> np.ndarray:
    """Draw the token ids that both sides train on, [B, T]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, TOKENS), dtype=np.int32)


def build_ours(tuning: str) -> Step:
    """Give maktab's own step at the reference shape."""
    import jax

    from research.core.layout import Layout
    from research.core.records import Batch
    from research.experiment import Update
    from research.models.architecture import Architecture
    from research.models.compute import Compute
    from research.models.transformer import Transformer
    from research.objectives.cross_entropy import CrossEntropy
    from research.optimizers.adamw import AdamW
    from research.optimizers.schedules import Constant
    from research.train.step import compile_step, initialise, structure_of
    from research.tuning.full import Full
    from research.tuning.lora import Lora

    place = Layout().on(jax.devices("cpu")[:1])
    architecture = Architecture(
        vocab_size=VOCABULARY,
        model_dim=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD,
        ffw_dim=FFW,
        query_key_norm=True,
    )
    model = Transformer(architecture, place, Compute())
    update = Update(
        tuning=Full() if tuning == "full" else Lora(rank=RANK, alpha=2.0 * RANK),
        objective=CrossEntropy(),
        optimizer=AdamW(weight_decay=0.01),
        schedule=Constant(peak_lr=LEARNING_RATE),
        max_gradient_norm=None,
        micro_batches=1,
    )
    learner, frozen = initialise(place, update, model.init(jax.random.key(0)), seed=0)
    step = compile_step(model, place, structure_of(learner))
    ids_BT = batch_ids()
    ones_BT = np.ones_like(ids_BT)
    weights_BT = ones_BT.astype(np.float32)
    weights_BT[:, -1] = 0.0
    batch = Batch(
        tokens_BT=ids_BT,
        targets_BT=np.roll(ids_BT, -1, axis=1),
        weights_BT=weights_BT,
        positions_BT=np.cumsum(ones_BT, axis=1, dtype=np.int32) - 1,
        segments_BT=ones_BT,
        ids_BZ=np.arange(ROWS, dtype=np.int32)[:, None],
    )
    batch = jax.device_put(batch, place.batch(batch))
    span = (np.float32(0), np.float32(1000))
    update, span, key = jax.device_put((update, span, jax.random.key(1)), place.replicated)
    held = [learner]

    def run() -> float:
        held[0], report = step(held[0], frozen, batch, update, span, key)
        jax.block_until_ready(held[0])
        return float(report.totals["loss_nats"].mean)

    return run


def build_torch(tuning: str, compiled: bool = False) -> Step:
    """Give the same step by transformers (sdpa), peft and torch's fused AdamW."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD,
            intermediate_size=FFW,
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    if tuning == "lora":
        import peft

        config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model
    ids_BT = torch.from_numpy(batch_ids()).long()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who steps, and whether its process keeps the memory it frees (`launch/memory.py`)."""

    build: Callable[[str], Step]
    keeps_memory: bool


CONTESTANTS = {
    "maktab": Contestant(build_ours, True),  # as `maktab train` runs on a CPU
    "maktab, malloc as it comes": Contestant(build_ours, False),
    "torch eager": Contestant(build_torch, False),
    "torch eager, keeping memory": Contestant(build_torch, True),
    "torch.compile": Contestant(functools.partial(build_torch, compiled=True), True),
}
RIVALS = ("torch eager", "torch eager, keeping memory")  # ratios are to the faster one


def serve(pipe: Connection, name: str, tuning: str) -> None:
    """Build a contestant, then run as many steps as each message asks for and send the times."""
    contestant = CONTESTANTS[name]
    if contestant.keeps_memory:
        keep_freed_memory()
    started = time.perf_counter()
    step = contestant.build(tuning)
    losses = [step(), step()]
    pipe.send((time.perf_counter() - started, losses))
    while count := pipe.recv():
        times = []
        for _ in range(count):
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            step()
            times.append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
        pipe.send((times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(tuning: str, names: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Run the contestants in turns; give for each its times of single steps."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes, seen = {}, {}, {}
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        processes[name] = spawn.Process(target=serve, args=(theirs, name, tuning), daemon=True)
        processes[name].start()
        theirs.close()
        start_s, losses = pipes[name].recv()
        seen[name] = {"start_s": start_s, "first_losses": losses, "wall_s": [], "cpu_s": []}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            pipes[name].send(steps)
            times, peak_bytes = pipes[name].recv()
            seen[name]["wall_s"] += [wall_s for wall_s, _ in times]
            seen[name]["cpu_s"] += [cpu_s for _, cpu_s in times]
            seen[name]["peak_rss_bytes"] = peak_bytes
    for name in names:
        pipes[name].send(0)
        processes[name].join()
    return seen


def summarise(values: list[float]) -> dict[str, float]:
    """Give minimum, quartiles and median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"min": min(values), "q1": low, "median": middle, "q3": high}


def record(tuning: str, seen: dict[str, Any]) -> dict[str, Any]:
    """Turn times into what is written: quartiles, tokens/s, and ratios to the faster torch eager."""
    tokens = ROWS * TOKENS
    rows = {}
    for name, times in seen.items():
        clocks = {clock: summarise(times[clock]) for clock in ("wall_s", "cpu_s")}
        rows[name] = times | clocks | {"tokens_per_s": tokens / clocks["wall_s"]["median"]}
    for row in rows.values():
        for clock in ("wall_s", "cpu_s"):
            row[f"speed_by_{clock}"] = {
                at: min(rows[rival][clock][at] for rival in RIVALS) / row[clock][at]
                for at in ("min", "q1", "median")
            }
    return {"tuning": tuning, "contestants": rows}


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"One step, {ROWS} x {TOKENS} tokens: seconds, median (q1 - q3)")
    for column in ("", "wall", "cpu", "tokens/s", "speed (wall)", "speed (cpu)", "peak GB"):
        table.add_column(column, justify="left" if not column else "right")
    for entry in records:
        for name, row in entry["contestants"].items():
            table.add_row(
                f"{entry['tuning']}, {name}",
                *(
                    f"{row[c]['median']:.3f} ({row[c]['q1']:.3f} - {row[c]['q3']:.3f})"
                    for c in ("wall_s", "cpu_s")
                ),
                f"{row['tokens_per_s']:,.0f}",
                *(f"{row[f'speed_by_{c}']['median']:.2f}" for c in ("wall_s", "cpu_s")),
                f"{row['peak_rss_bytes'] / 1e9:.2f}",
            )
    console.print(table)


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps a turn.")] = 3,
    torch_compile: Annotated[bool, typer.Option(help="Also time torch.compile.")] = False,
    tunings: Annotated[str, typer.Option(help="Which, by comma.")] = "full,lora",
) -> None:
    """Time a step of full fine-tuning and of LoRA against torch; print a table, write a record."""
    names = [name for name in CONTESTANTS if torch_compile or name != "torch.compile"]
    records = [
        record(tuning, measure(tuning, names, rounds, steps)) for tuning in tunings.split(",")
    ]
    show(Console(), records)
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
