"""Try batch sizes, remat policies and layouts on some devices, and say what fits, best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from research.core.layout import Layout
from research.core.parts import vary
from research.experiment import Experiment
from research.plan.compiled import DoesNotFit
from research.plan.plan import Plan, plan
from research.plan.topologies import Topology

Watch = Callable[["Trial", int], None]  # (what was tried, how many there are)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of settings.

    Attributes:
      layout, remat, rows: its name, its policy, and the rows that a device runs at once.
      plan: what it takes; None where it was refused or not tried.
      reason: why there is no plan.
    """

    layout: str
    remat: str
    rows: int
    plan: Plan | None = None
    reason: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second over all devices by the roofline; 0 where nothing is known."""
        if self.plan is None or self.plan.programs[0].time is None:
            return 0.0
        return self.plan.programs[0].tokens / self.plan.programs[0].time.step_s

    @property
    def rank(self) -> tuple[bool, float, float]:
        """What trials are sorted by: fits, fast, then small; ascending is better."""
        fits = self.plan is not None and self.plan.fits
        peak = float("inf") if self.plan is None else self.plan.peak_bytes
        return not fits, -round(self.tokens_per_s), peak


def search(
    experiment: Experiment,
    topology: Topology,
    layouts: Mapping[str, Layout],
    policies: Sequence[str],
    rows: Sequence[int],
    watch: Watch,
) -> list[Trial]:
    """Plan the training step of every combination; what fits comes first, the fastest before.

    Rows of a batch are `rows` for every device that rows are split over, in one micro-batch. A
    combination is not tried where fewer rows did not fit.

    Args:
      layouts: by a name to show.
      watch: told each trial when it is over.
    """
    trials: list[Trial] = []
    count = len(layouts) * len(policies) * len(rows)
    for name, layout in layouts.items():
        for policy in policies:
            for trial in _grow(experiment, topology, name, layout, policy, sorted(rows)):
                trials.append(trial)
                watch(trial, count)
    return sorted(trials, key=lambda trial: trial.rank)


def _grow(
    experiment: Experiment,
    topology: Topology,
    name: str,
    layout: Layout,
    policy: str,
    rows: Sequence[int],
) -> Iterator[Trial]:
    """Try more and more rows until they no longer fit."""
    reason = ""
    for each in rows:
        trial = Trial(layout=name, remat=policy, rows=each, reason=reason)
        if reason:
            yield trial
            continue
        try:
            shards = layout.on(topology.devices()).num_row_shards
            varied = vary(
                experiment,
                {
                    "layout": layout,
                    "compute.remat": policy,
                    "data.rows": each * shards,
                    "micro_batches": 1,
                },
            )
            made = plan(varied, topology, ("training",))
        except DoesNotFit as error:
            reason = f"not tried: {each} rows did not fit"
            yield dataclasses.replace(trial, reason=str(error))
        except ValueError as error:
            reason = str(error)
            yield dataclasses.replace(trial, reason=reason)
        else:
            reason = "" if made.fits else f"not tried: {each} rows did not fit"
            yield dataclasses.replace(trial, plan=made)
