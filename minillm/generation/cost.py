"""What generation takes: tokens per second and memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from minillm.processes import device


@dataclass
class Cost:
    """Adds up over the generations of one stage; of this process, whose rows are one share of all."""

    tokens: int = 0
    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """A generation."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - before

    def summary(self) -> dict[str, float]:
        """Tokens per second and process, and its peak memory in GiB; nothing where all was there already."""
        if not self.tokens:
            return {}
        return {"tokens_per_second": self.tokens / self.seconds, "peak_memory_gib": _peak_bytes() / 2**30}


def _peak_bytes() -> float:
    """Of the accelerator's memory, or of the whole process, its libraries too."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # Linux tells kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
