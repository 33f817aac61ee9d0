"""Seconds of large work from small pieces of it: sizes that grow while there is time, and a line through their times.

The line has two slopes: seconds per call (what a forward pass, an optimizer step or a generated token costs however few
rows it has) and seconds per operation. It goes through the largest piece that was timed.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

REPEATED_SECONDS = 0.7
"""Work that can be timed whole is repeated for about this long."""
FEWEST = 3
"""Repetitions of the largest piece, if there is time."""
MARGIN = 0.2
"""Relative error of any estimate: other processes come and go between the plan and the run."""
PER_DOUBLING = 0.05
"""Relative error added for each doubling from the largest piece that was timed to the work that is estimated."""
UNTIMED = 1.0
"""Relative error of work that was not timed at all, but estimated from its operations."""
SHORTEST_PROMPT, SHORTEST_RESPONSE = 8, 4
"""Tokens of the smallest piece of a text."""


@dataclass(frozen=True)
class Size:
    """Rows of one length."""

    rows: int
    prompt: int
    """Tokens of each prompt."""
    response: int
    """Tokens of each response."""


@dataclass(frozen=True)
class Effort:
    """Amount of work, in the two units that its time grows with."""

    calls: float
    operations: float

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(self.calls + other.calls, self.operations + other.operations)

    def times(self, factor: float) -> "Effort":
        """The work repeated."""
        return Effort(self.calls * factor, self.operations * factor)


@dataclass(frozen=True)
class Seconds:
    """Estimated seconds with the range that they will probably lie in."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, seconds: float, error: float = MARGIN) -> "Seconds":
        """Measured seconds, give or take a relative error."""
        return cls(seconds, seconds / (1 + error), seconds * (1 + error))

    def __add__(self, other: "Seconds") -> "Seconds":
        # Errors are added, not averaged: a machine that is busier than it was is so for every stage.
        return Seconds(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Seconds":
        """The work repeated."""
        return Seconds(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Line:
    """Seconds of one kind of work, of any amount."""

    call: float
    """Seconds per call."""
    operation: float
    """Seconds per operation."""
    error: float
    """Relative error of the largest piece that was timed."""
    largest: float
    """Operations of that piece; 0 where none was timed."""

    def at(self, effort: Effort) -> Seconds:
        """Estimate an amount of work."""
        reach = effort.operations / self.largest if self.largest else 1.0
        error = self.error + PER_DOUBLING * max(0.0, math.log2(max(reach, 1.0)))
        return Seconds.exactly(self.call * effort.calls + self.operation * effort.operations, error)


@dataclass(frozen=True)
class Timed:
    """One piece of work that was timed."""

    effort: Effort
    seconds: float


def fit(pieces: Sequence[Timed]) -> Line:
    """Fit a line with slopes that are not negative, by relative errors, and lay it through the largest piece."""
    efforts = np.array([[p.effort.calls, p.effort.operations] for p in pieces])  # (pieces, 2)
    seconds = np.array([p.seconds for p in pieces])
    scale = efforts.max(axis=0)
    slopes, _ = nnls(efforts / scale / seconds[:, None], np.ones(len(pieces)))
    call, operation = slopes / scale
    largest = max(p.effort.operations for p in pieces)
    last = [p for p in pieces if p.effort.operations == largest]
    mean = statistics.fmean(p.seconds for p in last)
    factor = mean / (call * last[0].effort.calls + operation * largest)
    spread = (max(p.seconds for p in last) - min(p.seconds for p in last)) / (2 * mean)
    error = MARGIN + spread + (abs(factor - 1) if len(pieces) > len(last) else 0.0)
    return Line(float(call * factor), float(operation * factor), float(error), largest)


class Budget:
    """Seconds to measure in, divided equally among what is still to be measured."""

    def __init__(self, seconds: float, kinds: int) -> None:
        """Begin to spend.

        Args:
            seconds: All that there are.
            kinds: Kinds of work that will ask for a share.
        """
        self._ends, self._kinds = time.monotonic() + seconds, kinds

    @property
    def left(self) -> float:
        """Seconds not spent yet."""
        return max(0.0, self._ends - time.monotonic())

    def share(self, kinds: int = 1) -> float:
        """Seconds for the next kinds; what earlier ones did not need is divided among those to come."""
        share = self.left * kinds / self._kinds
        self._kinds -= kinds
        return share


def climb(
    real: Size,
    effort: Callable[[Size], Effort],
    action: Callable[[Size], float],
    clock: Callable[[], float],
    share: float,
    first_seconds: float,
) -> list[Timed]:
    """Time larger and larger pieces of work, none of which would probably exceed what is left of the share.

    Args:
        real: Size that the run has.
        effort: Work of a size.
        action: Does it, and returns the seconds that count, the same on all processes.
        clock: Seconds since some moment, the same on all processes, which thus stop together.
        share: Seconds to spend.
        first_seconds: Expected seconds of the smallest piece.

    Returns:
        What was timed: up to the real size, several times, if it fits; nothing if not even the smallest piece does.
    """
    timed: list[Timed] = []
    sizes, ends, expected = steps_up_to(real), clock() + share, first_seconds
    if clock() + expected <= ends:
        warming = action(sizes[0])  # allocates, compiles and reads what later calls find
        if clock() + warming > ends:
            return [Timed(effort(sizes[0]), warming)]
    for size, larger in zip(sizes, [*sizes[1:], sizes[-1]], strict=True):
        if clock() + expected > ends:
            break
        began = clock()
        timed.append(Timed(effort(size), action(size)))
        expected = (clock() - began) * effort(larger).operations / effort(size).operations
    if not timed:
        return []
    size, last = sizes[len(timed) - 1], timed[-1]
    whole, repeated = len(timed) == len(sizes), 1
    while clock() + last.seconds <= ends and (
        repeated < FEWEST or (whole and repeated * last.seconds < REPEATED_SECONDS)
    ):
        timed.append(Timed(last.effort, action(size)))
        repeated += 1
    return timed


def steps_up_to(real: Size) -> list[Size]:
    """List sizes from one row of few tokens to the real one.

    Rows grow first and lengths later, as a piece that is too short is the safer one to extrapolate from.
    """
    prompt, response = min(real.prompt, SHORTEST_PROMPT), min(real.response, SHORTEST_RESPONSE)
    sizes, rows = [Size(1, prompt, response)], 1
    while rows < real.rows:
        rows = min(rows * 4, real.rows)
        sizes.append(Size(rows, prompt, response))
    while (prompt, response) != (real.prompt, real.response):
        prompt, response = min(prompt * 2, real.prompt), min(response * 2, real.response)
        sizes.append(Size(rows, prompt, response))
    return sizes
