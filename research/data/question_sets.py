"""Public question sets in the files that their authors publish, read as multiple-choice rows.

Every row has `id`, `question`, `options` (a list), `answer` (0-based) and `answer_text`, and what
else the set says of a question: its grade, subject, category or context.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.core.parts import part, require
from research.data.examples import RowError
from research.data.sources import Opened, located

NUMBERED = re.compile(r"^\s*\(?\d+[.):]\s*")


@part
class OranBench:
    """ORAN-Bench-13K: `fin_E.json`, `fin_M.json`, `fin_H.json`, a JSON list a line.

    The grade is the letter at the end of the file's name.

    Source: Gajjar and Shah 2024, arXiv 2407.06245; github.com/prnshv/ORAN-Bench-13K.
    """

    path: str

    def __post_init__(self) -> None:
        require(self, _named(self.path, "fin_*.json"))

    def open(self) -> Opened:
        """Read all lines of the files."""

        def read(item: tuple[Path, int, str]) -> Mapping[str, Any]:
            file, number, line = item
            question, options, answer = _json(line, list, 3)
            shown = [NUMBERED.sub("", str(option)) for option in options]
            grade = file.stem.rsplit("_", 1)[-1]
            made = _row(f"oran-{grade}-{number}", question, shown, _position(answer, 1))
            return made | {"difficulty": grade}

        return _lines(self.path, read)


@part
class TeleQna:
    """TeleQnA as published: `TeleQnA.zip`, encrypted to stay out of training crawls.

    It is read in memory and never written decrypted. Needs `pip install 'maktab[domains]'`.

    Attributes:
      password: the one that the set's own page publishes.

    Source: Maatouk et al. 2023, arXiv 2310.15051; github.com/netop-team/TeleQnA.
    """

    path: str
    password: str = "teleqnadataset"

    def __post_init__(self) -> None:
        require(self, _named(self.path, "TeleQnA.zip"))

    def open(self) -> Opened:
        """Decrypt and read.

        Raises:
          ValueError: the password is wrong, the file is none of theirs, or pyzipper is missing.
        """
        (file,) = located(self.path)
        items = list(_json_file(file, self._decrypted(file)).items())

        def read(item: tuple[str, Mapping[str, Any]]) -> Mapping[str, Any]:
            name, asked = item
            options = [asked[key] for key in sorted(asked) if key.startswith("option ")]
            named = re.match(r"option (\d+):", str(asked.get("answer")))
            answer = _position(named[1] if named else asked.get("answer"), 1)
            row = _row(name.replace("question ", "teleqna-"), asked["question"], options, answer)
            extra = {key: asked[key] for key in ("category", "explanation") if key in asked}
            return row | extra

        return _opened(items, read, lambda item: f"{file}:{item[0]}")

    def _decrypted(self, file: Path) -> str:
        try:
            import pyzipper
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{file} is encrypted with AES, which Python's own zipfile cannot open: "
                "pip install 'maktab[domains]'"
            ) from error
        try:
            with pyzipper.AESZipFile(file) as archive:
                archive.setpassword(self.password.encode())
                return archive.read(archive.namelist()[0]).decode()
        except (pyzipper.BadZipFile, RuntimeError, IndexError) as error:
            raise ValueError(f"{file} cannot be decrypted ({error}); see its page") from error


@part
class Mmlu:
    """MMLU's CSV files without a header: question, four options, the answer's letter.

    The subject is the file's name without `_test`, `_val` or `_dev`. Several subjects are a glob
    pattern: `data/test/*_law_test.csv`.

    Source: Hendrycks et al. 2020, arXiv 2009.03300; github.com/hendrycks/test.
    """

    path: str

    def __post_init__(self) -> None:
        require(self, _named(self.path, "professional_law_test.csv"))

    def open(self) -> Opened:
        """Read the files into memory."""
        items = [
            (file, number, cells)
            for file in located(self.path)
            for number, cells in enumerate(csv.reader(io.StringIO(_text(file))), start=1)
        ]

        def read(item: tuple[Path, int, list[str]]) -> Mapping[str, Any]:
            file, number, cells = item
            if len(cells) != 6:
                raise RowError("malformed", f"{len(cells)} cells; expected 6")
            subject, _, split = file.stem.rpartition("_")
            answer = "ABCD".find(cells[5].strip()) if cells[5].strip() else -1
            row = _row(
                f"mmlu-{subject}-{split}-{number}", cells[0], cells[1:5], _position(answer, 0)
            )
            return row | {"subject": subject}

        return _opened(items, read, lambda item: f"{item[0]}:{item[1]}")


@part
class MedQa:
    """MedQA's US questions: JSON lines with `options` by letter and `answer_idx`.

    Source: Jin et al. 2020, arXiv 2009.13081; github.com/jind11/MedQA.
    """

    path: str

    def __post_init__(self) -> None:
        require(self, _named(self.path, "US/test.jsonl"))

    def open(self) -> Opened:
        """Read all lines of the files."""

        def read(item: tuple[Path, int, str]) -> Mapping[str, Any]:
            file, number, line = item
            asked = _json(line, dict)
            letters = sorted(asked["options"])
            answer = _position(letters.index(asked["answer_idx"]), 0)
            options = [asked["options"][letter] for letter in letters]
            return _row(f"medqa-{file.stem}-{number}", asked["question"], options, answer)

        return _lines(self.path, read)


@part
class MedMcQa:
    """MedMCQA: JSON lines with `opa` to `opd` and `cop`, the number of the right option.

    Attributes:
      first: what `cop` calls the first option: 1 in the authors' own files, 0 in the copy on the
        Hugging Face hub. A file of the other kind has a 4 or a 0, which is an error here.

    Source: Pal et al. 2022, arXiv 2203.14371; github.com/medmcqa/medmcqa.
    """

    path: str
    first: int = 1

    def __post_init__(self) -> None:
        require(
            self,
            _named(self.path, "dev.json"),
            (self.first in (0, 1), f"first={self.first}: expected 1, or 0 for the hub's copy"),
        )

    def open(self) -> Opened:
        """Read all lines of the files."""

        def read(item: tuple[Path, int, str]) -> Mapping[str, Any]:
            asked = _json(item[2], dict)
            options = [asked[key] for key in ("opa", "opb", "opc", "opd")]
            answer = _position(asked["cop"], self.first)
            row = _row(f"medmcqa-{asked['id']}", asked["question"], options, answer)
            extra = {key: asked[key] for key in ("subject_name", "exp") if asked.get(key)}
            return row | extra

        return _lines(self.path, read)


@part
class PubMedQa:
    """PubMedQA's labelled questions, `ori_pqal.json`: yes, no or maybe, given an abstract.

    Attributes:
      only: a file of ids, such as `test_ground_truth.json`; empty: all.

    Source: Jin et al. 2019, arXiv 1909.06146; github.com/pubmedqa/pubmedqa.
    """

    path: str
    only: str = ""

    def __post_init__(self) -> None:
        require(self, _named(self.path, "ori_pqal.json"))

    def open(self) -> Opened:
        """Read the file."""
        (file,) = located(self.path)
        kept = None
        if self.only:
            (names,) = located(self.only)
            kept = set(_json_file(names, _text(names)))
        asked = _json_file(file, _text(file)).items()
        items = [(key, row) for key, row in asked if kept is None or key in kept]
        verdicts = ("yes", "no", "maybe")

        def read(item: tuple[str, Mapping[str, Any]]) -> Mapping[str, Any]:
            key, row = item
            answer = _position(verdicts.index(row["final_decision"]), 0)
            made = _row(f"pubmedqa-{key}", row["QUESTION"], verdicts, answer)
            return made | {"context": list(row["CONTEXTS"]), "long_answer": row["LONG_ANSWER"]}

        return _opened(items, read, lambda item: f"{file}:{item[0]}")


@part
class LegalBench:
    """One task of LegalBench: a tab-separated file beside its `base_prompt.txt`.

    The prompt's few-shot examples are left out: the question is the prompt's first line with the
    row's own fields below. Only tasks whose answers are a closed set are multiple choice; the
    options are the answers that the file has.

    Source: Guha et al. 2023, arXiv 2308.11462; github.com/HazyResearch/legalbench.
    """

    path: str

    def __post_init__(self) -> None:
        require(self, _named(self.path, "tasks/hearsay/train.tsv"))

    def open(self) -> Opened:
        """Read the files into memory.

        Raises:
          FileNotFoundError: there is no base_prompt.txt beside a file.
          ValueError: a file's answers are no closed set.
        """
        items = [item for file in located(self.path) for item in self._task(file)]

        def read(item: tuple[Path, int, str, Sequence[str], dict]) -> Mapping[str, Any]:
            file, number, instruction, options, cells = item
            task = file.parent.name
            fields = [str(v) for k, v in cells.items() if k not in ("index", "answer") and v]
            question = "\n".join([instruction, *fields])
            answer = _position(options.index(cells["answer"]), 0)
            row = _row(f"legalbench-{task}-{file.stem}-{number}", question, options, answer)
            return row | {"task": task}

        return _opened(items, read, lambda item: f"{item[0]}:{item[1]}")

    def _task(self, file: Path) -> list[tuple]:
        (prompt,) = located(str(file.parent / "base_prompt.txt"))
        instruction = _text(prompt).strip().split("\n")[0]
        rows = list(csv.DictReader(io.StringIO(_text(file)), delimiter="\t"))
        answers = sorted({str(row.get("answer")) for row in rows})
        if not 1 < len(answers) <= 10 or any(not row.get("answer") for row in rows):
            raise ValueError(
                f"{file}: {len(answers)} different answers; multiple choice needs a column "
                "`answer` with 2 to 10. Read a task of free answers with its own columns"
            )
        return [(file, n, instruction, answers, row) for n, row in enumerate(rows, start=1)]


def _named(path: str, example: str) -> tuple[bool, str]:
    return bool(path), f"path is empty; name a file such as {example}"


def _row(id: str, question: Any, options: Sequence[Any], answer: int) -> dict[str, Any]:
    """Give the row; an answer beyond the options is refused where the row is read."""
    if not 0 <= answer < len(options):
        raise RowError("bad answer", f"answer {answer} of {len(options)} options")
    shown = [str(option) for option in options]
    asked = str(question).strip()
    text = {"answer": answer, "answer_text": shown[answer]}
    return {"id": id, "question": asked, "options": shown, **text}


def _position(number: Any, first: int) -> int:
    try:
        return int(number) - first
    except (TypeError, ValueError) as error:
        raise RowError("bad answer", f"answer {number!r} is no number of an option") from error


def _lines(path: str, read: Callable[[tuple[Path, int, str]], Mapping[str, Any]]) -> Opened:
    """Give a row a line."""
    items = [
        (file, number, line)
        for file in located(path)
        for number, line in enumerate(_text(file).split("\n"), start=1)
        if line.strip()
    ]

    return _opened(items, read, lambda item: f"{item[0]}:{item[1]}")


def _opened(
    items: Sequence[Any],
    read: Callable[[Any], Mapping[str, Any]],
    place: Callable[[Any], str],
) -> Opened:
    """Give rows of which one that lacks what `read` asks for is malformed, and named."""

    def checked(item: Any) -> Mapping[str, Any]:
        try:
            return read(item)
        except RowError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise RowError("malformed", f"{type(error).__name__}: {error}") from error

    return Opened(items, checked, lambda index: place(items[index]))


def _json(line: str, kind: type, length: int | None = None) -> Any:
    value = json.loads(line)
    if not isinstance(value, kind) or (length is not None and len(value) != length):
        raise RowError("malformed", f"expected a {kind.__name__}, got {line[:60]}")
    return value


def _json_file(file: Path, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"{file} holds a {type(value).__name__}; expected an object by name")
    return value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{file} is no text file ({error})") from error
