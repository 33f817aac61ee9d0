"""The chat template of an exported model: without further words it writes the prompts that the model was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.data.chat import ChatTemplate
from minillm.data.text_template import TextTemplate


def save_with_defaults(template: TextTemplate | ChatTemplate, directory: Path) -> None:
    """Let the tokenizer's own template stand in a directory with a run's message of the system and variables."""
    if not isinstance(template, ChatTemplate) or (template.system is None and not template.variables):
        return
    tokenizer, given = template.tokenizer, (template.system, template.variables)
    named = tokenizer.chat_template
    if isinstance(named, dict):
        tokenizer.chat_template = {name: with_defaults(text, *given) for name, text in named.items()}
    else:
        tokenizer.chat_template = with_defaults(named, *given)
    tokenizer.save_pretrained(directory)


def with_defaults(text: str, system: str | None, variables: Mapping[str, Any]) -> str:
    """Return a chat template for which a message of the system and variables need not be given; what is given counts.

    Args:
        text: The template.
        system: Message of the system for conversations that have none; None for no such message.
        variables: Variables with their values, as in JSON.
    """
    lines = [_unless(f"{name} is defined", f"{name} = {_literal(value)}") for name, value in variables.items()]
    if system is not None:
        message = _literal({"role": "system", "content": system})
        lines.append(_unless("messages and messages[0]['role'] == 'system'", f"messages = [{message}] + messages"))
    # Each line ends with a tag, behind which transformers drops a line break: they write nothing.
    return "".join(f"{line}\n" for line in lines) + text


def _unless(condition: str, assignment: str) -> str:
    return f"{{%- if not ({condition}) %}}{{%- set {assignment} %}}{{%- endif %}}"


def _literal(value: Any) -> str:
    """Write a value of JSON in Jinja."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)  # true and false are alike
