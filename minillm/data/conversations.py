"""Conversations in the formats that people have: `messages`, ShareGPT's `conversations`, `prompt` with `completion`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minillm.config.data import RowFields
from minillm.data.json_rows import TOO_DEEP, Reader
from minillm.data.records import has_value
from minillm.errors import first_line
from minillm.nearest import suggestion

Message = Mapping[str, Any]
"""`role`, `content`, `tool_calls` where there are some, and the row's further fields as far as they are JSON."""
Format = Literal["messages", "conversations", "prompt and completion", "instruction"]

FORMATS: Mapping[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "instruction": ("instruction",),
}
"""Fields without which a row is not of a format, by their names in `RowFields`; the first format that fits counts."""
OPTIONAL: Mapping[Format, tuple[str, ...]] = {"instruction": ("context", "response")}
"""Further fields that belong to one format alone."""
USUAL = RowFields()

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
DEEPEST = 100
"""Most levels of a call or a list of tools; recursion ends at about 500."""
WRITTEN = ("name", "reasoning_content", "reasoning", "thinking")
"""Further fields of a message that chat templates write."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the last answer of the assistant, and the tools that they may call."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    given: int = 0
    """Number of the first messages that are only read, whoever wrote them: those of a prompt."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Every message as text, with its calls and whatever else templates write of it; then the tools."""
        return (*map(_all_of, self.messages), *map(_as_json, self.tools or ()))


def _all_of(message: Message) -> str:
    further = [str(message[name]) for name in WRITTEN if name in message]
    # Ids of calls are drawn anew in every copy.
    calls = [_as_json(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join([message["role"], message["content"], *further, *calls])


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def recognise(value: Mapping[str, Any], fields: RowFields) -> Format | None:
    """Return the format of a row by the fields that have a value in it, None if it is of none.

    A format of which the configuration names a field goes before those of which it names none.
    """
    fitting: list[Format] = [
        form for form, needed in FORMATS.items() if all(has_value(value.get(getattr(fields, name))) for name in needed)
    ]
    fitting.sort(key=lambda form: not _is_named(form, fields))
    return fitting[0] if fitting else None


def _is_named(form: Format, fields: RowFields) -> bool:
    names = (*FORMATS[form], *OPTIONAL.get(form, ()))
    return any(getattr(fields, name) != getattr(USUAL, name) for name in names)


def parse_conversation(value: Mapping[str, Any], form: Format, fields: RowFields) -> Conversation:
    """Turn a row into a conversation.

    Args:
        value: The row.
        form: Its format, one of those of conversations.
        fields: Names of its fields.

    Raises:
        ValueError: The row is malformed; the message is the reason.
    """
    given: list[Message] = []
    match form:
        case "messages":
            told = _list(value, fields.messages, _message)
        case "conversations":
            told = _list(value, fields.conversations, lambda message: _sharegpt_message(message, fields.conversations))
        case _:
            given, told = _side(value, fields.prompt, "user"), _side(value, fields.completion, "assistant")
    answers = [number for number, message in enumerate(told, start=1) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"no message of the assistant{f' in `{fields.completion}`' if given else ''}")
    system = _system(value, fields.system, (*given, *told)[0])
    messages = (*system, *given, *told[: answers[-1]])
    return Conversation(messages, _tools(value, fields.tools), len(system) + len(given))


def _system(value: Mapping[str, Any], name: str, first: Message) -> list[Message]:
    """Read the system's message that stands beside a conversation with this first message."""
    text = value.get(name)
    if not has_value(text):
        return []
    if not isinstance(text, str):
        raise ValueError(
            f"`{name}` is {type(text).__name__}, not text; if it is no message of the system, give data.fields.system "
            "another name"
        )
    if first["role"] != "system":
        return [_checked("system", text, [])]
    if first["content"].strip() != text.strip():
        raise ValueError(f"two messages of the system: `{name}` and the first of the conversation; keep one")
    return []


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
    further = {
        name: field
        for name, field in value.items()
        if name != "tool_calls" and field is not None and _not_json(field) is None
    }
    return {**further, **_checked(role, _text(value.get("content")), list(map(_call, calls)))}


def _sharegpt_message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"not an object but {type(value).__name__}")
    if "role" in value and "from" not in value:
        raise ValueError(
            f"`role` in place of `from`; give data.fields: {{messages: {name}}}, or call the field `messages`"
        )
    sender, text = value.get("from"), _text(value.get("value"))
    if sender == FUNCTION_CALL:
        return _checked("assistant", "", [_call(_parsed(text, "a function_call"))])
    if not isinstance(sender, str) or sender not in SHAREGPT_ROLES:
        raise ValueError(f"unknown sender {sender!r}; {suggestion(str(sender), [*SHAREGPT_ROLES, FUNCTION_CALL])}")
    return _checked(SHAREGPT_ROLES[sender], text, [])


def _checked(role: str, content: str, calls: Sequence[Mapping[str, Any]]) -> Message:
    if not content.strip() and not calls:
        raise ValueError(f"the {role}'s message is empty")
    if calls and role != "assistant":
        raise ValueError(f"the {role} calls a tool")
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def _text(content: Any) -> str:
    """Return the text of a content, which may be a list of parts; None is none."""
    if isinstance(content, list):
        kinds = {str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__ for part in content}
        if kinds - {"text"}:
            raise ValueError(f"its content has parts other than text: {sorted(kinds - {'text'})}")
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
    arguments = function.get("arguments")
    arguments = _parsed(arguments, "the arguments of a tool call") if isinstance(arguments, str) else arguments
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise ValueError("the arguments of a tool call are no object")
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    call |= {"id": value["id"]} if value.get("id") is not None else {}
    if reason := _not_json(call):
        raise ValueError(f"a tool call is not JSON: {reason}")
    return call


def _tools(value: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...] | None:
    """Return the tools of a row: a list of schemas, or JSON text of one."""
    tools = value.get(name)
    tools = _parsed(tools, f"`{name}`") if isinstance(tools, str) else tools
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"`{name}` is no list of objects")
    if reason := _not_json(tools):
        raise ValueError(f"`{name}` is not JSON: {reason}")
    return tuple(tools)


def _parsed(text: str, what: str) -> Any:
    """Read JSON text; blank text is none."""
    try:
        return Reader().whole(text.strip()) if text.strip() else None
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def _not_json(value: Any) -> str | None:
    """Return why a value cannot be passed on as JSON, as dates of tables and NaN cannot; None if it can."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"{first_line(error)}; write it as text or a number"
    except RecursionError:
        return TOO_DEEP
    return TOO_DEEP if _is_deeper(value, DEEPEST) else None


def _is_deeper(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(part, levels - 1) for part in parts)
