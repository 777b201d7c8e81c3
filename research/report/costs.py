"""What arms have cost: time, device time and FLOPs of all their runs, finished or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from research.report.document import MISSING, Table, amount, duration
from research.report.runs import Arm, Line, Run

# Laps of a cycle by what they were for; steps are with planning and laying out batches.
PARTS: Mapping[str, tuple[str, ...]] = {
    "training": ("plan_s", "steps_s"),
    "scoring": ("score_s",),
    "evaluating": ("evaluate_s",),
    "saving": ("save_s",),
}
# And those of scoring, which add up to it.
SCORING: Mapping[str, str] = {
    "prefill": "score_prefill_s",
    "decode": "score_decode_s",
    "re-shard": "score_reshard_s",
    "host": "score_host_s",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What runs have cost, as far as they recorded it.

    Attributes:
      wall_s: of their cycles, one run after the other.
      device_s: the same, times the devices that each cycle ran on.
      parts_s: device time by what it was for; it may not add up where laps were not recorded.
      scoring_s: of the time for scoring, what it was for, likewise.
      scored: rows.
      flops: analytic, of updates and scoring; evaluations are not counted.
    """

    runs: int
    wall_s: float
    device_s: float
    parts_s: Mapping[str, float]
    scoring_s: Mapping[str, float]
    scored: int
    flops: float


def cost(runs: Sequence[Run]) -> Cost:
    """Add up what runs have cost."""
    lines = [(line, _devices(run, line)) for run in runs for line in run.timing]
    return Cost(
        runs=len(runs),
        wall_s=sum(_number(line, "wall_s") for line, _ in lines),
        device_s=sum(_number(line, "wall_s") * devices for line, devices in lines),
        parts_s={
            part: sum(_number(line, lap) * devices for line, devices in lines for lap in laps)
            for part, laps in PARTS.items()
        },
        scoring_s={
            part: sum(_number(line, lap) * devices for line, devices in lines)
            for part, lap in SCORING.items()
        },
        scored=round(sum(_number(line, "scored_rows") for line, _ in lines)),
        flops=sum(sum(run.flops()) for run in runs),
    )


def table(arms: Sequence[Arm]) -> Table:
    """Tabulate what each arm has cost, and all of them together."""
    rows = _by_arm(arms)
    return Table(
        title="What each arm has cost: all its runs, also those that did not finish.",
        header=("arm", "runs", "time", "device time", *PARTS, "FLOP"),
        rows=tuple(
            (
                name,
                str(each.runs),
                duration(each.wall_s) if each.wall_s else MISSING,
                duration(each.device_s) if each.device_s else MISSING,
                *(_share(seconds, each.device_s) for seconds in each.parts_s.values()),
                amount(each.flops) if each.flops else MISSING,
            )
            for name, each in rows
        ),
        note="Device time: seconds of each cycle times its devices. Evaluating is in the time and "
        "not in the FLOP. Reading files before the first cycle, and cycles that a kill took back, "
        "are in neither.",
    )


def scoring(arms: Sequence[Arm]) -> list[Table]:
    """Tabulate what scoring the pool took, by what it was for; nothing where nobody scored."""
    rows = [(name, each) for name, each in _by_arm(arms) if each.scored]
    if not rows:
        return []
    table = Table(
        title="What scoring the pool took.",
        header=("arm", "rows", "device time", "a row", *SCORING),
        rows=tuple(
            (
                name,
                amount(each.scored),
                duration(each.parts_s["scoring"]),
                duration(each.parts_s["scoring"] / each.scored),
                *(_share(seconds, each.parts_s["scoring"]) for seconds in each.scoring_s.values()),
            )
            for name, each in rows
        ),
        note="Host: laying out, compiling, dispatching and selecting, while devices may be at work "
        "or not. The rest is what the host waited: for prompts to be read (prefill), for tokens to "
        "be generated (decode), for weights to be moved to the layout for scoring. Reading is "
        "measured once for each program of a run, decoding is what remains.",
    )
    return [table]


def _by_arm(arms: Sequence[Arm]) -> list[tuple[str, Cost]]:
    """Give the cost of each arm, and of several together."""
    rows = [(arm.name, cost(arm.runs)) for arm in arms]
    everything = cost([run for arm in arms for run in arm.runs])
    return rows + ([("all", everything)] if len(arms) > 1 else [])


def _share(seconds: float, of: float) -> str:
    return f"{100 * seconds / of:.0f} %" if seconds and of else MISSING


def _devices(run: Run, line: Line) -> int:
    """How many devices a cycle ran on; of records that do not say it, those the run began with."""
    known = len(run.starts[-1].get("devices", [])) if run.starts else 0
    return int(line.get("devices") or known or 1)


def _number(line: Line, name: str) -> float:
    value = line.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0
