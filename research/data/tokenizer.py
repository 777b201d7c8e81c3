"""Text to tokens: any Hugging Face tokenizer folder, or a bare SentencePiece model."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# Some templates print the day of rendering, which would change the data under a run. This is the
# day that Llama 3's own template falls back to.
_TODAY = datetime.date(2024, 7, 26)

Messages = Sequence[Mapping[str, Any]]
Spans = list[tuple[int, int]]


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer.

    Attributes:
      path: the folder or file that it was opened from.
      bos_id, eos_id, pad_id: special tokens, or None where there is none.
      adds_bos: whether a plain text starts with BOS: what the tokenizer does of its own accord.
      vocab_size: one more than the largest id.
      specials: the special tokens' texts, as they stand in a rendered conversation.
      template: the chat template (Jinja, with a fixed day for the current one), or None.
    """

    path: str
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    vocab_size: int
    specials: tuple[str, ...]
    template: str | None

    def encode(self, text: str) -> list[int]:
        """Tokenise without adding specials."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], Spans]]:
        """Tokenise many texts: ids, and the characters [first, last) that each token stands for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials left out."""
        ...

    def show(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials included."""
        ...

    def render(self, messages: Messages, **settings: Any) -> tuple[str, Spans]:
        """Apply the chat template: text, and the spans that `{% generation %}` blocks marked.

        Raises:
          ValueError: there is no template, or it refuses the conversation.
        """
        ...


def open_tokenizer(path: str) -> Tokenizer:
    """Open a Hugging Face folder or a SentencePiece `.model` file.

    A folder that holds `tokenizer.model` and no `tokenizer.json` is read by SentencePiece itself.

    Raises:
      FileNotFoundError: with the absolute path that was tried.
      ValueError: the folder holds no tokenizer.
    """
    absolute = Path(os.path.abspath(os.path.expanduser(path)))
    if not absolute.exists():
        raise FileNotFoundError(
            f"tokenizer {path!r}: nothing at {absolute}; expected a Hugging Face tokenizer folder "
            "or a SentencePiece .model file (a relative path is taken from the working directory)"
        )
    if absolute.is_file():
        return SentencePiece(absolute)
    if (absolute / "tokenizer.model").exists() and not (absolute / "tokenizer.json").exists():
        return SentencePiece(absolute / "tokenizer.model")
    return HuggingFace(absolute)


class HuggingFace:
    """A tokenizer folder, opened by `transformers` (no torch)."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(
                f"{folder} holds no tokenizer: expected tokenizer.json, vocab.json or "
                "tokenizer.model; name the tokenizer's own folder, or use rows of input_ids"
            )
        try:
            # Where it is not told, transformers asks at the terminal whether to run foreign code.
            self._inner = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the libraries underneath raise
            raise ValueError(
                f"{folder}: its tokenizer cannot be opened ({type(error).__name__}: {error}); "
                "fetch its files again, or name another tokenizer"
            ) from error
        if not self._inner.is_fast:
            raise ValueError(
                f"{folder}: {type(self._inner).__name__} gives no character offsets, which the "
                "masks need; save it as a fast tokenizer (tokenizer.json)"
            )
        self.path = str(folder)
        self.bos_id = self._inner.bos_token_id
        self.eos_id = self._inner.eos_token_id
        self.pad_id = self._inner.pad_token_id
        self.vocab_size = len(self._inner)
        chosen = self._inner.get_chat_template() if self._inner.chat_template else None
        self.template = None if chosen is None else dated(chosen)
        added = self._inner.added_tokens_decoder.values()
        specials = {token.content for token in added if token.special}
        self.specials = tuple(sorted(specials, key=lambda text: (-len(text), text)))
        started = self._inner("a").input_ids[:1]
        self.adds_bos = self.bos_id is not None and started == [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """Tokenise without adding specials."""
        return self._inner(text, add_special_tokens=False, verbose=False).input_ids

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], Spans]]:
        """Tokenise many texts: ids, and the characters [first, last) that each token stands for."""
        if not texts:
            return []
        encoded = self._inner(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials left out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def show(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials included."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def render(self, messages: Messages, **settings: Any) -> tuple[str, Spans]:
        """Apply the chat template: text, and the spans that `{% generation %}` blocks marked."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.template is None:
            raise ValueError(f"{self.path} has no chat template; it cannot show `messages`")
        marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.template))
        try:
            texts, spans = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=marks,
                **{**self._inner.special_tokens_map, **settings},
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        marked = spans[0] if marks else []
        return texts[0], [(int(first), int(last)) for first, last in marked]


def dated(template: str) -> str:
    """Write a fixed day into a chat template that asks for the current one.

    Raises:
      ValueError: it asks in a way that is not understood.
    """
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    fixed = call.sub(lambda found: repr(_TODAY.strftime(found[2])), template)
    if "strftime_now(" in fixed:
        raise ValueError(
            "the chat template asks for the current date with a format that is not written out; "
            "put a fixed date into the template, so that rows are the same tomorrow"
        )
    return fixed


class SentencePiece:
    """A bare SentencePiece model; texts start with BOS where the model has one."""

    def __init__(self, file: Path):
        import sentencepiece

        try:
            self._inner = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file} is not a SentencePiece model ({error})") from error
        self.path = str(file)
        self.bos_id, self.eos_id, self.pad_id = (
            id if id >= 0 else None
            for id in (self._inner.bos_id(), self._inner.eos_id(), self._inner.pad_id())
        )
        self.adds_bos = self.bos_id is not None
        self.vocab_size = self._inner.vocab_size()
        self.specials: tuple[str, ...] = ()
        self.template: str | None = None

    def encode(self, text: str) -> list[int]:
        """Tokenise without adding specials."""
        return self._inner.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[tuple[list[int], Spans]]:
        """Tokenise many texts: ids, and the characters [first, last) that each token stands for."""
        protos = self._inner.encode(list(texts), return_type="proto") if texts else []
        return [
            ([piece.id for piece in proto.pieces], _character_spans(text, proto.pieces))
            for text, proto in zip(texts, protos, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials left out."""
        return self._inner.decode([int(i) for i in ids])

    def show(self, ids: Sequence[int]) -> str:
        """Give the text of some ids, specials included."""
        return "".join(self._inner.id_to_piece(int(i)) for i in ids).replace("▁", " ")

    def render(self, messages: Messages, **settings: Any) -> tuple[str, Spans]:
        """Refuse: a bare SentencePiece model has no chat template."""
        raise ValueError(f"{self.path} has no chat template; it cannot show `messages`")


def _character_spans(text: str, pieces: Sequence[Any]) -> Spans:
    """Turn a proto's byte offsets into character offsets."""
    if text.isascii():
        return [(piece.begin, piece.end) for piece in pieces]
    character_at = [0] * (len(text.encode()) + 1)
    byte = 0
    for number, character in enumerate(text):
        width = len(character.encode())
        character_at[byte : byte + width] = [number] * width
        byte += width
    character_at[byte] = len(text)
    return [(character_at[piece.begin], character_at[piece.end]) for piece in pieces]
