"""The command line: each command reads its arguments, calls one function, and says what it did."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models in JAX, with a curriculum that the model itself writes.",
)
console = Console()
errors = Console(stderr=True)

ExperimentFile = Annotated[Path, typer.Argument(help="A Python file with get_config().")]
Settings = Annotated[
    list[str], typer.Option("--set", help="path=value, such as tuning.rank=64; may be repeated.")
]
ModelFolder = Annotated[str, typer.Argument(help="A Hugging Face model folder, or a hub id.")]
DataFile = Annotated[Path, typer.Argument(help="JSONL (.gz) or Parquet rows of any kind.")]
Adapter = Annotated[str | None, typer.Option(help="A PEFT adapter folder.")]
Dtype = Annotated[str, typer.Option(help="Compute dtype: float32 or bfloat16.")]
BatchRows = Annotated[int, typer.Option(help="Rows that run at once.")]
RowTokens = Annotated[
    int | None, typer.Option(help="Tokens a row may have; the model's own limit by default.")
]


@app.command()
def train(
    experiment: ExperimentFile,
    workdir: Annotated[Path | None, typer.Option(help="Default: runs/NAME/seed-N.")] = None,
    set_: Settings = [],  # noqa: B006
    profile: Annotated[str | None, typer.Option(help="FIRST:LAST steps to trace (xprof).")] = None,
) -> None:
    """Run one experiment, or go on with it where its work directory ends."""
    from launch.experiment_file import load_config
    from launch.runs import default_workdir, run

    config = load_config(experiment, set_)
    folder = workdir or default_workdir(config)
    run(config, folder, console, command=sys.argv, profile=_steps(profile))
    console.print(f"finished: {folder}")


@app.command()
def sweep(
    experiment: ExperimentFile,
    workdir: Annotated[Path | None, typer.Option(help="Default: runs/FILE.")] = None,
    generator: Annotated[str, typer.Option(help="The file's function that yields runs.")] = "sweep",
    set_: Settings = [],  # noqa: B006
) -> None:
    """Run every experiment of sweep(): finished ones are passed over, others are resumed."""
    from launch.experiment_file import load_sweep
    from launch.runs import run_sweep

    folder = workdir or Path("runs") / experiment.stem
    run_sweep(load_sweep(experiment, set_, generator), folder, console, command=sys.argv)
    console.print(f"finished: {folder}; compare with: maktab report {folder}")


@app.command()
def report(
    workdirs: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and PNGs.")] = None,
    control: Annotated[str | None, typer.Option(help="The arm others are compared with.")] = None,
) -> None:
    """Compare arms: curves, the curriculum, and a table with intervals and paired tests."""
    from research.report.report import report as make

    console.print(make(workdirs, out or workdirs[0] / "report", control))


@app.command()
def show(experiment: ExperimentFile, set_: Settings = []) -> None:  # noqa: B006
    """Resolve an experiment without an accelerator: numbers, parameters, memory, one batch."""
    from launch.experiment_file import load_config
    from launch.show import show as render

    _on_cpu()
    render(load_config(experiment, set_), console)


@app.command()
def replay(
    workdir: Annotated[Path, typer.Argument(help="A run directory.")],
    step: Annotated[int, typer.Option(help="The update to look at, from 1.")],
) -> None:
    """Say which examples an update saw, row by row, with the scores they had."""
    from launch.replay import replay as look

    look(workdir, step, console)


@app.command()
def score(
    model: ModelFolder,
    data: DataFile,
    out: Annotated[Path, typer.Option(help="JSONL, a row an example, in input order.")],
    estimator: Annotated[
        str, typer.Option(help="loss, entropy, prefix_entropy, edco_release or length.")
    ] = "loss",
    adapter: Adapter = None,
    per_token: Annotated[bool, typer.Option(help="Also loss and entropy of every token.")] = False,
    truncate: Annotated[bool, typer.Option(help="Cut rows that are too long.")] = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Score every example of a file: num_tokens, num_scored and score_nats."""
    from launch.models import score as run

    count = run(
        model,
        data,
        out,
        estimator=estimator,
        adapter=adapter,
        per_token=per_token,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )
    console.print(f"written: {count} rows to {out}")


@app.command()
def generate(
    model: ModelFolder,
    data: Annotated[Path | None, typer.Argument(help="Rows to continue.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, as plain text.")] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the most likely p.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled paths.")] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Always make --max-tokens tokens.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSONL: output_ids and text.")] = None,
    adapter: Adapter = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long.")] = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Continue a prompt, or every row of a file; output_ids are the new tokens, stop included."""
    from launch.models import generate as run

    run(
        model,
        data,
        prompt,
        out=out,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        ignore_eos=ignore_eos,
        adapter=adapter,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )


@app.command()
def evaluate(
    model: ModelFolder,
    data: DataFile,
    out: Annotated[Path, typer.Option(help="JSON; a row per example is written beside it.")],
    adapter: Adapter = None,
    slices: Annotated[list[str], typer.Option("--slice", help="Row fields to split by.")] = [],  # noqa: B006
    truncate: Annotated[bool, typer.Option(help="Cut rows that are too long.")] = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Evaluate on a file with the metrics its rows allow, each with count and interval."""
    from launch.models import evaluate as run

    run(
        model,
        data,
        out,
        adapter=adapter,
        slices=tuple(slices),
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )
    console.print(f"written: {out}")


@app.command()
def export(
    workdir: Annotated[Path, typer.Argument(help="A run directory; a sweep's with --best-by.")],
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    as_: Annotated[str, typer.Option("--as", help="merged or adapter.")] = "merged",
    step: Annotated[str, typer.Option(help="last, best, or the step of a checkpoint.")] = "last",
    best_by: Annotated[
        str | None, typer.Option(help="evaluator/metric that chooses the run of a sweep.")
    ] = None,
    lower_is_better: Annotated[bool, typer.Option(help="The direction of --best-by.")] = False,
) -> None:
    """Write a run's model as a Hugging Face folder, or its adapter as a PEFT folder."""
    from launch.export import best_run
    from launch.export import export as run

    chosen = workdir if best_by is None else best_run(workdir, best_by, lower_is_better)
    run(chosen, to, as_, step, console)


def _steps(text: str | None) -> tuple[int, int] | None:
    """Read FIRST:LAST."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {text!r}: expected FIRST:LAST, two steps from 1, such as 5:8")
    return int(first), int(last)


def _on_cpu() -> None:
    """Keep this process off accelerators."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """Run the command line; errors of input are one message and exit code 2."""
    code = guarded(app)
    if code:
        raise SystemExit(code)


def guarded(command: Callable[[], Any]) -> int:
    """Call a command; say what is wrong where the input is, and give the exit code."""
    try:
        command()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        errors.print(f"[bold red]error:[/] {type(error).__name__}", highlight=False)
        errors.print(str(error), markup=False, highlight=False)
        return 2
    except RuntimeError as error:
        if type(error).__module__.startswith("research."):
            errors.print(f"[bold red]stopped:[/] {type(error).__name__}", highlight=False)
            errors.print(str(error), markup=False, highlight=False)
            return 3
        raise
    return 0
