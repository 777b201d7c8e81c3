"""A report as Markdown: its sentences and tables, and its plots as links to the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from research.report.document import Document, Plot, Section, Table


def markdown(document: Document) -> str:
    """Write a document as a file that a repository, an issue or a paper's appendix can hold."""
    blocks = [f"# {document.title}", document.subtitle]
    for section in document.sections:
        blocks += _section(section)
    return "\n\n".join(blocks) + "\n"


def _section(section: Section) -> Iterator[str]:
    if section.heading:
        yield f"## {section.heading}"
    yield from map(_plain, section.sentences)
    for table in section.tables:
        yield from _table(table)
    for plot in section.plots:
        yield _figure(plot)


def _table(table: Table) -> Iterator[str]:
    yield f"**{_plain(table.title)}**"
    rule = ["---"] * len(table.header)
    yield "\n".join(_row(cells) for cells in (table.header, rule, *table.rows))
    if table.note:
        yield _plain(table.note)


def _figure(plot: Plot) -> str:
    return f"![{_plain(plot.caption)}]({plot.name}.png)"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    """Keep what is a sign of Markdown, and line ends, from being read as such."""
    kept = "".join(f"\\{sign}" if sign in "\\`*_[]<>#" else sign for sign in text)
    return " ".join(kept.split())
