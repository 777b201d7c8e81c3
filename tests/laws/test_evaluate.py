"""Laws of evaluation: sums that do not care about batches, against answers worked out alone."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from research.core.layout import Layout
from research.core.protocols import View
from research.core.records import Total
from research.data.batches import single_batch
from research.data.examples import Example
from research.data.pool import Data, open_pool
from research.data.rows import Rendering
from research.data.selection import Columns
from research.data.sources import Jsonl
from research.data.tokenizer import open_tokenizer
from research.evaluate.choice import MultipleChoice
from research.evaluate.choose import evaluators_for
from research.evaluate.evaluate import evaluate, summed
from research.evaluate.generation import ExactMatch, SlotAccuracy, extract, share_found, slot_values
from research.evaluate.likelihood import Likelihood, predicted_bytes
from research.evaluate.subject import Subject
from research.huggingface.folder import load, open_folder
from research.models.compute import Compute
from research.models.transformer import Transformer

ASSETS = Path(__file__).parents[2] / "experiments" / "assets"
FLOAT_NOISE = 2e-5  # float32 sums over rows of up to 100 tokens in another shape of batch
NEW = 13  # tokens generated, in all tests: one program
STORIES = [
    "Once upon a time, there was a little girl named Lily.",
    "Tom saw a big red ball. He wanted to play with it all day.",
    "The café was closed, so they went home.",
    "One day a cat sat.",
    "She was happy.",
    "Ben and Mia ran to the park. They saw a dog. The dog was big and it had a red hat on.",
    "The sun was hot.",
]
QUESTIONS = [
    {"id": "q1", "question": "What do cats say?", "options": ["meow", "woof", "moo"], "answer": 0},
    {"id": "q2", "question": "What is the sun?", "options": ["cold", "hot", "wet"], "answer": "B"},
    {"id": "q3", "question": "Who is little?", "options": ["a girl", "a big house"], "answer": 0},
    {
        "id": "q4",
        "question": "What is red?",
        "options": ["milk", "a ball", "x"],
        "answer": "a ball",
    },
    {"id": "q5", "question": "Where do they play?", "options": ["park", "sea"], "answer": 1},
]


@functools.cache
def tokenizer():
    return open_tokenizer(str(ASSETS / "stories260k"))


@functools.cache
def subject_parts():
    place = Layout().on(jax.devices()[:1])
    folder = ASSETS / "stories260k"
    model = Transformer(open_folder(folder).architecture, place, Compute())
    return model, load(folder, model), place


def ask(evaluator, progress=None):
    model, params, place = subject_parts()
    return evaluate(evaluator, model, params, tokenizer(), place, progress)


def data_of(path: Path, rows: list[dict], *, batch: int = 3, **settings) -> Data:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"row_tokens": 128, "pack": False, "max_bad_fraction": 0.0, **settings}
    source = settings.pop("source", lambda source: source)(Jsonl(path=str(file)))
    return Data(sources=(source,), rows=batch, **settings)


@pytest.fixture
def stories(tmp_path) -> Data:
    rows = [{"id": f"s{i}", "text": text, "kind": "odd"} for i, text in enumerate(STORIES)]
    rows[2]["kind"] = rows[3]["kind"] = "even"
    return data_of(tmp_path, rows, rendering=Rendering(text_eos=False))


@functools.cache
def logits_of_one_row():
    model, params, _ = subject_parts()
    return jax.jit(lambda batch: model.apply(params, batch).logits()[0])


def alone(example: Example) -> float:
    """Give -log p of an example's trained tokens from the full logits of its own row."""
    batch = single_batch([example], [0], 1, 96)
    logits_TV = np.asarray(logits_of_one_row()(batch), np.float64)
    log_p_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)
    log_p_T = np.take_along_axis(log_p_TV, batch.targets_BT[0][:, None], axis=1)[:, 0]
    return float(-(log_p_T * batch.weights_BT[0]).sum())


def test_the_loss_is_the_sum_over_all_tokens_divided_once(stories):
    pool = open_pool(stories, tokenizer())
    found = ask(Likelihood(data=stories))
    nats = [alone(example) for example in pool.examples]
    tokens = [int(example.trained.sum()) for example in pool.examples]
    for row, nat, count in zip(found.rows, nats, tokens, strict=True):
        assert row["loss_nats"] * count == pytest.approx(nat, abs=FLOAT_NOISE * count)
        assert row["loss_nats_count"] == count
    total = sum(row["loss_nats"] * row["loss_nats_count"] for row in found.rows)
    assert found.metrics["loss_nats"].value == pytest.approx(total / sum(tokens))
    assert found.metrics["loss_nats"].count == len(STORIES)  # 7 rows in batches of 3: none is lost
    loss, perplexity = found.metrics["loss_nats"], found.metrics["perplexity"]
    assert np.log([perplexity.value, perplexity.low, perplexity.high]) == pytest.approx(
        [loss.value, loss.low, loss.high]
    )


def test_bits_per_byte_counts_the_bytes_of_the_text(stories):
    found = ask(Likelihood(data=stories))
    size = sum(len(text.encode()) for text in STORIES)
    nats = sum(row["loss_nats"] * row["loss_nats_count"] for row in found.rows)
    assert found.metrics["bits_per_byte"].value == pytest.approx(nats / np.log(2) / size)


def test_only_bytes_that_were_predicted_count(tmp_path):
    data = data_of(tmp_path, [{"id": "a", "prompt": "Once upon", "completion": " a café."}])
    example = open_pool(data, tokenizer()).examples[0]
    assert predicted_bytes(example, tokenizer()) == len(" a café.".encode())
    nothing = dataclasses.replace(example, trained=np.zeros_like(example.trained))
    assert predicted_bytes(nothing, tokenizer()) == 0


def test_the_size_of_batches_and_the_order_of_rows_change_nothing(stories, tmp_path):
    first = {row["id"]: row for row in ask(Likelihood(data=stories)).rows}
    rows = [{"id": f"s{i}", "text": STORIES[i]} for i in (6, 1, 4, 0, 2, 5, 3)]
    other = data_of(tmp_path, rows, batch=5, rendering=Rendering(text_eos=False))
    second = {row["id"]: row for row in ask(Likelihood(data=other)).rows}
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert row["loss_nats"] == pytest.approx(second[name]["loss_nats"], abs=FLOAT_NOISE)


def test_devices_change_nothing_but_the_order_of_sums(stories):
    _, params, _ = subject_parts()
    place = Layout(axes=(("data", 4),)).on(jax.devices()[:4])  # rows are rounded up from 3 to 4
    model = Transformer(open_folder(ASSETS / "stories260k").architecture, place, Compute())
    params = jax.device_put(params, place.replicated)
    split = evaluate(Likelihood(data=stories), model, params, tokenizer(), place)
    for row, other in zip(ask(Likelihood(data=stories)).rows, split.rows, strict=True):
        assert row["loss_nats"] == pytest.approx(other["loss_nats"], abs=FLOAT_NOISE)


def test_slices_add_up_to_the_whole(stories):
    found = ask(Likelihood(data=stories, slice_by=("kind",)))
    odd, even = (found.slices[f"kind={name}"]["loss_nats"] for name in ("odd", "even"))
    tokens = [row["loss_nats_count"] for row in found.rows]
    share = (tokens[2] + tokens[3]) / sum(tokens)
    whole = share * even.value + (1 - share) * odd.value
    assert whole == pytest.approx(found.metrics["loss_nats"].value)
    assert (odd.count, even.count) == (5, 2)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 has no field 'topic'"):
        ask(Likelihood(data=stories, slice_by=("topic",)))


def test_progress_reaches_the_end_and_never_falls(stories):
    seen = []
    ask(Likelihood(data=stories), lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [len(STORIES)] * len(seen)
    assert seen == sorted(seen)
    assert seen[-1][0] == len(STORIES)


def test_token_ids_need_no_tokenizer(tmp_path):
    data = data_of(tmp_path, [{"id": "a", "input_ids": [1, 403, 407, 261]}], needs_no_text=True)
    model, params, place = subject_parts()
    found = evaluate(Likelihood(data=data), model, params, None, place)
    assert list(found.metrics) == ["loss_nats", "perplexity"]
    assert found.rows[0]["loss_nats_count"] == 3
    assert np.isnan(found.metrics["loss_nats"].low)  # one item has no interval


def test_the_chosen_option_is_the_one_whose_tokens_alone_are_likeliest(tmp_path):
    data = data_of(tmp_path, QUESTIONS)
    found = ask(MultipleChoice(data=data))
    hits = {"accuracy_letter": 0, "accuracy_text": 0, "accuracy_text_per_byte": 0}
    for row, question in zip(found.rows, QUESTIONS, strict=True):
        options = question["options"]
        lines = "\n".join(f"{'ABC'[k]}. {option}" for k, option in enumerate(options))
        prompt = f"{question['question']}\n{lines}\nAnswer:"
        gold = {0: 0, 1: 1, "B": 1, "a ball": 1}[question["answer"]]
        letters = [-alone(continuation(prompt, f" {'ABC'[k]}")) for k in range(len(options))]
        texts = [-alone(continuation(prompt, f" {option}")) for option in options]
        per_byte = [p / len(option) for p, option in zip(texts, options, strict=True)]
        scores = zip(hits, (letters, texts, per_byte), strict=True)
        for name, log_p in scores:
            assert row[f"{name}_chosen"] == int(np.argmax(log_p))
            hits[name] += int(np.argmax(log_p)) == gold
    for name, count in hits.items():
        assert found.metrics[name].value == count / len(QUESTIONS)
        assert 0 <= found.metrics[name].low < found.metrics[name].high <= 1


def test_a_cloze_asks_for_each_option_without_showing_any(tmp_path):
    found = ask(MultipleChoice(data=data_of(tmp_path, QUESTIONS), by=("text",), cloze=" {option}."))
    assert [*found.metrics] == ["accuracy_text", "accuracy_text_per_byte"]
    by_byte = MultipleChoice(
        data=data_of(tmp_path, QUESTIONS), by=("text_per_byte",), cloze=" {option}."
    )
    assert [*reversed(found.metrics)] == [*ask(by_byte).metrics]
    assert ask(by_byte).metrics == found.metrics
    shown = ask(MultipleChoice(data=data_of(tmp_path, QUESTIONS), by=("text",)))
    eos = tokenizer().eos_id
    for row, question in zip(found.rows, QUESTIONS, strict=True):
        asked = [continuation(question["question"], f" {o}.") for o in question["options"]]
        log_p = [-alone(one) for one in asked]
        assert all(eos not in one.tokens for one in asked)
        assert row["accuracy_text_chosen"] == int(np.argmax(log_p))
    assert [row["accuracy_text_chosen"] for row in found.rows] != [
        row["accuracy_text_chosen"] for row in shown.rows
    ]


def continuation(prompt: str, answer: str) -> Example:
    """Tokenise prompt and answer as one string, BOS before, the answer's tokens trained."""
    tokens = [tokenizer().bos_id, *tokenizer().encode(prompt + answer)]
    known = len(tokenizer().encode(prompt)) + 1
    trained = np.arange(len(tokens)) >= known
    return Example(id="", tokens=np.int32(tokens), trained=trained, row={}, where="")


def test_shuffled_options_are_judged_by_what_they_say(tmp_path):
    plain = ask(MultipleChoice(data=data_of(tmp_path, QUESTIONS), by=("letter",)))
    shuffled = data_of(tmp_path, QUESTIONS, rendering=Rendering(shuffle_options=3))
    found = ask(MultipleChoice(data=shuffled, by=("letter",)))
    golds = (0, 1, 0, 1, 1)
    for row, gold in zip(found.rows, golds, strict=True):
        assert row["accuracy_letter"] == float(row["accuracy_letter_chosen"] == gold)
    assert [r["accuracy_letter_chosen"] for r in found.rows] != [
        r["accuracy_letter_chosen"] for r in plain.rows
    ]


def test_a_row_that_is_no_question_is_named(tmp_path):
    rows = [QUESTIONS[0], {"id": "t", "text": "Once upon a time"}]
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: is no multiple-choice row"):
        ask(MultipleChoice(data=data_of(tmp_path, rows)))


def test_answers_are_greedy_and_do_not_depend_on_batch_mates(tmp_path):
    rows = [
        {"id": "a", "prompt": "Once upon a time", "completion": ", there was a little girl"},
        {"id": "b", "prompt": "Tom saw a", "completion": " dog"},
        {"id": "c", "prompt": "The", "completion": "!"},
    ]
    model, params, place = subject_parts()
    pool = open_pool(data_of(tmp_path, rows), tokenizer())
    prompts = pool.views(range(3), View(content="prompt"))
    subject = Subject(
        model=model, params=params, tokenizer=tokenizer(), place=place, stop_ids=(2,), progress=None
    )
    together = subject.answers(prompts, NEW, 3)
    assert together[0].startswith(", there was a little girl")
    assert [subject.answers([prompt], NEW, 3)[0] for prompt in prompts] == together


def test_exact_match_compares_what_the_pattern_extracts(tmp_path):
    rows = [
        {"id": "a", "prompt": "Once upon a time", "completion": "A  little GIRL"},
        {"id": "b", "prompt": "Once upon a time", "completion": "a little boy"},
    ]
    data = data_of(tmp_path, rows)
    found = ask(ExactMatch(data=data, pattern=r"(?i)a +little +(\w+)", max_new_tokens=NEW))
    assert [row["exact_match"] for row in found.rows] == [1.0, 0.0]
    assert [row["found"] for row in found.rows] == [1.0, 1.0]
    assert "little girl" in found.rows[0]["output"]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: pattern '\[0-9\]' is not in its own"):
        ask(ExactMatch(data=data, pattern="[0-9]"))
    with pytest.raises(ValueError, match="no regular expression"):
        ExactMatch(data=data, pattern="(")


def test_the_last_match_counts_and_its_first_group():
    assert extract(r"#### (-?\d+)", "2 + 2 #### 3 then #### 4") == "4"
    assert extract(r"\d+", "2 or 3") == "3"
    assert extract(r"\d+", "none") is None
    assert extract("", "  Two\n Words ") == "two words"


def test_slots_are_found_as_substrings_whatever_their_case_and_spaces():
    mr = "name : Alimentum | area : city centre | family friendly : no | price : £ 20 - 25"
    values = slot_values(
        Example(id="", tokens=None, trained=None, row={"mr": mr}, where="f:1"), "mr"
    )
    assert values == ["Alimentum", "city centre", "no", "£ 20 - 25"]
    assert share_found(values, "alimentum in the City  Centre") == Total(sum=2.0, count=4)
    assert share_found(values, "Alimentum, city centre, £ 20 - 25, no") == Total(sum=4.0, count=4)
    with pytest.raises(ValueError, match=r"f:1: mr is 'name : \| area : x'"):
        slot_values(
            Example(id="", tokens=None, trained=None, row={"mr": "name : | area : x"}, where="f:1"),
            "mr",
        )


def test_slot_accuracy_sums_values_over_answers(tmp_path):
    rows = [
        {
            "id": "a",
            "mr": "who : little girl | named : Lily | sad : no",
            "text": "Once upon a time",
        },
        {"id": "b", "mr": "who : dragon", "text": "Once upon a time"},
    ]
    data = data_of(
        tmp_path, rows, source=lambda s: Columns(source=s, prompt="{text}", completion="{mr}")
    )
    found = ask(SlotAccuracy(data=data, max_new_tokens=NEW))
    assert "little girl named lily" in found.rows[0]["output"].lower()
    assert found.rows[0]["slot_accuracy_text"] == 1.0
    assert found.metrics["slot_accuracy_text"].value == pytest.approx(2 / 3)
    assert found.rows[0]["slot_accuracy_count"] == 3


def test_the_kind_of_rows_decides_what_is_asked(tmp_path):
    def names(rows: list[dict], **settings) -> list[str]:
        data = data_of(tmp_path, rows, **settings)
        pool = open_pool(data, tokenizer())
        return [type(evaluator).__name__ for evaluator in evaluators_for(pool)]

    assert names([{"text": "Once"}]) == ["Likelihood"]
    assert names(QUESTIONS) == ["Likelihood", "MultipleChoice"]
    completion = {"prompt": "a", "completion": "b"}
    assert names([completion]) == ["Likelihood", "ExactMatch"]
    assert names([{**completion, "mr": "x : y"}]) == ["Likelihood", "ExactMatch", "SlotAccuracy"]
    assert names([completion, {"text": "Once"}]) == ["Likelihood"]


def test_settings_that_cannot_take_effect_are_errors(tmp_path):
    data = data_of(tmp_path, QUESTIONS)
    with pytest.raises(ValueError, match=r"data\.pack=True takes no effect"):
        Likelihood(data=dataclasses.replace(data, pack=True))
    with pytest.raises(ValueError, match="name='a/b'"):
        Likelihood(data=data, name="a/b")
    with pytest.raises(ValueError, match="by=\\('size',\\)"):
        MultipleChoice(data=data, by=("size",))
    with pytest.raises(ValueError, match="cloze='Answer:'"):
        MultipleChoice(data=data, by=("text",), cloze="Answer:")
    with pytest.raises(ValueError, match="cloze shows no letters"):
        MultipleChoice(data=data, cloze=" {option}")


def test_a_metric_that_some_items_lack_is_estimated_over_those_that_have_it():
    items = [{"x": Total(sum=1.0, count=1)}, {"y": Total(sum=3.0, count=4)}, {"note": "text"}]
    found = summed(items)
    assert (found["x"].count, found["y"].value) == (1, 0.75)
    assert "note" not in found
