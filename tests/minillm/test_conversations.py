"""Rows of conversations in each format, and what is wrong with those that cannot be learnt from."""

import json
from datetime import date
from typing import Any

import pytest

from minillm.config.data import RowFields
from minillm.data.conversations import Conversation, Format, parse_conversation, recognise

FIELDS = RowFields()
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
WEATHER = WANTED[1]
OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def parsed(row: dict[str, Any]) -> Conversation:
    form: Format = "messages" if "messages" in row else "conversations"
    return parse_conversation(row, "prompt and completion" if "prompt" in row else form, FIELDS)


def called(call: object) -> dict[str, Any]:
    """Return a row that ends with a call of a tool."""
    return {"messages": [WEATHER, {"role": "assistant", "tool_calls": [call]}]}


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
    assert recognise({"dialog": [WEATHER]}, RowFields(messages="dialog")) == "messages"
    both = {"instruction": "a", "output": "b", "messages": list(WANTED)}
    assert recognise(both, FIELDS) == "messages"
    for none in (None, [], " "):
        assert recognise({**both, "messages": none}, FIELDS) == "instruction"
    assert recognise({"prompt": "a", "completion": None}, FIELDS) is None


def test_a_format_whose_field_is_named_goes_before_the_others():
    row = {"prompt": "a", "completion": "b", "messages": list(WANTED), "talk": list(WANTED)}
    assert recognise(row, FIELDS) == "messages"
    assert recognise(row, RowFields(instruction="prompt", response="completion")) == "instruction"
    assert recognise(row, RowFields(prompt="prompt", completion="talk")) == "prompt and completion"
    assert recognise(row, RowFields(conversations="talk")) == "conversations"
    assert recognise({**row, "talk": None}, RowFields(conversations="talk")) == "messages"


def test_arguments_as_text_parts_of_text_and_further_fields():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}]},
        {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL], "reasoning_content": "Look it up."},
    ]
    found = parsed({"messages": messages}).messages
    assert found[0] == {"role": "user", "content": "Weather in Rome?"}
    call = {"id": "1", **CALL}
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Look it up."}


@pytest.mark.parametrize("arguments", [{}, "", " ", "{}", None, "null"])
def test_a_call_may_have_no_arguments(arguments: object):
    answer = parsed(called({"function": {"name": "weather", "arguments": arguments}})).messages[1]
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "weather", "arguments": {}}}]


def test_an_empty_list_of_calls_is_none_and_further_fields_that_are_not_json_are_left_out():
    answer = {"role": "assistant", "content": "Sunny.", "tool_calls": [], "day": date(2026, 1, 2), "mood": None}
    assert parsed({"messages": [WEATHER, answer]}).messages[1] == {"role": "assistant", "content": "Sunny."}


def test_the_texts_tell_apart_whatever_a_template_writes():
    rows = [
        {"messages": list(WANTED)},
        {"messages": list(WANTED), "tools": [TOOL]},
        {"messages": list(WANTED), "tools": [TOOL, TOOL]},
        {"messages": [*WANTED[:4], {**WANTED[4], "reasoning_content": "21 degrees."}]},
    ]
    assert len({parsed(row).texts for row in rows}) == len(rows)
    copies = [called({**CALL, "id": number}) for number in ("a1", "b2")]
    assert len({parsed(row).texts for row in copies}) == 1, "ids of calls differ from copy to copy"
    assert parsed(called({"name": "weather", "arguments": {"city": "Köln"}})).texts[1] == (
        'assistant\n\n{"name": "weather", "arguments": {"city": "Köln"}}'
    )


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_message_of_the_system_may_stand_beside_the_conversation(form: str):
    told = list(WANTED) if form == "messages" else SHAREGPT
    assert parsed({form: told[1:], "system": "Be brief."}).messages == WANTED
    assert parsed({form: told, "system": "Be brief. "}).messages == WANTED
    assert parsed({form: told[1:], "system": ""}).messages == WANTED[1:]
    with pytest.raises(ValueError, match="two messages of the system: `system` and the first of the conversation"):
        parsed({form: told, "system": "Be long."})
    with pytest.raises(ValueError, match=r"`system` is bool, not text; .* data\.fields\.system another name"):
        parsed({form: told, "system": True})


def test_of_a_prompt_no_answer_is_learnt():
    talk = [WEATHER, WANTED[4], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    row = {"prompt": talk[:3], "completion": [*talk[3:], WEATHER], "system": "Be brief."}
    assert parsed(row) == Conversation((WANTED[0], *talk), None, given=4)
    with pytest.raises(ValueError, match="no message of the assistant in `completion`"):
        parsed({"prompt": talk[:3], "completion": [WEATHER]})


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
        ({"messages": [{"role": "system", "content": ""}, *WANTED[1:]]}, "message 1: the system's message is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1: its content is int, not text"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, r"message 1: unknown role \['user'\]"),
        ({"messages": [{"role": "user", "content": [{"type": ["a"]}]}]}, r"parts other than text: \[\"\['a'\]\"\]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"parts other than text: \['image'\]"),
        ({"messages": [{**WANTED[1], "tool_calls": [CALL]}]}, "message 1: the user calls a tool"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call has no name"),
        (called({"name": "a", "arguments": "{"}), r"the arguments of a tool call cannot be read: not JSON \(Expect"),
        (called({"name": "a", "arguments": "{} {}"}), r"arguments of a tool call cannot be read: not JSON \(Extra"),
        (called({"name": "a", "arguments": '{"x": 1, "x": 2}'}), "cannot be read: `x` is given twice"),
        (called({"name": "a", "arguments": '{"x": "\\ud800"}'}), r"cannot be read: half a character: \\ud800"),
        (called({"name": "a", "arguments": "[" * 100_000}), "cannot be read: nested too deeply"),
        (
            called({"name": "a", "arguments": '{"x":' * 600 + "1" + "}" * 600}),
            "a tool call is not JSON: nested too deep",
        ),
        (called({"name": "a", "arguments": '{"x": NaN}'}), "message 2: a tool call is not JSON: Out of range float"),
        (called({"name": "a", "arguments": {"x": date(2026, 1, 2)}}), "a tool call is not JSON: Object of type date"),
        (called({"name": "a", "arguments": ["x"]}), "the arguments of a tool call are no object"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "message 1: unknown sender 'bot'"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, r"message 1: unknown sender \['human'\]"),
        ({"conversations": [WEATHER]}, r"message 1: `role` in .* give data\.fields: {messages: conversations}, or"),
        (
            {"conversations": [SHAREGPT[1], {"from": "function_call", "value": '{"name": "a", "name": "b"}'}]},
            "message 2: a function_call cannot be read: `name` is given twice",
        ),
        ({"prompt": "a", "completion": ""}, "the assistant's message is empty"),
        ({"prompt": None, "completion": "a"}, "`prompt` is no list of messages"),
        ({"messages": list(WANTED), "tools": "{"}, r"`tools` cannot be read: not JSON \(Expect"),
        ({"messages": list(WANTED), "tools": '[{"a": 1, "a": 2}]'}, "`tools` cannot be read: `a` is given twice"),
        ({"messages": list(WANTED), "tools": '[{"a": "\\ud800"}]'}, "`tools` cannot be read: half a character"),
        ({"messages": list(WANTED), "tools": [{"a": date(2026, 1, 2)}]}, "`tools` is not JSON: Object of type date"),
        ({"messages": list(WANTED), "tools": '[{"a": NaN}]'}, "`tools` is not JSON: Out of range float"),
        ({"messages": list(WANTED), "tools": ["a"]}, "`tools` is no list of objects"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_says_why(row: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        parsed(row)
