"""Time greedy decoding against transformers `generate`, in turns, on this machine.

    python -m benchmarks.decode --out benchmarks/results/decode-cpu.json

Both sides read the same folder and the same prompts, and make the same number of tokens whatever
they are; the record says how many of the tokens are equal.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.reference import open_ours, open_theirs, prompt_batch, prompt_ids, write_folder
from benchmarks.turns import Run, race, spread, summarise, write

ROWS, PROMPT_TOKENS, NEW_TOKENS = 8, 128, 64
RIVALS = ("transformers", "transformers, one thread")  # ratios are to the faster one


def build_ours(folder: Path) -> Run:
    """Give maktab's `generate`, as every caller gets it."""
    import jax

    from research.core.generation import Sampling

    model, params = open_ours(folder)
    prompts = jax.device_put(prompt_batch(prompt_ids(ROWS, PROMPT_TOKENS)))
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    return lambda: np.asarray(model.generate(params, prompts, sampling, ()).tokens_BN)


def build_theirs(folder: Path, threads: int | None = None, static: bool = False) -> Run:
    """Give transformers' `generate`: dynamic cache, or static cache and torch.compile."""
    import torch

    model = open_theirs(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    ids = torch.from_numpy(prompt_ids(ROWS, PROMPT_TOKENS)).long()
    settings: dict[str, Any] = {"cache_implementation": "static"} if static else {}
    if static:
        model.forward = torch.compile(model.forward)

    @torch.inference_mode()
    def run() -> np.ndarray:
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            **settings,
        )
        return made[:, PROMPT_TOKENS:].numpy()

    return run


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 8,
    runs: Annotated[int, typer.Option(help="Runs a turn.")] = 3,
    torch_compile: Annotated[bool, typer.Option(help="Also static cache + torch.compile.")] = False,
) -> None:
    """Time 8 prompts of 128 tokens, 64 new tokens each; print a table, write a record."""
    with tempfile.TemporaryDirectory() as parent:
        folder = write_folder(Path(parent) / "model")
        builds = {
            "maktab": functools.partial(build_ours, folder),
            RIVALS[0]: functools.partial(build_theirs, folder),
            RIVALS[1]: functools.partial(build_theirs, folder, threads=1),
        }
        if torch_compile:
            builds["transformers, static + compile"] = functools.partial(
                build_theirs, folder, static=True
            )
        seen = race(builds, rounds, runs)
    tokens = seen["maktab"].pop("result")
    table = Table(title=f"{ROWS} x {PROMPT_TOKENS} prompt tokens, {NEW_TOKENS} new: seconds")
    for column in ("", "wall", "cpu", "new tokens/s", "x (wall)", "x (cpu)", "equal tokens"):
        table.add_column(column, justify="right" if column else "left")
    for row in seen.values():
        theirs = row.pop("result", tokens)
        row["equal_tokens_fraction"] = float(np.mean(theirs == tokens))
        for clock in ("wall_s", "cpu_s"):
            row[f"{clock}_summary"] = summarise(row[clock])
        row["new_tokens_per_s"] = ROWS * NEW_TOKENS / row["wall_s_summary"]["median"]
    for name, row in seen.items():
        for clock in ("wall_s", "cpu_s"):
            row[f"times_rival_by_{clock}"] = {
                k: min(seen[rival][f"{clock}_summary"][k] for rival in RIVALS)
                / row[f"{clock}_summary"][k]
                for k in ("min", "q1", "median")
            }
        table.add_row(
            name,
            spread(row["wall_s_summary"]),
            spread(row["cpu_s_summary"]),
            f"{row['new_tokens_per_s']:,.0f}",
            f"{row['times_rival_by_wall_s']['median']:.2f}",
            f"{row['times_rival_by_cpu_s']['median']:.2f}",
            f"{row['equal_tokens_fraction']:.3f}",
        )
    Console(width=120).print(table)
    if out is not None:
        shape = {"rows": ROWS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
        write(out, {"shape": shape, "contestants": seen})


if __name__ == "__main__":
    typer.run(main)
