"""Ask an endpoint the questions it has not answered yet, several at once, and keep each answer as soon as it comes."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Generic, TypeVar

from minillm.config import Endpoint
from minillm.endpoints.answers import Answer, Answers
from minillm.endpoints.budget import Bill, Budget
from minillm.endpoints.client import RefusedError
from minillm.errors import STOPPED, StageError
from minillm.words import counted

ALL_REFUSED = 20
"""If this many questions are refused and none is answered, the endpoint is taken to refuse all."""
T = TypeVar("T")
"""A question of one kind."""


def stop_when_asked() -> None:
    """Let SIGTERM end this process, after the answers under way are kept; the next attempt finds them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))


@dataclass(frozen=True)
class Inquiry(Generic[T]):
    """Way to put questions of one kind to an endpoint."""

    endpoint: Endpoint
    who: str
    """The model in the log, e.g. judge gpt-4o."""
    answers: Answers
    """Known answers; new ones are added."""
    send: Callable[[T], Answer]
    """Asks once; raises what `Client.chat` does."""
    expected: Callable[[T], Bill]
    """Highest cost of asking once."""
    is_whole: Callable[[T, Answer], bool]
    """Tells if an answer has the form asked for."""
    remedy: str
    """Advice if all questions are refused: the field to change, and its value."""

    def ask_open(
        self, questions: Mapping[str, T], budget: Callable[[Bill], Budget], report: Callable[[int], None]
    ) -> dict[str, str]:
        """Ask until every question has a whole answer, or as many answers as attempts.

        Args:
            questions: Questions by their keys.
            budget: Makes the budget, given what the known answers to them have cost.
            report: Gets the number of settled questions.

        Returns:
            Reason of the endpoint for each refused question, by its key.

        Raises:
            StageError: It would cost more than the budget, or the endpoint denies access.
            EndpointError: The endpoint does not answer.
        """
        spent, left, ahead, prices = Bill(), dict[str, int](), Bill(), self.endpoint.prices
        for key, question in questions.items():  # answers may be long, so they are read one by one
            found = self.answers.to([key])[key]
            spent += bill({key: found})
            if self._is_open(question, found):
                left[key] = self._attempts(question, found)
                ahead += self.expected(question)
        print(
            f"{self.who}: {counted(len(questions), 'question')}, {len(questions) - len(left):,} of them settled "
            f"already; to ask: {len(left):,}, an estimated {ahead.words(prices, most='at most ')}",
            flush=True,
        )
        if not left:
            return {}
        limits, paid = budget(spent), list[Bill]()
        limits.check(ahead)
        settled = len(questions) - len(left)
        refused = self._ask_all(
            lambda key: paid.extend(self._ask(key, questions[key], left[key], limits)),
            list(left),
            lambda done: report(settled + done),
        )
        took = sum(paid, Bill())
        asked = counted(took.questions, "question")
        print(f"asked {asked}: {took.words(prices)}; {len(refused)} refused", flush=True)
        return refused

    def _ask(self, key: str, question: T, made: int, budget: Budget) -> Iterator[Bill]:
        """Ask one question until an answer is whole or the attempts are used up; yield what each has cost."""
        for _ in range(made, self.endpoint.attempts):
            highest, took = self.expected(question), Bill()
            budget.reserve(highest)
            try:
                answer = self.send(question)
                self.answers.add(key, answer)
                took = answer.bill
            finally:
                budget.settle(highest, took)
            yield took
            if self.is_whole(question, answer):
                return

    def _is_open(self, question: T, found: Sequence[Answer]) -> bool:
        whole = any(self.is_whole(question, answer) for answer in found)
        return not whole and self._attempts(question, found) < self.endpoint.attempts

    def _attempts(self, question: T, found: Sequence[Answer]) -> int:
        """Count the answers that the present limit may have given: a smaller or a larger one gives others."""
        limit = self.expected(question).completion_tokens
        return sum(
            answer.max_tokens == limit or answer.max_tokens > limit >= answer.completion_tokens for answer in found
        )

    def _ask_all(
        self, ask: Callable[[str], None], keys: Sequence[str], report: Callable[[int], None]
    ) -> dict[str, str]:
        """Ask all questions; if one fails for good, answers under way are still waited for and kept."""
        pool = ThreadPoolExecutor(self.endpoint.parallel)
        refused: dict[str, str] = {}
        try:
            asked = {pool.submit(ask, key): key for key in keys}
            for done, future in enumerate(as_completed(asked), start=1):
                try:
                    future.result()
                except RefusedError as error:
                    refused[asked[future]] = str(error)
                if len(refused) == done == min(ALL_REFUSED, len(keys)):
                    raise StageError(
                        f"{self.endpoint.base_url} takes no question; {self.endpoint.model} says: "
                        f"{refused[asked[future]]}; {self.remedy}"
                    )
                report(done)
        finally:
            pool.shutdown(cancel_futures=True)
        return refused


def bill(found: Mapping[str, Sequence[Answer]]) -> Bill:
    """Sum up the cost of answers."""
    return sum((answer.bill for several in found.values() for answer in several), Bill())
