"""Everything that follows from something: inputs of inputs, imports of imports, members of groups."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def reachable(starts: Iterable[T], next_to: Callable[[T], Iterable[T]]) -> list[T]:
    """Return things and all that can be reached from them, each once.

    Args:
        starts: Things to start from.
        next_to: Returns what is reached from a thing by one step.
    """
    found: dict[T, None] = {}
    waiting = list(starts)
    while waiting:
        thing = waiting.pop()
        if thing not in found:
            found[thing] = None
            waiting += next_to(thing)
    return list(found)
