"""Chat questions to a served model, and what it says to them."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minillm.config import Served
from minillm.data.conversations import Message
from minillm.endpoints.answers import Answer, Answers
from minillm.endpoints.asking import Inquiry, bill
from minillm.endpoints.budget import Bill, Budget, estimated_tokens
from minillm.endpoints.client import Client
from minillm.store.manifest import text_digest

FOLDER = "endpoints"
"""Folder of the paid answers in the store, beside the artifacts; each model has a folder of its own in it."""
FORMS: tuple[tuple[bool, str], ...] = tuple(itertools.product((True, False), ("max_tokens", "max_completion_tokens")))
"""Forms of a chat request, the best first: with or without a seed, and either name of the limit."""


@dataclass(frozen=True)
class Chat:
    """A conversation to be answered."""

    messages: Sequence[Message]
    max_tokens: int
    """Longest answer, in tokens."""
    seed: int
    """Tells several answers to one conversation apart; not every endpoint draws by it."""
    temperature: float | None = None
    top_p: float | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Fields of the request other than the seed and the limit."""
        # JSON files may hold lone surrogates, requests may not.
        messages = json.loads(json.dumps(list(self.messages), ensure_ascii=False).encode(errors="replace"))
        optional = {"temperature": self.temperature, "top_p": self.top_p, "tools": self.tools}
        return {"messages": messages} | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True)
class Said:
    """What the model says to a question."""

    text: str | None
    """None if the reply has no text, as one that calls a tool."""
    finish: str | None
    """Reason of the end: stop, length, content_filter …; not every server tells."""
    tokens: int
    """Tokens that it took, as the endpoint counts them."""

    @classmethod
    def of(cls, answer: Answer) -> "Said":
        """Read an answer as it is kept."""
        return cls(**json.loads(answer.text), tokens=answer.completion_tokens)


Outcome = Said | Literal["refused by the endpoint", "malformed"]
"""What the model says, or why it says nothing."""


class RemoteModel:
    """A served model, teacher or reasoner, with the answers that its store has of it."""

    def __init__(self, endpoint: Served, store: str) -> None:
        self.endpoint = endpoint
        self.identity = {"base_url": endpoint.base_url.rstrip("/"), "model": endpoint.model}
        self.answers = Answers(Path(store) / FOLDER / text_digest(self.identity)[:16])
        self.client = Client(endpoint)
        self.bill = Bill()
        """Cost of the answers that were used, whenever they were paid for."""

    def budget(self, _: Bill) -> Budget:
        """Return the budget, of which all answers in the store were paid."""

        def excess(_: float, wanted: float) -> str:
            return f"but with what the store has paid for, {wanted:,.6g} may be needed; raise it, or ask for less"

        return Budget(self.endpoint, self.answers.spent(), excess)

    def key(self, asked: Mapping[str, Any]) -> str:
        """Return the digest of all that determines an answer, whichever stage asks and whenever."""
        return text_digest({**self.identity, **asked})

    def say(self, chats: Sequence[Chat], report: Callable[[int], None]) -> list[Outcome]:
        """Return what the model says to each conversation, asking only for what the store lacks; state the cost.

        Args:
            chats: The conversations.
            report: Called with the number of those that are settled.

        Raises:
            StageError: It would cost more than the budget, or the endpoint denies access.
            EndpointError: The endpoint does not answer.
        """
        asking = Inquiry(
            endpoint=self.endpoint,
            who=f"{self.endpoint.who} {self.endpoint.model}",
            answers=self.answers,
            send=self._send,
            expected=lambda chat: Bill(1, estimated_tokens(json.dumps(chat.request)), chat.max_tokens),
            is_whole=_is_whole,
            remedy=f"see {self.endpoint.field}.model and temperature, and docs/served-teacher.md",
        )
        keys = [self.key({"chat": chat.request, "seed": chat.seed}) for chat in chats]
        with self.answers.asking():
            refused = asking.ask_open(dict(zip(keys, chats, strict=True)), self.budget, report)
        known = self.answers.to(set(keys))
        self.bill += bill(known)
        return [
            "refused by the endpoint" if key in refused else _outcome(chat, known[key])
            for key, chat in zip(keys, chats, strict=True)
        ]

    def _send(self, chat: Chat) -> Answer:
        reply = self.client.chat(
            [
                {**chat.request, **({"seed": chat.seed} if seeded else {}), limit: chat.max_tokens}
                for seeded, limit in FORMS
            ]
        )
        choice = reply.choices[0]
        said = json.dumps({"text": choice.message.content, "finish": choice.finish_reason}, ensure_ascii=False)
        return self.client.answer(reply, said, json.dumps(chat.request), chat.max_tokens)


def with_system(system: str | None, messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages with the system's message of `data.template`, if it has one and they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _is_whole(chat: Chat, answer: Answer) -> bool:
    """Return whether an answer has text, or none for a known reason, and is what the present limit would have given."""
    said = Said.of(answer)
    cut = said.finish == "length" and answer.max_tokens < chat.max_tokens
    longer = answer.completion_tokens > chat.max_tokens < answer.max_tokens
    return not cut and not longer and (said.text is not None or said.finish in ("content_filter", "length"))


def _outcome(chat: Chat, found: Sequence[Answer]) -> Outcome:
    answer = next((answer for answer in found if _is_whole(chat, answer)), None)
    if answer is None:
        return "malformed"
    said = Said.of(answer)
    return "refused by the endpoint" if said.finish == "content_filter" else said
