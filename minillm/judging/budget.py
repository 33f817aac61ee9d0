"""What asking the judge costs: stated before, held to meanwhile, counted after."""

import threading
from dataclasses import dataclass

from minillm.config import Judge, Prices
from minillm.errors import StageError
from minillm.judging.answers import Answer

BYTES_PER_TOKEN = 3
"""Of text before the judge's own tokenizer has counted it; English has about four, so this is on the high side."""


@dataclass(frozen=True)
class Bill:
    """What a number of requests takes."""

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
        """In the currency of the prices."""
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


def expected(text: str, judge: Judge) -> Bill:
    """Of asking one question once, at most."""
    return Bill(1, estimated_tokens(text), judge.max_tokens)


def paid(answer: Answer) -> Bill:
    """Of one answer that came."""
    return Bill(1, answer.prompt_tokens, answer.completion_tokens)


def estimated_tokens(text: str) -> int:
    """Tokens of a text by its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


class Budget:
    """One method's share of the judge's budget; threads may share it."""

    def __init__(self, judge: Judge, methods: int, spent: Bill) -> None:
        """Begin with what the answers found have cost, whenever they were paid for."""
        self._judge, self._methods = judge, methods
        self._lock = threading.Lock()
        self._spent_and_reserved = spent

    def reserve(self, bill: Bill) -> None:
        """Set aside what asking may take.

        Raises:
            StageError: It would exceed the share.
        """
        with self._lock:
            self.check(bill)
            self._spent_and_reserved += bill

    def settle(self, reserved: Bill, spent: Bill) -> None:
        """Replace what was set aside by what it took."""
        with self._lock:
            self._spent_and_reserved += spent - reserved

    def check(self, bill: Bill) -> None:
        """Whether a bill fits into what is left.

        Raises:
            StageError: It does not.
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
