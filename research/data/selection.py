"""Sources made from sources: fields renamed, repeats left out, deterministic splits."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from research.core.parts import part, require
from research.core.protocols import Rows, Source
from research.data.examples import RowError
from research.data.rows import KIND_FIELDS
from research.data.sources import Opened, notes_of

Template = str | tuple[str, ...]


@part
class Columns:
    """Gives a source's fields the names that a kind of row asks for.

    Each setting is a field's name (`"mr"`: its value as it is), a template (`"{mr} =>"`: text, with
    `{list_field}` joined by lines and `{table[key]}` looked up), or a tuple of templates:
    paragraphs, of which those whose fields are all empty are left out.

    Other fields stay, except that those which would make the row another kind go:
    `Columns(source=..., prompt="{mr} =>", completion=" {text}")` is a row of prompt and completion.
    """

    source: Source
    text: Template = ""
    prompt: Template = ""
    completion: Template = ""
    messages: str = ""
    question: Template = ""
    options: str = ""
    answer: Template = ""
    input_ids: str = ""
    id: Template = ""

    def __post_init__(self) -> None:
        named = {name: template for name, template in self._settings() if template}
        problems = [problem for t in named.values() for problem in _problems(t)]
        require(
            self,
            (bool(named), "names no column; give at least one, such as text='body'"),
            (not problems, "; ".join(problems)),
        )

    def _settings(self) -> list[tuple[str, Template]]:
        names = (*sorted(KIND_FIELDS), "id")
        return [(name, getattr(self, name)) for name in names]

    def open(self) -> Opened:
        """Open the source; a row that lacks a field that is asked for is malformed."""
        rows = self.source.open()
        settings = [(name, template) for name, template in self._settings() if template]

        def read(index: int) -> Mapping[str, Any]:
            row = rows[index]
            kept = {key: value for key, value in row.items() if key not in KIND_FIELDS}
            return kept | {name: filled(template, row) for name, template in settings}

        return Opened(range(len(rows)), read, rows.where, notes_of(rows))


class _Formatter(string.Formatter):
    """`str.format` on a row: lists are lines, None is empty, and attributes are out of reach."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, (list, tuple)):
            value = "\n".join(str(item) for item in value)
        return format("" if value is None else value, format_spec)


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _problems(template: Template) -> list[str]:
    """List what is wrong with a template, before any row is read."""
    problems = []
    for paragraph in (template,) if isinstance(template, str) else template:
        try:
            names = _fields(paragraph)
        except ValueError as error:
            problems.append(f"{paragraph!r} is not a template ({error}); write {{{{ for a brace")
            continue
        if any(not name or name[0].isdigit() or "." in name for name in names):
            problems.append(
                f"{paragraph!r}: name a field in each pair of braces, as in '{{mr}} =>'"
            )
        if not names and not isinstance(template, str):
            problems.append(f"{paragraph!r} names no field; write it with braces, as in '{{mr}}'")
    return problems


def filled(template: Template, row: Mapping[str, Any]) -> Any:
    """Fill a template from a row's fields.

    Raises:
      RowError: the row lacks a field.
    """
    try:
        if isinstance(template, str):
            return _Formatter().vformat(template, (), row) if "{" in template else row[template]
        formatter = _Formatter()
        shown = [
            formatter.vformat(paragraph, (), row)
            for paragraph in template
            if any(formatter.vformat(f"{{{name}}}", (), row).strip() for name in _fields(paragraph))
        ]
        return "\n\n".join(shown)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RowError(
            "malformed",
            f"cannot fill {template!r} from {sorted(row)} ({type(error).__name__}: {error})",
        ) from error


@part
class Deduplicated:
    """The first row of each value of a field; rows that cannot be read stay, to be counted."""

    source: Source
    by: str

    def __post_init__(self) -> None:
        require(self, (bool(self.by), "by is empty; name the field whose values are distinct"))

    def open(self) -> Opened:
        """Read the source once and keep the first row of each value."""
        rows = self.source.open()
        seen: set[str] = set()
        kept = []
        for index in range(len(rows)):
            value = _value(rows, index, self.by)
            if value not in seen:
                kept.append(index)
            if value is not None:
                seen.add(value)
        note = f"{len(rows) - len(kept)} of {len(rows)} rows repeat a {self.by!r} and are left out"
        return _subset(rows, kept, note)


@part
class Where:
    """The rows whose field is one of some words; rows that cannot be read stay, to be counted."""

    source: Source
    by: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        require(
            self,
            (bool(self.by), "by is empty; name the field that decides"),
            (bool(self.values), "values is empty; name those that are kept"),
        )

    def open(self) -> Opened:
        """Read the source once and keep the rows with these values.

        Raises:
          ValueError: no row has one of them.
        """
        rows = self.source.open()
        found = [_value(rows, index, self.by) for index in range(len(rows))]
        wanted = [json.dumps(value, ensure_ascii=False) for value in self.values]
        absent = [value for value in wanted if value not in found]
        if absent:
            there = sorted({value for value in found if value is not None})
            raise ValueError(
                f"no row has {self.by!r} {', '.join(absent)}; the rows have: "
                f"{', '.join(there[:20])}{' ...' if len(there) > 20 else ''}"
            )
        kept = [index for index, value in enumerate(found) if value is None or value in wanted]
        note = f"{len(kept)} of {len(rows)} rows have {self.by!r} {', '.join(self.values)}"
        return _subset(rows, kept, note)


@part
class Split:
    """The rows whose field hashes into a part of [0, 1): equal values never straddle two parts.

    Attributes:
      fraction: (from, to); `(0.0, 0.8)` and `(0.8, 1.0)` divide a source between two uses.
      salt: another text gives another division.
    """

    source: Source
    by: str
    fraction: tuple[float, float]
    salt: str = ""

    def __post_init__(self) -> None:
        low, high = self.fraction
        require(
            self,
            (bool(self.by), "by is empty; name the field that decides a row's side"),
            (0 <= low < high <= 1, f"fraction={self.fraction}; expected 0 <= from < to <= 1"),
        )

    def open(self) -> Opened:
        """Read the source once and keep the rows on this side."""
        rows = self.source.open()
        low, high = self.fraction
        values = [_value(rows, index, self.by) for index in range(len(rows))]
        kept = [
            index
            for index, value in enumerate(values)
            if value is None or low <= share(self.salt, value) < high
        ]
        note = f"{len(kept)} of {len(rows)} rows fall into [{low:g}, {high:g}) by {self.by!r}"
        return _subset(rows, kept, note)


@part
class Fold:
    """A source without one of its folds, or that fold alone; a row's field decides where it is.

    Law: every value is held out in exactly one of the folds.

    Attributes:
      fold: which one, from 0.
      folds: of how many.
      held_out: the fold alone; False: all the others.
      salt: another text gives other folds.
    """

    source: Source
    by: str
    fold: int
    folds: int
    held_out: bool = False
    salt: str = ""

    def __post_init__(self) -> None:
        require(
            self,
            (bool(self.by), "by is empty; name the field that decides a row's fold"),
            (self.folds > 1, f"folds={self.folds} must be at least 2"),
            (0 <= self.fold < self.folds, f"fold={self.fold} is none of {self.folds}, from 0"),
        )

    def open(self) -> Opened:
        """Read the source once and keep the rows of the fold, or of the others."""
        rows = self.source.open()
        values = [_value(rows, index, self.by) for index in range(len(rows))]
        kept = [
            index
            for index, value in enumerate(values)
            if value is None or (self._fold_of(value) == self.fold) == self.held_out
        ]
        side = f"fold {self.fold}" if self.held_out else f"all but fold {self.fold}"
        note = f"{len(kept)} of {len(rows)} rows are {side} of {self.folds} by {self.by!r}"
        return _subset(rows, kept, note)

    def _fold_of(self, value: str) -> int:
        return min(int(share(self.salt, value) * self.folds), self.folds - 1)


def share(salt: str, value: str) -> float:
    """Give the place of a value in [0, 1): the first 52 bits of sha256(salt:value)."""
    digest = hashlib.sha256(f"{salt}:{value}".encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 4) / 2**52


def _value(rows: Rows, index: int, field: str) -> str | None:
    """Give a field's value as text, or None where the row cannot be read."""
    try:
        row = rows[index]
    except RowError:
        return None
    if field not in row:
        raise ValueError(
            f"{rows.where(index)} has no field {field!r}; it has {sorted(row)}. Name a field that "
            "every row has"
        )
    return json.dumps(row[field], sort_keys=True, ensure_ascii=False, default=str)


def _subset(rows: Rows, kept: Sequence[int], note: str) -> Opened:
    return Opened(
        kept,
        rows.__getitem__,
        lambda index: rows.where(kept[index]),
        (*notes_of(rows), note),
    )
