"""Print what a run would take on devices that are not here, or which settings fit them best."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from configs import layouts
from launch.show import human
from research.core.layout import Layout
from research.core.parts import describe
from research.experiment import Experiment
from research.models.architecture import Architecture
from research.models.compute import REMAT_POLICIES
from research.plan.chips import Chip
from research.plan.collectives import bytes_by_axis
from research.plan.compiled import DoesNotFit
from research.plan.plan import PROGRAMS, Plan, Planned, plan
from research.plan.roofline import ASSUMPTIONS
from research.plan.search import Trial, search
from research.plan.topologies import Topology, parse_topology
from research.train.prepare import resolve_model

SMALL = 1e-4  # of a program's traffic: collectives that send less are not listed
NAMED = 8  # collectives that are listed
ADVICE = (
    "try --search, more micro_batches, compute.remat=full, a vocabulary_chunk, fewer scoring_rows, "
    "or more chips"
)
# libtpu looks for the machine it is on, and says at length that there is none. jax's CUDA plugin
# asks for libraries that a run needs and a compiler does not.
ABSENT = {
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def run(
    experiment: Experiment,
    topology: str,
    programs: Sequence[str],
    out: Path | None,
    console: Console,
) -> Plan:
    """Plan an experiment for a topology and print it; with `out`, write it as JSON too.

    Raises:
      DoesNotFit: the compiler refused it.
      ValueError: a name is unknown, or the layout does not fit.
    """
    unknown = sorted(set(programs) - set(PROGRAMS))
    if unknown:
        raise ValueError(f"--program {unknown}: expected some of {list(PROGRAMS)}")
    asked = opened(topology)

    def watch(planned: Planned) -> None:
        one = planned.compiled
        console.print(
            f"{one.name}: compiled in {one.compile_s:.0f} s, peak {human(planned.peak_bytes)}"
        )

    try:
        with console.status(f"compiling for {asked}"):
            made = plan(experiment, asked, programs, watch)
    except DoesNotFit as error:
        refused = {"topology": str(asked), "experiment": described(experiment), "fits": False}
        write_json(out, refused | {"refused": str(error)})
        raise DoesNotFit(f"{experiment.name} on {asked}: {error}; {ADVICE}") from error
    console.print(f"{experiment.name} on {asked}, mesh {dict(made.mesh)}", highlight=False)
    for part in (memory_table(made), time_table(made), network_table(made), tensor_table(made)):
        console.print(part)
    for line in (*made.notes, *assumptions(made)):
        console.print(f"- {line}", highlight=False, markup=False)
    verdict(made, console)
    write_json(out, as_json(made))
    return made


def write_json(out: Path | None, value: Any) -> None:
    """Write JSON where a file is asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(value, indent=1) + "\n")


def described(experiment: Experiment) -> Any:
    """Give an experiment as JSON values."""
    return json.loads(json.dumps(describe(experiment), default=str))


def run_search(
    experiment: Experiment,
    topology: str,
    names: Sequence[str],
    policies: Sequence[str],
    rows: Sequence[int],
    out: Path | None,
    console: Console,
) -> list[Trial]:
    """Try settings and print what fits, best first; with `out`, write it as JSON too.

    Raises:
      ValueError: a layout or policy has no such name.
    """
    asked = opened(topology)
    _, arch = resolve_model(experiment.model)
    there = layouts_for(arch, len(asked.devices())) | {"own": experiment.layout}
    wrong = [name for name in names if name not in there]
    wrong += [name for name in policies if name not in REMAT_POLICIES]
    if wrong:
        raise ValueError(
            f"{wrong}: layouts are {', '.join(there)}; policies are {', '.join(REMAT_POLICIES)}"
        )
    chosen = {name: there[name] for name in names or [n for n in there if n != "own"]}
    done = 0

    def watch(trial: Trial, count: int) -> None:
        nonlocal done
        done += 1
        line = f"{done} of {count}: {trial.layout}, {trial.remat}, {trial.rows} rows: "
        console.print(line + outcome(trial), highlight=False, markup=False, soft_wrap=True)

    trials = search(experiment, asked, chosen, policies or list(REMAT_POLICIES), rows, watch)
    console.print(search_table(trials, asked))
    write_json(out, [trial_as_json(trial) for trial in trials])
    return trials


def opened(text: str) -> Topology:
    """Read a topology and make jax ready to compile for it; before jax is used for anything."""
    topology = parse_topology(text)
    if topology.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.shape[0])
    for name, value in ABSENT.items():
        os.environ.setdefault(name, value)
    return topology


def layouts_for(arch: Architecture, devices: int) -> dict[str, Layout]:
    """Name the layouts that are worth trying: weights over all devices or a half of them, heads
    over neighbours, experts over their own axis."""
    found = {"fsdp": layouts.fsdp()}
    if devices > 2:
        found["fsdp in 2 groups"] = layouts.fsdp(data=2)
    for tensor in (2, 4, 8):
        if arch.num_kv_heads % tensor == 0 and devices % tensor == 0 and devices > tensor:
            found[f"tensor {tensor}"] = layouts.fsdp_tensor(tensor)
    experts = 0 if arch.moe is None else arch.moe.num_experts
    for shards in (4, 8, 16, 32, 64):
        if experts and experts % shards == 0 and devices % shards == 0:
            found[f"expert {shards}"] = layouts.expert(shards)
    return found


def memory_table(made: Plan) -> Table:
    """Say what lies in a device's memory, for each program."""
    table = Table("one device", *(p.compiled.name for p in made.programs), title="memory")
    each = [p.compiled for p in made.programs]
    training = [c.name == "training" for c in each]

    def row(what: str, values: list[str]) -> None:
        table.add_row(what, *values)

    moments, gradients = human(made.optimizer_bytes), human(made.gradient_bytes)
    row("parameters", [human(p.parameter_bytes) for p in made.programs])
    row("optimiser state", [moments if yes else "-" for yes in training])
    beside = [human(p.beside_bytes) for p in made.programs]
    row(
        "kept beside, of training",
        ["-" if yes else b for yes, b in zip(training, beside, strict=True)],
    )
    row("temporaries", [human(c.temporary_bytes) for c in each])
    row("  of them gradients", [gradients if yes else "-" for yes in training])
    row("  of them activations", [human(c.activation_bytes) for c in each])
    row("peak", [human(p.peak_bytes) for p in made.programs])
    if made.usable_bytes:
        row("a program may take", [human(made.usable_bytes)] * len(each))
        shares = [p.peak_bytes / made.usable_bytes for p in made.programs]
        row("peak of it", [f"{share:.0%}" for share in shares])
    return table


def time_table(made: Plan) -> Table:
    """Say what a run of each program costs, and the roofline's estimate of its time."""
    table = Table("one run", *(p.compiled.name for p in made.programs), title="work and time")
    for what, values in time_rows(made):
        table.add_row(what, *values)
    return table


def time_rows(made: Plan) -> list[tuple[str, list[str]]]:
    """Give the lines of the time table."""
    programs = made.programs
    rows = [
        ("what is run", [p.shape for p in programs]),
        ("FLOPs a device, recomputed ones too", [f"{p.compiled.flops:.3e}" for p in programs]),
        ("bytes to and from memory", [human(p.compiled.traffic_bytes) for p in programs]),
        ("bytes sent", [human(sum(_sent(p).values())) for p in programs]),
        ("compiling took", [f"{p.compiled.compile_s:.0f} s" for p in programs]),
    ]
    timed = [p.time for p in programs if p.time is not None]
    if not timed:
        return rows
    return [
        *rows[:1],
        ("FLOPs of the model, all devices", [f"{t.model_flops:.3e}" for t in timed]),
        *rows[1:],
        (
            f"FLOPs a byte (balance {timed[0].balance:.0f})",
            [f"{t.intensity:.0f}" for t in timed],
        ),
        ("products", [seconds(t.compute_s) for t in timed]),
        ("memory", [seconds(t.memory_s) for t in timed]),
        ("network", [seconds(sum(t.network_s.values())) for t in timed]),
        ("estimate, all overlapped", [f"{seconds(t.step_s)} ({t.bound})" for t in timed]),
        ("serial, none overlapped", [seconds(t.serial_s) for t in timed]),
        (
            "MFU, estimate to serial",
            [f"{t.mfu(t.step_s):.0%} to {t.mfu(t.serial_s):.0%}" for t in timed],
        ),
        (
            "tokens a second, estimate",
            [f"{p.tokens / t.step_s:,.0f}" for p, t in zip(programs, timed, strict=True)],
        ),
    ]


def network_table(made: Plan) -> Table:
    """Say what a device sends over each mesh axis, and which collectives send the most."""
    table = Table(
        "program", "axes", "collective", "times", "sent", "seconds", "of", title="network"
    )
    for planned in made.programs:
        totals = _sent(planned)
        for axes, nbytes in totals.items():
            time = None if planned.time is None else planned.time.network_s.get(axes)
            table.add_row(
                planned.compiled.name,
                " x ".join(axes),
                "all",
                "",
                human(nbytes),
                "" if time is None else seconds(time),
                "",
                style="bold",
            )
        least = SMALL * sum(totals.values())
        for one in planned.compiled.collectives[:NAMED]:
            if one.step_bytes > least:
                table.add_row(
                    "",
                    " x ".join(one.axes),
                    one.kind,
                    f"{one.runs:g}",
                    human(one.step_bytes),
                    "",
                    f"{one.shape} {short(one.source)}",
                )
    return table


def tensor_table(made: Plan) -> Table:
    """List the largest arrays on one device: those that a run keeps, and those a step makes."""
    table = Table("where", "bytes", "shape", "what", title="largest tensors, one device")
    for tensor in made.largest_arguments[:NAMED]:
        table.add_row("kept", human(tensor.nbytes), tensor.shape, tensor.what)
    for planned in made.programs:
        for tensor in planned.compiled.largest[:NAMED]:
            name = planned.compiled.name
            table.add_row(name, human(tensor.nbytes), tensor.shape, short(tensor.what))
    return table


def search_table(trials: Sequence[Trial], topology: Topology) -> Table:
    """List trials, the best first."""
    title = f"what fits {topology}, best first"
    names = ("layout", "remat", "rows a device", "peak", "step", "serial", "MFU", "tokens/s", "")
    table = Table(*names, title=title)
    for trial in trials:
        made = trial.plan
        cells = [trial.layout, trial.remat, str(trial.rows)]
        if made is None:
            table.add_row(*cells, "", "", "", "", "", trial.reason[:120], style="dim")
            continue
        time = made.programs[0].time
        cells.append(human(made.peak_bytes))
        if time is not None:
            cells += [seconds(time.step_s), seconds(time.serial_s), f"{time.mfu(time.step_s):.0%}"]
            cells += [f"{trial.tokens_per_s:,.0f}", f"bound by {time.bound}"]
        table.add_row(*cells, style=None if made.fits else "dim")
    return table


def outcome(trial: Trial) -> str:
    """Say how a trial ended, in some words."""
    if trial.plan is None:
        return trial.reason
    fits = "fits" if trial.plan.fits else "does not fit"
    rate = f", {trial.tokens_per_s:,.0f} tokens/s" if trial.tokens_per_s else ""
    return f"{fits}, peak {human(trial.plan.peak_bytes)}{rate}"


def assumptions(made: Plan) -> tuple[str, ...]:
    """Say what the numbers rest on."""
    chip: Chip | None = made.topology.chip
    unknown = [name for p in made.programs for name in p.compiled.unknown_loops]
    once = (f"loops of unknown length, counted once: {', '.join(unknown)}",) if unknown else ()
    if chip is None:
        return ("the speed of this machine's CPU is not known: no times are estimated", *once)
    dtype = made.experiment.compute.dtype
    outer = chip.outer_bytes_per_s
    numbers = (
        f"{chip.name}: {chip.peak_flops_per_s[dtype] / 1e12:.0f} TFLOP/s {dtype}, "
        f"{chip.memory_bytes_per_s / 1e9:,.0f} GB/s memory, {chip.link_bytes_per_s / 1e9:.0f} GB/s "
        f"a link and direction, "
        + (f"{outer / 1e9:.1f} GB/s a device to other slices or nodes" if outer else "")
        + f" ({'; '.join(sorted(set(chip.sources.values())))})"
    )
    return (*ASSUMPTIONS, numbers, *once)


def verdict(made: Plan, console: Console) -> None:
    """Say in one line whether it fits."""
    peak = human(made.peak_bytes)
    if made.usable_bytes is None:
        console.print(f"peak {peak} a device")
    elif made.fits:
        console.print(f"[green]fits[/]: peak {peak} of {human(made.usable_bytes)} a device")
    else:
        console.print(
            f"[red]does not fit[/]: peak {peak}, a program may take "
            f"{human(made.usable_bytes)}; {ADVICE}"
        )


def as_json(made: Plan) -> dict[str, Any]:
    """Give a plan as JSON values."""
    told = dataclasses.asdict(
        dataclasses.replace(made, experiment=None, topology=None)  # pyright: ignore
    )
    for planned, one in zip(made.programs, told["programs"], strict=True):
        one["peak_bytes"] = planned.peak_bytes
        one["sent_bytes"] = _named(_sent(planned))
        for collective in one["compiled"]["collectives"]:
            collective["group"] = len(collective["group"])
        if planned.time is not None:
            one["time"]["network_s"] = _named(planned.time.network_s)
            one["time"] |= {"step_s": planned.time.step_s, "serial_s": planned.time.serial_s}
            one["time"]["mfu"] = planned.time.mfu(planned.time.step_s)
    return told | {
        "topology": str(made.topology),
        "experiment": described(made.experiment),
        "fits": made.fits,
    }


def trial_as_json(trial: Trial) -> dict[str, Any]:
    """Give a trial of a search as JSON values, without its whole plan."""
    told: dict[str, Any] = {"layout": trial.layout, "remat": trial.remat, "rows": trial.rows}
    if trial.plan is None:
        return told | {"fits": False, "reason": trial.reason}
    time = trial.plan.programs[0].time
    told |= {"fits": trial.plan.fits, "peak_bytes": trial.plan.peak_bytes}
    if time is None:
        return told
    return told | {
        "step_s": time.step_s,
        "serial_s": time.serial_s,
        "mfu": time.mfu(time.step_s),
        "tokens_per_s": trial.tokens_per_s,
        "bound": time.bound,
    }


def seconds(value: float) -> str:
    """Write a time with the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def short(source: str, width: int = 60) -> str:
    """Give the end of a long origin."""
    return source if len(source) <= width else f"...{source[3 - width :]}"


def _sent(planned: Planned) -> dict[tuple[str, ...], float]:
    return bytes_by_axis(planned.compiled.collectives)


def _named(by_axes: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    return {" x ".join(axes): value for axes, value in by_axes.items()}
