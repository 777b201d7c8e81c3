"""`maktab harness`: a model folder under the tasks of lm-evaluation-harness, computed here in JAX.

The harness brings tasks, prompts and metrics; log-likelihoods and answers are this project's own,
so that it runs wherever a model runs, with adapters, and needs no torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from launch.generate import continued
from launch.opened import Opened, find
from launch.progress import bar
from launch.rows import require_out, write_json
from research.core.generation import Sampling
from research.core.layout import Placement
from research.core.protocols import Tree
from research.core.records import Batch
from research.core.vocabulary import token_statistics
from research.data.batches import single_batch
from research.data.examples import Example
from research.data.tokenizer import Tokenizer
from research.models.transformer import Transformer
from research.score.pool import SMALLEST_BUCKET, batches_of

MAX_NEW_TOKENS = 256  # the harness's own default, where a task says nothing
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KEPT = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")


def harness(
    model: str,
    tasks: Sequence[str],
    out: Path,
    *,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    chat_template: bool,
    adapter: str | None,
    row_tokens: int | None,
    batch_rows: int,
    dtype: str,
    console: Console,
) -> Table:
    """Run tasks, write their results to `out`, and give them as a table.

    Raises:
      ValueError: lm-evaluation-harness is not installed, knows no such task, or the model has no
        tokenizer or cannot be used.
    """
    try:
        evaluator: Any = importlib.import_module("lm_eval.evaluator")
        known: Any = importlib.import_module("lm_eval.tasks")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"lm-evaluation-harness cannot be imported ({error}); it is an extra: "
            "pip install 'maktab[lm-eval]'"
        ) from error
    require_out(out)
    found = find(model, adapter, dtype)
    if found.tokenizer is None:
        raise ValueError(f"{found.path} has no tokenizer; the harness asks in text")
    with console.status("looking for tasks"):
        manager = known.TaskManager(
            include_path=None if include_path is None else str(include_path)
        )
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        raise ValueError(
            f"--tasks: the harness has no {unknown}; `lm-eval ls tasks` lists its own, and "
            "--include-path names a folder with more"
        )
    answerer = language_model(
        found.load(console),
        found.tokenizer,
        most_tokens=row_tokens or found.model.arch.max_positions,
        batch_rows=batch_rows,
        console=console,
    )
    results: Any = evaluator.simple_evaluate(
        model=answerer,
        tasks=manager.match_tasks(list(tasks)),
        num_fewshot=num_fewshot,
        limit=limit,
        log_samples=False,
        apply_chat_template=chat_template,
        task_manager=manager,
    )
    named = {
        "model": model,
        "adapter": adapter,
        "limit": limit,
        "lm_eval": importlib.metadata.version("lm_eval"),
    }
    write_json(out, named | {key: results[key] for key in KEPT if key in results})
    return table_of(results["results"])


def table_of(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Show task, metric, value and standard error."""
    table = Table("task", "metric", "value", "standard error")
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric, _, filter_ = name.partition(",")
            if isinstance(value, (int, float)) and filter_ and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{filter_}")
                shown = f"{error:.4f}" if isinstance(error, (int, float)) else "-"
                table.add_row(task, name, f"{value:.4f}", shown)
    return table


def language_model(
    opened: Opened, tokenizer: Tokenizer, *, most_tokens: int, batch_rows: int, console: Console
) -> Any:
    """Give the harness's view of a model; its base class is the harness's, hence made here.

    Args:
      most_tokens: longer contexts lose their beginning.
    """
    base: Any = importlib.import_module("lm_eval.api.model").TemplateLM
    tools: Any = importlib.import_module("lm_eval.utils")

    class Answerer(base):
        tokenizer_name = tokenizer.path

        @property
        def eot_token_id(self) -> int:
            """What a text without context is conditioned on: BOS, else EOS."""
            first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            if first is None:
                raise ValueError(f"{tokenizer.path} has neither BOS nor EOS; texts cannot be begun")
            return first

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            ids = tokenizer.encode(string)
            adds = tokenizer.adds_bos and add_special_tokens is not False
            begun = ids[:1] == [tokenizer.bos_id]
            return [self.eot_token_id, *ids] if adds and not begun else ids

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], **_: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(context, rest) for _, context, rest in requests]
            return log_likelihoods(opened, pairs, most_tokens, batch_rows, console)

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            windows: list[tuple[Any, list[int], list[int]]] = []
            counts = []
            for request in requests:
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                made = tools.get_rolling_token_windows(ids, self.eot_token_id, most_tokens, 1)
                own = [(None, *tools.make_disjoint_window(window)) for window in made]
                windows += own
                counts.append(len(own))
            sums = iter(self._loglikelihood_tokens(windows))
            return [sum(next(sums)[0] for _ in range(count)) for count in counts]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            asked = [(self.tok_encode(text), settings) for text, settings in _args(requests)]
            return answers(opened, asked, most_tokens, batch_rows, console)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            ends = {"add_generation_prompt": add_generation_prompt}
            return tokenizer.render(chat_history, **ends)[0]

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return tokenizer.template if chat_template else None

    return Answerer()


def _args(requests: Sequence[Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [request.args for request in requests]


def log_likelihoods(
    opened: Opened,
    requests: Sequence[Request],
    most_tokens: int,
    batch_rows: int,
    console: Console,
) -> list[tuple[float, bool]]:
    """Give, for each pair, log p(what follows | context) in nats, and whether greedy says it."""
    examples = []
    for number, (context, rest) in enumerate(requests):
        tokens = np.asarray([*context, *rest][-most_tokens - 1 :], np.int32)
        trained = np.arange(len(tokens)) >= max(len(tokens) - len(rest), 1)
        examples.append(
            Example(id=str(number), tokens=tokens, trained=trained, row={}, where="a task")
        )
    lengths = np.asarray([len(example.tokens) for example in examples])
    rows = opened.place.divisible(batch_rows)
    found: list[tuple[float, bool]] = [(0.0, True)] * len(examples)
    done = 0
    with bar(console, "log-likelihoods", "requests") as advance:
        for ids, bucket in batches_of(lengths, np.arange(len(examples)), rows, None):
            batch = single_batch([examples[x] for x in ids], ids.tolist(), rows, bucket)
            batch = jax.device_put(batch, opened.place.batch(batch))
            sum_B, greedy_B = jax.device_get(
                _log_likelihood(opened.model, opened.place, opened.params, batch)
            )
            for b, x in enumerate(ids):
                found[x] = float(sum_B[b]), bool(greedy_B[b])
            done += len(ids)
            advance(done, len(examples))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(
    model: Transformer, place: Placement, params: Tree, batch: Batch
) -> tuple[Array, Array]:
    output = model.apply(params, batch)
    logprob_BT, _ = token_statistics(output, batch.targets_BT)
    # A few positions' logits at a time: all of them, of a large vocabulary, do not fit.
    num_rows, length, width = output.hidden_BTD.shape
    chunks = output.hidden_BTD.reshape(num_rows, -1, SMALLEST_BUCKET, width).swapaxes(0, 1)
    likeliest = jax.lax.map(lambda hidden: jnp.argmax(output.project(hidden), axis=-1), chunks)
    likeliest_BT = likeliest.swapaxes(0, 1).reshape(num_rows, length)
    asked_BT = batch.weights_BT > 0
    sum_B = jnp.sum(jnp.where(asked_BT, logprob_BT, 0.0), axis=1)
    greedy_B = jnp.all((likeliest_BT == batch.targets_BT) | ~asked_BT, axis=1)
    everywhere = functools.partial(jax.lax.with_sharding_constraint, shardings=place.replicated)
    return everywhere(sum_B), everywhere(greedy_B)


def answers(
    opened: Opened,
    requests: Sequence[tuple[list[int], Mapping[str, Any]]],
    most_tokens: int,
    batch_rows: int,
    console: Console,
) -> list[str]:
    """Continue each context by its task's settings, up to the first of its stop texts.

    A stop text is looked for when an answer is whole: only stop tokens end it early.

    Raises:
      ValueError: a task asks for more new tokens than the model has positions.
    """
    groups: dict[Sampling, list[int]] = {}
    for x, (_, settings) in enumerate(requests):
        groups.setdefault(sampling_of(settings), []).append(x)
    texts = [""] * len(requests)
    with bar(console, "answers", "answers") as advance:
        for sampling, members in groups.items():
            room = most_tokens - sampling.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"a task asks for {sampling.max_new_tokens} new tokens, and the model has "
                    f"{most_tokens} positions in all; raise --row-tokens"
                )
            prompts = [_prompt(x, requests[x][0][-room:]) for x in members]
            stops = opened.stop_ids
            made = continued(opened, prompts, sampling, stops, 0, batch_rows, advance)
            for x, row in zip(members, made, strict=True):
                texts[x] = until(row["text"], requests[x][1].get("until"))
    return texts


def _prompt(number: int, tokens: list[int]) -> Example:
    ids = np.asarray(tokens, np.int32)
    trained = np.zeros(len(ids), bool)
    return Example(id=str(number), tokens=ids, trained=trained, row={}, where="a task")


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """Read a task's `generation_kwargs`; without `do_sample` the answer is greedy."""
    length = next((settings[name] for name in LENGTHS if settings.get(name)), MAX_NEW_TOKENS)
    if not settings.get("do_sample", bool(settings.get("temperature"))):
        return Sampling(max_new_tokens=int(length))
    return Sampling(
        max_new_tokens=int(length),
        temperature=float(settings.get("temperature") or 1.0),
        top_k=settings.get("top_k") or None,
        top_p=settings.get("top_p"),
    )


def until(text: str, stops: str | Sequence[str] | None) -> str:
    """Cut a text before the first of some stop texts."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop)[0] if stop else text
    return text
