"""The judge's endpoint: any server that speaks OpenAI's chat completions, with or without structured output.

The client of the `openai` package waits and tries again if the server is busy (429, with its Retry-After), fails (5xx),
takes too long, or drops the connection.
"""

import itertools
import os
import time
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from minillm.config import Judge
from minillm.errors import StageError
from minillm.judging.answers import Answer
from minillm.judging.budget import estimated_tokens
from minillm.judging.questions import schema
from minillm.redaction import hide

RETRIES = 8
"""Retries of a request, after 0.5, 1, 2, 4 and then 8 seconds, or as the server asks."""
UNREADABLE = 3
"""Give up after this many replies in a row that are not chat completions."""
NOT_AS_ASKED = (400, 413, 422)
"""HTTP statuses for a form of request, or a question, that the endpoint does not accept."""
BUSY = (408, 409, 425, 429)
FORMS: tuple[tuple[dict[str, Any], str], ...] = tuple(
    itertools.product(({"response_format": schema()}, {}), ("max_tokens", "max_completion_tokens"))
)
"""Forms of a request, the best first: with or without structured output, and either name of the limit."""
SHORTEST_SECRET = 8
"""Characters; a shorter key is a placeholder for an endpoint that needs none."""
QUOTED_CHARACTERS = 300
"""Characters of the endpoint's reply that an error quotes."""


class EndpointError(Exception):
    """The endpoint does not answer; asking again later may help."""


class RefusedError(Exception):
    """The endpoint does not accept a question in any form."""


class Endpoint:
    """A connection to the judge; threads may share it."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._key = os.environ.get(judge.api_key_variable, "")
        if not self._key:
            raise StageError(f"the environment has no {judge.api_key_variable}; export it with the endpoint's key")
        hide(self._key)
        self._client = openai.OpenAI(
            base_url=judge.base_url, api_key=self._key, timeout=judge.timeout_seconds, max_retries=RETRIES
        )
        self._form: int | None = None  # the first one accepted

    def ask(self, text: str) -> Answer:
        """Ask one question and return the answer, well formed or not.

        Raises:
            RefusedError: The endpoint does not accept this question.
            EndpointError: It does not answer.
            StageError: It rejects the key or the model, or demands payment; asking again does not help.
        """
        reasons: list[str] = []
        for form in range(len(FORMS)) if self._form is None else (self._form,):
            try:
                completion = self._completion(text, *FORMS[form])
            except RefusedError as error:
                reasons.append(str(error))
                continue
            self._form = form
            return self._answer(text, completion)
        raise RefusedError("; ".join(dict.fromkeys(reasons)))

    def _completion(self, text: str, form: dict[str, Any], limit: str) -> ChatCompletion:
        options = {**form, limit: self._judge.max_tokens}
        if self._judge.temperature is not None:
            options["temperature"] = self._judge.temperature
        for number in range(UNREADABLE):
            time.sleep(number)
            try:
                completion = self._client.chat.completions.create(
                    model=self._judge.model, messages=[{"role": "user", "content": text}], **options
                )
            except openai.APIError as error:
                raise self._explained(error) from None  # the cause may quote the request
            except ValueError:  # an incomplete reply is not JSON
                continue
            if isinstance(completion, ChatCompletion) and completion.choices and completion.choices[0].message:
                return completion
        raise EndpointError(
            f"{self._judge.base_url} answers, but not with a chat completion; is evaluation.judge.base_url right? "
            "It usually ends in /v1"
        )

    def _answer(self, text: str, completion: ChatCompletion) -> Answer:
        """Return the reply; not every server counts tokens or names its model."""
        content = self._without_key(completion.choices[0].message.content or "")
        return Answer(
            text=content,
            prompt_tokens=getattr(completion.usage, "prompt_tokens", None) or estimated_tokens(text),
            completion_tokens=getattr(completion.usage, "completion_tokens", None) or estimated_tokens(content),
            model=getattr(completion, "model", None) or self._judge.model,
            max_tokens=self._judge.max_tokens,
        )

    def _explained(self, error: openai.APIError) -> Exception:
        """Translate an error into ours: what is wrong, and whether asking again can help; without the key."""
        where, variable = self._judge.base_url, self._judge.api_key_variable
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(f"{where} does not answer: {error.message}")
        status, said = error.status_code, self._without_key(error.message)[:QUOTED_CHARACTERS]
        if status in NOT_AS_ASKED:
            return RefusedError(said)
        if status == 401:
            return StageError(f"{where} does not know the key in {variable} (401); export the right one")
        final = status < 500 and status not in BUSY
        if final or error.code == "insufficient_quota":
            remedy = f"see evaluation.judge.base_url and model, and what the key in {variable} may use and pay"
            return StageError(f"{where} refuses {self._judge.model}: {said}; {remedy}")
        return EndpointError(f"{where} does not answer: {said}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text
