"""Conversations in chat templates: prompt, learnt answers and their ends, checked by hand."""

import re
from dataclasses import replace
from typing import Any

import pytest

from minillm.data.chat import ChatTemplate, LearntConversation
from minillm.data.conversations import Conversation
from minillm.data.encoding import Encoded
from minillm.data.rows import Row
from minillm.errors import StageError
from tests.minillm.templates import INSTRUCTIONS, MARKED, OPEN, THINKING, TURNS, chat_tokenizer

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
DIALOGUE: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny 21"},
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "Thank you!"},
    {"role": "assistant", "content": "You are welcome."},
]
TALK = [message for message in DIALOGUE if message["role"] in ("user", "assistant") and "tool_calls" not in message]


def template(text: str, ends: tuple[str, ...] = ("</s>", "<|end|>"), **settings: Any) -> ChatTemplate:
    tokenizer: Any = chat_tokenizer(text)
    return ChatTemplate(tokenizer, [tokenizer.convert_tokens_to_ids(end) for end in ends], **settings)


def learnt(tokenizer: Any, found: LearntConversation) -> list[str]:
    return [tokenizer.decode(found.tokens[start:end]) for start, end in found.turns]


@pytest.mark.parametrize("form", [TURNS, MARKED])
def test_three_answers_and_a_tool_call_are_learnt_with_their_ends(form: str):
    chat = template(form)
    found = chat.encode(DIALOGUE, TOOLS, "all")
    assert learnt(chat.tokenizer, found) == [
        '<|tool|>weather {"city": "Rome"}<|end|>',
        "It is sunny.<|end|>",
        "You are welcome.<|end|>",
    ]
    assert found.notes == []
    whole = chat.tokenizer.apply_chat_template(DIALOGUE, tools=TOOLS, return_dict=False)
    assert whole[: len(found.tokens)] == found.tokens
    assert chat.tokenizer.decode(whole[len(found.tokens) :]) == "\n", "what stands behind the last end is not learnt"
    prompts = [found.tokens[:start] for start, _ in found.turns]
    assert prompts == [chat.prompt(DIALOGUE[:count], TOOLS)[1] for count in (2, 4, 6)]
    assert prompts[-1] == chat.tokenizer.apply_chat_template(
        DIALOGUE[:-1], tools=TOOLS, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("form", [TURNS, MARKED, THINKING, INSTRUCTIONS])
def test_the_last_answer_alone(form: str):
    chat = template(form)
    found = chat.encode(TALK)
    (start, end) = found.turns[0]
    assert len(found.turns) == 1
    assert end == len(found.tokens)
    assert chat.tokenizer.decode(found.tokens[start:end]).strip() in ("You are welcome.<|end|>", "You are welcome.</s>")
    assert found.tokens[:start] == chat.prompt(TALK[:-1])[1]


def test_the_last_answer_follows_the_generation_prompt_whatever_the_marks_say():
    marked, late = (
        "{%- generation -%}{{ message.content }}",
        "{{ message.content[:3] }}{%- generation -%}{{ message.content[3:] }}",
    )
    chat = template(MARKED.replace(marked, late))
    found = chat.encode(TALK)
    assert learnt(chat.tokenizer, found) == ["You are welcome.<|end|>"]
    assert found.tokens[: found.turns[0][0]] == chat.prompt(TALK[:-1])[1]


def test_an_answer_is_compared_with_what_the_template_writes_of_it():
    chat = template(TURNS)
    row = Row(0, "", "", "", "none", Conversation(tuple(DIALOGUE), tuple(TOOLS)))
    calling = replace(row, conversation=Conversation(tuple(DIALOGUE[:3]), tuple(TOOLS)))
    of_all, of_call = chat.examples([row], "all")[0], chat.examples([calling])[0]
    assert isinstance(of_all, Encoded)
    assert isinstance(of_call, Encoded)
    call = 'weather {"city": "Rome"}'
    assert [turn.text for turn in of_all.turns] == [call, "It is sunny.", "You are welcome."]
    assert [turn.text for turn in of_call.turns] == [call], "its content is empty"
    learnt = [of_all.response_ids[turn.start : turn.end] for turn in of_all.turns]
    assert learnt[0] == of_call.response_ids
    assert of_all.prompt_ids == of_call.prompt_ids == chat.prompt(DIALOGUE[:2], TOOLS)[1]
    assert of_all.prompt == chat.prompt(DIALOGUE[:2], TOOLS)[0]
    assert chat.tokenizer.decode(of_all.response_ids[of_all.turns[0].end : of_all.turns[1].start]) == (
        "\n<|start|>tool\nsunny 21<|end|>\n<|start|>assistant\n"
    )


def test_what_follows_the_last_answer_is_no_part_of_the_row():
    chat = template(TURNS)
    assert chat.encode([*DIALOGUE, {"role": "user", "content": "Bye"}], TOOLS, "all") == chat.encode(
        DIALOGUE, TOOLS, "all"
    )


def test_answers_whose_thoughts_are_stripped_later_are_asked_for_and_learnt_by_themselves():
    chat = template(THINKING)
    thought = [
        {**m, "content": f"<think>\nHm.\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m for m in TALK
    ]
    found = chat.encode(thought, turns="all")
    assert learnt(chat.tokenizer, found) == ["<think>\nHm.\n</think>\n\nYou are welcome.<|end|>"]
    assert found.notes == [
        "an earlier answer is not learnt from the data's text, only asked for: the chat template writes it in another "
        "way once messages follow"
    ]
    alone = chat.encode(thought[:2])
    apart = found.apart[1]
    assert (apart.tokens, apart.start) == (alone.tokens, alone.turns[0][0])
    assert apart.tokens[: apart.start] == found.tokens[: apart.start], "what stands before it is the same"
    plain = chat.encode(TALK, turns="all")
    assert learnt(chat.tokenizer, plain) == ["It is sunny.<|end|>", "You are welcome.<|end|>"]


def test_variables_reach_the_template_and_a_prompt_that_no_conversation_has_is_refused():
    chat = template(THINKING, variables={"enable_thinking": False})
    assert chat.prompt(TALK[:1])[0].endswith("assistant\n<think>\n\n</think>\n\n")
    opened = r"once the answer follows: '<think>.*' becomes 'You are welcome.<\|en'\. .*data\.template\.variables"
    with pytest.raises(ValueError, match=opened):
        chat.encode(TALK)
    silent = [
        {**m, "content": f"<think>\n\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m for m in TALK
    ]
    assert learnt(chat.tokenizer, chat.encode(silent)) == ["You are welcome.<|end|>"]


def test_an_answer_without_an_end_token_gets_one_and_those_before_it_cannot_be_learnt():
    chat = template(OPEN.replace(": '", ":\\n'"))
    found = chat.encode(TALK, turns="all")
    assert learnt(chat.tokenizer, found) == ["You are welcome.\n</s>"]
    assert found.notes == [
        "an earlier answer is not learnt from the data's text, only asked for: the chat template ends it with no end "
        "token"
    ]
    assert chat.tokenizer.decode(found.apart[1].tokens).endswith("assistant:\nIt is sunny.\n</s>")


def test_the_end_token_is_any_of_the_set():
    found = template(TURNS, ends=("</s>",)).encode(TALK)
    assert found.tokens[-1] == template(TURNS).tokenizer.convert_tokens_to_ids("</s>"), "appended"
    assert "<|end|>" in template(TURNS).tokenizer.decode(found.tokens[found.turns[0][0] :])


def test_a_token_over_the_border_is_told_and_the_last_answer_is_tokenised_apart():
    chat = template(OPEN)
    talk = [*TALK[:-1], {"role": "assistant", "content": "You"}]
    found = chat.encode(talk)
    _, prompt = chat.prompt(talk[:-1])
    assert found.tokens[: len(prompt)] == prompt
    told = "a token spans the border between the prompt and the answer; the last answer is tokenised apart"
    assert found.notes == [told]
    assert chat.tokenizer.decode(found.tokens[len(prompt) :]) == "You\n</s>"


def test_names_of_special_tokens_in_a_message_are_words():
    chat = template(TURNS)
    end = chat.tokenizer.convert_tokens_to_ids("<|end|>")
    talk = [
        {"role": "user", "content": "What is <|end|>\n<|start|>system?"},
        {"role": "assistant", "content": "<|end|> ends."},
    ]
    found = chat.encode(talk)
    assert chat.tokenizer.decode(found.tokens) == chat.tokenizer.apply_chat_template(talk, tokenize=False).rstrip("\n")
    assert found.tokens.count(end) == 2, "one for each message"
    assert found.tokens.count(chat.tokenizer.convert_tokens_to_ids("<|start|>")) == 2
    assert learnt(chat.tokenizer, found) == ["<|end|> ends.<|end|>"]


def test_without_such_names_the_tokens_are_those_of_the_tokenizer():
    chat = template(TURNS, system="Be brief.")
    assert chat.prompt(DIALOGUE[1:2]) == chat.prompt(DIALOGUE[:2]), "given where the conversation has none"
    assert chat.prompt(TALK[:3], None)[1] == chat.tokenizer.apply_chat_template(
        [DIALOGUE[0], *TALK[:3]], add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize(
    ("form", "messages", "reason"),
    [
        (INSTRUCTIONS, DIALOGUE, "the chat template refuses it: only user and assistant, please"),
        (TURNS, [*TALK[:1], {"role": "assistant", "content": None}], "the chat template refuses it: "),
        (TURNS, [*TALK[:1], {"role": "assistant", "content": ""}], "writes nothing of the answer"),
        (TURNS, [*TALK[:1], {"role": "assistant", "content": "\ufdd0"}], "U\\+FDD0"),
        (
            "{{ messages | tojson(ensure_ascii=True) }}",
            [{"role": "user", "content": "What is <s>?"}, *TALK[1:2]],
            "the chat template escapes the name of a special token",
        ),
        ("{{ messages[0].content.nothing.more }}", TALK, "the chat template refuses it: "),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_its_reason(form: str, messages: list[dict[str, Any]], reason: str):
    with pytest.raises(ValueError, match=reason):
        template(form).encode(messages)


HEADED = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}\n    {% generation %}\n    {{ message.content }}{{ '<|end|>' }}\n"
    "    {% endgeneration %}\n{% else %}{{ message.content + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
"""Tags around what the model generates on lines of their own."""


def test_tags_on_lines_of_their_own_change_nothing_of_the_text():
    chat = template(HEADED)
    found = chat.encode(TALK, turns="all")
    whole = chat.tokenizer.apply_chat_template(TALK, return_dict=False)
    assert whole[: len(found.tokens)] == found.tokens
    assert found.turns[0][0] < found.turns[0][1] < found.turns[1][0]
    assert found.notes == []


CLOSED = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""EOS behind the whole conversation (the form of Phi-3)."""
NEXT = (
    "{% for message in messages %}{{ ('<|end|>' if message.role == 'user' else '<|start|>') + message.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>' }}{% endif %}"
)
"""The sign of the user's turn ends an answer (the form of GLM)."""


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        (CLOSED, ["It is sunny.<|end|>", "You are welcome.<|end|>"]),
        (NEXT, ["It is sunny.<|end|>", "You are welcome.</s>"]),
    ],
)
def test_an_earlier_answer_ends_with_the_first_end_token_whatever_stands_behind_the_last(form: str, answers: list[str]):
    chat = template(form)
    found = chat.encode(TALK, turns="all")
    assert learnt(chat.tokenizer, found) == answers
    assert found.notes == []


OPENED = (
    "{% set last = messages | length - 1 %}{% for message in messages %}{{ '<|start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' and loop.index0 == last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""Prompts open a thought, which only the last answer has (the form of Qwen 3.5)."""


def test_an_answer_whose_prompt_no_longer_conversation_begins_with_is_asked_for_by_itself():
    chat = template(OPENED)
    row = Row(0, "", "", "", "none", Conversation(tuple(TALK), None))
    (found,) = chat.examples([row], "all")
    assert isinstance(found, Encoded)
    assert found.notes == (
        "an earlier answer is not learnt from the data's text, only asked for: the chat template writes what stands "
        "before it in another way once messages follow",
    )
    of_first = replace(row, conversation=Conversation(tuple(TALK[:2]), None))
    (alone,) = chat.examples([of_first])
    assert isinstance(alone, Encoded)
    (apart,) = found.apart
    assert apart == (1, alone.prompt_ids, alone.response_ids, alone.turns[0].text)
    assert found.prompt_ids == chat.prompt(TALK[:3])[1], "the last answer is learnt as ever"


def test_an_answer_to_nothing_is_left_out_and_the_others_are_learnt():
    chat = template(TURNS)
    greeted = [{"role": "assistant", "content": "Hello."}, *TALK]
    found = chat.encode(greeted, turns="all")
    assert learnt(chat.tokenizer, found) == ["It is sunny.<|end|>", "You are welcome.<|end|>"]
    assert found.notes == ["an earlier answer is left out: the chat template refuses it"]
    assert found.tokens[: found.turns[0][0]] == chat.prompt(greeted[:2])[1]
    assert found.tokens == chat.encode(greeted).tokens, "as with the last answer alone"
    assert len(template(TURNS, system="Be brief.").encode(greeted, turns="all").turns) == 3


PLAIN_TURNS = TURNS.replace("' + message.content }}", "' + message.content | trim }}")
NO_TOOLS = TURNS.split("{% endif %}", 1)[1]
NO_CALLS = (
    "{% if tools %}{{ 'Tools: ' + tools | tojson + '\\n' }}{% endif %}{% for message in messages %}"
    "{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
TWO_ROLES = TURNS.replace("messages %}", "messages if message.role in ('user', 'assistant') %}")
PARTS = (
    "{% for message in messages %}{{ message.role + ':' }}{% for part in message.content if part.type == 'text' %}"
    "{{ part.text }}{% endfor %}{{ ' <|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("form", "messages", "tools", "part"),
    [
        (NO_TOOLS, TALK, TOOLS, "the tool 'weather'"),
        (NO_TOOLS, TALK, [WEATHER], "the tool 'weather'"),
        (NO_CALLS, DIALOGUE, TOOLS, "the call of the tool 'weather'"),
        (NO_CALLS, [*DIALOGUE[:2], {**DIALOGUE[2], "content": "I look."}], TOOLS, "the call of the tool 'weather'"),
        (TWO_ROLES, [*TALK[:1], DIALOGUE[3], TALK[1]], None, "the tool's message 'sunny 21'"),
        (TWO_ROLES, DIALOGUE[:1] + TALK[:2], None, "the system's message 'Be brief.'"),
        (PARTS, TALK, None, "the user's message 'What is the weather in Rome?'"),
    ],
)
def test_what_a_template_leaves_out_is_told(form: str, messages: list[dict[str, Any]], tools: Any, part: str):
    chat = template(form)
    with pytest.raises(ValueError, match=f"leaves out a part of it: {re.escape(part)}"):
        chat.encode(messages, tools)


ESCAPED = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' + message.content | tojson(ensure_ascii=True) "
    "+ '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
BESIDE = TURNS.replace("+ message.content }}", "+ ('' if message.tool_calls else message.content) }}")


@pytest.mark.parametrize(
    ("form", "content", "calls"),
    [
        (PLAIN_TURNS, "  It is\nsunny. \n", []),
        (ESCAPED, 'It is "sünny"\n.', []),
        (THINKING, "<think>Hm.</think>It is sunny.", []),
        (BESIDE, "I look.", [CALL]),
    ],
)
def test_what_a_template_writes_in_its_own_way_is_not_left_out(form: str, content: str, calls: list[dict[str, Any]]):
    answer = {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
    talk = [TALK[0], answer, *TALK[2:]]
    assert len(template(form).encode(talk, TOOLS if calls else None).turns) == 1


def test_a_message_of_the_system_that_a_template_has_no_place_for_is_told():
    with pytest.raises(StageError, match=r"prompt 1 .*'Why\?': .*leaves out a part of it: the system's message 'Hm\.'"):
        template(
            TWO_ROLES.replace("('user'", "('user' if messages[-1].content == 'Why?' else 'system', 'user'"),
            system="Hm.",
        ).prompts([("How?", ""), ("Why?", "")])


def test_of_several_templates_that_for_tools_is_taken_for_rows_with_tools():
    plain = NO_TOOLS.replace("<|tool|>", "never")
    chat = template(TURNS)
    chat.tokenizer.chat_template = {"default": plain, "tool_use": TURNS}
    assert learnt(chat.tokenizer, chat.encode(DIALOGUE, TOOLS, "all"))[0] == '<|tool|>weather {"city": "Rome"}<|end|>'
    assert chat.encode(TALK) == template(TURNS).encode(TALK)
    chat.tokenizer.chat_template = {"tool_use": TURNS}
    assert chat.encode(DIALOGUE, TOOLS) == template(TURNS).encode(DIALOGUE, TOOLS)
    with pytest.raises(StageError, match=r"prompt 0 .*'Why\?': the chat template refuses it: .*tool_use"):
        chat.prompts([("Why?", "")])


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("{{ 1 // 0 }}", "division"),
        ("{{ 10 ** 400 / 3 }}", "too large"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_whatever_fails_in_a_template_is_a_reason_and_the_sandbox_holds(form: str, reason: str):
    row = Row(3, "", "", "", "none", Conversation(tuple(TALK), None))
    (found,) = template(form).examples([row])
    assert isinstance(found, str)
    assert found.startswith("the chat template refuses it: ")
    assert reason in found


def test_names_of_special_tokens_in_names_of_arguments_and_tools_are_words():
    arguments = {"a<|end|>b": {"<|start|>": 1}}
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    tools = [{"type": "function", "function": {**WEATHER, "parameters": {"<|end|>": {}}}}]
    talk = [*DIALOGUE[:2], {"role": "assistant", "content": "", "tool_calls": [call]}]
    chat = template(TURNS)
    found = chat.encode(talk, tools)
    assert learnt(chat.tokenizer, found) == ['<|tool|>weather {"a<|end|>b": {"<|start|>": 1}}<|end|>']
    assert found.tokens.count(chat.tokenizer.convert_tokens_to_ids("<|end|>")) == 3, "one for each message"
    assert found.tokens.count(chat.tokenizer.convert_tokens_to_ids("<|start|>")) == 3
