"""The command line: each command reads its arguments, calls one function, and says what it did."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from launch.on.command import PASSES_ON
from launch.on.command import launch as launch_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune language models in JAX, with a curriculum that the model itself writes.",
)
console = Console()
errors = Console(stderr=True)

OURS = ("research.", "launch.", "configs.")
OUT_OF_MEMORY = (
    "use fewer or shorter rows at once (data.rows, data.row_tokens, --batch-rows), micro_batches, "
    "compute.remat=full or dtype bfloat16; `maktab show` says what a step needs"
)
RUN, LOOK, MODEL = "An experiment", "What a run did", "A model folder"
SEVERAL = "Several processes"

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT.py", help="A file with get_config().")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a setting: tuning.rank=64. May be repeated."
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="WORKDIR", help="A run directory.")]
ModelFolder = Annotated[
    str, typer.Argument(metavar="MODEL", help="A Hugging Face model folder, or a hub id.")
]
DataFile = Annotated[
    Path, typer.Argument(metavar="DATA", help="Rows of any kind: .jsonl, .jsonl.gz or .parquet.")
]
Adapter = Annotated[
    str | None, typer.Option(metavar="DIR", help="A PEFT adapter folder to put on the model.")
]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16, for weights and arithmetic.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Rows that run at once.")]
RowTokens = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens that a row may have.", show_default="the model's positions"),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="One of several processes that find one another: Slurm, TPU VM, GKE with TPUs.",
        rich_help_panel=SEVERAL,
    ),
]
Coordinator = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="Where process 0 listens; the same for all, with --processes and --process.",
        rich_help_panel=SEVERAL,
    ),
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="How many there are.", rich_help_panel=SEVERAL)
]
Process = Annotated[
    int | None, typer.Option(min=0, help="Which one this is, from 0.", rich_help_panel=SEVERAL)
]
JoinS = Annotated[
    float, typer.Option(help="Seconds to wait for the others.", rich_help_panel=SEVERAL)
]
PeerS = Annotated[
    float,
    typer.Option(help="Seconds of silence after which one is missing.", rich_help_panel=SEVERAL),
]
HangS = Annotated[
    float,
    typer.Option(
        help="Seconds without progress after which a run hangs; 0: never.", rich_help_panel=SEVERAL
    ),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut rows that are too long.")]


@app.command(rich_help_panel=RUN)
def train(
    experiment: ExperimentFile,
    workdir: Annotated[
        Path | None, typer.Option(help="The run directory.", show_default="runs/NAME/seed-N")
    ] = None,
    set_: Settings = [],  # noqa: B006
    profile: Annotated[
        str | None,
        typer.Option(metavar="FIRST:LAST", help="Steps to trace with xprof, into WORKDIR/profile."),
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = "",
    processes: Processes = None,
    process: Process = None,
    join_s: JoinS = 300.0,
    peer_s: PeerS = 60.0,
    hang_s: HangS = 1800.0,
) -> None:
    """Run an experiment, or go on with it where its work directory ends."""
    steps = _steps(profile)
    group = _join(distributed, coordinator, processes, process, join_s, peer_s, hang_s)
    from launch.experiment_file import load_config
    from launch.runs import default_workdir, run

    config = load_config(experiment, set_)
    folder = workdir or default_workdir(config)
    run(config, folder, console, command=sys.argv, profile=steps, group=group)
    _say(f"finished: {folder}")


@app.command(rich_help_panel=RUN)
def sweep(
    experiment: ExperimentFile,
    workdir: Annotated[
        Path | None, typer.Option(help="The folder of all runs.", show_default="runs/FILE")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="The file's function that yields runs, or returns a search.")
    ] = "sweep",
    set_: Settings = [],  # noqa: B006
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at a time; devices, or cores, are divided.")
    ] = 1,
    stacked: Annotated[
        int,
        typer.Option(
            min=0, help="LoRA runs in one program at most, over one base; 0: each has its own."
        ),
    ] = 0,
    only: Annotated[
        list[str], typer.Option(metavar="NAME/seed-N", help="This run alone. May be repeated.")
    ] = [],  # noqa: B006
    halving: Annotated[
        int, typer.Option(metavar="ETA", help="Keep 1/ETA of the arms at each rung.")
    ] = 0,
    rungs: Annotated[int, typer.Option(min=1, help="Of --halving: how often.")] = 2,
    metric: Annotated[
        str, typer.Option(metavar="EVALUATOR/METRIC", help="By which arms are compared.")
    ] = "",
    distributed: Distributed = False,
    coordinator: Coordinator = "",
    processes: Processes = None,
    process: Process = None,
    join_s: JoinS = 300.0,
    peer_s: PeerS = 60.0,
    hang_s: HangS = 1800.0,
) -> None:
    """Run every experiment of sweep(), or the trials of search().

    Finished runs are passed over, others resumed. Several commands on one folder share the work.
    """
    group = _join(distributed, coordinator, processes, process, join_s, peer_s, hang_s)
    from launch.experiment_file import load_sweep
    from launch.sweep import adapted, run_sweep
    from launch.sweep_crew import run_at_once
    from launch.sweep_stacked import run_stacked

    folder = workdir or Path("runs") / experiment.stem
    given = adapted(
        load_sweep(experiment, set_, generator),
        eta=halving,
        rungs=rungs,
        metric=metric,
        only=only,
    )
    if stacked and jobs > 1:
        raise ValueError(f"--stacked {stacked} is for one process; leave out --jobs {jobs}")
    if stacked:
        run_stacked(given, folder, console, most=stacked, command=sys.argv, group=group)
    elif jobs == 1:
        run_sweep(given, folder, console, command=sys.argv, group=group)
    elif group.count > 1:
        raise ValueError(f"--jobs {jobs} is for one process, not for one of {group.count}")
    else:
        run_at_once(
            given,
            folder,
            console,
            jobs=jobs,
            file=experiment,
            settings=set_,
            generator=generator,
            only=only,
            command=sys.argv,
            patience=group.patience,
        )
    _say(f"finished: {folder}; compare with: maktab report {folder}")


app.command("launch", rich_help_panel=RUN, context_settings=PASSES_ON)(launch_command)


@app.command(rich_help_panel=RUN)
def show(experiment: ExperimentFile, set_: Settings = []) -> None:  # noqa: B006
    """Show what an experiment is and costs, touching no accelerator.

    Its numbers, parameters, FLOPs and memory, its data, and one batch.
    """
    _on_cpu()
    from launch.experiment_file import load_config
    from launch.show import show as render

    render(load_config(experiment, set_), console)


@app.command(rich_help_panel=RUN)
def plan(
    experiment: ExperimentFile,
    topology: Annotated[
        str,
        typer.Option(
            help="v4, v5e, v5p, v6e, 7x: v5e:16x16, v5p-128, 2*v6e:16x16 (two slices); a100, h100, "
            "h200: h100:16; cpu:8."
        ),
    ],
    set_: Settings = [],  # noqa: B006
    program: Annotated[
        list[str],
        typer.Option(help="training, scoring or decoding. May be repeated.", show_default="all"),
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(metavar="OUT.json", help="Write it all.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try layouts, remat policies and batch sizes.")
    ] = False,
    try_layout: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Of --search: own, fsdp, 'fsdp in 2 groups', 'tensor 4', 'expert 8', ...",
            show_default="all that suit the model",
        ),
    ] = [],  # noqa: B006
    try_remat: Annotated[
        list[str], typer.Option(metavar="POLICY", help="Of --search.", show_default="all")
    ] = [],  # noqa: B006
    try_rows: Annotated[
        list[int], typer.Option(min=1, help="Of --search: rows a device runs at once.")
    ] = [1, 2, 4],  # noqa: B006
) -> None:
    """Say what a run would need on accelerators that are not here, and how long a step would take.

    Compiles the training, scoring and decoding steps ahead of time; reads no data and no weights.
    TPUs need the extra maktab[tpu], GPUs maktab[cuda13], neither the hardware.
    """
    _on_cpu()
    from launch.experiment_file import load_config
    from launch.plan import run, run_search
    from research.plan.plan import PROGRAMS

    config = load_config(experiment, set_)
    if search:
        run_search(config, topology, try_layout, try_remat, try_rows, out, console)
    elif not run(config, topology, program or PROGRAMS, out, console).fits:
        raise typer.Exit(3)


@app.command(rich_help_panel=RUN)
def power(
    items: Annotated[int, typer.Option(min=2, help="Yes/no items that both arms answer.")],
    rate: Annotated[float, typer.Option(help="The control's share of right answers.")] = 0.5,
    discordance: Annotated[
        float | None,
        typer.Option(help="Share of items on which exactly one is right: a paired comparison."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Of each arm.")] = None,
    seed_spread: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the difference between seeds, as a share.",
            show_default="several",
        ),
    ] = None,
    comparisons: Annotated[
        int, typer.Option(min=1, help="That are corrected together (Holm).")
    ] = 1,
    difference: Annotated[
        float | None, typer.Option(help="Also say how many items this difference needs.")
    ] = None,
) -> None:
    """Say how small a difference a study would see, before it is run."""
    from launch.power import power as tabulate

    table = tabulate(
        items,
        rate=rate,
        discordance=discordance,
        seeds=seeds,
        seed_spread=seed_spread,
        comparisons=comparisons,
        difference=difference,
    )
    console.print(table)


@app.command(rich_help_panel=LOOK)
def report(
    workdirs: Annotated[
        list[Path], typer.Argument(metavar="WORKDIR", help="Runs, or folders that hold runs.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and PNGs.", show_default="WORKDIR/report"),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="The arm to compare with.", show_default="the one begun first"),
    ] = None,
) -> None:
    """Compare arms: curves, the curriculum, and a table with intervals and paired tests."""
    from research.report.report import report as make

    console.print(make(workdirs, out or workdirs[0] / "report", control))


@app.command(rich_help_panel=LOOK)
def replay(
    workdir: RunFolder,
    step: Annotated[int, typer.Option(min=1, help="The update to look at, from 1.")],
) -> None:
    """Say which examples an update saw, row by row, with the scores they had."""
    from launch.replay import replay as look

    look(workdir, step, console)


@app.command(rich_help_panel=LOOK)
def export(
    workdir: RunFolder,
    to: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
    as_: Annotated[
        str, typer.Option("--as", help="merged (a whole model) or adapter (PEFT).")
    ] = "merged",
    step: Annotated[str, typer.Option(help="last, best, or the step of a checkpoint.")] = "last",
    best_by: Annotated[
        str | None,
        typer.Option(
            metavar="EVALUATOR/METRIC",
            help="WORKDIR holds several runs: take the one whose last evaluation is best.",
        ),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="Of --best-by; known of losses.")
    ] = False,
    experiment: Annotated[
        Path | None,
        typer.Option(metavar="FILE.py", help="Needed where the file defines parts of its own."),
    ] = None,
) -> None:
    """Write a run's model as a Hugging Face folder, or its adapter as a PEFT folder."""
    from launch.export import best_run
    from launch.export import export as run

    chosen = workdir if best_by is None else best_run(workdir, best_by, lower_is_better)
    run(chosen, to, as_, step, experiment, console)


@app.command(rich_help_panel=MODEL)
def score(
    model: ModelFolder,
    data: DataFile,
    out: Annotated[Path, typer.Option(help="JSONL, a row per example, in input order.")],
    estimator: Annotated[
        str,
        typer.Option(
            help="loss, entropy, prefix_entropy, edco_release, length, or as in Python: "
            "'PrefixEntropy(prefix_tokens=32)'."
        ),
    ] = "loss",
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change the estimator: prefix_tokens=32."
        ),
    ] = [],  # noqa: B006
    per_token: Annotated[
        bool, typer.Option("--per-token", help="Also the loss and entropy of every token.")
    ] = False,
    adapter: Adapter = None,
    truncate: Truncate = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    dtype: Dtype = "float32",
) -> None:
    """Score every row: num_tokens, num_scored and score_nats (the mean over scored targets)."""
    from launch.score import score as run

    count = run(
        model,
        data,
        out,
        estimator=estimator,
        settings=set_,
        adapter=adapter,
        per_token=per_token,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        seed=seed,
        dtype=dtype,
        console=console,
    )
    _say(f"written: {count} rows to {out}")


@app.command(rich_help_panel=MODEL)
def select(
    model: ModelFolder,
    data: DataFile,
    out: Annotated[
        Path, typer.Option(help="The chosen rows as they are; scores go to OUT.scores.jsonl.")
    ],
    estimator: Annotated[
        str,
        typer.Option(
            help="loss, entropy, prefix_entropy, edco_release, length, or as in Python: "
            "'PrefixEntropy(prefix_tokens=32)'."
        ),
    ],
    policy: Annotated[str, typer.Option(help="As in Python: 'TopFraction(fraction=0.25)'.")],
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change the estimator: prefix_tokens=32."
        ),
    ] = [],  # noqa: B006
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Rows that may be left out, if they are bad.")
    ] = 0.0,
    adapter: Adapter = None,
    truncate: Truncate = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    seed: Annotated[int, typer.Option(help="Of sampled answers and random choices.")] = 0,
    dtype: Dtype = "float32",
) -> None:
    """Choose rows of a file of any size by an estimator and a policy; goes on after a kill."""
    from launch.select import select as run

    chosen = run(
        model,
        data,
        out,
        estimator=estimator,
        settings=set_,
        policy=policy,
        adapter=adapter,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        max_bad_fraction=max_bad_fraction,
        seed=seed,
        dtype=dtype,
        console=console,
    )
    left_out = f" ({chosen.bad:,} could not be used)" * (chosen.bad > 0)
    _say(f"written: {chosen.rows:,} of {chosen.of:,} rows to {out}{left_out}")


@app.command(rich_help_panel=MODEL)
def generate(
    model: ModelFolder,
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Rows to continue, of any kind.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="One prompt, as plain text, instead of DATA.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the fewest tokens that make up p.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Stop at no token: always make --max-tokens.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSONL: id, output_ids and text.", show_default="print them")
    ] = None,
    adapter: Adapter = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Keep the end of prompts that are too long.")
    ] = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Continue a prompt, or every row of a file up to where its answer starts."""
    from launch.generate import generate as run
    from research.core.generation import Sampling

    run(
        model,
        data,
        prompt,
        out=out,
        sampling=Sampling(
            max_new_tokens=max_tokens,
            temperature=temperature or None,
            top_k=top_k,
            top_p=top_p,
        ),
        seed=seed,
        ignore_eos=ignore_eos,
        adapter=adapter,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )


@app.command(rich_help_panel=MODEL)
def evaluate(
    model: ModelFolder,
    data: DataFile,
    out: Annotated[
        Path, typer.Option(metavar="OUT.json", help="Metrics; rows go to OUT.rows.jsonl.")
    ],
    slices: Annotated[
        list[str],
        typer.Option("--slice", metavar="FIELD", help="Also by this field. May be repeated."),
    ] = [],  # noqa: B006
    pattern: Annotated[
        str, typer.Option(help="A regular expression: compare what it extracts of answers.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer.")] = 128,
    adapter: Adapter = None,
    truncate: Truncate = False,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Evaluate with every metric that the rows allow, each with its count and interval."""
    from launch.evaluate import evaluate as run

    beside = run(
        model,
        data,
        out,
        adapter=adapter,
        slices=tuple(slices),
        pattern=pattern,
        max_tokens=max_tokens,
        truncate=truncate,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )
    _say(f"written: {out}, and a row per example to {beside}")


@app.command(rich_help_panel=MODEL)
def harness(
    model: ModelFolder,
    tasks: Annotated[str, typer.Option(metavar="A,B", help="Task names or patterns.")],
    out: Annotated[Path, typer.Option(metavar="OUT.json", help="Results by task.")],
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with task YAML files.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of a task at most.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Worked examples.", show_default="each task's own")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the tokenizer's chat template.")
    ] = False,
    adapter: Adapter = None,
    row_tokens: RowTokens = None,
    batch_rows: BatchRows = 32,
    dtype: Dtype = "float32",
) -> None:
    """Run tasks of lm-evaluation-harness (an extra: pip install 'maktab\\[lm-eval]')."""
    from launch.harness import harness as run

    table = run(
        model,
        [task.strip() for task in tasks.split(",") if task.strip()],
        out,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        chat_template=chat_template,
        adapter=adapter,
        row_tokens=row_tokens,
        batch_rows=batch_rows,
        dtype=dtype,
        console=console,
    )
    console.print(table)
    _say(f"written: {out}")


@app.command(rich_help_panel=MODEL)
def upcycle(
    model: ModelFolder,
    experts: Annotated[int, typer.Option(min=2, help="Copies of each feed-forward.")],
    per_token: Annotated[int, typer.Option(min=1, help="Experts that a token takes.")],
    to: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
    router: Annotated[
        str, typer.Option(help="softmax, or sigmoid with the bias of loss-free balancing.")
    ] = "softmax",
    router_std: Annotated[
        float, typer.Option(min=0, help="Of the routers' normal draw; 0: indifferent routers.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the routers.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the weights.")] = "float32",
) -> None:
    """Write a dense model as a mixture of experts that starts as the same model."""
    from launch.upcycle import upcycle as run

    family = run(
        model,
        to,
        experts=experts,
        per_token=per_token,
        router=router,
        router_std=router_std,
        seed=seed,
        dtype=dtype,
        console=console,
    )
    _say(f"written: {to}, a {family} model")


def _say(text: str) -> None:
    """Print a line whole, whatever is in it and however wide the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _steps(text: str | None) -> tuple[int, int] | None:
    """Read FIRST:LAST."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {text!r}: expected FIRST:LAST, two steps from 1, such as 5:8")
    return int(first), int(last)


def _join(
    distributed: bool,
    coordinator: str,
    processes: int | None,
    process: int | None,
    join_s: float,
    peer_s: float,
    hang_s: float,
) -> Any:
    """Come together with the other processes of this command, before jax is imported."""
    from launch.processes import Meeting, join
    from research.train.watchdog import Patience

    meeting = Meeting(
        automatic=distributed,
        coordinator=coordinator,
        processes=processes,
        process=process,
        join_s=join_s,
        patience=Patience(peer_s=peer_s, hang_s=hang_s),
    )
    group = join(meeting, _say)
    console.quiet = not group.speaks
    return group


def _on_cpu() -> None:
    """Keep this process off accelerators."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """Run the command line; errors of input are one message and exit code 2."""
    from launch.processes import ended_at_once

    with ended_at_once():
        code = guarded(app)
        if code:
            raise SystemExit(code)


def guarded(command: Callable[[], Any]) -> int:
    """Call a command; say what is wrong in a message, and give the exit code.

    2 is an error of the input, 3 a run that stopped, 75 one that was preempted and is to be started
    again; everything else is a defect of the program and keeps its traceback.
    """
    try:
        command()
    except (ValueError, OSError) as error:
        return _complain("error", error, code=2)
    except RuntimeError as error:
        if type(error).__module__.startswith(OURS):
            return _complain("stopped", error, code=getattr(error, "exit_code", 3))
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _complain("stopped: out of memory", error, code=3)
        errors.print(OUT_OF_MEMORY, highlight=False)
        return 3
    return 0


def _complain(what: str, error: Exception, code: int) -> int:
    """Print an error as one message, and where it is from unless this project raised it itself."""
    errors.print(f"[bold red]{what}:[/] ", end="", highlight=False)
    errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    if not modules[-1].startswith(OURS):
        caller = max(x for x, name in enumerate(modules) if name.startswith(OURS))
        places = [f"{modules[x]}:{frames[x].f_lineno}" for x in (len(frames) - 1, caller)]
        where = f"({type(error).__name__}, raised at {places[0]}, called at {places[1]})"
        errors.print(where, markup=False, highlight=False, soft_wrap=True)
    return code
