"""Benchmark rows with conversations, as turns: what the user and others say, and the references of the answer to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.config import Fields
from minillm.config.data import RowFields
from minillm.data.conversations import Conversation, Format, Message, parse_conversation, recognise
from minillm.data.records import has_value
from minillm.data.rows import field_with_value

TURNS = "turns"
"""Field with the user's texts if the configuration names none."""
REFERENCE_FIELDS = ("references", "reference", "output", "response")
"""Fields that may hold the references of `turns` if the configuration names none."""


@dataclass(frozen=True)
class Turn:
    """Messages between two answers of the model, and the references of the second answer."""

    said: tuple[Message, ...]
    """Messages; the last is the one to answer."""
    references: list[str]
    """Right answers; none if the answer is not scored."""


def turns_of(value: Mapping[str, Any], fields: Fields) -> tuple[list[Turn], Any] | None:
    """Return the turns of a row and the tools that it names; None for a row with an instruction.

    Raises:
        ValueError: The row is malformed; the message is the reason.
    """
    names = RowFields(instruction=fields.instruction, context=fields.context, response=fields.references)
    form = recognise(value, names)
    if _has_turns(value, fields, form):
        return _asked(value, fields.turns or TURNS, fields.references), None
    if form is None or form == "instruction":
        return None
    conversation = parse_conversation(value, form, names)
    return _told(conversation), conversation.tools


def _has_turns(value: Mapping[str, Any], fields: Fields, form: Format | None) -> bool:
    """Return whether a row is a list of the user's texts: by name, or unless an instruction is asked for by name."""
    name = fields.turns or TURNS
    if name not in value or form is None:
        return name in value
    asked_by_name = form == "instruction" and fields.instruction != Fields().instruction
    return has_value(value[name]) and (fields.turns is not None or not asked_by_name)


def _asked(value: Mapping[str, Any], name: str, references: str | None) -> list[Turn]:
    """Read a list of the user's texts, and the references beside it: one or several each, or a text for the last."""
    texts = value[name]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"`{name}` is no list of texts")
    beside = references or field_with_value(value, *REFERENCE_FIELDS)
    given = value.get(beside)
    right = [None] * (len(texts) - 1) + [given] if given is None or isinstance(given, str) else given
    if not isinstance(right, list) or len(right) != len(texts):
        raise ValueError(
            f"`{beside}` does not fit the {len(texts)} texts of `{name}`; give a list with one for each, null where "
            "there is none, or a text for the last"
        )
    several = [each if isinstance(each, list) else [each] for each in right]
    for each in several:
        if not all(text is None or isinstance(text, str) for text in each):
            raise ValueError(f"`{beside}` has something other than text")
    return [
        Turn(({"role": "user", "content": text},), [each for each in of if each and each.strip()])
        for text, of in zip(texts, several, strict=True)
    ]


def _told(conversation: Conversation) -> list[Turn]:
    """Part a conversation at its assistant's answers, which are the references.

    Calls of tools, and answers that a prompt gives, stay as they are.
    """
    turns, said = [], []
    for number, message in enumerate(conversation.messages):
        is_answer = message["role"] == "assistant" and not message.get("tool_calls")
        if is_answer and number >= conversation.given:
            turns.append(Turn(tuple(said), [message["content"]]))
            said = []
        else:
            said.append(message)
    if said:
        raise ValueError(
            "it ends with a call of a tool, which cannot be scored; end it with an answer of the assistant in words, "
            "or leave it out"
        )
    if not turns or not all(turn.said for turn in turns):
        raise ValueError("no message to answer before an answer of the assistant")
    return turns


def rows_of(conversation: int, turns: Sequence[Turn], tools: Any, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a conversation, one for each turn, with the fields of other rows, so that all can read them.

    The instruction is the message to answer; the context, what the user and others have said before. `messages` has
    what is said since the answer before, from which prompts are made.
    """
    rows, before = [], []
    for turn, of in enumerate(turns):
        before += of.said
        rows.append(
            {
                "instruction": of.said[-1]["content"],
                "context": "\n\n".join(f"{message['role']}: {message['content']}" for message in before[:-1]),
                "references": of.references,
                **shared,
                "conversation": conversation,
                "turn": turn,
                "messages": list(of.said),
                "tools": tools,
            }
        )
    return rows


def so_far(said: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[Message]:
    """Return the messages up to the one to answer: what was said at each turn, and between, the answers."""
    told: list[Message] = list(said[0])
    for answer, messages in zip(answers, said[1:], strict=True):
        told += [{"role": "assistant", "content": answer}, *messages]
    return told
