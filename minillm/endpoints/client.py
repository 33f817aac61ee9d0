"""Connection to an endpoint: any server that speaks OpenAI's chat completions or completions.

The client of the `openai` package waits and tries again if the server is busy (429, with its Retry-After), fails (5xx),
takes too long, or drops the connection.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from minillm.config import Endpoint
from minillm.endpoints.answers import Answer
from minillm.endpoints.budget import estimated_tokens
from minillm.errors import StageError
from minillm.redaction import hide

RETRIES = 8
"""Retries of a request, after 0.5, 1, 2, 4 and then 8 seconds, or as the server asks."""
UNREADABLE = 3
"""Give up after this many replies in a row that are not of the form asked for."""
NOT_AS_ASKED = (400, 413, 422)
"""HTTP statuses for a form of request, or a question, that the endpoint does not accept."""
BUSY = (408, 409, 425, 429)
SHORTEST_SECRET = 8
"""Characters; a shorter key is a placeholder for an endpoint that needs none."""
QUOTED_CHARACTERS = 300
"""Characters of the endpoint's reply that an error quotes."""
CHAT, COMPLETION = "a chat completion", "a completion"
"""Kinds of replies."""
Reply = TypeVar("Reply", ChatCompletion, Completion)
Body = Mapping[str, Any]
"""Fields of a request."""


class EndpointError(Exception):
    """The endpoint does not answer; asking again later may help."""


class FailedError(EndpointError):
    """The endpoint says that it fails (500), as some do where they do not know a form of request."""


class RefusedError(Exception):
    """The endpoint does not accept a question in any form."""


class Client:
    """A connection to an endpoint; threads may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key = os.environ.get(endpoint.api_key_variable, "")
        self._form: dict[str, int] = {}  # the first one accepted of each kind of request
        self._pace = threading.Lock()
        self._next = 0.0

    @functools.cached_property
    def _client(self) -> openai.OpenAI:
        """The package's client; it takes a key only when something is asked."""
        if not self._key:
            raise StageError(
                f"the environment has no {self._endpoint.api_key_variable}; export it with the endpoint's key"
            )
        hide(self._key)
        return openai.OpenAI(
            base_url=self._endpoint.base_url,
            api_key=self._key,
            timeout=self._endpoint.timeout_seconds,
            max_retries=RETRIES,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._wait_for_turn]}),
        )

    def chat(self, forms: Sequence[Body]) -> ChatCompletion:
        """Ask for a chat completion.

        Args:
            forms: The same question in every form that an endpoint may want, the best first. Once one was accepted,
                only that form is sent.

        Raises:
            RefusedError: The endpoint does not accept this question.
            EndpointError: It does not answer.
            StageError: It rejects the key or the model, or demands payment; asking again does not help.
        """
        return self._accepted(CHAT, self._client.chat.completions.create, ChatCompletion, forms)

    def complete(self, forms: Sequence[Body]) -> Completion:
        """Ask for a completion of a text, as `chat` does; it raises the same errors.

        Some servers say that they fail (500) where they do not know a form, so each is first tried once.
        """
        for number in range(len(forms)) if COMPLETION not in self._form else ():
            with contextlib.suppress(RefusedError, FailedError):
                reply = self._tried(forms[number])
                self._form[COMPLETION] = number
                return reply
        return self._accepted(COMPLETION, self._client.completions.create, Completion, forms)

    def _tried(self, form: Body) -> Completion:
        """Ask once in a form, or as often as usual where the server is busy or away: that says nothing of the form."""
        once = self._client.with_options(max_retries=0)
        try:
            return self._sent(COMPLETION, once.completions.create, Completion, form)
        except EndpointError as error:
            if isinstance(error, FailedError):
                raise
            return self._sent(COMPLETION, self._client.completions.create, Completion, form)

    def answer(self, reply: ChatCompletion | Completion, content: str, asked: str, max_tokens: int) -> Answer:
        """Return what is kept of a reply; not every server counts tokens or names its model.

        Args:
            reply: The reply.
            content: What it says.
            asked: Text of the question.
            max_tokens: Limit of the request.
        """
        content = self.without_key(content)
        return Answer(
            text=content,
            prompt_tokens=getattr(reply.usage, "prompt_tokens", None) or estimated_tokens(asked),
            completion_tokens=getattr(reply.usage, "completion_tokens", None)
            or min(estimated_tokens(content), max_tokens),
            model=getattr(reply, "model", None) or self._endpoint.model,
            max_tokens=max_tokens,
        )

    def _accepted(self, what: str, create: Callable[..., Any], kind: type[Reply], forms: Sequence[Body]) -> Reply:
        reasons: list[str] = []
        known = self._form.get(what)
        for number in range(len(forms)) if known is None else (known,):
            try:
                reply = self._sent(what, create, kind, forms[number])
            except RefusedError as error:
                reasons.append(str(error))
                continue
            self._form[what] = number
            return reply
        raise RefusedError("; ".join(dict.fromkeys(reasons)))

    def _sent(self, what: str, create: Callable[..., Any], kind: type[Reply], request: Body) -> Reply:
        for number in range(UNREADABLE):
            time.sleep(number)
            try:
                reply = create(model=self._endpoint.model, **request)
            except openai.APIError as error:
                raise self._explained(error) from None  # the cause may quote the request
            except ValueError:  # an incomplete reply is not JSON
                continue
            if isinstance(reply, kind) and reply.choices and (kind is Completion or reply.choices[0].message):  # type: ignore[union-attr]
                return reply
        raise EndpointError(
            f"{self._endpoint.base_url} answers, but not with {what}; is {self._endpoint.field}.base_url right? "
            "It usually ends in /v1"
        )

    def _wait_for_turn(self, _: httpx.Request) -> None:
        """Wait until another request, which may be a retry, fits into `requests_per_minute`."""
        if self._endpoint.requests_per_minute is None:
            return
        with self._pace:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self._endpoint.requests_per_minute
        time.sleep(turn - now)

    def _explained(self, error: openai.APIError) -> Exception:
        """Translate an error into ours: what is wrong, and whether asking again can help; without the key."""
        where, variable, field = self._endpoint.base_url, self._endpoint.api_key_variable, self._endpoint.field
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(f"{where} does not answer: {error.message}")
        status, said = error.status_code, self.without_key(error.message)[:QUOTED_CHARACTERS]
        if status in NOT_AS_ASKED:
            return RefusedError(said)
        if status == 401:
            return StageError(f"{where} does not know the key in {variable} (401); export the right one")
        final = status < 500 and status not in BUSY
        if final or error.code == "insufficient_quota":
            remedy = f"see {field}.base_url and model, and what the key in {variable} may use and pay"
            return StageError(f"{where} refuses {self._endpoint.model}: {said}; {remedy}")
        return (FailedError if status == 500 else EndpointError)(f"{where} does not answer: {said}")

    def without_key(self, text: str) -> str:
        """Return what the endpoint has said without the key, should it repeat it."""
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text
