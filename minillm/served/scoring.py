"""Log-probabilities that a served teacher gives to the tokens of given text, from servers that tell them.

A request has the text as token ids, or as text where a server takes no ids, and asks for one more token, since some
servers take 0 to be no limit. vLLM tells them by token id (`prompt_logprobs`); others echo the text with the tokens as
strings. What a string stands for is known from our tokenizer, and the tokens must agree one by one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai.types import Completion

from minillm.endpoints.answers import Answer
from minillm.endpoints.asking import Inquiry, bill
from minillm.endpoints.budget import Bill
from minillm.errors import StageError
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.served.chat import RemoteModel
from minillm.served.replies import Echo, Entry, read_choice
from minillm.words import counted

UNTOLD = "null"
"""Content that stands for a reply without the log-probabilities of all scored tokens."""
BY_ID = "token_id:"
"""Beginning of the strings that vLLM tells in the place of tokens if asked for ids."""
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are part of a character, which some servers leave out."""


@dataclass(frozen=True)
class Given:
    """A text, of which some tokens are scored."""

    tokens: Sequence[int]
    scored: Sequence[int]
    """Their places, rising."""
    k: int
    """Likeliest tokens that are told in the place of each."""
    name: str
    """Name in errors, e.g. training row 17."""

    @property
    def content(self) -> dict[str, Any]:
        """Everything that determines the answer."""
        return {"tokens": list(map(int, self.tokens)), "scored": list(self.scored), "k": self.k}


@dataclass(frozen=True)
class Place:
    """What is told of one token: its log-probability, and the likeliest tokens in its place, by id or as strings."""

    own: float
    likeliest: Sequence[tuple[int | str, float]]


class Spelling:
    """The strings that tokens stand for within a text."""

    def __init__(self, shared: SharedTokenizer) -> None:
        tokenizer = shared.tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        # Some decoders take a space off a text's first token, so each stands behind another.
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        before = len(tokenizer.decode([anchor]))
        pairs = [[anchor, token] for token in range(shared.entries) if token not in shared.holes]
        texts = tokenizer.batch_decode(pairs, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self.of = {pair[1]: text[before:] for pair, text in zip(pairs, texts, strict=True)}
        counts: dict[str, list[int]] = {}
        for token, text in self.of.items():
            counts.setdefault(text, []).append(token)
        readable = {text: tokens for text, tokens in counts.items() if text and UNREADABLE not in text}
        self.only = {text: tokens[0] for text, tokens in readable.items() if len(tokens) == 1}
        """Tokens by the strings that stand for one alone."""

    def token(self, told: int | str) -> int | None:
        """Return the one token that is meant; None if there are several."""
        if isinstance(told, str) and told.startswith(BY_ID):
            told = int(told.removeprefix(BY_ID))
        return told if isinstance(told, int) else self.only.get(told)

    def agrees(self, told: str, token: int) -> bool:
        """Return whether a string may stand for a token; special ones may be shown as nothing."""
        if told.startswith(BY_ID):
            return told == f"{BY_ID}{token}"
        ours = self.of.get(token, "")
        readable = told.replace(UNREADABLE, ""), ours.replace(UNREADABLE, "")
        return readable[0] == readable[1] or (not told and token in self.special)


class Scorer:
    """A served teacher as a judge of given text."""

    def __init__(self, teacher: RemoteModel, shared: SharedTokenizer, by_ids: bool = False) -> None:
        """Take a teacher and our tokenizer.

        Args:
            teacher: The teacher.
            shared: The tokenizer.
            by_ids: Send token ids alone. What a model samples need not be how its text is tokenised.
        """
        self.teacher, self.shared, self.spelling, self.by_ids = teacher, shared, Spelling(shared), by_ids

    def ask(self, texts: Sequence[Given], report: Callable[[int], None]) -> None:
        """Ask for the texts that the store lacks; state the cost.

        Raises:
            StageError: It would cost more than the budget, the endpoint denies access, refuses a text, or tells no
                log-probabilities or those of other tokens.
            EndpointError: The endpoint does not answer.
        """
        asking = Inquiry(
            endpoint=self.teacher.endpoint,
            who=f"{self.teacher.endpoint.who} {self.teacher.endpoint.model}",
            answers=self.teacher.answers,
            send=self.send,
            expected=lambda given: Bill(1, len(given.tokens), 1),
            is_whole=lambda _, answer: answer.text != UNTOLD,
            remedy="lower data.max_tokens, or start its server with a longer context",
        )
        by_key = {self._key(given): given for given in texts}
        with self.teacher.answers.asking():
            refused = asking.ask_open(by_key, self.teacher.budget, report)
        for key, why in refused.items():
            raise StageError(f"{self.teacher.endpoint.base_url} refuses {by_key[key].name}: {why}; {asking.remedy}")

    def read(self, texts: Sequence[Given]) -> list[list[Place]]:
        """Return the scored places of texts that were asked for.

        Raises:
            StageError: None of the answers to a text has the log-probabilities of all tokens.
        """
        known = self.teacher.answers.to({self._key(given) for given in texts})
        self.teacher.bill += bill(known)
        return [self._read(given, known[self._key(given)]) for given in texts]

    def _key(self, given: Given) -> str:
        return self.teacher.key(given.content)

    def _read(self, given: Given, found: Sequence[Answer]) -> list[Place]:
        told = next((answer.text for answer in reversed(found) if answer.text != UNTOLD), None)
        if told is None:
            raise StageError(
                f"{self.teacher.endpoint.base_url} does not tell the log-probabilities of all tokens of {given.name}, "
                f"asked {counted(len(found), 'time')}; look at its server, and raise teacher.model.endpoint.attempts"
            )
        return [Place(*place) for place in json.loads(told)]

    def send(self, given: Given) -> Answer:
        """Ask once; raises what `Client.complete` does, and StageError if the reply is about other tokens."""
        return self._kept(given, self._told(given))

    def probe(self, given: Given) -> "Told":
        """Ask once, whatever the store has; keep the answer, and return all that it tells.

        Raises:
            StageError: It would cost more than the budget, or as `send`.
        """
        highest = Bill(1, len(given.tokens), 1)
        self.teacher.budget(highest).check(highest)
        told = self._told(given)
        answer = self._kept(given, told)
        self.teacher.answers.add(self._key(given), answer)
        self.teacher.bill += answer.bill
        return told

    def _kept(self, given: Given, told: "Told") -> Answer:
        places = told.scored(given)
        kept = None if places is None else [(of.own, of.likeliest) for of in places]
        return self._answer(given, told.reply, json.dumps(kept, ensure_ascii=False))

    def _answer(self, given: Given, reply: Completion, kept: str) -> Answer:
        # The limit is the same in all requests; see `Inquiry`.
        return self.teacher.client.answer(reply, kept, self._text(given), max_tokens=1)

    def _text(self, given: Given) -> str:
        return str(self.shared.tokenizer.decode(list(map(int, given.tokens)), skip_special_tokens=False))

    def _told(self, given: Given) -> "Told":
        tokens = list(map(int, given.tokens))
        shared = {"max_tokens": 1, "temperature": 0.0, "logprobs": given.k, "echo": True}
        by_id = {"prompt": tokens, **shared, "extra_body": {"prompt_logprobs": given.k}}
        forms = [by_id, {"prompt": tokens, **shared}, {"prompt": self._text(given), **shared}]
        reply = self.teacher.client.complete(forms[:2] if self.by_ids else forms)
        try:
            return self._of_reply(reply, tokens, given)
        except StageError:  # nothing else is asked then, but this was paid for
            self.teacher.answers.add(self._key(given), self._answer(given, reply, UNTOLD))
            raise

    def _of_reply(self, reply: Completion, tokens: Sequence[int], given: Given) -> "Told":
        choice = read_choice(reply.choices[0])
        listed, echo = choice.prompt_logprobs, choice.logprobs
        if listed is not None and len(listed) == len(tokens):
            places = [_by_id(of, token) for of, token in zip(listed, tokens, strict=True)]
            echoed = len(tokens) if echo and len(echo.tokens) >= len(tokens) else 0
        else:
            places, echoed = self._echoed(echo, tokens, given)
        read = getattr(reply.usage, "prompt_tokens", None)
        if read is not None and read != len(tokens):
            raise StageError(
                f"{self.teacher.endpoint.base_url} reads {read} tokens where {given.name} has {len(tokens)} in "
                f"tokenizer.from{_or_added(read, len(tokens))}"
            )
        return Told(places, _next(echo, echoed), reply)

    def _echoed(self, told: Echo | None, tokens: Sequence[int], given: Given) -> tuple[list[Place | None] | None, int]:
        """Return the places of tokens that are told as strings, None for special tokens that are left out.

        The number is that of strings that are of the text.

        Raises:
            StageError: They are other tokens than ours.
        """
        if told is None or len(told.tokens) < 2:
            return None, 0
        places: list[Place | None] = []
        reported = 0
        for place, token in enumerate(tokens):
            said = told.tokens[reported] if reported < len(told.tokens) else None
            if said is None or not self.spelling.agrees(said, token):
                if token not in self.spelling.special:
                    raise StageError(
                        f"{self.teacher.endpoint.base_url}: token {place} of {given.name} is "
                        f"{self.spelling.of.get(token, '')!r} in tokenizer.from, and {said!r} at the endpoint. Teacher "
                        "and student must have learnt the same tokens; take a tokenizer, and so a student, of the "
                        "teacher's family, or a method that reads its text alone (seqkd)"
                    )
                places.append(None)
                continue
            own, likeliest = told.token_logprobs[reported], told.top_logprobs[reported]
            places.append(None if own is None else Place(own, list((likeliest or {}).items())))
            reported += 1
        return places, reported


@dataclass(frozen=True)
class Told:
    """What a reply tells."""

    places: Sequence[Place | None] | None
    """The text's tokens, None where nothing is told; None in the place of all if nothing at all is."""
    following: float | None
    """Log-probability of the likeliest token to follow the text; None if none is told."""
    reply: Completion

    def scored(self, given: Given) -> list[Place] | None:
        """Return the places that were asked for; None if one is missing."""
        found = [self.places[place] for place in given.scored] if self.places else [None]
        whole = [of for of in found if of is not None]
        return whole if len(whole) == len(found) else None


def _by_id(told: Mapping[int, Entry] | None, token: int) -> Place | None:
    """Read one place of vLLM's `prompt_logprobs`."""
    if told is None or token not in told:
        return None
    return Place(told[token].logprob, [(other, of.logprob) for other, of in told.items()])


def _next(told: Echo | None, echoed: int) -> float | None:
    """Return the log-probability of the likeliest token to follow the text; None if the text ends where it ends."""
    behind = told.top_logprobs[echoed] if told is not None and len(told.top_logprobs) > echoed else None
    return max(behind.values()) if behind else None


def _or_added(read: int, ours: int) -> str:
    more = "; its server may add a token at the beginning" if read == ours + 1 else ""
    return f"{more}. Both must be the same: see docs/served-teacher.md"
