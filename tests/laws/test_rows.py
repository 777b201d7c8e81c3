"""Laws of rows: what is trained is the answer with its end, whatever the kind and template."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from research.core.protocols import View
from research.data.choice import answer_index
from research.data.examples import RowError
from research.data.pool import Data, Pool, open_pool
from research.data.rows import Rendering, compose, identity, kind_of, option_examples, render
from research.data.sources import Jsonl
from tests.laws.made_tokenizers import (
    TEMPLATES,
    byte_level,
    metaspace,
    sentencepiece_file,
    trained_text,
)

TRAINING, PROMPT, ANSWER = View(), View(content="prompt"), View(content="answer")
WORDS = st.text(alphabet="the cat?éد\n", min_size=1, max_size=12).filter(str.strip)
END = {
    "qwen3": "<|im_end|>",
    "chatml": "<|im_end|>",
    "headers": "<|eot|>",
    "brackets": " </s>",
    "marked": "<|im_end|>",
    "bare": "\n",
}
CONVERSATION = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on the mat"},
    {"role": "user", "content": "and the dog?"},
    {"role": "assistant", "content": "ran home"},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return {
        "byte level": byte_level(folder / "bytes", adds_bos=True),
        "pad is eos": byte_level(folder / "pad", pad="</s>"),
        "no specials": byte_level(folder / "none", bos=None, eos=None),
        "metaspace": metaspace(folder / "metaspace"),
        "sentencepiece": sentencepiece_file(folder / "made.model"),
    }


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    return {
        name: byte_level(folder / name, template=template, pad="</s>")
        for name, template in TEMPLATES.items()
    }


def shown(example, tokenizer) -> str:
    return tokenizer.show(example.tokens.tolist())


@pytest.mark.parametrize("sort", ["byte level", "pad is eos", "no specials", "metaspace"])
@given(prompt=WORDS, completion=WORDS)
def test_the_completion_and_its_end_are_trained_and_nothing_else(plain, sort, prompt, completion):
    tokenizer, completion = plain[sort], f" {completion.strip()}"
    example = render({"prompt": prompt, "completion": completion}, tokenizer, TRAINING)
    end = "" if tokenizer.eos_id is None else "</s>"
    assert "".join(trained_text(tokenizer, example)).strip() == (completion + end).strip()
    assert not example.trained[0]


@pytest.mark.parametrize("sort", ["byte level", "metaspace", "sentencepiece"])
def test_a_text_is_trained_but_for_its_first_token(plain, sort):
    tokenizer = plain[sort]
    example = render({"text": "the cat sat"}, tokenizer, TRAINING)
    assert example.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode("the cat sat")]
    assert example.trained.tolist() == [False] + [True] * (len(example.tokens) - 1)
    ended = render({"text": "the cat sat"}, tokenizer, TRAINING, Rendering(text_eos=True))
    assert ended.tokens.tolist() == [*example.tokens.tolist(), tokenizer.eos_id]
    assert ended.trained[-1]


def test_prompt_and_completion_are_tokenised_as_one_string(plain):
    tokenizer = plain["metaspace"]
    example = render({"prompt": "the", "completion": " cat"}, tokenizer, TRAINING)
    assert example.tokens.tolist()[1:-1] == tokenizer.encode("the cat")
    assert example.tokens.tolist()[1:-1] != tokenizer.encode("the") + tokenizer.encode(" cat")


def test_eos_is_trained_where_it_is_the_padding_too(plain):
    tokenizer = plain["pad is eos"]
    assert tokenizer.pad_id == tokenizer.eos_id
    example = render({"prompt": "the", "completion": " cat"}, tokenizer, TRAINING)
    assert example.tokens[-1] == tokenizer.eos_id
    assert example.trained[-1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_assistant_and_its_end_of_turn_are_trained_and_nothing_else(chat, name):
    tokenizer = chat[name]
    example = render({"messages": CONVERSATION}, tokenizer, TRAINING)
    last = END[name] + ("</s>" if name == "bare" else "")
    trained = [text.removeprefix(" ") for text in trained_text(tokenizer, example)]
    assert trained == [f"sat on the mat{END[name]}", f"ran home{last}"]


@pytest.mark.parametrize("name", TEMPLATES)
@given(question=WORDS, answer=WORDS)
def test_what_the_user_says_never_changes_what_is_trained(chat, name, question, answer):
    tokenizer, turns = chat[name], [{}, {"role": "assistant", "content": answer.strip()}]
    trained = []
    for asked in (question, "the dog"):
        turns[0] = {"role": "user", "content": asked}
        example = render({"messages": turns}, tokenizer, TRAINING)
        trained.append(trained_text(tokenizer, example))
        assert answer.strip() in trained[-1][0]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_view_is_what_comes_before_the_first_trained_token(chat, name):
    tokenizer = chat[name]
    row = {"prompt": "the cat?", "completion": "sat on the mat"}
    trained, prompt = (render(row, tokenizer, view) for view in (TRAINING, PROMPT))
    start = int(np.argmax(trained.trained))
    shown_prompt = tokenizer.show(trained.tokens[:start].tolist())
    assert shown(prompt, tokenizer).rstrip(" ") == shown_prompt.rstrip(" ")
    assert not prompt.trained.any()


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "bare"])
def test_a_conversation_has_the_tokens_that_transformers_gives_it(chat, name):
    inner = AutoTokenizer.from_pretrained(chat[name].path)
    for opened, view in ((False, TRAINING), (True, PROMPT)):
        turns = CONVERSATION[:-1] if opened else CONVERSATION
        expected = inner.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=opened, enable_thinking=False
        )
        example = render({"messages": CONVERSATION}, chat[name], view)
        assert example.tokens.tolist() == expected["input_ids"]


@pytest.mark.parametrize("sort", ["byte level", "pad is eos", "metaspace"])
def test_a_text_has_the_tokens_that_transformers_gives_it(plain, sort):
    inner = AutoTokenizer.from_pretrained(plain[sort].path)
    example = render({"text": "the cat sat"}, plain[sort], TRAINING)
    assert example.tokens.tolist() == inner("the cat sat").input_ids


def test_the_prompt_view_of_a_template_is_a_prefix_of_training_token_for_token(chat):
    for name in ("qwen3", "chatml", "headers", "marked"):
        row = {"messages": CONVERSATION}
        trained, prompt = (render(row, chat[name], view) for view in (TRAINING, PROMPT))
        count = len(prompt.tokens)
        assert prompt.tokens.tolist() == trained.tokens[:count].tolist()
        assert trained.trained[count]


def test_the_instruction_stands_in_the_users_turn_and_is_not_trained(chat):
    view = View(content="prompt", instruction="Answer at once.")
    text = shown(render({"messages": CONVERSATION}, chat["qwen3"], view), chat["qwen3"])
    assert "<|im_start|>user\nAnswer at once.\nand the dog?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    view = View(instruction="Answer at once.")
    example = render({"messages": CONVERSATION}, chat["qwen3"], view)
    assert "Answer" not in "".join(trained_text(chat["qwen3"], example))


@pytest.mark.parametrize("sort", ["byte level", "metaspace", "sentencepiece"])
def test_without_a_template_the_instruction_is_a_plain_prefix_after_one_bos(plain, sort):
    tokenizer = plain[sort]
    view = View(content="prompt", instruction="the teacher said: ")
    example = render({"prompt": "the cat", "completion": " sat"}, tokenizer, view)
    expected = [tokenizer.bos_id, *tokenizer.encode("the teacher said: the cat")]
    assert example.tokens.tolist() == expected


def test_the_answer_view_is_the_trained_tokens_after_bos(plain, chat):
    for tokenizer, row in (
        (plain["byte level"], {"prompt": "the", "completion": " cat sat"}),
        (chat["chatml"], {"messages": CONVERSATION}),
    ):
        trained, answer = (render(row, tokenizer, view) for view in (TRAINING, ANSWER))
        expected = [tokenizer.bos_id, *trained.tokens[trained.trained].tolist()]
        assert answer.tokens.tolist() == expected
        assert answer.trained.tolist() == [False] + [True] * (len(expected) - 1)


def test_a_thought_is_trained_and_an_empty_one_is_given(chat):
    turns = [CONVERSATION[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nsat"}]
    example = render({"messages": turns}, chat["qwen3"], TRAINING)
    assert trained_text(chat["qwen3"], example) == ["<think>\nhm\n</think>\n\nsat<|im_end|>"]
    turns = [CONVERSATION[0], {"role": "assistant", "content": "sat"}]
    example = render({"messages": turns}, chat["qwen3"], TRAINING)
    assert trained_text(chat["qwen3"], example) == ["sat<|im_end|>"]


def test_a_tool_call_is_trained_and_the_tools_answer_is_not(chat):
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    turns = [
        {"role": "user", "content": "two plus two?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "four"},
    ]
    first, second = trained_text(
        chat["qwen3"], render({"messages": turns}, chat["qwen3"], TRAINING)
    )
    assert first.startswith("<tool_call>")
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "four<|im_end|>"


def test_a_prompt_of_messages_trains_its_completion_alone(chat):
    for name in ("qwen3", "marked"):
        row = {"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]}
        example = render(row, chat[name], TRAINING)
        assert trained_text(chat[name], example) == ["ran home<|im_end|>"]


def test_the_system_turn_is_put_where_there_is_none(chat):
    rendering = Rendering(system="be kind")
    example = render({"messages": CONVERSATION}, chat["chatml"], TRAINING, rendering)
    assert shown(example, chat["chatml"]).startswith("<|im_start|>system\nbe kind<|im_end|>")
    assert len(trained_text(chat["chatml"], example)) == 2
    own = [{"role": "system", "content": "be brief"}, *CONVERSATION]
    text = shown(render({"messages": own}, chat["chatml"], TRAINING, rendering), chat["chatml"])
    assert "be kind" not in text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": CONVERSATION[:1]}, "empty after masking"),
        (
            {"messages": [CONVERSATION[0], {"role": "assistant", "content": ""}]},
            "empty after masking",
        ),
        ({"messages": []}, "malformed"),
        ({"messages": "hello"}, "malformed"),
        ({"messages": [{"content": "hi"}]}, "malformed"),
        ({"messages": [CONVERSATION[0], *CONVERSATION[:2]]}, "malformed"),
        ({"prompt": "the", "completion": ""}, "empty after masking"),
        ({"prompt": "the"}, "empty after masking"),
        ({"prompt": 3, "completion": "x"}, "malformed"),
        ({"text": "  "}, "empty after masking"),
        ({"text": "x", "messages": CONVERSATION}, "unknown kind"),
        ({"question": "x", "answer": "y"}, "unknown kind"),
        ({"question": "x", "options": ["a", "b"]}, "empty after masking"),
        ({"question": "x", "options": ["a"], "answer": 0}, "malformed"),
        ({"question": "x", "options": ["a", "b"], "answer": 2}, "bad answer"),
        ({"question": "x", "options": ["a", "b"], "answer": -1}, "bad answer"),
        ({"question": "x", "options": ["a", "b"], "answer": "C"}, "bad answer"),
        ({"question": "x", "options": ["B", "A"], "answer": "A"}, "bad answer"),
        ({"question": "x", "options": ["a", "a"], "answer": "a"}, "bad answer"),
        ({"input_ids": [1, -2]}, "malformed"),
        ({"input_ids": "12"}, "malformed"),
    ],
)
def test_a_row_that_cannot_be_trained_says_why(chat, row, reason):
    with pytest.raises(RowError) as caught:
        compose(row, chat["brackets"], TRAINING, Rendering(template="prompt" not in row), "id")
    assert caught.value.reason == reason


@pytest.mark.parametrize("answer", [1, "B", "mat"])
def test_an_answer_is_an_index_a_letter_or_an_options_text(plain, answer):
    assert answer_index(answer, ["cat", "mat", "dog"]) == 1
    row = {"question": "where?", "options": ["cat", "mat", "dog"], "answer": answer}
    example = render(row, plain["byte level"], TRAINING)
    assert shown(example, plain["byte level"]) == (
        "<s>where?\nA. cat\nB. mat\nC. dog\nAnswer: B</s>"
    )
    assert trained_text(plain["byte level"], example) == [" B</s>"]


def test_an_option_that_is_a_number_is_meant_by_its_text():
    assert answer_index("2", ["0", "4", "2", "6"]) == 2
    assert answer_index(2, ["2", "4", "0", "6"]) == 2


def test_shuffled_options_carry_the_answer_along(plain):
    tokenizer, rendering = plain["byte level"], Rendering(shuffle_options=3, answer="text")
    options, slots = ["cat", "mat", "dog", "home"], collections.Counter()
    for number in range(200):
        row = {"id": str(number), "question": "where?", "options": options, "answer": 1}
        example = render(row, tokenizer, TRAINING, rendering)
        assert trained_text(tokenizer, example) == [" mat</s>"]
        lines = shown(example, tokenizer).split("\n")
        assert sorted(line[3:] for line in lines[1:5]) == sorted(options)
        slots[[line[3:] for line in lines[1:5]].index("mat")] += 1
        prompt = render(row, tokenizer, PROMPT, rendering)
        assert shown(example, tokenizer).startswith(shown(prompt, tokenizer))
    # 200 fair draws of 4 put a slot beyond 30..72 less than once in a thousand seeds.
    assert len(slots) == 4
    assert all(30 <= count <= 72 for count in slots.values())


@pytest.mark.parametrize("sort", ["plain", "chat"])
def test_every_option_is_shown_once_as_the_answer(plain, chat, sort):
    tokenizer = plain["byte level"] if sort == "plain" else chat["qwen3"]
    row = {"id": "q7", "question": "where?", "options": ["cat", "mat", "dog"], "answer": "mat"}
    rendering = Rendering(answer="text", shuffle_options=1)
    example = render(row, tokenizer, TRAINING, rendering)
    options, gold = option_examples(example, tokenizer, TRAINING, rendering)
    assert options[gold].tokens.tolist() == example.tokens.tolist()
    endings = {"".join(trained_text(tokenizer, option)) for option in options}
    close = "</s>" if sort == "plain" else "<|im_end|>"
    lead = " " if sort == "plain" else ""
    assert endings == {f"{lead}{option}{close}" for option in row["options"]}


def test_given_ids_are_fed_as_they_are_without_a_tokenizer():
    row = {"input_ids": [5, 3, 3, 9]}
    example = render(row, None, TRAINING)
    assert example.tokens.tolist() == [5, 3, 3, 9]
    assert example.trained.tolist() == [False, True, True, True]
    assert render(row, None, ANSWER).tokens.tolist() == [5, 3, 3, 9]
    prompt = render(row, None, PROMPT)
    assert prompt.tokens.tolist() == [5, 3, 3, 9]
    assert not prompt.trained.any()


def test_an_id_is_the_rows_own_or_depends_on_its_content_alone():
    assert identity({"id": 7, "text": "a"}, "id") == "7"
    assert identity({"text": "a", "x": 1}, "id") == identity({"x": 1, "text": "a"}, "id")
    assert identity({"text": "a"}, "id") != identity({"text": "b"}, "id")


def test_a_field_that_is_null_is_a_field_that_is_not_there():
    assert kind_of({"text": None, "messages": CONVERSATION}) == "messages"


def test_a_bos_in_the_data_is_refused_where_one_is_added(plain, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "the cat"}\n{"text": "<s>the cat"}\n')
    data = Data(sources=(Jsonl(path=str(file)),), max_bad_fraction=0.5)
    pool = open_pool(data, plain["byte level"])
    assert [row.reason for row in pool.census.dropped] == ["double BOS"]
    assert pool.census.dropped[0].where == f"{file}:2"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pool_shows_a_view_as_the_row_is_rendered(chat, name, tmp_path):
    tokenizer = chat[name]
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "the cat?", "completion": "sat"}\n')
    pool: Pool = open_pool(Data(sources=(Jsonl(path=str(file)),)), tokenizer)
    for view in (TRAINING, PROMPT, ANSWER, View(content="prompt", instruction="quick")):
        alone = render(pool.examples[0].row, tokenizer, view)
        assert pool.view(0, view).tokens.tolist() == alone.tokens.tolist()
        assert pool.view(0, view).trained.tolist() == alone.trained.tolist()
