"""Time that stages take together, some at once, each after what it needs."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One stage in the order of its flow."""

    label: str
    seconds: float
    after: frozenset[str]
    """Labels of stages that must have ended."""


def span(steps: Sequence[Step], at_once: int) -> float:
    """Return the seconds from the first start to the last end if stages start as soon as they can, in the order given.

    Args:
        steps: Stages, each behind those that it waits for.
        at_once: Most stages that may run at once.
    """
    waiting, running = list(steps), list[tuple[float, str]]()
    ended: dict[str, float] = {}
    now = 0.0
    while waiting or running:
        ready = [step for step in waiting if step.after <= ended.keys()]
        for step in ready[: at_once - len(running)]:
            heapq.heappush(running, (now + step.seconds, step.label))
            waiting.remove(step)
        now, label = heapq.heappop(running)
        ended[label] = now
    return now
