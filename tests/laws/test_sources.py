"""Laws of sources: the same rows from every format, each with its place, and splits that hold."""

from __future__ import annotations

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.parts import describe, rebuild
from research.data.examples import RowError
from research.data.selection import Columns, Deduplicated, Split, Where, share
from research.data.sources import HuggingFaceDataset, Jsonl, Parquet, TfdsSource

ROWS = [
    {"id": f"r{k}", "mr": f"name {k // 2}", "text": f"wörld {k} 😀", "options": ["a", "b"]}
    for k in range(7)
]


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def opened(source) -> list:
    rows = source.open()
    return [rows[index] for index in range(len(rows))]


@pytest.fixture
def jsonl(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS), encoding="utf-8")
    return Jsonl(path=str(file))


def test_every_format_gives_the_same_rows(tmp_path, jsonl):
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "alone"))
    datasets.DatasetDict({"valid": made}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").write_text(lines(ROWS), encoding="utf-8")
    for source in (
        jsonl,
        Jsonl(path=str(tmp_path / "rows.jsonl.gz")),
        Parquet(path=str(tmp_path / "rows.parquet")),
        HuggingFaceDataset(path=str(tmp_path / "alone")),
        HuggingFaceDataset(path=str(tmp_path / "splits"), split="valid"),
        HuggingFaceDataset(path=str(tmp_path / "folder"), split="train"),
    ):
        assert opened(source) == ROWS, source
        assert rebuild(describe(source)) == source


def test_a_tfds_data_source_gives_plain_rows(tmp_path):
    from tests.laws.tiny_dataset import ROWS as WRITTEN
    from tests.laws.tiny_dataset import TinyDataset

    builder = TinyDataset(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    by_folder = opened(TfdsSource(name=str(builder.data_dir)))
    assert sorted(by_folder, key=lambda row: row["id"]) == WRITTEN
    assert opened(TfdsSource(name="tiny_dataset", data_dir=str(tmp_path))) == by_folder
    assert len(opened(TfdsSource(name=str(builder.data_dir), split="train[:40%]"))) == 2
    with pytest.raises(ValueError, match=r"Should be one of \['train'\]"):
        TfdsSource(name=str(builder.data_dir), split="test").open()


def test_a_pattern_reads_its_files_in_sorted_order(tmp_path):
    for number in (2, 0, 1):
        (tmp_path / f"part-{number}.jsonl").write_text(lines([{"text": str(number)}]))
    rows = Jsonl(path=str(tmp_path / "part-*.jsonl")).open()
    assert [rows[k]["text"] for k in range(3)] == ["0", "1", "2"]
    assert rows.where(2) == f"{tmp_path}/part-2.jsonl:1"


@pytest.mark.parametrize(
    "source",
    [
        Jsonl(path="data/none.jsonl"),
        Parquet(path="data/none.parquet"),
        HuggingFaceDataset(path="./data/none"),
        TfdsSource(name="data/none"),
    ],
    ids=lambda source: type(source).__name__,
)
def test_a_missing_path_names_the_absolute_path_that_was_tried(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/data/none"):
        source.open()


def test_a_relative_path_is_taken_from_the_working_directory(jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert opened(Jsonl(path="rows.jsonl")) == ROWS


@pytest.mark.parametrize("bad", [b"{broken", b"[1, 2]", b'{"text": "\xff"}', b"3"])
def test_a_malformed_line_is_named_by_its_number_and_the_others_are_read(tmp_path, bad):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n' + bad + b'\n{"b": 1}')
    rows = Jsonl(path=str(tmp_path / "rows.jsonl")).open()
    assert len(rows) == 3
    assert (rows[0], rows[2]) == ({"text": "a"}, {"b": 1})
    assert [rows.where(k) for k in range(3)] == [f"{tmp_path}/rows.jsonl:{n}" for n in (1, 3, 4)]
    with pytest.raises(RowError, match="malformed"):
        rows[1]


def test_damaged_files_are_refused_by_name(tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode())[:-9])
    with pytest.raises(ValueError, match=r"cut.jsonl.gz is a damaged gzip file"):
        Jsonl(path=str(tmp_path / "cut.jsonl.gz")).open()
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows.parquet is not a Parquet file"):
        Parquet(path=str(tmp_path / "rows.parquet")).open()


def test_a_split_that_is_not_saved_is_refused_with_those_that_are(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"valid": made}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"no split 'train'; it has \['valid'\]"):
        HuggingFaceDataset(path=str(tmp_path / "splits")).open()


def test_columns_rename_fill_and_drop_what_would_be_another_kind(jsonl):
    source = Columns(source=jsonl, prompt="{mr} =>", completion=" {text}", answer="options")
    assert opened(source)[3] == {
        "id": "r3",
        "mr": "name 1",
        "prompt": "name 1 =>",
        "completion": " wörld 3 😀",
        "answer": ["a", "b"],
    }
    assert source.open().where(3) == jsonl.open().where(3)


def test_paragraphs_without_content_are_left_out(tmp_path):
    rows = [{"instruction": "Add.", "input": "2 and 2"}, {"instruction": "Sing.", "input": ""}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    source = Columns(
        source=Jsonl(path=str(tmp_path / "rows.jsonl")), prompt=("{instruction}", "Input: {input}")
    )
    assert [row["prompt"] for row in opened(source)] == ["Add.\n\nInput: 2 and 2", "Sing."]


def test_lists_are_lines_and_tables_are_looked_up(tmp_path):
    row = {"context": ["one", "two"], "fields": {"text": "three"}, "year": None, "number": 4.0}
    (tmp_path / "rows.jsonl").write_text(lines([row]))
    template = "{context}|{fields[text]}|{year}|{number:g}|{{}}"
    source = Columns(source=Jsonl(path=str(tmp_path / "rows.jsonl")), text=template)
    assert opened(source)[0]["text"] == "one\ntwo|three||4|{}"


def test_a_column_that_a_row_lacks_makes_it_malformed(jsonl):
    for template in ("body", "{body}", ("{body}",)):
        with pytest.raises(RowError, match="malformed: cannot fill"):
            Columns(source=jsonl, text=template).open()[0]


@pytest.mark.parametrize("template", ["{mr", "{}", "{0}", "{mr.__class__}", ("mr",)])
def test_a_template_that_cannot_be_filled_is_refused_at_once(jsonl, template):
    with pytest.raises(ValueError, match="Columns: "):
        Columns(source=jsonl, prompt=template)


def test_deduplication_keeps_the_first_row_of_each_value(jsonl):
    rows = Deduplicated(source=jsonl, by="mr").open()
    assert [rows[k]["id"] for k in range(len(rows))] == ["r0", "r2", "r4", "r6"]
    assert rows.where(1).endswith("rows.jsonl:3")
    assert rows.notes == ("3 of 7 rows repeat a 'mr' and are left out",)


def test_rows_are_chosen_by_the_words_of_a_field(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"id": k, "kind": "abc"[k % 3]} for k in range(7)]))
    source = Jsonl(path=str(file))
    rows = Where(source=source, by="kind", values=("c", "a")).open()
    assert [rows[k]["id"] for k in range(len(rows))] == [0, 2, 3, 5, 6]
    assert rows.where(1).endswith("rows.jsonl:3")
    assert rows.notes == ("5 of 7 rows have 'kind' c, a",)
    with pytest.raises(ValueError, match=r'no row has \'kind\' "d"; the rows have: "a", "b", "c"'):
        Where(source=source, by="kind", values=("a", "d")).open()
    with pytest.raises(ValueError, match="values is empty"):
        Where(source=source, by="kind", values=())


@given(cut=st.floats(0.05, 0.95), salt=st.text(max_size=3))
def test_a_split_is_a_partition_that_keeps_equal_values_together(tmp_path_factory, cut, salt):
    file = tmp_path_factory.getbasetemp() / "split.jsonl"
    file.write_text(lines([{"id": k, "mr": k // 3} for k in range(60)]))
    source = Jsonl(path=str(file))
    parts = [
        opened(Split(source=source, by="mr", fraction=fraction, salt=salt))
        for fraction in ((0.0, cut), (cut, 1.0))
    ]
    assert sorted(row["id"] for part in parts for row in part) == list(range(60))
    assert not {row["mr"] for row in parts[0]} & {row["mr"] for row in parts[1]}


def test_a_split_depends_on_the_value_alone_and_is_fair():
    shares = [share("salt", str(k)) for k in range(2000)]
    assert shares == [share("salt", str(k)) for k in range(2000)]
    assert all(0 <= x < 1 for x in shares)
    # 2,000 fair draws put 740..860 into [0, 0.4) but for one salt in a hundred thousand or so.
    assert 700 < sum(x < 0.4 for x in shares) < 900
    assert shares != [share("other", str(k)) for k in range(2000)]


def test_rows_that_cannot_be_read_pass_through_a_selection(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"mr": "x"}\n{broken\n{"mr": "x"}\n')
    source = Jsonl(path=str(tmp_path / "rows.jsonl"))
    for chosen in (
        Deduplicated(source=source, by="mr"),
        Split(source=source, by="mr", fraction=(0.0, 1.0)),
        Where(source=source, by="mr", values=("x",)),
    ):
        rows = chosen.open()
        assert rows.where(1).endswith("rows.jsonl:2")
        with pytest.raises(RowError, match="malformed"):
            rows[1]


def test_a_field_that_is_not_there_is_refused_with_those_that_are(jsonl):
    with pytest.raises(ValueError, match=r"rows.jsonl:1 has no field 'meaning'; it has \['id'"):
        Deduplicated(source=jsonl, by="meaning").open()


@pytest.mark.parametrize("fraction", [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1), (0.8, 0.2)])
def test_a_split_of_nothing_is_refused(jsonl, fraction):
    with pytest.raises(ValueError, match="expected 0 <= from < to <= 1"):
        Split(source=jsonl, by="mr", fraction=fraction)
