"""Laws of tokenizers: every character has its token, and specials are what the tokenizer says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.composed import trained_tokens
from research.data.tokenizer import open_tokenizer
from tests.laws.made_tokenizers import CHATML, byte_level, metaspace, sentencepiece_file

SORTS = ("byte level", "metaspace", "sentencepiece")
TEXT = st.text(alphabet=st.sampled_from("the cat\n .ößسلم日😀é01 "), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "byte level": byte_level(folder / "bytes"),
        "metaspace": metaspace(folder / "metaspace"),
        "sentencepiece": sentencepiece_file(folder / "made.model"),
    }


@pytest.mark.parametrize("sort", SORTS)
@given(text=TEXT)
def test_one_text_and_a_batch_of_it_give_the_same_tokens(made, sort, text):
    ids, spans = made[sort].encode_batch([text, "cat"])[0]
    assert ids == made[sort].encode(text)
    assert len(ids) == len(spans)


@pytest.mark.parametrize("sort", ["byte level", "metaspace"])
@given(text=TEXT)
def test_decoding_undoes_encoding(made, sort, text):
    assert made[sort].decode(made[sort].encode(text)) == text


@pytest.mark.parametrize("sort", SORTS)
@given(text=TEXT, cut=st.integers(0, 30))
def test_training_a_suffix_trains_the_tokens_that_hold_it_and_no_others(made, sort, text, cut):
    cut = min(cut, len(text) - 1)
    ids, spans = made[sort].encode_batch([text])[0]
    marks = trained_tokens(spans, [(cut, len(text))], len(text)).tolist()
    assert marks == sorted(marks), "a suffix of the characters is a suffix of the tokens"
    kept = sum(marks)
    ends = [last for _, last in spans]
    assert all(end <= cut for end in ends[: len(ids) - kept]), "an untrained token ends before it"
    if text[cut:].strip():
        assert kept, "a suffix that is not blank has a token"


@pytest.mark.parametrize("sort", SORTS)
@given(text=TEXT)
def test_all_characters_trained_is_all_tokens_trained(made, sort, text):
    _, spans = made[sort].encode_batch([text])[0]
    assert trained_tokens(spans, [(0, len(text))], len(text)).all()
    assert not trained_tokens(spans, [], len(text)).any()


@pytest.mark.parametrize(
    ("spans", "trained", "marks"),
    [
        ([(0, 3), (4, 7)], (3, 4), [False, True]),  # white space left out of offsets (GPT-2)
        ([(0, 3), (4, 4), (4, 7)], (3, 4), [False, True, False]),  # a token of white space alone
        ([(0, 1), (1, 2), (1, 2)], (1, 2), [False, True, True]),  # one character, two bytes
        ([(0, 1), (1, 1), (1, 2)], (1, 2), [False, True, True]),  # the same, in SentencePiece
        ([(0, 0), (0, 3)], (0, 3), [True, True]),  # a space that is put before the text
    ],
)
def test_a_token_stands_for_all_since_the_token_before_it(spans, trained, marks):
    assert trained_tokens(spans, [trained], spans[-1][1]).tolist() == marks


def test_bos_is_added_where_the_tokenizer_adds_it_and_nowhere_else(made, tmp_path):
    assert not made["byte level"].adds_bos
    assert byte_level(tmp_path / "adds", adds_bos=True).adds_bos
    assert made["metaspace"].adds_bos
    assert made["sentencepiece"].adds_bos
    assert not sentencepiece_file(tmp_path / "none.model", bos=False).adds_bos


def test_absent_specials_are_none(tmp_path):
    tokenizer = byte_level(tmp_path / "none", bos=None, eos=None)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, None, None)
    tokenizer = sentencepiece_file(tmp_path / "none.model", bos=False)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 1)


def test_a_folder_of_a_sentencepiece_model_is_that_model(tmp_path):
    file = sentencepiece_file(tmp_path / "llama" / "tokenizer.model")
    folder = open_tokenizer(str(tmp_path / "llama"))
    assert folder.encode("the cat sat") == file.encode("the cat sat")
    assert folder.adds_bos


def test_a_missing_tokenizer_names_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        open_tokenizer("nowhere")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        open_tokenizer(str(tmp_path))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        open_tokenizer(str(tmp_path / "broken.model"))


def test_a_conversation_without_a_template_is_refused(made):
    for sort in SORTS:
        with pytest.raises(ValueError, match="no chat template"):
            made[sort].render([{"role": "user", "content": "hi"}])


def test_a_template_is_used_as_it_stands(tmp_path):
    tokenizer = byte_level(tmp_path / "chat", template=CHATML)
    text, spans = tokenizer.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert spans == []


def test_a_template_gives_the_same_text_on_every_day(tmp_path):
    template = (
        "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }}, "
        '{{ strftime_now("%Y-%m-%d") }}\n{% endif %}' + CHATML
    )
    tokenizer = byte_level(tmp_path / "dated", template=template)
    text, _ = tokenizer.render([{"role": "user", "content": "hi"}])
    assert text.startswith("Today: 26 Jul 2024, 2024-07-26\n<|im_start|>user")
    with pytest.raises(ValueError, match="asks for the current date"):
        byte_level(tmp_path / "odd", template="{{ strftime_now(wanted) }}" + CHATML)
