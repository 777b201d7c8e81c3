"""Whatever is wrong with the input is one message: what, what was expected, what to do."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cli import guarded
from tests.flow.commands import (
    MAX_POSITIONS,
    STORIES,
    VOCAB_SIZE,
    Said,
    maktab,
    model_folder,
    write_experiment,
    write_rows,
)

GOOD = {"id": "good", "text": "a cat"}


def refused(said: Said, *words: Any, code: int = 2) -> None:
    """The command ended with `code`, and its message holds all of `words` and no traceback."""
    assert said.code == code, (said.out, said.err)
    for word in words:
        assert str(word) in said.err
    for noise in ("Traceback", "raised at", "(no message)"):
        assert noise not in said.err


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "good.jsonl", GOOD)


@pytest.fixture
def experiment(tmp_path) -> Path:
    return write_experiment(tmp_path)


def score(tmp_path: Path, data: Path, *words: Any, model: Path = STORIES) -> Said:
    """Score a file, and see that nothing is left where the result would be."""
    said = maktab("score", model, data, "--out", tmp_path / "out" / "o.jsonl", *words)
    assert not (tmp_path / "out").exists()
    return said


# Settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tuning.rnk=4", ("'tuning.rnk'", "Did you mean 'rank'?", "alpha")),
        ("clock", ("--set 'clock'", "expected path=value")),
        ("clock.steps=lots", ("clock.steps is 4 and takes int", "'lots'")),
        ("clock.steps=2.5", ("takes int", "2.5")),
        ("clock.steps=None", ("takes int", "None")),
        ("clock.steps=0", ("Clock: steps=0 must be positive",)),
        ("data.pack=yes", ("takes bool", "'yes'")),
        ("seeds.order=first", ("takes int | None", "'first'")),
        ("tuning=Full", ("takes Tuning", "one by one (rank, ", "or the experiment file")),
        ("layout.axes=(('data',),)", ("takes tuple[tuple[str, int], ...]",)),
        ("compute.dtype=float8", ("dtype='float8': float32 or bfloat16",)),
        ("data.rows=6", ("no multiple of 4 row shards", "change rows, the layout")),
        ("layout.axes=(('data', 64),)", ("does not fit 8 devices", "change the sizes")),
        ("micro_batches=3", ("micro_batches=3 does not divide data.rows=4",)),
    ],
)
def test_a_setting_that_cannot_be_is_refused(experiment, tmp_path, setting, words):
    layout = ("--set", "layout.axes=(('data', 4),)") if setting.startswith("data.rows") else ()
    run = tmp_path / "run"
    refused(maktab("train", experiment, *layout, "--set", setting, "--workdir", run), *words)
    assert not run.exists()


def test_a_setting_is_read_by_its_fields_type(experiment):
    said = maktab("train", experiment, "--set", "name=7", "--set", "model.folder=/no/where")
    refused(said, "/no/where is not a folder")


def test_settings_that_need_one_another_are_made_together(experiment):
    off = ("--set", "checkpoints.keep_best=0", "--set", "checkpoints.metric=")
    refused(maktab("train", experiment, *off[:2]), "need one another")
    refused(maktab("train", experiment, *off, "--set", "model.folder=/no/where"), "not a folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--estimator", "perplexity"), "choose from loss, entropy, prefix_entropy"),
        (("--set", "prefix_tokens=3"), "TeacherForcedLoss has no field 'prefix_tokens'"),
        (("--dtype", "float16"), "dtype='float16': float32 or bfloat16"),
        (("--batch-rows", 0), "--batch-rows"),
        (("--colour", "red"), "No such option"),
    ],
)
def test_a_word_of_the_command_line_is_refused(rows, tmp_path, words, message):
    refused(score(tmp_path, rows, *words), message)


def test_steps_to_profile_are_two_numbers(experiment):
    refused(maktab("train", experiment, "--profile", "5-8"), "5-8", "expected FIRST:LAST")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either a file of rows or --prompt TEXT"),
        (("--prompt", "a", "--top-k", 3), "top_k=3"),
        (("--prompt", "a", "--temperature", -1), "--temperature"),
        (("--prompt", "<s>a"), "double BOS"),
        (("--prompt", "cat " * MAX_POSITIONS), "keep the end by --truncate"),
    ],
)
def test_what_cannot_be_continued_is_refused(words, message):
    refused(maktab("generate", STORIES, *words), message)


# Experiment files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", ("has no get_config()", "must return an Experiment")),
        ("def get_config(:\n", (":1: SyntaxError", "def get_config(:")),
        ("\n\ndef get_config():\n    return Lora()\n", (":4: NameError", "at: return Lora()")),
        ("import nothing_like_it\n", (":1: ModuleNotFoundError", "nothing_like_it")),
        ("def get_config():\n    return 3\n", ("returned a int", "expected an Experiment")),
        (
            "from research.clock import Clock\nget_config = lambda: Clock(steps=0)\n",
            (":2: ValueError: Clock: steps=0 must be positive",),
        ),
        (
            "from research.tuning.lora import Lora\ndef get_config():\n    Lora(rnk=3)\n",
            (":3: TypeError", "rnk"),
        ),
    ],
)
def test_an_experiment_file_is_told_its_line(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    refused(maktab("train", file), file, *words)


def test_a_missing_experiment_file_is_named(tmp_path):
    refused(maktab("train", tmp_path / "no.py"), "no experiment file", tmp_path / "no.py")
    (tmp_path / "no.txt").write_text("")
    refused(maktab("train", tmp_path / "no.txt"), "must end in .py")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ("has no sweep()", "use `maktab train`")),
        ("def sweep():\n    yield from ()\n", ("sweep() yields nothing",)),
        ("def sweep():\n    yield 3\n", ("sweep() yielded a int",)),
        ("def sweep():\n    yield get_config()\n    yield get_config()\n", ("more than once",)),
        ("def sweep():\n    yield 1 / 0\n", ("ZeroDivisionError", "at: yield 1 / 0")),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused(experiment, body, words):
    text, _, _ = experiment.read_text().partition("def sweep()")
    experiment.write_text(text + body)
    refused(maktab("sweep", experiment), *words)


# Model folders


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Give what changes the bytes of a file of a folder."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def field(**fields: Any) -> Callable[[Path], None]:
    """Give what sets fields of config.json."""
    return damage("config.json", lambda held: json.dumps({**json.loads(held), **fields}).encode())


FOLDERS = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ("config.json does not exist",),
    ),
    "no JSON": (damage("config.json", lambda held: held[:9]), ("config.json is not JSON",)),
    "architecture": (field(model_type="gpt_neox"), ("'gpt_neox'", "supported are ", " llama,")),
    "unknown field": (field(rope_twist=3), ("rope_twist=3", "may change the arithmetic")),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ("neither model.safetensors nor",),
    ),
    "cut weights": (damage("model.safetensors", lambda held: held[:-9]), ("its header describes",)),
    "cut header": (damage("model.safetensors", lambda held: held[:99]), ("header does not fit",)),
    "missing tensor": (field(num_hidden_layers=6), ("missing model.layers.5.", "(172, 64)")),
    "tokenizer": (damage("tokenizer.json", lambda held: held[:9]), ("tokenizer cannot be opened",)),
    "stops": (
        damage("generation_config.json", lambda _: b'{"eos_token_id": "x"}'),
        ("eos_token_id is 'x'",),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_folder_that_cannot_be_used_is_refused(rows, experiment, tmp_path, name):
    spoil, words = FOLDERS[name]
    folder = model_folder(tmp_path / "model")
    spoil(folder)
    refused(score(tmp_path, rows, model=folder), folder, *words)
    run = tmp_path / "run"
    said = maktab("train", experiment, "--set", f"model.folder={folder}", "--workdir", run)
    refused(said, *words)
    assert not run.exists(), "a run that cannot start leaves no trace"


def test_a_model_that_is_not_there_is_refused(rows, tmp_path):
    refused(score(tmp_path, rows, model=tmp_path / "no"), "is not a folder, nor a hub id")


def test_an_adapter_of_another_model_is_refused(rows, tmp_path, swept):
    refused(score(tmp_path, rows, "--adapter", tmp_path), "adapter_config.json does not exist")
    adapter = tmp_path / "adapter"
    words = ("--as", "adapter", "--experiment", swept.file)
    assert maktab("export", swept.plain, "--to", adapter, *words).code == 0
    held = json.loads((adapter / "adapter_config.json").read_text())
    other = {**held, "target_modules": ["c_attn"]}
    (adapter / "adapter_config.json").write_text(json.dumps(other))
    refused(
        score(tmp_path, rows, "--adapter", adapter), "does not hold the adapter", "_proj.lora_A"
    )
    (adapter / "adapter_config.json").write_text(json.dumps({**held, "r": 5}))
    refused(score(tmp_path, rows, "--adapter", adapter), adapter)


# Rows

ROWS = {
    "malformed": ("{broken", ("malformed: not a line of JSON",)),
    "a list": ("[1]", ("malformed: a list; expected an object",)),
    "unknown kind": ({"body": "x"}, ("fits no kind of row", "expected one of input_ids")),
    "two kinds": ({"text": "x", "input_ids": [1, 5]}, ("fits input_ids and text",)),
    "bad answer": (
        {"question": "q", "options": ["a", "b"], "answer": 7},
        ("answer 7 names 0 of the 2 options", "expected a 0-based index"),
    ),
    "too long": (
        {"text": "cat " * MAX_POSITIONS},
        ("too long", f"row_tokens={MAX_POSITIONS}", "--truncate", "--row-tokens"),
    ),
    "double BOS": ({"text": "<s>cat"}, ("double BOS", "leave it out")),
    "unknown token": (
        {"input_ids": [1, VOCAB_SIZE]},
        (f"id {VOCAB_SIZE}; the model has {VOCAB_SIZE} tokens",),
    ),
    "negative token": ({"input_ids": [1, -5]}, ("input_ids holds -5",)),
    "no token": ({"input_ids": []}, ("empty after masking",)),
    "no text": ({"text": " "}, ("the text is empty",)),
    "no answer": ({"prompt": "cat"}, ("the answer is missing or empty",)),
    "no template": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        ("has no chat template",),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_used_is_named_by_file_line_and_id(tmp_path, name):
    row, words = ROWS[name]
    row = row if isinstance(row, str) else {"id": "the-bad-one", **row}
    file = write_rows(tmp_path / "d.jsonl", GOOD, row, GOOD)
    named = (f"{file}:2: ", "1 rows", "nothing was written")
    known = () if isinstance(row, str) else ("(id 'the-bad-one')",)
    refused(score(tmp_path, file), *named, *known, *words)
    said = maktab("evaluate", STORIES, file, "--out", tmp_path / "e.json")
    refused(said, *named, *known)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


@pytest.mark.parametrize("name", ["malformed", "too long", "double BOS", "unknown token"])
def test_a_prompt_that_cannot_be_used_is_named(tmp_path, name):
    row, _ = ROWS[name]
    row = row if isinstance(row, str) else {"id": "the-bad-one", **row}
    file = write_rows(tmp_path / "d.jsonl", GOOD, row)
    said = maktab("generate", STORIES, file, "--out", tmp_path / "o.jsonl")
    refused(said, f"{file}:2: {name}", *(() if isinstance(row, str) else ("the-bad-one",)))
    assert not (tmp_path / "o.jsonl").exists()


def test_every_bad_row_of_a_run_is_counted_and_the_first_are_named(experiment, tmp_path):
    data = experiment.parent / "train.jsonl"
    data.write_text(data.read_text() + "{broken\n" * 12)
    said = maktab("train", experiment, "--workdir", tmp_path / "run")
    refused(said, "12 of 35 rows cannot be used", f"{data}:24: malformed", "and 4 more")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", b"", "the data has no rows"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "latin.jsonl:1: malformed"),
        (
            "cut.jsonl.gz",
            gzip.compress(b'{"text": "cat"}\n' * 99, mtime=0)[:-20],
            "damaged gzip file",
        ),
        ("odd.parquet", b"not a table", "is not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(score(tmp_path, tmp_path / name), tmp_path / name, message)


def test_a_file_of_prompts_has_rows(tmp_path):
    empty = write_rows(tmp_path / "none.jsonl")
    refused(maktab("generate", STORIES, empty), empty, "has no rows")


def test_a_file_that_is_not_there_is_named_with_its_absolute_path(tmp_path):
    refused(score(tmp_path, tmp_path / "no.jsonl"), f"nothing at {tmp_path / 'no.jsonl'}")


def test_a_result_needs_a_place(rows, tmp_path):
    for out in (tmp_path, rows / "o.jsonl", rows):
        refused(maktab("score", STORIES, rows, "--out", out), f"--out {out}", "give")
    assert json.loads(rows.read_text()) == GOOD


def test_what_is_asked_of_rows_must_be_in_them(rows, tmp_path):
    words = ("evaluate", STORIES, rows, "--out", tmp_path / "e.json")
    refused(maktab(*words, "--slice", "food"), f"{rows}:1 has no field 'food'", "['id', 'text']")
    refused(maktab(*words, "--pattern", "x"), "--pattern 'x' has no effect")


# Runs


def test_a_work_directory_of_another_experiment_is_refused(swept):
    said = maktab("train", swept.file, "--workdir", swept.plain, "--set", "tuning.rank=4")
    refused(said, "holds another experiment", "experiment.tuning.rank: 3 -> 4", "another --workdir")
    refused(maktab("train", swept.file, "--workdir", swept.file), "is a file; give a folder")


def test_a_damaged_record_of_a_run_is_refused(swept, tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    for command in (("train", swept.file, "--workdir"), ("export", "--to", tmp_path / "x")):
        refused(maktab(*command, tmp_path), tmp_path / "experiment.json", "is not JSON")


def test_a_damaged_checkpoint_stops_the_run_and_names_the_file(swept, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(swept.plain, run)
    (run / "finished.json").unlink()
    files = sorted((run / "checkpoints" / "4" / "learner").rglob("d/*"))
    files[0].write_bytes(files[0].read_bytes()[:-3])
    words = (run / "checkpoints" / "4", "is damaged", files[0].name)
    refused(maktab("train", swept.file, "--workdir", run), *words, code=3)
    refused(maktab("export", run, "--to", tmp_path / "x"), *words, code=3)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--as", "gguf"), "--as 'gguf': expected merged or adapter"),
        (("--step", "newest"), "expected last, best or one of these numbers"),
        (("--step", "77"), "has checkpoints of steps"),
        (("--best-by", "test/f1"), "has an evaluation 'test/f1'"),
    ],
)
def test_what_cannot_be_exported_is_refused(swept, tmp_path, words, message):
    file = ("--experiment", swept.file)
    refused(maktab("export", swept.plain, "--to", tmp_path / "x", *words, *file), message)
    assert not (tmp_path / "x").exists()


def test_an_export_overwrites_nothing(swept, rows, tmp_path):
    for place in (tmp_path, rows):
        refused(maktab("export", swept.plain, "--to", place), "not an empty folder", place)
    assert [path.name for path in tmp_path.iterdir()] == [rows.name]


def test_a_run_without_an_adapter_says_so(swept, tmp_path):
    held = json.loads((swept.plain / "experiment.json").read_text())
    held["experiment"]["tuning"] = {"type": "research.tuning.full.Full"}
    (tmp_path / "experiment.json").write_text(json.dumps(held))
    words = ("--experiment", swept.file)
    said = maktab("export", tmp_path, "--to", tmp_path / "x", "--as", "adapter", *words)
    refused(said, "trained with Full, which has no adapter; use --as merged")
    refused(maktab("export", tmp_path, "--to", tmp_path / "x", *words), "holds no checkpoint")


def test_what_is_no_run_is_refused(tmp_path):
    refused(maktab("export", tmp_path, "--to", tmp_path / "x"), "give a run directory")
    refused(maktab("replay", tmp_path, "--step", 1), "give a run directory")
    refused(maktab("report", tmp_path), "no run directory is there or below it")


def test_a_step_that_was_not_made_is_refused(swept):
    refused(maktab("replay", swept.plain, "--step", 9), "has no step 9; it has 1 to 4")


def test_an_arm_that_is_not_there_is_refused(swept, tmp_path):
    said = maktab("report", swept.folder, "--control", "cold", "--out", tmp_path)
    refused(said, "'cold' is no arm", "plain", "hot")


# The rest


def test_errors_of_libraries_say_where_they_are_from(capsys):
    def command():
        json.loads("{")

    assert guarded(command) == 2
    message = capsys.readouterr().err
    assert "Expecting property name" in message
    assert "(JSONDecodeError, raised at json.decoder:" in message
    assert "called at launch.cli:" in message


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
    with pytest.raises(RuntimeError):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("of some library")))


def test_running_out_of_memory_says_what_to_lower(capsys):
    def command():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 TiB")

    assert guarded(command) == 3
    message = capsys.readouterr().err
    assert "data.rows" in message
    assert "--batch-rows" in message
