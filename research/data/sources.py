"""Where rows come from: JSON lines, Parquet, Hugging Face datasets and TFDS data sources."""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core.parts import part, require
from research.core.protocols import Rows
from research.data.examples import RowError


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """Rows behind an index.

    Attributes:
      items: whatever the source holds, one for each row.
      read: turns an item into a row; raises RowError where it cannot.
      places: `file:line` of an index.
      notes: what there is to say of rows that were left out on purpose.
    """

    items: Sequence[Any]
    read: Callable[[Any], Mapping[str, Any]]
    places: Callable[[int], str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.read(self.items[index])

    def where(self, index: int) -> str:
        """Name a row for people."""
        return self.places(index)


def notes_of(rows: Rows) -> tuple[str, ...]:
    """Give what the sources under some rows have to say."""
    return rows.notes if isinstance(rows, Opened) else ()


def located(path: str) -> list[Path]:
    """List the files that a path or a glob pattern names, sorted.

    A relative path is taken from the working directory, as on any command line; `~` is the home.

    Raises:
      FileNotFoundError: nothing is there; the error names the absolute path that was tried.
    """
    absolute = _absolute(path)
    if absolute.exists():
        return [absolute]
    matches = sorted(Path(match) for match in glob.glob(str(absolute), recursive=True))
    if not matches:
        raise _nothing(path, absolute, "a file, or a pattern that files match")
    return matches


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _is_path(name: str) -> bool:
    """Whether a name can only be a path, and not a name on a hub."""
    return name.startswith(("/", ".", "~"))


def _nothing(path: str, absolute: Path, expected: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path!r}: nothing at {absolute}; expected {expected}. A relative path is taken from the "
        "working directory: start the command where the path holds, or give an absolute one"
    )


@part
class Jsonl:
    """One JSON object a line, UTF-8, plain or gzipped; `path` may be a glob pattern."""

    path: str

    def __post_init__(self) -> None:
        require(self, (bool(self.path), "path is empty; name a .jsonl or .jsonl.gz file"))

    def open(self) -> Opened:
        """Read the lines; each is parsed when it is asked for.

        Raises:
          FileNotFoundError: with the absolute path that was tried.
          ValueError: a .gz file is damaged.
        """
        lines: list[tuple[Path, int, bytes]] = []
        for path in located(self.path):
            lines += [
                (path, number, line)
                for number, line in enumerate(_read_bytes(path).split(b"\n"), start=1)
                if line.strip()
            ]
        return Opened(lines, parse_line, lambda index: f"{lines[index][0]}:{lines[index][1]}")


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a .jsonl or .jsonl.gz file in it")
    with open(path, "rb") as file:
        start = file.read(2)
    try:
        content = gzip.decompress(path.read_bytes()) if start == b"\x1f\x8b" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def parse_line(item: tuple[Path, int, bytes]) -> Mapping[str, Any]:
    """Give the row of a (file, number, line).

    Raises:
      RowError: the line is no JSON object.
    """
    try:
        row = json.loads(item[2])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RowError("malformed", f"not a line of JSON ({error})") from error
    return _mapping(row)


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise RowError("malformed", f"a {type(row).__name__}; expected an object with named fields")
    return row


@part
class Parquet:
    """Rows of Parquet files; `path` may be a glob pattern, whose files are read in sorted order."""

    path: str

    def __post_init__(self) -> None:
        require(self, (bool(self.path), "path is empty; name a .parquet file"))

    def open(self) -> Opened:
        """Read the files into memory.

        Raises:
          FileNotFoundError: with the absolute path that was tried.
          ValueError: a file is not Parquet.
        """
        import pyarrow
        import pyarrow.parquet

        rows: list[Mapping[str, Any]] = []
        places: list[str] = []
        for path in located(self.path):
            try:
                table = pyarrow.parquet.read_table(path)
            except pyarrow.ArrowInvalid as error:
                raise ValueError(f"{path} is not a Parquet file ({error})") from error
            rows += table.to_pylist()
            places += [f"{path}:{number}" for number in range(1, len(table) + 1)]
        return Opened(rows, _mapping, places.__getitem__)


@part
class HuggingFaceDataset:
    """A Hugging Face dataset: a folder of `save_to_disk` or of data files, or a name on the hub.

    Attributes:
      path: folder or hub name.
      split: "train", or a slice such as "train[:10%]" (hub names and folders of data files).
      name: configuration, where the dataset has several.
      revision: commit or tag on the hub; give one, or the data may change under the experiment.
    """

    path: str
    split: str = "train"
    name: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        require(self, (bool(self.path), "path is empty; name a folder or a dataset of the hub"))

    def open(self) -> Opened:
        """Open the split through `datasets`; rows stay on disk.

        Raises:
          ValueError: the split is not there; the error lists those that are.
        """
        import datasets

        folder = _absolute(self.path)
        if not folder.exists() and _is_path(self.path):
            raise _nothing(self.path, folder, "a folder of a dataset")
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            opened = _saved_split(datasets.load_from_disk(str(folder)), folder, self.split)
        else:
            opened = self._load(folder)
        place = f"{folder if folder.is_dir() else self.path}[{self.split}]"
        return Opened(opened, _mapping, lambda index: f"{place}:{index + 1}")

    def _load(self, folder: Path) -> Any:
        """Load a folder of data files, or a name on the hub."""
        import datasets

        path = str(folder) if folder.is_dir() else self.path
        try:
            return datasets.load_dataset(path, self.name, split=self.split, revision=self.revision)
        except Exception as error:
            if path == self.path:
                error.add_note(f"nothing is at {folder}, so {path!r} was looked up on the hub")
            raise


def _saved_split(saved: Any, folder: Path, split: str) -> Any:
    """Choose the split of what `save_to_disk` wrote: a dataset alone, or one for each split."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise ValueError(f"{folder} has no split {split!r}; it has {sorted(saved)}")
    return saved[split]


@part
class TfdsSource:
    """A TensorFlow dataset in array_record form, read without TensorFlow.

    Attributes:
      name: a dataset's name (`"ag_news_subset:1.0.0"`), or the folder of a prepared one (the
        folder that holds `dataset_info.json`). A configuration (`glue/sst2`) goes by its folder.
      split: "train", or a slice such as "train[:10%]".
      data_dir: where prepared datasets are, if `name` is a name.
    """

    name: str
    split: str = "train"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        require(self, (bool(self.name), "name is empty; give a dataset's name or its folder"))

    def open(self) -> Opened:
        """Open the split as a random-access data source.

        Raises:
          FileNotFoundError: there is no such dataset, prepared or known.
          ValueError: the split is not there; the error lists those that are.
        """
        import tensorflow_datasets as tfds

        builder: Any  # its methods are wrapped, and their signatures lost
        folder = _absolute(self.name)
        if (folder / "dataset_info.json").exists():
            builder = tfds.builder_from_directory(str(folder))
        elif _is_path(self.name) or "/" in self.name:
            raise _nothing(self.name, folder, "a prepared dataset (with dataset_info.json)")
        else:
            builder = tfds.builder(self.name, data_dir=self.data_dir, file_format="array_record")
        source = builder.as_data_source(self.split)
        place = f"{builder.info.full_name}[{self.split}]"
        return Opened(
            source, lambda row: _mapping(_plain(row)), lambda index: f"{place}:{index + 1}"
        )


def _plain(value: Any) -> Any:
    """Turn TFDS's arrays and bytes into what JSON would have held."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowError("malformed", f"bytes that are no UTF-8 text ({error})") from error
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
