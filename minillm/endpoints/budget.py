"""Cost of asking an endpoint: estimated before, limited during, and counted after."""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from minillm.config import Endpoint, Prices
from minillm.errors import StageError
from minillm.words import number

BYTES_PER_TOKEN = 3
"""For estimates before the endpoint's tokenizer counts; English has about four, so estimates are high."""


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

    def figures(self, prices: Prices | None) -> dict[str, float]:
        """Return its fields and, if prices are known, its cost."""
        return asdict(self) | ({} if prices is None else {"cost": self.cost(prices)})

    def words(self, prices: Prices | None, most: str = "") -> str:
        """Write tokens and, if prices are known, money."""
        cost = "" if prices is None else f", {most}{number(self.cost(prices), 4)} in money"
        return f"{self.prompt_tokens:,} prompt tokens and {most}{self.completion_tokens:,} completion tokens{cost}"


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text from its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


class Budget:
    """What may be spent on an endpoint; threads may share it."""

    def __init__(self, endpoint: Endpoint, spent: Bill, excess: Callable[[float, float], str], shares: int = 1) -> None:
        """Begin with the cost of known answers, whenever they were paid for.

        Args:
            endpoint: Settings with the limits.
            spent: That cost.
            excess: From a limit and what may be needed, the reason and the remedy that an error gives.
            shares: Equal parts that the limits are divided into, of which this is one.
        """
        self._endpoint, self._excess, self._shares = endpoint, excess, shares
        self._lock = threading.Lock()
        self._spent_and_reserved = spent

    def reserve(self, bill: Bill) -> None:
        """Set a sum aside for a request.

        Raises:
            StageError: It would exceed the limits.
        """
        with self._lock:
            self.check(bill)
            self._spent_and_reserved += bill

    def settle(self, reserved: Bill, spent: Bill) -> None:
        """Replace a sum set aside by the actual cost."""
        with self._lock:
            self._spent_and_reserved += spent - reserved

    def check(self, bill: Bill) -> None:
        """Check that a bill is within what is left.

        Raises:
            StageError: It is not.
        """
        total, endpoint = self._spent_and_reserved + bill, self._endpoint
        name, most = endpoint.most_questions
        limits: dict[str, tuple[float, float]] = {name: (total.questions, most)}
        if endpoint.max_cost is not None and endpoint.prices is not None:
            limits["max_cost"] = (total.cost(endpoint.prices), endpoint.max_cost)
        for name, (wanted, limit) in limits.items():
            if wanted > limit / self._shares:
                raise StageError(
                    f"{endpoint.field}.{name} is {limit:,}, {self._excess(limit / self._shares, wanted)}; answers that "
                    "were paid for are kept and not asked for again"
                )
