"""The page of the probe: what the model was unsure of, and what the curriculum made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from research.evaluate.statistics import mean_interval
from research.report import probe, probe_figures
from research.report.document import (
    MISSING,
    Document,
    Plot,
    Section,
    Table,
    estimate,
    listed,
    number,
)
from research.report.probe import QUARTERS, Opening, Pairs
from research.report.runs import Arm, Run

SHOWN = 3  # examples of each quarter
LISTED = 8  # examples that were never, or most often, selected
CHARACTERS = 340  # of an example's text
HEADS = {"measured": "scored", "with_last": "ranks"}  # of columns that have another name
BANDS = "Line: mean over seeds; band: lowest to highest seed."
READING = (
    "The pool is everything that may be trained on. A round begins by asking the model about every "
    "example of the pool; the answer is a number, the score: of an entropy or a loss, the higher "
    "the less sure the model is. A policy then selects a part of the pool, and the round trains on "
    "that part alone. This page shows what was asked, what was answered and who was selected.",
    "An arm is one way of choosing, run with several seeds. Numbers are means over its seeds, "
    "unless a caption says otherwise; example texts are those of one run, which is named.",
)


def page(arms: Sequence[Arm], look: Mapping[str, dict]) -> Document | None:
    """Say, tabulate and draw what curricula did; None where no run chose more than once."""
    arms = probe.with_rounds(arms)
    if not arms:
        return None
    sections = [Section(heading="How to read this page", sentences=READING), _collapse(arms, look)]
    for arm in arms:
        sections += _of_arm(arm, look)
    return Document(
        title="What the curriculum saw and chose",
        subtitle=listed([arm.name for arm in arms]),
        sections=tuple(s for s in sections if s.sentences or s.tables or s.plots),
    )


def plot(name: str, png: bytes, caption: str) -> Plot:
    """Give a figure a file name that every system takes."""
    return Plot(name=re.sub(r"[^\w.-]+", "-", f"probe-{name}"), png=png, caption=caption)


def groups_of(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Put arms together whose scores can be compared: those of one estimator."""
    found: dict[str, list[Arm]] = {}
    asked = [Arm(a.name, tuple(run for run in a.runs if probe.asked_again(run))) for a in arms]
    for arm in (arm for arm in asked if arm.runs):
        found.setdefault(probe.estimator_of(arm.runs[0]), []).append(arm)
    return list(found.values())


def collapse_plot(arms: Sequence[Arm], look: Mapping[str, dict]) -> Plot | None:
    """Draw how unsure the models of all arms are of the same pool, as they learn."""
    png = probe_figures.collapse(groups_of(arms), look)
    if png is None:
        return None
    return plot(
        "collapse",
        png,
        "Does uncertainty collapse? The mean score of the whole pool each time it was scored: a "
        "line that falls is a model that grows surer of everything, and an arm that keeps "
        "uncertainty alive stays above the others. Arms share a panel if one estimator measured "
        f"them; an arm that was not scored has no line. {BANDS}",
    )


def _collapse(arms: Sequence[Arm], look: Mapping[str, dict]) -> Section:
    drawn = [collapse_plot(arms, look)]
    png = probe_figures.trained_entropy(arms, look)
    if png is not None:
        drawn.append(
            plot(
                "trained-entropy",
                png,
                "The same question asked of what was trained on: the mean entropy of the "
                "predictions at trained tokens, which every run records. Arms train on different "
                f"examples, so a higher line may be a harder choice. {BANDS}",
            )
        )
    return Section(
        heading="Does the model's uncertainty collapse?",
        sentences=tuple(said for group in groups_of(arms) for said in _falls(group)),
        plots=tuple(p for p in drawn if p),
    )


def _falls(arms: Sequence[Arm]) -> list[str]:
    """Say how far the pool's mean score went in each arm, and how far that is from the first's."""
    ends = {arm.name: {run.seed: _ends(run) for run in arm.runs} for arm in arms}
    said, first = [], arms[0].name
    for name, by_seed in ends.items():
        begun, ended = np.transpose(list(by_seed.values()))
        if np.array_equal(begun, ended):
            said.append(f"{name}: the pool was scored once, at {number(float(begun.mean()))}.")
            continue
        shared = [seed for seed in by_seed if seed in ends[first]]
        beside = ""
        if name != first and shared:
            apart = mean_interval([by_seed[seed][1] - ends[first][seed][1] for seed in shared])
            beside = f"; at the end it is {estimate(apart)} from {first}, seed by seed"
        said.append(
            f"{name}: the pool's mean score went from {number(float(begun.mean()))} to "
            f"{number(float(ended.mean()))}, a change of {estimate(mean_interval(ended - begun))} "
            f"over {len(by_seed)} seed{'s' * (len(by_seed) > 1)}{beside}."
        )
    return said


def _ends(run: Run) -> tuple[float, float]:
    """Give the pool's mean score at its first and its last measurement."""
    known = [opened.pool for opened in probe.openings(run) if np.isfinite(opened.pool)]
    return known[0], known[-1]


def _of_arm(arm: Arm, look: Mapping[str, dict]) -> list[Section]:
    """Give an arm's sections: its rounds, score against loss, who is left out."""
    drawn, told = [], [probe.openings(run) for run in arm.runs]
    if probe.scored([arm]):
        drawn.append(
            plot(
                f"scores-{arm.name}",
                probe_figures.spread(arm, told),
                "How unsure is the model, and what is it trained on? Left: scores by round; grey "
                "holds the middle 90 % and 50 % of the pool, the lines are the means of the pool "
                "and of what was selected, so their distance is how picky the choice was. Right: "
                "all scores of the first and the last round, and who was selected in the last. "
                f"{BANDS}",
            )
        )
    drawn.append(
        plot(
            f"choice-{arm.name}",
            probe_figures.choice(arm, told, look[arm.name]),
            "Does the choice move through the pool? Left: the share of a round's selection that no "
            "earlier round had. Middle: the share of the pool that any round so far had. Right: "
            "the rank correlation of each example's new score with its last one; near 1 the model "
            "is unsure of the same examples as before, near 0 of others. Dotted: what random "
            f"choices of the same sizes would give. {BANDS}",
        )
    )
    sections = [
        Section(
            heading=f"{arm.name}: round by round",
            sentences=_noise(arm),
            tables=(rounds_table(arm, told),),
            plots=tuple(drawn),
        )
    ]
    found = [probe.pairs_of(run) for run in arm.runs]
    if len(found[0]) > 3:
        sections += _uncertainty_and_loss(arm, found)
    return [*sections, *_left_out(arm)]


def _noise(arm: Arm) -> tuple[str, ...]:
    """Say whether an arm chose more of the answers that are wrong on purpose than there are."""
    wrong = [(run, found) for run in arm.runs if (found := probe.corrupted(run)) is not None]
    if not wrong:
        return ()
    pool = float(np.mean([found.mean() for _, found in wrong]))
    chosen = [
        found[np.concatenate([opened.selected for opened in run.rounds])].mean()
        for run, found in wrong
    ]
    return (
        f"{pool:.1%} of the pool's answers are wrong on purpose, and "
        f"{float(np.mean(chosen)):.1%} of what was selected: more would mean that noise is chosen.",
    )


def rounds_table(arm: Arm, told: Sequence[Sequence[Opening]]) -> Table:
    """Tabulate an arm's rounds, means over seeds."""
    columns = ["step", "measured", "pool", "selected", "new", "kept", "coverage", "with_last"]
    if any(o.age > 0 for opened in told for o in opened):
        columns.append("age")
    if any(np.isfinite(o.corrupted) for opened in told for o in opened):
        columns.append("corrupted")
    values = {name: probe.by_round(told, name) for name in columns}
    numbers = values["step"][0]

    def shown(name: str, index: int) -> str:
        known = values[name][1][:, index]
        mean = float(known[np.isfinite(known)].mean()) if np.isfinite(known).any() else None
        if mean is None:
            return MISSING
        if name in ("step", "measured", "age"):
            return f"{mean:,.0f}"
        shares = ("new", "kept", "coverage", "corrupted")
        return f"{mean:.0%}" if name in shares else number(mean)

    return Table(
        title=f"The rounds of {arm.name}, means over {len(arm.runs)} "
        f"seed{'s' * (len(arm.runs) > 1)}.",
        header=("round", *(HEADS.get(name, name) for name in columns)),
        rows=tuple(
            (str(n), *(shown(name, index) for name in columns))
            for index, n in enumerate(numbers.tolist())
        ),
        note="Step: updates made before. Scored: examples scored anew. Pool, selected: mean score. "
        "New, kept: share of the selection that no earlier round had, and that the round before "
        "had too. Coverage: share of the pool selected so far. Ranks: Spearman's correlation with "
        "the scores before. Age: updates made since these scores were taken. Corrupted: share of "
        "the selection whose answers are wrong on purpose.",
    )


def _uncertainty_and_loss(arm: Arm, found: Sequence[Pairs]) -> list[Section]:
    """Give the 2 x 2 of score against loss, then examples of its quarters."""
    agreed, run, pairs = probe.agreement(arm.runs), arm.runs[0], found[0]
    caption = (
        "Is what the model is unsure of also what it gets wrong? A dot is an example, by its score "
        "when a round opened and its loss when that round first trained on it (only what is "
        "selected is trained on, so only that is here). Left: the last round as it was. Right: "
        "every round, by places within the round, and the share in each quarter; 25 % in each "
        "would mean that the two have nothing to do with one another."
    )
    rows = [
        (
            QUARTERS[quarter],
            str(pairs.round[place]),
            number(float(pairs.score[place])),
            str(pairs.step[place]),
            number(float(pairs.loss[place])),
            _shown(run, int(pairs.example[place])),
        )
        for quarter in range(4)
        for place in probe.examples_of(pairs, quarter, SHOWN)
    ]
    table = Table(
        title=f"Examples of the quarters, those deepest inside; {arm.name}, seed {run.seed}.",
        header=("quarter", "round", "score", "step", "loss", "example"),
        rows=tuple(rows),
        prose=True,
        note="Score: when that round opened. Loss: in the update of that step, in nats a trained "
        "token. High and low: above and below the median of what the round trained on.",
    )
    return [
        Section(
            heading=f"{arm.name}: unsure or wrong?",
            sentences=(
                "Within a round, score and loss correlate at "
                f"{number(agreed.value, 2)} [{number(agreed.low, 2)}, {number(agreed.high, 2)}] "
                f"(Spearman, {agreed.count:,} pairs). Losses also fall inside a round, most of all "
                "in the first, which pulls this towards 0 where the order is shuffled.",
            ),
            plots=(plot(f"quarters-{arm.name}", probe_figures.quarters(arm, found), caption),),
        ),
        Section(heading="", tables=(table,)),
    ]


def _left_out(arm: Arm) -> list[Section]:
    """Show who is never selected, and who is most often."""
    run = arm.runs[0]
    counts = [probe.times_selected(run) for run in arm.runs]
    never = float(np.mean([np.mean(c == 0) for c in counts]))
    said = f"{never:.0%} of the pool was never selected in {len(run.rounds)} rounds"
    if len(counts) > 1 and len({len(c) for c in counts}) == 1:
        nobody = float(np.mean(np.sum(counts, axis=0) == 0))
        said += f"; {nobody:.0%} in no seed"
    caption = (
        "Who is left out? Left: the share of the pool that was selected in none, one, two, ... of "
        "the rounds; dotted: what as many random choices would give, so tall ends mean that the "
        "same examples are chosen and left out again and again."
    )
    if probe.scored([arm]):
        caption += (
            " Right: the mean score of those never selected and of the others; if the lines meet, "
            "those left out have become as uncertain as the rest."
        )
    scores = probe.mean_scores(run)
    known = np.where(np.isfinite(scores), scores, 0.0)
    left = np.flatnonzero(counts[0] == 0)
    left = left[np.argsort(known[left], kind="stable")]
    often = np.lexsort((-known, -counts[0]))
    tables = []
    for title, ids in (
        (f"Never selected, the lowest scores first; {arm.name}, seed {run.seed}.", left),
        (f"Selected most often; {arm.name}, seed {run.seed}.", often[counts[0][often] > 0]),
    ):
        if len(ids):
            rows = [
                (
                    str(run.pool.get(x, {}).get("id", x)),
                    str(counts[0][x]),
                    number(float(scores[x])),
                    _shown(run, x),
                )
                for x in ids[:LISTED].tolist()
            ]
            tables.append(
                Table(
                    title=title,
                    header=("id", "rounds", "mean score", "example"),
                    rows=tuple(rows),
                    prose=True,
                )
            )
    return [
        Section(
            heading=f"{arm.name}: who is left out",
            sentences=(f"{said}.",),
            plots=(plot(f"left-out-{arm.name}", probe_figures.chosen_how_often(arm), caption),),
        ),
        Section(heading="", tables=tuple(tables)),
    ]


def _shown(run: Run, example: int) -> str:
    """Give as much of an example's text as fits a table."""
    line = run.pool.get(example, {})
    text = probe.text_of(line)
    if not text:
        return f"{line.get('id', example)} (its text was not kept)"
    cut = len(text) > CHARACTERS
    return f"{text[:CHARACTERS].rstrip()} \N{HORIZONTAL ELLIPSIS}" if cut else text
