"""The section of a report on routing: sentences, tables and plots, where runs have experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from research.evaluate.results import Estimate
from research.evaluate.routing import AGREEMENT
from research.evaluate.specialisation import PERMUTATIONS
from research.evaluate.statistics import LEVEL, mean_interval
from research.report import routing, routing_figures
from research.report.comparison import over_seeds
from research.report.document import Plot, Section, Table, estimate, number
from research.report.routing import Sliced
from research.report.runs import Arm

SEEDS = "Line: mean over seeds; band: lowest to highest seed."
Found = Mapping[str, Sequence[Sliced]]


def section(arms: Sequence[Arm], look: Mapping[str, dict]) -> Section:
    """Say, tabulate and draw what routers did; empty where no run has experts."""
    arms = routing.routed(arms)
    if not arms:
        return Section(heading="Routing")
    tables, plots = [load_table(arms)], _load_plots(arms, look)
    for evaluation in routing.drifts(arms):
        asked = routing.evaluated(arms, evaluation)
        plots += _drift_plots(asked, look, evaluation)
        for field in routing.fields(asked, evaluation):
            measured = {arm.name: routing.sliced(arm, evaluation, field) for arm in asked}
            found = {name: runs for name, runs in measured.items() if runs}
            tables.append(slice_table(found, evaluation, field))
            plots += _slice_plots(found, look, evaluation, field)
    return Section(
        heading="Routing",
        sentences=tuple(said for arm in arms if (said := _sentence(arm))),
        tables=tuple(tables),
        plots=tuple(plots),
        brief=True,
    )


def _sentence(arm: Arm) -> str:
    """Say where an arm's tokens go at the end."""
    if not arm.finished:
        return ""
    busiest, idle = (over_runs(arm, measure) for measure in (routing.busiest, routing.idle))
    said = (
        f"{arm.name}: in the last cycle the busiest expert of a layer takes "
        f"{number(busiest.value, 2)} times the mean load, and {idle.value:.0%} of the experts less "
        "than a tenth of it"
    )
    for evaluation in routing.drifts([arm]):
        found = over_seeds(arm, evaluation, AGREEMENT)
        if found is not None:
            said += (
                f"; on {evaluation} a token keeps {found.value:.1%} of the experts that the "
                "starting weights give it"
            )
    return said + "."


def over_runs(arm: Arm, measure: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Estimate, over an arm's finished runs, a number of each layer's last load, mean over
    layers."""
    return mean_interval([measure(routing.final_load(run)).mean() for run in arm.finished])


def _last(arm: Arm, name: str) -> Estimate:
    """Estimate the last value of what routers recorded, mean over layers."""
    return mean_interval([np.mean(routing.recorded(run, name)[1][-1]) for run in arm.finished])


def load_table(arms: Sequence[Arm]) -> Table:
    """Tabulate load, entropy, drops and drift at the end of each arm's runs."""
    drifts = routing.drifts(arms)
    body = [
        (
            arm.name,
            str(len(arm.finished)),
            *(
                estimate(over_runs(arm, measure))
                for measure in (routing.busiest, routing.variation, routing.idle)
            ),
            *(estimate(_last(arm, name)) for name in (routing.ENTROPY, routing.DROPPED)),
            *(estimate(over_seeds(arm, evaluation, AGREEMENT)) for evaluation in drifts),
        )
        for arm in arms
        if arm.finished
    ]
    return Table(
        title="What routers did in each run's last cycle, a mean over layers: mean over seeds with "
        "95 % intervals.",
        header=(
            "arm", "seeds", "busiest / mean", "variation", "idle", "entropy (nats)", "dropped",
            *(f"agreement, {evaluation}" for evaluation in drifts),
        ),
        rows=tuple(body),
        note="Load: assignments that each expert of a layer gets. Variation: its deviation over "
        "its mean. Idle: the share of experts with less than a tenth of the mean. Agreement: the "
        "share of the assignments that the starting weights make too, at the last evaluation.",
    )  # fmt: skip


def slice_table(found: Found, evaluation: str, field: str) -> Table:
    """Tabulate how far experts specialise by a field, before training and at the end."""

    def above(runs: Sequence[Sliced], when: str) -> Estimate:
        return mean_interval([getattr(own, when).above_chance_L.mean() for own in runs])

    def there(runs: Sequence[Sliced]) -> tuple[str, ...]:
        best = [(own.end.nats_L[own.place], own.end.chance_L[own.place]) for own in runs]
        nats, chance = np.mean(best, axis=0).tolist()
        low = sum(own.end.p < LEVEL for own in runs)
        layers = ", ".join(str(own.layer) for own in runs)
        return layers, number(nats), number(chance), f"{low} of {len(runs)}"

    body = (
        (name, estimate(above(runs, "start")), estimate(above(runs, "end")), *there(runs))
        for name, runs in found.items()
    )
    return Table(
        title=f"How far experts specialise by {field}, on {evaluation}: mutual information of "
        "slice and expert in nats.",
        header=(
            "arm", "before, above chance", "at the end, above chance", "most in layer",
            "there", "chance", "p < 0.05",
        ),
        rows=tuple(body),
        note="Above chance: less what the same slices give when they are dealt to the items at "
        f"random ({PERMUTATIONS} times), a mean over layers, with 95 % intervals over seeds. "
        "There, chance: in the layer of each seed that specialised most. p: how often chance takes "
        "any layer as far above its mean; counted over seeds.",
    )  # fmt: skip


def _load_plots(arms: Sequence[Arm], look: Mapping[str, dict]) -> list[Plot]:
    return [
        _plot(
            "routing-training",
            routing_figures.training(arms, look),
            "Routing while training, a mean over layers: the busiest expert's load over the mean "
            "(dotted: balance), the entropy of the router's distribution (dotted: uniform) and, "
            f"where anything was dropped, the share of assignments that were. {SEEDS}",
        ),
        _plot(
            "routing-load",
            routing_figures.load(arms),
            "Load of every layer's experts in the last cycle, over the mean load; experts sorted "
            "within each layer, mean over seeds. 1 is balance.",
        ),
    ]


def _drift_plots(arms: Sequence[Arm], look: Mapping[str, dict], evaluation: str) -> list[Plot]:
    return [
        _plot(
            f"routing-drift-{evaluation}",
            routing_figures.drift(arms, look, evaluation),
            f"Router drift on {evaluation}: the share of assignments that the starting weights "
            f"make too, over steps and, at the end, by layer. {SEEDS}",
        ),
        _plot(
            f"routing-drift-layers-{evaluation}",
            routing_figures.drift_maps(arms, evaluation),
            f"The same agreement on {evaluation} by layer and step, mean over seeds.",
        ),
    ]


def _slice_plots(found: Found, look: Mapping[str, dict], evaluation: str, field: str) -> list[Plot]:
    return [
        _plot(
            f"routing-slices-{evaluation}-{field}",
            routing_figures.specialisation(found, look),
            f"Specialisation by {field} on {evaluation}, at the end: mutual information of slice "
            "and expert in every layer; dotted: what slices dealt at random give, the mean of "
            f"{PERMUTATIONS}. {SEEDS}",
        ),
        _plot(
            f"routing-experts-{evaluation}-{field}",
            routing_figures.slices(found),
            f"Which experts the slices of {field} take, in the layer that specialised most, of "
            "each arm's first seed: a slice's share of assignments to an expert over the share "
            "of all tokens. 1: no difference.",
        ),
    ]


def _plot(name: str, png: bytes, caption: str) -> Plot:
    return Plot(name=re.sub(r"[^\w.-]+", "-", name), png=png, caption=caption)
