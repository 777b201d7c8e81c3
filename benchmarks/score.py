"""Time scoring by prefix entropy: in batches, one by one, by whole answers, and by transformers.

    python -m benchmarks.score --out benchmarks/results/score-cpu.json

Ours is `ask_pool` as a round runs it. Theirs is `generate`, which computes the entropy in a
logits processor while it generates, so that it keeps one number a step, as we do; or keeps all
logits (`output_logits`). Both sides are timed at several batches first and race at their own best
one. One by one is how the authors' released code scores; it is timed on a few prompts and
extrapolated, and so are whole answers, of which the prefix is a part.
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

from benchmarks.reference import open_ours, open_theirs, prompt_ids, write_folder
from benchmarks.turns import Run, race, spread, summarise, write

PROMPT_TOKENS, PREFIX_TOKENS, ANSWER_TOKENS = 128, 64, 512
BATCHES = (8, 16, 32, 64, 128)
NEAR_NATS = 1e-4  # mean over 64 steps; a greedy path that jumps at a near tie differs by more


def views_of(ids_BT: np.ndarray) -> Any:
    """Show prompts of token ids to the scorer."""
    from research.data.examples import Example
    from research.score.views import Views

    untrained = np.zeros(ids_BT.shape[1], bool)
    examples = tuple(
        Example(id=str(x), tokens=tokens, trained=untrained, row={}, where="", group=0)
        for x, tokens in enumerate(ids_BT)
    )
    return Views(examples=(examples,), counts=np.full((1, len(ids_BT)), ids_BT.shape[1]))


def build_ours(folder: Path, rows: int, prompts: int, new_tokens: int = PREFIX_TOKENS) -> Run:
    """Give maktab's prefix entropy, greedy and full-vocabulary: (scores, what they took)."""
    import jax

    from research.curriculum.estimators.prefix_entropy import PrefixEntropy
    from research.score.pool import Gauge, ask_pool

    model, params = open_ours(folder)
    views = views_of(prompt_ids(prompts, PROMPT_TOKENS))
    ask = functools.partial(
        ask_pool,
        PrefixEntropy(prefix_tokens=new_tokens),
        model,
        params,
        views,
        range(prompts),
        round_=0,
        key=jax.random.key(0),
        place=model.place,
        rows_per_batch=rows,
        gauge=Gauge(),
    )
    ask().finish()  # compiles, and measures what reading takes

    def run() -> tuple[np.ndarray, dict[str, float]]:
        scored = ask().finish()
        cost = scored.cost
        parts = ("seconds", "prefill_s", "decode_s", "reshard_s", "host_s")
        return scored.score_N, {name: getattr(cost, name) for name in parts}

    return run


def build_theirs(folder: Path, rows: int, prompts: int, keep_logits: bool = False) -> Run:
    """Give the mean entropy along transformers' greedy path."""
    import torch

    model = open_theirs(folder)
    ids_BT = torch.from_numpy(prompt_ids(prompts, PROMPT_TOKENS)).long()

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
            min_new_tokens=PREFIX_TOKENS,
            max_new_tokens=PREFIX_TOKENS,
            pad_token_id=0,
            **settings,
        )
        steps = [entropy(logits_BV) for logits_BV in made.logits] if keep_logits else kept
        return torch.stack(steps, dim=1).mean(dim=1).numpy()

    def run() -> tuple[np.ndarray, None]:
        starts = range(0, prompts, rows)
        return np.concatenate([score(ids_BT[start : start + rows]) for start in starts]), None

    return run


def best_batch(build: Any, folder: Path) -> tuple[int, dict[int, float]]:
    """Give the batch with the least wall time a prompt, and that time for all of them, in ms."""
    builds = {str(rows): functools.partial(build, folder, rows, rows) for rows in BATCHES}
    seen = race(builds, rounds=1, runs=3)
    cost = {rows: min(seen[str(rows)]["wall_s"]) / rows * 1e3 for rows in BATCHES}
    return min(cost, key=lambda rows: cost[rows]), cost


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON record goes.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    prompts: Annotated[int, typer.Option(help="Of 128 tokens; for a prefix in batches.")] = 512,
    few: Annotated[int, typer.Option(help="Prompts one by one, or to their answers' ends.")] = 16,
) -> None:
    """Time 64 new tokens for each prompt of 128; print a table, write a record."""
    with tempfile.TemporaryDirectory() as parent:
        folder = write_folder(Path(parent) / "model")
        ours, our_cost = best_batch(build_ours, folder)
        theirs, their_cost = best_batch(build_theirs, folder)
        whole = functools.partial(build_ours, new_tokens=ANSWER_TOKENS)
        keeping = functools.partial(build_theirs, keep_logits=True)
        contestants = {
            f"maktab, batch {ours}": (build_ours, ours, prompts),
            "maktab, one by one": (build_ours, 1, few),
            f"maktab, batch {ours}, {ANSWER_TOKENS} tokens": (whole, ours, max(few, ours)),
            f"transformers, batch {theirs}": (build_theirs, theirs, prompts),
            f"transformers, batch {theirs}, output_logits": (keeping, theirs, prompts),
            "transformers, one by one": (build_theirs, 1, few),
        }
        builds = {
            name: functools.partial(build, folder, rows, count)
            for name, (build, rows, count) in contestants.items()
        }
        seen = race(builds, rounds, runs=1)
    Console(width=150).print(judged(seen, prompts))
    if out is not None:
        shape = {
            "prompts": prompts,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": PREFIX_TOKENS,
            "answer_tokens": ANSWER_TOKENS,
        }
        batches = {"maktab": our_cost, "transformers": their_cost}
        record = {"shape": shape, "wall_ms_a_prompt_by_batch": batches, "contestants": seen}
        write(out, record)


def judged(seen: dict[str, Any], prompts: int) -> Table:
    """Compare every contestant with the first; what it took is that of `prompts`."""
    first = next(iter(seen))
    scores = seen[first]["result"][0]
    table = Table(
        title=f"{prompts} prompts of {PROMPT_TOKENS} tokens, {PREFIX_TOKENS} new: seconds"
    )
    heads = (
        "",
        "wall",
        "cpu",
        "prompts/s",
        "x slower (wall)",
        "(cpu)",
        "equal",
        "prefill",
        "decode",
    )
    for column in (*heads, "host"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in seen.items():
        result, cost = row.pop("result")
        row["prompts_timed"], row["split"] = len(result), cost
        both = min(len(result), len(scores))
        near = np.abs(result[:both] - scores[:both]) < NEAR_NATS
        row["equal_scores_fraction"] = float(np.mean(near))
        for clock in ("wall_s", "cpu_s"):
            row[clock] = [seconds * prompts / len(result) for seconds in row[clock]]
            row[f"{clock}_summary"] = summarise(row[clock])
            row[f"times_slower_by_{clock}"] = {
                k: row[f"{clock}_summary"][k] / seen[first][f"{clock}_summary"][k]
                for k in ("min", "q1", "median")
            }
        parts = ("prefill_s", "decode_s", "host_s")
        table.add_row(
            name,
            spread(row["wall_s_summary"]),
            spread(row["cpu_s_summary"]),
            f"{prompts / row['wall_s_summary']['median']:,.1f}",
            f"{row['times_slower_by_wall_s']['median']:.2f}",
            f"{row['times_slower_by_cpu_s']['median']:.2f}",
            f"{row['equal_scores_fraction']:.3f}",
            *(f"{cost[part] / cost['seconds']:.0%}" if cost else "" for part in parts),
        )
    return table


if __name__ == "__main__":
    typer.run(main)
