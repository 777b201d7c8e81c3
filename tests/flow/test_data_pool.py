"""From files to a pool: what is counted, what is named, and what stops a run before it compiles."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

from research.core.parts import describe, rebuild
from research.core.protocols import View
from research.data.batches import pack_batch
from research.data.inspect import coloured, overview, packing_efficiency, plain
from research.data.leakage import comparable, leaked, normalised
from research.data.packing import pack
from research.data.pool import Data, Pool, Weighted, open_pool
from research.data.rows import Rendering
from research.data.selection import Columns, Deduplicated, Split
from research.data.sources import Jsonl
from research.data.tokenizer import open_tokenizer

ASSETS = Path(__file__).parents[2] / "experiments/assets"
E2E = Columns(
    source=Deduplicated(source=Jsonl(path=str(ASSETS / "e2e_nlg/valid.jsonl.gz")), by="mr"),
    prompt="{mr} =>",
    completion=" {text}",
)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(str(ASSETS / "stories260k"))


@pytest.fixture
def write(tmp_path):
    def to_file(*rows, name="rows.jsonl") -> Jsonl:
        made = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(made) + "\n")
        return Jsonl(path=str(tmp_path / name))

    return to_file


def texts(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"t{k}", "text": f"the cat number {k}"} for k in range(start, start + count)]


def test_the_quick_starts_data_divides_by_meaning(tokenizer):
    data = {
        name: Data(sources=(Split(source=E2E, by="mr", fraction=part),), row_tokens=288)
        for name, part in (("pool", (0.0, 0.8)), ("test", (0.8, 1.0)))
    }
    pools = {name: open_pool(one, tokenizer) for name, one in data.items()}
    assert sum(len(pool) for pool in pools.values()) == 547
    meanings = [{example.row["mr"] for example in pool.examples} for pool in pools.values()]
    assert not meanings[0] & meanings[1]
    assert len(meanings[0]) == len(pools["pool"])
    assert pools["pool"].census.dropped == []
    assert "4125 of 4672 rows repeat a 'mr' and are left out" in pools["pool"].census.notes


def test_opening_twice_gives_the_same_bits(tokenizer):
    data = Data(sources=(Split(source=E2E, by="mr", fraction=(0.0, 0.1)),))
    one, two = open_pool(data, tokenizer), open_pool(rebuild(describe(data)), tokenizer)
    assert one.ids == two.ids
    for a, b in zip(one.examples, two.examples, strict=True):
        assert a.tokens.tobytes() == b.tokens.tobytes()
        assert a.trained.tobytes() == b.trained.tobytes()


def test_every_row_is_kept_or_named_with_its_line_and_reason(write, tokenizer):
    source = write(
        {"id": "good", "text": "the cat sat"},
        "{broken",
        {"id": "empty", "text": " "},
        {"id": "long", "text": "the cat " * 40},
        {"id": "good", "text": "another"},
        {"id": "twice", "text": "<s>the cat"},
        {"id": "odd", "body": "x"},
        {"question": "x", "options": ["a", "b"], "answer": 5},
        {"prompt": "the cat", "completion": ""},
    )
    data = Data(sources=(source,), row_tokens=32, max_bad_fraction=0.9)
    pool = open_pool(data, tokenizer)
    assert pool.ids == ("good",)
    dropped = {(int(row.where.rsplit(":")[-1]), row.reason) for row in pool.census.dropped}
    assert dropped == {
        (2, "malformed"),
        (3, "empty after masking"),
        (4, "too long"),
        (5, "duplicate id"),
        (6, "double BOS"),
        (7, "unknown kind"),
        (8, "bad answer"),
        (9, "empty after masking"),
    }
    assert (pool.census.read, pool.census.kept) == ([9], [1])


def test_too_many_bad_rows_stop_the_run_and_the_first_are_named(write, tokenizer):
    source = write(*texts(98), "{broken", {"text": 7})
    data = Data(sources=(source,), max_bad_fraction=0.02)
    assert len(open_pool(data, tokenizer)) == 98
    with pytest.raises(ValueError, match=r"2 of 100 rows cannot be used .*1.00%") as caught:
        open_pool(Data(sources=(source,)), tokenizer)
    assert f"{source.path}:99: malformed: not a line of JSON" in str(caught.value)
    assert f"{source.path}:100: malformed: text is a int" in str(caught.value)


def test_a_pool_of_nothing_is_refused(write, tokenizer):
    with pytest.raises(ValueError, match="the data has no rows"):
        open_pool(Data(sources=(write(""),)), tokenizer)
    with pytest.raises(ValueError, match="1 of 1 rows cannot be used"):
        open_pool(Data(sources=(write("{broken"),), max_bad_fraction=0.99), tokenizer)


def test_long_rows_are_cut_only_where_asked_and_counted(write, tokenizer):
    source = write({"text": "the cat " * 40}, *texts(2))
    with pytest.raises(ValueError, match=r"too long: .* tokens, row_tokens=16; raise it or set"):
        open_pool(Data(sources=(source,), row_tokens=16), tokenizer)
    pool = open_pool(Data(sources=(source,), row_tokens=16, truncate=True), tokenizer)
    assert len(pool) == 3
    assert pool.lengths_X.max() == 16
    assert pool.census.truncated == 1
    answer = pool.view(0, View(content="answer"))
    assert len(answer.tokens) == 16, "a view of the answer is of what is trained, not of more"


def test_a_completion_that_is_cut_off_whole_is_not_trained(write, tokenizer):
    source = write({"prompt": "the cat " * 40, "completion": "sat"}, *texts(1))
    data = Data(sources=(source,), row_tokens=16, truncate=True, max_bad_fraction=0.5)
    (dropped,) = open_pool(data, tokenizer).census.dropped
    assert dropped.reason == "empty after masking"


def test_given_ids_need_no_tokenizer_and_must_be_the_models(write):
    source = write({"input_ids": [3, 1, 4]}, {"input_ids": [1, 511]}, {"input_ids": [5, 512]})
    data = Data(sources=(source,), needs_no_text=True, max_bad_fraction=0.5)
    pool = open_pool(data, None, vocab_size=512)
    assert [example.tokens.tolist() for example in pool.examples] == [[3, 1, 4], [1, 511]]
    assert pool.census.dropped[0].detail == "id 512; the model has 512 tokens"
    with pytest.raises(ValueError, match="needs a tokenizer, and there is none"):
        open_pool(Data(sources=(write(*texts(2)),), needs_no_text=True), None)


def test_rows_without_an_id_are_named_by_their_content(write, tokenizer):
    source = write({"text": "the cat"}, {"text": "the dog"}, {"text": "the cat"})
    pool = open_pool(Data(sources=(source,)), tokenizer)
    assert pool.ids[2] == f"{pool.ids[0]}-2"
    assert "1 rows without an id repeat another row, and stay" in pool.census.notes
    moved = write({"text": "the dog"}, {"text": "the cat"}, name="moved.jsonl")
    assert open_pool(Data(sources=(moved,)), tokenizer).ids == (pool.ids[1], pool.ids[0])


def test_an_id_that_two_rows_claim_is_refused(write, tokenizer):
    source = write(*texts(2), *texts(1))
    with pytest.raises(ValueError, match=r"duplicate id: id 't0' is also at .*rows.jsonl:1"):
        open_pool(Data(sources=(source,)), tokenizer)


def test_a_view_that_a_row_has_no_place_for_names_the_row(write, tokenizer):
    source = write({"input_ids": [1, 2]}, {"prompt": "the", "completion": " cat"})
    pool = open_pool(Data(sources=(source,)), tokenizer)
    broken = dataclasses.replace(pool.examples[1], row={"prompt": 3})
    pool = Pool((pool.examples[0], broken), pool.data, tokenizer, pool.census)
    with pytest.raises(ValueError, match=r"rows.jsonl:2: cannot be shown as View"):
        pool.views([0, 1], View(content="prompt"))


def test_reading_tells_how_far_it_is(write, tokenizer):
    seen = []
    source = write(*texts(3))
    open_pool(
        Data(sources=(source, source), max_bad_fraction=0.5),
        tokenizer,
        watch=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 3), (3, 3)]


def test_sources_count_by_their_size_or_by_their_weights(write, tokenizer):
    small, large = write(*texts(2), name="a.jsonl"), write(*texts(6, 2), name="b.jsonl")
    pool = open_pool(Data(sources=(small, large)), tokenizer)
    assert pool.groups_X.tolist() == [0] * 2 + [1] * 6
    assert pool.group_weights.tolist() == [0.25, 0.75]
    weighted = (Weighted(source=small, weight=3.0), Weighted(source=large, weight=1.0))
    assert open_pool(Data(sources=weighted), tokenizer).group_weights.tolist() == [0.75, 0.25]
    with pytest.raises(ValueError, match="1 of 2 sources are Weighted; weight all or none"):
        Data(sources=(weighted[0], large))


def test_sources_that_share_ids_are_told_apart_by_name(write, tokenizer):
    one, two = write(*texts(2), name="a.jsonl"), write(*texts(2), name="b.jsonl")
    plain_sources = (Weighted(source=one, weight=1.0), Weighted(source=two, weight=1.0))
    with pytest.raises(ValueError, match="duplicate id"):
        open_pool(Data(sources=plain_sources), tokenizer)
    named = (plain_sources[0], Weighted(source=two, weight=1.0, name="b"))
    assert open_pool(Data(sources=named), tokenizer).ids == ("t0", "t1", "b/t0", "b/t1")


def test_a_row_of_the_test_set_is_kept_out_of_the_pool(write, tokenizer):
    pool_rows = write({"prompt": "Where is the CAT ?", "completion": "there"}, *texts(3))
    test_rows = write({"prompt": "where is the cat", "completion": "gone"}, name="test.jsonl")
    data = Data(sources=(pool_rows,), held_out=(test_rows,), max_bad_fraction=0.3)
    pool = open_pool(data, tokenizer)
    assert pool.ids == ("t0", "t1", "t2")
    assert pool.census.kept == [3]
    assert [(row.reason, row.detail) for row in pool.census.dropped] == [
        ("held out", f"repeats the held-out row at {test_rows.path}:1")
    ]
    strict = Data(sources=(pool_rows,), held_out=(test_rows,))
    with pytest.raises(ValueError, match="'held out': 1"):
        open_pool(strict, tokenizer)


def test_a_row_that_nearly_repeats_a_held_out_one_is_noted_and_stays(write, tokenizer):
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    pool_rows = write({"id": "near", "text": f"{words} and more"})
    test_rows = write({"text": words}, "{broken", name="test.jsonl")
    pool = open_pool(Data(sources=(pool_rows,), held_out=(test_rows,)), tokenizer)
    assert pool.ids == ("near",)
    near, unread = sorted(pool.census.notes)
    assert near.endswith(f"holds 100% of the held-out row at {test_rows.path}:1, and stays")
    assert unread.startswith(f"{test_rows.path}:2 is held out but unreadable")


def test_a_question_is_compared_with_its_options_in_any_order():
    row = {"question": "Which is right?", "options": ["cat", "mat", "dog"], "answer": 0}
    turned = {**row, "options": ["dog", "cat", "mat"]}
    other = {**row, "options": ["one", "two", "three"]}
    assert comparable(row) == comparable(turned) != comparable(other)
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    assert comparable({"messages": turns}) == "hi" == comparable({"prompt": "hi", "id": 1})


def test_leaks_are_found_under_case_punctuation_and_in_longer_texts():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    tests = [("t0", "Is it a CAT?"), ("t1", words), ("t2", "نام تو چیست؟"), ("t3", "unique words")]
    pool = [
        ("p0", "is it, a cat"),
        ("p1", f"Well: {words.upper()}, and more."),
        ("p2", "نامِ تو چیست"),
        ("p3", words.replace("seven", "7")),
        ("p4", "is it a cat or a dog"),
    ]
    found = {(leak.pool_id, leak.test_id, leak.equal) for leak in leaked(pool, tests)}
    assert found == {("p0", "t0", True), ("p1", "t1", False), ("p2", "t2", True)}
    assert normalised("  \uff21-b\u00a0C!  ") == "a b c"


def test_a_step_can_be_laid_out_from_ids_alone(tokenizer):
    """Replay: the rows of a batch are a pure function of pool indices."""
    data = Data(sources=(Split(source=E2E, by="mr", fraction=(0.0, 0.1)),), rows=4, row_tokens=288)
    batches = []
    for _ in range(2):
        pool = open_pool(data, tokenizer)
        rows, _ = pack([5, 3, 11, 2], pool.lengths_X, 4, data.row_tokens, data.segments)
        filled = [[(x, pool.examples[x]) for x in row] for row in rows]
        batches.append(pack_batch(filled, data.row_tokens, data.segments))
    for name in ("tokens_BT", "targets_BT", "weights_BT", "positions_BT", "segments_BT", "ids_BZ"):
        first, again = (getattr(batch, name) for batch in batches)
        assert first.tobytes() == again.tobytes()
    assert set(batches[0].ids_BZ[batches[0].ids_BZ >= 0]) == {5, 3, 11, 2}


def test_the_overview_says_what_was_read_dropped_and_trained(write, tokenizer):
    source = write({"id": "first", "prompt": "the cat", "completion": " sat"}, *texts(5), "{no")
    data = Data(sources=(source,), row_tokens=64, rows=2, max_bad_fraction=0.2)
    pool = open_pool(data, tokenizer)
    text = plain(overview(pool), width=200)
    assert f"{source.path}:7: malformed" in text
    assert "⟦ sat</s>⟧" in text.replace("⟦sat", "⟦ sat")
    for wanted in ("read", "kept", "dropped: malformed", "median", "p95", "packing efficiency"):
        assert wanted in text
    assert text == plain(overview(open_pool(data, tokenizer)), width=200)
    styles = {span.style for span in coloured(pool.examples[0], tokenizer).spans}
    assert styles == {"bold green", "dim"}


def test_packing_efficiency_is_tokens_over_room(write, tokenizer):
    source, shape = write(*texts(63)), {"rows": 2, "row_tokens": 40}
    single = open_pool(Data(sources=(source,), pack=False, **shape), tokenizer)
    expected = single.lengths_X.sum() / (63 * 40)
    assert packing_efficiency(single) == pytest.approx(expected)
    packed = open_pool(Data(sources=(source,), **shape), tokenizer)
    assert packing_efficiency(packed) == pytest.approx(3 * expected)  # three fit a row


def test_ten_thousand_rows_open_in_seconds(write, tokenizer):
    rows = [{"id": str(k), "prompt": f"the cat {k} " * 8, "completion": "sat"} for k in range(1000)]
    start = time.process_time()
    pool = open_pool(Data(sources=(write(*rows),)), tokenizer)
    # A tenth of ten thousand rows took 0.1 s of CPU; thirty times that is a loop gone quadratic.
    assert time.process_time() - start < 3.0
    assert len(pool) == 1000


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sources": ()}, "sources is empty"),
        ({"held_out": (Weighted(source=E2E, weight=1.0),)}, "held_out holds a Weighted source"),
        ({"rows": 0}, "rows=0 must be positive"),
        ({"row_tokens": 1}, "row_tokens=1 must be at least 2"),
        ({"max_segments": 0}, "max_segments=0 must be positive"),
        ({"max_bad_fraction": 1.0}, "max_bad_fraction=1.0 must be in"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Data(**{"sources": (E2E,), **setting})
    with pytest.raises(ValueError, match="answer='number'"):
        Rendering(answer="number")


def test_the_pool_gives_what_the_curriculum_asks_for(tokenizer):
    pool = open_pool(Data(sources=(Split(source=E2E, by="mr", fraction=(0.0, 0.1)),)), tokenizer)
    assert len(pool) == len(pool.ids) == len(pool.lengths_X) == len(pool.groups_X)
    assert pool.lengths_X.dtype == np.int32
    assert pool.lengths_X.tolist() == [len(example.tokens) for example in pool.examples]
    assert pool.view(3, View()) is pool.examples[3]
    prompts = pool.views(range(len(pool)), View(content="prompt", instruction="Be quick."))
    for example, prompt in zip(pool.examples, prompts, strict=True):
        assert prompt.id == example.id
        assert tokenizer.decode(prompt.tokens) == f"Be quick.\n{example.row['mr']} =>"
