"""Time one training step of maktab against transformers + peft on torch, in turns, on this machine.

    python -m benchmarks.step --out benchmarks/results/step-cpu.json

Every contestant lives in a process of its own (thread pools do not meet) and works only in its
turn. All train the same Qwen3-style decoder on the same batch: float32, causal, loss over every
token, AdamW; LoRA has rank 16 on every linear layer of the blocks. Ours is the step of
`research/train/step.py` as `maktab train` compiles it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.turns import Run, race, spread, summarise, write
from launch.memory import keep_freed_memory

ROWS, TOKENS, VOCABULARY = 8, 256, 8192
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, FFW, RANK = 256, 6, 8, 4, 32, 768, 16
LEARNING_RATE = 1e-4


def architecture() -> Any:
    """Give the reference shape, Qwen3-style with 9 million parameters, as maktab says it."""
    from research.models.architecture import Architecture

    return Architecture(
        vocab_size=VOCABULARY,
        model_dim=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD,
        ffw_dim=FFW,
        query_key_norm=True,
    )


def batch_ids() -> np.ndarray:
    """Draw the token ids that both sides train on, [B, T]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, TOKENS), dtype=np.int32)


def build_ours(tuning: str) -> Run:
    """Give maktab's own step at the reference shape."""
    import jax

    from research.core.layout import Layout
    from research.core.records import Batch
    from research.experiment import Update
    from research.models.compute import Compute
    from research.models.transformer import Transformer
    from research.objectives.cross_entropy import CrossEntropy
    from research.optimizers.adamw import AdamW
    from research.optimizers.schedules import Constant
    from research.train.step import compile_step, initialise, structure_of
    from research.tuning.full import Full
    from research.tuning.lora import Lora

    place = Layout().on(jax.devices("cpu")[:1])
    model = Transformer(architecture(), place, Compute())
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


def build_torch(tuning: str, compiled: bool = False) -> Run:
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


def keeping_memory(build: Callable[[str], Run], tuning: str) -> Run:
    """Build a contestant in a process that keeps the memory it frees."""
    keep_freed_memory()
    return build(tuning)


CONTESTANTS: dict[str, Callable[[str], Run]] = {
    "maktab": functools.partial(keeping_memory, build_ours),  # as `maktab train` runs on a CPU
    "maktab, malloc as it comes": build_ours,
    "torch eager": build_torch,
    "torch eager, keeping memory": functools.partial(keeping_memory, build_torch),
    "torch.compile": functools.partial(build_torch, compiled=True),
}
RIVALS = ("torch eager", "torch eager, keeping memory")  # ratios are to the faster one


def compare(tuning: str, names: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Let the contestants step in turns; give quartiles, tokens/s, ratios to the faster rival."""
    builds = {name: functools.partial(CONTESTANTS[name], tuning) for name in names}
    rows = race(builds, rounds, steps)
    for row in rows.values():
        row["times"] = {clock: row.pop(clock) for clock in ("wall_s", "cpu_s")}
        row |= {clock: summarise(times) for clock, times in row["times"].items()}
        row["tokens_per_s"] = ROWS * TOKENS / row["wall_s"]["median"]
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
        table.add_column(column, justify="right" if column else "left")
    for entry in records:
        for name, row in entry["contestants"].items():
            table.add_row(
                f"{entry['tuning']}, {name}",
                *(spread(row[clock]) for clock in ("wall_s", "cpu_s")),
                f"{row['tokens_per_s']:,.0f}",
                *(f"{row[f'speed_by_{clock}']['median']:.2f}" for clock in ("wall_s", "cpu_s")),
                f"{row['rss_peak_bytes'] / 1e9:.2f}",
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
    records = [compare(tuning, names, rounds, steps) for tuning in tunings.split(",")]
    show(Console(), records)
    if out is not None:
        write(out, {"records": records})


if __name__ == "__main__":
    typer.run(main)
