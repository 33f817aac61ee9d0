"""Parts of a conversation that a chat template does not write, which a model would neither see nor learn."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minillm.data.guarded import BEGIN, END

SHOWN = 40
"""Characters of a message that a reason shows."""
Tools = Sequence[Mapping[str, Any]] | None


def left_out(
    messages: Sequence[Mapping[str, Any]],
    tools: Tools,
    text: str,
    render: Callable[[Sequence[Mapping[str, Any]], Tools], str],
) -> str | None:
    """Return what a template leaves out of messages and tools, None if it writes something of each.

    Names of tools, and contents that do not stand in the text as they are (a template may strip, escape or shorten
    them), are rendered once more with marks behind them, which must come into the text.

    Args:
        messages: Messages that the template was given.
        tools: Tools that it was given.
        text: Text that it has written.
        render: Writes messages and tools; may raise ValueError.
    """
    marks = _Marks()
    unseen = [message for message in messages if message.get("tool_calls") or not _is_seen(message, text)]
    if not unseen and not tools:
        return None
    marked = [marks.message(message) if message in unseen else message for message in messages]
    named = None if tools is None else [marks.named(tool, "the tool") for tool in tools]
    try:
        return marks.missing(render(marked, named))
    except ValueError:
        return None  # what was marked must have a form


class _Marks:
    """Marks behind parts of a conversation, each of its own."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def message(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a message with a mark behind its content or, as many templates then write none, its calls' names."""
        if calls := message.get("tool_calls"):
            return {**message, "tool_calls": [self.named(call, "the call of the tool") for call in calls]}
        return {**message, "content": self._mark(message["content"], f"the {message['role']}'s message")}

    def named(self, described: Mapping[str, Any], words: str) -> Mapping[str, Any]:
        """Return a tool or a call with a mark behind its name, if it has one where templates look for it."""
        if isinstance(function := described.get("function"), Mapping):
            return {**described, "function": self.named(function, words)}
        name = described.get("name")
        return {**described, "name": self._mark(name, words)} if isinstance(name, str) else described

    def _mark(self, text: str, words: str) -> str:
        self._parts.append(f"{words} {text[:SHOWN]!r}")
        return f"{text}{BEGIN}{len(self._parts) - 1}{END}"

    def missing(self, text: str) -> str | None:
        """Return the first part whose mark does not stand in a text, as it is or escaped."""
        marks = [f"{BEGIN}{number}{END}" for number in range(len(self._parts))]
        there = [mark in text or json.dumps(mark)[1:-1] in text for mark in marks]
        return next((part for part, found in zip(self._parts, there, strict=True) if not found), None)


def _is_seen(message: Mapping[str, Any], text: str) -> bool:
    content = message.get("content")
    return not isinstance(content, str) or content.strip() in text
