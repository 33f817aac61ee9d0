"""Processes that start and end sooner."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector away from what is imported: there is much of it, and none is garbage until the end.

    Looking through it again and again takes a quarter of the time that PyTorch and its neighbours need to be imported,
    and once more as long when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
