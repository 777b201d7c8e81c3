"""The plots of routing: load, entropy and drops over steps, drift, and experts by slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from research.report import routing
from research.report.drawing import (
    INK,
    SMALL,
    canvas,
    encoded,
    entitle,
    explain_below,
    over_runs,
    shade,
)
from research.report.routing import Sliced
from research.report.runs import Arm, Run

Look = Mapping[str, dict]
MOST_SLICES = 16  # rows of a heat map that can still be read


def training(arms: Sequence[Arm], look: Look) -> bytes:
    """Draw, over steps, the busiest expert, the router's entropy and what was dropped.

    Each is a mean over layers; line: mean over seeds, band from the lowest to the highest seed.
    """
    panels = {
        "busiest expert / mean": _busiest,
        "router entropy (nats)": lambda run: _layer_mean(run, routing.ENTROPY),
    }
    drops = {arm.name: [_layer_mean(run, routing.DROPPED) for run in arm.runs] for arm in arms}
    if any(np.any(values > 0) for found in drops.values() for _, values in found):
        panels["dropped (share)"] = lambda run: _layer_mean(run, routing.DROPPED)
    figure, axes = canvas(len(panels), width=7.0, height=2.7)
    for panel, (label, series) in zip(axes, panels.items(), strict=True):
        for arm in arms:
            steps, values = over_runs(arm.runs, series)
            _curve(panel, arm, look[arm.name], steps, values)
        panel.set(xlabel="step (updates)", ylabel=label)
    axes[0].axhline(1.0, color=INK, lw=0.7, ls=":")
    for count in {_num_experts(arm) for arm in arms}:
        axes[1].axhline(math.log(count), color=INK, lw=0.7, ls=":")
    explain_below(figure, axes[0])
    return encoded(figure)


def _busiest(run: Run) -> tuple[np.ndarray, np.ndarray]:
    steps, load_SLE = routing.recorded(run, routing.LOAD)
    return steps, routing.busiest(load_SLE).mean(axis=-1)


def _layer_mean(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values_SL = routing.recorded(run, name)
    return steps, values_SL.mean(axis=-1)


def _num_experts(arm: Arm) -> int:
    return routing.final_load(arm.runs[0]).shape[-1]


def _curve(axes: Axes, arm: Arm, look: dict, x: np.ndarray, values: np.ndarray) -> None:
    """Draw the mean over runs, and the band between the lowest and the highest of them."""
    axes.plot(x, np.nanmean(values, axis=0), lw=1.4, label=arm.name, **look)
    shade(axes, x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), look)


def load(arms: Sequence[Arm]) -> bytes:
    """Draw the load of every layer's experts in the last cycle, from the busiest on.

    Experts are sorted within their layer, so that seeds whose experts bear other numbers average.
    """
    maps = {
        arm.name: np.mean(
            [-np.sort(-routing.final_load(run) * _num_experts(arm), axis=-1) for run in arm.runs],
            axis=0,
        )
        for arm in arms
    }
    layers = {arm.name: _names(routing.layers_of(arm.runs[0])) for arm in arms}
    return heat_maps(
        maps,
        rows=layers,
        xlabel="expert, by load",
        ylabel="layer",
        scale="load / mean load",
    )


def drift(arms: Sequence[Arm], look: Look, evaluation: str) -> bytes:
    """Draw agreement with the starting weights: over steps, and layer by layer at the end."""
    figure, (over, layers) = canvas(2, width=7.0, height=2.7)
    for arm in arms:
        steps, values = over_runs(arm.runs, lambda run: _agreement(run, evaluation))
        _curve(over, arm, look[arm.name], steps, values)
        last = np.asarray([routing.drift(run, evaluation)[1][-1] for run in arm.runs])
        _curve(layers, arm, look[arm.name], np.asarray(routing.layers_of(arm.runs[0])), last)
    over.set(xlabel="step (updates)", ylabel="agreement with the start (share)")
    layers.set(xlabel="layer", ylabel="agreement at the end (share)")
    layers.xaxis.set_major_locator(MaxNLocator(integer=True))
    explain_below(figure, over)
    return encoded(figure)


def _agreement(run: Run, evaluation: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values_SL = routing.drift(run, evaluation)
    return steps, values_SL.mean(axis=-1)


def drift_maps(arms: Sequence[Arm], evaluation: str) -> bytes:
    """Draw agreement with the starting weights by layer and step, a mean over seeds."""
    maps, steps = {}, {}
    for arm in arms:
        found = [routing.drift(run, evaluation) for run in arm.runs]
        length = min(len(own) for own, _ in found)
        maps[arm.name] = np.mean([values[:length] for _, values in found], axis=0).T
        steps[arm.name] = _names(found[0][0][:length])
    return heat_maps(
        maps,
        rows={arm.name: _names(routing.layers_of(arm.runs[0])) for arm in arms},
        columns=steps,
        xlabel="step (updates)",
        ylabel="layer",
        scale="agreement (share)",
        centred=False,
    )


def specialisation(found: Mapping[str, Sequence[Sliced]], look: Look) -> bytes:
    """Draw the mutual information of slice and expert by layer, at the end, and that of chance."""
    figure, (axes,) = canvas(1, width=7.0, height=2.9)
    for name, runs in found.items():
        layers = routing.layers_of(runs[0].run)
        values = np.asarray([own.end.nats_L for own in runs])
        chance = np.asarray([own.end.chance_L for own in runs])
        axes.plot(layers, values.mean(axis=0), marker="o", ms=3, lw=1.4, label=name, **look[name])
        shade(axes, layers, values.min(axis=0), values.max(axis=0), look[name])
        colour = look[name]["color"]
        axes.plot(layers, chance.mean(axis=0), lw=0.9, color=colour, linestyle=":")
    axes.set(xlabel="layer", ylabel="slice and expert share (nats)")
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    explain_below(figure, axes)
    return encoded(figure)


def slices(found: Mapping[str, Sequence[Sliced]]) -> bytes:
    """Draw how much more often a slice takes an expert than all tokens do, of each arm's first run.

    In the layer that specialised most; the largest slices where there are many.
    """
    maps, names = {}, {}
    for arm, runs in found.items():
        own = runs[0]
        counts_SE = own.end.load_SLE[:, own.place]
        chosen = np.sort(np.argsort(-counts_SE.sum(axis=1), kind="stable")[:MOST_SLICES])
        by_slice = counts_SE / np.maximum(counts_SE.sum(axis=1, keepdims=True), 1)
        overall = counts_SE.sum(axis=0) / np.maximum(counts_SE.sum(), 1)
        lift_SE = by_slice / np.where(overall > 0, overall, 1.0)
        label = f"{arm}, layer {own.layer}"
        maps[label] = lift_SE[chosen]
        names[label] = [own.end.slices[s] for s in chosen]
    return heat_maps(maps, rows=names, xlabel="expert", ylabel="", scale="slice / all")


def heat_maps(
    maps: Mapping[str, np.ndarray],
    *,
    rows: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]] | None = None,
    xlabel: str,
    ylabel: str,
    scale: str,
    centred: bool = True,
) -> bytes:
    """Draw matrices side by side on one colour scale, which is centred on 1 or runs from 0 to 1."""
    across = min(3, len(maps))
    down = math.ceil(len(maps) / across)
    tallest = max(len(matrix) for matrix in maps.values())
    height = down * (0.9 + min(2.4, max(0.7, 0.16 * tallest)))
    figure, panels = canvas(across * down, width=7.0, height=height, rows=down)
    most = max(2.0, *(float(np.max(matrix)) for matrix in maps.values()))
    norm = {"norm": TwoSlopeNorm(1.0, 0.0, most), "cmap": "PuOr_r"}
    norm = norm if centred else {"vmin": 0.0, "vmax": 1.0, "cmap": "cividis"}
    image = None
    for index, (panel, (name, matrix)) in enumerate(zip(panels, maps.items(), strict=False)):
        panel.grid(False)
        image = panel.imshow(matrix, aspect="auto", interpolation="nearest", **norm)
        entitle(panel, name)
        panel.set_xlabel(xlabel)
        panel.set_ylabel(ylabel if index % across == 0 else "")
        _ticks(panel, "y", rows[name])
        _ticks(panel, "x", _names(range(matrix.shape[1])) if columns is None else columns[name])
    for panel in panels[len(maps) :]:
        panel.set_visible(False)
    assert image is not None
    _bar(figure, image, panels[: len(maps)], scale)
    return encoded(figure)


def _ticks(axes: Axes, side: str, names: Sequence[str]) -> None:
    """Name at most ten places along a side."""
    stride = math.ceil(len(names) / 10)
    places = list(range(0, len(names), stride))
    axis = axes.yaxis if side == "y" else axes.xaxis
    axis.set_ticks(places, [names[place] for place in places])


def _bar(figure: Figure, image: AxesImage, panels: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=list(panels), aspect=30, pad=0.015)
    bar.set_label(label, color=INK, size=SMALL)
    bar.ax.tick_params(colors=INK, labelsize=SMALL)
    bar.outline.set_visible(False)


def _names(values: Sequence[int] | np.ndarray | range) -> list[str]:
    return [str(int(value)) for value in values]
