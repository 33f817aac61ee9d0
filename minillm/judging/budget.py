"""Cost of asking the judge: estimated before, limited during, and counted after."""

import threading
from dataclasses import dataclass

from minillm.config import Judge, Prices
from minillm.errors import StageError
from minillm.judging.answers import Answer

BYTES_PER_TOKEN = 3
"""For estimates before the judge's tokenizer counts; English has about four, so estimates are high."""


@dataclass(frozen=True)
class Bill:
    """Cost of a number of requests."""

    questions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(
            self.questions + other.questions,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: "Bill") -> "Bill":
        return self + Bill(-other.questions, -other.prompt_tokens, -other.completion_tokens)

    def cost(self, prices: Prices) -> float:
        """Return the cost in the currency of the prices."""
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


def expected(text: str, judge: Judge) -> Bill:
    """Return the highest cost of asking one question once."""
    return Bill(1, estimated_tokens(text), judge.max_tokens)


def paid(answer: Answer) -> Bill:
    """Return the cost of one answer."""
    return Bill(1, answer.prompt_tokens, answer.completion_tokens)


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text from its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


class Budget:
    """One method's share of the judge's budget; threads may share it."""

    def __init__(self, judge: Judge, methods: int, spent: Bill) -> None:
        """Begin with the cost of known answers, whenever they were paid for."""
        self._judge, self._methods = judge, methods
        self._lock = threading.Lock()
        self._spent_and_reserved = spent

    def reserve(self, bill: Bill) -> None:
        """Set a sum aside for a request.

        Raises:
            StageError: It would exceed the share.
        """
        with self._lock:
            self.check(bill)
            self._spent_and_reserved += bill

    def settle(self, reserved: Bill, spent: Bill) -> None:
        """Replace a sum set aside by the actual cost."""
        with self._lock:
            self._spent_and_reserved += spent - reserved

    def check(self, bill: Bill) -> None:
        """Check that a bill is within the rest of the share.

        Raises:
            StageError: It is not.
        """
        total, judge = self._spent_and_reserved + bill, self._judge
        limits: dict[str, tuple[float, float]] = {"max_questions": (total.questions, judge.max_questions)}
        if judge.max_cost is not None and judge.prices is not None:
            limits["max_cost"] = (total.cost(judge.prices), judge.max_cost)
        for name, (wanted, limit) in limits.items():
            if wanted > limit / self._methods:
                raise StageError(
                    f"evaluation.judge.{name} is {limit:,}, a share of {limit / self._methods:,.6g} for each of "
                    f"{self._methods} methods, but this one's questions may take {wanted:,.6g}; raise it, or lower "
                    "prompts, seeds or samples; answers that were paid for are kept and not asked for again"
                )
