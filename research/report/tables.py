"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.evaluate.power import detectable_difference, detectable_paired_difference
from research.report.comparison import Standing, evaluations_of, over_seeds
from research.report.document import (
    MISSING,
    Table,
    amount,
    duration,
    estimate,
    interval,
    listed,
    number,
    p_value,
    signed,
)
from research.report.runs import Arm, Run


def standings(rows: Sequence[Standing], control: str) -> Table:
    """Tabulate one evaluation's tested metric: every arm, and its difference to the control."""
    first = rows[0]
    body = tuple(
        (
            row.arm,
            str(row.seeds),
            estimate(row.estimate),
            *(
                (
                    f"{signed(row.difference.value)} "
                    f"{interval(row.difference.low, row.difference.high)}",
                    p_value(row.difference.p),
                    p_value(row.corrected),
                    number(row.smallest_visible),
                )
                if row.difference
                else ("control" if row.arm == control else "no seed shared", *[MISSING] * 3)
            ),
        )
        for row in rows
    )
    return Table(
        title=f"{first.metric} on {first.evaluation} ({first.items} items), at each run's last "
        f"evaluation: mean over seeds and paired difference to {control}, with 95 % intervals.",
        header=("arm", "seeds", "mean", "difference", "p", "p, Holm", "detectable"),
        rows=body,
        note="One seed: the interval is over items and leaves out the luck of the seed. "
        "Detectable: the smallest true difference that would have shown with 80 % power.",
    )


def side_by_side(
    rows: Sequence[Standing], methods: Sequence[tuple[Arm | None, Arm | None]], control: str
) -> Table:
    """Tabulate one evaluation's tested metric at equal steps beside equal compute."""
    by_arm, first = {row.arm: row for row in rows}, rows[0]

    def cells(arm: Arm | None) -> tuple[str, str]:
        row = None if arm is None else by_arm.get(arm.name)
        if row is None or row.difference is None:
            return ("control" if row and row.arm == control else MISSING), MISSING
        found = row.difference
        return f"{signed(found.value)} {interval(found.low, found.high)}", p_value(row.corrected)

    def steps(arm: Arm | None) -> str:
        return listed(
            [str(n) for n in sorted({run.last_step for run in arm.finished})] if arm else []
        )

    body = tuple(
        (next(arm.name for arm in pair if arm), *cells(pair[0]), *cells(pair[1]), steps(pair[1]))
        for pair in methods
        if any(arm and arm.name in by_arm for arm in pair)
    )
    return Table(
        title=f"{first.metric} on {first.evaluation}, difference of each method to {control}: with "
        "as many steps, and with as much compute.",
        header=(
            "method", "at equal steps", "p, Holm", "at equal compute", "p, Holm", "its steps",
        ),
        rows=body,
        note="Equal compute: scoring is paid for with steps; a method that is charged none stands "
        "on both sides with the same runs.",
    )  # fmt: skip


def what_shows(rows: Sequence[Standing], control: str) -> Table:
    """Tabulate how small a difference of yes/no items would have shown, by how it is sought."""
    rates = {row.evaluation: row.estimate.value for row in rows if row.arm == control}
    body = tuple(
        (
            row.arm,
            f"{row.metric} on {row.evaluation}",
            str(row.items),
            number(detectable_difference(min(max(rates[row.evaluation], 0.0), 1.0), row.items)),
            f"{row.disagreement:.0%}",
            number(detectable_paired_difference(row.disagreement, row.items)),
            number(row.difference.detectable) if row.difference.seeds > 1 else MISSING,
        )
        for row in rows
        if row.disagreement is not None and row.difference is not None
    )
    return Table(
        title=f"The smallest true difference to {control} that would have shown with 80 % power.",
        header=("arm", "metric", "items", "unpaired", "disagree", "paired", "over seeds"),
        rows=body,
        note="Unpaired: of two models on as many items, at the control's rate. Disagree: items on "
        "which exactly one of the two is right. Paired: of these two models, by McNemar's test. "
        "Over seeds: of the methods, from the spread that was found. Before a run: maktab power.",
    )


def item_by_item(rows: Sequence[Standing], control: str) -> Table:
    """Tabulate what the items alone say of these trained models."""
    body = tuple(
        (
            row.arm,
            f"{row.metric} on {row.evaluation}",
            f"{signed(row.bootstrap.value)} {interval(row.bootstrap.low, row.bootstrap.high)}",
            p_value(row.bootstrap.p),
            f"{row.discordance.only_first} : {row.discordance.only_second}"
            if row.discordance
            else MISSING,
            p_value(row.discordance.p if row.discordance else None),
        )
        for row in rows
        if row.bootstrap
    )
    return Table(
        title=f"The same differences to {control} item by item: paired bootstrap over items of the "
        "differences averaged over seeds, and McNemar's exact test where items are yes or no.",
        header=("arm", "metric", "difference", "p", "right alone", "p, McNemar"),
        rows=body,
        note="This is about these trained models only: another seed could turn it. No correction "
        "for several comparisons.",
    )


def all_metrics(arms: Sequence[Arm]) -> list[Table]:
    """Tabulate every metric and slice of every evaluation, mean over seeds."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    asked = evaluations_of(arms)
    for line in (line for arm in arms for run in arm.finished for line in run.evaluations):
        if line["name"] not in asked:
            continue
        rows = found.setdefault(line["name"], {})
        rows |= {("", metric): None for metric in line["metrics"]}
        for slice_, metrics in line.get("slices", {}).items():
            rows |= {(slice_, metric): None for metric in list(metrics)[:1]}
    return [
        Table(
            title=f"Everything measured on {evaluation}: mean over seeds with 95 % intervals.",
            header=("metric", *(arm.name for arm in arms)),
            rows=tuple(
                (
                    f"{metric}, {slice_}" if slice_ else metric,
                    *(estimate(over_seeds(arm, evaluation, metric, slice_)) for arm in arms),
                )
                for slice_, metric in rows
            ),
        )
        for evaluation, rows in found.items()
        if len(rows) > 1
    ]


def budgets(arms: Sequence[Arm]) -> Table:
    """Tabulate what each arm was given: steps, examples, tokens, compute and time, a run's mean."""

    def mean(arm: Arm, name: str) -> float | None:
        values = [v for run in arm.finished if (v := run.total(name)) is not None]
        return float(np.mean(values)) if values else None

    body = []
    for arm in arms:
        updates, scoring = np.mean([run.flops() for run in arm.finished] or [(0, 0)], axis=0)
        flops = updates + scoring
        steps = sorted({run.last_step for run in arm.finished})
        distinct = [d for run in arm.finished if (d := distinct_examples(run))]
        body.append(
            (
                arm.name,
                listed([str(step) for step in steps]) or MISSING,
                amount(mean(arm, "examples")),
                amount(float(np.mean(distinct)) if distinct else None),
                amount(mean(arm, "tokens")),
                amount(flops) if flops else MISSING,
                f"{100 * scoring / flops:.0f} %" if flops else MISSING,
                duration(mean(arm, "wall_s")),
            )
        )
    return Table(
        title="What each arm was given, a run's mean over finished seeds.",
        header=(
            "arm", "steps", "examples", "distinct", "tokens", "FLOP", "scoring", "time",
        ),
        rows=tuple(body),
        note="Examples count every use, distinct each once; tokens are those trained on. FLOP is "
        "analytic and includes scoring, unless it was measured for the record alone; time is wall "
        "time, with scoring, saving and evaluating.",
    )  # fmt: skip


def distinct_examples(run: Run) -> int:
    """Count the pool examples that a run trained on at least once."""
    return len({example for line in run.order for row in line["rows"] for example in row})


def runs(arms: Sequence[Arm]) -> Table:
    """Tabulate the runs themselves and how far each came."""
    body = tuple(
        (
            arm.name,
            str(run.seed),
            f"{run.last_step} of {run.planned_steps or 'unknown'}",
            _state(run),
            str(len(run.starts)),
            _commit(run),
            _devices(run),
        )
        for arm in arms
        for run in arm.runs
    )
    return Table(
        title="Run directories.",
        header=("arm", "seed", "steps", "state", "starts", "commit", "devices"),
        rows=body,
    )


def _state(run: Run) -> str:
    """Say whether a run came to its end, and if it was left behind, where."""
    if run.finished or not run.hopeless:
        return "finished" if run.finished else "unfinished"
    return f"hopeless, rung {run.hopeless['rung']} of {run.hopeless['rungs']}"


def _commit(run: Run) -> str:
    """Give the commit of the last start, with + where the code had changes."""
    code = (run.starts[-1].get("git") or {}) if run.starts else {}
    return code["commit"][:10] + "+" * bool(code.get("diff")) if code.get("commit") else MISSING


def _devices(run: Run) -> str:
    devices = run.starts[-1].get("devices", []) if run.starts else []
    return f"{len(devices)} x {devices[0]}" if len(devices) > 1 else "".join(devices) or MISSING
