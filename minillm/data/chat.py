"""Conversations through the tokenizer's own template: what is prompt, what is learnt, and what ends it.

An answer is learnt from where the generation prompt ends to the token that ends a response, which is learnt too: the
tokens of the messages before it, with the generation prompt, must be the first tokens of the conversation. An earlier
answer ends where the template marks what the model generates (`{% generation %}`), or where the messages up to it end.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import TemplateError

from minillm.config.data import Turns
from minillm.data.conversations import Message
from minillm.data.encoding import Encoded, LearntTurn, special_names
from minillm.data.rows import Row, user_message
from minillm.errors import StageError, first_line

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps out of texts; here they stand for names of special tokens, and for marks."""
*STAND_INS, BEGIN, END = NONCHARACTERS
MARKS = ((r"\{%(-?)\s*generation\s*(-?)%\}", BEGIN), (r"\{%(-?)\s*endgeneration\s*(-?)%\}", END))
"""Tags around what the model generates, and what is written in their place."""


@dataclass(frozen=True)
class LearntConversation:
    """Token ids of a conversation up to the end of its last answer, and the parts that are learnt."""

    text: str
    """Text before the first learnt answer."""
    tokens: list[int]
    turns: list[tuple[int, int]]
    """Learnt answers, as half-open ranges of positions; each ends with an end token."""
    notes: list[str]
    """Why an answer that was asked for is not learnt, or is tokenised apart from its prompt."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    opening: ClassVar[None] = None
    """Tokens that every prompt begins with and keeps when it is cut: no prompt can be, as its beginning has a form."""

    def __init__(
        self,
        tokenizer: Any,
        ends: Sequence[int],
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a tokenizer with a chat template.

        Args:
            tokenizer: Its own template is used.
            ends: Tokens that end a response; the first is given to answers that the template ends with none.
            system: Message of the system for conversations that have none.
            variables: Further variables of the template, for instance `enable_thinking`.
        """
        self.tokenizer, self.eos, self.ends = tokenizer, ends[0], frozenset(ends)
        self.system, self.variables = system, variables or {}
        template = tokenizer.get_chat_template()
        self._marked: str = template
        for tag, mark in MARKS:
            self._marked = re.sub(tag, rf'{{{{\1 "{mark}" \2}}}}', self._marked)
        self._special = sorted(special_names(tokenizer), key=len, reverse=True)

    def prompts(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, list[int]]]:
        """Return the prompts of (instruction, context) pairs, as text and as token ids.

        Raises:
            StageError: The template refuses one.
        """
        found = []
        for instruction, context in asked:
            try:
                found.append(self.prompt(user_message(instruction, context)))
            except ValueError as error:
                raise StageError(f"a prompt that begins {instruction[:40]!r}: {error}") from error
        return found

    def examples(self, rows: Sequence[Row], turns: Turns = "last") -> list[Encoded | str]:
        """Return prompts with what follows them, or the reason why a row cannot be learnt."""
        return [self._example(row, turns) for row in rows]

    def _example(self, row: Row, turns: Turns) -> Encoded | str:
        tools, given = (None, 0) if row.conversation is None else (row.conversation.tools, row.conversation.given)
        try:
            found = self.encode(row.messages, tools, turns, given)
        except ValueError as error:
            return str(error)
        first = found.turns[0][0]
        # As a sampled response is decoded: what the template writes of an answer, calls of tools among it.
        texts = self.tokenizer.batch_decode(
            [found.tokens[start : end - 1] for start, end in found.turns], skip_special_tokens=True
        )
        learnt = tuple(
            LearntTurn(start - first, end - first, text) for (start, end), text in zip(found.turns, texts, strict=True)
        )
        return Encoded(found.text, found.tokens[:first], found.tokens[first:], learnt, tuple(found.notes))

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, list[int]]:
        """Return messages with the generation prompt, as text and as token ids; a response follows directly.

        Raises:
            ValueError: The template refuses the messages.
        """
        guarded = _Guarded(self._special, messages, tools)
        text = self._text(guarded, len(messages), generation_prompt=True)
        return guarded.named(text), self._tokens(text, guarded)

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        turns: Turns = "last",
        given: int = 0,
    ) -> LearntConversation:
        """Return the tokens of a conversation up to its last answer, and which of them are learnt.

        Args:
            messages: With at least one answer of the assistant.
            tools: Tools that the template describes.
            turns: Which answers are to be learnt.
            given: Number of the first messages, of which none is learnt.

        Raises:
            ValueError: The template refuses the messages, or the last answer cannot be told from its prompt.
        """
        guarded = _Guarded(self._special, messages, tools)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        *earlier, last = [answer for answer in answers if answer >= given] if turns == "all" else answers[-1:]
        text, begins, ends = self._regions(guarded, answers, earlier)
        tokens = self._tokens(text, guarded)
        notes: list[str] = []
        start = self._position(tokens, text, begins[last], guarded)
        if isinstance(start, str):
            if begins[last] is None:
                raise ValueError(start)
            # The tokenizer joins the prompt's last characters with the answer's first; generation never does.
            notes.append(f"{start}; the last answer is tokenised apart")
            before, after = (self._tokens(part, guarded) for part in (text[: begins[last]], text[begins[last] :]))
            tokens, start = before + after, len(before)
        end = self._first_end(tokens, start, len(tokens))
        if end is None:  # the template leaves it to whoever trains
            tokens.append(self.eos)
            end = len(tokens)
        if end - start < 2:
            raise ValueError("the chat template writes nothing of the last answer")
        learnt = {last: (start, end)}
        for answer in earlier:
            turn = self._turn(tokens, text, begins[answer], ends[answer], guarded)
            if isinstance(turn, str):
                notes.append(f"an earlier answer is not learnt: {turn}")
            else:
                learnt[answer] = turn
        return LearntConversation(
            guarded.named(text[: begins[min(learnt)]]), tokens[:end], sorted(learnt.values()), notes
        )

    def _regions(
        self, guarded: "_Guarded", answers: Sequence[int], earlier: Sequence[int]
    ) -> tuple[str, dict[int, int | None], dict[int, int | None]]:
        """Return the text, where the last and some earlier answers begin in it, and where the earlier ones end.

        A place is None where the template does not tell.
        """
        last = answers[-1]
        marked = self._text(guarded, last + 1, marked=True)
        text = marked.replace(BEGIN, "").replace(END, "")
        # Whatever the marks say, an answer follows what generation is given.
        begins = {
            answer: _length(self._text(guarded, answer, generation_prompt=True), text) for answer in (*earlier, last)
        }
        ends: dict[int, int | None]
        if marked.count(BEGIN) == marked.count(END) == len(answers):
            places = [match.start() - number for number, match in enumerate(re.finditer(f"[{BEGIN}{END}]", marked))]
            ends = dict(zip(answers, places[1::2], strict=True))
        else:
            ends = {answer: _length(self._text(guarded, answer + 1), text) for answer in earlier}
        return text, begins, ends

    def _turn(
        self, tokens: list[int], text: str, begin: int | None, end: int | None, guarded: "_Guarded"
    ) -> tuple[int, int] | str:
        """Return the positions of an answer that others follow, or why it cannot be learnt."""
        start, stop = (self._position(tokens, text, place, guarded) for place in (begin, end))
        if isinstance(start, str):
            return start
        if isinstance(stop, str):
            return stop
        found = self._first_end(tokens, start, stop + 1)
        if found is None:
            return "the chat template ends it with no end token"
        return (start, found) if found - start > 1 else "the chat template writes nothing of it"

    def _position(self, tokens: list[int], text: str, place: int | None, guarded: "_Guarded") -> int | str:
        """Return how many tokens stand before a place in the text, or why that cannot be said."""
        if place is None:
            return "the chat template writes what stands before it in another way once messages follow"
        before = self._tokens(text[:place], guarded)
        if tokens[: len(before)] != before:
            return "a token spans the border between the prompt and the answer"
        return len(before)

    def _first_end(self, tokens: list[int], start: int, stop: int) -> int | None:
        """Return the position behind the first end token of a range."""
        return next((place + 1 for place in range(start, min(stop, len(tokens))) if tokens[place] in self.ends), None)

    def _text(self, guarded: "_Guarded", count: int, generation_prompt: bool = False, marked: bool = False) -> str:
        """Render the first messages."""
        messages = guarded.messages[:count]
        if self.system is not None and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=guarded.tools,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **({"chat_template": self._marked} if marked else {}),
                **self.variables,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"the chat template refuses it: {first_line(error)}") from error
        assert isinstance(text, str)
        guarded.require_in(text)
        return text

    def _tokens(self, text: str, guarded: "_Guarded") -> list[int]:
        """Encode a text; names of special tokens that the template wrote are tokens, those in messages are words."""
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"([{''.join(STAND_INS)}])", text)):
            named = number % 2 == 1
            words = guarded.names[piece] if named else piece
            ids += self.tokenizer(words, add_special_tokens=False, split_special_tokens=named)["input_ids"]
        return ids


class _Guarded:
    """Messages and tools in which names of special tokens have given place to stand-ins."""

    def __init__(self, special: Sequence[str], messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Look for names in all texts.

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
            return {key: self._replaced(item) for key, item in value.items()}
        return [self._replaced(item) for item in value] if isinstance(value, list | tuple) else value

    def named(self, text: str) -> str:
        """Return a text with the names in place of their stand-ins."""
        for stand_in, name in self.names.items():
            text = text.replace(stand_in, name)
        return text

    def require_in(self, text: str) -> None:
        """Check that the template has not written stand-ins as escapes.

        Raises:
            ValueError: It has.
        """
        if any(f"\\u{ord(stand_in):04x}" in text.lower() for stand_in in self.names):
            raise ValueError("the chat template escapes the name of a special token in it")


def _length(beginning: str, text: str) -> int | None:
    """Return the length of the beginning of a text, None if it is not."""
    return len(beginning) if text.startswith(beginning) else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))
