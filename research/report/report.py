"""Run directories in; one page, its plots and a terminal's table out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from research.report import costs, figures, probe_page, routing_page, sentences, settings, tables
from research.report.comparison import Standing, compare, evaluations_of, methods
from research.report.document import Document, Plot, Section, Table, listed
from research.report.drawing import look_of
from research.report.lines import write_whole
from research.report.markdown import markdown
from research.report.page import render
from research.report.runs import Arm, read_arms

REPORT, PROBE = "report", "probe"


def report(paths: Sequence[Path], out: Path, control: str | None = None) -> RenderableType:
    """Write `out/report.html` with its PNGs beside it, and `out/probe.html` of runs with rounds.

    Each is one file that needs no other; `report.md` and `probe.md` say the same beside the PNGs.

    Args:
      paths: run directories, or folders that hold some.
      out: a folder, made where it is missing.
      control: the arm that the others are compared with; None: the one that was begun first.

    Returns:
      What a terminal shows: the findings and the tables of arms.

    Raises:
      ValueError: no run is there, a file is malformed, or no arm is called `control`.
    """
    arms = read_arms(paths)
    names = [arm.name for arm in arms]
    if control is not None and control not in names:
        raise ValueError(f"control={control!r} is no arm; the runs have: {', '.join(names)}")
    control = control or names[0]
    arms.sort(key=lambda arm: arm.name != control)  # the control first, the others as they came
    document = compose(arms, control)
    probed = probe_page.page(arms, look_of(arms, control))
    if probed is not None:
        document = dataclasses.replace(document, beside=((f"{PROBE}.html", probed.title),))
        whole = f"{REPORT}.html"
        probed = dataclasses.replace(probed, beside=((whole, "The comparison of arms"),))
        write(probed, out, PROBE)
    write(document, out, REPORT)
    pages = [REPORT] + [PROBE] * (probed is not None)
    return terminal(document, [out / f"{page}.html" for page in pages])


def write(document: Document, out: Path, name: str) -> None:
    """Write a page, as HTML and as Markdown, with its PNGs beside it."""
    for section in document.sections:
        for plot in section.plots:
            write_whole(out / f"{plot.name}.png", plot.png)
    write_whole(out / f"{name}.html", render(document).encode())
    write_whole(out / f"{name}.md", markdown(document).encode())


def compose(arms: Sequence[Arm], control: str) -> Document:
    """Say, tabulate and draw what `arms` show against `control`."""
    standings = compare(arms, control)
    names = [arm.name for arm in arms]
    seeds = sorted({run.seed for arm in arms for run in arm.runs})
    sections = (
        Section(
            heading="What the comparison says",
            sentences=sentences.findings(arms, standings, control),
            brief=True,
        ),
        _arms_section(arms, standings, control),
        _learning_section(arms, control),
        _curriculum_section(arms, control),
        routing_page.section(arms, look_of(arms, control)),
        Section(
            heading="The runs",
            sentences=sentences.state_of(arms),
            tables=(tables.runs(arms),),
        ),
        Section(heading="How to read this", sentences=sentences.METHOD),
    )
    return Document(
        title=" against ".join([listed([n for n in names if n != control]), control])
        if len(names) > 1
        else names[0],
        subtitle=f"{len(arms)} arm{'s' * (len(arms) > 1)}, "
        f"seed{'s' * (len(seeds) > 1)} {listed([str(s) for s in seeds])}",
        sections=tuple(s for s in sections if s.sentences or s.tables or s.plots),
    )


def _arms_section(arms: Sequence[Arm], standings: Sequence[Standing], control: str) -> Section:
    by_evaluation = [
        [s for s in standings if s.evaluation == name] for name in evaluations_of(arms)
    ]
    found: list[Table] = [tables.standings(rows, control) for rows in by_evaluation if rows]
    paired = methods(arms)
    if any(second and second is not first for first, second in paired):
        found += [tables.side_by_side(rows, paired, control) for rows in by_evaluation if rows]
    if any(s.disagreement is not None for s in standings):
        found.append(tables.what_shows(standings, control))
    found += (
        [tables.item_by_item(standings, control)] if any(s.bootstrap for s in standings) else []
    )
    found += tables.all_metrics(arms)
    told = settings.table(arms)
    found += [*([told] if told else []), tables.budgets(arms), costs.table(arms)]
    found += costs.scoring(arms)
    drawn = _plot(
        "differences",
        figures.differences(standings, control),
        f"What each arm is better by than {control}: the paired difference and its 95 % interval. "
        "Green: better, red: worse, at 5 % after Holm's correction; grey: could be chance.",
    )
    plots = (drawn,) if drawn else ()
    return Section(heading="The arms", tables=tuple(found), plots=plots, brief=True)


def _learning_section(arms: Sequence[Arm], control: str) -> Section:
    look = look_of(arms, control)
    drawn = [
        _plot(
            "loss",
            figures.training_loss(arms, look),
            "Training loss of what each arm was given to train on: arms choose different examples, "
            "so lower is not better. Line: mean over seeds; band: lowest to highest seed.",
        )
    ]
    for evaluation, metric in evaluations_of(arms).items():
        caption = (
            f"{figures.label_of(metric)} on {evaluation}, against updates and, where they were "
            "recorded, against the tokens trained on and against compute with scoring charged. "
            "Line: mean over seeds; band: lowest to highest seed."
        )
        png = figures.learning_curves(arms, look, evaluation, metric)
        drawn.append(_plot(f"evaluation-{evaluation}", png, caption[0].upper() + caption[1:]))
    return Section(heading="Learning", plots=tuple(plot for plot in drawn if plot))


def _curriculum_section(arms: Sequence[Arm], control: str) -> Section:
    look = look_of(arms, control)
    drawn = [
        _plot(
            "coverage",
            figures.coverage(arms, look),
            "What each round selects: the share of its examples that no earlier round had "
            "selected, and the share of the pool that any round so far had.",
        ),
        probe_page.collapse_plot(arms, look),
    ]
    return Section(
        heading="The curriculum",
        sentences=sentences.curricula(arms),
        plots=tuple(plot for plot in drawn if plot),
    )


def _plot(name: str, png: bytes | None, caption: str) -> Plot | None:
    name = re.sub(r"[^\w.-]+", "-", name)
    return None if png is None else Plot(name=name, png=png, caption=caption)


def terminal(document: Document, pages: Sequence[Path]) -> RenderableType:
    """Give what is brief, and where the pages are, for a terminal."""
    parts: list[RenderableType] = [Text(document.title, style="bold"), Text(document.subtitle)]
    for section in (section for section in document.sections if section.brief):
        parts += [Padding(Text(sentence), (1, 0, 0, 2)) for sentence in section.sentences]
        parts += [Padding(_rich(table), (1, 0, 0, 2)) for table in section.tables]
    parts.append(Padding(Text(f"Written: {', '.join(map(str, pages))}"), (1, 0, 0, 0)))
    return Group(*parts)


def _rich(table: Table) -> RichTable:
    made = RichTable(
        title=table.title, title_justify="left", title_style="", caption=table.note or None,
        caption_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for index, name in enumerate(table.header):
        made.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(cell) for cell in row))
    return made
