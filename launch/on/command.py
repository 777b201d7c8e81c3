"""`maktab launch` as the command line reads it: options first, then what is passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

GENERAL = ("experiment", "on", "dry_run", "each", "name", "max_restarts", "python", "with_")
# Options end at the experiment: what follows it is for `maktab train` or `maktab sweep`.
PASSES_ON = {"allow_extra_args": True, "allow_interspersed_args": False}
LOCAL, TPU, GKE, SLURM = "--on local", "--on tpu-vm", "--on gke", "--on slurm"
SEVERAL = "On several places"


def given(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    """Describe an option of a place; not given, it is the place's own default."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, show_default=False, **more)


Text: TypeAlias = str | None
Count: TypeAlias = int | None


def launch(
    context: typer.Context,
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.py", help="A file with get_config().")
    ],
    on: Annotated[str, typer.Option(metavar="PLACE", help="local, tpu-vm, gke or slurm.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and files; create nothing.")
    ] = False,
    each: Annotated[
        bool, typer.Option("--each", help="Every run of a sweep is a job of its own.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="What its name begins with.", show_default="FILE")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often it is started again when it was preempted.")
    ] = 10,
    python: Annotated[
        str | None,
        typer.Option(
            help="An interpreter on the workers that has the environment.",
            show_default="local, slurm: this one; tpu-vm, gke: a new one",
        ),
    ] = None,
    with_: Annotated[
        list[str], typer.Option("--with", metavar="PACKAGE", help="Pin this package as well.")
    ] = [],  # noqa: B006
    accelerator: Annotated[
        Text, given(SEVERAL, "tpu-vm: v5litepod-16; gke: tpu-v5-lite-podslice; slurm: h100.")
    ] = None,
    devices_per_node: Annotated[Count, given(SEVERAL, "gke, slurm: GPUs or chips.")] = None,
    nodes: Annotated[Count, given(SEVERAL, "gke, slurm: machines.")] = None,
    slices: Annotated[Count, given(SEVERAL, "tpu-vm, gke: TPU slices.")] = None,
    spot: Annotated[
        bool, given(SEVERAL, "tpu-vm, gke: cheaper, taken away at any time.", "--spot")
    ] = False,
    bucket: Annotated[Text, given(SEVERAL, "tpu-vm, gke: for code, runs and logs.")] = None,
    project: Annotated[Text, given(SEVERAL, "tpu-vm, gke by xpk.")] = None,
    zone: Annotated[Text, given(SEVERAL, "tpu-vm, gke by xpk: us-west4-a.")] = None,
    service_account: Annotated[Text, given(SEVERAL, "tpu-vm, gke: may use the bucket.")] = None,
    time_limit: Annotated[Text, given(SEVERAL, "gke, slurm: of one start, such as 12h.")] = None,
    processes: Annotated[Count, given(LOCAL, "How many.")] = None,
    port: Annotated[Count, given(LOCAL, "Where they meet.")] = None,
    runtime_version: Annotated[Text, given(TPU, "The image: v2-alpha-tpuv5-lite.")] = None,
    now: Annotated[bool, given(TPU, "Now or not at all, instead of the queue.", "--now")] = False,
    wait: Annotated[Text, given(TPU, "In the queue at most, such as 6h.")] = None,
    keep: Annotated[bool, given(TPU, "Do not delete it in the end.", "--keep")] = False,
    topology: Annotated[Text, given(GKE, "Of a slice: 4x4.")] = None,
    image: Annotated[Text, given(GKE, "The container.")] = None,
    namespace: Annotated[Text, given(GKE, "Of Kubernetes.")] = None,
    queue: Annotated[Text, given(GKE, "A LocalQueue of Kueue.")] = None,
    xpk: Annotated[Text, given(GKE, "Submit by xpk.", metavar="CLUSTER")] = None,
    partition: Annotated[Text, given(SLURM, "Where to queue.")] = None,
    account: Annotated[Text, given(SLURM, "Who pays.")] = None,
    tasks_per_node: Annotated[Count, given(SLURM, "Processes of a node without GPUs.")] = None,
    cpus: Annotated[Count, given(SLURM, "Of a task.")] = None,
    memory: Annotated[Text, given(SLURM, "Of a node: 200G.")] = None,
    sbatch: Annotated[
        list[str], given(SLURM, "Another option of sbatch: --sbatch=--exclusive.")
    ] = [],  # noqa: B006
) -> None:
    """Run an experiment elsewhere, and again when it was preempted.

    What follows EXPERIMENT.py goes to `maktab train`, or to `maktab sweep` after that word.
    """
    from launch.on.start import launch as start
    from launch.on.start import place_of, verb_of

    options = {name: value for name, value in context.params.items() if name not in GENERAL}
    place = place_of(on, {name: value for name, value in options.items() if is_given(value)})
    verb, words = verb_of(context.args)
    code = start(
        place,
        experiment,
        verb,
        words,
        parsed(context, verb, [str(experiment), *words]),
        name=name,
        packages=with_,
        interpreter=python,
        max_restarts=max_restarts,
        dry_run=dry_run,
        each=each,
        say=print,
    )
    if code:
        raise typer.Exit(code)


def is_given(value: Any) -> bool:
    """Whether an option is on the command line."""
    return value is not None and value is not False and value not in ([], ())


def parsed(context: typer.Context, verb: str, words: list[str]) -> dict[str, Any]:
    """Read words as `maktab VERB` will, so that a wrong one is an error before anything is made."""
    commands: Any = context.find_root().command
    return commands.commands[verb].make_context(f"maktab {verb}", words).params
