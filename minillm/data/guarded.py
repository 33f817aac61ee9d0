"""Messages in which names of special tokens are words, whatever a chat template makes of them."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minillm.data.conversations import Message

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps out of texts; here they stand for names of special tokens, and for marks."""
*STAND_INS, BEGIN, END = NONCHARACTERS


class Guarded:
    """Messages and tools in which names of special tokens have given place to stand-ins."""

    def __init__(self, special: Sequence[str], messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Look for names in all texts, the names of fields among them.

        Raises:
            ValueError: A text has a character of the stand-ins, or there are too many names.
        """
        texts = list(_texts([messages, tools]))
        if any(character in text for text in texts for character in NONCHARACTERS):
            raise ValueError("it has a character from U+FDD0 to U+FDEF, which Unicode keeps out of texts")
        present = [name for name in special if any(name in text for text in texts)]
        if len(present) > len(STAND_INS):
            raise ValueError(f"it has the names of {len(present)} special tokens, more than {len(STAND_INS)}")
        self.names = dict(zip(STAND_INS, present, strict=False))
        self.messages: list[dict[str, Any]] = self._replaced(list(messages))
        self.tools = self._replaced(tools)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            for stand_in, name in self.names.items():
                value = value.replace(name, stand_in)
            return value
        if isinstance(value, Mapping):
            return {self._replaced(key): self._replaced(item) for key, item in value.items()}
        return [self._replaced(item) for item in value] if isinstance(value, list | tuple) else value

    def named(self, text: str) -> str:
        """Return a text with the names in place of their stand-ins."""
        for stand_in, name in self.names.items():
            text = text.replace(stand_in, name)
        return text

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Part a text into what the template wrote and the names that stand in messages, which are marked as such."""
        parted = re.split(f"([{''.join(STAND_INS)}])", text)
        return [(self.names[piece], True) if number % 2 else (piece, False) for number, piece in enumerate(parted)]

    def require_in(self, text: str) -> None:
        """Check that the template has not written stand-ins as escapes.

        Raises:
            ValueError: It has.
        """
        if any(f"\\u{ord(stand_in):04x}" in text.lower() for stand_in in self.names):
            raise ValueError("the chat template escapes the name of a special token in it")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_texts, [*value.keys(), *value.values()]))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))
