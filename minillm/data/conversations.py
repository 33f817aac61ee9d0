"""Conversations in the formats that people have: `messages`, ShareGPT's `conversations`, `prompt` with `completion`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minillm.nearest import suggestion

Message = Mapping[str, Any]
"""`role`, `content`, and `tool_calls` where there are some."""
Format = Literal["instruction", "messages", "conversations", "prompt and completion"]

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Roles of ShareGPT's `from`; a `function_call` is an answer of the assistant that calls a tool."""
FUNCTION_CALL = "function_call"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the last answer of the assistant, and the tools that they may call."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every message as text: role, content and calls."""
        return tuple(
            "\n".join([message["role"], message["content"], *map(json.dumps, message.get("tool_calls", ()))])
            for message in self.messages
        )


def recognise(value: Mapping[str, Any], fields: Mapping[str, Any]) -> Format | None:
    """Return the format of a row by the names of its fields, None if it has those of none.

    Args:
        value: The row.
        fields: What the file calls the fields `messages`, `conversations`, `prompt`, `completion` and `instruction`.
    """
    if fields["messages"] in value:
        return "messages"
    if fields["conversations"] in value:
        return "conversations"
    if fields["prompt"] in value and fields["completion"] in value:
        return "prompt and completion"
    return "instruction" if fields["instruction"] in value else None


def parse_conversation(value: Mapping[str, Any], form: Format, fields: Mapping[str, Any]) -> Conversation:
    """Turn a row into a conversation.

    Args:
        value: The row.
        form: Its format, one of those of conversations.
        fields: What the file calls the fields.

    Raises:
        ValueError: The row is malformed; the message is the reason.
    """
    match form:
        case "messages":
            messages = _list(value, fields["messages"], _message)
        case "conversations":
            messages = _list(value, fields["conversations"], _sharegpt_message)
        case _:
            messages = [
                *_side(value, fields["prompt"], "user"),
                *_side(value, fields["completion"], "assistant"),
            ]
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("no message of the assistant")
    return Conversation(tuple(messages[: answers[-1] + 1]), _tools(value.get(fields["tools"])))


def _list(value: Mapping[str, Any], name: str, parse: Callable[[Any], Message]) -> list[Message]:
    if name not in value:
        raise ValueError(f"no field `{name}`")
    if not isinstance(value[name], list) or not value[name]:
        raise ValueError(f"`{name}` is no list of messages")
    messages = []
    for number, message in enumerate(value[name], start=1):
        try:
            messages.append(parse(message))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from error
    return messages


def _side(value: Mapping[str, Any], name: str, role: str) -> list[Message]:
    """Read a prompt or a completion, which is text or a list of messages."""
    if isinstance(value.get(name), str):
        return [_checked(role, value[name], [])]
    return _list(value, name, _message)


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"not an object but {type(value).__name__}")
    role = value.get("role")
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}; {suggestion(str(role), ROLES)}")
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("`tool_calls` is no list")
    further = {name: field for name, field in value.items() if field is not None}
    return {**further, **_checked(role, _text(value.get("content")), list(map(_call, calls)))}


def _sharegpt_message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"not an object but {type(value).__name__}")
    sender, text = value.get("from"), _text(value.get("value"))
    if sender == FUNCTION_CALL:
        return _checked("assistant", "", [_call(_object(text, "a function_call"))])
    if sender not in SHAREGPT_ROLES:
        raise ValueError(f"unknown sender {sender!r}; {suggestion(str(sender), [*SHAREGPT_ROLES, FUNCTION_CALL])}")
    return _checked(SHAREGPT_ROLES[sender], text, [])


def _checked(role: str, content: str, calls: Sequence[Mapping[str, Any]]) -> Message:
    if not content.strip() and not calls and role != "system":
        raise ValueError(f"the {role}'s message is empty")
    if calls and role != "assistant":
        raise ValueError(f"the {role} calls a tool")
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def _text(content: Any) -> str:
    """Return the text of a content, which may be a list of parts; None is none."""
    if isinstance(content, list):
        kinds = {part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content}
        if kinds - {"text"}:
            raise ValueError(f"its content has parts other than text: {sorted(map(str, kinds - {'text'}))}")
        return "".join(_text(part.get("text")) for part in content)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"its content is {type(content).__name__}, not text")
    return content or ""


def _call(value: Any) -> Mapping[str, Any]:
    """Return a call as templates read it, with its arguments as an object; datasets often have them as JSON text."""
    if not isinstance(value, Mapping):
        raise ValueError("a tool call is no object")
    function = value.get("function", value)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call has no name")
    arguments = function.get("arguments", {})
    arguments = _object(arguments, "the arguments of a tool call") if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise ValueError("the arguments of a tool call are no object")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _object(text: str, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read as JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"no JSON object in {what}")
    return found


def _tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Return the tools of a row: a list of schemas, or JSON text of one."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`tools` cannot be read as JSON: {error}") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError("`tools` is no list of objects")
    return tuple(value)
