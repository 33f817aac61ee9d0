"""Instructions as plain text: the paper's Alpaca template, or one that a configuration gives."""

import re
from collections.abc import Sequence
from typing import Any

from minillm.config import Template
from minillm.config.data import Turns
from minillm.data.encoding import Encoded, LearntTurn, encode_texts, opening_tokens, special_names
from minillm.data.rows import Row

PLACEHOLDER = re.compile(r"\{(instruction|context)\}")


class TextTemplate:
    """A text that an instruction and its context are filled into; the response follows directly (method.md §6)."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.opening = opening_tokens(tokenizer)
        """Tokens that every prompt begins with."""

    def prompts(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, list[int]]]:
        """Return the prompts of (instruction, context) pairs, as text and as token ids.

        Braces in an instruction or context are text, never placeholders. Prompts begin with the BOS that the tokenizer
        adds by default (LLaMA, OPT), and only one if the template has it too. The reference code leaves BOS out
        everywhere, which hurts models pretrained with it.

        In the template, the name of a special token is that token. In an instruction or context it is encoded as plain
        characters, as in `encode_texts`: nobody ends a prompt by asking about `</s>`.
        """
        if not asked:
            return []
        special = special_names(self.tokenizer)
        marks = [name for name in special if any(name in self.template.text(context) for context in ("", "a"))]
        texts = [fill(self.template, *question) for question in asked]
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=not marks)["input_ids"]
        for number, question in enumerate(asked):
            if marks and any(name in text for text in question for name in special):
                encoded[number] = self._encode_between(marks, *question)
        start = self.opening
        whole = [ids if ids[: len(start)] == start else [*start, *ids] for ids in encoded]
        return list(zip(texts, whole, strict=True))

    def examples(self, rows: Sequence[Row], turns: Turns = "last") -> list[Encoded | str]:
        """Return prompts with their responses, which end with the tokenizer's EOS; an instruction has one turn."""
        prompts = self.prompts([(row.instruction, row.context) for row in rows])
        texts = [row.response for row in rows]
        responses = [[*answered, self.tokenizer.eos_token_id] for answered in encode_texts(self.tokenizer, texts)]
        return [
            Encoded(prompt, ids, response, (LearntTurn(0, len(response), text),))
            for (prompt, ids), response, text in zip(prompts, responses, texts, strict=True)
        ]

    def _encode_between(self, marks: Sequence[str], *question: str) -> list[int]:
        """Encode a prompt whose question names special tokens: only those of the template become special tokens."""
        longest_first = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
        ids: list[int] = []
        for piece in re.split(f"({longest_first})", self.template.text(question[1])):
            own = [self.tokenizer.convert_tokens_to_ids(piece)] if piece in marks else None
            ids += own or encode_texts(self.tokenizer, [_fill(piece, *question)])[0]
        return ids


def fill(template: Template, instruction: str, context: str) -> str:
    """Return the prompt of an instruction as text; a context that is empty or blank is none."""
    return _fill(template.text(context), instruction, context)


def _fill(text: str, instruction: str, context: str) -> str:
    values = {"instruction": instruction, "context": context}
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
