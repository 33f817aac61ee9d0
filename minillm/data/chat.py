"""Conversations through the tokenizer's own template: what is prompt, what is learnt, and what ends it.

An answer is learnt from where the generation prompt ends to the token that ends a response, which is learnt too: the
messages before it, with the generation prompt, must be the beginning of the conversation that ends with it. An earlier
answer is learnt within a longer conversation where that begins with the same tokens, and else stands apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from minillm.config.data import Turns
from minillm.data.conversations import Message
from minillm.data.encoding import Apart, Encoded, LearntTurn, special_names
from minillm.data.guarded import Guarded
from minillm.data.left_out import Tools, left_out
from minillm.data.rows import Row, user_message
from minillm.errors import StageError, first_line

SHOWN = 20
"""Characters of a text that a reason shows."""
SPANNED = "a token spans the border between the prompt and the answer"


@dataclass(frozen=True)
class LearntAnswer:
    """Token ids of a conversation that ends with an answer."""

    prompt: str
    """Text before the answer."""
    tokens: list[int]
    """They end with an end token."""
    start: int
    """Number of tokens before the answer."""
    spanned: bool
    """True if prompt and answer are tokenised apart, since a token would span their border."""


@dataclass(frozen=True)
class LearntConversation:
    """Token ids of a conversation up to the end of its last answer, and the parts that are learnt."""

    text: str
    """Text before the first learnt answer."""
    tokens: list[int]
    turns: list[tuple[int, int]]
    """Learnt answers, as half-open ranges of positions; each ends with an end token."""
    apart: dict[int, LearntAnswer]
    """Answers that the tokens do not hold as their own prompts ask for them, by the number of answers behind each."""
    notes: list[str]
    """Why an answer that was asked for is not among the turns, or is tokenised apart from its prompt."""


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
        self._special = sorted(special_names(tokenizer), key=len, reverse=True)

    def prompts(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, list[int]]]:
        """Return the prompts of (instruction, context) pairs, as text and as token ids.

        Raises:
            StageError: The template refuses one.
        """
        found = []
        for number, (instruction, context) in enumerate(asked):
            try:
                found.append(self.prompt(user_message(instruction, context)))
            except ValueError as error:
                beginning = f"prompt {number} (counted from 0), which begins {instruction[:40]!r}"
                raise StageError(f"{beginning}: {error}") from error
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
        texts = self._texts([found.tokens[start:end] for start, end in found.turns])
        learnt = tuple(
            LearntTurn(start - first, end - first, text) for (start, end), text in zip(found.turns, texts, strict=True)
        )
        apart = tuple(
            Apart(left, of.tokens[: of.start], of.tokens[of.start :], *self._texts([of.tokens[of.start :]]))
            for left, of in found.apart.items()
        )
        return Encoded(found.text, found.tokens[:first], found.tokens[first:], learnt, apart, tuple(found.notes))

    def _texts(self, answers: Sequence[list[int]]) -> list[str]:
        """Decode answers as sampled responses are: all that the template writes of them, calls of tools included."""
        return self.tokenizer.batch_decode([answer[:-1] for answer in answers], skip_special_tokens=True)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, list[int]]:
        """Return messages with the generation prompt, as text and as token ids; a response follows directly.

        Raises:
            ValueError: The template refuses the messages, or leaves out some.
        """
        guarded = Guarded(self._special, messages, tools)
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
            ValueError: The template refuses the messages or leaves out some, or the last answer cannot be told from its
                prompt.
        """
        guarded = Guarded(self._special, messages, tools)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        *earlier, last = [answer for answer in answers if answer >= given] if turns == "all" else answers[-1:]
        whole = self._answer(guarded, last)
        # The tokenizer would join the prompt's last characters with the answer's first; generation never does.
        notes = [f"{SPANNED}; the last answer is tokenised apart"] if whole.spanned else []
        learnt, apart = [whole], dict[int, LearntAnswer]()
        for number, answer in enumerate(earlier):
            try:
                own = self._answer(guarded, answer)
            except ValueError as error:
                reason, *_ = str(error).split(":")  # without the row's own words, so that rows are counted together
                notes.append(f"an earlier answer is left out: {reason}")
                continue
            if reason := self._difference(own, whole):
                notes.append(f"an earlier answer is not learnt from the data's text, only asked for: {reason}")
                apart[len(earlier) - number] = own
            else:
                learnt.insert(-1, own)
        ranges = [(of.start, len(of.tokens)) for of in learnt]
        return LearntConversation(learnt[0].prompt, whole.tokens, ranges, apart, notes)

    def _answer(self, guarded: Guarded, number: int) -> LearntAnswer:
        """Return the conversation that ends with an answer.

        Args:
            guarded: Messages.
            number: Place of the answer among them.

        Raises:
            ValueError: The template refuses it, or the answer cannot be told from its prompt.
        """
        prompt = self._text(guarded, number, generation_prompt=True)
        text = self._text(guarded, number + 1)
        if not text.startswith(prompt):
            pairs = zip(prompt, text, strict=False)
            same = next((place for place, (one, other) in enumerate(pairs) if one != other), len(text))
            raise ValueError(
                "the chat template writes the prompt in another way once the answer follows: "
                f"{guarded.named(prompt[same:][:SHOWN])!r} becomes {guarded.named(text[same:][:SHOWN])!r}. See whether "
                "the template has a variable for it (data.template.variables, for instance enable_thinking: false), or "
                "take another template with tokenizer.from"
            )
        before, tokens = self._tokens(prompt, guarded), self._tokens(text, guarded)
        start = len(before)
        if spanned := tokens[:start] != before:
            tokens = before + self._tokens(text[len(prompt) :], guarded)
        end = next((place for place, token in enumerate(tokens) if place >= start and token in self.ends), None)
        whole = [*tokens, self.eos] if end is None else tokens[: end + 1]  # some leave it to whoever trains
        if len(whole) - start < 2:
            raise ValueError("the chat template writes nothing of the answer")
        return LearntAnswer(guarded.named(prompt), whole, start, spanned)

    def _difference(self, own: LearntAnswer, whole: LearntAnswer) -> str | None:
        """Return why a longer conversation does not begin as the one that ends with an answer; None if it does.

        Any of the end tokens may end the answer in it.
        """
        *same, _ = own.tokens
        if whole.tokens[: len(same)] == same:
            is_ended = whole.tokens[len(same)] in self.ends
            return None if is_ended else "the chat template ends it with no end token"
        if own.spanned:
            return SPANNED
        if whole.tokens[: own.start] == own.tokens[: own.start]:
            return "the chat template writes it in another way once messages follow"
        return "the chat template writes what stands before it in another way once messages follow"

    def _text(self, guarded: Guarded, count: int, generation_prompt: bool = False) -> str:
        """Render the first messages.

        Raises:
            ValueError: The template refuses them, or leaves something of them out.
        """
        messages = guarded.messages[:count]
        if self.system is not None and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]

        def render(messages: Sequence[Message], tools: Tools) -> str:
            return self._rendered(messages, tools, generation_prompt)

        text = render(messages, guarded.tools)
        guarded.require_in(text)
        if part := left_out(messages, guarded.tools, text, render):
            raise ValueError(
                f"the chat template leaves out a part of it: {guarded.named(part)}. Take a template that writes it "
                "with tokenizer.from, or leave it out of the rows"
            )
        return text

    def _rendered(self, messages: Sequence[Message], tools: Tools, generation_prompt: bool) -> str:
        """Run the template, a program that others wrote, in the sandbox of transformers."""
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=generation_prompt, tokenize=False, **self.variables
            )
        except Exception as error:  # a template fails in as many ways as other programs
            raise ValueError(f"the chat template refuses it: {first_line(error)}") from error
        assert isinstance(text, str)
        return text

    def _tokens(self, text: str, guarded: Guarded) -> list[int]:
        """Encode a text; names of special tokens that the template wrote are tokens, those in messages are words."""
        ids: list[int] = []
        for words, named in guarded.pieces(text):
            ids += self.tokenizer(words, add_special_tokens=False, split_special_tokens=named)["input_ids"]
        return ids
