"""`maktab select`: rows of a file of any size, chosen by scores that survive a kill."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from launch.expressions import estimator_named
from launch.opened import find
from launch.rows import open_rows
from launch.score import asking_the_model
from launch.select import select
from research.core.parts import parse_part
from research.curriculum.estimators.length import Length
from research.curriculum.estimators.teacher_forced_loss import TeacherForcedLoss
from research.curriculum.expressions import standardised
from research.curriculum.policies.top_fraction import TopFraction
from research.data.pool import open_pool
from research.data.sources import Jsonl, Parquet
from research.data.stream import one_ahead, shards, survey
from research.score.rows import score_rows

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "experiments/assets/stories260k"
ROWS, SHARD, BATCH = 23, 7, 3  # primes: the last shard and the last batch are short
NOISE_NATS = 2e-5  # float32 sums in batches of other rows, as of the scorer
POLICY = "TopFraction(fraction=0.3)"
SAMPLED = "PrefixEntropy(prefix_tokens=2, temperature=1.0)"
ENTROPY_AND_LENGTH = "standardised(TeacherForcedEntropy()) - 0.5 * standardised(Length())"
GROWTH_BYTES = 400  # a row: five arrays of scores, counts and draws, and what NumPy sorts with
WORDS = ["cat", "dog", "sun", "ran", "big"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, separators=(", ", ":  ")) + "\n" for row in rows))
    return path


def texts(count: int) -> list[dict]:
    random = np.random.default_rng(count)
    lengths = random.integers(1, 13, count)
    return [{"id": i, "text": " ".join(random.choice(WORDS, n))} for i, n in enumerate(lengths)]


def chosen(data: Path, out: Path, **options):
    options = {
        "estimator": "Length()",
        "policy": "TopFraction(fraction=0.3)",
        "settings": (),
        "adapter": None,
        "truncate": False,
        "row_tokens": None,
        "batch_rows": BATCH,
        "max_bad_fraction": 0.0,
        "seed": 3,
        "dtype": "float32",
        "console": Console(quiet=True),
        "shard_rows": SHARD,
    } | options
    return select(str(MODEL), data, out, **options)


def beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.scores.jsonl")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("pool") / "rows.jsonl", texts(ROWS))


# Reading


@pytest.mark.parametrize("name", ["plain.jsonl", "zipped.jsonl.gz", "table.parquet"])
def test_a_stream_has_the_rows_of_the_source(tmp_path, name):
    rows, path = texts(11), tmp_path / name
    if name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    else:
        content = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows)  # no newline at the end
        path.write_bytes(gzip.compress(content.encode()) if "gz" in name else content.encode())
    source = (Parquet if name.endswith("parquet") else Jsonl)(path=str(path)).open()
    for first in (0, 4, 5):
        found = [
            (opened[i], opened.where(i))
            for shard in shards(path, 3, first)
            for opened in [shard.open()]
            for i in range(len(opened))
        ]
        assert found == [(source[i], source.where(i)) for i in range(first, 11)]
    assert survey(path)[0] == 11


def test_the_next_item_is_made_while_one_is_used_and_errors_come_through():
    made = []

    def items():
        for number in range(3):
            made.append(number)
            yield number
        raise ValueError("the fourth")

    ahead = one_ahead(items())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2] == made
    with pytest.raises(ValueError, match="the fourth"):
        next(ahead)


# Choosing


def test_the_rows_with_the_highest_scores_are_copied_byte_by_byte(data, tmp_path):
    out = tmp_path / "below" / "subset.jsonl"
    result = chosen(data, out)
    raw = data.read_bytes().splitlines(keepends=True)
    scores = [line["signals"][0] for line in lines(beside(out))[1:]]
    top = sorted(np.argsort(-np.array(scores), kind="stable")[: int(0.3 * ROWS)])
    assert out.read_bytes() == b"".join(raw[row] for row in top)
    assert (result.rows, result.of, result.bad) == (6, ROWS, 0)


def test_scores_are_those_of_the_score_command_whatever_the_shards(data, tmp_path):
    """Sampled answers too: a row's key is that of its place in the whole file."""
    estimator = estimator_named(SAMPLED)
    found = find(str(MODEL), None, "float32")
    pool = open_rows(data, found, row_tokens=None, truncate=False, rows=BATCH, read=open_pool)
    opened = found.load(Console(quiet=True))
    rows = score_rows(
        estimator,
        opened.model,
        opened.params,
        pool,
        key=jax.random.key(3),
        place=opened.place,
        stop_ids=opened.stop_ids,
        rows_per_batch=BATCH,
    )
    whole = [row["score_nats"] for row in rows]
    for shard_rows in (SHARD, ROWS):
        out = tmp_path / f"by-{shard_rows}.jsonl"
        chosen(data, out, estimator=SAMPLED, shard_rows=shard_rows)
        found_scores = [line["signals"][0] for line in lines(beside(out))[1:]]
        np.testing.assert_allclose(found_scores, whole, atol=NOISE_NATS)
    assert found_scores == whole  # one shard: the same batches, the same bits


def test_a_combination_is_standardised_over_the_whole_file(data, tmp_path):
    out = tmp_path / "subset.jsonl"
    chosen(data, out, estimator=ENTROPY_AND_LENGTH, policy="BottomFraction(fraction=0.2)")
    header, *rows = lines(beside(out))
    entropy, length = np.array([row["signals"] for row in rows], np.float64).T
    value = (entropy - entropy.mean()) / entropy.std() - 0.5 * (
        length - length.mean()
    ) / length.std()
    lowest = sorted(np.argsort(value)[: int(0.2 * ROWS)].tolist())
    assert [row["id"] for row in lines(out)] == lowest
    assert [part["type"].rpartition(".")[2] for part in header["measured"]] == [
        "TeacherForcedEntropy",
        "Length",
    ]
    again = tmp_path / "subset.jsonl"  # another expression of the same measurements
    before = beside(again).read_bytes()
    chosen(data, again, estimator=ENTROPY_AND_LENGTH.replace("0.5", "2.0"), policy=POLICY)
    assert beside(again).read_bytes() == before


def test_a_zipped_name_zips_and_parquet_becomes_lines(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows, path = texts(9), tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    out = tmp_path / "subset.jsonl.gz"
    chosen(path, out, policy="RoundWiseUniform(fraction=0.5)")
    copied = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    assert len(copied) == 4
    assert all(row in rows for row in copied)


# Going on


def test_cut_anywhere_it_goes_on_to_the_same_bytes(data, tmp_path):
    whole = tmp_path / "whole.jsonl"
    chosen(data, whole)
    content, subset = beside(whole).read_bytes(), whole.read_bytes()
    out = tmp_path / "cut.jsonl"
    starts = [len(b"".join(content.splitlines(keepends=True)[:n])) for n in range(ROWS + 2)]
    for length in (
        0,
        5,
        *(starts[n] + d for n in (1, 2, SHARD + 1, 2 * SHARD) for d in (-1, 0, 9)),
    ):
        beside(out).write_bytes(content[:length])
        chosen(data, out)
        assert beside(out).read_bytes() == content
        assert out.read_bytes() == subset


def test_what_is_whole_is_not_scored_again_and_a_policy_needs_no_scores(
    data, tmp_path, monkeypatch
):
    out = tmp_path / "subset.jsonl"
    chosen(data, out)
    before = beside(out).read_bytes()
    monkeypatch.setattr("launch.select.score_shards", None)
    assert chosen(data, out, policy="BottomFraction(fraction=0.5)").rows == ROWS // 2
    assert beside(out).read_bytes() == before


def test_scores_of_something_else_are_not_gone_on_with(data, tmp_path):
    out = tmp_path / "subset.jsonl"
    chosen(data, out)
    for options, named in (
        ({"seed": 4}, "seed: 3 -> 4"),
        ({"estimator": "TeacherForcedLoss()"}, "measured"),
    ):
        with pytest.raises(ValueError, match=rf"holds other scores:\n  .*{named}"):
            chosen(data, out, **options)
    other = write(tmp_path / "other.jsonl", texts(ROWS)[::-1])
    with pytest.raises(ValueError, match="data: 'sha256"):
        chosen(other, out)
    beside(out).write_text('{"not": "ours"}\n')
    with pytest.raises(ValueError, match="is no file of scores"):
        chosen(data, out)


def test_scores_that_two_commands_wrote_are_refused(data, tmp_path):
    out = tmp_path / "subset.jsonl"
    chosen(data, out)
    header, *rest = beside(out).read_text().splitlines(keepends=True)
    beside(out).write_text(header + "".join([*rest[:SHARD], *rest[:SHARD], *rest[2 * SHARD :]]))
    with pytest.raises(ValueError, match=rf"scores.jsonl:{SHARD + 2}: expected the scores of row"):
        chosen(data, out)


def test_another_model_is_asked_and_named_by_its_weights(data, tmp_path):
    out = tmp_path / "subset.jsonl"
    reference = f"ExcessLoss(reference=Pretrained(folder={str(MODEL)!r}))"
    chosen(data, out, estimator=reference)
    header, *rows = lines(beside(out))
    assert all(line["signals"][0] == line["signals"][1] for line in rows)  # it is the model itself
    assert header["other_models"] == [header["model"]]


# What cannot be used


def test_bad_rows_stop_it_by_name_or_are_left_out_as_if_they_were_not_there(tmp_path):
    rows = texts(ROWS)
    clean = write(tmp_path / "clean.jsonl", rows)
    spoilt = [*rows[:3], {"id": "x", "text": ""}, *rows[3:], {"id": "y", "nothing": 1}]
    data = write(tmp_path / "spoilt.jsonl", spoilt)
    with pytest.raises(ValueError, match=r"1 rows of .*\n  .*spoilt.jsonl:4: empty after masking"):
        chosen(data, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    kept, wanted = tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    options = {"estimator": SAMPLED, "shard_rows": 32}  # one shard: the same batches
    result = chosen(data, kept, max_bad_fraction=0.1, **options)
    chosen(clean, wanted, **options)
    assert (result.of, result.bad) == (ROWS + 2, 2)
    assert kept.read_bytes() == wanted.read_bytes()
    bad = [line for line in lines(beside(kept))[1:] if "bad" in line]
    assert [line["row"] for line in bad] == [3, ROWS + 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "Lenght()"}, "'Lenght' is unknown. Did you mean Length"),
        ({"estimator": "__import__('os')"}, "is unknown"),
        ({"estimator": "Length().of"}, "not allowed here"),
        ({"estimator": "Length(off='x')"}, "it has: of"),
        ({"estimator": "Free()"}, "nothing is trained here|has no score before"),
        ({"policy": "TopFraction(fraction='a')"}, "TopFraction.fraction takes float, not 'a'"),
        ({"policy": "Sorted()"}, "selects every row"),
        ({"policy": "TopFraction(fraction=2)"}, "expected 0 < fraction <= 1"),
        ({"policy": "Length()"}, "'Length' is unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_row_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        chosen(tmp_path / "nowhere.jsonl", tmp_path / "out.jsonl", **options)


def test_an_expression_of_parts_is_the_part():
    known = {"Length": Length, "Loss": TeacherForcedLoss, "TopFraction": TopFraction}
    assert parse_part("TopFraction(fraction=1, order='descending')", known) == TopFraction(
        fraction=1.0, order="descending"
    )
    known["standardised"] = standardised
    written = parse_part("-standardised(Loss) / 2 < standardised(Length())", known)
    assert written == (-standardised(TeacherForcedLoss()) / 2 < standardised(Length()))


def test_score_takes_parts_too_but_no_combinations():
    assert asking_the_model("TeacherForcedLoss", ()) == asking_the_model("loss", ())
    with pytest.raises(ValueError, match="maktab select"):
        asking_the_model(ENTROPY_AND_LENGTH, ())


# At scale

RUN = """
import resource, sys
from pathlib import Path
from rich.console import Console
from tests.flow.test_select import chosen

folder = Path(sys.argv[1])
options = {"shard_rows": int(sys.argv[3]), "batch_rows": 256, "estimator": sys.argv[4]}
chosen(folder / sys.argv[2], folder / ("out-" + sys.argv[2]), **options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def started(folder: Path, name: str, shard_rows: int, estimator: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), name, str(shard_rows), estimator],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_file(tmp_path):
    used = {}
    for count in (20_000, 200_000):
        write(tmp_path / f"{count}.jsonl", texts(count))
        process = started(tmp_path, f"{count}.jsonl", 4_096, "Length()")
        used[count] = int(process.communicate()[0])
    grown = used[200_000] - used[20_000]
    assert grown < GROWTH_BYTES * 180_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    for name in ("whole.jsonl", "killed.jsonl"):
        write(tmp_path / name, texts(4_001))
    estimator, shard_rows = "TeacherForcedLoss()", 128
    assert started(tmp_path, "whole.jsonl", shard_rows, estimator).wait() == 0
    out, kills = tmp_path / "out-killed.jsonl", 0
    for shards_done in (1, 9, 20):
        process = started(tmp_path, "killed.jsonl", shard_rows, estimator)
        while process.poll() is None:
            there = beside(out).read_bytes().count(b"\n") if beside(out).exists() else 0
            if there > shards_done * shard_rows:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 3
    assert started(tmp_path, "killed.jsonl", shard_rows, estimator).wait() == 0
    whole = tmp_path / "out-whole.jsonl"
    assert beside(out).read_bytes() == beside(whole).read_bytes()
    assert out.read_bytes() == whole.read_bytes()
