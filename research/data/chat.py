"""Conversations: which characters of a rendered chat template are an assistant's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from research.core.protocols import View
from research.data.composed import Composed
from research.data.examples import RowError
from research.data.tokenizer import Messages, Spans, Tokenizer

# A private-use character: it stands for a turn's content where that content is to be found.
_MARK = "\ue0d1"


def messages_of(row: Mapping[str, Any]) -> tuple[Messages, int]:
    """Give a row's messages, and from which message on assistant turns are trained.

    Rows of `messages` train every assistant turn; rows whose `prompt` and `completion` are lists of
    messages train those of the completion.

    Raises:
      RowError: they are not messages.
    """
    messages, first = row.get("messages"), 0
    if messages is None:
        messages, first = [*row["prompt"], *(row.get("completion") or [])], len(row["prompt"])
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RowError("malformed", f"messages is {messages!r}; expected a list of turns")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RowError("malformed", f"turn {message!r}; expected `role` and `content`")
        if not isinstance(message.get("content", ""), (str, list, type(None))):
            raise RowError("malformed", f"turn {message!r}; its content is no text")
    return messages, first


def joined(instruction: str, question: str) -> str:
    """Put an instruction before a question, on a line of its own unless it ends in white space."""
    gap = "" if not instruction or instruction[-1].isspace() else "\n"
    return instruction + gap + question


def compose_chat(
    messages: Messages, first: int, tokenizer: Tokenizer, view: View, system: str
) -> Composed:
    """Show a conversation through the template, with assistant turns from `first` on trained.

    The prompt view leaves the last assistant turn out and opens it, thinking off. An instruction
    goes into the last user turn.

    Raises:
      RowError: the template refuses the conversation, or has no place for the instruction.
    """
    shown = [dict(message) for message in messages]
    if system and shown[0]["role"] != "system":
        shown.insert(0, {"role": "system", "content": system})
        first += 1
    if view.content == "prompt" and shown[-1]["role"] == "assistant":
        shown.pop()
    if view.instruction:
        _instruct(shown, view.instruction)
    if view.content != "prompt":
        _require_answer(shown[first:])
    try:
        if view.content == "prompt":
            return Composed(text=_text(tokenizer, shown, opens=True, thinks=False))
        text, spans, closes = assistant_spans(tokenizer, shown, first)
    except ValueError as error:
        raise RowError("malformed", str(error)) from error
    return Composed(text=text, spans=tuple(spans), eos=closes)


def _require_answer(messages: Messages) -> None:
    said = (m.get("content") or m.get("tool_calls") for m in messages if m["role"] == "assistant")
    if not any(said):
        raise RowError("empty after masking", "no assistant turn says anything")


def _instruct(messages: list[dict[str, Any]], instruction: str) -> None:
    """Put the instruction into the last user turn."""
    for message in reversed(messages):
        if message["role"] == "user" and isinstance(message.get("content"), str):
            message["content"] = joined(instruction, message["content"])
            return
    raise RowError("malformed", "there is no user turn that could carry the instruction")


def plain_turns(messages: Messages) -> tuple[str, str | None]:
    """Give a conversation without a template: the turns before the last answer, and that answer."""
    answer = messages[-1].get("content") if messages[-1]["role"] == "assistant" else None
    before = messages[:-1] if answer is not None else messages
    return "\n".join(str(message.get("content") or "") for message in before), answer


def _text(
    tokenizer: Tokenizer, messages: Messages, *, opens: bool = False, thinks: bool | None = None
) -> str:
    settings = {} if thinks is None else {"enable_thinking": thinks}
    return tokenizer.render(messages, add_generation_prompt=opens, **settings)[0]


def assistant_spans(
    tokenizer: Tokenizer, messages: Messages, first: int
) -> tuple[str, Spans, bool]:
    """Render a conversation and find its assistant turns from message `first` on.

    A turn runs from the end of its header, as the template opens it for generation, to its end of
    turn: the first special token after its content. Templates that mark their answers with
    `{% generation %}` are taken at their word, and only the end of turn is looked for.

    Returns:
      The text, the spans, and whether the last turn has no end of turn, so that EOS must be put
      there.

    Raises:
      ValueError: the template refuses the conversation, or hides an assistant's content.
    """
    text, marked = tokenizer.render(messages)
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if marked and len(marked) != len(turns):
        raise ValueError(f"the template marks {len(marked)} answers; there are {len(turns)}")
    if marked:
        found = [(start, _include_end(tokenizer, text, end)) for start, end in marked]
        spans = [span for k, span in zip(turns, found, strict=True) if k >= first]
    else:
        spans = [_turn(tokenizer, messages, text, k) for k in turns if k >= first]
    answered = bool(spans) and turns[-1] == len(messages) - 1
    closes = answered and not _ends_special(tokenizer, text[: spans[-1][1]])
    return text, spans, closes and tokenizer.eos_id is not None


def _turn(tokenizer: Tokenizer, messages: Messages, text: str, k: int) -> tuple[int, int]:
    """Find one assistant turn by rendering the conversation with a mark in its place."""
    mark = {"role": "assistant", "content": _MARK}
    with_mark = _text(tokenizer, [*messages[:k], mark, *messages[k + 1 :]])
    if with_mark.count(_MARK) != 1:
        raise ValueError(
            f"the chat template shows the content of message {k} {with_mark.count(_MARK)} times; "
            "expected once, so that its tokens can be found"
        )
    start, end = _shared(text, with_mark), len(text) - _shared(text[::-1], with_mark[::-1])
    is_last = k == len(messages) - 1
    closed = with_mark if is_last else _text(tokenizer, [*messages[:k], mark])
    closed = closed.partition(_MARK)[2]
    tail = closed[: _shared(closed, text[end:])]
    special = _special(tokenizer, tail)
    return _header_end(tokenizer, messages[:k], text, start), end + (
        special.end() if special else len(tail)
    )


def _header_end(tokenizer: Tokenizer, before: Messages, text: str, start: int) -> int:
    """Find where generation would have started: after the longest header that the text has.

    `start` is where the content begins; it is the answer where the template cannot open a turn
    there (some refuse a conversation that begins with the assistant).
    """
    for thinks in (False, None):
        try:
            header = _text(tokenizer, before, opens=True, thinks=thinks)
        except ValueError:
            continue
        if text.startswith(header):
            return len(header)
    return start


def _shared(one: str, other: str) -> int:
    """Count the characters that two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _special(tokenizer: Tokenizer, text: str) -> re.Match[str] | None:
    pattern = "|".join(re.escape(special) for special in tokenizer.specials)
    return re.search(pattern, text) if pattern else None


def _include_end(tokenizer: Tokenizer, text: str, end: int) -> int:
    """Move the end of a marked span past the special token that directly follows it."""
    if _ends_special(tokenizer, text[:end]):
        return end
    found = _special(tokenizer, text[end:])
    return end + found.end() if found and not text[end : end + found.start()].strip() else end


def _ends_special(tokenizer: Tokenizer, text: str) -> bool:
    return text.rstrip().endswith(tokenizer.specials)
