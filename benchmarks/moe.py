"""Time one mixture-of-experts layer, forward and backward, against transformers and dense layers.

    python -m benchmarks.moe --out benchmarks/results/moe-cpu.json
    python -m benchmarks.moe --gpu --out benchmarks/results/moe-gpu.json

On the CPU every contestant lives in a process of its own and works only in its turn. All compute
the output of the same sparse feed-forward (softmax top-k, gated experts, float32) and the gradients
of every weight and of the input. Three questions: what dropless costs beside the dense reference
and beside transformers' Qwen3-MoE block on torch; what it costs beside a dense feed-forward of the
active size; how cost grows with the number of experts while the active parameters stay.

On a GPU: the layer of Qwen3-30B-A3B in bfloat16, as a fraction of the rate of a dense feed-forward
that does the same multiplications.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.turns import Run, race, spread, summarise, write
from launch.memory import keep_freed_memory

TOKENS, WIDTH, EXPERTS, ACTIVE, EXPERT_WIDTH = 2048, 256, 32, 4, 192
COUNTS = (8, 16, 32, 64, 128)
QWEN3_30B_A3B = {"tokens": 16384, "width": 2048, "experts": 128, "active": 8, "expert_width": 768}


def flops(tokens: int, width: int, active: int, expert_width: int) -> float:
    """Count a forward and a backward pass: three products, each with two gradients."""
    return 3 * 3 * 2.0 * tokens * active * width * expert_width


def build_layer(
    dispatch: str,
    experts: int = EXPERTS,
    *,
    tokens: int = TOKENS,
    width: int = WIDTH,
    active: int = ACTIVE,
    expert_width: int = EXPERT_WIDTH,
    platform: str = "cpu",
    dtype: str = "float32",
) -> Run:
    """Give maktab's layer with a dispatch, or "active": a dense feed-forward of the active size."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from research.core.layout import Layout
    from research.models.architecture import Architecture, Moe
    from research.models.feedforward import FeedForward
    from research.models.moe.capacity import Capacity
    from research.models.moe.dense import Dense
    from research.models.moe.dropless import Dropless
    from research.models.moe.experts import MixtureOfExperts
    from research.models.moe.routing import Tokens
    from research.models.moe.softmax_top_k import SoftmaxTopK

    place = Layout().on(jax.devices(platform)[:1])
    moe = Moe(
        num_experts=experts,
        experts_per_token=active,
        expert_dim=expert_width,
        router=SoftmaxTopK(),
    )
    arch = Architecture(
        vocab_size=8,
        model_dim=width,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        ffw_dim=active * expert_width,
        moe=moe,
    )
    kind = FeedForward if dispatch == "active" else MixtureOfExperts
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: kind(jax.random.key(0), arch, place)))
    chosen = {"dropless": Dropless(), "capacity": Capacity(factor=1.25), "dense": Dense()}
    held = Tokens(
        ids_M=jnp.zeros(tokens, jnp.int32), real_M=jnp.ones(tokens, bool), rows=tokens // 256
    )

    def loss(params: Any, x_BTD: jax.Array, bar_BTD: jax.Array) -> jax.Array:
        layer: Any = nnx.merge(graphdef, params)
        out = layer(x_BTD) if dispatch == "active" else layer(x_BTD, held, chosen[dispatch])[0]
        return jnp.sum((out * bar_BTD).astype(jnp.float32))

    numbers = np.random.default_rng(0)

    def draw(*shape: int, scale: float = 1.0) -> jax.Array:
        values = scale * numbers.standard_normal(shape, np.float32)
        return jax.device_put(jnp.asarray(values, dtype), place.replicated)

    params = jax.tree.map(
        lambda leaf: draw(*leaf.shape, scale=leaf.shape[-2] ** -0.5), nnx.to_pure_dict(abstract)
    )
    shape = (tokens // 256, 256, width)
    x_BTD, bar_BTD = draw(*shape), draw(*shape)
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    def run() -> float:
        value, _ = jax.block_until_ready(step(params, x_BTD, bar_BTD))
        return float(value)

    return run


def build_torch(implementation: str, experts: int = EXPERTS) -> Run:
    """Give the same by transformers' Qwen3-MoE block."""
    import torch
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    torch.set_num_threads(os.cpu_count() or 1)
    config = Qwen3MoeConfig(
        hidden_size=WIDTH,
        num_experts=experts,
        num_experts_per_tok=ACTIVE,
        moe_intermediate_size=EXPERT_WIDTH,
        norm_topk_prob=True,
        experts_implementation=implementation,
    )
    block = Qwen3MoeSparseMoeBlock(config)
    numbers = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return torch.from_numpy(numbers.standard_normal(shape, np.float32))

    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(draw(*parameter.shape) * parameter.shape[-1] ** -0.5)
    shape = (TOKENS // 256, 256, WIDTH)
    x, bar = draw(*shape).requires_grad_(), draw(*shape)

    def run() -> float:
        for leaf in (x, *block.parameters()):
            leaf.grad = None
        value = (block(x) * bar).sum()
        value.backward()
        return value.item()

    return run


def keeping_memory(build: Callable[..., Run], *args: Any) -> Run:
    """Build a contestant in a process that keeps the memory it frees."""
    keep_freed_memory()
    return build(*args)


LAYERS: dict[str, Callable[[], Run]] = {
    "maktab dropless": functools.partial(keeping_memory, build_layer, "dropless"),
    "maktab capacity 1.25": functools.partial(keeping_memory, build_layer, "capacity"),
    "maktab dense reference": functools.partial(keeping_memory, build_layer, "dense"),
    "maktab feed-forward of the active size": functools.partial(
        keeping_memory, build_layer, "active"
    ),
    "transformers eager": functools.partial(build_torch, "eager"),
    "transformers grouped_mm": functools.partial(build_torch, "grouped_mm"),
    "transformers eager, keeping memory": functools.partial(keeping_memory, build_torch, "eager"),
    "transformers grouped_mm, keeping memory": functools.partial(
        keeping_memory, build_torch, "grouped_mm"
    ),
}
GROWTH: dict[str, Callable[[int], Run]] = {
    "maktab dropless": functools.partial(keeping_memory, build_layer, "dropless"),
    "transformers grouped_mm": functools.partial(keeping_memory, build_torch, "grouped_mm"),
}


def timed(builds: dict[str, Callable[[], Run]], rounds: int, runs: int) -> dict[str, Any]:
    """Let contestants run in turns; give their times and quartiles."""
    rows = race(builds, rounds, runs)
    for row in rows.values():
        row["times"] = {clock: row.pop(clock) for clock in ("wall_s", "cpu_s")}
        row |= {clock: summarise(times) for clock, times in row["times"].items()}
        row["gflops"] = flops(TOKENS, WIDTH, ACTIVE, EXPERT_WIDTH) / row["wall_s"]["min"] / 1e9
    return rows


def grow(name: str, rounds: int, runs: int) -> dict[str, Any]:
    """Time one contestant at every number of experts; fit the exponent of the growth."""
    builds = {str(n): functools.partial(GROWTH[name], n) for n in COUNTS}
    rows = timed(builds, rounds, runs)
    fits = {
        f"exponent_by_{clock}": slope([rows[str(n)][clock]["min"] for n in COUNTS])
        for clock in ("wall_s", "cpu_s")
    }
    return {"name": name, "experts": rows} | fits


def slope(times: list[float]) -> float:
    """Fit b in time = a experts^b by least squares on logarithms; 0 is flat, 1 is dense."""
    b, _ = np.polyfit(np.log(COUNTS), np.log(times), 1)
    return float(b)


def show(console: Console, layers: dict[str, Any], growth: list[dict[str, Any]]) -> None:
    """Print the tables."""
    shape = f"{TOKENS} tokens, width {WIDTH}, {ACTIVE} of {EXPERTS} experts of {EXPERT_WIDTH}"
    table = Table(title=f"Forward and backward, {shape}: seconds, median (q1 - q3)")
    for column in ("", "wall", "cpu", "least wall", "GFLOP/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in layers.items():
        clocks = [spread(row[clock]) for clock in ("wall_s", "cpu_s")]
        table.add_row(name, *clocks, f"{row['wall_s']['min']:.3f}", f"{row['gflops']:.0f}")
    console.print(table)
    table = Table(title="The same active parameters, more experts: least wall seconds")
    for column in ("", *map(str, COUNTS), "exponent", "(cpu)"):
        table.add_column(column, justify="right" if column else "left")
    for record in growth:
        times = [f"{record['experts'][str(n)]['wall_s']['min']:.3f}" for n in COUNTS]
        exponents = [f"{record[f'exponent_by_{clock}']:.2f}" for clock in ("wall_s", "cpu_s")]
        table.add_row(record["name"], *times, *exponents)
    console.print(table)


def on_gpu(runs: int) -> dict[str, Any]:
    """Time the layer of Qwen3-30B-A3B beside a dense feed-forward of equal active FLOPs."""
    record: dict[str, Any] = {"shape": QWEN3_30B_A3B}
    sizes = {key: value for key, value in QWEN3_30B_A3B.items() if key != "experts"}
    for name in ("active", "dropless"):
        run = build_layer(name, QWEN3_30B_A3B["experts"], platform="gpu", dtype="bfloat16", **sizes)
        for _ in range(3):
            run()
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        tflops = flops(**{k: v for k, v in sizes.items()}) / min(times) / 1e12
        record[name] = {"wall_s": summarise(times), "tflops": tflops}
    record["fraction_of_dense_rate"] = record["dropless"]["tflops"] / record["active"]["tflops"]
    return record


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 8,
    runs: Annotated[int, typer.Option(help="Runs a turn.")] = 4,
    gpu: Annotated[bool, typer.Option(help="Time Qwen3-30B-A3B's layer on a GPU.")] = False,
) -> None:
    """Time the layer; print tables, write a record."""
    console = Console()
    if gpu:
        record = on_gpu(runs=max(rounds * runs, 8))
        console.print(record)
        assert math.isfinite(record["fraction_of_dense_rate"])
        return write(out, record) if out is not None else None
    layers = timed(LAYERS, rounds, runs)
    growth = [grow(name, rounds, runs) for name in GROWTH]
    show(console, layers, growth)
    if out is not None:
        write(out, {"layers": layers, "growth": growth})
    return None


if __name__ == "__main__":
    typer.run(main)
