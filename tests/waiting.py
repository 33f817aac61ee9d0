"""Waiting for what other processes do."""

import time
from collections.abc import Callable

PATIENCE = 300.0
"""Seconds, on a machine that has other work."""


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Seconds until a condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - started
