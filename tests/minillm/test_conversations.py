"""Rows of conversations in each format, and what is wrong with those that cannot be learnt from."""

import json
from typing import Any

import pytest

from minillm.data.conversations import Conversation, Format, parse_conversation, recognise

FIELDS = {name: name for name in ("messages", "conversations", "prompt", "completion", "instruction", "tools")}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WANTED = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
)
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Weather in Rome?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    {"from": "observation", "value": "sunny"},
    {"from": "gpt", "value": "Sunny."},
]
OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def parsed(row: dict[str, Any]) -> Conversation:
    form = recognise(row, FIELDS)
    assert form is not None
    return parse_conversation(row, form, FIELDS)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": list(WANTED)}, "messages"),
        ({"conversations": SHAREGPT}, "conversations"),
        ({"prompt": list(WANTED[:4]), "completion": list(WANTED[4:])}, "prompt and completion"),
    ],
)
def test_each_format_gives_the_same_messages(row: dict[str, Any], form: Format):
    assert recognise(row, FIELDS) == form
    assert parsed(row).messages == WANTED
    assert parsed({**row, "tools": [TOOL]}).tools == (TOOL,)
    assert parsed({**row, "tools": json.dumps([TOOL])}).tools == (TOOL,), "as files have it that hold no objects"


def test_prompt_and_completion_as_text():
    assert parsed({"prompt": "Two and two?", "completion": "Four."}).messages == (
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
    )


def test_formats_are_told_by_their_fields_whatever_these_are_called():
    assert recognise({"instruction": "a", "output": "b"}, FIELDS) == "instruction"
    assert recognise({"text": "a"}, FIELDS) is None
    assert recognise({"dialog": []}, {**FIELDS, "messages": "dialog"}) == "messages"


def test_arguments_as_text_parts_of_text_and_further_fields():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]},
        {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL], "reasoning_content": "Look it up."},
    ]
    found = parsed({"messages": messages}).messages
    assert found[0] == {"role": "user", "content": "Weather in Rome?"}
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Look it up."}


def test_what_follows_the_last_answer_is_dropped():
    row = {"messages": [*WANTED, {"role": "user", "content": "Thanks!"}]}
    assert parsed(row).messages == WANTED


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "`messages` is no list of messages"),
        ({"messages": "hello"}, "`messages` is no list of messages"),
        ({"messages": ["hello"]}, "message 1: not an object but str"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "message 1: unknown role 'asistant'"),
        ({"messages": [{"content": "a"}]}, "message 1: unknown role None"),
        (
            {"messages": [WANTED[1], {"role": "assistant", "content": " "}]},
            "message 2: the assistant's message is empty",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1: its content is int, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"parts other than text: \['image'\]"),
        ({"messages": [{**WANTED[1], "tool_calls": [CALL]}]}, "message 1: the user calls a tool"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call has no name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}]},
            "the arguments of a tool call cannot be read as JSON",
        ),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "message 1: unknown sender 'bot'"),
        ({"prompt": "a", "completion": ""}, "the assistant's message is empty"),
        ({"prompt": None, "completion": "a"}, "`prompt` is no list of messages"),
        ({"messages": list(WANTED), "tools": "{"}, "`tools` cannot be read as JSON"),
        ({"messages": list(WANTED), "tools": ["a"]}, "`tools` is no list of objects"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_says_why(row: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        parsed(row)
