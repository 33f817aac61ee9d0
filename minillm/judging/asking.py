"""The judge as an endpoint is asked: forms of a request, with or without structured output, and what is an answer."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from minillm.config import Judge
from minillm.endpoints.answers import Answer, Answers
from minillm.endpoints.asking import Inquiry
from minillm.endpoints.budget import Bill, Budget, estimated_tokens
from minillm.endpoints.client import Client
from minillm.judging.questions import read_ratings, schema
from minillm.worker.progress import Progress

FORMS: tuple[tuple[dict[str, Any], str], ...] = tuple(
    itertools.product(({"response_format": schema()}, {}), ("max_tokens", "max_completion_tokens"))
)
"""Forms of a request, the best first: with or without structured output, and either name of the limit."""


class JudgeClient:
    """A connection to the judge; threads may share it."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._client = judge, Client(judge)

    def ask(self, text: str) -> Answer:
        """Ask one question and return the answer, well formed or not; raises what `Client.chat` does."""
        judge = self._judge
        shared: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if judge.temperature is not None:
            shared["temperature"] = judge.temperature
        reply = self._client.chat([{**shared, **form, limit: judge.max_tokens} for form, limit in FORMS])
        return self._client.answer(reply, reply.choices[0].message.content or "", text, judge.max_tokens)


def ask_what_is_open(
    texts: Mapping[str, str], answers: Answers, judge: Judge, methods: int, progress: Progress
) -> dict[str, str]:
    """Ask what has no well-formed answer yet.

    Args:
        texts: Questions by their keys.
        answers: Known answers; new ones are added.
        judge: The judge, its settings and budget.
        methods: Number of rows of the table, which share the budget equally.
        progress: Counts settled questions.

    Returns:
        Reason of the endpoint for each refused question, by its key.

    Raises:
        StageError: It would cost more than the budget, or the endpoint denies access.
        EndpointError: The endpoint does not answer.
    """

    def excess(share: float, wanted: float) -> str:
        return (
            f"a share of {share:,.6g} for each of {methods} methods, but this one's questions may take {wanted:,.6g}; "
            "raise it, or lower prompts, seeds or samples"
        )

    asking = Inquiry(
        endpoint=judge,
        who=f"judge {judge.model}",
        answers=answers,
        send=JudgeClient(judge).ask,
        expected=lambda text: Bill(1, estimated_tokens(text), judge.max_tokens),
        is_whole=lambda _, answer: read_ratings(answer.text) is not None,
        remedy="change evaluation.judge accordingly, e.g. temperature: null or a larger max_tokens",
    )
    return asking.ask_open(texts, lambda spent: Budget(judge, spent, excess, methods), progress.log)


def ratings_in(found: Iterable[Answer]) -> tuple[int, int] | None:
    """Return the ratings of the first well-formed answer; None if there is none."""
    read = (read_ratings(answer.text) for answer in found)
    return next((ratings for ratings in read if ratings is not None), None)
