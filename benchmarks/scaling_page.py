"""Write the tables of docs/scale.md from the plans under results/plans/: the prose stays.

`python -m benchmarks.scaling_page` replaces what stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.scaling import RESULTS, STUDIES, Study
from launch.experiment_file import load_config
from launch.plan import seconds
from launch.show import human
from research.core.layout import Layout
from research.models.flops import forward_flops, kernel_parameters
from research.models.transformer import Transformer, parameter_count
from research.plan.chips import CHIPS
from research.plan.topologies import parse_topology
from research.train.budget import abstract_trees

PAGE = Path("docs/scale.md")
BF16, F32 = 2, 4  # bytes
Made = dict[str, Any]


def main() -> None:
    """Fill the page's tables in."""
    made = {s.name: json.loads(f.read_text()) for s in STUDIES if (f := file_of(s)).exists()}
    tables = {
        "summary": summary(made),
        "studies": "\n".join(details(study, made[study.name]) for study in group("studies", made)),
        "checks": checks(made),
        "refused": refused(made),
        "weak": weak(made),
        "slices": slices(made),
        "gpus": gpus(made),
        "search": searched(made),
    }
    text = PAGE.read_text()
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(text):
            raise ValueError(f"{PAGE} has no place for {name!r}: expected <!-- {name} -->")
        text = mark.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    PAGE.write_text(text)


def file_of(study: Study) -> Path:
    """Give where a study's plan is written."""
    return RESULTS / f"{study.name}.json"


def group(name: str, made: dict[str, Made], fits: bool = True) -> list[Study]:
    """List the studies of a group whose plan is there and fits, or was refused."""
    return [
        s for s in STUDIES if s.group == name and s.name in made and made[s.name]["fits"] == fits
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def peak(made: Made) -> float:
    """Give the most that any program needs."""
    return max(p["compiled"]["peak_bytes"] for p in made["programs"])


def chips_of(made: Made) -> int:
    """Count the chips of a plan's mesh."""
    count = 1
    for size in made["mesh"].values():
        count *= size
    return count


def summary(made: dict[str, Made]) -> str:
    """Give a line a study."""
    rows = []
    for study in group("studies", made):
        plan = made[study.name]
        training = plan["programs"][0]
        time = training["time"]
        rows.append(
            [
                study.title,
                " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()),
                f"{human(peak(plan))} of {human(plan['usable_bytes'])}",
                seconds(time["step_s"]) + " to " + seconds(time["serial_s"]),
                mfu(time),
                f"{training['tokens'] / time['step_s'] / chips_of(plan):,.0f}",
            ]
        )
    names = ("run", "mesh", "peak a chip", "step, overlapped to serial", "MFU", "tokens/s a chip")
    return table(names, rows)


def mfu(time: Made) -> str:
    """Give the model's share of the peak, if everything overlaps and if nothing does."""
    best = time["mfu"]
    return f"{best:.0%} to {best * time['step_s'] / time['serial_s']:.0%}"


def details(study: Study, plan: Made) -> str:
    """Give one study: memory, work and time of each program."""
    programs = plan["programs"]
    names = [p["compiled"]["name"] for p in programs]
    training = [name == "training" for name in names]

    def row(what: str, values: Iterable[str]) -> list[str]:
        return [what, *values]

    def of_training(value: float) -> list[str]:
        return [human(value) if yes else "" for yes in training]

    compiled, times = [p["compiled"] for p in programs], [p["time"] for p in programs]

    def timed(what: str, told: Callable[[Made], str]) -> list[str]:
        return row(what, [told(time) if time else "" for time in times])

    axes = list(dict.fromkeys(axis for p in programs for axis in p["sent_bytes"]))
    rows = [
        row("what is run", [p["shape"] for p in programs]),
        row("parameters", [human(plan["parameter_bytes"])] * len(programs)),
        row("optimiser state", of_training(plan["optimizer_bytes"])),
        row("temporaries", [human(c["temporary_bytes"]) for c in compiled]),
        row("of them gradients", of_training(plan["gradient_bytes"])),
        row("of them activations", [human(c["activation_bytes"]) for c in compiled]),
        row("**peak**", [f"**{human(c['peak_bytes'])}**" for c in compiled]),
        row(
            f"of the {human(plan['usable_bytes'])} a program may take",
            [f"{c['peak_bytes'] / plan['usable_bytes']:.0%}" for c in compiled],
        ),
        timed("FLOPs of the model, all chips", lambda t: f"{t['model_flops']:.2e}"),
        row(
            "FLOPs a chip, recomputed ones too",
            [f"{c['flops']:.2e}" if c["flops"] else "" for c in compiled],
        ),
        *(
            row(
                f"sent over {axis}",
                [human(p["sent_bytes"][axis]) if axis in p["sent_bytes"] else "" for p in programs],
            )
            for axis in axes
            if any(p["sent_bytes"].get(axis, 0.0) > 2**20 for p in programs)
        ),
        timed(
            f"FLOPs a byte of memory traffic (balance {times[0]['balance']:.0f})",
            lambda t: f"{t['intensity']:.0f}",
        ),
        timed("products", lambda t: seconds(t["compute_s"])),
        timed("memory", lambda t: seconds(t["memory_s"])),
        timed("network", lambda t: seconds(sum(t["network_s"].values()))),
        timed("estimate, all overlapped", lambda t: seconds(t["step_s"])),
        timed("serial, none overlapped", lambda t: seconds(t["serial_s"])),
        timed("MFU", mfu),
    ]
    kept = ", ".join(
        f"{t['what'].split('/')[-1]} `{t['shape']}` {human(t['nbytes'])}"
        for t in plan["largest_arguments"][:2]
    )
    shapes = {t["shape"]: t["nbytes"] for t in compiled[0]["largest"]}
    made = ", ".join(f"`{shape}` {human(size)}" for shape, size in list(shapes.items())[:2])
    words = f"Largest kept: {kept}. Largest made by a step: {made}."
    lines = [f"\n### {study.title}\n", f"    {study.command}\n", table(["one chip", *names], rows)]
    return "\n".join([*lines, "", words])


def model_of(study: Study) -> tuple[Any, Any, Any]:
    """Give a study's experiment, its architecture and the tree that the model is applied to."""
    settings = [b for a, b in zip(study.words, study.words[1:], strict=False) if a == "--set"]
    experiment = load_config(Path(study.file), settings)
    arch: Any = experiment.model
    place = Layout().on(jax.devices("cpu")[:1])
    joined, _ = abstract_trees(experiment, Transformer(arch, place, experiment.compute))
    return experiment, arch, joined


def checks(made: dict[str, Made]) -> str:
    """Compare what compilers made with what a table of parameters says."""
    rows = []
    for study in group("studies", made):
        plan = made[study.name]
        experiment, arch, joined = model_of(study)
        count, size = parameter_count(joined), BF16 if "LoRA" in study.title else F32
        share = plan["parameter_bytes"] * chips_of(plan) / (count * size)
        training = plan["programs"][0]
        run = training["compiled"]["flops"] * chips_of(plan)
        model = training["time"]["model_flops"]
        again = experiment.data.rows * float(
            forward_flops(arch, joined, experiment.data.row_tokens)
        )
        rows.append(
            [
                study.title,
                f"{count / 1e9:.2f}e9",
                f"{share:.3f}",
                f"{model:.3e}",
                f"{run / model:.3f}",
                f"{(model + again) / model:.3f}",
            ]
        )
    names = (
        "run",
        "parameters, adapters too",
        "bytes on all chips / bytes of the table",
        "model FLOPs",
        "executed / model",
        "(model + one more forward) / model",
    )
    return table(names, rows)


def refused(made: dict[str, Made]) -> str:
    """List what was tried and did not fit."""
    rows = []
    for study in STUDIES:
        plan = made.get(study.name)
        if isinstance(plan, dict) and not plan["fits"]:
            why = (
                plan.get("refused") or f"peak {human(peak(plan))} of {human(plan['usable_bytes'])}"
            )
            rows.append([study.title, f"`{study.command}`", why])
    return table(("what", "command", "why not"), rows) if rows else "Nothing so far."


def weak(made: dict[str, Made]) -> str:
    """Compare a chip's work as chips are added, at as many rows a chip."""
    studies = group("weak", made)
    first = made[studies[0].name] if studies else {}
    rows = []
    for study in studies:
        plan = made[study.name]
        compiled = plan["programs"][0]["compiled"]
        start = first["programs"][0]["compiled"]
        rest, base = compiled["peak_bytes"] - shards(plan), start["peak_bytes"] - shards(first)
        rows.append(
            [
                f"{plan['topology']} ({chips_of(plan)})",
                f"{compiled['flops']:.4e}",
                f"{compiled['flops'] / start['flops'] - 1:+.2%}",
                human(compiled["peak_bytes"]),
                human(shards(plan)),
                human(rest),
                f"{rest / base - 1:+.1%}",
                *compared(study, plan),
            ]
        )
    names = (
        "chips",
        "FLOPs a chip",
        "to 8 chips",
        "peak",
        "of it shards",
        "the rest",
        "to 8 chips",
    )
    others = [
        [f"{made[s.name]['topology']} ({chips_of(made[s.name])})", *compared(s, made[s.name])]
        for s in group("default", made)
    ]
    sent = ("sent", "to the formula", "to it with scatters")
    tables = table((*names, *sent), rows), table(("one row a chip, default", *sent), others)
    return "\n\n".join(tables)


def shards(plan: Made) -> float:
    """Give the bytes of parameters, moments and gradients on one chip."""
    return plan["parameter_bytes"] + plan["optimizer_bytes"] + plan["gradient_bytes"]


def compared(study: Study, plan: Made) -> list[str]:
    """Give what a chip sends in a step, and how far that is from the two formulas of the page."""
    sent = sum(plan["programs"][0]["sent_bytes"].values())
    formulas = [sent_by_fsdp(study, chips_of(plan), scattered) for scattered in (False, True)]
    return [human(sent), *(f"{sent / formula - 1:+.2%}" for formula in formulas)]


def sent_by_fsdp(study: Study, n: int, scattered: bool) -> float:
    """Give what a chip sends in a step, by the formula of the page.

    Kernels of the feed-forward F are gathered twice in bfloat16, those of attention A three times,
    embedding E and head H once. Gradients of layers are reduced once in bfloat16, those of E and H
    once in float32: by all-reduces, each twice its bytes; or, `scattered`, all but H's by
    reduce-scatters.
    """
    _, arch, joined = model_of(study)
    layers, head = kernel_parameters(arch, joined)
    forward = arch.num_layers * 3 * arch.model_dim * arch.ffw_dim
    embedding = arch.vocab_size * arch.model_dim
    gathered = BF16 * (2 * forward + 3 * (layers - forward) + embedding + head)
    reduced = (1 if scattered else 2) * (BF16 * layers + F32 * embedding) + 2 * F32 * head
    return (n - 1) / n * (gathered + reduced)


def slices(made: dict[str, Made]) -> str:
    """Say what crosses the slower network, and how long that takes beside the products."""
    rows = []
    for study in group("slices", made):
        plan = made[study.name]
        time, sent = plan["programs"][0]["time"], plan["programs"][0]["sent_bytes"]
        outer = CHIPS[parse_topology(study.topology).kind].outer_bytes_per_s or 0.0
        crossing = sum(v for axes, v in sent.items() if "replica" in axes)
        taken = sum(v for axes, v in time["network_s"].items() if "replica" in axes)
        near = sum(time["network_s"].values()) - taken
        products = time["compute_s"]
        rows.append(
            [
                study.title,
                human(crossing),
                f"{outer / 1e9:.2f} GB/s",
                seconds(taken),
                seconds(products),
                f"{taken / products:.0%}",
                seconds(near),
                mfu(time),
                f"{human(peak(plan))} of {human(plan['usable_bytes'])}",
            ]
        )
    names = (
        "run",
        "crosses, a chip and step",
        "network a chip",
        "takes",
        "products take",
        "ratio",
        "inside the slice",
        "MFU",
        "peak",
    )
    return table(names, rows) if rows else "To be planned: `python -m benchmarks.scaling`."


def gpus(made: dict[str, Made]) -> str:
    """Give a line for each plan of NVIDIA GPUs."""
    rows = []
    for study in STUDIES:
        plan = made.get(study.name)
        if study.group != "gpus" or plan is None or "programs" not in plan:
            continue
        training = plan["programs"][0]
        time = training["time"]
        rows.append(
            [
                study.title,
                f"{human(peak(plan))} of {human(plan['usable_bytes'])}",
                "yes" if plan["fits"] else "**no**",
                seconds(time["step_s"]) + " to " + seconds(time["serial_s"]),
                mfu(time),
                f"{training['tokens'] / time['step_s'] / chips_of(plan):,.0f}",
            ]
        )
    names = ("run", "peak a GPU", "fits", "step, overlapped to serial", "MFU", "tokens/s a GPU")
    return table(names, rows)


def searched(made: dict[str, Any]) -> str:
    """List the trials of the search, best first."""
    (study,) = (s for s in STUDIES if s.group == "search")
    rows = []
    for trial in made.get(study.name, ()):
        told = [trial["layout"], f"`{trial['remat']}`", str(trial["rows"])]
        if "step_s" in trial:
            times = f"{seconds(trial['step_s'])} to {seconds(trial['serial_s'])}"
            told += [human(trial["peak_bytes"]), "yes" if trial["fits"] else "no", times]
            told += [f"{trial['mfu']:.0%}", f"{trial['tokens_per_s']:,.0f}", trial["bound"]]
        else:
            told += ["", "no", "", "", "", trial["reason"]]
        rows.append(told)
    names = ("layout", "remat", "rows a device", "peak", "fits", "step", "MFU", "tokens/s", "bound")
    return f"    {study.command}\n\n{table(names, rows)}"


if __name__ == "__main__":
    main()
