"""Time prefix-entropy scoring against transformers `generate` that keeps the entropy of each step.

    python -m benchmarks.score --out benchmarks/results/score-cpu.json

Ours is the estimator as the scorer runs it. Theirs computes the entropy in a logits processor while
it generates, so that it keeps one number a step, as we do; or keeps all logits (`output_logits`).
Both sides are timed at several batches first and race at their own best one. Batch 1 is how the
authors' released code scores; it is timed on a few prompts and extrapolated.
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

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 512, 128, 64
SINGLE_PROMPTS = 8  # timed one by one, extrapolated to PROMPTS
BATCHES = (8, 16, 32, 64, 128)
NEAR_NATS = 1e-4  # mean over 64 steps; a greedy path that jumps at a near tie differs by more


def build_ours(folder: Path, rows: int, prompts: int) -> Run:
    """Give maktab's prefix entropy, greedy and full-vocabulary."""
    import jax

    from research.curriculum.estimators.prefix_entropy import PrefixEntropy

    model, params = open_ours(folder)
    ids_BT = prompt_ids(PROMPTS, PROMPT_TOKENS)[:prompts]
    estimator = PrefixEntropy(prefix_tokens=NEW_TOKENS)
    key_B = jax.random.split(jax.random.key(0), rows)
    score = jax.jit(lambda params, batch: estimator.score(model, params, (batch,), key_B, ()))

    def run() -> np.ndarray:
        starts = range(0, prompts, rows)
        return np.concatenate(
            [score(params, prompt_batch(ids_BT[start : start + rows])) for start in starts]
        )

    return run


def build_theirs(folder: Path, rows: int, prompts: int, keep_logits: bool = False) -> Run:
    """Give the mean entropy along transformers' greedy path."""
    import torch

    model = open_theirs(folder)
    ids_BT = torch.from_numpy(prompt_ids(PROMPTS, PROMPT_TOKENS)[:prompts]).long()

    def entropy(logits_BV: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(logits_BV.float(), dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    @torch.inference_mode()
    def score(ids_BT: torch.Tensor) -> np.ndarray:
        kept: list[torch.Tensor] = []

        def watch(_: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
            kept.append(entropy(logits_BV))
            return logits_BV

        settings: dict[str, Any] = (
            {"output_logits": True, "return_dict_in_generate": True}
            if keep_logits
            else {"logits_processor": [watch]}
        )
        made = model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            **settings,
        )
        steps = [entropy(logits_BV) for logits_BV in made.logits] if keep_logits else kept
        return torch.stack(steps, dim=1).mean(dim=1).numpy()

    return lambda: np.concatenate(
        [score(ids_BT[start : start + rows]) for start in range(0, prompts, rows)]
    )


def best_batch(build: Any, folder: Path) -> tuple[int, dict[int, float]]:
    """Give the batch with the least CPU time a prompt, and that time for all of them, in ms."""
    builds = {str(rows): functools.partial(build, folder, rows, rows) for rows in BATCHES}
    seen = race(builds, rounds=1, runs=3)
    cost = {rows: min(seen[str(rows)]["wall_s"]) / rows * 1e3 for rows in BATCHES}
    return min(cost, key=lambda rows: cost[rows]), cost


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
) -> None:
    """Time 512 prompts of 128 tokens, 64 new tokens each; print a table, write a record."""
    with tempfile.TemporaryDirectory() as parent:
        folder = write_folder(Path(parent) / "model")
        ours, our_cost = best_batch(build_ours, folder)
        theirs, their_cost = best_batch(build_theirs, folder)
        names = {
            f"maktab, batch {ours}": (build_ours, ours, PROMPTS),
            f"transformers, batch {theirs}": (build_theirs, theirs, PROMPTS),
            f"transformers, batch {theirs}, output_logits": (
                functools.partial(build_theirs, keep_logits=True),
                theirs,
                PROMPTS,
            ),
            "transformers, batch 1": (build_theirs, 1, SINGLE_PROMPTS),
        }
        builds = {
            name: functools.partial(build, folder, rows, prompts)
            for name, (build, rows, prompts) in names.items()
        }
        seen = race(builds, rounds, runs=1)
    first = next(iter(seen))
    scores = seen[first]["result"]
    table = Table(title=f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new: seconds")
    for column in ("", "wall", "cpu", "prompts/s", "x slower (wall)", "(cpu)", "equal", "peak GB"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in seen.items():
        result = row.pop("result")
        row["prompts_timed"] = len(result)
        row["equal_scores_fraction"] = float(
            np.mean(np.abs(result - scores[: len(result)]) < NEAR_NATS)
        )
        for clock in ("wall_s", "cpu_s"):
            row[clock] = [seconds * PROMPTS / len(result) for seconds in row[clock]]
            row[f"{clock}_summary"] = summarise(row[clock])
            row[f"times_slower_by_{clock}"] = {
                k: row[f"{clock}_summary"][k] / seen[first][f"{clock}_summary"][k]
                for k in ("min", "q1", "median")
            }
        table.add_row(
            name,
            spread(row["wall_s_summary"]),
            spread(row["cpu_s_summary"]),
            f"{PROMPTS / row['wall_s_summary']['median']:,.1f}",
            f"{row['times_slower_by_wall_s']['median']:.2f}",
            f"{row['times_slower_by_cpu_s']['median']:.2f}",
            f"{row['equal_scores_fraction']:.3f}",
            f"{row['rss_peak_bytes'] / 1e9:.2f}",
        )
    Console(width=140).print(table)
    if out is not None:
        shape = {"prompts": PROMPTS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
        batches = {"maktab": our_cost, "transformers": their_cost}
        record = {"shape": shape, "wall_ms_a_prompt_by_batch": batches, "contestants": seen}
        write(out, record)


if __name__ == "__main__":
    typer.run(main)
