"""Helper that waits for other processes."""

import time
from collections.abc import Callable

PATIENCE = 300.0
"""Longest wait in seconds, long enough for a busy machine."""


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Wait until a condition holds; return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - started
