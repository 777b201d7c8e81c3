"""Conversations: which characters of a rendered chat template are an assistant's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from research.core.protocols import View
from research.data.examples import RowError
from research.data.tokenizer import Messages, Spans, Tokenizer

# A private-use character: it stands for a turn's content where that content is to be found.
_MARK = "\ue0d1"


def last_answer(row: Mapping[str, Any]) -> tuple[Messages, int]:
    """Give a row's messages, and from which message on assistant turns are trained.

    Rows of `messages` train every assistant turn; rows whose `prompt` and `completion` are lists of
    messages train those of the completion.
    """
    messages = row.get("messages")
    first = 0
    if messages is None:
        messages = [*row["prompt"], *(row.get("completion") or [])]
        first = len(row["prompt"])
    good = isinstance(messages, list) and messages
    if not good or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages
    ):
        raise RowError(
            "malformed", "messages is not a list of objects with `role` and `content`, or is empty"
        )
    return messages, first


@dataclasses.dataclass(frozen=True)
class Shown:
    """A conversation ready for the template; `opens_answer` asks for the assistant's header."""

    messages: Messages
    opens_answer: bool

    def render(self, tokenizer: Tokenizer, first: int) -> tuple[str, Spans, bool]:
        """Give the text, the trained spans, and whether EOS must be put at its end."""
        try:
            if self.opens_answer:
                return _text(tokenizer, self.messages, True, False), [], False
            return assistant_spans(tokenizer, self.messages, first)
        except ValueError as error:
            if isinstance(error, RowError):
                raise
            raise RowError("malformed", str(error)) from error


def joined(instruction: str, question: str) -> str:
    """Put an instruction before a question, on a line of its own unless it ends in white space."""
    gap = "" if not instruction or instruction[-1].isspace() else "\n"
    return instruction + gap + question


def conversation(messages: Messages, view: View, system: str) -> Shown:
    """Prepare a conversation for a view: the system turn, the instruction, and where it ends."""
    shown = [dict(message) for message in messages]
    if system and shown[0]["role"] != "system":
        shown.insert(0, {"role": "system", "content": system})
    if view.content == "prompt" and shown[-1]["role"] == "assistant":
        shown.pop()
    if view.instruction:
        users = [k for k, message in enumerate(shown) if message["role"] == "user"]
        if not users:
            raise RowError("malformed", "there is no user turn that could carry the instruction")
        turn = shown[users[-1]]
        shown[users[-1]] = {**turn, "content": joined(view.instruction, turn["content"])}
    return Shown(shown, view.content == "prompt")


def _text(tokenizer: Tokenizer, messages: Messages, opens: bool, thinks: bool | None) -> str:
    settings: dict[str, Any] = {"add_generation_prompt": opens}
    if thinks is not None:
        settings["enable_thinking"] = thinks
    return tokenizer.render(messages, **settings)[0]


def assistant_spans(
    tokenizer: Tokenizer, messages: Messages, first: int
) -> tuple[str, Spans, bool]:
    """Render a conversation and find its assistant turns from message `first` on.

    A turn runs from the end of its header (as the template opens it for generation) to its end of
    turn: the first special token after its content.

    Returns:
      The text, the spans, and whether the conversation ends without an end of turn, so that EOS
      must be put there.
    """
    text, marked = tokenizer.render(messages)
    turns = [k for k, m in enumerate(messages) if m["role"] == "assistant" and k >= first]
    if marked:
        turns = turns[-len(marked) :] if first else turns
        marked = marked[-len(turns) :] if first and turns else marked
        spans = [(start, _include_end(tokenizer, text, end)) for start, end in marked]
    else:
        spans = [_turn(tokenizer, messages, text, k) for k in turns]
    ends_open = bool(turns) and turns[-1] == len(messages) - 1 and bool(spans)
    closes = ends_open and not _ends_special(tokenizer, text[: spans[-1][1]])
    return text, spans, closes and tokenizer.eos_id is not None


def _turn(tokenizer: Tokenizer, messages: Messages, text: str, k: int) -> tuple[int, int]:
    """Find one assistant turn by putting a mark in place of its content."""
    marked = {"role": "assistant", "content": _MARK}
    with_mark = _text(tokenizer, [*messages[:k], marked, *messages[k + 1 :]], False, None)
    if with_mark.count(_MARK) != 1:
        raise ValueError(
            f"the chat template shows the content of message {k} {with_mark.count(_MARK)} times; "
            "expected once, so that its tokens can be found"
        )
    start = _shared(text, with_mark)
    end = len(text) - _shared(text[::-1], with_mark[::-1])
    closed = _text(tokenizer, [*messages[:k], marked], False, None).partition(_MARK)[2]
    tail = closed[: _shared(closed, text[end:])]
    return _header_end(tokenizer, messages[:k], text, start), end + _end_of_turn(tokenizer, tail)


def _shared(one: str, other: str) -> int:
    """Count the characters that two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _header_end(tokenizer: Tokenizer, before: Messages, text: str, start: int) -> int:
    """Find where generation would have started: after the longest header that the text has."""
    for thinks in (False, None):
        try:
            header = _text(tokenizer, before, True, thinks)
        except ValueError:  # some templates refuse to open a conversation with the assistant
            continue
        if text.startswith(header):
            return min(len(header), start) if thinks is None else len(header)
    return start


def _special(tokenizer: Tokenizer, text: str) -> re.Match | None:
    if not tokenizer.specials:
        return None
    return re.search("|".join(re.escape(s) for s in tokenizer.specials), text)


def _end_of_turn(tokenizer: Tokenizer, tail: str) -> int:
    """Count the characters of a turn's tail up to its first special token, or all of them."""
    found = _special(tokenizer, tail)
    return found.end() if found else len(tail)


def _include_end(tokenizer: Tokenizer, text: str, end: int) -> int:
    """Move the end of a marked span past the special token that directly follows it."""
    if _ends_special(tokenizer, text[:end]):
        return end
    found = _special(tokenizer, text[end:])
    return end + found.end() if found and not text[end : end + found.start()].strip() else end


def _ends_special(tokenizer: Tokenizer, text: str) -> bool:
    return any(text.rstrip().endswith(special) for special in tokenizer.specials)
